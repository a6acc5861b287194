"""A whole volume predicted by `lsmfm predict` and by MONAI's SlidingWindowInferer: the same network, time and memory.

    make bench-env
    .venv-bench/bin/python benchmarks/vs_inferer.py --voxels 1.6e7 1.3e8 --json FILE

The network is that of `segment_unet:cpu` with random weights, in MONAI loaded from what `lsmfm convert export` wrote;
window, overlap and scale are the same, each side is a process of its own, one after the other. The volume is a
generated brain. MONAI's side reads it whole and keeps the result in memory until it writes probabilities and mask as
`.npy`; ours writes an OME-Zarr with a pyramid, without objects. Windows stand elsewhere (MONAI moves the last of each
axis, ours spreads them) and are weighted otherwise, so the probabilities differ a little: `mean_difference` says how
much; random weights leave many of them near the cut-off.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import outcome

ARCHITECTURE = {
    "name": "unet",
    "out_channels": 16,
    "channels": [16, 32, 64, 128],
    "strides": [2, 2, 2],
    "num_res_units": 2,
    "norm": "batch",
}
WINDOW, OVERLAP, BATCH = 96, 0.25, 1
# Windows of which the time of the network alone is told.
TIMED = 15


def main() -> None:
    parser = outcome.parser(__doc__)
    parser.add_argument("--voxels", type=float, nargs="+", default=[1.6e7, 1.3e8], help="of each volume, about")
    parser.add_argument("--window", type=int, default=WINDOW, help=f"voxels a side (default {WINDOW})")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, folder = options.side
        print(json.dumps(SIDES[side](pathlib.Path(folder), options.window)))
        return
    result = outcome.facts("vs_inferer", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    result |= {"window": options.window, "overlap": OVERLAP, "batch": BATCH, "network": ARCHITECTURE, "cases": []}
    for voxels in options.voxels:
        with tempfile.TemporaryDirectory() as folder:
            result["cases"].append(compared(pathlib.Path(folder), voxels, options.window))
    outcome.finish(result, options.json)


def compared(folder: pathlib.Path, voxels: float, window: int) -> dict[str, Any]:
    """Figures of both sides on one volume."""
    from lsmfm_jax.phantom.brain import write_brain

    side = round(voxels ** (1 / 3))
    write_brain(folder / "brain.ome.zarr", shape=(side, side, side))
    make_run(folder / "run", window)
    command = [sys.executable, "-m", "lsmfm_jax.cli", "convert", "export", str(folder / "run")]
    subprocess.run([*command, "--out", str(folder / "network.pt")], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = {"shape": [side] * 3}
    for name in SIDES:
        found[name] = outcome.answer([__file__, "--side", name, str(folder), "--window", str(window)], of=name)
    maps = [np.load(folder / f"{name}_probability.npy", mmap_mode="r") for name in SIDES]
    found["mean_difference"] = float(
        np.mean([np.abs(a - b.astype(float)).mean() / 255 for a, b in zip(*maps, strict=True)])
    )
    found["spread"] = float(np.std(maps[1]) / 255)
    return found


def make_run(folder: pathlib.Path, window: int) -> None:
    """A segmentation run whose weights were drawn and never trained, with a cut-off that marks some of a volume."""
    import jax

    from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
    from lsmfm_jax.train.weights import write_weights

    network = Network(backbone_of(ARCHITECTURE))
    params, stats = jax.jit(lambda key: network.init(key, (window,) * 3))(jax.random.key(0))
    head = jax.tree.map(lambda leaf: 10 * leaf, init_linear(jax.random.key(1), ARCHITECTURE["out_channels"], 1))
    record = {
        "task": "segment",
        "architecture": ARCHITECTURE,
        "patch_size": [window] * 3,
        "scaling": {"name": "percentile", "lower": 1.0, "upper": 99.0},
    }
    write_weights(folder, record=record, params={"backbone": params, "head": head}, batch_stats={"backbone": stats})


def ours(folder: pathlib.Path, window: int) -> dict[str, Any]:
    """`lsmfm predict` of the whole volume in this process."""
    from lsmfm_jax.cli import main as lsmfm
    from lsmfm_jax.predict.output import PROBABILITY, Array

    out = folder / "result.ome.zarr"
    command = ["predict", "--checkpoint", folder / "run", folder / "brain.ome.zarr", "--out", out, "--no-skip"]
    command += ["--no-objects", "--overlap", OVERLAP, "--batch", BATCH, "--max-ram", "2G"]
    outcome.forget_process_peak()
    began = time.perf_counter()
    if lsmfm([str(part) for part in command]):
        raise SystemExit("lsmfm predict failed")
    seconds, peak = time.perf_counter() - began, outcome.process_peak_bytes()
    found = Array(out, PROBABILITY)
    np.save(folder / "ours_probability.npy", found.read(tuple(slice(0, size) for size in found.shape)))
    stages = json.loads((out / "summary.json").read_text())["process_seconds"]
    return {
        "seconds": round(seconds, 2),
        "peak_bytes": peak,
        "stages_s": {name: round(value, 2) for name, value in stages.items()},
        "network_alone_s": round(network_seconds(folder / "run", found.shape), 2),
    }


def network_seconds(run: pathlib.Path, shape: tuple[int, ...]) -> float:
    """What the network takes for all windows of a volume, with nothing else done: the median of some, times all."""
    import math

    import jax

    from lsmfm_jax.predict.blocks import make_grid
    from lsmfm_jax.predict.network import load_predictor

    predictor = load_predictor(run)
    grid = make_grid(shape, window=predictor.window, overlap_frac=OVERLAP)
    batches = math.ceil(math.prod(len(axis) for axis in grid.axes) / BATCH)
    windows = jax.random.uniform(jax.random.key(0), (BATCH, *predictor.window))
    times = []
    for _ in range(TIMED + 1):
        began = time.perf_counter()
        jax.block_until_ready(predictor.apply(windows))
        times.append(time.perf_counter() - began)
    # The first one compiles.
    return float(np.median(times[1:])) * batches


def monai(folder: pathlib.Path, window: int) -> dict[str, Any]:
    """MONAI's inferer on the same network and volume."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import UNet

    from lsmfm_jax.volumes.open import open_volume

    network = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=ARCHITECTURE["out_channels"],
        channels=ARCHITECTURE["channels"],
        strides=ARCHITECTURE["strides"],
        num_res_units=ARCHITECTURE["num_res_units"],
        norm="BATCH",
    ).eval()
    network.load_state_dict(torch.load(folder / "network.pt", weights_only=True), strict=True)
    head = torch.nn.Conv3d(ARCHITECTURE["out_channels"], 1, 1)
    kernel, bias = exported_head(folder)
    head.load_state_dict({"weight": torch.from_numpy(kernel), "bias": torch.from_numpy(bias)})
    inferer = SlidingWindowInferer(roi_size=(window,) * 3, sw_batch_size=BATCH, overlap=OVERLAP, mode="gaussian")
    outcome.forget_process_peak()
    began = time.perf_counter()
    volume = open_volume(folder / "brain.ome.zarr")
    counts = volume.read(tuple(slice(0, size) for size in volume.shape))
    low, high = np.percentile(counts, (1, 99))
    scaled = np.clip((counts.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    del counts
    with torch.inference_mode():
        probability = inferer(torch.from_numpy(scaled)[None, None], lambda x: head(network(x)).sigmoid_())[0, 0].numpy()
    np.save(folder / "monai_probability.npy", np.rint(probability * 255).astype(np.uint8))
    np.save(folder / "monai_mask.npy", (probability >= 0.5).astype(np.uint8))
    return {"seconds": round(time.perf_counter() - began, 2), "peak_bytes": outcome.process_peak_bytes()}


def exported_head(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (1, C, 1, 1, 1) and bias of the run's head."""
    from lsmfm_jax.train.weights import read_weights

    head = read_weights(folder / "run").params["head"]
    kernel = np.array(head["kernel"], np.float32).reshape(-1, 1).T[..., None, None, None]
    return np.ascontiguousarray(kernel), np.array(head["bias"], np.float32)


SIDES = {"ours": ours, "monai": monai}

if __name__ == "__main__":
    main()
