"""Patches cut from whole volumes: where they lie, that they repeat, what is read, what the manifest says."""

import itertools
import json

import h5py
import numpy as np
import pytest
import tifffile
from volume_files import imaris, ome_zarr

from lsmfm_jax.cli import main
from lsmfm_jax.store import cut as cutting
from lsmfm_jax.store.captions import CaptionError
from lsmfm_jax.store.cut import CutError, cut
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.store.verify import verify_store
from lsmfm_jax.volumes.lazy import LazyVolume
from lsmfm_jax.volumes.names import volume_name
from lsmfm_jax.volumes.open import open_volume, parse_box

SIZE = (16, 16, 16)


def brain(shape=(80, 120, 140), *, seed=0, empty=True, dtype="uint16") -> np.ndarray:
    """Noise around 100 and, in a ball of tissue, around 300 with bright spots."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 3, shape)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    tissue = (grid**2).sum(axis=0) < 0.5 if empty else np.ones(shape, bool)
    image += tissue * (200 + 400 * (rng.uniform(size=shape) < 0.02))
    return np.clip(image, 0, None).astype(dtype)


def boxes_of(store: PatchStore) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(row.origin, row.shape) for row in store.rows]


def overlaps(boxes) -> bool:
    return any(
        all(p < q + m and q < p + n for p, n, q, m in zip(a, size_a, b, size_b, strict=True))
        for (a, size_a), (b, size_b) in itertools.combinations(boxes, 2)
    )


def test_patches_are_the_volume_s_own_voxels_do_not_overlap_and_have_foreground(tmp_path):
    whole = brain()
    path = ome_zarr(tmp_path / "mouse 7.ome.zarr", [whole], version="0.5")
    (one,) = cut([path], out=tmp_path / "store", size=SIZE, seed=4)
    store = PatchStore.open(tmp_path / "store")
    assert len(store) == one.added == 10 and not overlaps(boxes_of(store))
    assert verify_store(tmp_path / "store") == []
    for i, row in enumerate(store.rows):
        z, y, x = row.origin
        expected = whole[z : z + 16, y : y + 16, x : x + 16]
        np.testing.assert_array_equal(store.read(i), expected)
        assert row.volume == "brain/mouse 7" and row.source == "brain" and row.layout == "cut" and row.level == 0
        assert row.foreground_frac == pytest.approx((expected > row.threshold).mean()) and row.foreground_frac >= 0.05
        assert row.voxel_size_um == (2.0, 0.5, 0.5) and row.voxel_size_source == "header (OME-Zarr)"
        assert row.maximum == expected.max() and set(row.volume_percentiles) == set(row.percentiles)
    assert len({row.id for row in store.rows}) == 10
    # Background 100 with a deviation of 3: between the two kinds of voxels.
    assert 105 < one.threshold < 200
    assert "foreground is above" in one.text() and f"{one.threshold:.6g}" in one.text()


def test_the_same_seed_repeats_another_does_not_and_a_second_cut_adds_only_what_is_missing(tmp_path):
    path = ome_zarr(tmp_path / "b.zarr", [brain()], version="0.4")

    def origins(name, **options):
        cut([path], out=tmp_path / name, size=SIZE, **options)
        return [row.origin for row in PatchStore.open(tmp_path / name).rows]

    first = origins("a", seed=1, count=8)
    assert origins("b", seed=1, count=8) == first != origins("c", seed=2, count=8)
    four = origins("d", seed=1, count=4)
    assert set(four) == set(first[:4])
    (again,) = cut([path], out=tmp_path / "d", size=SIZE, seed=1, count=4)
    assert (again.added, again.read, len(again.boxes)) == (0, 0, 4)
    assert set(origins("d", seed=1, count=8)) == set(first)
    mixed = cut([path], out=tmp_path / "d", size=SIZE, seed=9, count=12)
    assert mixed[0].added == 4 and not overlaps(boxes_of(PatchStore.open(tmp_path / "d")))


def test_every_channel_gives_its_own_patches_and_one_can_be_chosen(tmp_path):
    whole = np.stack([brain(seed=1), brain(seed=2)])
    path = imaris(tmp_path / "a.ims", [whole[None]])
    cuts = cut([path], out=tmp_path / "all", size=SIZE, count=3)
    rows = PatchStore.open(tmp_path / "all").rows
    assert [(one.channel, one.added) for one in cuts] == [(0, 3), (1, 3)]
    assert {row.channel for row in rows} == {0, 1} and {row.volume for row in rows} == {"brain/a"}
    assert len({row.id for row in rows}) == 6 and sum(row.id.endswith("#1") for row in rows) == 3
    cut([path], out=tmp_path / "one", size=SIZE, count=3, channel=1)
    chosen = PatchStore.open(tmp_path / "one").rows
    assert [row.origin for row in chosen] == [row.origin for row in rows if row.channel == 1]


def test_the_box_and_the_level_are_kept_to(tmp_path):
    whole = brain(empty=False)
    path = ome_zarr(tmp_path / "b.zarr", [whole, whole[::2, ::2, ::2]], version="0.5")
    (one,) = cut([path], out=tmp_path / "s", size=(8, 8, 8), level=1, box=parse_box("4:36,10:50,:40"), threshold=299)
    store = PatchStore.open(tmp_path / "s")
    assert one.added == 10 and one.origin == (4, 10, 0)
    for i, row in enumerate(store.rows):
        z, y, x = row.origin
        assert 4 <= z <= 28 and 10 <= y <= 42 and x <= 32 and row.level == 1 and row.voxel_size_um == (4.0, 1.0, 1.0)
        np.testing.assert_array_equal(store.read(i), whole[::2, ::2, ::2][z : z + 8, y : y + 8, x : x + 8])
        assert row.threshold == 299 and "_level1" in row.id


def test_empty_places_are_left_out_by_the_map_before_they_are_read(tmp_path, monkeypatch):
    """Tissue in a corner of a thousandth of the volume: without the map, a thousand places would be read for one."""
    whole = np.random.default_rng(0).normal(100, 3, (160, 160, 160)).astype("uint16")
    whole[120:, 120:, 120:] += 500
    half = whole.reshape(80, 2, 80, 2, 80, 2).mean(axis=(1, 3, 5)).astype("uint16")
    path = ome_zarr(tmp_path / "b.zarr", [whole, half], version="0.5")
    (one,) = cut([path], out=tmp_path / "s", size=SIZE, count=4)
    assert one.added == 4 and one.read <= 12
    reads = []
    read = LazyVolume.read
    monkeypatch.setattr(LazyVolume, "read", lambda self, box: reads.append((self.level, box)) or read(self, box))
    cut([path], out=tmp_path / "t", size=SIZE, count=4)
    patches = [
        box for level, box in reads if level == 0 and all(one.stop and one.stop - one.start == 16 for one in box)
    ]
    assert len(patches) == one.read


def test_where_there_is_too_little_foreground_fewer_are_cut_and_it_is_said(tmp_path):
    whole = np.random.default_rng(0).normal(100, 3, (64, 64, 64)).astype("uint16")
    whole[10:26, 10:26, 10:26] += 1000
    path = ome_zarr(tmp_path / "b.zarr", [whole], version="0.5")
    (one,) = cut([path], out=tmp_path / "s", size=SIZE, count=5, min_foreground_frac=0.6)
    assert (
        0 < one.added < 5 and ": lower --min-foreground, --size or" in one.text() and f"{one.added} of 5" in one.text()
    )
    (none,) = cut([path], out=tmp_path / "t", size=SIZE, count=5, threshold=5000)
    assert none.added == 0 and len(PatchStore.open(tmp_path / "t")) == 0


def test_patches_with_nan_are_left_out(tmp_path):
    whole = brain(dtype="float32")
    whole[:, :60] = np.nan
    path = ome_zarr(tmp_path / "b.zarr", [whole], version="0.5")
    cut([path], out=tmp_path / "s", size=SIZE, count=5)
    store = PatchStore.open(tmp_path / "s")
    assert len(store) == 5 and all(row.origin[1] >= 60 for row in store.rows)
    assert all(np.isfinite(store.read(i)).all() for i in range(5))


def test_captions_are_asked_for_before_anything_is_cut(tmp_path):
    path = ome_zarr(tmp_path / "c-Fos 3.zarr", [brain()], version="0.5")
    (tmp_path / "captions.json").write_text(json.dumps({"c_fos_3": "nuclei", "other": ["a", "b"]}))
    cut([path], out=tmp_path / "s", size=SIZE, count=2, captions=[tmp_path / "captions.json"])
    store = PatchStore.open(tmp_path / "s")
    assert {row.caption_key for row in store.rows} == {"c_fos_3"} and store.captions == {"c_fos_3": ["nuclei"]}
    cut([path], out=tmp_path / "t", size=SIZE, count=2, captions=[tmp_path / "captions.json"], caption_key="Other")
    assert PatchStore.open(tmp_path / "t").captions == {"other": ["a", "b"]}
    with pytest.raises(CaptionError, match="wanted"):
        cut([path], out=tmp_path / "u", size=SIZE, captions=[tmp_path / "captions.json"], caption_key="wanted")
    assert not (tmp_path / "u").exists()


def test_other_formats_can_be_cut_and_stores_be_shared(tmp_path):
    whole = brain()
    np.save(tmp_path / "n.npy", whole)
    tifffile.imwrite(tmp_path / "t.ome.tif", whole, compression="zlib", metadata={"axes": "ZYX"})
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file["data"] = whole
    paths = [tmp_path / name for name in ("n.npy", "t.ome.tif", "h.h5")]
    cut(paths, out=tmp_path / "s", size=SIZE, count=2, source="lab")
    rows = PatchStore.open(tmp_path / "s").rows
    assert sorted({row.volume for row in rows}) == ["lab/h", "lab/n", "lab/t"] and len(rows) == 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": (16, 200, 16)}, r"its \(80, 120, 140\) voxels .* fewer than a patch of \(16, 200, 16\)"),
        ({"count": 0}, "--count 0"),
        ({"min_foreground_frac": 5.0}, r"--min-foreground 5\.0: a share from 0 to 1"),
        ({"size": (1, 16, 16)}, "at least 2 voxels"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_a_store_is_made(tmp_path, options, match):
    path = ome_zarr(tmp_path / "b.zarr", [brain()], version="0.5")
    with pytest.raises(CutError, match=match):
        cut([path], out=tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_volumes_of_one_name_would_be_one_volume_in_a_split_and_are_refused(tmp_path):
    paths = [ome_zarr(tmp_path / name / "img.ome.zarr", [brain()], version="0.5") for name in "ab"]
    with pytest.raises(CutError, match="both called img; cut them one by one, each with its own --source"):
        cut(paths, out=tmp_path / "s", size=SIZE)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/mouse.ome.zarr/", "mouse"),
        ("s3://bucket/x/Brain 1.n5", "Brain 1"),
        ("http://h/p.precomputed?token=1", "p"),
        ("x.nii.gz", "x"),
        ("planes_488", "planes_488"),
        ("d.h5/volumes/raw", "raw"),
        (".zarr", ".zarr"),
    ],
)
def test_a_volume_s_name_is_its_path_s_end(path, name):
    assert volume_name(path) == name


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "phantom-brain", "--out", "b.ome.zarr", "--shape", "64,128,128", "--seed", "1"]) == 0
    said = capsys.readouterr()
    assert "cells, listed in b_cells.csv" in said.out and "1/1 blocks" in said.err
    cutting_arguments = ["--count", "3", "--size", "16,16,16", "--box", ":,20:,:", "--seed", "2"]
    assert main(["data", "cut", "b.ome.zarr", "--out", "store", *cutting_arguments]) == 0
    said = capsys.readouterr().out
    assert "3 patches added" in said and "foreground is above" in said
    assert (tmp_path / "store_boxes.png").stat().st_size > 10_000
    assert all(row.origin[1] >= 20 for row in PatchStore.open("store").rows)
    assert main(["data", "info", "store"]) == 0
    assert "3 patches of 1 volumes" in capsys.readouterr().out
    assert main(["data", "info", "b.ome.zarr"]) == 0
    said = capsys.readouterr().out
    for text in ("64 x 128 x 128 voxels, uint16", "1 x 1 x 1 um, header (OME-Zarr)", "3: 64 x 128 x 128, 32 x 64 x 64"):
        assert text in said
    assert "1 windows" not in said and "4 windows of 96 voxels a side at overlap 0.25 (1 x 2 x 2)" in said
    assert (tmp_path / "b_info.png").stat().st_size > 10_000
    assert main(["data", "cut", "absent.zarr", "--out", "other"]) == 2
    assert "absent.zarr: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit):
        main(["data", "cut", "b.ome.zarr", "--out", "other", "--box", "1:2"])
    assert "a box is written z0:z1,y0:y1,x0:x1" in capsys.readouterr().err


def test_an_interrupted_cut_goes_on_where_it_was(tmp_path, monkeypatch):
    paths = [ome_zarr(tmp_path / f"{name}.zarr", [brain(seed=seed)], version="0.5") for seed, name in enumerate("ab")]
    cut(paths, out=tmp_path / "whole", size=SIZE, count=3)
    # Every patch a part of its own, so that those before the fault are kept.
    monkeypatch.setattr(cutting, "StoreWriter", lambda path: writer(path, part_bytes=1))
    from lsmfm_jax.store.writer import StoreWriter as writer

    done = []

    def fail(one):
        done.append(one)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(paths, out=tmp_path / "s", size=SIZE, count=3, report=fail)
    assert 0 < len(PatchStore.open(tmp_path / "s")) <= 3
    cut(paths, out=tmp_path / "s", size=SIZE, count=3)
    ids = [sorted(row.id for row in PatchStore.open(tmp_path / name).rows) for name in ("s", "whole")]
    assert ids[0] == ids[1]


def test_volumes_that_fit_and_those_behind_a_box_are_opened_alike(tmp_path):
    whole = brain()
    np.save(tmp_path / "n.npy", whole)
    volume = open_volume(tmp_path / "n.npy", box=parse_box("10:70,:,:"))
    (one,) = cut([tmp_path / "n.npy"], out=tmp_path / "s", size=SIZE, box=parse_box("10:70,:,:"))
    assert one.shape == volume.shape and all(10 <= row.origin[0] <= 54 for row in PatchStore.open(tmp_path / "s").rows)
