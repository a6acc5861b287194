"""A volume of any format gives, box by box, the voxels that another library wrote into it."""

import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import nibabel
import numpy as np
import pytest
import tensorstore
import tifffile
from volume_files import (
    add_attributes,
    bigdataviewer_h5,
    imaris,
    n5,
    ome_zarr,
    precomputed,
    view_setups,
    voxels,
    write_array,
    zarr3_metadata,
)

from lsmfm_jax.volumes import pages
from lsmfm_jax.volumes.open import VolumeError, is_volume, open_volume, parse_box

SHAPE = (13, 37, 41)
DTYPES = ("uint8", "uint16", "uint32", "int16", "float32")
BOXES = [(slice(3, 11), slice(5, 30), slice(16, 40)), (slice(None),) * 3, (slice(12, 13), slice(0, 1), slice(40, 99))]


def agrees(path: pathlib.Path | str, expected: np.ndarray, **choice) -> None:
    volume = open_volume(path, **choice)
    assert volume.shape == expected.shape and volume.dtype == expected.dtype.newbyteorder("=")
    for box in BOXES:
        read = volume.read(box)
        assert read.dtype == volume.dtype and read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected[box])
    part = open_volume(path, box=parse_box("2:9,1:,:40"), **choice)
    assert part.origin == (2, 1, 0) and part.shape == (7, expected.shape[1] - 1, min(40, expected.shape[2]))
    np.testing.assert_array_equal(part.read((slice(1, 5), slice(None), slice(2, 9))), expected[3:7, 1:, 2:9])
    assert all(1 <= one <= size for one, size in zip(volume.chunk, volume.shape, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version, dtype):
    whole = voxels(SHAPE, dtype)
    shard = 2 if version == "0.5" else None
    path = ome_zarr(tmp_path / "b.zarr", [whole, whole[::2, ::2, ::2]], version=version, shard=shard, chunk=8)
    agrees(path, whole)
    volume = open_volume(path)
    assert (volume.voxel_size_um, volume.voxel_size_source) == ((2.0, 0.5, 0.5), "header (OME-Zarr)")
    assert volume.levels == 2 and volume.chunk == (8, 8, 8)
    coarse = open_volume(path, level=1)
    assert coarse.voxel_size_um == (4.0, 1.0, 1.0)
    np.testing.assert_array_equal(coarse.read(BOXES[1]), whole[::2, ::2, ::2])
    with pytest.raises(VolumeError, match=r"no level 2: it has 2; give --level 0 to 1"):
        open_volume(path, level=2)


@pytest.mark.parametrize("axes", ["tczyx", "czyx", "zyxc", "xyz", "tzyx"])
def test_ome_zarr_axes_stand_in_the_order_that_the_metadata_name(tmp_path, axes):
    sizes = {"t": 2, "c": 3, "z": 13, "y": 37, "x": 41}
    array = voxels(tuple(sizes[name] for name in axes))
    path = ome_zarr(tmp_path / "b.zarr", [array], version="0.5", axes=axes, scale=(1.0, 1.0, 1.0))
    choice = {key: 1 for name, key in (("c", "channel"), ("t", "time")) if name in axes}
    index = tuple(1 if name in "tc" else slice(None) for name in axes)
    left = [name for name in axes if name in "zyx"]
    agrees(path, array[index].transpose([left.index(name) for name in "zyx"]), **choice)
    if "c" in axes and "t" not in axes:
        with pytest.raises(VolumeError, match=r"3 channels; choose one with --channel 0 to 2"):
            open_volume(path)
    if axes == "tzyx":
        with pytest.raises(VolumeError, match=r"2 time points; choose one with --time 0 to 1"):
            open_volume(path)
    with pytest.raises(VolumeError, match=r"no channel 3"):
        open_volume(path, channel=3, time=0 if "t" in axes else None)


def test_sizes_without_a_unit_are_marked_and_nanometres_converted(tmp_path):
    whole = voxels(SHAPE)
    assert open_volume(ome_zarr(tmp_path / "a", [whole], version="0.4", unit=None)).voxel_size_source == (
        "header (unverified: no unit, taken as micrometres)"
    )
    nm = open_volume(ome_zarr(tmp_path / "b", [whole], version="0.5", unit="nanometer", scale=(2000.0, 650.0, 650.0)))
    assert nm.voxel_size_um == (2.0, 0.65, 0.65)
    ones = open_volume(ome_zarr(tmp_path / "c", [whole], version="0.5", unit=None, scale=(1.0, 1.0, 1.0)))
    assert "by default" in ones.voxel_size_source


def test_plain_zarr_arrays_groups_of_them_and_series(tmp_path):
    whole = voxels(SHAPE, "int16")
    write_array(tmp_path / "v3", "zarr3", whole, zarr3_metadata([8, 8, 8], None))
    agrees(tmp_path / "v3", whole)
    write_array(tmp_path / "v2", "zarr", whole, {"chunks": [5, 5, 5], "dtype": ">i2", "compressor": None})
    agrees(tmp_path / "v2", whole)
    named = zarr3_metadata([8, 8, 8], None) | {"dimension_names": ["x", "z", "y"]}
    write_array(tmp_path / "named", "zarr3", whole.transpose(2, 0, 1), named)
    agrees(tmp_path / "named", whole)
    series = tmp_path / "converted.zarr"
    ome_zarr(series / "0", [whole], version="0.4")
    (series / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    agrees(series, whole)
    ome_zarr(series / "1", [whole], version="0.4")
    with pytest.raises(VolumeError, match="several images"):
        open_volume(series)
    agrees(series / "1", whole)
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(
        VolumeError, match="it is a zarr group without OME-Zarr's multiscales; add the name of one of its arrays"
    ):
        open_volume(tmp_path / "group")


@pytest.mark.parametrize("text", ["{", "[]", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_zarr_metadata_are_one_line(tmp_path, text):
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "zarr.json").write_text(text)
    with pytest.raises(VolumeError) as caught:
        open_volume(tmp_path / "b.zarr")
    assert "\n" not in str(caught.value) and "b.zarr" in str(caught.value)


def test_a_damaged_chunk_names_the_volume_and_the_box(tmp_path):
    path = ome_zarr(tmp_path / "b.zarr", [voxels(SHAPE)], version="0.5")
    chunk = next(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(VolumeError, match=r"b\.zarr: the voxels 0:13,0:37,0:41 cannot be read"):
        open_volume(path).read(BOXES[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_n5_array_counts_x_first(tmp_path, dtype):
    whole = voxels(SHAPE, dtype)
    n5(tmp_path / "a", whole.transpose(2, 1, 0), pixelResolution={"dimensions": [0.5, 0.4, 2.0], "unit": "um"})
    agrees(tmp_path / "a", whole)
    assert open_volume(tmp_path / "a").voxel_size_um == (2.0, 0.4, 0.5)


def test_n5_pyramids_of_several_programs(tmp_path):
    whole = voxels(SHAPE)
    half = whole[:, ::2, ::2]
    for name, attributes in {
        "viewer": {"pixelResolution": {"dimensions": [0.5, 0.4, 2.0], "unit": "um"}},
        "paintera": {"resolution": [500, 400, 2000], "unit": "nm"},
        "cosem": {"transform": {"axes": ["z", "y", "x"], "scale": [2000, 400, 500], "units": ["nm"] * 3}},
    }.items():
        n5(tmp_path / name / "s0", whole.transpose(2, 1, 0), **attributes)
        n5(tmp_path / name / "s1", half.transpose(2, 1, 0), downsamplingFactors=[2, 2, 1])
        agrees(tmp_path / name, whole)
        coarse = open_volume(tmp_path / name, level=1)
        assert coarse.levels == 2 and coarse.voxel_size_um == (2.0, 0.8, 1.0), name
        np.testing.assert_array_equal(coarse.read(BOXES[1]), half)


def test_n5_four_axes_and_bigdataviewer(tmp_path):
    both = voxels((2, *SHAPE))
    n5(tmp_path / "c", both.transpose(3, 2, 0, 1), axes=["x", "y", "c", "z"])
    agrees(tmp_path / "c", both[1], channel=1)
    container = tmp_path / "dataset.n5"
    for setup in range(2):
        n5(container / f"setup{setup}/timepoint0/s0", both[setup].transpose(2, 1, 0))
        add_attributes(container / f"setup{setup}", downsamplingFactors=[[1, 1, 1]])
    view_setups(tmp_path / "dataset.xml", 2)
    with pytest.raises(VolumeError, match=r"2 view setups; choose one with --channel 0 to 1"):
        open_volume(container)
    agrees(container, both[1], channel=1)
    assert open_volume(container, channel=1).voxel_size_um == (2.0, 0.5, 0.25)
    add_attributes(tmp_path / "empty", n5="2.0.0")
    with pytest.raises(VolumeError, match="N5 group"):
        open_volume(tmp_path / "empty")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
def test_precomputed_with_an_offset(tmp_path, dtype):
    both = voxels((2, *SHAPE), dtype)
    precomputed(tmp_path / "p", [both, both[:, ::2, ::2, ::2]], offset=(100, -7, 3))
    agrees(tmp_path / "p", both[1], channel=1)
    agrees(f"precomputed://{tmp_path}/p", both[0], channel=0)
    coarse = open_volume(tmp_path / "p", channel=0, level=1)
    assert coarse.voxel_size_um == (4.0, 1.0, 1.0) and coarse.voxel_size_source == "header (precomputed)"
    np.testing.assert_array_equal(coarse.read(BOXES[1]), both[0, ::2, ::2, ::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_imaris(tmp_path, dtype):
    whole = voxels((2, 3, *SHAPE), dtype)
    path = imaris(tmp_path / "a.ims", [whole, whole[..., ::2, ::2, ::2]])
    agrees(path, whole[1, 2], channel=2, time=1)
    volume = open_volume(path, channel=0, time=0, level=1)
    assert (volume.channels, volume.levels, volume.voxel_size_source) == (3, 2, "header (Imaris)")
    np.testing.assert_allclose(volume.voxel_size_um, (2 * 13 / 7, 0.5 * 37 / 19, 0.5 * 41 / 21), rtol=1e-5)
    with pytest.raises(VolumeError, match="2 time points; choose one with --time"):
        open_volume(path, channel=0)


def test_bigdataviewer_h5_keeps_unsigned_numbers_in_signed_ones(tmp_path):
    whole = voxels((1, 2, *SHAPE))
    assert whole.max() > 2**15
    path = bigdataviewer_h5(tmp_path / "dataset.h5", [whole, whole[..., ::2, ::2]])
    agrees(path, whole[0, 1], channel=1)
    assert open_volume(path, channel=0).voxel_size_um is None
    view_setups(tmp_path / "dataset.xml", 2, unit="nm", zyx=(2000, 500, 250))
    assert open_volume(path, channel=0, level=1).voxel_size_um == (2.0, 1.0, 0.5)


@pytest.mark.parametrize("dtype", [*DTYPES, ">u2", ">f4", "float64", "bool"])
def test_plain_hdf5(tmp_path, dtype):
    whole = voxels(SHAPE, "uint8") > 99 if dtype == "bool" else voxels(SHAPE, dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("t0/channel 0", data=whole, chunks=(4, 8, 8), compression="gzip", shuffle=True)
        data.attrs["element_size_um"] = [2.0, 0.5, 0.4]
        file["table"] = np.zeros(5)
    plain = {"float64": "float32", "bool": "uint8"}.get(dtype, dtype)
    agrees(tmp_path / "a.h5", whole.astype(np.dtype(plain).newbyteorder("=")))
    assert open_volume(tmp_path / "a.h5").voxel_size_um == (2.0, 0.5, 0.4)
    assert open_volume(tmp_path / "a.h5").chunk == (4, 8, 8)


def test_datasets_in_hdf5_are_named_after_the_path(tmp_path):
    raw, labels = voxels(SHAPE), voxels((*SHAPE, 2), seed=1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"], file["volumes/labels"] = raw, labels.transpose(2, 1, 0, 3)
        for axis, name in enumerate("xyzc"):
            file["volumes/labels"].dims[axis].label = name
    with pytest.raises(VolumeError, match=r"2 datasets \(volumes/labels, volumes/raw\); name one after the path"):
        open_volume(tmp_path / "a.h5")
    agrees(tmp_path / "a.h5" / "volumes/raw", raw)
    agrees(tmp_path / "a.h5" / "volumes/labels", labels[..., 1], channel=1)
    assert is_volume(tmp_path / "a.h5" / "volumes/raw")
    with pytest.raises(VolumeError, match="no dataset volumes/masks"):
        open_volume(tmp_path / "a.h5" / "volumes/masks")
    with pytest.raises(VolumeError, match="is a group"):
        open_volume(tmp_path / "a.h5" / "volumes")
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:300])
    with pytest.raises(VolumeError, match="no readable HDF5"):
        open_volume(tmp_path / "b.h5")


TIFFS = {
    "plain": {},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "tiles": {"tile": (16, 32), "compression": "zlib", "bigtiff": True},
    "predictor": {"compression": "zlib", "predictor": True, "byteorder": ">"},
    "zstd": {"compression": "zstd", "rowsperstrip": 10},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_stacks_page_by_page(tmp_path, kind, dtype):
    whole = voxels(SHAPE, dtype)
    tifffile.imwrite(tmp_path / "a.tif", whole, metadata={"axes": "ZYX"}, **TIFFS[kind])
    agrees(tmp_path / "a.tif", whole)


def test_ome_and_imagej_tiffs_with_channels_levels_and_sizes(tmp_path):
    whole = voxels((13, 3, 37, 41))
    sizes = {"PhysicalSizeZ": 2.0, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "PhysicalSizeX": 0.5}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", bigtiff=True) as file:
        options = {"tile": (16, 16), "compression": "zlib"}
        file.write(whole, subifds=1, metadata={"axes": "ZCYX", **sizes}, **options)
        file.write(whole[..., ::2, ::2], subfiletype=1, **options)
    agrees(tmp_path / "a.ome.tif", whole[:, 2], channel=2)
    coarse = open_volume(tmp_path / "a.ome.tif", channel=1, level=1)
    np.testing.assert_array_equal(coarse.read(BOXES[1]), whole[:, 1, ::2, ::2])
    assert coarse.levels == 2 and coarse.voxel_size_um[0] == 2.0
    tifffile.imwrite(
        tmp_path / "b.tif",
        whole,
        imagej=True,
        resolution=(2.0, 4.0),
        metadata={"axes": "ZCYX", "spacing": 1.5, "unit": "um"},
    )
    agrees(tmp_path / "b.tif", whole[:, 1], channel=1)
    assert open_volume(tmp_path / "b.tif", channel=0).voxel_size_um == (1.5, 0.25, 0.5)
    with pytest.raises(VolumeError, match="3 channels; choose one with --channel 0 to 2"):
        open_volume(tmp_path / "b.tif")
    colour = voxels((13, 37, 41, 3), "uint8")
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", compression="zlib", rowsperstrip=8)
    agrees(tmp_path / "c.tif", colour[..., 1], channel=1)


def test_npy_and_nifti(tmp_path):
    whole = voxels(SHAPE, ">u2")
    np.save(tmp_path / "a.npy", whole)
    agrees(tmp_path / "a.npy", whole)
    np.save(tmp_path / "b.npy", np.asfortranarray(voxels((2, *SHAPE), "float64")))
    agrees(tmp_path / "b.npy", voxels((2, *SHAPE), "float64")[1].astype("float32"), channel=1)
    image = nibabel.Nifti1Image(whole.T, np.diag([0.5, 0.4, 2.0, 1.0]))
    image.header.set_xyzt_units("micron")
    for name in ("c.nii", "c.nii.gz"):
        image.to_filename(tmp_path / name)
        agrees(tmp_path / name, whole)
        volume = open_volume(tmp_path / name)
        assert volume.voxel_size_um == (2.0, 0.4, 0.5)
        np.testing.assert_array_equal(volume.affine, nibabel.load(tmp_path / name).affine)
    scaled = nibabel.Nifti1Image(voxels(SHAPE, "int16").T, np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    scaled.to_filename(tmp_path / "d.nii")
    agrees(tmp_path / "d.nii", np.asarray(nibabel.load(tmp_path / "d.nii").dataobj).T.astype("float32"))


@pytest.mark.parametrize("name", ["a.czi", "a.txt"])
def test_unknown_missing_and_outside_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(VolumeError, match="its format is unknown"):
        open_volume(tmp_path / name)
    with pytest.raises(VolumeError, match="no such file"):
        open_volume(tmp_path / "absent.npy")
    with pytest.raises(VolumeError, match="the folder is no volume"):
        open_volume(tmp_path)
    np.save(tmp_path / "a.npy", voxels(SHAPE))
    with pytest.raises(VolumeError, match="13:20,:,: lies outside"):
        open_volume(tmp_path / "a.npy", box=parse_box("13:20,:,:"))
    with pytest.raises(VolumeError, match="no level 1"):
        open_volume(tmp_path / "a.npy", level=1)
    with pytest.raises(ValueError, match="no step"):
        open_volume(tmp_path / "a.npy").read((slice(0, 4, 2), slice(None), slice(None)))
    assert not is_volume(tmp_path) and not is_volume(tmp_path / "a.txt") and is_volume(tmp_path / "a.npy")


@pytest.mark.parametrize("text", ["1:2,3:4", "a:b,:,:", "5:3,:,:", "1,2,3"])
def test_a_box_that_is_none_is_named(text):
    with pytest.raises(ValueError, match=text):
        parse_box(text)


def test_reading_from_many_threads_at_once(tmp_path):
    whole = voxels((40, 64, 64))
    ome_zarr(tmp_path / "a.zarr", [whole], version="0.5", chunk=8, shard=2)
    tifffile.imwrite(tmp_path / "a.tif", whole, compression="zlib", rowsperstrip=8)
    imaris(tmp_path / "a.ims", [whole[None, None]])
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 24, (60, 3))
    barrier = threading.Barrier(4)

    def check(volume, some):
        barrier.wait()
        for z, y, x in some:
            box = (slice(z, z + 16), slice(y, y + 40), slice(x, x + 40))
            np.testing.assert_array_equal(volume.read(box), whole[box])

    for name in ("a.zarr", "a.tif", "a.ims"):
        volume = open_volume(tmp_path / name)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(check, [volume] * 4, np.array_split(corners, 4)))


def test_a_volume_far_larger_than_the_memory_costs_only_its_box(tmp_path):
    """Sparse files of a trillion voxels and more: reading all of any of them would fail."""
    shape, box = (10_000, 10_000, 10_000), (slice(7000, 7008), slice(5000, 5010), slice(9990, 10_000))
    number = 40_000
    header = {"shape": shape, "fortran_order": False, "descr": "<u2"}
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        start = file.tell()
        file.seek(start + 2 * ((7000 * shape[1] + 5000) * shape[2] + 9990))
        file.write(np.uint16(number).tobytes())
        file.truncate(start + 2 * 10**12)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("brain", shape, "u2", chunks=(16, 16, 16))
        data[7000, 5000, 9990] = number
    brain = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/a.zarr/"}},
        create=True,
        dtype="uint16",
        shape=shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=(32, 32, 32)),
    ).result()
    brain[7000, 5000, 9990] = number
    for name in ("a.npy", "a.h5", "a.zarr"):
        volume = open_volume(tmp_path / name)
        read = volume.read(box)
        assert volume.shape == shape and read.shape == (8, 10, 10)
        assert read[0, 0, 0] == number and np.count_nonzero(read) == 1, name
    assert sum(file.stat().st_blocks for file in tmp_path.rglob("*") if file.is_file()) * 512 < 2**20


def test_of_a_tiff_only_the_tiles_of_the_box_are_decoded(tmp_path, monkeypatch):
    whole = voxels((10, 128, 128))
    tifffile.imwrite(tmp_path / "a.tif", whole, tile=(32, 32), compression="zlib")
    volume = open_volume(tmp_path / "a.tif")
    counts = []
    read_bytes = pages._read_bytes

    def counted(handle, start, count, *, lock):
        counts.append(count)
        return read_bytes(handle, start, count, lock=lock)

    monkeypatch.setattr(pages, "_read_bytes", counted)
    box = (slice(2, 5), slice(30, 40), slice(64, 96))
    np.testing.assert_array_equal(volume.read(box), whole[box])
    assert len(counts) == 3 * 2
