"""Finds an experiment: one of the package by name, or a Python file, with a variant or without."""

from lsmfm_jax.config import declared
from lsmfm_jax.experiment.declaration import Experiment, ExperimentError, check

FOLDER = "experiments"


def load_experiment(spec: str) -> Experiment:
    """Reads `FILE[:VARIANT]`.

    Args:
        spec: name of an experiment of the package, or path of a Python file that defines
            `get_experiment(variant: str = "") -> Experiment`.

    Raises:
        ExperimentError: no such file, a mistake in it, an unknown variant, or a grid that cannot be run.
    """
    function, kind, error = "get_experiment", Experiment, ExperimentError
    experiment = declared.declared(spec, folder=FOLDER, function=function, kind=kind, error=error)
    check(experiment)
    return experiment


def unknown_variant(variant: str, allowed: tuple[str, ...]) -> ExperimentError:
    """The error of an experiment that has no such variant."""
    return declared.unknown_variant(variant, allowed, ExperimentError)
