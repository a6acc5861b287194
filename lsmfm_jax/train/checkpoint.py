"""Checkpoints of a run: written in the background, several kept, and checked when read."""

import contextlib
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import replace_json
from lsmfm_jax.train.checkpoint_checks import (
    committed_steps,
    damaged_files,
    differing_leaves,
    hash_files,
    record_hash,
    remove_halves,
    without_warnings_of_orbax,
)
from lsmfm_jax.train.fingerprints import fingerprints
from lsmfm_jax.train.processes import any_process, wait_for_all
from lsmfm_jax.train.task import PyTree

log = logging.getLogger(__name__)


class CheckpointError(LsmfmError, RuntimeError):
    """No checkpoint can be used; the message names the folder and what is wrong with each."""


class SaveError(LsmfmError, OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    state: PyTree
    meta: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        folder: where they are, made when needed.
        keep: latest checkpoints kept.
        keep_period_steps: also keep every checkpoint at a multiple of this; 0 keeps none more.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int, keep_period_steps: int = 0) -> None:
        self.folder = folder.absolute()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_period_steps or None,
            enable_async_checkpointing=True,
            step_prefix=None,
            cleanup_tmp_directories=True,
            # The processes of a run meet by name while a checkpoint is written, in the background: with one name for
            # the latest and the best, which may be written at the same time, they meet at the wrong one and wait on.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)
        self._broken = False
        self._writing: int | None = None
        # Only what this process wrote, or read and found whole: a seal over a damaged file would call it whole.
        self._unsealed: set[int] = set()

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the state may be changed.

        Raises:
            SaveError: this checkpoint, or the one that was being written before, could not be written, or the folder
                has one of a later step, after which none of an earlier step is taken.
        """
        self._finish()
        if step in self._manager.all_steps():
            if not any_process(not (self.folder / "seals" / f"{step}.json").exists() or self._damaged(step)):
                return
            self._set_aside([step])
        record = {**meta, "step": step, "fingerprints": fingerprints(state)}
        record["checksum"] = record_hash(record)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record))
        self._writing = step
        try:
            begun = self._manager.save(step, args=args)
        except Exception as error:  # orbax and tensorstore raise many kinds for a disk that takes no more
            raise self._not_written(error) from error
        if not begun:  # orbax refuses a step at or below its latest, and raises nothing
            self._writing = None
            raise SaveError(
                f"checkpoint at step {step} could not be written to {self.folder}: it has one of step "
                f"{self._manager.latest_step()}; the earlier ones are kept"
            )
        self._unsealed.add(step)

    def seal(self) -> None:
        """Waits for the running save and writes down the hash of each file of its checkpoint.

        Raises:
            SaveError: the save that was running has failed, or the hashes could not be written.
        """
        self._finish()
        try:
            if jax.process_index() == 0:
                self._write_seals()
        except OSError as error:
            raise SaveError(
                f"checksums of the checkpoints in {self.folder} could not be written: {_first_line(error)}; the next "
                "save tries again"
            ) from error
        self._unsealed.clear()

    def _finish(self) -> None:
        if any_process(self._broken):
            self._start_again()
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error
        self._writing = None

    def _write_seals(self) -> None:
        steps = committed_steps(self.folder)
        seals = self.folder / "seals"
        for old in seals.glob("*.json"):
            if old.stem not in {str(step) for step in steps}:
                old.unlink()
        for step in sorted(self._unsealed.intersection(steps)):
            replace_json(seals / f"{step}.json", hash_files(self.folder / str(step)))

    def _start_again(self) -> None:
        # A manager raises the error of a failed save at every later call.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)
        self._broken = False

    def _not_written(self, error: Exception) -> SaveError:
        step, self._writing = self._writing, None
        self._unsealed.discard(step)
        self._broken = True
        if jax.process_index() == 0:
            remove_halves(self.folder)
        return SaveError(
            f"checkpoint at step {step} could not be written to {self.folder}: {_first_line(error)}; the earlier "
            "ones are kept"
        )

    def restore(self, abstract_state: PyTree) -> Restored | None:
        """The newest checkpoint that is whole; damaged ones are named in the log and passed over.

        Args:
            abstract_state: shapes with shardings of the state that is wanted.

        Returns:
            None where the folder has no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        steps = sorted(committed_steps(self.folder), reverse=True)
        damages = []
        for at, step in enumerate(steps):
            # The first process decides for all: the others need not read every file again.
            damage = damaged_files(self.folder, step) if jax.process_index() == 0 else []
            if not any_process(bool(damage)):
                try:
                    restored = self._read(step, abstract_state)
                except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                    damage = [f"{self.folder / str(step)}: cannot be read: {_first_line(error)}"]
                else:
                    damage = differing_leaves(self.folder / str(step), restored.state, restored.meta)
            if not any_process(bool(damage)):
                self._unsealed.add(step)
                self._set_aside(steps[:at])
                return restored
            damages += damage
            log.warning("damaged checkpoint passed over: %s", "; ".join(damage[:5]))
        if steps:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints {steps} is whole: {'; '.join(damages[:5])}. "
                "Start again in a new folder, or restore the folder from a copy"
            )
        return None

    def set_aside_after(self, step: int) -> list[int]:
        """Renames checkpoints of later steps than the one a run continues from; returns those steps.

        The run may go differently from there, and Orbax writes no step that is earlier than one in the folder.
        """
        later = [other for other in committed_steps(self.folder) if other > step]
        wait_for_all("checkpoints listed")  # before the first process renames any: all must see the same ones
        if later and jax.process_index() == 0:
            # Of each interruption one would be left: the last is enough.
            for old in self.folder.glob("later-*"):
                shutil.rmtree(old, ignore_errors=True)
        self._set_aside(later, kind="later")
        return later

    def adopt_unsealed(self, abstract_state: PyTree) -> None:
        """Has checkpoints sealed that a killed run committed but no longer sealed, where they are whole."""
        for step in committed_steps(self.folder):
            if step in self._unsealed or (self.folder / "seals" / f"{step}.json").exists():
                continue
            try:
                read = self._read(step, abstract_state)
                whole = not differing_leaves(self.folder / str(step), read.state, read.meta)
            except Exception:  # as in `restore`
                whole = False
            if any_process(not whole):
                self._set_aside([step])
            else:
                self._unsealed.add(step)

    def _damaged(self, step: int) -> bool:
        return jax.process_index() == 0 and bool(damaged_files(self.folder, step))

    def _set_aside(self, steps: Sequence[int], *, kind: str = "damaged") -> None:
        """Renames checkpoints, damaged or of later steps: as long as they count, no earlier step is written."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self.folder / f"{kind}-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                (self.folder / "seals" / f"{step}.json").unlink(missing_ok=True)
                if kind == "damaged":
                    log.warning("damaged checkpoint set aside as %s; remove it when it is of no use to you", aside)
        self._unsealed.difference_update(steps)
        wait_for_all("checkpoints set aside")
        self._manager.reload()

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        parts = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()),
        )
        return Restored(parts["state"], parts["meta"], step)

    def close(self) -> None:
        """Finishes what is being written.

        Raises:
            SaveError: the save that was running has failed.
        """
        try:
            self.seal()
        finally:
            if not self._broken:
                self._manager.close()


def read_part(folder: pathlib.Path, step: int, names: tuple[str, ...] | None) -> tuple[PyTree, dict[str, Any]]:
    """Parts of a saved state as numpy arrays, checked against their fingerprints, and the meta record.

    Args:
        folder: folder of checkpoints.
        step: which one.
        names: fields of the train state, such as `("params", "batch_stats")`; None for all that are there.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    damage = damaged_files(folder, step)
    if damage:
        raise CheckpointError("; ".join(damage[:5]))
    place = (folder / str(step)).absolute()
    try:
        meta = json.loads((place / "meta" / "metadata").read_text())
        with without_warnings_of_orbax(), ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(place / "state").item_metadata.tree
            wanted = dict(tree) if names is None else {name: tree[name] for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            state = reader.restore(
                place / "state",
                args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
            )
    except Exception as error:
        raise CheckpointError(f"{place}: cannot be read: {_first_line(error)}") from error
    differing = differing_leaves(place, state, meta, partial=True)
    if differing:
        raise CheckpointError("; ".join(differing[:5]))
    return state, meta


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:300]}"
