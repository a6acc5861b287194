"""Folders of planes: order, gaps, odd planes, channels, tiles, and the real boxes rebuilt as planes."""

import pathlib
import re
import shutil

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from volume_files import planes, voxels

from lsmfm_jax.volumes.open import VolumeError, is_volume, open_volume

SHAPE = (13, 37, 41)
ALL = (slice(None),) * 3
BOX = (slice(3, 12), slice(5, 30), slice(16, 40))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32", ">u2"])
@pytest.mark.parametrize("pattern", ["img_{:d}.tif", "Z{:05d}.TIFF", "brain 3 x0.8_{:03d}_ch00.tif", "{:d}.tif"])
def test_planes_in_natural_order(tmp_path, pattern, dtype):
    whole = voxels(SHAPE, dtype)
    options = {"compression": "lzw", "rowsperstrip": 8} if dtype == "uint16" else {}
    folder = planes(tmp_path / "p", whole, pattern, **options)
    (folder / "notes.txt").write_text("seen")
    (folder / "._hidden.tif").write_bytes(b"Mac")
    volume = open_volume(folder)
    assert is_volume(folder) and volume.shape == SHAPE and volume.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.read(BOX), whole[BOX])
    np.testing.assert_array_equal(volume.read(ALL), whole)
    assert volume.chunk == (1, 8 if options else 1, 41)


def test_png_and_colour_planes(tmp_path):
    for dtype in ("uint8", "uint16"):
        whole = voxels(SHAPE, dtype)
        (tmp_path / dtype).mkdir()
        for number, plane in enumerate(whole):
            (tmp_path / dtype / f"z{number}.png").write_bytes(imagecodecs.png_encode(plane))
        np.testing.assert_array_equal(open_volume(tmp_path / dtype).read(BOX), whole[BOX])
    colour = voxels((*SHAPE, 3), "uint8")
    planes(tmp_path / "rgb", colour, photometric="rgb")
    np.testing.assert_array_equal(open_volume(tmp_path / "rgb", channel=1).read(BOX), colour[..., 1][BOX])
    with pytest.raises(VolumeError, match="3 channels; choose one with --channel"):
        open_volume(tmp_path / "rgb")


def test_channels_in_the_names(tmp_path):
    whole = voxels((2, *SHAPE))
    for channel in range(2):
        planes(tmp_path / "p", whole[channel], f"scan_C{channel:02d}_Z{{:04d}}.ome.tif")
    with pytest.raises(VolumeError, match="2 channels; choose one with --channel 0 to 1"):
        open_volume(tmp_path / "p")
    np.testing.assert_array_equal(open_volume(tmp_path / "p", channel=1).read(BOX), whole[1][BOX])
    (tmp_path / "p" / "scan_C01_Z0004.ome.tif").unlink()
    with pytest.raises(VolumeError, match=r"channel 1 lacks 1 planes of the others \(4\)"):
        open_volume(tmp_path / "p", channel=0)


def test_gaps_are_named_and_rounded_steps_are_none(tmp_path):
    whole = voxels(SHAPE)
    folder = planes(tmp_path / "gap", whole, "z_{:03d}.tif")
    for number in (5, 6, 9):
        (folder / f"z_{number:03d}.tif").unlink()
    with pytest.raises(VolumeError, match=r"3 planes are missing \(between 4 and 7, between 8 and 10\); add them"):
        open_volume(folder)
    micrometres = tmp_path / "um"
    planes(tmp_path / "tmp", whole, "{:d}.tif")
    micrometres.mkdir()
    for number in range(len(whole)):
        shutil.move(tmp_path / "tmp" / f"{number}.tif", micrometres / f"{round(number * 32.5):06d}.tif")
    np.testing.assert_array_equal(open_volume(micrometres).read(ALL), whole)


def test_odd_planes_are_named(tmp_path):
    whole = voxels(SHAPE)

    def refused(name: str, plane: np.ndarray | bytes, match: str) -> None:
        folder = planes(tmp_path / re.sub(r"\W", "_", match), whole, "z_{:03d}.tif")
        if isinstance(plane, bytes):
            (folder / name).write_bytes(plane)
        else:
            tifffile.imwrite(folder / name, plane)
        with pytest.raises(VolumeError, match=match) as caught:
            open_volume(folder)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    refused("z_007.tif", whole[7, :30], r"1 of its 13 planes are unlike the others, which are \(37, 41\) uint16")
    refused("z_003.tif", whole[3].astype("uint8"), r"\(37, 41\) uint8")
    refused("z_005.tif", whole[:2], "1 of its 13 files are not single planes")
    refused("z_009.tif", b"II*\0damaged", "cannot be read")
    refused("mask.tif", whole[0], "1 of its 14 planes are named unlike the others")
    folder = planes(tmp_path / "mixed", whole, "z_{:03d}.tif")
    (folder / "z_013.png").write_bytes(imagecodecs.png_encode(whole[0]))
    with pytest.raises(VolumeError, match=r"several formats \(.tif, .png\)"):
        open_volume(folder)
    for row in range(2):
        planes(tmp_path / "tiles", whole, f"[{row:02d} x 00]_Z{{:04d}}.tif")
    with pytest.raises(VolumeError, match=r"count more than Z and channel .* tiles or time points"):
        open_volume(tmp_path / "tiles")


def test_a_plane_cut_short_after_its_header_names_the_volume(tmp_path):
    folder = planes(tmp_path / "p", voxels(SHAPE), "z_{:03d}.tif", compression="zlib", rowsperstrip=4)
    path = folder / "z_006.tif"
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 3])
    volume = open_volume(folder)
    with pytest.raises(VolumeError, match="truncated"):
        volume.read(ALL)


def test_pictures_beside_volumes_are_no_planes(tmp_path):
    """As in the results of `lsmfm predict`, which are a folder of volumes for `lsmfm evaluate`."""
    for number, plane in enumerate(voxels(SHAPE)):
        (tmp_path / f"{number:04d}.png").write_bytes(imagecodecs.png_encode(plane))
    assert is_volume(tmp_path)
    for name in ("a_mask.nii.gz", "a.npy", "A.NII"):
        (tmp_path / name).touch()
        assert not is_volume(tmp_path)
        (tmp_path / name).unlink()


def test_terastitcher_tiles_are_refused_with_what_to_do(tmp_path):
    tile = tmp_path / "brain" / "000000" / "000000_000000"
    planes(tile, voxels(SHAPE), "{:06d}.tif")
    for folder in (tmp_path / "brain", tmp_path / "merged"):
        (tmp_path / "merged" / "RES(37x41x13)").mkdir(parents=True, exist_ok=True)
        assert is_volume(folder)
        with pytest.raises(VolumeError, match=r"it holds the tiles of TeraStitcher.*terastitcher --merge"):
            open_volume(folder)
    assert open_volume(tile).shape == SHAPE


def test_folders_of_volumes_are_no_volume(tmp_path):
    for number in range(3):
        tifffile.imwrite(tmp_path / f"stack_{number}.tif", voxels(SHAPE))
    assert not is_volume(tmp_path)
    (tmp_path / "empty").mkdir()
    assert not is_volume(tmp_path / "empty")


def test_thousands_of_planes_do_not_stay_open(tmp_path):
    plane = voxels((1, 8, 8), "uint8")
    folder = planes(tmp_path / "p", np.broadcast_to(plane, (1500, 1, 8, 8))[:, 0], "{:04d}.tif")
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    volume = open_volume(folder)
    np.testing.assert_array_equal(volume.read(ALL)[1499], plane[0])
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) < before + 30


@pytest.mark.parametrize("name", ["trailmap_unlabelled", "dlmbmap_axons"])
def test_real_boxes_rebuilt_as_planes(shared, tmp_path, name):
    files = sorted((shared / "data" / "more" / name).glob("*.nii.gz"))
    if not files:
        pytest.skip(f"no patches of {name} in {shared}")
    places = [tuple(map(int, re.search(r"z(\d+)_y(\d+)_x(\d+)", file.name).groups())) for file in files]
    patches = [np.asarray(nibabel.load(file).dataobj).T for file in files]
    patches = [patch.reshape(patch.shape[-3:]) for patch in patches]
    ends = [np.add(place, patch.shape) for place, patch in zip(places, patches, strict=True)]
    start = np.min(places, axis=0)
    whole = np.zeros(np.max(ends, axis=0) - start, patches[0].dtype)
    for place, patch in zip(places, patches, strict=True):
        z, y, x = np.subtract(place, start)
        whole[z : z + patch.shape[0], y : y + patch.shape[1], x : x + patch.shape[2]] = patch
    volume = open_volume(planes(tmp_path / "p", whole, "z{:d}.tif", compression="lzw", rowsperstrip=32))
    assert volume.shape == whole.shape
    for place, patch in zip(places[::5], patches[::5], strict=True):
        corner = np.subtract(place, start)
        z, y, x = (slice(int(a), int(a) + size) for a, size in zip(corner, patch.shape, strict=True))
        # Patches may overlap, and the later one stands in the whole.
        np.testing.assert_array_equal(volume.read((z, y, x)), whole[z, y, x])
        assert (volume.read((z, y, x)) == patch).mean() > 0.4
