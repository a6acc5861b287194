"""Flags of the compiler by platform and mode: which are taken, whose win, and what is refused."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import pytest
from test_loop import _config, _setup

from lsmfm_jax.config.schema import COMMON
from lsmfm_jax.errors import InputError
from lsmfm_jax.train import compilation
from lsmfm_jax.train.fingerprints import combined_fingerprint
from lsmfm_jax.train.platform_flags import FLAGS, MODES, Flag, flag_record, own_flags, wanted_flags
from lsmfm_jax.train.run import execute
from lsmfm_jax.train.sharding import make_mesh

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


def test_every_platform_has_every_mode_and_every_flag_a_reason():
    assert COMMON["train"]["xla"].choices == MODES
    for platform, modes in FLAGS.items():
        assert tuple(modes) == MODES
        for name, flag in (pair for flags in modes.values() for pair in flags.items()):
            assert name.startswith(f"xla_{platform}_") and len(flag.why) > 40, name
    # Nothing that no card has confirmed is on by itself.
    assert FLAGS["gpu"]["default"] == FLAGS["tpu"]["default"] == {}


@pytest.mark.parametrize("mode", MODES)
def test_the_installed_compiler_knows_the_flags_for_cards(mode):
    # Flags of all platforms but TPUs stand in one table of the compiler: no card is needed to look.
    flags = wanted_flags("gpu", mode, devices=1, environment={})
    assert all(compilation._is_known(name, flag.value, None) for name, flag in flags.items())
    assert not compilation._is_known("xla_gpu_a_flag_of_tomorrow", True, None)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: `make bench-tpu-env`")
@pytest.mark.slow
def test_libtpu_knows_the_flags_for_tpus():
    script = (
        "import tpu_target\n"
        "from lsmfm_jax.train.compilation import compiler_options\n"
        "from lsmfm_jax.train.sharding import make_mesh\n"
        "print(sorted(compiler_options(make_mesh(devices=tpu_target.slice_devices('v5e:2x2')), 'fast')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(sorted(FLAGS["tpu"]["fast"]))


def test_flags_in_the_environment_win():
    name = "xla_cpu_enable_concurrency_optimized_scheduler"
    assert name in wanted_flags("cpu", "default", devices=1, environment={})
    assert name not in wanted_flags("cpu", "default", devices=2, environment={}), "it is for one device"
    environment = {"XLA_FLAGS": f"--xla_dump_to=/tmp/x  --{name}=true --{name}", "LIBTPU_INIT_ARGS": "--xla_tpu_a=1"}
    assert name not in wanted_flags("cpu", "default", devices=1, environment=environment)
    assert own_flags("cpu", environment) == {"xla_dump_to": "/tmp/x", name: "true"}
    assert own_flags("tpu", environment)["xla_tpu_a"] == "1"
    assert own_flags("gpu", {"XLA_FLAGS": "--xla_gpu_a= --xla_gpu_b=1 --xla_gpu_b=2"}) == {
        "xla_gpu_a": "",
        "xla_gpu_b": "2",
    }


def test_a_flag_against_the_mode_is_refused():
    against = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"}
    with pytest.raises(InputError, match=r"ops=true, and XLA_FLAGS has .*=false; remove it there, or choose"):
        wanted_flags("gpu", "deterministic", devices=1, environment=against)
    assert wanted_flags("gpu", "default", devices=1, environment=against) == {}
    # The same as the mode's is no contradiction.
    alike = {"XLA_FLAGS": "--xla_gpu_deterministic_ops"}
    assert list(wanted_flags("gpu", "deterministic", devices=1, environment=alike)) == ["xla_gpu_autotune_level"]
    with pytest.raises(InputError, match=r"train.xla: 'quick'; allowed: default, fast, deterministic"):
        wanted_flags("gpu", "quick", devices=1)


def test_a_compiler_without_what_the_mode_needs_is_refused(monkeypatch):
    flags = {"xla_cpu_needed_tomorrow": Flag(True, "as a later release may name it", needed=True)}
    monkeypatch.setitem(FLAGS["cpu"], "deterministic", flags)
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(InputError, match=r"train.xla: 'deterministic' needs xla_cpu_needed_tomorrow, which jaxlib \d"):
        compilation.compiler_options(mesh, "deterministic")


def test_the_record_names_no_places_of_this_machine():
    environment = {"XLA_FLAGS": "--xla_dump_to=/home/me/dump --xla_gpu_autotune_level=2"}
    found = flag_record("gpu", "fast", {"xla_gpu_triton_gemm_any": True}, environment=environment)
    assert found == {
        "mode": "fast",
        "platform": "gpu",
        "flags": {"xla_gpu_triton_gemm_any": True},
        "own_flags": {"xla_gpu_autotune_level": "2"},
    }


def test_deterministic_runs_are_the_same_to_the_bit_and_say_so(tmp_path):
    ends = []
    for name, mode in (("a", "deterministic"), ("b", "deterministic"), ("c", "default")):
        state, _ = execute(_config(xla=mode), _setup(), tmp_path / name, print_line=lambda text: None)
        ends.append(combined_fingerprint(state))
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["kernels"] == "plain"
        recorded = record["xla"]
        assert recorded["mode"] == mode and recorded["platform"] == "cpu"
        assert "xla_cpu_experimental_ynn_fusion_type" in recorded["flags"]
    # On a CPU every mode gives the same bits.
    assert ends[0] == ends[1] == ends[2]
