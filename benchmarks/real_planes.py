"""Whole volumes as folders of planes, put together again from patches: learnt elsewhere, predicted, looked at.

python benchmarks/real_planes.py --labelled FOLDER --patches FOLDER [FOLDER ...] --work WORK --json FILE

`--patches` holds `<name>_z0064_y0000_x0128.nii.gz`: where a patch lay in its volume is in its name; what no patch
covers is 0. The volume is written as a TIFF for each plane, looked at with `lsmfm data info`, and predicted by a
network that learnt from `--labelled` (label 2 is foreground, 0 and 4 are not judged, as TRAILMAP has it). Then three
things are compared that must be equal: the same volume as one `.npy` file, a box of it predicted alone, and the same
in two parts.
"""

import json
import pathlib
import re
import sys
from typing import Any

import numpy as np
import outcome
import tifffile
from brain_chain import lsmfm

from lsmfm_jax.volumes.lazy import box_text
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.read import read_single

PLACE = re.compile(r"_z(\d+)_y(\d+)_x(\d+)\.nii\.gz$")


def main() -> None:
    """Runs the chain that the command line describes."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--labelled", type=pathlib.Path, required=True, help="annotated patches to learn from")
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME", help="of the annotated patches")
    parser.add_argument("--validate", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--patches", type=pathlib.Path, nargs="+", required=True, help="folders, a volume each")
    parser.add_argument("--config", default="segment_unet:cpu")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for runs and results")
    parser.add_argument("overrides", nargs="*", help="for the finetuning, after --: --config.key=value")
    options = parser.parse_args()
    result = outcome.facts("real_planes", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    result["command"] = "benchmarks/real_planes.py"
    result["settings"] = {key: getattr(options, key) for key in ("config", "train", "validate", "overrides")}
    options.work.mkdir(parents=True, exist_ok=True)
    run = options.work / "run"
    sides = {"train_names": tuple(options.train), "validation_names": tuple(options.validate)}
    sides |= {"foreground_labels": (2,), "ignore_labels": (0, 4)}
    chosen = [f"--config.data.{key}={value!r}" for key, value in sides.items()]
    chosen.append(f"--config.data.folder={options.labelled}")
    learnt = lsmfm(
        ("finetune", "--config", options.config, "--workdir", run, *chosen, *options.overrides),
        log=options.work / "run.log",
    )
    result["finetune"] = learnt
    result["volumes"] = {folder.name: predicted(folder, run, options.work) for folder in options.patches}
    outcome.finish(result, options.json)


def together(folder: pathlib.Path) -> np.ndarray:
    """The volume (ZYX) that the patches of a folder were cut from, beginning at the first of them."""
    placed = {
        tuple(map(int, found.groups())): read_single(path, allow_constant=True)[0]
        for path in sorted(folder.glob("*.nii.gz"))
        if (found := PLACE.search(path.name))
    }
    if not placed:
        raise SystemExit(f"{folder}: no patch there has its place in its name (..._z0064_y0000_x0128.nii.gz)")
    first = np.min(list(placed), axis=0)
    stop = np.max([np.add(place, patch.shape) for place, patch in placed.items()], axis=0)
    volume = np.zeros(stop - first, next(iter(placed.values())).dtype)
    for place, patch in placed.items():
        volume[tuple(slice(a, a + n) for a, n in zip(np.subtract(place, first), patch.shape, strict=True))] = patch
    return volume


def predicted(patches: pathlib.Path, run: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
    """One volume as planes: what `data info` and `predict` say, and whether other ways give the same mask."""
    folder = work / patches.name
    planes = folder / "planes"
    planes.mkdir(parents=True, exist_ok=True)
    volume = together(patches)
    for number, plane in enumerate(volume):
        tifffile.imwrite(planes / f"plane_{number:04d}.tif", plane)
    np.save(folder / "volume.npy", volume)
    steps = {}

    def do(name: str, *arguments: object) -> None:
        steps[name] = lsmfm(arguments, log=folder / f"{name}.log")
        print(f"{patches.name} {name}: {steps[name]}", file=sys.stderr, flush=True)

    def predict(name: str, source: pathlib.Path, *more: object) -> np.ndarray:
        out = folder / f"{name}.ome.zarr"
        do(name, "predict", "--checkpoint", run, source, "--out", out, *more)
        return mask_of(out)

    do("info", "data", "info", planes)
    whole = predict("planes", planes)
    as_file = predict("npy", folder / "volume.npy")
    box = tuple(slice(n // 4, n // 4 + n // 2) for n in volume.shape)
    alone = predict("box", planes, "--box", box_text(box))
    parts = folder / "parts.ome.zarr"
    in_parts = ("predict", "--checkpoint", run, planes, "--out", parts)
    do("prepare", *in_parts, "--prepare")
    for part in ("1/2", "2/2"):
        do(f"part_{part[0]}", *in_parts, "--part", part)
    do("merge", "predict", "--merge", parts)
    summary = json.loads((folder / "planes.ome.zarr" / "summary.json").read_text())
    return {
        "shape": list(volume.shape),
        "zero_frac": round(float((volume == 0).mean()), 4),
        "steps": steps,
        "objects": summary["objects"],
        "foreground_frac_of_patches": round(float(whole[volume > 0].mean()), 5),
        "foreground_voxels_where_no_patch_is": int(whole[volume == 0].sum()),
        "voxels_that_differ": {
            "as_npy": int((whole != as_file).sum()),
            "box_alone": int((whole[box] != alone).sum()),
            "in_two_parts": int((whole != mask_of(parts)).sum()),
        },
    }


def mask_of(result: pathlib.Path) -> np.ndarray:
    """The mask of a prediction."""
    volume = open_volume(result / "labels" / "mask")
    return volume.read(tuple(slice(0, length) for length in volume.shape)) > 0


if __name__ == "__main__":
    main()
