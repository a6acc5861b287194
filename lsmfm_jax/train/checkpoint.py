"""Checkpoints of a run: written in the background, several kept, each leaf fingerprinted and checked on the way back."""

import hashlib
import json
import logging
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lsmfm_jax.train.optim import leaf_path

PyTree = Any
log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint can be used; the message names the folder and what is wrong with each."""


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    state: PyTree
    meta: dict[str, Any]
    step: int


def _leaf_fingerprint(leaf: jax.Array) -> jax.Array:
    # Each element's bits are mixed with its position by a bijection, then all are added up modulo 2^32: one
    # changed bit always changes the sum, and the order of addition, so the sharding, does not.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    flat = leaf.reshape(-1)
    if flat.dtype == jnp.bool_:
        flat = flat.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(flat, jnp.dtype(f"uint{8 * flat.dtype.itemsize}"))
    bits = bits.astype(jnp.uint32).reshape(-1)
    position = jnp.arange(bits.size, dtype=jnp.uint32)
    sums = []
    for salt in (0x9E3779B9, 0x85EBCA6B):
        word = bits ^ (position * jnp.uint32(salt) + jnp.uint32(salt >> 3))
        word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
        word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
        sums.append(jnp.sum(word ^ (word >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)


@jax.jit
def _tree_fingerprints(tree: PyTree) -> PyTree:
    return jax.tree.map(_leaf_fingerprint, tree)


def fingerprints(tree: PyTree) -> dict[str, str]:
    """A 64-bit fingerprint of every leaf, the same for any sharding; path to 16 hexadecimal digits."""
    values = jax.device_get(_tree_fingerprints(tree))
    leaves = jax.tree_util.tree_leaves_with_path(values)
    return {leaf_path(path): f"{int(pair[0]):08x}{int(pair[1]):08x}" for path, pair in leaves}


def combined_fingerprint(tree: PyTree) -> str:
    """One fingerprint of a whole tree."""
    text = json.dumps(fingerprints(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        folder: where they are, made when needed.
        keep: latest checkpoints kept.
        keep_period_steps: also keep every checkpoint at a multiple of this; 0 keeps none more.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int, keep_period_steps: int = 0) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_period_steps or None,
            enable_async_checkpointing=True,
            step_prefix=None,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the state may be changed."""
        self.seal()
        if step in self._manager.all_steps():
            return
        record = {**meta, "step": step, "fingerprints": fingerprints(state)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record))
        )

    def seal(self) -> None:
        """Waits for the running save and writes down the hash of each file of every committed checkpoint."""
        self._manager.wait_until_finished()
        if jax.process_index() != 0:
            return
        steps = committed_steps(self.folder)
        seals = self.folder / "seals"
        seals.mkdir(parents=True, exist_ok=True)
        for old in seals.glob("*.json"):
            if old.stem not in {str(step) for step in steps}:
                old.unlink()
        for step in steps:
            target = seals / f"{step}.json"
            if not target.exists():
                write_json_atomically(target, _hash_files(self.folder / str(step)))

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
        for step in steps:
            damage = damaged_files(self.folder, step)
            if not damage:
                try:
                    restored = self._read(step, abstract_state)
                except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                    damage = [f"{self.folder / str(step)}: cannot be read: {_first_line(error)}"]
                else:
                    damage = _differing_leaves(self.folder / str(step), restored)
            if not damage:
                return restored
            damages += damage
            log.warning("damaged checkpoint passed over: %s", "; ".join(damage[:5]))
        if damages:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints {steps} is whole: {'; '.join(damages[:5])}. "
                "Start again in a new folder, or restore the folder from a copy"
            )
        return None

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        parts = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
            ),
        )
        return Restored(parts["state"], parts["meta"], step)

    def close(self) -> None:
        """Finishes what is being written."""
        self.seal()
        self._manager.close()


def committed_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoint folders that are there under their final name, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit())


def remove_after(folder: pathlib.Path, step: int) -> None:
    """Removes checkpoints of later steps, which a resume from `step` makes anew."""
    for later in committed_steps(folder):
        if later > step:
            shutil.rmtree(folder / str(later))
            (folder / "seals" / f"{later}.json").unlink(missing_ok=True)


def damaged_files(folder: pathlib.Path, step: int) -> list[str]:
    """One line for each file of a checkpoint that is missing or differs from what was written; empty where whole."""
    marker = folder / str(step) / "_CHECKPOINT_METADATA"
    if not marker.exists():
        return [f"{marker}: missing: the checkpoint was not committed"]
    seal = folder / "seals" / f"{step}.json"
    if not seal.exists():
        return []
    try:
        expected = json.loads(seal.read_text())
        body = expected.pop("_seal")
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        return [f"{seal}: damaged: {error}"]
    if body != _seal_of(expected):
        return [f"{seal}: damaged: its own checksum differs"]
    actual = _hash_files(folder / str(step))
    actual.pop("_seal")
    lines = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            lines.append(f"{folder / str(step) / name}: missing")
        elif name not in expected:
            lines.append(f"{folder / str(step) / name}: was not written with the checkpoint")
        elif expected[name] != actual[name]:
            lines.append(f"{folder / str(step) / name}: contents differ from what was written")
    return lines


def read_part(folder: pathlib.Path, step: int, names: tuple[str, ...]) -> tuple[PyTree, dict[str, Any]]:
    """Parts of a saved state as numpy arrays, checked against their fingerprints, and the meta record.

    Args:
        folder: folder of checkpoints.
        step: which one.
        names: fields of the train state, such as `("params", "batch_stats")`.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    damage = damaged_files(folder, step)
    if damage:
        raise CheckpointError("; ".join(damage[:5]))
    place = (folder / str(step)).absolute()
    try:
        meta = json.loads((place / "meta" / "metadata").read_text())
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(place / "state").item_metadata.tree
            wanted = {name: tree[name] for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            state = reader.restore(
                place / "state",
                args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
            )
    except Exception as error:
        raise CheckpointError(f"{place}: cannot be read: {_first_line(error)}") from error
    differing = _differing_leaves(place, Restored(state, meta, step), partial=True)
    if differing:
        raise CheckpointError("; ".join(differing[:5]))
    return state, meta


def write_json_atomically(path: pathlib.Path, value: Any) -> None:
    """Writes JSON beside the target and renames it, so that a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def _hash_files(folder: pathlib.Path) -> dict[str, str]:
    hashes = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {**hashes, "_seal": _seal_of(hashes)}


def _seal_of(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _differing_leaves(place: pathlib.Path, restored: Restored, *, partial: bool = False) -> list[str]:
    expected = restored.meta["fingerprints"]
    actual = fingerprints(restored.state)
    if not partial and expected.keys() != actual.keys():
        changed = sorted(expected.keys() ^ actual.keys())
        return [f"{place}: leaves differ from those written: {', '.join(changed[:10])}"]
    return [f"{place}: leaf {name} is damaged" for name in actual if expected.get(name) != actual[name]]


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:300]}"
