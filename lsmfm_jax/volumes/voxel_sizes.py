"""Whether voxels are as large as those that a run learnt from: networks count in voxels, so objects change their size.

Only sizes that a file states beyond doubt are compared: many a header says 1, 1, 1 because nobody filled it in.
"""

from collections.abc import Iterable, Sequence

Size = Sequence[float]

# From this factor on a size is another one. Training turns and mirrors but does not zoom, and headers are rounded.
FACTOR = 1.25
# A run that learnt from more sizes than these has met enough of them.
MOST = 20


def is_certain(size: Size | None, source: str) -> bool:
    """Whether a voxel size (Z, Y, X in micrometres) is known, and no default or guess; `source` is the file's word."""
    if size is None or "unverified" in source:
        return False
    return bool(source) or tuple(size) != (1.0, 1.0, 1.0)


def distinct_sizes(sizes: Iterable[tuple[Size | None, str]]) -> list[list[float]]:
    """The certain ones of voxel sizes and their sources, each once, to three digits, at most `MOST`, sorted."""
    found = {tuple(float(f"{side:.3g}") for side in size) for size, source in sizes if is_certain(size, source)}
    return [list(size) for size in sorted(found)[:MOST]]


def other_size(size: Size | None, source: str, trained: Sequence[Size]) -> str | None:
    """A sentence where a volume's voxels are not as large as any that a run learnt from; None where they may be.

    Args:
        size: Z, Y, X in micrometres, of the volume.
        source: where that is from.
        trained: `distinct_sizes` of the training patches; empty: unknown.
    """
    if not trained or not is_certain(size, source):
        return None

    def apart(other: Size) -> float:
        return max(max(a / b, b / a) for a, b in zip(size, other, strict=True))

    nearest = min(trained, key=apart)
    if apart(nearest) < FACTOR:
        return None
    factors = ", ".join(f"{there / here:.3g}" for here, there in zip(size, nearest, strict=True))
    return (
        f"its voxels are {_text(size)} um (ZYX, {source}), those that the run learnt from {_text(nearest)} um: along "
        f"Z, Y, X things are {factors} times as many voxels long as in training, and may be missed. Take another "
        "--level or resample the volume, or finetune on patches of it"
    )


def _text(size: Size) -> str:
    return " x ".join(f"{side:g}" for side in size)
