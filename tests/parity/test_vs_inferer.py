"""The benchmark against MONAI's inferer at a small size: both sides run, and mark nearly the same voxels."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_both_sides_give_the_same_but_for_the_places_of_windows(tmp_path):
    command = ["benchmarks/vs_inferer.py", "--voxels", "5e5", "--window", "48", "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert case["mean_difference"] < 0.1 * case["spread"]
    assert all(case[side]["seconds"] > 0 and case[side]["peak_bytes"] > 1e8 for side in ("ours", "monai"))
