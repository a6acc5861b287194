"""Zero-shot classification: prompts as an ensemble, figures against counting by hand, and what is refused."""

import csv
import json

import numpy as np
import pytest
from labelled_toy import write_patch
from sklearn.metrics import f1_score
from tiny_pretrained import make_run

import lsmfm_jax
from lsmfm_jax.cli import main
from lsmfm_jax.metrics.zero_shot import chance, class_vectors, nearest_class, table_lines
from lsmfm_jax.volumes.read import read_single

PROMPTS = {"dense": ["Many round nuclei.", "nuclei nuclei"], "sparse": "A lone cell.", "Vessel-like": "round"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, patches of two classes of which it trained on some, and texts for three."""
    folder = tmp_path_factory.mktemp("zeroshot")
    run, patches = make_run(folder, patches=6)
    write_patch(patches, "dense_patch_100_vol100_ch0", size=18, seed=100, balls=6)
    write_patch(patches, "other_patch_101_vol101_ch0", size=16, seed=101)
    (folder / "classes.json").write_text(json.dumps(PROMPTS))
    return run, patches, folder / "classes.json"


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["zeroshot", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_table_and_the_figures_are_those_of_the_vectors(run, tmp_path, capsys):
    folder, patches, classes = run
    out = tmp_path / "out"
    arguments = ["zeroshot", folder, patches, "--classes", classes, "--out", out, "--random-draws", "2"]
    assert main([str(part) for part in arguments]) == 0
    said = capsys.readouterr().out
    with (out / "zeroshot.csv").open() as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((out / "summary.json").read_text())
    assert len(rows) == 7 and summary["patches"]["left_out"] == 1 and summary["volumes"] == 7

    model = lsmfm_jax.load(folder)
    names = ["dense", "sparse", "vessel_like"]
    vectors = []
    for texts in (PROMPTS["dense"], [PROMPTS["sparse"]], [PROMPTS["Vessel-like"]]):
        mean = model.embed_text(texts).mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    for row in rows:
        cosines = np.stack(vectors) @ model.embed(read_single(row["file"])[0])
        np.testing.assert_allclose([float(row[f"cosine_{name}"]) for name in names], cosines, atol=2e-6)
        assert row["predicted"] == names[int(np.argmax(cosines))]
        assert row["correct"] == str(int(row["predicted"] == row["class"]))
    right = [row["predicted"] == row["class"] for row in rows]
    assert summary["scores"]["top1"]["value"] == pytest.approx(np.mean(right))
    truth, predicted = ([row[name] for row in rows] for name in ("class", "predicted"))
    expected = f1_score(truth, predicted, average="macro", zero_division=0)
    assert summary["scores"]["macro_f1"]["value"] == pytest.approx(expected)
    low, high = summary["scores"]["top1"]["interval_95_over_volumes"]
    assert 0 <= low <= np.mean(right) <= high <= 1 and summary["scores"]["top1"]["volumes"] == 7
    assert summary["chance"]["top1"] == pytest.approx(1 / 3)
    assert summary["chance"]["top1_most_common"] == pytest.approx(4 / 7)
    # Four dense patches and three sparse ones: a random candidate is of the query's class so often.
    by_class = (4 * 4 + 3 * 3) / 49
    assert summary["chance"]["image_to_text_top1"] == pytest.approx(by_class)
    assert len(summary["random_weights"]["top1"]) == 2
    ahead = summary["top1_ahead_of_random_weights"]["value"]
    assert ahead == pytest.approx(np.mean(right) - np.mean(summary["random_weights"]["top1"]))
    # The run has a validation side: not all of its six patches were trained on.
    assert 0 < summary["patches"]["trained_on"] < 6
    for words in (
        "of these patches are among those that the run trained on",
        "classes without a patch",
        "vessel_like",
        "true class",
        "random weights (2 draws)",
    ):
        assert words in said, words
    with (out / "confusion.csv").open() as file:
        matrix = list(csv.DictReader(file))
    assert sum(int(row[f"predicted {name}"]) for row in matrix for name in names) == 7
    # Its own folder it takes again; a folder of somebody else's is left alone.
    assert "--random-draws 101" in refused(capsys, *arguments[1:-1], "101")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("mine")
    line = refused(capsys, folder, patches, "--classes", classes, "--out", tmp_path / "mine")
    assert "did not write is there already" in line and (tmp_path / "mine" / "summary.json").read_text() == "mine"


def test_what_cannot_be_used_is_refused(run, tmp_path, capsys):
    folder, patches, classes = run
    one = tmp_path / "one.json"
    one.write_text('{"dense": "Nuclei."}')
    assert "1 class with a text; two or more" in refused(capsys, folder, patches, "--classes", one)
    one.write_text('{"dense": 3, "sparse": "One."}')
    assert "one.json, key 'dense'" in refused(capsys, folder, patches, "--classes", one)
    one.write_text('{"axons": "Axons.", "tracts": "Tracts."}')
    line = refused(capsys, folder, patches, "--classes", one)
    assert "no patch is of one of the classes axons, tracts; its 8 patches are of dense, other, sparse" in line
    assert "none.json" in refused(capsys, folder, patches, "--classes", tmp_path / "none.json")
    assert "must stand in the folder of its class" in refused(
        capsys, folder, patches, "--classes", classes, "--class-from", "folder"
    )
    assert "no run.json there" in refused(capsys, tmp_path, patches, "--classes", classes)
    assert "is not a folder" in refused(capsys, folder, tmp_path / "absent", "--classes", classes)
    line = refused(capsys, folder, patches, "--classes", classes, "--random-draws", "-1")
    assert "--random-draws -1: between 0 and 100" in line


def test_prompts_of_a_class_are_averaged_at_length_1():
    prompts = np.array([[3.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    vectors = class_vectors(prompts, np.array([0, 0, 1]))
    np.testing.assert_allclose(vectors, [[0.5**0.5, 0.5**0.5], [-1.0, 0.0]])
    predicted, cosines = nearest_class(np.array([[1.0, 0.0], [-0.8, 0.6]]), vectors)
    assert predicted.tolist() == [0, 1] and cosines[1, 1] == pytest.approx(0.8)


def test_chance_is_what_guesses_give():
    truth = np.repeat([0, 1], [30, 10])
    found = chance(truth, classes=2)
    assert found["top1"] == 0.5 and found["top1_most_common"] == 0.75
    # Half of each class is guessed: precision .75 and .25, recall .5.
    expected = (2 * 0.75 * 0.5 / 1.25 + 2 * 0.25 * 0.5 / 0.75) / 2
    assert found["macro_f1"] == pytest.approx(expected, abs=0.02)


def test_the_confusion_table_is_aligned():
    lines = table_lines(np.array([[10, 2], [0, 123]]), ("nuclei", "vessel"))
    assert lines == ["true class  nuclei  vessel", "nuclei          10       2", "vessel           0     123"]
