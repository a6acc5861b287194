"""The files that come back from experts, and the key: read, and checked against each other."""

import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lsmfm_jax.files import DamagedFile, read_json, read_sealed
from lsmfm_jax.ranking.cases import RankingError
from lsmfm_jax.ranking.kit import KEY, KEY_VERSION
from lsmfm_jax.volumes.names import printable

RESULTS = "ranking results"
RESULTS_VERSION = 1
_ASK = "ask the expert to save it again from the page"


class KeyCase(NamedTuple):
    """A case as the key has it: the image, its volume, and the method behind each letter."""

    name: str
    image: str
    volume: str
    methods: dict[str, str]


class Key(NamedTuple):
    """The key of a kit.

    Attributes:
        kit: id of the kit.
        methods: names, in the order of the command line that made the kit.
        cases: in the order in which experts see them.
    """

    kit: str
    methods: tuple[str, ...]
    cases: tuple[KeyCase, ...]


class ExpertRanking(NamedTuple):
    """What one expert said.

    Attributes:
        expert: name or initials.
        path: the file.
        orders: by case: its methods, the best first; finished cases only, in the order of the kit.
        unfinished: names of the other cases.
    """

    expert: str
    path: pathlib.Path
    orders: dict[str, tuple[str, ...]]
    unfinished: tuple[str, ...]


def read_key(path: str | pathlib.Path) -> Key:
    """Read the key of a kit.

    Raises:
        RankingError: it is another file.
        DamagedFile: it is missing, or differs from what was written.
    """
    path = pathlib.Path(path)
    body = read_json(path)
    if body.get("what") != KEY:
        kind = "results of an expert" if body.get("what") == RESULTS else "something else"
        raise RankingError(f"--key {path}: it holds {kind}; name the KIT.key.json that lsmfm ranking make wrote")
    body = read_sealed(path)
    if body["version"] != KEY_VERSION:
        raise RankingError(f"--key {path}: it is of version {body['version']}, this program reads {KEY_VERSION}")
    cases = tuple(KeyCase(one["case"], one["image"], one["volume"], one["letters"]) for one in body["cases"])
    return Key(body["kit"], tuple(one["name"] for one in body["methods"]), cases)


def read_results(paths: Sequence[str | pathlib.Path], key: Key) -> list[ExpertRanking]:
    """Read the files of all experts.

    Raises:
        RankingError: no file, two of one expert, or one that is not of this kit, holds something that the page does
            not write, or was changed afterwards.
    """
    found: dict[str, ExpertRanking] = {}
    for path in map(pathlib.Path, paths):
        ranking = _read_one(path, key)
        if ranking.expert in found:
            raise RankingError(
                f"{path}: the expert {ranking.expert!r} is in {found[ranking.expert].path} as well; name one of the two"
            )
        found[ranking.expert] = ranking
    if not found:
        raise RankingError("no results: name the files that experts saved from the page")
    return list(found.values())


def _read_one(path: pathlib.Path, key: Key) -> ExpertRanking:
    try:
        body = read_json(path)
    except DamagedFile as error:
        raise RankingError(f"{path}: {error.reason}; name a file that an expert saved from the page") from None
    if body.get("what") != RESULTS or body.get("version") != RESULTS_VERSION:
        raise RankingError(
            f"{path}: it holds no results of a ranking that this program reads; name a file that an expert saved from "
            "the page"
        )
    if body.get("kit") != key.kit:
        raise RankingError(
            f"{path}: results of another kit ({_shown(body.get('kit'))}), and the key is of {key.kit}; name the key of "
            "the kit that the expert had, or leave the file out"
        )
    expert, rankings = body.get("expert"), body.get("rankings")
    if not isinstance(expert, str) or not expert.strip() or not isinstance(rankings, dict):
        raise RankingError(f"{path}: it names no expert or has no rankings; {_ASK}")
    letters = {case.name: case.methods for case in key.cases}
    for case, order in rankings.items():
        if case not in letters:
            raise RankingError(f"{path}: it ranks the unknown case {_shown(case)}; {_ASK}")
        _check_order(path, case, order, letters[case])
    if body.get("check") != check_number(key, expert, rankings):
        raise RankingError(f"{path}: it was changed after it was saved, as its check number tells; {_ASK}")
    orders = {
        case.name: tuple(case.methods[letter] for letter in rankings[case.name])
        for case in key.cases
        if len(rankings.get(case.name, ())) == len(key.methods)
    }
    unfinished = tuple(case.name for case in key.cases if case.name not in orders)
    return ExpertRanking(printable(expert.strip()), path, orders, unfinished)


def _check_order(path: pathlib.Path, case: str, order: Any, letters: Mapping[str, str]) -> None:
    if not isinstance(order, list) or not order or not all(isinstance(one, str) for one in order):
        raise RankingError(f"{path}: {case} has no list of letters but {_shown(order)}; {_ASK}")
    for letter in order:
        if letter not in letters:
            raise RankingError(
                f"{path}: {case} ranks the unknown picture {_shown(letter)}, and has {', '.join(letters)}; {_ASK}"
            )
        if order.count(letter) > 1:
            raise RankingError(f"{path}: {case} ranks {letter} {order.count(letter)} times; {_ASK}")


def check_number(key: Key, expert: str, rankings: Mapping[str, Sequence[str]]) -> str:
    """What the page writes as `check`: a CRC-32 of kit, expert and ranks, against edits by hand and damage."""
    ranked = [f"{case.name} {''.join(rankings[case.name])}" for case in key.cases if case.name in rankings]
    return f"{zlib.crc32(chr(10).join([key.kit, expert, *ranked]).encode('utf-8', 'surrogatepass')):08x}"


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 40 else f"{text[:37]}..."
