"""How much larger a TPU's arrays are than their values, read off a compiled program's text.

A layout `{3,2,1,0:T(8,128)(2,1)}` names the axes from the fastest to the slowest. The two fastest are cut into tiles of
8 x 128 values, which are always whole: a map with 36 channels along the fastest axis takes the place of one with 128,
a map with one channel 128 times its own.
"""

import math
import re
from typing import Any

from compiled_program import BYTES
from executed import instructions

# They write nothing, or repeat what another instruction wrote.
_NO_MEMORY = {"tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier", "constant"}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_LAID_OUT = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"\(([\d,]+)\)")
LARGEST = 8


def waste(text: str) -> dict[str, Any]:
    """Bytes of arrays as laid out and without padding, their ratio, and the arrays that waste most.

    Counted are the results of the instructions of the program and of its loops' bodies, each once however often a
    loop runs, and its arguments; not what stays inside of a fusion, which has no place in memory, nor what lies in
    the chip's own fast memory (a layout with `S(1)` or higher). They do not all exist at one time: the ratio says
    how much of what is read and written is padding, not how much of the peak.
    """
    logical = laid_out = 0
    wasted: dict[str, list[int]] = {}
    for result in _results(text):
        for array in _LAID_OUT.finditer(result):
            if re.search(r"S\([1-9]", array[4] or ""):
                continue
            values, padded = array_bytes(array[0])
            logical, laid_out = logical + values, laid_out + padded
            entry = wasted.setdefault(array[0], [0, 0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + padded - values
    largest = sorted(wasted.items(), key=lambda item: -item[1][1])[:LARGEST]
    return {
        "logical_bytes": logical,
        "laid_out_bytes": laid_out,
        "ratio": round(laid_out / logical, 3) if logical else 1.0,
        "largest": [{"array": name, "count": count, "wasted_bytes": more} for name, (count, more) in largest],
    }


def array_bytes(array: str) -> tuple[int, int]:
    """Bytes of the values of an array such as `bf16[8,64,36]{2,1,0:T(8,128)(2,1)}`, and of the array as laid out."""
    found = _LAID_OUT.match(array)
    if found is None:
        raise ValueError(f"{array!r} is no array")
    kind, shape, order, layout = found.groups()
    sizes = [int(size) for size in shape.split(",") if size]
    width = BYTES.get(kind, 4)
    physical = [sizes[int(axis)] for axis in reversed((order or "").split(",")) if axis]
    tiles = [[int(size) for size in tile.split(",")] for tile in _TILE.findall((layout or "").partition("S(")[0])]
    return math.prod(sizes) * width, _padded(physical or sizes, tiles) * width


def _padded(sizes: list[int], tiles: list[list[int]]) -> int:
    """Places that sizes, the slowest first, take in tiles; further tiles cut up the first one."""
    if not tiles:
        return math.prod(sizes)
    tile, rest = tiles[0], tiles[1:]
    sizes = [1] * (len(tile) - len(sizes)) + sizes
    slower = len(sizes) - len(tile)
    whole = math.prod(-(-size // step) for size, step in zip(sizes[slower:], tile, strict=True))
    return math.prod(sizes[:slower]) * whole * _padded(tile, rest)


def _results(text: str) -> list[str]:
    """Result types of the instructions that write to memory."""
    found = []
    for line, _, outside_loops in instructions(text):
        instruction = _INSTRUCTION.match(line)
        if instruction is None or instruction[2].endswith("-start") or instruction[2] in _NO_MEMORY:
            continue
        if outside_loops or instruction[2] != "parameter":
            found.append(instruction[1])
    return found
