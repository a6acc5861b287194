"""Objects of masks of any size: counted, measured and numbered as in the whole mask, whatever the blocks."""

import csv
import json

import cc3d
import numpy as np
import pytest
from brain_runs import blobs, copying, in_memory, written
from scipy import ndimage

from lsmfm_jax.cli import main
from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.instances import blocks, find_components, plain_components
from lsmfm_jax.predict.merge import merge
from lsmfm_jax.predict.objects import COMPONENT, join, write_objects
from lsmfm_jax.predict.output import INSTANCES, MASK
from lsmfm_jax.predict.splitting import split_components
from lsmfm_jax.volumes.nifti import write_nifti
from lsmfm_jax.volumes.read import read_single


def objects_of(mask, folder, *, side, connectivity=26, label=None, minimum_voxels=1, intensity=None):
    """Facts of objects and their image, from blocks."""
    label = label or plain_components(in_memory(mask), connectivity=connectivity)
    other = None if intensity is None else in_memory(intensity)
    found = find_components(
        label, mask.shape, side=side, connectivity=connectivity, scratch=folder, intensity=other
    )  # fmt: skip
    path = folder / "objects.bin"
    facts, numbers = join(found.facts, found.group, found.groups, minimum_voxels=minimum_voxels, path=path)
    image = np.zeros(mask.shape, np.uint64)
    for box in blocks(mask.shape, side):
        first, count = found.offsets.get(tuple(one.start for one in box), (0, 0))
        lookup = np.concatenate([np.zeros(1, np.uint64), numbers[first : first + count]])
        if count:
            image[box] = lookup[label(box)[0]]
    return facts, image


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("seed", range(20))
def test_blocks_count_as_the_whole_on_dense_noise(seed, connectivity, tmp_path):
    rng = np.random.default_rng(100 * seed + connectivity)
    shape, side = (tuple(int(n) for n in rng.integers(low, high, 3)) for low, high in ((1, 45), (2, 25)))
    mask = rng.random(shape) < rng.choice([0.03, 0.1, 0.2, 0.3, 0.5])
    intensity = rng.integers(0, 4000, shape).astype(np.uint16)
    facts, image = objects_of(mask, tmp_path, side=side, connectivity=connectivity, intensity=intensity)
    # Another library than the blocks use.
    steps = {6: 1, 18: 2, 26: 3}[connectivity]
    expected, count = ndimage.label(mask, ndimage.generate_binary_structure(3, steps))
    # Numbered by their first voxel, as ndimage does.
    np.testing.assert_array_equal(image, expected)
    assert len(facts) == count
    for number in range(1, min(count, 8) + 1):
        voxels, one = np.argwhere(expected == number), facts[number - 1]
        assert one["voxels"] == len(voxels) and (one["sums"] == voxels.sum(axis=0)).all()
        assert (one["low"] == voxels.min(axis=0)).all() and (one["high"] == voxels.max(axis=0) + 1).all()
        values = intensity[expected == number]
        assert one["brightest"] == values.max() and one["intensity"] == values.sum()


def test_an_object_that_winds_through_all_blocks_is_one(tmp_path):
    mask = np.zeros((9, 40, 40), bool)
    mask[::4] = True
    mask[2::4, :, :] = False
    for z, at in ((1, 0), (2, 0), (3, 0), (5, -1), (6, -1), (7, -1)):
        mask[z, at, at] = True
    facts, _ = objects_of(mask, tmp_path, side=(4, 8, 8))
    assert len(facts) == 1 and facts[0]["voxels"] == mask.sum()


def test_a_corner_that_touches_in_a_corner_of_four_blocks(tmp_path):
    for move in np.argwhere(np.ones((3, 3, 3))) - 1:
        if not move.any():
            continue
        mask = np.zeros((16, 16, 16), bool)
        # On both sides of the place where eight blocks meet.
        first = np.where(move > 0, 7, 8)
        mask[tuple(first)] = mask[tuple(first + move)] = True
        for connectivity, most in ((6, 1), (18, 2), (26, 3)):
            folder = tmp_path / f"{'_'.join(map(str, move))}-{connectivity}"
            folder.mkdir()
            facts, _ = objects_of(mask, folder, side=(8, 8, 8), connectivity=connectivity)
            assert len(facts) == (1 if np.abs(move).sum() <= most else 2), (move, connectivity)


def spheres(centres, radius, shape):
    grid = np.stack(np.indices(shape), -1)
    return np.any([((grid - centre) ** 2).sum(-1) <= radius**2 for centre in centres], axis=0)


@pytest.mark.parametrize("side", [(64, 64, 64), (16, 16, 16), (13, 20, 9)])
def test_touching_cells_are_cut_apart_alike_in_any_blocks(side, tmp_path):
    centres = [(14, 14, 14), (14, 14, 22), (14, 23, 14), (40, 32, 32), (40, 32, 40), (48, 32, 36), (50, 10, 50)]
    mask = spheres(centres, 5, (64, 64, 64))
    assert cc3d.connected_components(mask, connectivity=26).max() == 3
    label = split_components(in_memory(mask), connectivity=26, voxel_size_um=None, distance_um=3.0)
    facts, image = objects_of(mask, tmp_path, side=side, label=label)
    assert len(facts) == len(centres)
    assert len({int(image[centre]) for centre in centres}) == len(centres)
    assert (image > 0).tobytes() == mask.tobytes()
    whole = tmp_path / "whole"
    whole.mkdir()
    _, expected = objects_of(mask, whole, side=(64, 64, 64), label=label)
    assert (image == expected).mean() > 0.999


def test_splitting_leaves_single_cells_and_specks_alone(tmp_path):
    mask = spheres([(20, 20, 20)], 7, (40, 40, 40))
    mask[20, 20, 30] = mask[1, 1, 1] = True
    label = split_components(in_memory(mask), connectivity=26, voxel_size_um=(2.0, 1.0, 1.0), distance_um=5.0)
    facts, _ = objects_of(mask, tmp_path, side=(16, 16, 16), label=label)
    assert sorted(facts["voxels"]) == [1, 1, int(mask.sum()) - 2]


# --- from a volume to a table ---


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def result(tmp_path):
    """A result of a volume with cells on a dark ground, whose network is the image itself; and what it should hold."""
    array = blobs((40, 70, 60), seed=3)
    array = np.where(array > 140, array, 0).astype(np.uint16)
    np.save(tmp_path / "a.npy", array)
    volume = in_memory(array, voxel_size_um=(2.0, 0.5, 0.5), path=str(tmp_path / "a.npy"))
    settings = BrainSettings(shard=(16, 32, 32))
    predict_brain(copying(), volume, tmp_path / "r.ome.zarr", settings=settings, print_line=lambda line: None)
    mask = written(tmp_path / "r.ome.zarr", MASK) > 0
    assert 0.01 < mask.mean() < 0.4
    return array, mask, tmp_path / "r.ome.zarr"


def test_the_table_has_what_the_arrays_have(result):
    array, mask, out = result
    summary = merge(out, print_line=lambda line: None)
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    rows, image = rows_of(out / "objects.csv"), written(out, INSTANCES)
    np.testing.assert_array_equal(image, expected)
    assert len(rows) == count == summary["objects"] > 5 and image.dtype == np.uint64
    for row in rows:
        voxels = np.argwhere(expected == int(row["id"]))
        np.testing.assert_allclose([float(row[f"centroid_{a}"]) for a in "zyx"], voxels.mean(axis=0), rtol=1e-6)
        scaled = [float(row[f"centroid_{a}_um"]) for a in "zyx"]
        np.testing.assert_allclose(scaled, voxels.mean(axis=0) * (2.0, 0.5, 0.5), rtol=1e-6)
        assert int(row["voxels"]) == len(voxels) and float(row["volume_um3"]) == pytest.approx(len(voxels) * 0.5)
        assert [int(row[f"box_{a}0"]) for a in "zyx"] == voxels.min(axis=0).tolist()
        assert [int(row[f"box_{a}1"]) for a in "zyx"] == (voxels.max(axis=0) + 1).tolist()
        values = array[expected == int(row["id"])]
        assert float(row["mean_intensity"]) == pytest.approx(values.mean(), rel=1e-6)
        assert float(row["max_intensity"]) == values.max()
        assert 0.5 <= float(row["mean_probability"]) <= 1
        at_border = (voxels == 0).any() or (voxels == np.array(mask.shape) - 1).any()
        assert row["touches_border"] == str(int(at_border))
    page = (out / "report.html").read_text()
    assert f"{count} (26 neighbours)" in page and page.count("data:image/png;base64,") == 3 and "http" not in page


def test_a_merge_can_be_done_again_with_other_objects(result, capsys):
    _, mask, out = result
    expected, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 1))
    sizes = np.bincount(expected.ravel())[1:]
    least = float(np.median(sizes)) * 0.5
    arguments = ["predict", "--merge", str(out), "--connectivity", "6", "--minimum-um3", str(least)]
    assert main(arguments) == 0
    kept = int((sizes * 0.5 >= least).sum())
    assert 0 < kept < count and f"{kept} objects" in capsys.readouterr().out
    image = written(out, INSTANCES)
    assert len(rows_of(out / "objects.csv")) == image.max() == kept
    np.testing.assert_array_equal(np.unique(expected[image > 0]), np.flatnonzero(sizes * 0.5 >= least) + 1)
    assert json.loads((out / "summary.json").read_text())["merging"]["connectivity"] == 6


@pytest.mark.parametrize("kind, name", [("nifti", "r_mask.nii.gz"), ("tiff", "r_mask.ome.tif")])
def test_the_mask_as_a_file_too(result, kind, name):
    _, mask, out = result
    merge(out, changes={"also": kind, "no_objects": True}, print_line=lambda line: None)
    array, info = read_single(out.with_name(name))
    np.testing.assert_array_equal(array > 0, mask)
    assert info.voxel_size_um == (2.0, 0.5, 0.5)
    assert not (out / "objects.csv").exists()


def test_a_file_that_would_not_fit_is_refused(result):
    _, _, out = result
    with pytest.raises(PredictionError, match="take --also tiff"):
        merge(out, changes={"also": "nifti", "no_objects": True}, max_ram_bytes=10_000, print_line=lambda line: None)


def test_without_the_input_the_intensities_are_left_out(result, tmp_path):
    _, _, out = result
    (tmp_path / "a.npy").unlink()
    lines = []
    merge(out, print_line=lines.append)
    assert any("intensities are left out" in line for line in lines)
    rows = rows_of(out / "objects.csv")
    assert rows and all(row["mean_intensity"] == "" and row["mean_probability"] for row in rows)


def test_no_voxel_size_no_volumes(tmp_path):
    facts = np.zeros(1, COMPONENT)
    facts["voxels"], facts["sums"], facts["high"] = 2, (2, 4, 6), (3, 3, 4)
    names = write_objects(
        tmp_path,
        facts,
        shape=(9, 9, 9),
        voxel_size_um=None,
        origin=(0, 0, 0),
        has_intensity=False,
        has_probability=False,
    )
    (row,) = rows_of(tmp_path / names[0])
    assert row["volume_um3"] == row["centroid_z_um"] == row["mean_intensity"] == "" and row["centroid_x"] == "3"


def test_nothing_found_is_an_empty_table(tmp_path):
    array = blobs((20, 20, 20))
    np.save(tmp_path / "a.npy", array)
    out = tmp_path / "r.ome.zarr"
    settings = BrainSettings(threshold=1.0)
    predict_brain(
        copying(network=lambda x: 0.5 * x), in_memory(array), out, settings=settings, print_line=lambda line: None
    )  # fmt: skip
    assert merge(out, print_line=lambda line: None)["objects"] == 0
    assert rows_of(out / "objects.csv") == [] and (out / "objects.csv").read_text().startswith("id,centroid_z")
    assert not written(out, INSTANCES).any()


def test_a_nifti_of_a_part_lies_where_the_part_was(tmp_path):
    from lsmfm_jax.volumes.open import open_volume

    array = blobs((30, 40, 50))
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = 7, 8, 9
    write_nifti(tmp_path / "a.nii.gz", array, affine=affine)
    volume = open_volume(tmp_path / "a.nii.gz", box=(slice(4, 30), slice(10, 40), slice(5, 50)))
    out = tmp_path / "r.ome.zarr"
    predict_brain(copying(), volume, out, settings=BrainSettings(), print_line=lambda line: None)
    merge(out, changes={"also": "nifti"}, print_line=lambda line: None)
    _, info = read_single(tmp_path / "r_mask.nii.gz")
    np.testing.assert_allclose(info.affine[:3, 3], (7 + 2.5, 8 + 5, 9 + 8))
    scale, translation = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"][
        0
    ]["coordinateTransformations"]
    size = volume.voxel_size_um
    np.testing.assert_allclose(translation["translation"], np.array((4, 10, 5)) * size)
    np.testing.assert_allclose(scale["scale"], size)
