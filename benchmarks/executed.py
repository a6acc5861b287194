"""Which instructions of a compiled program run by themselves, how often, and the cycles they are given on a TPU."""

import re
from collections.abc import Iterator

# Loops, choices, and calls of what is run as one (a card's command buffers).
_CALLED = re.compile(
    r"condition=(%[\w.$-]+), body=(%[\w.$-]+)|(?:true|false)_computation=(%[\w.$-]+)| call\(.*to_apply=(%[\w.$-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of the instructions of each computation of a program, and the name of the one that is started."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split(" ")[0]
            entry = name if line.startswith("ENTRY") else entry
            found[name] = []
        elif " = " in line and name:
            found[name].append(line)
    return found, entry


def runs(text: str) -> Iterator[tuple[str, int]]:
    """Each computation whose instructions run by themselves, and how often, once for each place that it runs from.

    What is inside of a fusion, or called by a reduction or a sort, does not run by itself. A loop runs as often as the
    compiler found, or the number in its condition says, which is so for those that JAX makes of `scan`, `map` and
    `fori_loop` from zero; of a choice all branches count.
    """
    program, entry = computations(text)

    def run(name: str, times: int) -> Iterator[tuple[str, int]]:
        yield name, times
        for line in program.get(name, []):
            for condition, body, branch, called in _CALLED.findall(line):
                again = times
                if body:
                    found = _KNOWN.search(line) or _LIMIT.search("\n".join(program.get(condition, [])))
                    again *= int(found[1]) if found else 1
                yield from run(body or branch or called, again)
            for branches in _BRANCHES.findall(line):
                for branch in branches.split(", "):
                    yield from run(branch, times)

    yield from run(entry, 1)


def instructions(text: str) -> Iterator[tuple[str, int, bool]]:
    """Each instruction's line, how often it runs (see `runs`), and whether it stands outside of all loops."""
    program, entry = computations(text)
    for name, times in runs(text):
        for line in program.get(name, []):
            yield line, times, name == entry


def cycles(text: str) -> int:
    """Cycles that the compiler's own model of the chip gives the program, loops as often as they run.

    It gives none to what it does not model: gathers, collectives and copies that run beside others.
    """
    found = ((_CYCLES.search(line), times) for line, times, _ in instructions(text))
    return sum(int(cycles[1]) * times for cycles, times in found if cycles)
