"""Volumes of finetuning: crops of one brain stay on one side, both sides are printed, older runs keep their draw."""

import json

import pytest
from labelled_toy import write_patch

from lsmfm_jax.config import defaults
from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.data.splits import SplitError
from lsmfm_jax.tasks import finetune_patches
from lsmfm_jax.tasks.finetune_patches import read_patches

NAMES = [f"brain{brain}_z{z:04d}_y0000_x{x:04d}" for brain in (1, 2, 3) for z in (0, 16) for x in (0, 16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(NAMES):
        write_patch(folder, name, size=16, seed=seed, balls=1)
    return folder


def _configuration(folder):
    config = defaults("segment")
    config.data.folder, config.data.validation_frac = str(folder), 0.34
    return config


def _volumes(patches):
    return [{patch.name.split("_")[0] for patch in side} for side in (patches.train, patches.validation)]


def test_crops_of_one_brain_are_on_one_side_and_the_sides_are_printed(folder, tmp_path):
    lines = []
    patches = read_patches(_configuration(folder), tmp_path / "run", print_line=lines.append)
    train, validation = _volumes(patches)
    assert not train & validation and len(train) == 2 and len(validation) == 1
    assert f"validation: 1 volume ({next(iter(validation))} 4 patches)" in lines
    assert any(line.startswith("train: 2 volumes (brain") for line in lines)
    assert any("volumes are told from file names" in line for line in lines)


def test_subjects_that_are_numbered_are_told_apart(tmp_path):
    for number in (1, 2):
        write_patch(tmp_path / "files", f"mouse_{number}", size=16, seed=number, balls=1)
    patches = read_patches(_configuration(tmp_path / "files"), tmp_path / "run", print_line=lambda line: None)
    assert len(patches.train) == len(patches.validation) == 1


def test_a_run_that_began_under_the_earlier_rule_goes_on_with_its_patches(folder, tmp_path, monkeypatch):
    config, run = _configuration(folder), tmp_path / "run"

    def by_the_earlier_rule(config, folder, *, print_line):
        return finetune_patches._sides(config, print_line=print_line, earlier=True)

    with monkeypatch.context() as patched:
        patched.setattr(finetune_patches, "_sides_of_run", by_the_earlier_rule)
        began = read_patches(config, run, print_line=lambda line: None)
    recorded = json.loads((run / "split.json").read_text())
    assert {row["volume"] for side in recorded.values() for row in side} >= {"brain1_z0000_y0000_x"}
    goes_on = read_patches(config, run, print_line=lambda line: None)
    assert [p.name for p in goes_on.train] == [p.name for p in began.train]
    assert json.loads((run / "split.json").read_text()) == recorded
    # A new run with the same seed draws by today's rule.
    read_patches(config, tmp_path / "new", print_line=lambda line: None)
    assert json.loads((tmp_path / "new" / "split.json").read_text()) != recorded
    config.seed += 1
    with pytest.raises(LabelledDataError, match="began with other patches"):
        read_patches(config, run, print_line=lambda line: None)


def test_a_damaged_record_is_one_line(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text('{"train": [')
    with pytest.raises(LabelledDataError, match=r"split\.json: damaged"):
        read_patches(_configuration(folder), tmp_path / "run", print_line=lambda line: None)


def test_one_brain_alone_cannot_be_split(tmp_path):
    for seed, name in enumerate(NAMES[:4]):
        write_patch(tmp_path / "files", name, size=16, seed=seed, balls=1)
    with pytest.raises(SplitError, match="4 patches of 1 volume"):
        read_patches(_configuration(tmp_path / "files"), tmp_path / "run", print_line=lambda line: None)
