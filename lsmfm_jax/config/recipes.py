"""The recipes that come with the package: found by name, and listed with their variants.

They lie in `configs/` of the source and are installed as `lsmfm_jax/recipes`. Listing them runs none of them.
"""

import ast
import difflib
import pathlib
from typing import NamedTuple

from lsmfm_jax.config.check import ConfigError

PACKAGE = pathlib.Path(__file__).resolve().parent.parent


class Recipe(NamedTuple):
    """One recipe.

    Attributes:
        name: what `--config` takes.
        path: its Python file.
        card: its docstring: commands, variants, hardware, what to expect.
        variants: what may follow the name after a colon; the one without a name is left out.
    """

    name: str
    path: pathlib.Path
    card: str
    variants: tuple[str, ...]


def recipes_folder() -> pathlib.Path:
    """Where the recipes are: in the installed package, or in `configs/` of the source that this file belongs to."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def list_recipes() -> list[Recipe]:
    """All recipes of the package, by name.

    Raises:
        ConfigError: the installation has none.
    """
    files = sorted(recipes_folder().glob("*.py"))
    if not files:
        raise ConfigError(f"{recipes_folder()}: no recipes there; install the package again")
    return [_read(path) for path in files]


def read_recipe(name: str) -> Recipe:
    """One recipe, by its name or its path, with a variant or without.

    Raises:
        ConfigError: there is no such recipe, or its file is no Python.
    """
    path = find_recipe(name.partition(":")[0])
    try:
        return _read(path)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"--config: {path} is no recipe: {error}") from error


def _read(path: pathlib.Path) -> Recipe:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    variants: tuple[str, ...] = ()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == "VARIANTS" for name in node.targets):
            variants = tuple(variant for variant in ast.literal_eval(node.value) if variant)
    return Recipe(path.stem, path, ast.get_docstring(tree) or "", variants)


def find_recipe(name: str) -> pathlib.Path:
    """The file of a recipe.

    Args:
        name: of a recipe of the package, such as `pretrain_unet`, or a path to a Python file.

    Raises:
        ConfigError: there is no such recipe and no such file.
    """
    path = pathlib.Path(name)
    is_name = path.name == name and path.suffix != ".py"
    if is_name and (recipes_folder() / f"{name}.py").is_file():
        return recipes_folder() / f"{name}.py"
    if path.is_file():
        return path
    known = [recipe.name for recipe in list_recipes()]
    near = difflib.get_close_matches(path.stem, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    what = "neither a recipe nor a file" if is_name else "not a file"
    raise ConfigError(f"--config: {name} is {what}; {hint}recipes (lsmfm recipes shows them): {', '.join(known)}")
