"""The comparison with PyTorch as a user starts it, at a tiny size: the promised keys, and equal losses."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMISED = {"ours_patches_per_s", "torch_patches_per_s", "ratio", "ours_peak_bytes", "torch_peak_bytes"}


@pytest.mark.slow
@pytest.mark.parametrize("text", [(), ("--text",)], ids=["images", "text"])
def test_both_sides_compute_the_same_losses(tmp_path, text):
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        "benchmarks/vs_torch.py",
        "--tiny",
        "--size",
        "16",
        "--batch",
        "2",
        "--steps",
        "2",
        *text,
    ]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result.keys() >= PROMISED | {"device", "versions", "loss_difference"}
    assert result["ratio"] == pytest.approx(result["ours_patches_per_s"] / result["torch_patches_per_s"])
    assert result["loss_difference"] < 1e-5
    assert result["gradient_norm_difference"] < 1e-4
