"""Label files on another grid than their image, and with values that mean something else than they are taken for."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from lsmfm_jax.config import defaults
from lsmfm_jax.data.label_checks import check_labels, check_share
from lsmfm_jax.data.label_grid import LabelGridError, on_grid_of
from lsmfm_jax.data.labels import LabelError, LabelValues, target_of
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.volumes.read import read_single


def save(path, array, affine, *, codes=(0, 2)):
    """Writes a ZYX array with an affine of X, Y, Z."""
    data = bytearray(nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine).to_bytes())
    data[252:256] = np.array(codes, "<i2").tobytes()  # nibabel sets them itself
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(data)))
    return path


def grid(*, sizes=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), axes=(0, 1, 2), signs=(1, 1, 1)):
    """An affine whose k-th axis is world axis `axes[k]`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, k] = sign * sizes[k]
    affine[:3, 3] = origin
    return affine


def reoriented(array, affine, axes, flips):
    """The same voxels in the world, stored with other axes: the array (ZYX) and its affine."""
    shape = np.array(array.shape[::-1])
    moved, new = array.T.transpose(axes), affine.copy()
    new[:3, :3] = affine[:3, :3][:, axes]
    for k, flip in enumerate(flips):
        if flip:
            moved = np.flip(moved, k)
            new[:3, 3] += new[:3, k] * (shape[axes[k]] - 1)
            new[:3, k] *= -1
    return np.ascontiguousarray(moved.T), new


AFFINES = {
    "identity": grid(),
    "micrometres": grid(sizes=(1.6, 1.6, 6.0), origin=(310.0, -20.0, 4.5)),
    "itk": grid(sizes=(0.002, 0.002, 0.005), origin=(-0.3, -0.1, 0.2), signs=(-1, -1, 1)),
    "permuted": grid(sizes=(2.0, 3.0, 4.0), origin=(5.0, 6.0, 7.0), axes=(2, 0, 1), signs=(1, -1, 1)),
}


@pytest.mark.parametrize("name", AFFINES)
def test_flips_and_permutations_are_undone(name, tmp_path):
    rng = np.random.default_rng(1)
    image = rng.integers(1, 999, (7, 9, 11)).astype(np.uint16)
    save(tmp_path / "a.nii.gz", image, AFFINES[name])
    _, info = read_single(tmp_path / "a.nii.gz")
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            label, affine = reoriented(image, AFFINES[name], axes, flips)
            save(tmp_path / "b.nii.gz", label, affine)
            read, other = read_single(tmp_path / "b.nii.gz")
            np.testing.assert_array_equal(on_grid_of(read, other, like=info, like_shape=image.shape), image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grid(sizes=(1.6, 1.6, 6.0), origin=(310 + 1.6, -20.0, 4.5)), r"lies 1 in X voxels off .*a\.nii\.gz"),
        (grid(sizes=(1.6, 1.6, 6.0), origin=(310.0, -20.0, 4.5 - 12.0)), r"lies -2 in Z voxels off"),
        (grid(sizes=(1.6, 1.6, 6.0), origin=(310.0, -20.0, 4.5), signs=(-1, 1, 1)), r"lies -10 in X voxels off"),
    ],
)
def test_a_shifted_grid_is_refused(change, message, tmp_path):
    array = np.arange(7 * 9 * 11, dtype=np.uint16).reshape(7, 9, 11)
    _, info = read_single(save(tmp_path / "a.nii.gz", array, AFFINES["micrometres"]))
    read, other = read_single(save(tmp_path / "b.nii.gz", array, change))
    with pytest.raises(LabelGridError, match=message) as error:
        on_grid_of(read, other, like=info, like_shape=array.shape)
    assert "b.nii.gz" in str(error.value) and "\n" not in str(error.value)
    assert "by their affines; cut both to one grid, or copy the affine if the voxels agree" in str(error.value)


def test_a_turned_grid_is_refused(tmp_path):
    array = np.arange(20**3, dtype=np.uint16).reshape(20, 20, 20)
    _, info = read_single(save(tmp_path / "a.nii.gz", array, AFFINES["micrometres"]))
    turned = AFFINES["micrometres"].copy()
    cosine, sine = np.cos(0.2), np.sin(0.2)
    turned[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ turned[:3, :3]
    read, other = read_single(save(tmp_path / "b.nii.gz", array, turned))
    with pytest.raises(
        LabelGridError, match=r"b\.nii\.gz is turned against .*a\.nii\.gz: their affines differ in direction"
    ):
        on_grid_of(read, other, like=info, like_shape=array.shape)


@pytest.mark.parametrize(
    ("affine", "codes"),
    [
        (AFFINES["micrometres"] + 1e-5, (0, 2)),  # rounding of 32-bit headers
        (grid(sizes=(1.6, 1.6, 6.0), origin=(310.3, -20.0, 4.5)), (0, 2)),  # a fifth of a voxel
        (grid(sizes=(0.0016, 0.0016, 0.006), origin=(0.31, -0.02, 0.0045)), (0, 2)),  # millimetres
        (grid(origin=(310.0, -20.0, 4.5)), (0, 2)),  # sizes lost, origin kept
        (np.eye(4), (0, 2)),  # a mask written by numpy and nibabel
        (np.diag([-1.0, -1.0, 1.0, 1.0]), (0, 1)),  # one written by SimpleITK
        (grid(origin=(99.0, 0.0, 0.0)), (0, 0)),  # both codes 0: the affine is not to be used
    ],
)
def test_headers_that_say_less_or_lie_about_sizes_do_not_stop_a_label(affine, codes, tmp_path):
    array = np.arange(7 * 9 * 11, dtype=np.uint16).reshape(7, 9, 11)
    _, info = read_single(save(tmp_path / "a.nii.gz", array, AFFINES["micrometres"]))
    read, other = read_single(save(tmp_path / "b.nii.gz", array, affine, codes=codes))
    np.testing.assert_array_equal(on_grid_of(read, other, like=info, like_shape=array.shape), array)
    np.save(tmp_path / "c.npy", array)
    read, other = read_single(tmp_path / "c.npy")
    assert on_grid_of(read, other, like=info, like_shape=array.shape) is read


def balls(seed=0, size=32, count=5):
    centres = np.random.default_rng(seed).integers(5, size - 5, (count, 3))
    grid_ = np.indices((size,) * 3)
    mask = np.zeros((size,) * 3, np.uint8)
    for centre in centres:
        mask[((grid_ - centre[:, None, None, None]) ** 2).sum(0) < 12] = 1
    return mask, (np.random.default_rng(seed).poisson(110, mask.shape) + 600 * mask.astype(int)).astype(np.uint16)


def run(folder, workdir, **values):
    config = defaults("segment")
    config.data.folder = str(folder)
    for name, value in values.items():
        config.data[name] = value
    lines = []
    return read_patches(config, workdir, print_line=lines.append), lines


def write(folder, label_of, affine=None):
    for k in range(3):
        mask, image = balls(k)
        save(folder / f"a_patch_{k}_vol{k}_ch0.nii.gz", image, np.eye(4))
        save(
            folder / f"a_patch_{k}_vol{k}_ch0_label.nii.gz",
            label_of(mask, image),
            np.eye(4) if affine is None else affine,
        )


CASES = {
    "one_two": (
        lambda m, v: m + 1,
        r"100 % of what is annotated is foreground: its values are 1, 2.*foreground_labels",
    ),
    "ignore255": (
        lambda m, v: np.where(np.arange(32)[:, None, None] > 25, 255, m).astype("u1"),
        r"label value 255 stands beside 0, 1; .*data\.ignore_labels, or .*data\.foreground_labels",
    ),
    "two_classes_255": (
        lambda m, v: np.where(np.arange(32)[:, None, None] > 25, 255, m * 3).astype("u1"),
        r"label value 255 stands beside 0, 3;",
    ),
    "65535": (
        lambda m, v: np.where(np.arange(32) > 25, 65535, m.astype("u2")),
        r"label value 65535 stands beside 0, 1;",
    ),
    "minus": (lambda m, v: np.where(np.arange(32) > 25, -1, m.astype("i2")), r"label value -1 stands beside 0, 1;"),
    "is_image": (lambda m, v: v, r"has the voxels of its image"),
    "counts": (
        lambda m, v: ndimage.gaussian_filter(v, 1),
        r"\d+ values from \d+ to \d+ that change from voxel to voxel",
    ),
    "counts_less_background": (
        lambda m, v: np.where(v > 140, v - 140, 0).astype("u2"),
        r"values from 0 to \d+ that change from voxel to voxel",
    ),
    "floats": (lambda m, v: (ndimage.uniform_filter(m * 1000.5, 2)).astype("f4"), r"neither labels|change from voxel"),
    "inverted": (lambda m, v: 1 - m, r"9\d\.\d % of what is annotated is foreground, of the label values 0, 1;"),
    "all": (lambda m, v: np.ones_like(m), r"100 % of what is annotated is foreground"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_label_is_refused_in_one_line(name, tmp_path):
    write(tmp_path / "p", CASES[name][0])
    with pytest.raises(LsmfmError, match=CASES[name][1]) as error:
        run(tmp_path / "p", tmp_path / "run")
    assert "_label.nii.gz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "share"),
    [
        ("one_two", {"foreground_labels": (2,)}, 0.03),
        ("one_two", {"background_labels": (1,)}, 0.03),
        ("ignore255", {"ignore_labels": (255,)}, 0.03),
        ("ignore255", {"foreground_labels": (1,)}, 0.03),
        ("minus", {"ignore_labels": (-1,)}, 0.03),
        ("inverted", {"allow_dense_masks": True}, 0.97),
        ("all", {"allow_dense_masks": True}, 1.0),
    ],
)
def test_named_values_are_taken(name, values, share, tmp_path):
    write(tmp_path / "p", CASES[name][0])
    patches, lines = run(tmp_path / "p", tmp_path / "run", **values)
    for patch in patches.train:
        assert np.mean(patch.target[patch.target < 2]) == pytest.approx(share, abs=0.02)
    assert sum("vol" in line and "%" in line for line in lines) >= 3, lines


@pytest.mark.parametrize(
    "label_of",
    [
        lambda m, v: m * 255,  # a mask of 0 and 255
        lambda m, v: ndimage.label(m)[0].astype("u2"),  # instances
        lambda m, v: (ndimage.label(m)[0] * 300).astype("i4"),
        lambda m, v: m.astype("f4") * 0.999,
        lambda m, v: ndimage.uniform_filter(m.astype("f4"), 2),  # a mask that was resampled
        lambda m, v: (
            np.random.default_rng(0).integers(0, 300, (8, 8, 8)).astype("u2").repeat(4, 0).repeat(4, 1).repeat(4, 2)
            * m.astype("u2")
        ),  # as many instances as there are voxels in a small one
    ],
)
def test_usual_masks_and_instances_are_taken(label_of, tmp_path):
    write(tmp_path / "p", label_of)
    patches, _ = run(tmp_path / "p", tmp_path / "run")
    for patch in patches.train:
        assert 0.005 < patch.target.mean() < 0.1


def test_a_mirrored_label_trains_as_the_right_one_does(tmp_path):
    write(tmp_path / "right", lambda m, v: m)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 31
    write(tmp_path / "mirrored", lambda m, v: m[:, :, ::-1], mirror)
    right, mirrored = (run(tmp_path / name, tmp_path / f"run-{name}")[0] for name in ("right", "mirrored"))
    for one, other in zip((*right.train, *right.validation), (*mirrored.train, *mirrored.validation), strict=True):
        np.testing.assert_array_equal(one.target, other.target)
    shifted = np.eye(4)
    shifted[0, 3] = 20
    write(tmp_path / "shifted", lambda m, v: m, shifted)
    with pytest.raises(LabelGridError, match=r"_label\.nii\.gz lies 20 in X voxels off"):
        run(tmp_path / "shifted", tmp_path / "run-shifted")


def test_values_and_shares_of_each_volume_are_printed_before_training(tmp_path):
    write(tmp_path / "p", lambda m, v: np.where(np.arange(32)[:, None, None] < 16, 7, m).astype("u1"))
    _, lines = run(tmp_path / "p", tmp_path / "run", ignore_labels=(7,))
    told = [line for line in lines if "vol0" in line and "foreground" in line]
    assert len(told) == 1 and "7 (50.00 %" in told[0], lines


def test_foreground_that_occurs_nowhere_is_said(tmp_path):
    write(tmp_path / "p", lambda m, v: m)
    with pytest.raises(
        LsmfmError, match=r"masks of all training patches are empty.*data\.foreground_labels \(3,\).*0, 1"
    ):
        run(tmp_path / "p", tmp_path / "run", foreground_labels=(3,))


def test_checks_of_one_file_need_no_image():
    check_labels(np.zeros((4, 4, 4), np.uint8), LabelValues(), source="x")
    half = np.arange(64).reshape(4, 4, 4) % 2
    check_labels(half, LabelValues(), source="x")
    check_share(target_of(half, LabelValues(), source="x"), LabelValues(), source="x", found=[0, 1])
    with pytest.raises(LabelError, match=r"x: 75\.0 %"):
        quarter = (np.arange(64).reshape(4, 4, 4) % 4 > 0).astype(np.uint8)
        check_share(quarter, LabelValues(), source="x", found=[0, 1])
