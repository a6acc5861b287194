"""Imports point one way: cli -> tasks, predict, convert, report -> train -> leaves; leaves know only config."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsmfm_jax"
LEAVES = {"models", "losses", "metrics", "masking", "augment", "resample", "data"}
CONFIG = {"config", "config_files"}
# Which rooms a room may import; every room may import itself.
ALLOWED = {
    **dict.fromkeys(LEAVES, CONFIG),
    "config_schema": set(),
    "config": {"config_schema"},
    "config_files": {"config"},
    "augment": CONFIG | {"resample"},
    "train": LEAVES | CONFIG,
    "tasks": LEAVES | CONFIG | {"train", "convert"},
    "convert": LEAVES | CONFIG | {"train"},
    "predict": LEAVES | CONFIG | {"train", "tasks", "convert", "baselines"},
    "evaluate": LEAVES | CONFIG,
    "baselines": LEAVES | CONFIG,
    "report": CONFIG | {"train"},
    "verify": CONFIG | {"train", "data"},
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
        allowed = ALLOWED.get(room, set()) | {room}
        if "*" in allowed:
            continue
        wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in _imported_rooms(path) - allowed]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_an_upward_import(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from lsmfm_jax.tasks import pretrain\n    from lsmfm_jax import cli\n")
    assert _imported_rooms(file) == {"tasks", "cli"}


def test_no_file_is_over_400_lines():
    long = [
        f"{path.relative_to(ROOT)}: {count}"
        for folder in ("lsmfm_jax", "configs", "tests", "benchmarks", "launch")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (count := len(path.read_text().splitlines())) > 400
    ]
    assert not long, "\n".join(long)
