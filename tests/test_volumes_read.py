"""Image files to arrays: axes, types, voxel sizes, and a clear word on whatever cannot be used."""

import gzip
import pathlib

import nibabel
import numpy as np
import pytest
import tifffile
from data_files import gzipped, noise, save_nifti, truncated

from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.read import VolumeError, read_single, read_volume, write_nifti

OBLIQUE = np.array(
    [[0.0, -0.0018, 0.0, 10.5], [0.0017, 0.0, 0.0001, -3.25], [0.0, 0.0, 0.002, 7.0], [0.0, 0.0, 0.0, 1.0]]
)


def test_nifti_comes_as_zyx_with_one_channel_or_several_taken_apart(tmp_path: pathlib.Path) -> None:
    zyx = noise(0)
    single, _ = read_single(save_nifti(tmp_path / "a.nii.gz", zyx))
    np.testing.assert_array_equal(single, zyx)
    assert single.dtype == np.uint16 and single.flags.c_contiguous
    singleton, _ = read_single(save_nifti(tmp_path / "b.nii", zyx[..., None]))
    np.testing.assert_array_equal(singleton, zyx)
    both = read_volume(save_nifti(tmp_path / "c.nii.gz", np.stack([zyx, zyx + 1], axis=-1))).channels
    assert len(both) == 2
    np.testing.assert_array_equal(both[1], zyx + 1)
    vector = read_volume(save_nifti(tmp_path / "d.nii.gz", np.stack([zyx, zyx + 2], axis=-1)[:, :, :, None]))
    np.testing.assert_array_equal(vector.channels[1], zyx + 2)
    with pytest.raises(VolumeError, match="2 channels, expected one"):
        read_single(tmp_path / "c.nii.gz")


def test_a_prediction_lies_over_its_input(tmp_path: pathlib.Path) -> None:
    zyx = noise(1)
    original = nibabel.Nifti1Image(zyx.T[..., None], OBLIQUE)
    original.header.set_xyzt_units("mm")
    original.to_filename(tmp_path / "in.nii.gz")
    array, info = read_single(tmp_path / "in.nii.gz")
    write_nifti(tmp_path / "out.nii.gz", array > 100, like=info)
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "in.nii.gz").affine)
    assert nibabel.aff2axcodes(written.affine) == nibabel.aff2axcodes(original.affine)
    assert written.header.get_xyzt_units()[0] == "mm" and written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), (zyx > 100).T)
    first = (tmp_path / "out.nii.gz").read_bytes()
    write_nifti(tmp_path / "out.nii.gz", array > 100, like=info)
    assert (tmp_path / "out.nii.gz").read_bytes() == first
    write_nifti(tmp_path / "float.nii", array.astype(np.float32) / 3, like=None)
    np.testing.assert_array_equal(read_single(tmp_path / "float.nii")[0], array.astype(np.float32) / 3)


def test_scaled_nifti_gives_the_scaled_values_and_plain_ones_their_integers(tmp_path: pathlib.Path) -> None:
    zyx = noise(2, dtype="int16")
    image = nibabel.Nifti1Image(zyx.T, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "scaled.nii")
    expected = np.asarray(nibabel.load(tmp_path / "scaled.nii").dataobj).T
    scaled, _ = read_single(tmp_path / "scaled.nii")
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("zooms", "unit", "expected", "source"),
    [
        ((0.001866, 0.0018, 0.002), "unknown", (2.0, 1.8, 1.866), "header (unverified: no unit"),
        ((1.0, 1.0, 1.0), "unknown", (1.0, 1.0, 1.0), "header (unverified: 1, 1, 1"),
        ((1.6, 1.6, 6.0), "micron", (6.0, 1.6, 1.6), "header (micron)"),
        ((0.0016, 0.0016, 0.006), "mm", (6.0, 1.6, 1.6), "header (mm)"),
        ((1.6, 1.6, 6.0), "mm", (6.0, 1.6, 1.6), "header (unverified: says mm"),
    ],
)
def test_voxel_sizes_say_how_far_they_are_believed(
    tmp_path: pathlib.Path,
    zooms: tuple[float, ...],
    unit: str,
    expected: tuple[float, ...],
    source: str,
) -> None:
    image = nibabel.Nifti1Image(noise(3).T, np.diag([*zooms, 1.0]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    _, info = read_single(tmp_path / "a.nii")
    assert info.voxel_size_um == pytest.approx(expected, rel=1e-5)
    assert info.voxel_size_source.startswith(source)


def test_tiff_and_npy(tmp_path: pathlib.Path) -> None:
    zyx = noise(4)
    tifffile.imwrite(tmp_path / "plain.tif", zyx, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "imagej.tif",
        zyx,
        imagej=True,
        resolution=(1 / 0.65, 1 / 0.65),
        metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"},
    )
    tifffile.imwrite(
        tmp_path / "channels.ome.tif",
        np.stack([zyx, zyx + 1]),
        photometric="minisblack",
        metadata={"axes": "CZYX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.7, "PhysicalSizeZ": 3.0},
    )
    plain, info = read_single(tmp_path / "plain.tif")
    np.testing.assert_array_equal(plain, zyx)
    assert info.voxel_size_um is None and info.voxel_size_source == "unknown"
    array, info = read_single(tmp_path / "imagej.tif")
    np.testing.assert_array_equal(array, zyx)
    assert info.voxel_size_um == pytest.approx((2.5, 0.65, 0.65), rel=1e-5)
    channels, info = read_volume(tmp_path / "channels.ome.tif")
    np.testing.assert_array_equal(channels[1], zyx + 1)
    assert info.voxel_size_um == pytest.approx((3.0, 0.7, 0.65))
    np.save(tmp_path / "a.npy", zyx.astype(np.int64))
    array, _ = read_single(tmp_path / "a.npy")
    np.testing.assert_array_equal(array, zyx)
    assert array.dtype == np.int32


def _bad_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    good = save_nifti(folder / "good.nii.gz", noise(5))
    plain = gzip.decompress(good.read_bytes())
    hole = noise(6).astype(np.float32)
    hole[1, 2, 3] = np.nan
    endless = noise(6).astype(np.float32)
    endless[0, 0, 0] = np.inf
    damaged = bytearray(good.read_bytes())
    damaged[-6] ^= 1
    return {
        "gzip data is truncated": truncated(folder / "cut.nii.gz", good),
        "gzip data is damaged": _write(folder / "crc.nii.gz", bytes(damaged)),
        "not compressed": _write(folder / "plain.nii.gz", plain),
        "it is truncated": _write(folder / "cut.nii", plain[:-7]),
        "not NIfTI": gzipped(folder / "text.nii.gz", b"no image at all" * 40),
        "the file is empty": _write(folder / "empty.nii.gz", b""),
        "1 voxels that are NaN or Inf": save_nifti(folder / "nan.nii.gz", hole),
        "voxels that are NaN or Inf": save_nifti(folder / "inf.nii.gz", endless),
        "is constant: every voxel is 7": save_nifti(folder / "c.nii.gz", np.full((4, 4, 4), 7, np.uint8)),
        "has 2 axes": save_nifti(folder / "flat.nii.gz", noise(7, shape=(8, 9))),
        "not 3D": save_nifti(folder / "plane.nii.gz", noise(7, shape=(1, 8, 9))),
        "neither the first nor the last": save_nifti(folder / "time.nii.gz", noise(8, shape=(4, 3, 5, 9))),
        "not a readable TIFF": _write(folder / "text.tif", b"no image at all"),
        "its axes are": _write_plane(folder / "plane.tif"),
        "not a readable .npy": _write(folder / "text.npy", b"no array at all"),
        "format is unknown": _write(folder / "image.jpg", b"x"),
        "cannot be read": folder / "missing.nii.gz",
        "more than 32 bits": _save_wide(folder / "wide.npy"),
    }


def test_each_bad_file_is_named_with_its_reason(tmp_path: pathlib.Path) -> None:
    for reason, path in _bad_files(tmp_path).items():
        with pytest.raises(VolumeError) as caught:
            read_volume(path)
        assert reason in str(caught.value) and str(path) in str(caught.value), (reason, str(caught.value))
        assert caught.value.hint


def test_an_empty_mask_is_a_fact_for_labels(tmp_path: pathlib.Path) -> None:
    path = save_nifti(tmp_path / "a_label.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert read_single(path, allow_constant=True)[0].sum() == 0


def _write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def _write_plane(path: pathlib.Path) -> pathlib.Path:
    tifffile.imwrite(path, noise(9, shape=(8, 9)))
    return path


def _save_wide(path: pathlib.Path) -> pathlib.Path:
    np.save(path, np.arange(64, dtype=np.int64).reshape(4, 4, 4) * 2**40)
    return path


@pytest.mark.parametrize(
    ("unit", "spacing", "per_unit", "expected", "told"),
    [
        ("cm", 0.0005, 10000.0, (5.0, 1.0, 1.0), "header (cm)"),
        ("nm", 5000.0, 0.001, (5.0, 1.0, 1.0), "header (nm)"),
        ("mm", 0.005, 1000.0, (5.0, 1.0, 1.0), "header (mm)"),
        ("Micron", 5.0, 1.0, (5.0, 1.0, 1.0), "header (micron)"),
        ("\\u00B5m", 5.0, 1.0, (5.0, 1.0, 1.0), "header (micron)"),
        ("inch", 5.0 / 25400, 25400.0, (5.0, 1.0, 1.0), "header (inch)"),
        ("mm", 5.0, 1.0, (5.0, 1.0, 1.0), "header (unverified: says mm, taken as micrometres)"),
        ("pixel", 5.0, 1.0, None, "unknown"),  # nobody calibrated it
        ("", 2.0, 72.0, None, "unknown"),  # what a printer has, in inches
    ],
)
def test_units_as_imagej_writes_them(unit, spacing, per_unit, expected, told, tmp_path):
    path = tmp_path / "a.tif"
    metadata = {"spacing": spacing, "axes": "ZYX"} | ({"unit": unit} if unit else {})
    volume = np.arange(120, dtype=np.uint16).reshape(4, 5, 6)
    tifffile.imwrite(path, volume, imagej=True, metadata=metadata, resolution=(per_unit, per_unit))
    for info in (read_single(path)[1], open_volume(path)):
        size = info.voxel_size_um
        assert size is None if expected is None else size == pytest.approx(expected, rel=1e-3)
        assert info.voxel_size_source == told
