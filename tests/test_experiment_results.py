"""The figures of an experiment against numpy, scipy and scikit-learn, and the forms in which they are written."""

import csv
import dataclasses
import pathlib

import matplotlib.image
import numpy as np
import pytest
import scipy.ndimage
from experiment_process import ARMS, METRICS, declared, score, stand_in
from labelled_toy import write_patch
from sklearn.metrics import f1_score

from lsmfm_jax.experiment.command import run_experiment
from lsmfm_jax.experiment.declaration import DataType
from lsmfm_jax.experiment.figures import draw_figures
from lsmfm_jax.experiment.grid import Cell, expand
from lsmfm_jax.experiment.page import write_results
from lsmfm_jax.experiment.prepare import prepare
from lsmfm_jax.experiment.results import collect
from lsmfm_jax.experiment.scores import FOUND_CLASS, TRUE_CLASS, predicted_classes, predicted_volumes
from lsmfm_jax.experiment.splits import read_sides, split_path
from lsmfm_jax.experiment.statistics import (
    difference_of,
    gains,
    holm,
    mean_of,
    metric_table,
    p_value_of,
    summary,
    verdict,
)
from lsmfm_jax.experiment.tables import latex
from lsmfm_jax.metrics.intervals import bootstrap_difference, difference_p_value


def test_holm_against_an_example_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; none may be smaller than one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
    adjusted = holm([0.02, float("nan"), 0.03])
    assert adjusted[0] == pytest.approx(0.04) and np.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


def test_verdicts_are_of_the_corrected_p():
    assert [verdict(0.1, 0.049), verdict(-0.1, 0.049), verdict(0.1, 0.05)] == ["better", "worse", "not shown"]
    assert verdict(0.1, float("nan")) == "cannot be told: fewer than 3 test volumes"


def test_the_p_value_is_where_the_interval_just_holds_zero():
    random = np.random.default_rng(0)
    a, b = random.normal(1.2, 1, (3, 12)), random.normal(0, 1, (2, 12))
    volumes = list("aabbccddeeff")
    p = difference_p_value(a, b, volumes=volumes)
    assert 0.01 < p < 0.9
    wider = bootstrap_difference(a, b, volumes=volumes, confidence=1 - 0.9 * p)
    narrower = bootstrap_difference(a, b, volumes=volumes, confidence=1 - 1.1 * p)
    assert wider.low < 0 < wider.high and not narrower.low < 0 < narrower.high
    assert difference_p_value(b, a, volumes=volumes) == pytest.approx(p, abs=0.1)
    # Three volumes cannot show anything at 5 %, however large the difference; six can.
    apart = difference_p_value(a + 100, b, volumes=list("aaaabbbbcccc"), resamples=20000)
    assert 0.07 < apart < 0.1 and difference_p_value(a + 100, b, volumes=volumes) < 0.05
    assert np.isnan(difference_p_value(a, b, volumes=["a"] * 6 + ["b"] * 6))


def test_p_values_of_no_difference_are_about_uniform():
    random = np.random.default_rng(1)
    volumes = [f"v{k // 2}" for k in range(20)]
    found = []
    for _ in range(150):
        patches, centres = random.normal(0, 1, 20), np.repeat(random.normal(0, 1, 10), 2)
        a, b = (patches + sign * centres + random.normal(0, 1, (3, 20)) for sign in (0, 1))
        found.append(difference_p_value(a, b, volumes=volumes, resamples=400))
    assert np.mean(np.array(found) < 0.05) < 0.12 and 0.3 < np.mean(found) < 0.7


def test_macro_f1_is_that_of_scikit_learn_in_each_resample():
    random = np.random.default_rng(2)
    patches = [f"p{k}" for k in range(24)]
    truth = random.integers(0, 4, 24)
    runs = [
        {
            patch: {TRUE_CLASS: float(truth[k]), FOUND_CLASS: float(random.integers(0, 4))}
            for k, patch in enumerate(patches)
        }
        for _ in range(3)
    ]
    found = [np.array([run[patch][FOUND_CLASS] for patch in patches]) for run in runs]
    volumes = [f"v{k // 2}" for k in range(24)]
    interval = mean_of(runs, patches, "macro_f1", volumes)
    assert interval.value == pytest.approx(np.mean([f1_score(truth, one, average="macro") for one in found]))
    assert interval.low < interval.value < interval.high and interval.units == 12
    # One volume drawn twice counts twice.
    table, statistic = metric_table(runs, patches, "macro_f1")
    weights = random.integers(0, 3, (5, 24)).astype(float)
    figures = statistic(table, weights)
    for resample, row in zip(weights, figures, strict=True):
        drawn = np.repeat(np.arange(24), resample.astype(int))
        assert row == pytest.approx([f1_score(truth[drawn], one[drawn], average="macro") for one in found])
    same = (runs, runs, patches, "macro_f1", volumes)
    assert difference_of(*same).value == 0 and p_value_of(*same) > 0.5


def test_scores_are_read_from_the_tables_of_predict(tmp_path):
    table = tmp_path / "predictions.csv"
    table.write_text(
        "file,class,probability_b,probability_a,truth\nx/a_patch_1.nii.gz,b,.7,.3,a\nx/b_patch_2.nii.gz,b,.6,.4,b\n"
    )
    assert predicted_classes(table) == {
        "a_patch_1": {"accuracy": 0.0, TRUE_CLASS: 0.0, FOUND_CLASS: 1.0},
        "b_patch_2": {"accuracy": 1.0, TRUE_CLASS: 1.0, FOUND_CLASS: 1.0},
    }
    table.write_text("file,psnr,psnr_blurred,ssim,ssim_blurred\nx/p_1_blurred.tif,30,25,.9,.8\n")
    assert predicted_volumes(table) == {
        "prediction": {"p_1": {"psnr": 30.0, "ssim": 0.9}},
        "blurred_input": {"p_1": {"psnr": 25.0, "ssim": 0.8}},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment of stand-ins, with its cells."""
    data, work = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("w")
    for kind in ("dense", "sparse"):
        for number in range(8):
            write_patch(data, f"{kind}_patch_{number:03d}_vol{number // 2:03d}_ch0", size=8, seed=number)
    experiment = declared(data)
    assert run_experiment(experiment, work, run=stand_in, print_line=lambda line: None) == 0
    return experiment, work, expand(experiment)


def _figures(work: pathlib.Path, cells: list[Cell], metric: str, **of) -> dict[int, dict[str, float]]:
    """Of each seed the figure of each test patch, from the splits and the stand-in's rule alone."""
    found: dict[int, dict[str, float]] = {}
    for cell in cells:
        if all(getattr(cell, name) == value for name, value in of.items()):
            sides = read_sides(split_path(work, cell.task, cell.group, cell.fold), cell.size)
            for patch in sides.test:
                found.setdefault(cell.seed, {})[f"{cell.group}/{patch}"] = score(cell, patch, metric)
    return found


def test_the_table_has_what_numpy_finds(finished):
    _, work, cells = finished
    with (work / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 + 1) * 2 * 3 * len(METRICS)  # types and all of them, sizes, methods
    for row in rows:
        arm = "thresholds" if row["method"] == "otsu" else row["method"]
        of = {"size": int(row["size"]), **({} if row["type"] == "all types" else {"group": row["type"]})}
        mine = _figures(work, cells, row["metric"], arm=arm, **of)
        mean = np.mean([value for seed in mine.values() for value in seed.values()])
        assert float(row["mean"]) == pytest.approx(mean, rel=1e-5), row
        assert (int(row["seeds"]), int(row["patches"])) == (len(mine), len(mine[1]))
        if arm == "other":
            scratch = _figures(work, cells, row["metric"], arm="scratch", **of)
            other = np.mean([value for seed in scratch.values() for value in seed.values()])
            assert float(row["difference"]) == pytest.approx(mean - other, rel=1e-4) and row["against"] == "scratch"
            # The stand-in is better by exactly .1 with each seed and patch: only seeds are left to vary.
            assert float(row["difference_low"]) <= 0.1 <= float(row["difference_high"])
        else:
            assert row["against"] == row["difference"] == row["p_holm"] == ""
    claims = [row for row in rows if row["verdict"]]
    assert [(row["type"], row["size"], row["metric"]) for row in claims] == [
        ("all types", "3", "dice"),
        ("all types", "4", "dice"),
    ]
    assert [float(row["p_holm"]) for row in claims] == pytest.approx(
        holm([float(row["p"]) for row in claims]), rel=1e-4
    )
    # A constant difference and six volumes: the smallest p that they allow is about .014, and Holm doubles it.
    assert {row["volumes"] for row in claims} == {"6"} and {row["verdict"] for row in claims} == {"better"}
    assert all(0.01 < float(row["p"]) < 0.02 for row in claims)


def test_markdown_latex_page_and_figures_tell_the_same(finished):
    _, work, _ = finished
    lines = (work / "results.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| type |"))
    assert "foreground Dice | IoU | panoptic quality | detection F1 | clDice" in head
    row = next(line for line in lines if line.startswith("| dense | other | 3 |"))
    assert row.count("|") == head.count("|")
    page = (work / "experiment.html").read_text()
    interval = row.split(" | ")[3]
    assert (
        interval.replace(", ", ",\u00a0") in page
        and "60 of 60 cells done; ended" in page
        and "data:image/png;base64" in page
    )
    tex = (work / "results.tex").read_text()
    begun = tex.count("\\begin{tabular}")
    assert begun == tex.count("\\end{tabular}") == 2 and "network\\_" not in tex and "95 \\% intervals" in tex
    for line in tex.splitlines():
        if line.endswith("\\\\"):
            assert line.count("&") in (9, 8)
    assert (work / "figure_segment.png").read_bytes()[:4] == b"\x89PNG"


def test_one_size_has_a_figure_with_a_dot_for_each_method_and_type(finished, tmp_path):
    experiment, work, cells = finished
    results = collect(prepare(experiment, work), cells)
    one = [row for row in results.rows if row.size == 3]
    (path,) = draw_figures(dataclasses.replace(results, rows=one), tmp_path).values()
    colour = np.array([0x1F, 0x77, 0xB4]) / 255  # of dots and bars
    marked = np.abs(matplotlib.image.imread(path)[..., :3] - colour).max(-1) < 0.02
    solid = scipy.ndimage.binary_opening(marked, np.ones((6, 6)))  # bars are thinner than a dot
    assert scipy.ndimage.label(solid)[1] == len(one) == 9


def test_latex_escapes_what_it_must(finished):
    experiment, work, cells = finished
    results = collect(prepare(experiment, work), cells)
    odd = dataclasses.replace(results.rows[0], method="a_b&c%")
    assert "a\\_b\\&c\\% &" in latex(dataclasses.replace(results, rows=[odd], claims=[]))


def test_a_page_of_part_of_the_cells_says_so_and_loads_itself_anew(finished, tmp_path):
    experiment, _, cells = finished
    place = prepare(experiment, tmp_path / "w")
    some = [cell for cell in cells if cell.seed == 1 or cell.fold == 1]
    for cell in some:
        stand_in(place, cell)
    results = write_results(place, cells, running=True)
    page = (tmp_path / "w" / "experiment.html").read_text()
    assert f"{len(some)} of 60 cells done; running" in page and 'http-equiv="refresh"' in page
    # The second seed has one fold of three: it waits until it has them all.
    assert {len(row.runs) for row in results.rows} == {1} and {len(row.volumes) for row in results.rows} == {3, 6}


def test_the_paper_stands_beside_the_same_metric_alone(finished, tmp_path):
    experiment, _, cells = finished
    study = experiment.studies[0]
    types = (DataType("dense", "dense", paper="Cell Nucleus"), DataType("sparse", "sparse"))
    arms = (dataclasses.replace(ARMS[0], paper="Scr UNet"), *ARMS[1:])
    study = dataclasses.replace(study, types=types, arms=arms, paper_sizes=(3, 4))
    place = prepare(dataclasses.replace(experiment, studies=(study,)), tmp_path / "w")
    for cell in cells:
        stand_in(place, cell)
    results = write_results(place, cells, running=False)
    beside = {(row.group, row.method, row.size): row.paper for row in results.rows if row.paper}
    assert beside == {
        ("dense", "scratch", 3): {"total_dice_paper": 0.75, "count_dice_paper": 0.86},
        ("dense", "scratch", 4): {"total_dice_paper": 0.80, "count_dice_paper": 0.88},
    }
    assert (tmp_path / "w" / "results.md").read_text().count("printed in the paper") == 2


def test_of_one_volume_no_interval_over_volumes_is_named():
    def runs(volumes):
        return [
            {f"patchvolume_{v}_{i}": {"dice": 0.1 * i + 0.01 * seed} for i, v in enumerate(volumes)} for seed in (1, 2)
        ]

    for volumes, named in (((7, 7, 7), False), ((7, 7, 8), True)):
        found = summary(runs(volumes))["dice"], gains(runs(volumes), runs(volumes))["dice"]
        for figures in found:
            assert None not in figures["seeds_and_patches_95"]
            assert ("seeds_and_volumes_95" in figures) == named


def test_draws_of_training_patches_are_compared_one_by_one():
    """Draws that differ by far more than the two methods do: paired, the difference is told; unpaired it is not."""
    draw, noise = np.random.default_rng(3), np.random.default_rng(4)
    patches = [f"patchvolume_{volume}_{index}" for volume in (11, 12, 13, 14) for index in (0, 1)]
    levels = draw.uniform(0.2, 0.8, 6)
    theirs = [{patch: {"dice": level} for patch in patches} for level in levels]
    ours = [{patch: {"dice": level + 0.1 + noise.normal(0, 0.01)} for patch in patches} for level in levels]
    paired = gains(ours, theirs, paired=True)["dice"]
    alone = gains(ours, theirs)["dice"]
    assert paired["mean"] == alone["mean"] == pytest.approx(0.1, abs=0.01)
    low, high = paired["seeds_and_volumes_95"]
    assert 0.08 < low < 0.1 < high < 0.12
    assert alone["seeds_and_volumes_95"][0] < 0
    # A run whose partner is another's is no pair: the same rows in another order.
    turned = gains(ours[1:] + ours[:1], theirs, paired=True)["dice"]["seeds_and_volumes_95"]
    assert turned[0] < 0
    with pytest.raises(ValueError, match="6 and 5 runs cannot be paired"):
        gains(ours, theirs[:5], paired=True)


def test_distances_to_empty_masks_on_both_sides_are_level():
    scores = {"patchvolume_1_0": {"hd95": np.inf}, "patchvolume_2_0": {"hd95": 2.0}}
    other = {"patchvolume_1_0": {"hd95": np.inf}, "patchvolume_2_0": {"hd95": 1.0}}
    assert gains([scores], [other], paired=True)["hd95"]["mean"] == 0.5
