"""Whole volumes: threads, progress and the metadata of results."""

import io
import json

import numpy as np
import pytest
from brain_runs import blobs, in_memory, make_run, quiet, written
from brain_runs import predict_copy as predict

from lsmfm_jax.predict.background import Behind, ahead
from lsmfm_jax.predict.output import MASK, PROBABILITY
from lsmfm_jax.predict.progress import Progress

GIB = 2**30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), "segment")


# --- threads and progress ---


def test_an_exception_of_a_thread_comes_through():
    def items():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ahead(items()))
    done = []
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.do(lambda: done.append(1))
        behind.do(lambda: (_ for _ in ()).throw(OSError("full")))
        behind.do(lambda: None)
        behind.do(lambda: None)
    assert done == [1]


def test_progress_is_a_line_now_and_then_or_a_line_that_is_renewed():
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    for terminal in (False, True):
        now, lines, stream = [0.0], [], Stream()
        progress = Progress("x", 100_000_000, print_line=lines.append, stream=stream, clock=lambda now=now: now[0])
        for _ in range(50):
            now[0] += 2.0
            progress.add(1_000_000)
        progress.end()
        shown = stream.getvalue()
        assert (not lines and shown.count("\r") == 51) if terminal else (len(lines) == 3 and not shown)
        shown = lines[0] if lines else shown
        assert "Mvoxel/s" in shown and "left" in shown
    now = [0.0]
    progress = Progress("x", 100_000_000, print_line=quiet, clock=lambda: now[0])
    now[0] = 32.0
    progress.add(16_000_000)
    assert progress.line() == "x: 16% of 100.0 Mvoxel, 0.5 Mvoxel/s, 32 s, 2 min 48 s left"


# --- metadata ---


def test_metadata_have_what_ome_zarr_asks_for(tmp_path):
    from lsmfm_jax.predict.merge import merge

    array = np.zeros((20, 600, 40), np.uint16)
    array[:, 100:140] = blobs((20, 40, 40))
    predict(in_memory(array, voxel_size_um=(5.0, 1.0, 1.0)), tmp_path / "r.ome.zarr")
    merge(tmp_path / "r.ome.zarr", print_line=quiet)
    root = json.loads((tmp_path / "r.ome.zarr" / "zarr.json").read_text())
    assert root["zarr_format"] == 3 and root["node_type"] == "group"
    labels = json.loads((tmp_path / "r.ome.zarr" / "labels" / "zarr.json").read_text())["attributes"]["ome"]
    assert labels == {"version": "0.5", "labels": ["mask", "instances"]}
    groups = {"": root["attributes"]["ome"]}
    for name in labels["labels"]:
        groups[f"labels/{name}"] = json.loads((tmp_path / f"r.ome.zarr/labels/{name}/zarr.json").read_text())[
            "attributes"
        ]["ome"]
        assert groups[f"labels/{name}"]["image-label"]["source"] == {"image": "../../"}
    levels = {len(ome["multiscales"][0]["datasets"]) for ome in groups.values()}
    assert levels == {3}  # as many for labels as for the image
    for path, ome in groups.items():
        assert ome["version"] == "0.5"
        (multiscale,) = ome["multiscales"]
        assert {"name", "type", "metadata"} <= set(multiscale)
        assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
        assert all(axis["type"] == "space" and axis["unit"] == "micrometer" for axis in multiscale["axes"])
        for level, dataset in enumerate(multiscale["datasets"]):
            scale, translation = dataset["coordinateTransformations"]
            assert scale["type"] == "scale" and translation["type"] == "translation"
            # Z is coarse already, so it is not halved before Y and X are as coarse.
            assert scale["scale"] == [5.0, 2.0**level, 2.0**level]
            assert translation["translation"] == [0.0, (2**level - 1) / 2, (2**level - 1) / 2]
            metadata = json.loads((tmp_path / "r.ome.zarr" / path / dataset["path"] / "zarr.json").read_text())
            assert metadata["dimension_names"] == ["z", "y", "x"] and metadata["zarr_format"] == 3
            assert metadata["shape"] == [20, -(-600 // 2**level), -(-40 // 2**level)]
            assert metadata["codecs"][0]["name"] == "sharding_indexed"
            assert np.dtype(metadata["data_type"]).kind == "u"
    fine, coarse = written(tmp_path / "r.ome.zarr", PROBABILITY), written(tmp_path / "r.ome.zarr", PROBABILITY, level=1)
    np.testing.assert_allclose(coarse, fine.reshape(20, 300, 2, 20, 2).mean(axis=(2, 4)), atol=0.5)
    fine, coarse = written(tmp_path / "r.ome.zarr", MASK), written(tmp_path / "r.ome.zarr", MASK, level=2)
    np.testing.assert_array_equal(coarse, fine.reshape(20, 150, 4, 10, 4).max(axis=(2, 4)))


def test_a_mask_alone_is_shown_by_the_root(tmp_path):
    predict(in_memory(blobs((20, 20, 20))), tmp_path / "r.ome.zarr", outputs=("mask",))
    root = json.loads((tmp_path / "r.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    (dataset,) = root["multiscales"][0]["datasets"]
    assert dataset["path"] == "labels/mask/0" and (tmp_path / "r.ome.zarr" / dataset["path"] / "zarr.json").exists()
    assert not (tmp_path / "r.ome.zarr" / "0").exists()
