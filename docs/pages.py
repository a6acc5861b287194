"""What the website makes of files that are no pages: README, RUNBOOK and the recipes, which stay where they are read.

Links that lead out of the website, to results and code, become plain text there, as the project has no public address
to lead to; each is checked to exist.
"""

import ast
import pathlib
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
# A list directly below a paragraph: GitHub shows a list, Python's Markdown needs an empty line between.
LIST = re.compile(r"^(?![-|\s`])(.+)\n(?=- )", re.MULTILINE)
MOVED = {"README.md": "index.md", "RUNBOOK.md": "troubleshooting.md"}


def on_files(files, config):
    """Adds the pages that are made of other files."""
    pages = {target: (ROOT / source).read_text() for source, target in MOVED.items()}
    pages["recipes.md"] = recipes()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=with_links(text, source=ROOT / name, page=name)))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrites the links of the pages that are files of docs/."""
    name = page.file.src_uri
    return markdown if name in (*MOVED.values(), "recipes.md") else with_links(markdown, source=DOCS / name, page=name)


def with_links(text: str, *, source: pathlib.Path, page: str) -> str:
    """Links as the website needs them: to its pages, or plain text for what is beside it.

    Raises:
        PluginError: a link leads to a file that does not exist.
    """

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else target
        if name in MOVED:
            return f"[{words}]({MOVED[name]}{anchor})"
        if path.is_relative_to(DOCS) and path.suffix == ".md":
            return f"[{words}]({path.relative_to(DOCS)}{anchor})"
        if not path.exists():
            raise PluginError(f"{page}: the link [{words}]({target}) leads to {path}, which does not exist")
        return words if name in words else f"{words} (`{name}`)"

    return LIST.sub(r"\1\n\n", LINK.sub(link, text)).replace("](docs/images/", "](images/")


def recipes() -> str:
    """The recipes as each describes itself at its top."""
    told = "`lsmfm recipes` lists them, `lsmfm recipes NAME` shows one, `--config NAME:VARIANT` takes it."
    sections = [f"# Recipes\n\n{told}\n"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        described = ast.get_docstring(ast.parse(path.read_text()))
        if described:
            first, _, rest = described.partition("\n")
            sections.append(f"## {path.stem}\n\n{first}\n\n```text\n{rest.strip()}\n```\n")
    return "\n".join(sections)
