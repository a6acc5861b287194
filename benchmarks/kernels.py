"""The kernels of a step compiled for a graphics card: operations of each, and bytes it reads and writes.

Read off the compiled program's text, as `compiled.as_text()` gives it. A kernel is an instruction that runs by itself:
a fusion, a call of a library, a copy; what is inside of a loop counts as often as the loop runs. Operations are those
of convolutions and matrix products, two for each multiply-add; all others are done while the bytes are on their way.
Each operand is read once and each result written once. Of an array that a fusion only cuts pieces out of, the pieces
count, and of one that it changes in place, what is changed. Workspace of libraries does not count. A hand-written
kernel declares both; one that does not is taken to read and write each array once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from compiled_program import ARRAY, BYTES, arrays, uncommented
from executed import computations, runs

# They compute nothing, or their parts are kernels.
_NO_KERNEL = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "iota",
}  # fmt: skip
# A Pallas kernel for a graphics card.
_PALLAS = 'custom_call_target="__gpu$xla.gpu.triton"'
_PIECES = {"dynamic-slice", "slice", "gather"}
_INSTRUCTION = re.compile(r"^\s*(ROOT )?(%[\w.$-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)(?:,|$)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: with `%`, unique in its computation.
        result: its type, such as `bf16[8,64]{1,0}`, or several in brackets.
        operation: such as `fusion`.
        operands: names.
        line: all of it.
        root: it is what its computation returns.
    """

    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    line: str
    root: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one instruction costs.

    Attributes:
        name: of the instruction.
        kind: convolution, product, copy, hand-written or other.
        source: the JAX operation that it came from, where the program says so.
        times: how often it runs in a step.
        operations: each time.
        bytes: read and written, each time.
    """

    name: str
    kind: str
    source: str
    times: int
    operations: int
    bytes: int


def kernels(text: str) -> list[Kernel]:
    """Every kernel of a program for one card, in the program's order."""
    program = {name: parsed(lines) for name, lines in computations(text)[0].items()}
    found = []
    for computation, times in runs(text):
        here = program[computation]
        for instruction in here.values():
            if instruction.operation in _NO_KERNEL or instruction.operation.endswith(("-done", "-update")):
                continue
            operations, kind = _work(instruction, here, program)
            moved = _bytes(instruction, here, program)
            source = re.search(r'op_name="([^"]*)"', instruction.line)
            found.append(Kernel(instruction.name, kind, source[1] if source else "", times, operations, moved))
    return found


def parsed(lines: list[str]) -> dict[str, Instruction]:
    """Instructions of one computation by name."""
    found = {}
    for line in lines:
        match = _INSTRUCTION.match(uncommented(line))
        if match:
            root, name, result, operation, operands = match.groups()
            names = tuple(re.findall(r"%[\w.$-]+", operands))
            found[name] = Instruction(name, result, operation, names, line, bool(root))
    return found


Computation = dict[str, Instruction]


def _work(instruction: Instruction, here: Computation, program: dict[str, Computation]) -> tuple[int, str]:
    """Operations of an instruction, those inside of a fusion included, and its kind."""
    if instruction.operation == "fusion":
        inside = program.get(_called(instruction), {})
        parts = [_work(one, inside, program) for one in inside.values()]
        kinds = {kind for _, kind in parts} & {"convolution", "product"}
        return sum(operations for operations, _ in parts), min(kinds, default="other")
    if "__cudnn$conv" in instruction.line or instruction.operation == "convolution":
        return convolution_operations(instruction, here), "convolution"
    if _PALLAS in instruction.line:
        return _declared("operations", instruction) or 0, "hand-written"
    if instruction.operation == "dot" or "__cublas$" in instruction.line:
        return _product_operations(instruction, here), "product"
    return 0, "copy" if instruction.operation in ("copy", "copy-start", "transpose") else "other"


def _declared(what: str, instruction: Instruction) -> int | None:
    """What a hand-written kernel says that it costs; nothing else can know how often it reads an array."""
    found = re.search(rf"\\22{what}\\22: \\22(\d+)\\22", instruction.line) if _PALLAS in instruction.line else None
    return int(found[1]) if found else None


def convolution_operations(instruction: Instruction, here: Computation) -> int:
    """Twice the multiply-adds: each value of the output's side meets the kernel of its channel once.

    So it is for a convolution and for its gradients in input and kernel; products with padding count.
    """
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", instruction.line)
    result, (left, right) = instruction.result, (here[name].result for name in instruction.operands[:2])
    if "BackwardFilter" in instruction.line:
        output, kernel = right, result
    elif "BackwardInput" in instruction.line:
        output, kernel = left, right
    else:
        output, kernel = result, right
    if labels is None:
        raise ValueError(f"no dim_labels in {instruction.line.strip()[:200]}")
    channels = _sizes(kernel)[labels[1].index("o")]
    return 2 * math.prod(_sizes(output)) * math.prod(_sizes(kernel)) // channels


def _product_operations(instruction: Instruction, here: Computation) -> int:
    contracted = re.search(r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]*)", instruction.line)
    left = _sizes(here[instruction.operands[0]].result)
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2 * math.prod(_sizes(instruction.result)) * math.prod(left[axis] for axis in axes)


def _bytes(instruction: Instruction, here: Computation, program: dict[str, Computation]) -> int:
    inside = program.get(_called(instruction), {}) if instruction.operation == "fusion" else {}
    given = dict(zip(_parameters(inside), instruction.operands, strict=False))
    changed = _changed_in_place(inside)
    declared = _declared("bytes", instruction)
    if declared is not None:
        return declared
    read = 0
    for name in dict.fromkeys(instruction.operands):
        inner = [parameter for parameter, outer in given.items() if outer == name]
        sizes = [_read_of(parameter, inside, changed) for parameter in inner]
        # Where it is cut up and also read whole, whole.
        read += _size(here[name].result) if not inner or None in sizes else sum(sizes)
    if instruction.operation in _PIECES:
        read = _size(instruction.result)
    if instruction.operation == "dynamic-update-slice":
        return 2 * _size(here[instruction.operands[1]].result)
    return read + _written(instruction, inside, changed)


def _read_of(parameter: str, inside: Computation, changed: dict[str, str]) -> int | None:
    """Bytes that a fusion reads of a parameter; None: all."""
    users = [one for one in inside.values() if parameter in one.operands]
    if not users:
        return 0
    size = 0
    for one in users:
        if one.operation in _PIECES and one.operands[0] == parameter:
            size += _size(one.result)
        elif not (one.name in changed and one.operands[0] == parameter):
            return None
    return size


def _changed_in_place(inside: Computation) -> dict[str, str]:
    """Changes to a part of an array that are results of a fusion: their names, and what is put in."""
    root = next((one for one in inside.values() if one.root), None)
    if root is None:
        return {}
    results = [inside[name] for name in root.operands if name in inside] if root.operation == "tuple" else [root]
    return {one.name: one.operands[1] for one in results if one.operation == "dynamic-update-slice"}


def _written(instruction: Instruction, inside: Computation, changed: dict[str, str]) -> int:
    if instruction.operation.endswith("-start"):
        # What starts a copy lists the source beside the result.
        return max(size for _, size in arrays(instruction.result))
    written = _size(instruction.result)
    if instruction.operation == "custom-call":
        workspace = re.search(r"[su]8\[(\d+)\][^ ]*\)$", instruction.result)
        return written - int(workspace[1]) if workspace else written
    for name, part in changed.items():
        written += _size(inside[part].result) - _size(inside[name].result)
    return written


def _called(instruction: Instruction) -> str:
    found = re.search(r"calls=(%[\w.$-]+)", instruction.line)
    return found[1] if found else ""


def _parameters(inside: Computation) -> Iterator[str]:
    numbered = ((re.search(r" parameter\((\d+)\)", one.line), name) for name, one in inside.items())
    return (name for _, name in sorted((int(number[1]), name) for number, name in numbered if number))


@functools.cache
def _size(result: str) -> int:
    return sum(size for _, size in arrays(result))


def _sizes(result: str) -> list[int]:
    """Sizes of the first array of a result."""
    found = ARRAY.search(result)
    if found is None or found[1] not in BYTES:
        raise ValueError(f"{result!r} begins with no array of a known type")
    return [int(size) for size in found[2].split(",") if size]
