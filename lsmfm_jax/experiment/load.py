"""Finds an experiment: one of the package by name, or a Python file, with a variant or without."""

import importlib.util
import pathlib
import traceback

from lsmfm_jax.config.recipes import recipes_folder
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.experiment.declaration import Experiment, ExperimentError, check


def experiments_folder() -> pathlib.Path:
    """Where the experiments of the package are: beside its recipes."""
    return recipes_folder() / "experiments"


def known_experiments() -> list[str]:
    """Names of the experiments of the package."""
    return sorted(path.stem for path in experiments_folder().glob("*.py"))


def load_experiment(spec: str) -> Experiment:
    """Reads `FILE[:VARIANT]`.

    Args:
        spec: name of an experiment of the package, or path of a Python file that defines
            `get_experiment(variant: str = "") -> Experiment`.

    Raises:
        ExperimentError: no such file, a mistake in it, an unknown variant, or a grid that cannot be run.
    """
    name, _, variant = spec.partition(":")
    path = _find(name)
    module_spec = importlib.util.spec_from_file_location("lsmfm_experiment", path)
    try:
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        experiment = module.get_experiment(variant)
    except LsmfmError as error:
        raise ExperimentError(f"{spec}: {error}") from error
    except Exception as error:  # a file of a person's own may raise anything
        frames = [] if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)
        line = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise ExperimentError(f"{spec}: {type(error).__name__}: {' '.join(str(error).split())}{line}") from error
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{spec}: get_experiment returned a {type(experiment).__name__}; an Experiment is needed")
    check(experiment)
    return experiment


def unknown_variant(variant: str, allowed: tuple[str, ...]) -> ExperimentError:
    """The error of an experiment that has no such variant."""
    return ExperimentError(
        f"variant {variant!r} is unknown; allowed: {', '.join(name for name in allowed if name)}, or none"
    )


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.name == name and path.suffix != ".py" and (experiments_folder() / f"{name}.py").is_file():
        return experiments_folder() / f"{name}.py"
    if path.is_file():
        return path
    raise ExperimentError(
        f"{name}: neither an experiment of the package nor a file; there are {', '.join(known_experiments())}"
    )
