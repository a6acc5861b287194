"""What a user can do wrong is one line and exit code 2; every message of the runbook that needs no cluster is met."""

import ast
import errno
import json
import os
import pathlib
import re
import shutil
import sys
import tomllib

import jax
import jaxlib
import numpy as np
import pytest
from labelled_toy import write_patch, write_patches

from lsmfm_jax import cli
from lsmfm_jax.cli.failures import explained
from lsmfm_jax.config import load_config
from lsmfm_jax.config.load import as_json
from lsmfm_jax.errors import InputError, LsmfmError
from lsmfm_jax.files import replace_json
from lsmfm_jax.locks import Locked, locked
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.train import compilation
from lsmfm_jax.train.platform_flags import FLAGS, Flag
from lsmfm_jax.train.resume import ResumeError, check_run_folder
from lsmfm_jax.train.sharding import batch_shardings, make_mesh

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsmfm_jax"


def _refused(capsys, *arguments):
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert cli.main([str(part) for part in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if line.startswith("lsmfm: ")]
    assert len(lines) == 1 and not any("Traceback" in line for line in said), said
    return lines[0]


def _pretrain(folder, store, **settings):
    values = {
        "data.stores": (str(store),) if store else (),
        "data.patch_size": (16, 16, 16),
        "data.input_size": (16, 16, 16),
        "model.unet.channels": (4, 8),
        "model.unet.strides": (2,),
        "train.batch_size": 8,
        "text.enabled": False,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    return ["pretrain", "--config", ROOT / "configs" / "pretrain_unet.py:tiny", "--workdir", folder, *overrides]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores without captions: of several volumes, and of one."""
    folder = tmp_path_factory.mktemp("stores")
    write_patches(folder / "p", count=4, size=16)
    for number in range(2):
        write_patch(folder / "q", f"dense_patch_{number:03d}_vol000_ch0", size=16, seed=number)
    for source, out in (("p", "several"), ("q", "one")):
        root = ["--layout", "flat", "--root", str(folder / source)]
        assert cli.main(["data", "ingest", *root, "--out", str(folder / out)]) == 0
    return folder


def _heading(words):
    """The heading of the runbook that has these words, with its values left open, as a pattern."""
    found = [line[5:-1] for line in (ROOT / "RUNBOOK.md").read_text().splitlines() if line.startswith("### `")]
    (heading,) = [line for line in found if words in line]
    return ".*?".join(re.escape(piece.strip()) for piece in heading.split("…"))


PROVOKED = {
    "does not divide the number of devices, …": {"mesh__data": -1, "mesh__fsdp": 3},
    "data.stores: ()": {"store": None},
    "text.enabled: True, but no store has captions": {"text__enabled": True},
    "two are needed, one for each side": {"store": "one"},
}


@pytest.mark.parametrize("words", PROVOKED)
def test_a_message_of_the_runbook_is_one_line(stores, tmp_path, capsys, words):
    if jax.device_count() != 8:
        pytest.skip("eight devices are set up by conftest.py")
    settings = dict(PROVOKED[words])
    name = settings.pop("store", "several")
    line = _refused(capsys, *_pretrain(tmp_path / "run", stores / name if name else None, **settings))
    assert re.search(_heading(words), line.replace("`", "")), line


@pytest.mark.parametrize(
    ("words", "shape"),
    [("is not a multiple of the … devices along", (3, 8, 8, 8)), ("does not divide the … voxels", (4, 6, 8, 8))],
)
def test_a_batch_that_the_mesh_does_not_divide(words, shape):
    mesh = make_mesh(data=2, fsdp=1, depth=4)
    with pytest.raises(LsmfmError) as refused:
        batch_shardings({"image": jax.ShapeDtypeStruct(shape, np.float32)}, mesh, split_depth=True)
    assert re.search(_heading(words), explained(refused.value))


def test_messages_of_the_runbook_about_a_run_folder(stores, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = _pretrain(folder, stores / "several")
    (folder / "config.json").write_text('{"seed": 1')
    line = _refused(capsys, *arguments)
    assert re.search(_heading("Resume refused: restore it from a copy, or remove it"), line), line
    (folder / "config.json").write_text(json.dumps({"seed": 123456}))
    line = _refused(capsys, *arguments)
    assert re.search(_heading("holds a run of another configuration"), line), line
    (folder / "config.json").unlink()
    (folder / "split.json").write_text('{"by_file": false}')
    assert "its checksum does not match its content" in _refused(capsys, *arguments)
    assert "is not a patch store: it has no" in _refused(capsys, *_pretrain(tmp_path / "other", tmp_path))


def test_paths_of_every_kind_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        ingest = ["data", "ingest", "--layout", "flat", "--out", tmp_path / "s", "--root", path]
        for arguments in (
            ingest,
            ["data", "info", path],
            ["report", path],
            ["card", path],
            ["package", path, "--out", tmp_path / "o"],
            ["zeroshot", path, tmp_path, "--classes", path],
            ["verify", path],
            ["convert", "import", path, "--out", tmp_path / "o"],
            ["convert", "export", path, "--out", tmp_path / "o.pt"],
            ["predict", "--checkpoint", path, tmp_path, "--out", tmp_path / "o"],
            ["evaluate", "--pred", path, "--label", path, "--out", tmp_path / "o.csv"],
            ["data", "phantom", "--out", tmp_path / "file", "--size", "8,8,8"],
        ):
            _refused(capsys, *arguments)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


def test_sizes_that_cannot_be_are_one_line_and_leave_no_folder(tmp_path, capsys):
    for more in (["--count", "0"], ["--count", "-3"], ["--size", "7,16,16"]):
        line = _refused(capsys, "data", "phantom", "--out", tmp_path / "p", *more)
        assert "at least" in line and not (tmp_path / "p").exists()


def test_what_a_command_did_not_make_is_not_replaced(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    mine = tmp_path / "thesis" / "captions.json"
    mine.write_text("mine")
    phantom = ["data", "phantom", "--out", tmp_path / "thesis", "--count", "1", "--size", "8,8,8"]
    assert "did not write is there already" in _refused(capsys, *phantom)
    assert mine.read_text() == "mine" and len(list(mine.parent.iterdir())) == 1
    phantom[3] = tmp_path / "p"
    for _ in range(2):  # into a folder of its own it may write again
        assert cli.main([str(part) for part in phantom]) == 0
    patches = write_patches(tmp_path / "patches", count=2, size=16)
    label = next(patches.glob("*_label.nii.gz"))
    before = label.read_bytes()
    evaluate = ["evaluate", "--pred", patches, "--label", patches, "--out"]
    assert str(label) in _refused(capsys, *evaluate, label) and label.read_bytes() == before
    assert "a folder" in _refused(capsys, *evaluate, patches)
    assert str(patches) in _refused(capsys, "convert", "import", label, "--out", patches)


def test_data_that_moved_is_the_same_data_and_another_number_of_stores_is_not(tmp_path):
    config = load_config(f"{ROOT / 'configs' / 'segment_unet.py'}:tiny", ["--config.data.folder=/old/place"])
    values = as_json(config)
    replace_json(tmp_path / "config.json", values)
    moved = load_config(f"{ROOT / 'configs' / 'segment_unet.py'}:tiny", ["--config.data.folder=/new/place"])
    with pytest.raises(ResumeError, match=r"data\.folder"):
        check_run_folder(moved, tmp_path)  # no split that could tell whether it is the same data
    replace_json(tmp_path / "split.json", {})
    assert check_run_folder(moved, tmp_path)
    pretraining = f"{ROOT / 'configs' / 'pretrain_unet.py'}:tiny"
    replace_json(tmp_path / "config.json", as_json(load_config(pretraining, ["--config.data.stores=('a',)"])))
    assert check_run_folder(load_config(pretraining, ["--config.data.stores=('b',)"]), tmp_path)
    with pytest.raises(ResumeError, match=r"data\.stores"):
        check_run_folder(load_config(pretraining, ["--config.data.stores=('a', 'b')"]), tmp_path)


def test_a_split_knows_its_patches_by_their_hashes_wherever_they_are(tmp_path):
    config = load_config(f"{ROOT / 'configs' / 'segment_unet.py'}:tiny").copy_and_resolve_references()
    config.data.folder = str(write_patches(tmp_path / "old", count=4, size=16))
    read_patches(config, tmp_path / "run", print_line=lambda line: None)
    shutil.move(tmp_path / "old", tmp_path / "new")
    config.data.folder = str(tmp_path / "new")
    assert read_patches(config, tmp_path / "run", print_line=lambda line: None).train
    write_patches(tmp_path / "other", count=4, size=20)
    config.data.folder = str(tmp_path / "other")
    with pytest.raises(LsmfmError, match="began with other patches"):
        read_patches(config, tmp_path / "run", print_line=lambda line: None)


def test_memory_and_the_system_are_explained_and_mistakes_are_not():
    assert "out of memory" in explained(MemoryError("Unable to allocate 3 TiB"))
    line = explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"))
    assert "the disk is full" in line
    assert explained(InputError("one\n  two")) == "one two"
    assert explained(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1\nmore")) is not None
    assert explained(KeyError("a mistake of ours")) is None and explained(ValueError("of ours")) is None


def test_a_lock_names_its_holder_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, use="training"):
        assert folder.is_dir()
    assert not folder.exists()  # it was made for the lock alone
    folder.mkdir()
    told = rf"{folder}: .*training, process {os.getpid()} on .* since 20"
    with locked(folder, use="training"), pytest.raises(Locked, match=told):
        locked(folder, use="training").__enter__()
    assert list(folder.iterdir()) == []
    (folder / ".lock").write_text("training, process 1 on a machine that died\n")
    with locked(folder, use="training"):
        pass


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch, caplog):
    monkeypatch.setitem(
        FLAGS["cpu"]["default"], "xla_cpu_an_option_of_tomorrow", Flag(True, "as a later release may name one")
    )
    mesh = make_mesh(data=1, fsdp=1, depth=1, devices=jax.devices()[:1])
    options = compilation.compiler_options(mesh)
    assert "xla_cpu_an_option_of_tomorrow" not in options and "xla_cpu_experimental_ynn_fusion_type" in options
    assert compilation.compiler_options(mesh) == options
    told = [record for record in caplog.records if "xla_cpu_an_option_of_tomorrow" in record.getMessage()]
    assert len(told) == 1 and "\n" not in told[0].getMessage()
    assert told[0].getMessage().startswith("this jaxlib does not take the compiler option")
    np.testing.assert_array_equal(jax.jit(lambda x: x + 1, compiler_options=options)(np.ones(2)), 2)


def test_what_is_compiled_quickly_draws_the_same_parameters_but_for_the_last_bits():
    options = compilation.run_once_options("cpu")
    assert compilation.run_once_options("gpu") is None
    assert options["xla_backend_optimization_level"] == 0

    def draw(key):
        return jax.random.truncated_normal(key, -2.0, 2.0, (8, 16)) / 3 + jax.random.uniform(key, (8, 1))

    quick, usual = (jax.jit(draw, compiler_options=one)(jax.random.key(3)) for one in (options, None))
    np.testing.assert_allclose(quick, usual, rtol=1e-6, atol=1e-6)
    assert quick.sharding == usual.sharding


def test_every_library_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    declared = {re.split(r"[\[<>=]", line)[0].lower().replace("-", "_") for line in lines}
    modules = {"orbax": "orbax_checkpoint", "cc3d": "connected_components_3d", "skimage": "scikit_image"}
    modules |= {"sklearn": "scikit_learn", "absl": "absl_py", "yaml": "pyyaml"}
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"lsmfm_jax"}
    assert len(foreign) > 15
    assert {modules.get(name, name).lower() for name in foreign} - declared == set()
    for name in ("jax", "flax", "orbax-checkpoint"):
        (line,) = [line for line in project["dependencies"] if re.match(rf"{name}[<>=]", line)]
        assert ">=" in line and "<" in line, line
    assert jaxlib.__version__.startswith("0.1")


def test_every_error_that_the_package_defines_has_one_base():
    defined = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and re.search("(Error|Failed|Damaged.*|Locked|Missing)$", node.name):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                defined.append((node.name, bases))
    names = {name for name, _ in defined} | {"LsmfmError"}
    assert len(defined) > 20 and issubclass(LsmfmError, Exception)
    assert [name for name, bases in defined if name != "LsmfmError" and not bases & names] == []
