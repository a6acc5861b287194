"""Real pretraining runs, small enough to be started many times: for tests that start, stop and kill them."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

from quick_compiling import quick_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = {
    "model.out_channels": 8,
    "model.unet.channels": (4, 8),
    "model.unet.strides": (2,),
    "text.max_tokens": 32,
    "data.patch_size": (16, 16, 16),
    "data.input_size": (16, 16, 16),
    "data.prefetch": 1,
    # A large epsilon, so that rounding stays rounding: Adam makes a full step of any gradient, however near to zero.
    "optim.learning_rate": 1e-3,
    "optim.eps": 1e-2,
    "optim.warmup_steps": 2,
    "warmup_epochs": 1,
    "train.batch_size": 4,
    "train.log_every_steps": 1,
    "train.validate_every_epochs": 2,
    "train.pictures_every_epochs": 0,
    "train.checkpoint_every_epochs": 1,
    "train.keep_checkpoints": 2,
    "train.tensorboard": False,
}


def lsmfm(*arguments: object, devices: int = 1, **variables: object) -> list[str] | dict[str, str]:
    """Command line and environment of one process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LSMFM_")}
    flags = f"--xla_force_host_platform_device_count={devices} {quick_flags()}"
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    # The second run of a program reads it from the cache, however small it is.
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {name: str(value) for name, value in variables.items()}
    return [sys.executable, "-m", "lsmfm_jax.cli", *map(str, arguments)], environment


def start(*arguments: object, devices: int = 1, **variables: object) -> subprocess.Popen:
    command, environment = lsmfm(*arguments, devices=devices, **variables)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen, *, expect: int | None = 0, timeout_s: float = 500) -> str:
    """Output of a process, stderr behind stdout, when it has ended with the expected code."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"hangs: {out[-2000:]}\n{err[-4000:]}") from None
    assert expect is None or process.returncode == expect, f"{process.returncode}: {out[-3000:]}\n{err[-4000:]}"
    return out + err


def make_store(folder: pathlib.Path) -> pathlib.Path:
    """A store of twelve generated patches with captions."""
    finish(start("data", "phantom", "--out", folder / "p", "--count", 12, "--size", "16,16,16", "--seed", 3))
    captions = folder / "p" / "captions.json"
    source = ("--layout", "selma", "--root", folder / "p", "--captions", captions)
    finish(start("data", "ingest", *source, "--out", folder / "s"))
    return folder / "s"


def pretraining(store: pathlib.Path, workdir: pathlib.Path, *, epochs: int, **settings: object) -> list[object]:
    """Arguments of a tiny pretraining run; keys of settings have `__` for a dot."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    values = {**SETTINGS, "data.stores": (str(store),), "train.epochs": epochs, **named}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    return ["pretrain", "--config", "configs/pretrain_unet.py:tiny", "--workdir", workdir, *overrides]


def final_state(output: str) -> tuple[str, int]:
    """Fingerprint and step that a run prints at its end."""
    found = re.search(r"^state ([0-9a-f]{16}) at step (\d+)$", output, re.MULTILINE)
    assert found, output[-3000:]
    return found[1], int(found[2])


def metrics(workdir: pathlib.Path, kind: str) -> dict[int, dict[str, float]]:
    """Step to metrics."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
