"""The generated brain: the same voxels in whatever blocks, its cells where the table has them, little on the disk."""

import csv
import json

import cc3d
import numpy as np
import pytest
from scipy.spatial import cKDTree

from lsmfm_jax.phantom.brain import Brain, BrainError, write_brain
from lsmfm_jax.volumes.open import open_volume

SHAPE = (150, 200, 170)
ALL = (slice(None),) * 3


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    path = tmp_path_factory.mktemp("brain") / "b.ome.zarr"
    seen = []
    count = write_brain(path, shape=SHAPE, seed=3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen) == 2 * 2 * 2
    return path, count


def _table(path):
    with open(path.with_name("b_cells.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_every_cell_once_and_the_mask_as_many_components(brain):
    path, count = brain
    rows = _table(path)
    centres = np.array([[float(row[axis]) for axis in "zyx"] for row in rows])
    assert count == len(rows) == len(np.unique(centres, axis=0)) > 50
    assert [float(row["z_um"]) for row in rows] == [float(row["z"]) for row in rows]
    mask = open_volume(path / "labels" / "cells").read(ALL)
    assert mask.shape == SHAPE and set(np.unique(mask)) == {0, 1}
    labels, found = cc3d.connected_components(mask, connectivity=26, return_N=True)
    assert found == count
    middles = cc3d.statistics(labels)["centroids"][1:]
    distances, which = cKDTree(middles).query(centres)
    assert distances.max() < 0.5 and len(set(which)) == count


def test_cells_are_brighter_than_tissue_and_the_outside_is_empty(brain):
    path, _ = brain
    image, mask = open_volume(path).read(ALL), open_volume(path / "labels" / "cells").read(ALL)
    tissue = image[(image > 0) & (mask == 0)]
    assert 150 < np.median(tissue) < 250
    assert np.percentile(image[mask == 1], 5) > np.percentile(tissue, 99)
    assert image[0, 0, 0] == image[-1, -1, -1] == 0 and (image == 0).mean() > 0.4


@pytest.mark.parametrize("start", [(0, 0, 0), (64, 50, 31), (100, 120, 90)])
def test_any_block_alone_is_what_the_whole_has_there(brain, start):
    path, _ = brain
    size = (50, 61, 40)
    image, mask = Brain(SHAPE, 3).block(start, size)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    np.testing.assert_array_equal(image, open_volume(path).read(box))
    np.testing.assert_array_equal(mask, open_volume(path / "labels" / "cells").read(box))


def test_coarser_levels_are_means_and_sizes_double(brain):
    path, _ = brain
    whole = open_volume(path).read(ALL).astype(float)
    half = open_volume(path, level=1)
    assert half.levels == 3 and half.voxel_size_um == (2.0, 2.0, 2.0)
    expected = whole.reshape(75, 2, 100, 2, 85, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(half.read(ALL), expected, atol=0.51)
    assert open_volume(path, level=2).shape == (38, 50, 43)


def test_seeds_differ_and_repeat(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_brain(tmp_path / f"{name}.zarr", shape=(64, 80, 70), seed=seed)
    files = {name: sorted((tmp_path / f"{name}.zarr").rglob("*")) for name in "abc"}
    for one, other in zip(files["a"], files["b"], strict=True):
        if one.is_file() and one.name != "zarr.json":
            assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "a_cells.csv").read_text() == (tmp_path / "b_cells.csv").read_text()
    assert (tmp_path / "a_cells.csv").read_text() != (tmp_path / "c_cells.csv").read_text()


def test_blocks_outside_the_tissue_are_not_stored(tmp_path):
    write_brain(tmp_path / "b.ome.zarr", shape=(64, 512, 512), seed=0)
    chunks = [file for file in (tmp_path / "b.ome.zarr" / "0" / "c").rglob("*") if file.is_file()]
    assert 40 <= len(chunks) < 64
    assert json.loads((tmp_path / "b.ome.zarr" / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("b.zarr", (32, 90, 90), "at least 64"),
        ("b.tif", (64, 64, 64), r"end in \.zarr"),
        ("there.zarr", (64,) * 3, "exists"),
    ],
)
def test_what_cannot_be_generated_is_refused(tmp_path, name, shape, match):
    (tmp_path / "there.zarr").mkdir()
    with pytest.raises(BrainError, match=match):
        write_brain(tmp_path / name, shape=shape)
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob("*.tmp"))
