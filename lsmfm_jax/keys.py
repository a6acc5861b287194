"""One key of a configuration. Imports nothing, so that models can declare theirs beside themselves."""

import dataclasses
from typing import Any

# Of any number without a limit of its own: steps, samples and voxels are counted in 32 bits on the devices.
LARGEST = 10**9


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        default: the value a recipe starts from; its type is the key's type (an int is taken for a float).
        meaning: what it does, with its unit.
        choices: the allowed values, or None.
        low: smallest allowed number (for tuples: of each element), or None.
        high: largest allowed number (likewise); `-LARGEST` and `LARGEST` bound every number. NaN is never allowed.
        length: how many elements a tuple has; None: any number, none at all only if the default has none.
        of: type of the elements of a tuple whose default has none.
    """

    default: Any
    meaning: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    length: int | None = None
    of: type = str


Schema = dict[str, "Key | Schema"]
