"""Experiments are found, checked and expanded; what the paper prints stands at the right place."""

import dataclasses
import re

import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.config.declared import known
from lsmfm_jax.config.recipes import recipes_folder
from lsmfm_jax.config.workdir import first_difference
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, ExperimentError, Study, check
from lsmfm_jax.experiment.grid import expand
from lsmfm_jax.experiment.load import FOLDER, load_experiment
from lsmfm_jax.experiment.paper import FEW, MANY, printed
from lsmfm_jax.experiment.prepare import check_recipes, prepare, with_inputs

ARMS = (
    Arm("scratch", "segment_unet:tiny"),
    Arm("other", "segment_unet:tiny", {"optim.learning_rate": 1e-3}, against="scratch"),
    Arm("thresholds", BASELINES, against="scratch"),
)
SMALL = Experiment("small", (Study("segment", (DataType("a", "a"), DataType("b", "b")), ARMS, sizes=(3, 6)),))


def test_cells_are_the_product_with_baselines_once():
    cells = expand(SMALL)
    assert len(cells) == 2 * 2 * 2 * 3 * 3 + 2 * 2 * 3  # arms x types x sizes x folds x seeds, and of the first seed
    assert len({cell.key for cell in cells}) == len(cells)
    position = {cell.key: place for place, cell in enumerate(cells)}
    for cell in cells:
        assert all(position[other] < position[cell.key] for other in cell.after)
    (fitted,) = [c for c in cells if (c.arm, c.group, c.size, c.fold) == ("thresholds", "b", 6, 2)]
    assert fitted.after == ("cells/segment/b/scratch/size6/fold2/seed1",)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("table1", 4 * 6 * 3 * (6 * 3 + 1)),
        ("table1:tiny", 2 + 3 * 1 * 3 * (3 + 1)),
        ("table2", 4 * 3 * (7 * 3 + 1) + 4 * 6 * 3 * 6 * 3),
        ("table2:tiny", 1 + 3 * (3 + 1) + 2 * 3 * 2),
        ("few_shot", 3 * 3 * (2 * 3 + 1)),
        ("few_shot:tiny", 2 * 3 * (2 + 1)),
    ],
)
def test_experiments_of_the_package_have_the_cells_that_they_promise(spec, count, tmp_path, capsys):
    assert main(["experiment", spec, "--workdir", str(tmp_path / "w"), "--dry-run"]) == 0
    printed_lines = capsys.readouterr().out.splitlines()
    assert printed_lines[0] == f"{count} cells, 0 done" and "not known" in printed_lines[-1]
    assert sum(int(line.split()[-1]) for line in printed_lines[1:-1]) == count
    assert not (tmp_path / "w").exists(), "nothing is written"
    name, _, variant = spec.partition(":")
    if not variant:
        promised = re.search(r"([\d,]+) cells", (recipes_folder() / FOLDER / f"{name}.py").read_text())[1]
        assert int(promised.replace(",", "")) == count


def test_a_wrong_name_variant_or_file_is_one_line(tmp_path, capsys):
    assert known(FOLDER) == ["few_shot", "table1", "table2"]
    broken = tmp_path / "broken.py"
    broken.write_text("def get_experiment(variant=''):\n    return 1 / 0\n")
    none = tmp_path / "none.py"
    none.write_text("def get_experiment(variant=''):\n    return 3\n")
    for spec, words in (
        ("table3", "neither in experiments of the package nor a file; there are few_shot, table1, table2"),
        ("table1:big", "variant 'big' is unknown; allowed: tiny, or none"),
        (str(broken), "ZeroDivisionError: division by zero"),
        (str(none), "returned a int; Experiment is needed"),
    ):
        assert main(["experiment", spec, "--workdir", str(tmp_path / "w")]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("changes", "study", "words"),
    [
        ({"folds": 1}, {}, "folds is 1; at least 2"),
        ({"seeds": (1, 1)}, {}, "no seed twice"),
        ({"validation_frac": 1.0}, {}, "validation_frac is 1.0"),
        ({"studies": ()}, {}, "studies is empty"),
        ({}, {"task": "track"}, "task 'track' is unknown; allowed: segment, classify, deblur"),
        ({}, {"sizes": (1,)}, "each needs 2 patches"),
        ({}, {"arms": (ARMS[0], ARMS[0])}, "'scratch' is there twice"),
        ({}, {"arms": ARMS[1:2]}, "arm other is against 'scratch'"),
        ({}, {"arms": (Arm("x", "segment_unet", pretrained="run"),)}, "starts from 'run'; declared are no pretrained"),
        ({}, {"types": (DataType("a/b", "a"),)}, "'a/b' is no name of a folder"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(changes, study, words):
    studies = (dataclasses.replace(SMALL.studies[0], **study),)
    with pytest.raises(ExperimentError, match=re.escape(words)):
        check(dataclasses.replace(SMALL, **{"studies": studies, **changes}))


def test_patches_and_runs_must_be_named_where_none_are_made(tmp_path):
    full = load_experiment("table1")
    with pytest.raises(ExperimentError, match=r"'unet_image' is needed: give --pretrained unet_image=RUN"):
        with_inputs(full, data=None, pretrained=[])
    with pytest.raises(ExperimentError, match=r"--pretrained nosuch: unknown; declared are unet_image,"):
        with_inputs(full, data=None, pretrained=["nosuch=x"])
    with pytest.raises(FileNotFoundError, match="no such run"):
        with_inputs(full, data=None, pretrained=[f"unet_image={tmp_path / 'x'}"])
    runs = [f"{one.name}={tmp_path}" for one in full.pretrained]
    with pytest.raises(ExperimentError, match="needs labelled patches: give --data FOLDER"):
        with_inputs(full, data=None, pretrained=runs)
    ready = with_inputs(full, data=tmp_path, pretrained=runs)
    assert ready.folder == str(tmp_path) and {one.path for one in ready.pretrained} == {str(tmp_path)}
    assert len(expand(ready)) == len(expand(full)), "a run that is named is no cell"


@pytest.mark.parametrize("spec", ["table1", "table1:tiny", "table2", "table2:tiny", "few_shot", "few_shot:tiny"])
def test_recipes_of_the_experiments_are_there_and_take_the_keys(spec):
    check_recipes(load_experiment(spec))


def test_a_wrong_key_or_task_of_a_recipe_is_told_before_any_work(tmp_path):
    for arm, words in (
        (Arm("x", "segment_unet:tiny", {"optim.learning_rat": 1.0}), "learning_rat"),
        (Arm("x", "classify_unet:tiny"), "x: classify_unet:tiny is of task 'classify'; 'segment' is needed"),
    ):
        wrong = dataclasses.replace(SMALL, studies=(dataclasses.replace(SMALL.studies[0], arms=(arm,)),))
        with pytest.raises(ValueError, match=words):
            prepare(wrong, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_first_difference_of_two_declarations_is_named():
    old = {"a": 1, "studies": [{"sizes": [5]}, {"sizes": [7]}]}
    assert first_difference(old, old) == ""
    assert first_difference(old, old | {"a": 2}) == "a: 1 -> 2"
    assert first_difference(old, {"a": 1, "studies": [{"sizes": [5]}, {"sizes": [8]}]}) == "studies.1.sizes.0: 7 -> 8"
    assert first_difference(old, {"a": 1}).startswith("studies: [{'sizes': [5]}")


def test_printed_figures_are_those_of_the_paper(shared):
    """Each row is looked for in the paper's text, so a slip of a column would be seen."""
    text = " ".join((shared / "paper.txt").read_text().split())
    types = ("Amyloid Plaque", "Cell Nucleus", "Vessels")
    for arm, start in (("Scr Swin", "Scr Swin "), ("Scr UNet", "UNet "), ("Img+T Swin", "Img+T Swin ")):
        row = [
            printed("segment", metric, arm=arm, of_type=of, shots=shots)
            for of in types
            for shots in (FEW, MANY)
            for metric in ("total_dice_paper", "count_dice_paper")
        ]
        assert start + " ".join(f"{value:.2f}" for value in row) in text
        both = [
            printed("classify", metric, arm=arm, of_type="classes", shots=shots)
            for shots in (FEW, MANY)
            for metric in ("accuracy", "macro_f1")
        ]
        both += [printed("deblur", "ssim", arm=arm, of_type=of, shots=shots) for of in types for shots in (FEW, MANY)]
        assert start + " ".join(f"{value:.2f}" for value in both) in text
    assert printed("segment", "dice", arm="Scr UNet", of_type="Vessels", shots=FEW) is None
    assert printed("deblur", "psnr", arm="Scr UNet", of_type="Vessels", shots=FEW) is None
    assert printed("deblur", "ssim", arm="PCA", of_type="Vessels", shots=FEW) is None
    assert printed("segment", "total_dice_paper", arm="Scr UNet", of_type="nuclei", shots=FEW) is None
    assert printed("segment", "total_dice_paper", arm="", of_type="Vessels", shots=FEW) is None
