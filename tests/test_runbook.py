"""Every message in RUNBOOK.md is one that the program prints: its words are searched in the source."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "RUNBOOK.md").read_text()
HEADINGS = re.findall(r"^### (.*)$", TEXT, re.MULTILINE)
OURS = [heading[1:-1] for heading in HEADINGS if heading.startswith("`") and heading.endswith("`")]
# Not provoked by a test: the reason.
UNPROVOKED = {
    "… contents differ from what was written. Start the run again, which writes it anew, or take a copy": (
        "tests/test_survive.py flips bits of run.json and looks for the file's name, as most of them break the JSON"
    ),
}
OF_JAX = [re.match("`(.*)`", heading)[1] for heading in HEADINGS if heading.endswith("*(from JAX)*")]
VALUE = "\0"


def _templates() -> list[str]:
    """Every text in the package; values that are filled in stand as one mark."""
    found = []
    for path in sorted((ROOT / "lsmfm_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else VALUE for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("%d", VALUE).replace("%s", VALUE))
    return found


TEMPLATES = [template.replace("`", "") for template in _templates()]


def _printed(message: str) -> bool:
    """Whether one text of the program has the message, or two do that are put one after the other."""
    pieces = [piece.strip() for piece in message.split("…")]
    pattern = re.compile(".*?".join(map(re.escape, pieces)), re.DOTALL)
    if any(pattern.search(template) for template in TEMPLATES):
        return True
    return ". " in message and all(_printed(part) for part in re.split(r"\. (?=[A-Z])", message))


@pytest.mark.parametrize("message", OURS)
def test_the_program_prints_it(message):
    assert sum(map(len, message.split("…"))) > 15, "too short to be found by"
    assert _printed(message)


def _asserted() -> str:
    """What other tests look for in what the program says, in one text; patterns without their escapes."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name == pathlib.Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                found.append(node.value.replace("\\", ""))
    return "\n".join(found)


ASSERTED = _asserted()


@pytest.mark.parametrize("message", [message for message in OURS if message not in UNPROVOKED])
def test_another_test_provokes_it(message):
    """Its words, or so many of them that no other message can be meant, stand in what a test looks for."""
    pieces = [piece.strip(" :;,.") for piece in message.split("…")]
    words = [piece.split() for piece in pieces]
    runs = [" ".join(some[i : i + 3]) for some in words for i in range(max(len(some) - 2, 1))]
    assert any(len(run) > 9 and run in ASSERTED for run in runs), runs


def test_the_search_is_strict():
    assert not _printed("non-finite loss, gradient or new state at step …: state thrown away")
    assert not _printed("checkpoint at step … could be written to")
    assert _printed("non-finite loss, gradient or new state at step …: state kept as it was")


@pytest.mark.parametrize("message", OF_JAX)
def test_jax_has_it(message):
    import jaxlib

    libraries = [path for path in pathlib.Path(jaxlib.__file__).parent.rglob("*.so*") if path.stat().st_size > 1e7]
    assert any(message.encode() in path.read_bytes() for path in libraries)


def test_the_symptoms_that_people_search_for_are_there():
    words = ["RESOURCE_EXHAUSTED", "non-finite", "hangs at the start", "GPU waits", "Resume refused", "NCCL"]
    words += ["exit code 75", "disk is full", "damaged checkpoint", "damaged patch", "Captions are missing"]
    for word in [*words, "split is refused"]:
        assert word in TEXT, word


def test_keys_that_it_names_exist():
    from lsmfm_jax.config import flatten, schema

    known = {
        key for task in ("pretrain", "segment", "classify", "deblur", "inpaint") for key, _ in flatten(schema(task))
    }
    named = set(re.findall(r"--config\.([a-z_.]+)=", TEXT))
    named |= set(re.findall(r"`((?:train|data|mesh|text|optim|loss)\.[a-z_]+)", TEXT))
    assert len(named) > 15
    assert not named - known


def test_variables_and_files_that_it_names_exist():
    for path in re.findall(r"`(launch/[a-z_.]+|lsmfm_jax/[a-z_./]+\.py)", TEXT):
        assert (ROOT / path).exists(), path
    source = "".join(TEMPLATES)
    for name in set(re.findall(r"LSMFM_[A-Z]+", TEXT)):
        assert name in source, name
