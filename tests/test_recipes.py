"""Recipes are found by name wherever the package is installed, listed without being run, and shipped in the wheel."""

import pathlib
import runpy
import subprocess
import sys
from unittest import mock

import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.config import ConfigError, list_recipes, load_config
from lsmfm_jax.config import recipes as recipes_module

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))


def test_a_name_is_the_recipe_of_that_file_from_any_folder(tmp_path, monkeypatch):
    by_path = {file.stem: load_config(f"{file}:tiny").to_dict() for file in FILES}
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        assert load_config(f"{file.stem}:tiny").to_dict() == by_path[file.stem]
    assert load_config("pretrain_unet:tiny", ["--config.seed=7"]).seed == 7


def test_a_path_still_works_and_a_file_of_ones_own_is_not_taken_for_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "segment_unet.py").read_text()
    (tmp_path / "pretrain_unet.py").write_text(text.replace("config.train.epochs = 600", "config.train.epochs = 3"))
    assert load_config("pretrain_unet.py").train.epochs == 3
    assert load_config("./pretrain_unet.py").task == "segment"
    assert load_config("pretrain_unet").task == "pretrain"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pretrain_unit:tiny", r"pretrain_unit is neither a recipe nor a file; did you mean pretrain_unet\?"),
        ("configs/pretrain_unit.py", r"configs/pretrain_unit\.py is not a file; did you mean pretrain_unet\?"),
        ("", r"is neither a recipe nor a file"),
        ("pretrain_unet:tinny", r"'tinny' is unknown; allowed: image_only, faithful, tiny"),
        ("../pretrain_unet", r"not a file"),
    ],
)
def test_a_wrong_name_or_variant_gets_one_line_with_the_right_ones(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(spec)
    assert "\n" not in str(caught.value)
    assert "variant" in str(caught.value) or "recipes (lsmfm recipes shows them): classify_" in str(caught.value)


@pytest.mark.parametrize("body", ["return 1 / 0", "raise ValueError('x\\ny')", "retrun 1", "return {}['a']"])
def test_a_broken_recipe_is_one_line_that_names_it(body, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(f"def get_config(variant=''):\n    {body}\n")
    with pytest.raises(ConfigError, match=r"--config=.*broken\.py: (ZeroDivision|Value|Syntax|Key)Error") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_the_list_names_every_recipe_with_its_variants_and_runs_none(capsys, monkeypatch):
    assert [recipe.path for recipe in list_recipes()] == FILES
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for file in FILES:
        variants = [name for name in runpy.run_path(str(file))["VARIANTS"] if name]
        lines = printed.splitlines()
        row = next(number for number, line in enumerate(lines) if line.startswith(f"{file.stem} "))
        assert lines[row].split(maxsplit=1)[1].endswith(".")
        assert lines[row + 1].split("variants: ")[1].split(", ") == variants
    assert main(["recipes", "pretrain_unet"]) == 0
    printed = capsys.readouterr().out
    assert "lsmfm pretrain --config pretrain_unet " in printed and str(ROOT / "configs" / "pretrain_unet.py") in printed
    assert main(["recipes", "nosuch"]) == 2
    assert "nosuch is neither a recipe" in capsys.readouterr().err


def test_an_installation_reads_the_recipes_inside_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "lsmfm_jax"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "mine.py").write_text('"""Mine."""\n\nVARIANTS = ("", "small")\n')
    monkeypatch.setattr(recipes_module, "PACKAGE", folder)
    assert [(recipe.name, recipe.card, recipe.variants) for recipe in list_recipes()] == [("mine", "Mine.", ("small",))]
    (folder / "recipes" / "mine.py").unlink()
    with pytest.raises(ConfigError, match="no recipes there; install the package again"):
        list_recipes()


def test_the_wheel_has_every_room_and_the_recipes_and_no_tests(monkeypatch):
    """`.ci/wheel_check.sh` builds and uses the wheel; this looks at what would be put into it."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    with mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path("setup.py")
    packages, folders = setup.call_args.kwargs["packages"], setup.call_args.kwargs["package_dir"]
    rooms = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "lsmfm_jax").rglob("__init__.py")}
    below = ("experiments", "experiments/tools", "sweeps")
    shipped = {f"lsmfm_jax.recipes.{one.replace('/', '.')}": f"configs/{one}" for one in below}
    shipped["lsmfm_jax.recipes"] = "configs"
    assert set(packages) == rooms | shipped.keys() and folders == shipped
    assert ".ci/wheel_check.sh" in (ROOT / ".ci" / "run").read_text()


def test_help_reads_neither_configurations_nor_arrays():
    program = (
        "import sys\nfrom lsmfm_jax.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'absl', 'ml_collections', 'yaml', 'numpy', 'jax'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "recipes" in done.stdout and done.stderr.strip() == "[]"
