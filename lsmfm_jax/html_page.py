"""Pages that open from disk without a network: their frame, tables, and pictures that are part of the file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto; max-width: 70rem;
       padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.muted { color: #5c6b7f; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid #e3e8ef; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .8rem; }
.curves svg { width: 100%; height: auto; } img { max-width: 100%; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; } pre { background: #f5f7fa; padding: .8rem; overflow: auto; }
"""


def page(title: str, parts: Sequence[str], *, head: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        parts: HTML of the body, one after the other.
        head: HTML that goes before the title.
    """
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text with a line of headings."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def columns_of(tables: Mapping[str, Mapping[str, str]]) -> str:
    """A table with a column for each of some mappings that have the same keys, which are its lines."""
    names = list(next(iter(tables.values())))
    return table(["", *tables], [[name, *(column[name] for column in tables.values())] for name in names])


def png(data: bytes, text: str) -> str:
    """A picture from the bytes of a PNG; `text` says what it shows."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def drawn(figure: Figure, text: str) -> str:
    """A picture from a figure; `text` says what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return png(buffer.getvalue(), text)
