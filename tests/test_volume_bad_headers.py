"""Headers that promise what the file does not hold, or nothing sensible: one line each, and no memory for it."""

import gzip
import logging
import pathlib
import resource
import struct
from collections.abc import Callable

import nibabel
import numpy as np
import pytest
import tifffile
from data_files import noise

from lsmfm_jax.volumes import formats
from lsmfm_jax.volumes.read import VolumeError, read_single, read_volume

SHAPE = (9, 7, 5)
Change = Callable[[bytearray], object]


def _put(form: str, offset: int, *values: float) -> Change:
    return lambda data: struct.pack_into(form, data, offset, *values)


def _nifti(path: pathlib.Path, change: Change, *, version: int = 1, behind: bytes = b"") -> pathlib.Path:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    data = bytearray(kind(noise(0, shape=SHAPE).T, np.eye(4)).to_bytes())
    change(data)
    content = bytes(data) + behind
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def _refused(path: pathlib.Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < len(str(path)) + 400
    # Told by a reader, and not by the net under them.
    assert "it cannot be read (" not in text, text
    return text


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("<h", 42, -5), "header's dimensions are [3, -5"),
        (_put("<h", 44, 0), "header's dimensions are"),
        (_put("<h", 40, 0), "header's dimensions are [0"),
        (_put("<h", 40, 11), "header's dimensions are"),
        (_put("<7h", 42, *[32767] * 7), "its header is wrong"),
        (_put("<3h", 42, 20000, 20000, 20000), "its header is wrong"),
        (_put("<h", 70, 4321), "header is damaged"),
        (_put("<h", 70, 32), "pixel type is complex64"),
        (_put("<h", 70, 128), "pixel type is"),
        (_put("<f", 108, float("nan")), "voxels begin at byte nan"),
        (_put("<f", 108, -352), "voxels begin at byte -352"),
        (_put("<f", 108, 1e20), "voxels begin at byte 1e+20"),
        (_put("<f", 108, 5e6), "truncated"),
        (_put("<f", 112, float("inf")), "scales by inf"),
        (_put("<2f", 112, 2.0, float("inf")), "adds inf"),
        (_put("<2f", 112, 2.0, float("nan")), "adds nan"),
    ],
)
def test_nifti_headers_that_make_no_sense(tmp_path, suffix, change, message):
    assert message in _refused(_nifti(tmp_path / f"a{suffix}", change))


def test_nifti2_too(tmp_path):
    assert read_single(_nifti(tmp_path / "a.nii", lambda data: None, version=2))[0].shape == SHAPE
    assert "dimensions are [3, -5" in _refused(_nifti(tmp_path / "b.nii", _put("<q", 24, -5), version=2))
    huge = _nifti(tmp_path / "c.nii.gz", _put("<3q", 24, 2**40, 2**40, 2**40), version=2)
    assert "its header is wrong" in _refused(huge)


def test_what_does_not_matter_for_the_voxels_costs_no_file(tmp_path, caplog):
    for name, change in (("unit", _put("<B", 123, 7)), ("zooms", _put("<3f", 80, float("nan"), -2, float("inf")))):
        with caplog.at_level(logging.DEBUG):
            array, info = read_single(_nifti(tmp_path / f"{name}.nii", change))
        np.testing.assert_array_equal(array, noise(0, shape=SHAPE))
        assert not caplog.records
        if name == "unit":
            assert "unverified" in info.voxel_size_source
        else:
            assert info.voxel_size_um is None
    array, _ = read_single(_nifti(tmp_path / "nan.nii", _put("<2f", 112, float("nan"), float("nan"))))
    assert array.dtype == np.uint16


def test_a_gzip_is_expanded_as_far_as_the_header_promises(tmp_path, monkeypatch):
    path = tmp_path / "bomb.nii.gz"
    _nifti(path, lambda data: None)
    with gzip.open(path, "ab", compresslevel=9) as file:
        for _ in range(64):
            file.write(bytes(2**22))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "holds more than its header promises" in _refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # kilobytes; all of it is twice that
    # A little padding is none of anybody's business.
    assert read_single(_nifti(tmp_path / "padded.nii.gz", lambda data: None, behind=bytes(1000)))[0].shape == SHAPE
    monkeypatch.setattr(formats, "memory_bytes", lambda: 200)
    assert "too large to read at once" in _refused(_nifti(tmp_path / "a.nii", lambda data: None))
    for save in (lambda p: np.save(p.with_suffix(".npy"), noise(0)), lambda p: tifffile.imwrite(p, noise(0))):
        save(tmp_path / "a.tif")
    assert "too large" in _refused(tmp_path / "a.npy") and "too large" in _refused(tmp_path / "a.tif")


def test_compressed_or_not_the_name_must_say_it(tmp_path):
    _nifti(tmp_path / "a.nii.gz", lambda data: None)
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    assert "rename it to .nii.gz" in _refused(tmp_path / "a.nii")
    _nifti(tmp_path / "b.nii", lambda data: None).rename(tmp_path / "b.nii.gz")
    assert "rename it to .nii" in _refused(tmp_path / "b.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(VolumeError, match="cannot be read"):
        read_volume(tmp_path / "folder.nii")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (-4, 4, -4)}", "not a readable .npy"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4)}", "not a readable .npy"),
        ("{'descr': '<f8', 'fortran_order': True, 'shape': (90000, 90000, 9000)}", "not a readable .npy"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2, 2)}", "not a readable .npy"),
        ("{'descr': '<u2', 'shape': (2, 2, 2)}", "not a readable .npy"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (2, 2.5, 2)}", "not a readable .npy"),
        ("{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (2, 5, 5)}", "pixel type"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 2, 2)}", "behind its array"),
        ("{'descr': '<U9', 'fortran_order': False, 'shape': (2, 2, 2)}", "not a readable .npy"),
        ("(" * 3000, "not a readable .npy"),
        ("__import__('os').abort()", "not a readable .npy"),
    ],
)
def test_npy_headers_that_make_no_sense(tmp_path, header, message):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(100))
    assert message in _refused(path)


def test_npz_and_two_arrays_in_one_file(tmp_path):
    np.savez(tmp_path / "a.npz", a=noise(0))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    assert ".npz archive" in _refused(tmp_path / "a.npy")
    with open(tmp_path / "b.npy", "wb") as file:
        np.save(file, noise(0))
        np.save(file, noise(1))
    assert "behind its array (6, 5, 4)" in _refused(tmp_path / "b.npy")


def test_no_damage_ends_in_anything_but_one_line(tmp_path):
    good = {}
    good["nii"] = _nifti(tmp_path / "good.nii", lambda data: None).read_bytes()
    good["nii.gz"] = _nifti(tmp_path / "good.nii.gz", lambda data: None).read_bytes()
    np.save(tmp_path / "good.npy", noise(0, shape=SHAPE))
    good["npy"] = (tmp_path / "good.npy").read_bytes()
    for name, settings in (("tif", {"compression": "lzw"}), ("ome.tif", {"ome": True}), ("tiff", {"imagej": True})):
        tifffile.imwrite(tmp_path / f"good.{name}", noise(0, shape=SHAPE), photometric="minisblack", **settings)
        good[name] = (tmp_path / f"good.{name}").read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for number in range(360):
        suffix, data = list(good.items())[number % len(good)]
        bad = bytearray(data)
        # Headers are what is hard to read; most changes go there.
        for position in rng.integers(0, min(len(bad), 400 if number % 3 else len(bad)), rng.integers(1, 5)):
            bad[position] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
        if number % 7 == 0:
            bad = bad[: rng.integers(len(bad))]
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(bad)
        try:
            volume = read_volume(path)
        except VolumeError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            assert all(channel.ndim == 3 for channel in volume.channels)
    assert refused > 100
