"""What a compiled program does, read off its text and its memory analysis."""

import collections
import math
import re
from typing import Any

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# An all-gather of this many elements or more moves a map of voxels, not parameters or embeddings.
ACTIVATION_ELEMENTS = 64**3
# A convolution with a window this wide is a weight gradient in the slow form.
WIDE_WINDOW = 10

ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_RESULT = re.compile(r"= (\([^=]*?\)|\S+) ([a-z][\w-]*)\(")
# In long lists of results: `/*index=5*/`.
_COMMENT = re.compile(r"/\*.*?\*/")


def describe(compiled: Any) -> dict[str, Any]:
    """Memory, collectives, layouts, and what must not be there."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    lines = [line for line in text.splitlines() if " = " in line]
    collectives = _collectives(lines)
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "collectives": collectives,
        "convolution_windows": _windows(lines),
        "convolution_layouts": _layouts(lines),
        "copies_and_transposes": _moves(lines),
        "deepest_convolution": deepest_convolution(lines),
        "wide_convolutions": wide_convolutions(lines),
        "gathered_activations": gathered_activations(lines),
    }


def uncommented(line: str) -> str:
    """A line of a program without the remarks in it."""
    return _COMMENT.sub("", line)


def _operation(line: str) -> tuple[str, str]:
    """Result type and name of an instruction; a name without `-start`, empty for the `-done` half."""
    found = _RESULT.search(uncommented(line))
    if found is None:
        return "", ""
    name = found[2]
    return found[1], "" if name.endswith("-done") else name.removesuffix("-start")


def arrays(result: str) -> list[tuple[int, int]]:
    """Elements and bytes of each array in a result type."""
    found = []
    for kind, sizes in ARRAY.findall(result):
        elements = math.prod(int(size) for size in sizes.split(",") if size)
        found.append((elements, elements * BYTES.get(kind, 4)))
    return found


def _collectives(lines: list[str]) -> dict[str, dict[str, int]]:
    """How often each collective stands in the program, and the bytes of its results on one device."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        result, name = _operation(line)
        if name not in COLLECTIVES:
            continue
        # What starts a gather or a permutation lists its inputs before its results.
        size = sum(bytes_ for _, bytes_ in arrays(result))
        if f"{name}-start(" in line and name in ("all-gather", "collective-permute"):
            size = max(bytes_ for _, bytes_ in arrays(result))
        entry = found.setdefault(name, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += size
    return found


def _is_convolution(line: str) -> bool:
    # For TPUs XLA writes every matrix product as a convolution, whose window may be what it is repeated over.
    if re.search(r'op_name="[^"]*dot_general"', line):
        return False
    return " convolution(" in line or 'custom_call_target="__cudnn$conv' in line


def _windows(lines: list[str]) -> dict[str, int]:
    sizes = (re.search(r"window=\{size=([\dx]+)", line) for line in lines if _is_convolution(line))
    return dict(collections.Counter(size[1] for size in sizes if size).most_common())


def wide_convolutions(lines: list[str]) -> list[str]:
    """Windows of 10 and more, of convolutions."""
    return [size for size in _windows(lines) if max(map(int, size.split("x"))) >= WIDE_WINDOW]


def deepest_convolution(lines: list[str]) -> int:
    """The largest Z of a convolution's result on one device, voxels."""
    found = [0]
    for line in lines:
        labels = re.search(r"dim_labels=\w+->(\w+)", line)
        sizes = ARRAY.search(line.partition(" = ")[2])
        # A weight gradient's result is a kernel, whose extent is no volume's.
        if _is_convolution(line) and labels and sizes and "BackwardFilter" not in line and "0" in labels[1]:
            found.append(int(sizes[2].split(",")[labels[1].index("0")]))
    return max(found)


def gathered_activations(lines: list[str]) -> list[str]:
    """Result types of all-gathers as large as a map of voxels."""
    found = []
    for line in lines:
        result, name = _operation(line)
        if name == "all-gather" and any(elements >= ACTIVATION_ELEMENTS for elements, _ in arrays(result)):
            found.append(result)
    return found


def _layouts(lines: list[str]) -> dict[str, int]:
    labels = (re.search(r"dim_labels=(\S+?),? ", line + " ") for line in lines if _is_convolution(line))
    return dict(collections.Counter(label[1].rstrip(",") for label in labels if label).most_common())


def _moves(lines: list[str]) -> dict[str, int]:
    """Copies and transposes that are instructions of their own, and the bytes they write."""
    found = {"count": 0, "bytes": 0}
    for line in lines:
        result, name = _operation(line)
        if name in ("copy", "transpose"):
            found["count"] += 1
            found["bytes"] += sum(bytes_ for _, bytes_ in arrays(result))
    return found
