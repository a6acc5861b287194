"""Tables that people make in spreadsheets: CSV as Excel and others write it, in any language's settings."""

import csv
import io
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lsmfm_jax.errors import LsmfmError

_SEPARATORS = (",", ";", "\t")
# Where a table of points is in micrometres, its columns say so.
_VOXELS, _MICROMETRES = ("z", "y", "x"), ("z_um", "y_um", "x_um")


class SpreadsheetError(LsmfmError, ValueError):
    """A table cannot be used: which file and line, why, and what to do about it."""


class Row(NamedTuple):
    """A row of a table: the line of the file on which it ends, and its cells by column."""

    line: int
    cells: dict[str, str]


class Points(NamedTuple):
    """Places of objects, Z, Y, X, in voxels or in micrometres."""

    places: Float[np.ndarray, "n 3"]
    in_um: bool


def read_table(path: pathlib.Path, columns: Sequence[str], *, needed: bool = True) -> list[Row]:
    """The rows of a CSV that has some columns; others may stand beside them.

    Text is UTF-8, UTF-16 or, where it is neither, Windows' Latin-1; cells are separated by commas, semicolons or
    tabs, and may be quoted. Column names are compared without case; blank lines and blank cells at the end of a line
    are left out.

    Args:
        path: the file.
        columns: that must be there.
        needed: without a row below the header the table is an error.

    Raises:
        SpreadsheetError: no text, a column is missing, or a line has another number of cells than the header; the
            message has the number of the line.
    """
    text = _text(path)
    first = text.lstrip("\r\n").split("\n", 1)[0].strip()
    separator = first[4:5] if first.lower().startswith("sep=") else _separator(first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or ",", strict=True)
    header: list[str] = []
    rows = []
    try:
        for values in reader:
            cells = [value.strip() for value in values]
            while cells and not cells[-1] and (not header or len(cells) > len(header)):
                cells.pop()
            if not any(cells) or (cells[0].lower().startswith("sep=") and not header):
                continue
            if not header:
                header = [cell.lower() for cell in cells]
                continue
            if len(cells) != len(header):
                raise SpreadsheetError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)}; put "
                    f"cells that hold a {_named(separator)} in quotes, and leave none out"
                )
            rows.append(Row(reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise SpreadsheetError(f"{path}, line {reader.line_num}: not a table ({error}); save it as CSV again") from None
    missing = [column for column in columns if column not in header]
    if missing or (needed and not rows):
        raise SpreadsheetError(
            f"{path} needs a header with the columns {' and '.join(columns)}, and rows below it; it has "
            f"{', '.join(header) or 'no header'} and {len(rows)} rows"
        )
    return rows


def read_points(path: pathlib.Path) -> Points:
    """Places of objects from a CSV with the columns z, y, x (voxels, from 0) or z_um, y_um, x_um.

    Raises:
        SpreadsheetError: as `read_table`, or a cell is no number; the message has the number of the line.
    """
    in_um = points_in(path) == "um"
    columns = _MICROMETRES if in_um else _VOXELS
    places = []
    for line, cells in read_table(path, columns, needed=False):
        try:
            # A comma is what many languages have for the decimal point.
            place = [float(cells[column].replace(",", ".")) for column in columns]
        except ValueError:
            place = [math.nan]
        if not all(map(math.isfinite, place)):
            shown = ", ".join(repr(cells[column]) for column in columns)
            raise SpreadsheetError(f"{path}, line {line}: {shown} are not three numbers {', '.join(columns)}")
        places.append(place)
    return Points(np.array(places, np.float64).reshape(-1, 3), in_um)


def points_in(path: pathlib.Path) -> str:
    """`voxels` or `um` for a CSV whose header has the columns of points, else an empty text."""
    try:
        first = _text(path).lstrip("\r\n").split("\n", 1)[0].strip()
    except SpreadsheetError:
        return ""
    header = {cell.strip().strip('"').lower() for cell in first.split(_separator(first) or ",")}
    if set(_MICROMETRES) <= header:
        return "um"
    return "voxels" if set(_VOXELS) <= header else ""


def _text(path: pathlib.Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpreadsheetError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if data[:4] == b"PK\x03\x04" or data[:4] == b"\xd0\xcf\x11\xe0":
        raise SpreadsheetError(f"{path} is a workbook and no CSV; save the sheet as CSV")
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise SpreadsheetError(
            f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: not text; save it as CSV"
        )
    return text


def _separator(header: str) -> str:
    """What splits a header into most cells; nothing where it is a single one."""
    best = max(_SEPARATORS, key=header.count)
    return best if best in header else ""


def _named(separator: str) -> str:
    return {"\t": "tab", ";": "semicolon"}.get(separator, "comma")
