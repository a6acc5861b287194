"""Weights of a finished run or of an imported checkpoint, with the architecture that they belong to."""

import pathlib
from typing import Any, NamedTuple

from lsmfm_jax.files import DamagedFile, read_json, replace_json
from lsmfm_jax.train.checkpoint import CheckpointError, Checkpoints, read_part
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.initialise import non_finite
from lsmfm_jax.train.low_rank import PART, merge_read
from lsmfm_jax.train.records import damaged_record, seal_records

PyTree = Any
GROUPS = ("best", "checkpoints")


class Weights(NamedTuple):
    """Trained parts of a network.

    Attributes:
        architecture: `name` of the backbone and its attributes, as `build_backbone` takes them.
        params: parts such as `backbone`, `light_decoder`, `head`; numpy leaves.
        batch_stats: normalisation statistics by part.
        record: what the run wrote of itself (`run.json`).
        origin: folder and step, for messages.
        teacher: `params` and `batch_stats` of the averaged backbone, where it was asked for and there is one.
        step: optimiser steps after which the run had these weights; 0 for imported ones.
    """

    architecture: dict[str, Any]
    params: dict[str, PyTree]
    batch_stats: dict[str, PyTree]
    record: dict[str, Any]
    origin: str
    teacher: PyTree = None
    step: int = 0


def read_weights(folder: pathlib.Path | str, *, teacher: bool = False, both: bool = False) -> Weights:
    """Reads the best checkpoint of a run (the last whole one where there is no best), checked leaf by leaf.

    Low-rank factors are merged into the kernels that they adapt, so an adapted network reads like any other.

    Args:
        folder: run folder, or a folder written by `lsmfm convert import`.
        teacher: take the averaged backbone in place of the student's.
        both: read the averaged backbone too, beside the student's.

    Raises:
        CheckpointError: no run, no checkpoint, a damaged one, values that are not finite, or no teacher in it; the
            message names the folder.
    """
    folder = pathlib.Path(folder)
    if not (folder / "run.json").exists():
        raise CheckpointError(
            f"{folder}: no run.json there; name the --workdir of a run, or a folder made by `lsmfm convert import`"
        )
    try:
        record = read_json(folder / "run.json")
    except DamagedFile as error:
        raise CheckpointError(f"{folder / 'run.json'}: damaged: {error.reason}") from error
    if not isinstance(record.get("architecture"), dict) or "name" not in record["architecture"]:
        raise CheckpointError(f"{folder / 'run.json'}: damaged: it names no architecture; restore it from a copy")
    # A digit that changed in a scale or a class name would still be JSON.
    damaged = damaged_record(folder, "run.json")
    if damaged:
        raise CheckpointError(f"{'; '.join(damaged)}. Start the run again, which writes it anew, or take a copy")
    damages = []
    names = ("params", "batch_stats", "teacher") if teacher or both else ("params", "batch_stats")
    for group in GROUPS:
        for step in reversed(committed_steps(folder / group)):
            try:
                state, _ = read_part(folder / group, step, names)
            except CheckpointError as error:
                damages.append(str(error))
                continue
            broken = non_finite(state)
            if broken:
                what = f"{len(broken)} leaves have NaN or infinite values, such as {broken[0]}"
                damages.append(f"{folder / group / str(step)}: {what}")
                continue
            return _weights(folder, group, step, record, state, teacher=teacher)
    raise CheckpointError(f"{folder}: no whole checkpoint there{': ' if damages else ''}{'; '.join(damages[:3])}")


def _weights(
    folder: pathlib.Path, group: str, step: int, record: dict[str, Any], state: PyTree, *, teacher: bool
) -> Weights:
    params, batch_stats = dict(state["params"]), dict(state["batch_stats"] or {})
    origin = f"{folder / group} step {step}"
    if PART in params:
        try:
            scaling = record["lora"]["alpha"] / record["lora"]["rank"]
        except (KeyError, TypeError, ZeroDivisionError):
            raise CheckpointError(
                f"{folder / 'run.json'}: damaged: it does not say how the low-rank factors of {origin} are scaled; "
                "start the run again, which writes it anew, or take a copy"
            ) from None
        params = merge_read(params, scaling)
    if teacher:
        if not state["teacher"]:
            raise CheckpointError(f"{origin}: it has no teacher; only pretraining keeps one")
        params["backbone"] = state["teacher"]["params"]
        batch_stats["backbone"] = state["teacher"].get("batch_stats") or {}
        origin += ", teacher"
    averaged = None if teacher else state.get("teacher") or None
    return Weights(record["architecture"], params, batch_stats, record, origin, averaged, step)


def write_weights(
    folder: pathlib.Path | str,
    *,
    record: dict[str, Any],
    params: dict[str, PyTree],
    batch_stats: dict[str, PyTree],
    teacher: PyTree = None,
) -> None:
    """Writes weights from elsewhere as a folder that `read_weights` and `init_from` take like a run.

    Args:
        folder: new folder.
        record: for `run.json`; has `task` and `architecture`.
        params: parts by name.
        batch_stats: statistics by part.
        teacher: `params` and `batch_stats` of the averaged backbone, or None.

    Raises:
        CheckpointError: the folder holds checkpoints already.
    """
    folder = pathlib.Path(folder)
    if committed_steps(folder / "best"):
        raise CheckpointError(f"{folder}: holds checkpoints already; name a new folder")
    checkpoints = Checkpoints(folder / "best", keep=1)
    state = {"params": params, "batch_stats": batch_stats, "teacher": teacher or {}}
    checkpoints.save(0, state, {"epoch": 0, "best": None})
    checkpoints.close()
    replace_json(folder / "run.json", record)
    seal_records(folder)
