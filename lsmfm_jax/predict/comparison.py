"""Better than a threshold? A segmentation run beside what needs no network, on its validation patches."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.files import replace_json
from lsmfm_jax.metrics.intervals import bootstrap_difference
from lsmfm_jax.predict.baseline import fit_masks
from lsmfm_jax.predict.cut_off import dice
from lsmfm_jax.predict.network import Predictor, load_predictor
from lsmfm_jax.predict.windows import blend_windows
from lsmfm_jax.tasks.declaration import Patches
from lsmfm_jax.tasks.finetune_patches import read_patches, run_configuration
from lsmfm_jax.volumes.read import VolumeInfo

COMPARISON = "comparison.json"
NETWORK = "this run"


def compare_with_baselines(run: pathlib.Path, *, print_line: Callable[[str], None] = print) -> dict[str, Any] | None:
    """Judges a finished segmentation run and its baselines on the run's validation patches.

    Writes `comparison.json` into the run, which the report shows, and prints a line for each method; where the run is
    not ahead of the best of the others, a warning. Baselines are those of `predict.baseline.fit_masks`, fitted on the
    run's training patches.

    Args:
        run: folder of a finished run of task `segment`.
        print_line: prints a line.

    Returns:
        What was written; None where there is nothing to compare on.
    """
    config = run_configuration(run)
    patches = read_patches(config, run, print_line=lambda line: None)
    if not patches.validation:
        print_line("not compared with thresholds: there are no validation patches (data.validation_frac is 0)")
        return None
    methods = {NETWORK: mask_by(load_predictor(run))}
    for name, find, _ in fit_masks(config, patches):
        methods[name] = lambda image, info, find=find: find(image, info)[0]
    scores = {name: scores_of(method, patches) for name, method in methods.items()}
    volumes = [patch.volume for patch in patches.validation]
    rows = {}
    for name, values in scores.items():
        rows[name] = {"dice": float(np.mean(values)), **ahead_of(scores[NETWORK], values, volumes)}
    found = {
        "methods": rows,
        "patches": [patch.name for patch in patches.validation],
        "volumes": sorted(set(volumes)),
        "unseen_volumes": not {patch.volume for patch in patches.train} & set(volumes),
    }
    found["verdict"] = _verdict(found)
    replace_json(run / COMPARISON, found)
    print_line(f"foreground Dice on {len(volumes)} validation patches of {len(set(volumes))} volumes:")
    for name, row in rows.items():
        print_line(f"  {name:18} {row['dice']:.3f}")
    print_line(found["verdict"])
    return found


def ahead_of(own: Sequence[float], other: Sequence[float], volumes: Sequence[str]) -> dict[str, Any]:
    """By how much a run's scores are ahead of another method's on the same patches, over patches and volumes.

    Args:
        own: the run's score of each patch.
        other: the other method's, in the same order.
        volumes: that the patches are from.

    Returns:
        `run_is_ahead_by`, and `interval_95`: None where there are too few volumes for one.
    """
    ahead = bootstrap_difference(np.array([own]), np.array([other]), volumes=volumes)
    limits = [ahead.low, ahead.high] if np.isfinite([ahead.low, ahead.high]).all() else None
    return {"run_is_ahead_by": ahead.value, "interval_95": limits}


def mask_by(predictor: Predictor) -> Callable[[np.ndarray, VolumeInfo], np.ndarray]:
    """A function of counts (Z, Y, X) and what is known of the file that gives a segmentation run's mask."""

    def mask(image: np.ndarray, info: VolumeInfo) -> np.ndarray:
        scaled = predictor.prepared(image, predictor.levels(image, info.voxel_size_um))
        settings = {"window": predictor.window, "overlap_frac": 0.25, "batch_size": 1}
        return blend_windows(predictor.apply, scaled, **settings) >= 0.5

    return mask


def scores_of(method: Callable[[np.ndarray, VolumeInfo], np.ndarray], patches: Patches) -> list[float]:
    """Foreground Dice of a method's mask of each validation patch, over annotated voxels."""
    found = []
    for patch in patches.validation:
        annotated, truth = patch.target != IGNORED, patch.target == 1
        info = VolumeInfo(pathlib.Path(patch.name), patch.voxel_size_um, "")
        found.append(dice(method(patch.counts, info) & annotated, truth))
    return found


def _verdict(found: dict[str, Any]) -> str:
    others = {name: row for name, row in found["methods"].items() if name != NETWORK}
    best = max(others, key=lambda name: others[name]["dice"])
    row, own = others[best], found["methods"][NETWORK]["dice"]
    where = "" if found["unseen_volumes"] else " (volumes that it also trained on: a new brain is harder)"
    if own <= row["dice"]:
        return (
            f"WARNING: not better than {best} ({own:.3f} against {row['dice']:.3f}){where}. Annotate patches of more "
            "volumes, or use `lsmfm baseline` for these images"
        )
    if row["interval_95"] is None:
        return (
            f"ahead of {best} by {row['run_is_ahead_by']:.3f}{where}; too few validation volumes to tell whether it is "
            "ahead on the next one"
        )
    low, high = row["interval_95"]
    sure = "and would be on other volumes like these" if low > 0 else "but other volumes may say the opposite"
    return f"ahead of {best} by {row['run_is_ahead_by']:.3f} [{low:.3f}, {high:.3f}]{where}, {sure}"
