"""Generated volumes: reproducible, physically plausible, readable by others, named as the layouts need."""

import gzip
import json
import re

import cc3d
import nibabel
import numpy as np
import pytest
from scipy import ndimage, stats

from lsmfm_jax.phantom import LAYOUTS, blur_counts, gallery, make_phantom, shapes, write_phantoms
from lsmfm_jax.phantom.captions import CAPTIONS
from lsmfm_jax.phantom.optics import Optics, draw_optics, expose
from lsmfm_jax.phantom.structures import KINDS

SIZE = (40, 44, 48)


def plain_optics(**changes):
    """A camera without any unevenness, so that one effect at a time can be measured."""
    facts = {
        "voxel_um": (2.0, 2.0, 2.0),
        "channel_nm": 561,
        "background_counts": 400.0,
        "contrast": 20.0,
        "texture": 0.0,
        "lateral_sigma_um": 2.0,
        "axial_sigma_um": 6.0,
        "rayleigh_um": 1e6,
        "haze": 0.0,
        "attenuation_um": 1e9,
        "detection_um": 1e9,
        "stripes": 0.0,
        "from_left": True,
        "offset_counts": 100.0,
        "gain_counts": 4.0,
        "read_noise_counts": 3.0,
    }
    return Optics(**{**facts, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_structure_is_brighter_where_the_mask_is(kind):
    for seed in range(3):
        image, mask, params = make_phantom(kind, SIZE, np.random.default_rng(seed))
        assert image.shape == mask.shape == SIZE
        assert image.dtype == np.uint16 and set(np.unique(mask)) <= {0, 1}
        assert 0 < mask.mean() < 0.4
        # Against the surroundings of the objects, not the whole patch, whose light is uneven.
        ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=3)
        assert image[mask > 0].mean() > 1.02 * image[ring].mean()
        assert 50 < np.median(image) < 10_000 and image.std() > 5
        assert params["kind"] == kind and json.dumps(params)


def test_same_generator_state_gives_same_patch_and_another_does_not():
    first, again, other = (make_phantom("nuclei", SIZE, np.random.default_rng(s))[0] for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] < 0.5


def test_nuclei_are_many_and_plaques_few():
    counts = {}
    for kind in ("nuclei", "plaques"):
        optics = plain_optics()
        mask = make_phantom(kind, (64, 64, 64), np.random.default_rng(0), optics=optics)[1]
        counts[kind] = cc3d.connected_components(mask, connectivity=26, return_N=True)[1]
    assert counts["nuclei"] > 40 and 1 <= counts["plaques"] < 15


def test_noise_is_that_of_photons_and_camera():
    optics = plain_optics()
    image = expose(np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32), optics=optics, rng=np.random.default_rng(0))
    light = ndimage.gaussian_filter(image.astype(float), 6)
    noise = image - light
    expected = optics.gain_counts * (light.mean() - optics.offset_counts) + optics.read_noise_counts**2
    assert noise.var() == pytest.approx(expected, rel=0.1)
    assert light.mean() == pytest.approx(500, rel=0.1)


def test_blur_is_wider_along_z_and_a_bright_object_saturates():
    label = np.zeros((41, 41, 41), np.float32)
    label[20, 20, 20] = 1000.0
    optics = plain_optics(gain_counts=0.05)
    image = expose(label, np.zeros_like(label), optics=optics, rng=np.random.default_rng(0)).astype(float) - 100
    widths = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        profile = np.clip(image, 0, None)[tuple(slice(10, 31) for _ in range(3))].sum(axis=others)
        profile -= profile.min()
        at = np.arange(21) - 10
        widths.append(np.sqrt((profile * at**2).sum() / profile.sum()) * 2.0)
    assert widths[0] == pytest.approx(6.0, rel=0.12)
    assert widths[1] == pytest.approx(2.0, rel=0.12) and widths[2] == pytest.approx(2.0, rel=0.12)
    bright = expose(label * 1000, np.zeros_like(label), optics=optics, rng=np.random.default_rng(0))
    assert bright.max() == 65535


@pytest.mark.parametrize("from_left", [True, False])
def test_light_decays_from_the_side_of_the_sheet_and_shadows_run_along_x(from_left):
    shape = (24, 48, 64)
    still = {"gain_counts": 0.01, "read_noise_counts": 0.1, "lateral_sigma_um": 0.5, "axial_sigma_um": 0.5}
    dim = plain_optics(attenuation_um=100.0, from_left=from_left, **still)
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    light = expose(zeros, ones, optics=dim, rng=np.random.default_rng(1)).astype(float) - dim.offset_counts
    slope = np.polyfit(np.arange(64) * 2.0, np.log(light.mean(axis=(0, 1))), 1)[0]
    assert slope == pytest.approx(-0.01 if from_left else 0.01, rel=0.15)
    striped = plain_optics(stripes=0.2, from_left=from_left, **still)
    light = expose(zeros, ones, optics=striped, rng=np.random.default_rng(1)).astype(float)
    light /= ndimage.gaussian_filter(light, 6)
    late = light[:, :, 40:] if from_left else light[:, :, :24]
    assert late.mean(axis=2).std() > 3 * late.mean(axis=1).std()


def test_stamp_draws_ellipsoids_of_the_right_volume():
    rng = np.random.default_rng(0)
    voxel_um = np.array([2.0, 1.0, 1.5])
    field = np.zeros((50, 80, 60), np.float32)
    centre = np.array([[50.0, 40.0, 45.0]])
    radii = np.array([[14.0, 20.0, 10.0]])
    matrices = shapes.ellipsoids(radii, shapes.random_rotations(1, rng))
    shapes.stamp(field, centre, matrices, np.array([0.7]), voxel_um=voxel_um)
    volume = (field > 0.35).sum() * voxel_um.prod()
    assert volume == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.02)
    assert field.max() == pytest.approx(0.7)
    at = np.array(ndimage.center_of_mass(field)) * voxel_um
    np.testing.assert_allclose(at, centre[0], atol=0.2)


def test_stamp_clips_at_the_border_and_overlaps_take_the_larger():
    field = np.zeros((10, 10, 10), np.float32)
    sphere = shapes.spheres(np.array([3.0, 3.0, 3.0]))
    centres = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [100.0, 0.0, 0.0]])
    shapes.stamp(field, centres, sphere, np.array([0.5, 0.8, 9.0]), voxel_um=np.ones(3))
    assert field[0, 0, 0] == pytest.approx(0.8) and field.max() == pytest.approx(0.8)
    assert field[5:].max() == 0


def test_placed_points_keep_their_distance():
    points = shapes.place(
        np.array([80.0, 80, 80]),
        density_per_mm3=4e5,
        spacing_um=9.0,
        margin_um=5.0,
        rng=np.random.default_rng(0),
    )
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert len(points) > 80 and gaps.min() >= 9.0
    assert points.min() >= -5 and points.max() <= 85


def test_smooth_noise_is_standard_and_as_wide_as_asked():
    fields = [shapes.smooth_noise((48, 48, 48), np.array([6.0, 6.0, 2.0]), np.random.default_rng(s)) for s in range(4)]
    values = np.concatenate([f.ravel() for f in fields])
    assert abs(values.mean()) < 0.12 and values.std() == pytest.approx(1, abs=0.12)
    field = fields[0]
    along_z = np.corrcoef(field[:-3].ravel(), field[3:].ravel())[0, 1]
    along_x = np.corrcoef(field[..., :-3].ravel(), field[..., 3:].ravel())[0, 1]
    assert along_z > along_x + 0.2


def test_blurred_companion_matches_its_definition():
    image = make_phantom("vessels", (32, 32, 32), np.random.default_rng(0))[0]
    blurred = blur_counts(image, np.random.default_rng(1)).astype(float)
    residue = blurred - ndimage.gaussian_filter(image.astype(np.float64), 2.5)
    assert residue.std() == pytest.approx(2.5, rel=0.05) and abs(residue.mean()) < 0.1
    assert stats.kurtosis(residue.ravel()) == pytest.approx(0, abs=0.1)


def test_files_repeat_bit_for_bit_and_hold_the_arrays(tmp_path):
    options = {"count": 6, "size": (16, 20, 24), "seed": 3, "blurred": True}
    first = write_phantoms(tmp_path / "a", **options)
    second = write_phantoms(tmp_path / "b", **options)
    assert [p.name for p in first] == [p.name for p in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    others = write_phantoms(tmp_path / "c", **{**options, "seed": 4})
    assert all(a.read_bytes() != c.read_bytes() for a, c in zip(first[:-1:3], others[:-1:3], strict=True))
    path = tmp_path / "a" / "nuclei_patch_000_vol000_ch0.nii.gz"
    assert int.from_bytes(path.read_bytes()[4:8], "little") == 0 and gzip.decompress(path.read_bytes())
    image = nibabel.load(path)
    optics = draw_optics("nuclei", np.random.default_rng([3, 0, 0]))
    made, mask, _ = make_phantom("nuclei", (16, 20, 24), np.random.default_rng([3, 0, 0, 0]), optics=optics)
    np.testing.assert_array_equal(np.asarray(image.dataobj), made.T)
    assert image.get_data_dtype() == np.uint16
    assert image.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_allclose(image.header.get_zooms(), optics.voxel_um[::-1], rtol=1e-6)
    label = nibabel.load(tmp_path / "a" / "nuclei_patch_000_vol000_ch0_label.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), mask.T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_names_with_volumes_and_a_caption_for_every_key(tmp_path, layout):
    files = write_phantoms(tmp_path, count=23, size=(8, 8, 8), seed=0, layout=layout)
    captions = json.loads((tmp_path / "captions.json").read_text())
    patterns = {
        "flat": r"(?P<key>\w+)_patch_\d+_(?P<volume>vol\d+)_ch0\.nii\.gz",
        "selma": r"(?P<key>\w+)/patchvolume_(?P<volume>\d+)_\d+\.nii\.gz",
        "wu": r"(?P<key>(?P<volume>\w+))/input/\w+\.nii\.gz",
    }
    names = [p.relative_to(tmp_path).as_posix() for p in files[:-1]]
    images = [name for name in names if not name.endswith("_label.nii.gz")]
    assert len(images) == 23 and len(names) == 46
    found = [re.fullmatch(patterns[layout], name) for name in images]
    assert all(found)
    assert {match["key"] for match in found} == set(captions)
    volumes = {(match["key"], match["volume"]) for match in found}
    assert len(volumes) == 10
    for entry in captions.values():
        texts = [entry["orig"], *entry["rewrites"]]
        assert len(set(texts)) == len(texts) >= 5
        assert all(2 <= len(re.findall(r"[.](?:\s|$)", text)) <= 4 for text in texts)
    if layout == "wu":
        assert len({entry["orig"] for entry in captions.values()}) == len(captions)


def test_patches_of_a_volume_share_their_imaging():
    optics = [draw_optics("glia", np.random.default_rng([0, 4, volume])) for volume in (0, 0, 1)]
    assert optics[0] == optics[1] != optics[2]


def test_captions_cover_the_kinds_without_repeating_themselves():
    assert CAPTIONS.keys() == KINDS.keys()
    everything = [text for texts in CAPTIONS.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_wrong_requests_are_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(ValueError, match=r"'axons' is unknown; allowed: nuclei, plaques"):
        make_phantom("axons", SIZE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 8 voxels"):
        make_phantom("nuclei", (4, 16, 16), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"'bids' is unknown; allowed: flat, selma, wu"):
        write_phantoms(tmp_path, count=1, seed=0, layout="bids")
    with pytest.raises(ValueError, match="must be at least 1"):
        write_phantoms(tmp_path, count=0, seed=0)


def test_gallery_has_a_row_for_each_kind(tmp_path):
    from matplotlib.image import imread

    picture = imread(gallery(tmp_path / "docs" / "gallery.png", size=(16, 16, 16)))
    height, width = picture.shape[:2]
    assert height > 1.1 * width and picture[..., :3].std() > 0.2


def test_intensities_are_like_those_of_real_patches(shared):
    """Contrast and noise of each kind lie within a factor of two of the real patches' range."""
    folder = shared / "data"
    real = {
        "nuclei": [*(folder / "finetune").glob("*/cell_nucleus*_ch?.nii.gz")],
        "plaques": [*(folder / "finetune").glob("*/amyloid_plaque*_ch?.nii.gz")],
        "glia": sorted((folder / "delivr/microglia").glob("*_[01].nii.gz")),
        "neurons": [*(folder / "pretrain").glob("*/0[48]_A*/input/*.nii.gz")],
    }
    # The real glia and nuclei are of the coarse, bright acquisition: compare with phantoms of that one.
    coarse = {"nuclei": 3.0, "glia": 6.0}
    for kind, files in real.items():
        theirs = np.array([summary(np.asarray(nibabel.load(f).dataobj).squeeze()) for f in files])
        rngs = [np.random.default_rng([1, n]) for n in range(12)]
        drawn = [(draw_optics(kind, rng), rng) for rng in rngs]
        alike = [(optics, rng) for optics, rng in drawn if optics.voxel_um[0] >= coarse.get(kind, 0)]
        ours = np.array([summary(make_phantom(kind, (48, 48, 48), r, optics=o)[0]) for o, r in alike[:4]])
        low, high = theirs.min(axis=0) / 2, theirs.max(axis=0) * 2
        middle = np.median(ours, axis=0)
        assert np.all((middle > low) & (middle < high)), (kind, middle, low, high)


def summary(image):
    """Median, 99th percentile over median, and noise (from neighbouring voxels) over median."""
    values = image.astype(np.float64)
    middle = np.median(values)
    noise = 1.05 * np.median(np.abs(np.diff(values, axis=0)))
    return middle, np.percentile(values, 99) / middle, noise / middle
