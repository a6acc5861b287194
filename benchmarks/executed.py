"""Which instructions of a program compiled for a TPU run by themselves, how often, and the cycles they are given."""

import re
from collections.abc import Iterator

_CALLED = re.compile(r"condition=(%[\w.-]+), body=(%[\w.-]+)|(?:true|false)_computation=(%[\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def instructions(text: str) -> Iterator[tuple[str, int, bool]]:
    """Each instruction's line, how often it runs, and whether it stands outside of all loops.

    What is inside of a fusion, or called by a reduction or a sort, does not run by itself. A loop runs as often as the
    number in its condition says, which is so for those that JAX makes of `scan`, `map` and `fori_loop` from zero; of a
    choice all branches count.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split(" ")[0]
            entry = name if line.startswith("ENTRY") else entry
            computations[name] = []
        elif " = " in line and name:
            computations[name].append(line)

    def run(name: str, times: int) -> Iterator[tuple[str, int, bool]]:
        for line in computations.get(name, []):
            yield line, times, name == entry
            for condition, body, branch in _CALLED.findall(line):
                found = _LIMIT.search("\n".join(computations.get(condition, [])))
                yield from run(body or branch, times * (int(found[1]) if body and found else 1))
            for branches in _BRANCHES.findall(line):
                for branch in branches.split(", "):
                    yield from run(branch, times)

    yield from run(entry, 1)


def cycles(text: str) -> int:
    """Cycles that the compiler's own model of the chip gives the program, loops as often as they run.

    It gives none to what it does not model: gathers, collectives and copies that run beside others.
    """
    found = ((_CYCLES.search(line), times) for line, times, _ in instructions(text))
    return sum(int(cycles[1]) * times for cycles, times in found if cycles)
