"""Imports point one way: cli -> tasks, predict, convert, report -> train -> leaves; leaves know little."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsmfm_jax"
# Every room may import the errors, the one module that writes files, itself, and what stands here.
LEAVES = {
    "models",
    "losses",
    "metrics",
    "masking",
    "augment",
    "appearance",
    "resample",
    "precision",
    "scale",
    "volumes",
    "store",
    "data",
    "phantom",
}
ALLOWED = {
    "errors": set(),
    "keys": set(),
    "files": set(),
    "locks": set(),
    **{room: {"config"} for room in LEAVES},
    # What a backbone declares of itself; no module of it is imported (see test_declarations.py).
    "models": {"keys", "precision"},
    "losses": {"config", "precision"},
    "precision": set(),
    "config": {"keys", "models"},
    "augment": {"resample"},
    "appearance": {"resample"},
    "volumes": {"files"},
    "phantom": {"volumes", "files"},
    "store": {"volumes", "files", "locks"},
    "data": {"config", "scale", "volumes", "store", "files"},
    "train": LEAVES | {"config", "files"},
    "html_page": set(),
    "planning": LEAVES | {"config", "files", "html_page"},
    "tasks": LEAVES | {"config", "files", "train", "convert", "baselines", "planning"},
    "convert": LEAVES | {"config", "files", "train"},
    "predict": LEAVES | {"config", "files", "train", "tasks", "convert", "baselines", "html_page"},
    # Results of whole brains, and the components of volumes that are read by blocks.
    "evaluate": LEAVES | {"config", "files", "predict"},
    # It runs the other commands as processes, so it knows neither tasks nor training.
    "experiment": {"config", "data", "files", "html_page", "locks", "metrics", "phantom", "store", "volumes"},
    "sweep": {"config", "experiment", "files", "html_page", "locks"},
    "ranking": {"data", "volumes", "metrics", "html_page", "files"},
    "api": LEAVES | {"config", "files", "train", "tasks", "predict"},
    "baselines": LEAVES | {"config"},
    "publish": {"files", "models", "scale", "store", "tasks", "train", "convert", "volumes"},
    "report": {"config", "files", "train", "html_page"},
    "verify": {"config", "files", "train", "store"},
    "cli": {"*"},
}


def _room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "lsmfm_jax" else [f"lsmfm_jax.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lsmfm_jax.")}
    return rooms - {"__version__"}


def test_imports_point_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = _room(path)
        if room == "__init__":
            continue
        allowed = ALLOWED.get(room, set()) | {room, "errors", "files"}
        if "*" in allowed:
            continue
        wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in _imported_rooms(path) - allowed]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_an_upward_import(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from lsmfm_jax.tasks import pretrain\n    from lsmfm_jax import cli\n")
    assert _imported_rooms(file) == {"tasks", "cli"}


def test_no_file_is_over_300_lines_and_no_test_over_400():
    most = {"lsmfm_jax": 300, "configs": 300, "benchmarks": 300, "launch": 300, "tests": 400}
    long = [
        f"{path.relative_to(ROOT)}: {count}"
        for folder, limit in most.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (count := len(path.read_text().splitlines())) > limit
    ]
    assert not long, "\n".join(long)
