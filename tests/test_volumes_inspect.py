"""What a volume is said to be: sampled statistics against those of all voxels, notes, costs, and the picture."""

import json

import numpy as np
import pytest
from data_files import make_row
from volume_files import imaris, ome_zarr

from lsmfm_jax.files import canonical_json
from lsmfm_jax.store.manifest import Part, _last_line, manifest_bytes, read_manifest
from lsmfm_jax.volumes.inspect import inspect, write_page
from lsmfm_jax.volumes.open import VolumeError, open_volume
from lsmfm_jax.volumes.survey import coarse_map, sample_boxes, survey


@pytest.mark.parametrize("shape", [(7, 9, 11), (40, 70, 33), (5, 300, 20)])
def test_of_a_small_volume_every_voxel_is_looked_at_once(shape):
    seen = np.zeros(shape, int)
    for box in sample_boxes(shape, blocks=512, side=32):
        seen[box] += 1
    assert (seen == 1).all()


def test_of_a_large_one_blocks_are_spread_over_all_of_it():
    shape = (3000, 5000, 4000)
    boxes = sample_boxes(shape, blocks=512, side=32)
    assert 400 < len(boxes) < 800 and boxes == sample_boxes(shape, blocks=512, side=32)
    starts = np.array([[one.start for one in box] for box in boxes])
    for axis, size in enumerate(shape):
        assert all(one[axis].stop - one[axis].start == 32 and 0 <= one[axis].start <= size - 32 for one in boxes)
        assert np.ptp(starts[:, axis]) > 0.8 * size


def tissue(shape=(96, 160, 160), dtype="uint16") -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.normal(120, 4, shape)
    image[24:, 80:, 40:] += 300
    return image.astype(dtype)


def test_background_noise_and_shares_are_those_of_the_volume(tmp_path):
    whole = tissue()
    np.save(tmp_path / "a.npy", whole)
    seen = survey(open_volume(tmp_path / "a.npy"))
    assert abs(seen.background - np.median(whole[:24])) <= 1 and abs(seen.noise - 4) < 1.2
    assert 135 < seen.threshold < 160
    assert seen.foreground_frac == pytest.approx((whole > seen.threshold).mean(), abs=0.02)
    assert seen.percentiles["50"] == pytest.approx(np.percentile(whole, 50), abs=2)
    assert 0.5 < seen.empty_frac < 0.75 and seen.saturated_frac == 0 and not seen.not_finite
    assert sum(seen.histogram[0]) == pytest.approx(1, abs=0.01)


def test_the_map_is_means_and_maxima_of_cells_whatever_it_is_made_from(tmp_path):
    whole = tissue((40, 300, 50))
    np.save(tmp_path / "a.npy", whole)
    small = coarse_map(open_volume(tmp_path / "a.npy"))
    assert small.mean.shape == (40, 150, 50) and small.cell == (1.0, 2.0, 1.0) and small.covers
    np.testing.assert_allclose(small.mean, whole.reshape(40, 150, 2, 50).mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(small.maximum, whole.reshape(40, 150, 2, 50).max(axis=2))
    path = ome_zarr(tmp_path / "b.zarr", [whole, whole[::2, ::2, ::2]], version="0.5")
    coarse = coarse_map(open_volume(path))
    assert coarse.source == "level 1 of the pyramid" and coarse.cell == (2.0, 2.0, 2.0)
    np.testing.assert_array_equal(coarse.maximum, whole[::2, ::2, ::2])


def test_saturation_of_the_type_and_of_a_camera_with_fewer_bits(tmp_path):
    for name, top in (("full", 65535), ("twelve", 4095)):
        whole = tissue()
        whole[:, :20] = top
        np.save(tmp_path / f"{name}.npy", whole)
        text = inspect(str(tmp_path / f"{name}.npy")).text
        assert f"hold {top}, so the brightest structures are clipped" in text
    np.save(tmp_path / "none.npy", tissue())
    assert "clipped" not in inspect(str(tmp_path / "none.npy")).text


def test_nan_constant_and_doubtful_sizes_are_noted(tmp_path):
    whole = tissue(dtype="float32")
    whole[:10] = np.nan
    path = ome_zarr(tmp_path / "a.zarr", [whole], version="0.5", unit=None)
    text = inspect(str(path)).text
    assert "sampled voxels are NaN or Inf" in text and "the voxel size is doubtful" in text
    np.save(tmp_path / "c.npy", np.full((20, 20, 20), 7, np.uint8))
    constant = inspect(str(tmp_path / "c.npy"))
    assert "every voxel that was looked at is 7" in constant.text and "voxel size       unknown" in constant.text
    write_page(constant, tmp_path / "c.png")
    np.save(tmp_path / "nan.npy", np.full((20, 20, 20), np.nan, np.float32))
    with pytest.raises(VolumeError, match="all voxels that were looked at are NaN or Inf"):
        inspect(str(tmp_path / "nan.npy"))


def test_every_channel_has_its_lines_and_its_row(tmp_path):
    whole = np.stack([tissue((24, 40, 40)), tissue((24, 40, 40)) + 1000])[None]
    path = imaris(tmp_path / "a.ims", [whole])
    both = inspect(str(path))
    assert "channel 0" in both.text and "channel 1" in both.text and len(both.panels) == 2
    assert "2; choose one with --channel 0 to 1" in both.text and "2 x 0.5 x 0.5 um, header (Imaris)" in both.text
    one = inspect(str(path), channel=1)
    assert len(one.panels) == 1 and one.panels[0].survey.background > 1000
    write_page(both, tmp_path / "p" / "a.png")
    assert (tmp_path / "p" / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_stores_from_before_patches_were_cut_still_open(tmp_path):
    row = make_row("a")
    part = Part("00000", (1, 2, 2, 2), "uint8", {"zarr.json": "sha"})
    part_line, row_line, _ = manifest_bytes([part], [row]).splitlines(keepends=True)
    record = json.loads(row_line)
    for name in ("origin", "level", "foreground_frac", "threshold", "volume_percentiles"):
        del record[name]
    old = part_line + canonical_json(record)
    (tmp_path / "manifest.jsonl").write_bytes(old + _last_line(old, parts=1, patches=1))
    assert read_manifest(tmp_path / "manifest.jsonl").rows == (row,)
