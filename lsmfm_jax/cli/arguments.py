"""Argument types that several commands share."""

import argparse
import math

# Beyond any voxel size in micrometres and any number of voxels along an axis.
LARGEST = 1e6


def three(kind: type) -> object:
    """A parser of three positive numbers `Z,Y,X`."""

    def parse(text: str) -> tuple[float, ...]:
        values = tuple(kind(part) for part in text.split(","))
        # Written so that NaN fails.
        if len(values) != 3 or not all(0 < value <= LARGEST for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: three positive numbers Z,Y,X are needed, up to {LARGEST:g}")
        return values

    parse.__name__ = f"Z,Y,X of {kind.__name__}"
    return parse


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parses whole numbers with commas between them: `0` or `2,4`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers are needed, such as 0 or 2,4") from None


def from_zero(text: str) -> int:
    """Parse the number of a channel or an image, counted from 0."""
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 is needed")
    return int(text)


def at_least_one(text: str) -> int:
    """Parse a number from 1 to 1000."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 to 1000 is needed")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """Parse `I/N`, one part of several."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text}: I/N is needed, from 1/N to N/N")
    return int(number), int(count)


def finite(text: str) -> float:
    """Parse a number that is neither NaN nor infinite, also not in float32."""
    value = float(text)
    if not math.isfinite(value) or abs(value) > 3e38:
        raise argparse.ArgumentTypeError(f"{text!r}: a finite number is needed")
    return value


def axes(text: str) -> str:
    """Parse the order of axes, such as `ZYX` or `CZYX`."""
    letters = text.upper()
    if len(set(letters)) < len(letters) or not set("ZYX") <= set(letters) <= set("CZYX"):
        raise argparse.ArgumentTypeError(f"{text!r}: Z, Y, X and at most C are needed, each once, as in ZYX or CZYX")
    return letters
