"""Declarations in Python files, of the package by name or of a person's own by path: experiments and sweeps."""

import importlib.util
import pathlib
import traceback
from typing import Any

from lsmfm_jax.config.recipes import recipes_folder
from lsmfm_jax.errors import LsmfmError


def declared(spec: str, *, folder: str, function: str, kind: type, error: type[LsmfmError]) -> Any:
    """What the function of a file gives for a variant.

    Args:
        spec: `NAME[:VARIANT]` of a file of the package, or `PATH[:VARIANT]`.
        folder: below the recipes, where the package's own are.
        function: its name; takes the variant.
        kind: of what it must return.
        error: what is raised.

    Raises:
        LsmfmError: of type `error`: no such file, a mistake in it (with its line), or a result of another kind.
    """
    name, _, variant = spec.partition(":")
    path = _find(name, folder, error)
    module_spec = importlib.util.spec_from_file_location(f"lsmfm_{folder}", path)
    try:
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        found = getattr(module, function)(variant)
    except LsmfmError as mistake:
        raise error(f"{spec}: {mistake}") from mistake
    except Exception as mistake:  # a file of a person's own may raise anything
        frames = [] if isinstance(mistake, SyntaxError) else traceback.extract_tb(mistake.__traceback__)
        line = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise error(f"{spec}: {type(mistake).__name__}: {' '.join(str(mistake).split())}{line}") from mistake
    if not isinstance(found, kind):
        raise error(f"{spec}: {function} returned a {type(found).__name__}; {kind.__name__} is needed")
    return found


def known(folder: str) -> list[str]:
    """Names of the package's own."""
    return sorted(path.stem for path in (recipes_folder() / folder).glob("*.py"))


def unknown_variant(variant: str, allowed: tuple[str, ...], error: type[LsmfmError]) -> LsmfmError:
    """The error of a file that has no such variant."""
    return error(f"variant {variant!r} is unknown; allowed: {', '.join(name for name in allowed if name)}, or none")


def _find(name: str, folder: str, error: type[LsmfmError]) -> pathlib.Path:
    path, own = pathlib.Path(name), recipes_folder() / folder / f"{name}.py"
    if path.name == name and path.suffix != ".py" and own.is_file():
        return own
    if path.is_file():
        return path
    raise error(f"{name}: neither in {folder} of the package nor a file; there are {', '.join(known(folder))}")
