"""`lsmfm next-boxes`: files that can be annotated where they lay in their images, a table, a picture, and refusals."""

import csv
import pathlib

import brain_runs
import nibabel
import numpy as np
import pytest
from brain_runs import copying, quiet

from lsmfm_jax.cli import main
from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.predict import next_boxes
from lsmfm_jax.predict.ensemble import Ensemble
from lsmfm_jax.predict.in_memory import Settings, segment
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.next_boxes import propose_boxes
from lsmfm_jax.predict.uncertainty import binary_entropy
from lsmfm_jax.volumes.names import volume_of
from lsmfm_jax.volumes.read import read_single

AFFINE = np.array([[-0.5, 0, 0, 3], [0, 0.7, 0.1, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
SIZE = (12, 12, 12)


def image_with(corner, *, shape=(24, 28, 32), seed=0):
    """Tissue of one brightness with a brighter cube of 12 voxels."""
    image = np.random.default_rng(seed).normal(300, 5, shape)
    image[tuple(slice(start, start + 12) for start in corner)] += 100
    return image.astype(np.uint16)


def save(path, zyx):
    nibabel.Nifti1Image(zyx.transpose(2, 1, 0), AFFINE).to_filename(path)
    return path


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def disagreeing(monkeypatch):
    """Two runs that agree on dark voxels and disagree on bright ones, without any network."""
    members = (copying(network=lambda x: np.zeros_like(x)), copying(network=lambda x: (x > 0.7).astype(np.float32)))
    monkeypatch.setattr(next_boxes, "load_ensemble", lambda *_, **__: Ensemble(members, "two functions"))
    return [pathlib.Path("run_a"), pathlib.Path("run_b")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return brain_runs.make_run(tmp_path_factory.mktemp("run"), "segment")


def test_boxes_are_where_the_runs_disagree_and_lie_where_they_lay(disagreeing, tmp_path):
    corners = {"mouse_1_5": (2, 3, 4), "mouse_1_6": (11, 15, 18), "mouse_2_7": (6, 8, 9)}
    for number, (name, corner) in enumerate(corners.items()):
        save(tmp_path / f"{name}.nii.gz", image_with(corner, seed=number))
    out, lines = tmp_path / "next", []
    propose_boxes(disagreeing, [tmp_path], out, count=3, size=SIZE, print_line=lines.append)
    rows = rows_of(out / "boxes.csv")
    assert {(row["volume"], int(row["z0"]), int(row["y0"]), int(row["x0"])) for row in rows} == {
        ("mouse_1", 2, 3, 4), ("mouse_1", 11, 15, 18), ("mouse_2", 6, 8, 9),
    }  # fmt: skip
    # In turns: the first two are of different volumes.
    assert {row["volume"] for row in rows[:2]} == {"mouse_1", "mouse_2"}
    assert "at most 2 of a volume" in "\n".join(lines) and "of 2 runs" in rows[0]["uncertainty"]
    for row in rows:
        corner, end = ([int(row[f"{axis}{i}"]) for axis in "zyx"] for i in (0, 1))
        assert [b - a for a, b in zip(corner, end, strict=True)] == list(SIZE)
        assert float(row["mean_uncertainty_bits"]) == pytest.approx(1.0, abs=0.05)
        image, info = read_single(row["file"])
        box, placed = read_single(out / row["box"])
        np.testing.assert_array_equal(box, image[tuple(slice(a, b) for a, b in zip(corner, end, strict=True))])
        assert box.dtype == image.dtype and volume_of(row["box"].removesuffix(".nii.gz")) == row["volume"]
        world = info.affine @ [*corner[::-1], 1]
        np.testing.assert_allclose(placed.affine @ [0, 0, 0, 1], world, atol=1e-4)
        inside = info.affine @ np.add([*corner[::-1], 1], [1, 2, 3, 0])
        np.testing.assert_allclose(placed.affine @ [1, 2, 3, 1], inside, atol=1e-4)
        # A label that is drawn on the box lies on it.
        assert on_grid_of(box, placed, like=placed, like_shape=box.shape).shape == box.shape
    assert (out / "boxes.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(out.glob("*.nii.gz"))) == 3
    # The same again, byte for byte.
    propose_boxes(disagreeing, [tmp_path], tmp_path / "again", count=3, size=SIZE, print_line=quiet)
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_without_an_affine_keep_their_place_too(disagreeing, tmp_path):
    np.save(tmp_path / "a.npy", image_with((6, 8, 9)))
    (row,) = propose_boxes(disagreeing, [tmp_path], tmp_path / "out", count=1, size=SIZE, print_line=quiet)
    assert row["box"] == "a_z00006_y00008_x00009.nii.gz"
    np.testing.assert_allclose(nibabel.load(tmp_path / "out" / row["box"]).affine[:3, 3], (9, 8, 6))


def test_one_run_by_the_command_line_uses_entropy_and_says_so(run, tmp_path, capsys):
    image = brain_runs.blobs((24, 24, 24), seed=4)
    save(tmp_path / "a.nii.gz", image)
    arguments = ["next-boxes", "--checkpoint", str(run), str(tmp_path / "a.nii.gz"), "--size", "12,12,12"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--count", "2"]) == 0
    printed = capsys.readouterr().out
    assert "entropy of the probability of one run, which has nobody to disagree with" in printed
    rows = rows_of(tmp_path / "out" / "boxes.csv")
    entropy = binary_entropy(segment(load_predictor(run), image, None, Settings()).probability)
    for row in rows:
        box = entropy[tuple(slice(int(row[f"{axis}0"]), int(row[f"{axis}1"])) for axis in "zyx")]
        assert float(row["mean_uncertainty_bits"]) == pytest.approx(box.mean(dtype=np.float64), rel=1e-4)
    assert len(rows) == 2
    # Labels may stand there by now.
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "did not write is there already" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "flips"), "--tta", "--count", "1"]) == 0
    assert "of the 8 flips of one run" in capsys.readouterr().out


def test_fewer_boxes_than_asked_for_are_told(disagreeing, tmp_path):
    save(tmp_path / "a.nii.gz", image_with((1, 1, 1), shape=(14, 14, 14)))
    save(tmp_path / "a_label.nii.gz", np.ones((14, 14, 14), np.uint8))
    lines = []
    rows = propose_boxes(disagreeing, [tmp_path], tmp_path / "out", count=3, size=SIZE, print_line=lines.append)
    assert len(rows) == 1 and "fewer than the 3 asked for" in "\n".join(lines)
    assert "1 of them have a label beside them already" in "\n".join(lines)


def test_what_cannot_be_used_is_refused_and_nothing_is_written(disagreeing, tmp_path):
    small = save(tmp_path / "small.nii.gz", image_with((1, 1, 1), shape=(10, 14, 14)))
    padded = np.zeros((24, 24, 24), np.uint16)
    padded[:6, :6, :6] = 100
    empty = save(tmp_path / "padded.nii.gz", padded)
    refused = {
        "its 10 x 14 x 14 voxels (ZYX) are fewer than a box of 12 x 12 x 12 takes": {"inputs": [small]},
        "no box of 12 x 12 x 12 voxels is left: all have too much padding": {"inputs": [empty]},
        "--count 0: from 1 to 1000": {"inputs": [small], "count": 0},
        "no such file or folder": {"inputs": [tmp_path / "absent.nii.gz"]},
    }
    for message, arguments in refused.items():
        with pytest.raises(PredictionError) as error:
            propose_boxes(disagreeing, out=tmp_path / "out", size=SIZE, print_line=quiet, **arguments)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


def test_only_segmentation_proposes_boxes(monkeypatch, tmp_path):
    monkeypatch.setattr(next_boxes, "load_ensemble", lambda *_, **__: copying(task="deblur"))
    with pytest.raises(PredictionError, match="a run of task 'deblur'; boxes are proposed by segmentation"):
        propose_boxes([tmp_path], [tmp_path], tmp_path / "out", print_line=quiet)
