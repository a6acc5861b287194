"""From patch stores to batches: a stream that depends on (seed, step, sample) alone, sharded by process.

The list of samples is shuffled anew each epoch and runs on without end. Row r of the global batch of step s
is the same sample, drawn the same way, whatever the number of processes, workers or threads. Process p of P
holds rows p * G/P to (p + 1) * G/P, so the blocks of all processes, one after another, are the global batch:
that is how `jax.make_array_from_process_local_data` lays them out. Order and draws are decided for the whole
global batch before a process takes its block, and cost no reading; the cursor is the step alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from lsmfm_jax.data.patches import CENTRE, Draw, PatchReader, places
from lsmfm_jax.data.tokens import TokenTable
from lsmfm_jax.data.workers import prefetching, signals_left_to_this_process
from lsmfm_jax.errors import InputError, LsmfmError
from lsmfm_jax.scale import Scale
from lsmfm_jax.store.reader import PatchStore

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Indices = Sequence[int | tuple[int, int]]

# Practically without end; grain's own endless repeat has a length that overflows where a batch is one sample.
_EPOCHS = 2**32


class DamagedDataError(LsmfmError, RuntimeError):
    """More of the patches are damaged than `data.max_bad_frac` allows."""


class BatchStream:
    """Batches without end, from a given step; an iterator that can be closed.

    Attributes:
        damaged: places of the patches found damaged so far, by this process.
        padded: places of the patches that are smaller than the patch size, so are mirrored at their edges.
    """

    def __init__(self, dataset: grain.IterDataset, *, reader: PatchReader, max_bad_frac: float) -> None:
        with signals_left_to_this_process():
            self._iterator: Iterator[Batch] = iter(dataset)
        self._reader = reader
        self._max_bad_frac = max_bad_frac
        self.damaged: set[int] = set()
        self.padded = reader.padded
        _report_padded(reader)

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        with signals_left_to_this_process():
            batch = next(self._iterator)
        found = batch.pop("damaged")
        _note_damaged(found[found >= 0], self._reader, seen=self.damaged)
        if len(self.damaged) > self._max_bad_frac * len(self._reader.chosen):
            raise DamagedDataError(
                f"{len(self.damaged)} of {len(self._reader.chosen)} patches are damaged, more than "
                f"data.max_bad_frac={self._max_bad_frac} allows: run `lsmfm verify` on the stores, ingest "
                "the damaged patches again, or raise data.max_bad_frac."
            )
        return batch

    def close(self) -> None:
        """Stop the readers of this stream, which then has no more batches."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        # grain's iterators complain when they are collected as late as the interpreter's end.
        self._iterator = iter(())


def make_loader(
    stores: Sequence[PatchStore],
    indices: Indices,
    *,
    batch_size: int,
    patch_size: tuple[int, int, int],
    seed: int,
    token_table: TokenTable | None = None,
    scale: Scale | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
    start_step: int = 0,
    max_bad_frac: float = 0.01,
) -> BatchStream:
    """Training batches from step `start_step` on: this process's rows of each global batch.

    A batch holds image (B, Z, Y, X) in the stores' common integer type or float32, low and high (B,) float32,
    caption_key (B,) int32 (a place in `patches.caption_keys`, -1 where the store has no captions), sample (B,) int32
    (a place in the list of all patches), and with a token table tokens (B, T) int32 and token_mask (B, T) bool.

    Args:
        stores: the run's stores.
        indices: the patches to train on, as places in the list of all patches or (store, row) pairs.
        batch_size: samples of the global batch, over all processes.
        patch_size: Z, Y, X; larger patches are cropped at random, smaller ones mirrored at their edges.
        seed: of the order and the draws.
        token_table: wordings of the captions, one drawn per sample and step; None for images alone.
        scale: of intensities; None: the 1st and 99th percentile. By percentiles `low` and `high` are those of the
            patch; by any other scale images come scaled, as float32, with `low` 0 and `high` 1.
        process_index: this process.
        process_count: how many processes share a global batch.
        workers: reader processes; 0 reads in threads of this one.
        prefetch: batches read ahead.
        start_step: the step of the first batch: the stream is that of step 0 without the batches before.
        max_bad_frac: share of damaged patches, as seen by this process, beyond which the stream stops.

    Raises:
        ValueError: the batch cannot be divided, no patch is chosen, or a caption or percentile is missing.
        DamagedDataError: while iterating, too many patches are damaged.
    """
    reader = PatchReader(
        stores,
        places(stores, indices),
        patch_size=patch_size,
        token_table=token_table,
        scale=scale or Scale(),
    )
    block = _block(batch_size, process_index, process_count)
    plans = (
        grain.MapDataset.range(len(reader.chosen))
        .seed(seed)
        .shuffle()
        .repeat(_EPOCHS)
        .random_map(_draw)
        .batch(batch_size, batch_fn=list)
    )
    batches = plans.slice(slice(start_step, None)).map(_Assemble(reader, block))
    return BatchStream(prefetching(batches, workers, prefetch), reader=reader, max_bad_frac=max_bad_frac)


class ValidationBatches:
    """The validation batches of this process, in a fixed order; can be gone through again and again."""

    def __init__(self, reader: PatchReader, *, batch_size: int, block: slice, prefetch: int) -> None:
        self._reader, self._batch_size, self._block, self._prefetch = reader, batch_size, block, prefetch
        self.damaged: set[int] = set()
        self.padded = reader.padded
        _report_padded(reader)

    def __len__(self) -> int:
        return -(-len(self._reader.chosen) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._reader.chosen)
        batches = grain.MapDataset.range(len(self)).map(
            _PlanBatch(self._batch_size, count, then=_Assemble(self._reader, self._block))
        )
        for number, batch in enumerate(prefetching(batches, 0, self._prefetch)):
            found = batch.pop("damaged")
            _note_damaged(found[found >= 0], self._reader, seen=self.damaged)
            rows = number * self._batch_size + np.arange(self._batch_size)[self._block]
            batch["weight"] = ((rows < count) & (found < 0)).astype(np.float32)
            yield batch


def validation_batches(
    stores: Sequence[PatchStore],
    indices: Indices,
    *,
    batch_size: int,
    patch_size: tuple[int, int, int],
    token_table: TokenTable | None = None,
    scale: Scale | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> ValidationBatches:
    """Validation batches: the patches in the order given, cropped in the middle, with their first wording.

    As in `make_loader`, with `weight` (B,) float32 beside: 1 for a patch, 0 where the last batch is filled up
    with the last patch or where another stands in for a damaged one. Every process gets equally many batches.

    Raises:
        ValueError: as `make_loader`.
    """
    reader = PatchReader(
        stores,
        places(stores, indices),
        patch_size=patch_size,
        token_table=token_table,
        scale=scale or Scale(),
    )
    block = _block(batch_size, process_index, process_count)
    return ValidationBatches(reader, batch_size=batch_size, block=block, prefetch=prefetch)


def _draw(number: int, rng: np.random.Generator) -> tuple[int, Draw]:
    """The draws of one sample at one step: always as many, so that nothing read can shift them."""
    z, y, x, wording = (float(u) for u in rng.random(4))
    return int(number), Draw((z, y, x), wording)


class _Assemble:
    """Reads and stacks this process's block of a planned batch; a class, so that workers can unpickle it."""

    def __init__(self, reader: PatchReader, block: slice) -> None:
        self.reader, self.block = reader, block

    def __call__(self, plan: Sequence[tuple[int, Draw]]) -> Batch:
        samples = [self.reader.sample(number, draw) for number, draw in plan[self.block]]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


class _PlanBatch:
    """Plans a validation batch: consecutive samples, the last one again where they run out."""

    def __init__(self, batch_size: int, count: int, *, then: Callable[[Sequence[tuple[int, Draw]]], Batch]) -> None:
        self.batch_size, self.count, self.then = batch_size, count, then

    def __call__(self, batch: int) -> Batch:
        first = int(batch) * self.batch_size
        return self.then([(min(row, self.count - 1), CENTRE) for row in range(first, first + self.batch_size)])


def _block(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that a process holds."""
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise InputError(
            f"train.batch_size={batch_size} cannot be shared by {process_count} processes (this is number "
            f"{process_index}): it must be a multiple of their number"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _report_padded(reader: PatchReader) -> None:
    """Say once how many patches are mirrored at their edges."""
    if reader.padded:
        log.warning(
            "%d of %d patches are smaller than %s voxels and are mirrored at their edges",
            len(reader.padded),
            len(reader.chosen),
            reader.patch_size,
        )


def _note_damaged(found: np.ndarray, reader: PatchReader, *, seen: set[int]) -> None:
    """Name each damaged patch once."""
    for place in (int(place) for place in found):
        if place not in seen:
            seen.add(place)
            log.warning("damaged patch, replaced by another: %s", reader.describe(place))
