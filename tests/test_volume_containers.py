"""Files that hold more, or less, than one grey volume: every plane, image and channel is read or refused by name."""

import pathlib
import warnings

import nibabel
import numpy as np
import pytest
import tifffile
from data_files import noise, save_nifti

from lsmfm_jax.volumes.read import VolumeError, read_single, read_volume

SHAPE = (11, 14, 17)
PLANE = "plane{:03d}.ome.tif"
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def _volume(seed: int = 0, *, dtype: str = "uint16") -> np.ndarray:
    return noise(seed, shape=SHAPE, dtype=dtype)


def _tiff(path: pathlib.Path, array: np.ndarray, **settings: object) -> pathlib.Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(path, array, **settings)
    return path


def _refused(path: pathlib.Path, **choice: object) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, **choice)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def multi_file_ome(folder: pathlib.Path, volume: np.ndarray, *, name: str = PLANE) -> list[pathlib.Path]:
    """Write one OME-TIFF a plane, each with the description of the whole image."""
    folder.mkdir(parents=True, exist_ok=True)
    depth, height, width = volume.shape

    def uuid(z: int) -> str:
        return f"urn:uuid:00000000-0000-0000-0000-{z + 1:012d}"

    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name.format(z)}">{uuid(z)}</UUID></TiffData>'
        for z in range(depth)
    )
    pixels = (
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{volume.dtype}" SizeX="{width}" SizeY="{height}" '
        f'SizeZ="{depth}" SizeC="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="4">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels>'
    )
    files = []
    for z in range(depth):
        xml = f'<OME xmlns="{SCHEMA}" UUID="{uuid(z)}"><Image ID="Image:0">{pixels}</Image></OME>'
        files.append(_tiff(folder / name.format(z), volume[z], description=xml, metadata=None))
    return files


def test_a_multi_file_ome_is_one_volume_through_any_of_its_files(tmp_path):
    volume = _volume(1)
    files = multi_file_ome(tmp_path / "a", volume)
    for file in (files[0], files[4], files[-1]):
        array, info = read_single(file)
        np.testing.assert_array_equal(array, volume)
        assert info.voxel_size_um == (4.0, 0.5, 0.5)
    files[3].unlink()
    files[7].unlink()
    message = _refused(files[0])
    assert "one of 11 files" in message and "2 of them" in message
    assert "plane003.ome.tif, plane007.ome.tif" in message


def test_a_description_kept_in_another_file_is_followed_or_named(tmp_path):
    volume = _volume(2)
    files = multi_file_ome(tmp_path, volume)
    for target, passes in (("plane000.ome.tif", True), ("image.companion.ome", False), ("../x.ome.tif", False)):
        xml = f'<OME xmlns="{SCHEMA}"><BinaryOnly MetadataFile="{target}" UUID="urn:uuid:x"/></OME>'
        _tiff(files[5], volume[5], description=xml, metadata=None)
        if passes:
            np.testing.assert_array_equal(read_single(files[5])[0], volume)
        else:
            assert target in _refused(files[5])


def test_files_named_outside_the_folder_are_not_opened(tmp_path):
    files = multi_file_ome(tmp_path / "in", _volume(3), name="p{:02d}.ome.tif")
    (tmp_path / "secret.tif").write_bytes(files[1].read_bytes())
    for name in (b"../p0.ome.tif", b"/etc/p0.ome.t", b"..\\p0.ome.tif"):
        data = files[0].read_bytes()
        assert len(name) == len(b"p01.ome.tif") + 2
        # The same length, as the description is stored between other tags.
        changed = data.replace(b'"p01.ome.tif">urn:uuid', b'"' + name + b'">n:uuid')
        assert changed != data
        files[0].write_bytes(changed)
        assert repr(name.decode()) in _refused(files[0])
        files[0].write_bytes(data)


def test_planes_that_a_description_promises_are_never_made_up(tmp_path):
    volume = _volume(4)
    pixels = '<Pixels ID="P" DimensionOrder="XYZCT" Type="uint16" SizeX="17" SizeY="14" SizeZ="{}" SizeC="1" SizeT="1">'
    for depth, planes in ((20, '<TiffData IFD="0" PlaneCount="11"/>'), (15, "<TiffData/>")):
        xml = f'<OME xmlns="{SCHEMA}"><Image ID="I">{pixels.format(depth)}{planes}</Pixels></Image></OME>'
        path = _tiff(tmp_path / f"{depth}.ome.tif", volume, description=xml, metadata=None, photometric="minisblack")
        assert f"it promises {depth} planes and holds 11" in _refused(path)
    path = _tiff(tmp_path / "ij.tif", volume, imagej=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes().replace(b"images=11", b"images=19").replace(b"slices=11", b"slices=19"))
    assert "promises 19 planes and holds" in _refused(path)


def test_further_images_and_stray_pages_are_named(tmp_path):
    volume = _volume(5)
    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(volume, photometric="minisblack")
        file.write(volume[:, ::2, ::2] + 1, photometric="minisblack")
    message = _refused(path)
    assert "2 images" in message and "(11, 14, 17)" in message and "(11, 7, 9)" in message
    assert "say which one with --series, or save each as a file of its own" in message
    np.testing.assert_array_equal(read_single(path, series=0)[0], volume)
    np.testing.assert_array_equal(read_single(path, series=1)[0], volume[:, ::2, ::2] + 1)
    assert "series 2" in _refused(path, series=2)
    assert "series 1" in _refused(save_nifti(tmp_path / "a.nii", volume), series=1)

    path = tmp_path / "thumbnail.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in volume:
            file.write(plane, metadata=None, contiguous=False)
        file.write(volume[0, :5, :6], metadata=None)
    assert "2 images" in _refused(path)
    np.testing.assert_array_equal(read_single(path, series=0)[0], volume)

    xml = (
        f'<OME xmlns="{SCHEMA}"><Image ID="I"><Pixels ID="P" DimensionOrder="XYZCT" Type="uint16" SizeX="17" '
        'SizeY="14" SizeZ="8" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="8"/></Pixels></Image></OME>'
    )
    path = _tiff(tmp_path / "stray.ome.tif", volume, description=xml, metadata=None, photometric="minisblack")
    assert "3 of its 11 pages belong to no image (the first is page 8)" in _refused(path)
    assert read_single(path, series=0)[0].shape == (8, 14, 17)


def test_pyramids_are_one_image(tmp_path):
    volume = _volume(6)
    path = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(volume, subifds=1, metadata={"axes": "ZYX"}, photometric="minisblack")
        file.write(volume[:, ::2, ::2], subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(read_single(path)[0], volume)


@pytest.mark.parametrize("kind", ["nifti", "npy", "tiff"])
def test_an_empty_channel_is_left_out_and_noted(tmp_path, kind):
    volume = _volume(7)
    both = np.stack([np.full_like(volume, 3), volume, volume + 1])
    if kind == "nifti":
        path = save_nifti(tmp_path / "a.nii.gz", np.moveaxis(both, 0, -1))
    elif kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, both)
    else:
        path = _tiff(tmp_path / "a.tif", both, metadata={"axes": "CZYX"}, photometric="minisblack")
    channels, info = read_volume(path)
    np.testing.assert_array_equal(channels[0], volume)
    assert len(channels) == 2 and info.channel_numbers == (1, 2) and info.channels_in_file == 3
    assert info.notes == ("channel 0 is constant: every voxel is 3; it is left out",)
    assert len(read_volume(path, allow_constant=True).channels) == 3
    np.testing.assert_array_equal(read_single(path, channel=2)[0], volume + 1)
    assert "channel 0 is constant" in _refused(path, channel=0)
    assert "channel 3 was asked for, it has 3" in _refused(path, channel=3)


def test_a_file_of_nothing_but_empty_channels_is_blank(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([np.zeros(SHAPE, "u1"), np.ones(SHAPE, "u1")]))
    with pytest.raises(VolumeError, match=r"channel 0 is constant.*channel 1 is constant") as caught:
        read_volume(tmp_path / "a.npy")
    assert caught.value.blank
    blank, _ = read_single(_tiff(tmp_path / "b.tif", np.zeros(SHAPE, "u1")), allow_constant=True)
    assert blank.shape == SHAPE and not blank.any()


def test_grey_saved_as_colour_is_one_channel_and_colour_is_three(tmp_path):
    volume = _volume(8, dtype="uint8")
    opaque = np.full_like(volume, 255)
    grey = _tiff(tmp_path / "grey.tif", np.stack([volume] * 3, axis=-1), photometric="rgb")
    alpha = np.stack([volume, volume, volume, opaque], axis=-1)
    alpha = _tiff(tmp_path / "alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    for path in (grey, alpha):
        array, info = read_single(path)
        np.testing.assert_array_equal(array, volume)
        assert info.channels_in_file == 1 and any("grey saved as colour" in note for note in info.notes)
    colour = _tiff(tmp_path / "colour.tif", np.stack([volume, volume + 1, volume], axis=-1), photometric="rgb")
    assert read_volume(colour).info.channel_numbers == (0, 1, 2)
    mask = (volume > 90).astype("u1")
    path = _tiff(tmp_path / "mask.tif", np.stack([mask * 255] * 3, axis=-1), photometric="rgb")
    np.testing.assert_array_equal(read_single(path, allow_constant=True)[0], mask * 255)


@pytest.mark.parametrize("settings", [{"imagej": True}, {"ome": True}, {}, {"metadata": None}])
def test_a_stack_written_without_axes_is_a_stack(tmp_path, settings):
    volume = _volume(9)
    path = _tiff(tmp_path / f"a{'.ome' if 'ome' in settings else ''}.tif", volume, photometric="minisblack", **settings)
    array, info = read_single(path)
    np.testing.assert_array_equal(array, volume)
    with tifffile.TiffFile(path) as file:
        assert bool(info.notes) is (file.series[0].axes == "CYX")


def test_axes_that_cannot_be_told_are_asked_for(tmp_path):
    volume = _volume(10)
    few = _tiff(tmp_path / "few.ome.tif", volume[:3], ome=True, photometric="minisblack")
    assert "axes are CYX of (3, 14, 17)" in _refused(few) and "--axes" in _refused(few)
    np.testing.assert_array_equal(read_single(few, axes="ZYX")[0], volume[:3])
    stacks = _tiff(tmp_path / "stacks.tif", np.stack([volume, volume + 1]), imagej=True)
    assert "more channels than planes" in _refused(stacks)
    np.testing.assert_array_equal(read_volume(stacks, axes="czyx").channels[1], volume + 1)
    time = _tiff(tmp_path / "time.tif", np.stack([volume, volume + 1]), imagej=True, metadata={"axes": "TZYX"})
    assert "TZYX" in _refused(time)
    for axes in ("ZY", "ZYXX", "ZYXT", "", "CZYX1"):
        assert "axes" in _refused(few, axes=axes)
    assert "its shape is (3, 14, 17)" in _refused(few, axes="CZYX")


def test_four_axes_without_names(tmp_path):
    volume = _volume(11)
    for at in (0, 1, 3):
        path = _tiff(tmp_path / f"{at}.tif", np.stack([volume, volume + 1], axis=at), photometric="minisblack")
        channels, info = read_volume(path)
        np.testing.assert_array_equal(channels[1], volume + 1)
        assert "the axis of 2 is taken as channels" in info.notes[0]
    path = _tiff(tmp_path / "many.tif", np.stack([volume] * 9), photometric="minisblack")
    assert "QQYX" in _refused(path)
    np.save(tmp_path / "a.npy", np.stack([volume, volume + 1], axis=2))
    assert "--axes" in _refused(tmp_path / "a.npy")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npy", axes="ZYCX").channels[1], volume + 1)


def test_named_axes_of_nifti_move_the_affine_with_them(tmp_path):
    volume = _volume(12)
    affine = np.array([[0, 0, 0.5, 7.0], [0, 2.0, 0, 8], [3.0, 0, 0, 9], [0, 0, 0, 1]])
    # Stored as Z, Y, X: the first column of the affine is that of Z.
    nibabel.Nifti1Image(volume, affine).to_filename(tmp_path / "zyx.nii")
    array, info = read_single(tmp_path / "zyx.nii", axes="ZYX")
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_array_equal(info.affine, affine[:, [2, 1, 0, 3]])
    assert info.voxel_size_um == (3.0, 2.0, 0.5)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma", "packbits", "jpeg"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressed_tiffs(tmp_path, compression, tile):
    volume = _volume(13, dtype="uint8" if compression == "jpeg" else "uint16")
    predictor = compression in ("lzw", "deflate", "zstd")
    settings = {"compression": compression, "predictor": predictor, "photometric": "minisblack"}
    path = _tiff(tmp_path / "a.tif", volume, tile=tile, **settings)
    array, _ = read_single(path)
    if compression == "jpeg":
        assert np.abs(array.astype(float) - volume).mean() < 8
    else:
        np.testing.assert_array_equal(array, volume)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[6].dataoffsets[0], file.pages[6].databytecounts[0]
    path.write_bytes(data[: offset + count // 2])
    assert "truncated" in _refused(path) or "planes" in _refused(path) or "not a readable TIFF" in _refused(path)


def test_strips_that_are_not_there_are_no_zeros(tmp_path):
    for compression, tag in (("deflate", "StripByteCounts"), ("deflate", "StripOffsets"), (None, "StripOffsets")):
        path = tmp_path / f"{compression}_{tag}.tif"
        with tifffile.TiffWriter(path) as file:
            for plane in _volume(14):
                file.write(plane, metadata=None, contiguous=False, compression=compression)
        assert read_single(path)[0].shape == SHAPE
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[3].tags[tag].overwrite(0)
        assert "page 3 lacks some of its 1 strips" in _refused(path)


def test_nan_is_filled_only_where_a_value_is_given(tmp_path):
    volume = _volume(15, dtype="float32")
    volume[0], volume[:, 0] = np.nan, np.nan
    missing = int(np.isnan(volume).sum())
    path = save_nifti(tmp_path / "a.nii.gz", volume)
    assert f"{missing} voxels that are NaN" in _refused(path) and "--nan-fill" in _refused(path)
    array, info = read_single(path, nan_fill=-2.5)
    np.testing.assert_array_equal(array, np.where(np.isnan(volume), np.float32(-2.5), volume))
    assert info.notes == (f"it had {missing} NaN voxels, filled with -2.5",)
    assert "nan_fill is nan" in _refused(path, nan_fill=float("nan"))
    volume[2, 2, 2] = np.inf
    np.save(tmp_path / "a.npy", volume)
    assert "NaN or Inf" in _refused(tmp_path / "a.npy", nan_fill=0.0)
    np.save(tmp_path / "b.npy", np.full(SHAPE, np.nan))
    assert "constant: every voxel is 0" in _refused(tmp_path / "b.npy", nan_fill=0.0)
