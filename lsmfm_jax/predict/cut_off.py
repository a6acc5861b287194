"""Where the logit of a segmentation network is cut: fitted on the patches that it trained on, when training has ended.

A network that has seen a few patches for some steps orders voxels better than it sets the point between foreground
and background: its loss weighs the two in its own way. The cut with the best Dice of the training patches is what a
threshold or a regression of voxels beside it has anyway.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lsmfm_jax.baselines import best_threshold
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.files import replace_json
from lsmfm_jax.predict.network import Predictor, predictor_of
from lsmfm_jax.predict.windows import blend_windows
from lsmfm_jax.tasks.declaration import PrintLine
from lsmfm_jax.tasks.finetune_patches import read_patches, run_configuration
from lsmfm_jax.tasks.segment import LEFT_OUT
from lsmfm_jax.train.records import seal_records
from lsmfm_jax.train.weights import read_weights

# Probabilities beyond these say no more: a float32 sigmoid is 0 or 1 soon after.
CERTAIN = 1e-6
# Of the training patches that are looked at: a few say where to cut, and each takes a prediction.
MOST_VOXELS = 20 * 100**3
# What is added to a network's logit, left out here: the regression has a cut of its own.
_ADDED = ("voxel_classifier", "logit_shift", "network_cut_off", LEFT_OUT)


def fit_cut_off(run: pathlib.Path, *, print_line: PrintLine = print) -> dict[str, Any] | None:
    """Finds the cut of a finished segmentation run and records it in its `run.json`.

    Training that goes on writes `run.json` anew, without it, and ends here again.

    Args:
        run: folder of a run of task `segment`.
        print_line: prints a line.

    Returns:
        What was recorded: `logit` (taken off the network's logit), and the mean foreground Dice of the training
        patches by the network alone before and after; None where no training patch has foreground.
    """
    patches = read_patches(run_configuration(run), run, print_line=lambda line: None).train
    chosen = [patch for patch in patches if (patch.target == 1).any()]
    if not chosen:
        return None
    # Evenly over all of them, which are sorted by name.
    count = max(1, MOST_VOXELS * len(chosen) // sum(patch.counts.size for patch in chosen))
    chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, min(len(chosen), count)).astype(int)]
    weights = read_weights(run)
    alone = {key: value for key, value in weights.record.items() if key not in _ADDED}
    predictor = predictor_of(weights._replace(record=alone), run)
    logits, truths = [], []
    for patch in chosen:
        counted = patch.target != IGNORED
        levels = predictor.levels(patch.counts, patch.voxel_size_um)
        logits.append(blended_logits(predictor, predictor.prepared(patch.counts, levels))[counted][None, None])
        truths.append((patch.target == 1)[counted][None, None])
    cut, before, after = fitted_cut(logits, truths)
    found = {"logit": cut, "dice_before": before, "dice_after": after}
    replace_json(run / "run.json", {**weights.record, "network_cut_off": found})
    seal_records(run)
    print_line(
        f"the network's logit is cut at {cut:+.2f}: foreground Dice of {len(chosen)} training patches by the network "
        f"alone {before:.3f} at 0, {after:.3f} there"
    )
    return found


def blended_logits(predictor: Predictor, scaled: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
    """The logit of a segmentation's blended probability for each voxel of a prepared volume."""
    probability = blend_windows(predictor.apply, scaled, window=predictor.window, overlap_frac=0.25, batch_size=1)
    probability = probability.clip(CERTAIN, 1 - CERTAIN)
    return np.log(probability / (1 - probability))


def fitted_cut(
    logits: Sequence[Float[np.ndarray, "_ _ _"]], truths: Sequence[Bool[np.ndarray, "_ _ _"]]
) -> tuple[float, float, float]:
    """Where to cut the logits of patches, and their mean Dice cut at 0 and there.

    The cuts that are tried are quantiles, a few per cent of a sparse structure apart: where none of them is better than
    0, that stays.
    """
    cut, after = best_threshold(logits, truths)
    before = float(np.mean([dice(one > 0, truth) for one, truth in zip(logits, truths, strict=True)]))
    return (cut, before, after) if after > before else (0.0, before, before)


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Foreground Dice of two masks; 1 where both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0
