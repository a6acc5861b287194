"""`lsmfm evaluate` on one volume of any size: block by block it gives the figures of the whole in memory."""

import csv

import numpy as np
import pytest
from brain_runs import blobs, copying, in_memory
from scipy import ndimage

from lsmfm_jax.cli import main
from lsmfm_jax.data.labels import LabelError, LabelValues
from lsmfm_jax.data.mask_folders import MaskFolderError
from lsmfm_jax.evaluate import EMPTY, NAMES, ROLLED, evaluate_folders, evaluate_volumes
from lsmfm_jax.evaluate.blocks import BLOCK_VOXELS, block_side
from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.merge import merge
from lsmfm_jax.predict.output import INSTANCES, MASK
from lsmfm_jax.volumes.lazy import parse_box
from lsmfm_jax.volumes.nifti import write_nifti

SHAPE = (37, 45, 61)
WHOLE = ("cl_dice", "hausdorff_95_voxels")


def quiet(line):
    pass


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that objects lie over the borders of many blocks."""
    monkeypatch.setattr("lsmfm_jax.evaluate.blocks.BLOCK_SIDE", 16)
    monkeypatch.setattr("lsmfm_jax.evaluate.pair.block_side", lambda shape, chunks: (16, 13, 19))


def sides():
    """A prediction and a truth: many objects, some of them shared, cut, split, merged or missing."""
    smooth = [ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 2.0) for seed in (0, 1)]
    truth = smooth[0] > np.quantile(smooth[0], 0.88)
    mixed = 0.8 * smooth[0] + 0.5 * smooth[1]
    return mixed > np.quantile(mixed, 0.9), truth


def labelled(mask, order=1):
    labels = ndimage.label(mask)[0]
    # Numbers with gaps and in another order than along the blocks, as tools have them.
    return ((labels.max() + 1 - labels)[::order] * 7 * (labels > 0)).astype(np.uint32)


def both_ways(tmp_path, prediction, truth, **how):
    """Scores by method of the same arrays, by blocks and by the folders that are read whole."""
    found = []
    for side, array in (("pred", prediction), ("label", truth)):
        (tmp_path / side).mkdir(exist_ok=True)
        np.save(tmp_path / side / "brain_1.npy", array)
    paths = [tmp_path / side / "brain_1.npy" for side in ("pred", "label")]
    by_blocks = evaluate_volumes(*paths, tmp_path / "blocks.csv", print_line=quiet, **how)
    whole = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "whole.csv", **how)
    for result in (by_blocks, whole):
        assert [(row.patch, row.volume) for row in result.rows] == [("brain_1", "brain_1")] * 3
        found.append({row.method: row.scores for row in result.rows})
    assert list(found[0]) == list(found[1]) == ["prediction", EMPTY, ROLLED]
    assert by_blocks.settings == whole.settings
    return found


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("kinds", ["masks", "labels", "labels against a mask", "probabilities"])
def test_blocks_give_the_figures_of_the_whole(tmp_path, kinds, connectivity):
    prediction, truth = sides()
    if kinds == "labels":
        prediction, truth = labelled(prediction), labelled(truth)
    elif kinds == "labels against a mask":
        prediction = labelled(prediction)
    elif kinds == "probabilities":
        prediction = np.where(prediction, 0.75, 0.3).astype(np.float32)
    how = {"connectivity": connectivity, "minimum_voxels": 4, "match_dice": 0.2}
    blocks, whole = both_ways(tmp_path, prediction, truth.astype(np.uint32), **how)
    for method, scores in whole.items():
        assert blocks[method] == pytest.approx(scores, rel=1e-12), method
    scores = blocks["prediction"]
    assert 0.3 < scores["dice"] < 0.9 and 0.2 < scores["iou"] < scores["dice"]
    assert all(scores[name] > 3 for name in ("true_positives", "false_positives", "false_negatives"))
    assert scores["detection_true_positives"] > 3


@pytest.mark.parametrize("kind", ["mask", "labels"])
def test_voxels_that_nobody_annotated_count_nowhere(tmp_path, kind):
    prediction, truth = sides()
    truth = truth.astype(np.uint8) if kind == "mask" else labelled(truth)
    truth[:, 20:31] = 255
    values = LabelValues(ignore=(255,), names=NAMES)
    how = {"values": values, "spacing_um": (2.0, 1.0, 1.0), "match_distance_um": 3.0}
    blocks, whole = both_ways(tmp_path, prediction.astype(np.uint8), truth, **how)
    for method, scores in whole.items():
        assert blocks[method] == pytest.approx(scores, rel=1e-12), method
    nothing = np.full(SHAPE, 255, np.uint8)
    np.save(tmp_path / "none.npy", nothing)
    with pytest.raises(MaskFolderError, match=r"none\.npy: every voxel has a value of --ignore"):
        evaluate_volumes(
            tmp_path / "pred" / "brain_1.npy", tmp_path / "none.npy", tmp_path / "n.csv", **how, print_line=quiet
        )


def test_what_needs_the_whole_is_left_out_by_name_where_it_does_not_fit(tmp_path):
    prediction, truth = sides()
    blocks, whole = both_ways(tmp_path, prediction, truth)
    paths = [tmp_path / side / "brain_1.npy" for side in ("pred", "label")]
    result = evaluate_volumes(*paths, tmp_path / "s.csv", max_ram_bytes=10**6, print_line=quiet)
    assert result.notes == [
        "cl_dice and hausdorff_95_voxels left out: they need both volumes whole, about 6 MiB, and --max-ram is 1 MiB"
    ]
    for row in result.rows:
        assert row.scores == {name: value for name, value in blocks[row.method].items() if name not in WHOLE}
        assert set(whole[row.method]) - set(row.scores) == set(WHOLE)


def test_two_empty_volumes_are_alike(tmp_path):
    blocks, whole = both_ways(tmp_path, *[np.zeros(SHAPE, np.uint8)] * 2)
    assert blocks == whole and blocks["prediction"]["panoptic_quality"] == 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A brain, a prediction of all of it and of a box, its truth, and its objects as points."""
    folder = tmp_path_factory.mktemp("results")
    array = blobs((50, 60, 70))
    network = copying(network=lambda windows: windows)
    for name, box in (("whole", None), ("box", "11:43,7:60,20:66")):
        settings = BrainSettings(
            shard=(32, 32, 32), threshold=0.6, skip_blank=False, box=None if box is None else parse_box(box)
        )
        predict_brain(network, in_memory(array), folder / f"{name}.ome.zarr", settings=settings, print_line=quiet)
        merge(folder / f"{name}.ome.zarr", print_line=quiet)
    low, high = np.percentile(array, (1, 99))
    np.save(folder / "truth.npy", ((array - low) / (high - low) > 0.7).astype(np.uint8))
    with (folder / "whole.ome.zarr" / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [",".join(row[f"centroid_{axis}"] for axis in "zyx") for row in rows]
    (folder / "cells.csv").write_text("z,y,x\n" + "\n".join(lines) + "\n")
    return folder


def test_the_command_judges_a_result_by_its_instances(results, tmp_path, capsys):
    arguments = ["evaluate", "--label", str(results / "truth.npy"), "--out", str(tmp_path / "s.csv")]
    assert main([*arguments, "--pred", str(results / "whole.ome.zarr")]) == 0
    said = capsys.readouterr().out
    assert "predictions labels, labels mask" in said and "cl_dice" in said
    first = evaluate_volumes(results / "whole.ome.zarr" / INSTANCES.group, results / "truth.npy", tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert float(rows[0]["dice"]) == pytest.approx(first.rows[0].scores["dice"], rel=1e-5)
    assert 0.5 < first.rows[0].scores["dice"] < 1 == first.rows[0].scores["recall"]
    mask = evaluate_volumes(results / "whole.ome.zarr", results / "truth.npy", tmp_path / "m.csv", kind="mask")
    assert mask.settings["predictions"] == "mask"
    assert mask.rows[0].scores["dice"] == first.rows[0].scores["dice"]


def test_a_result_of_a_box_is_judged_by_that_box_of_the_truth(results, tmp_path):
    found = evaluate_volumes(results / "box.ome.zarr", results / "truth.npy", tmp_path / "s.csv", print_line=quiet)
    box = parse_box("11:43,7:60,20:66")
    np.save(tmp_path / "cut.npy", np.load(results / "truth.npy")[box])
    cut = evaluate_volumes(
        results / "box.ome.zarr" / MASK.group, tmp_path / "cut.npy", tmp_path / "c.csv", print_line=quiet
    )
    assert found.rows[0].scores["dice"] == cut.rows[0].scores["dice"] > 0.5
    assert found.rows[0].scores["true_positives"] > 3
    with pytest.raises(MaskFolderError, match="for a result of lsmfm predict --box name the result itself"):
        evaluate_volumes(results / "box.ome.zarr" / MASK.group, results / "truth.npy", tmp_path / "c.csv")


@pytest.mark.parametrize("name", ["whole", "box"])
def test_points_are_a_truth_for_counting(results, tmp_path, name):
    found = evaluate_volumes(results / f"{name}.ome.zarr", results / "cells.csv", tmp_path / "s.csv", print_line=quiet)
    scores = found.rows[0].scores
    assert found.settings["labels"] == "points" and set(scores) == {key for key in scores if "detection" in key}
    assert scores["detection_true_positives"] > 3
    if name == "whole":
        assert scores["detection_f1"] == 1
    else:
        # Points outside of the box are no misses.
        assert scores["detection_false_negatives"] < 5


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    prediction, truth = sides()
    np.save(tmp_path / "p.npy", prediction)
    np.save(tmp_path / "image.npy", (blobs(SHAPE) * 3))
    out = tmp_path / "s.csv"
    with pytest.raises(LabelError, match=r"image\.npy: it has \d+ values .* change from voxel to voxel"):
        evaluate_volumes(tmp_path / "p.npy", tmp_path / "image.npy", out, print_line=quiet)
    with pytest.raises(MaskFolderError, match=r"has the shape .*: both must be of the same voxels"):
        evaluate_volumes(tmp_path / "p.npy", results / "truth.npy", out, print_line=quiet)
    np.save(tmp_path / "odd.npy", np.where(np.arange(SHAPE[0])[:, None, None] < 20, prediction, 255 * truth))
    with pytest.raises(LabelError, match="label value 255 stands beside 0, 1"):
        evaluate_volumes(tmp_path / "p.npy", tmp_path / "odd.npy", out, label_kind="auto", print_line=quiet)
    for name, first in (("a", 1.0), ("b", -1.0)):
        write_nifti(tmp_path / f"{name}.nii", truth.astype(np.uint8), affine=np.diag([first, 1.0, 1.0, 1.0]))
    with pytest.raises(MaskFolderError, match="differ in their affines"):
        evaluate_volumes(tmp_path / "a.nii", tmp_path / "b.nii", out, print_line=quiet)
    with pytest.raises(MaskFolderError, match="threshold is 2, but"):
        evaluate_volumes(tmp_path / "p.npy", tmp_path / "p.npy", out, threshold=2.0, print_line=quiet)
    assert not out.exists()


def test_a_volume_against_a_folder_is_refused(results, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.npy", np.zeros((4, 4, 4), np.uint8))
    arguments = ["evaluate", "--pred", str(results / "whole.ome.zarr"), "--out", str(tmp_path / "s.csv")]
    assert main([*arguments, "--label", str(tmp_path / "folder")]) == 2
    assert "is one volume and" in capsys.readouterr().err
    assert main([*arguments, "--label", str(results / "truth.npy"), "--pattern", "(.+)_x"]) == 2
    assert "--pattern: it pairs the files of two folders" in capsys.readouterr().err


@pytest.mark.parametrize("chunks", [[(1, 3000, 3000)], [(64, 64, 64), (1, 1, 5000)], [(256, 256, 256)], [(1, 1, 1)]])
def test_blocks_hold_whole_chunks_and_stay_small(chunks):
    sides = block_side((2000, 3000, 5000), chunks)
    assert np.prod(sides) <= BLOCK_VOXELS and all(1 <= side <= 5000 for side in sides)
    large = np.max(chunks, axis=0)
    # At most one axis is cut within a chunk.
    assert sum(side % chunk != 0 for side, chunk in zip(sides, large, strict=True)) <= 1
