"""Batches of labelled patches before the network sees them, and the figures of their windows after."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsmfm_jax.augment import scale_intensity
from lsmfm_jax.train.task import PyTree, Rows, Task


def as_task(parts: Any, draw: Callable[[PyTree, Any], None]) -> Task:
    """A task whose samples do not meet, from an object with its functions and one that draws."""
    return Task(
        init=parts.init,
        prepare=parts.prepare,
        local=parts.local,
        finish=lambda sums: sums,
        evaluate=parts.evaluate,
        summarise=parts.summarise,
        picture=parts.picture,
        draw=draw,
    )


def sample_keys(key: Array, batch: Rows) -> Array:
    """A key for each row of the global batch."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch["image"].shape[0]))


def scaled_images(batch: Rows, name: str = "image", *, clip: bool = True) -> Float[Array, "b z y x 1"]:
    """Patches with their percentiles `low` and `high` at 0 and 1."""
    return scale_intensity(batch[name], batch["low"], batch["high"], clip=clip)[..., None]


def equal_shares(batch: Rows) -> Float[Array, " b"]:
    """The weight of each sample in the batch's loss, so that micro-batches add up to the batch."""
    count = batch["image"].shape[0]
    return jnp.full((count,), 1.0 / count)


def first_rows(batch: Rows, count: int) -> Rows:
    """The first rows of a batch, to be drawn."""
    return {name: leaf[:count] for name, leaf in batch.items()}


def real_rows(outputs: list[PyTree]) -> dict[str, np.ndarray]:
    """Evaluation outputs of all batches in one, without the rows that only fill up."""
    stacked = {name: np.concatenate([np.asarray(output[name]) for output in outputs]) for name in outputs[0]}
    real = stacked["weight"] > 0
    return {name: values[real] for name, values in stacked.items()}


def sums_by_sample(rows: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Sums over the windows of each patch, patches in the order of `sample`."""
    _, place = np.unique(rows["sample"], return_inverse=True)
    values = rows[name].astype(np.float64)
    total = np.zeros((place.max() + 1, *values.shape[1:]))
    np.add.at(total, place, values)
    return total
