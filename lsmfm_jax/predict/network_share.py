"""Whether a network counts in predictions, beside the threshold and the regression of voxels: asked after training.

A network that has seen one patch for some steps may have learnt nothing, and its logit then only takes away from what
threshold and regression find. Their parts are fixed by the configuration; the validation patches, which none of them
learnt from, say whether the network's part helps. It is left out or not: a share fitted on one or two patches would
not carry over.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsmfm_jax.files import replace_json
from lsmfm_jax.predict.comparison import mask_by, scores_of
from lsmfm_jax.predict.network import predictor_of
from lsmfm_jax.tasks.declaration import PrintLine
from lsmfm_jax.tasks.finetune_patches import read_patches, run_configuration
from lsmfm_jax.tasks.segment import LEFT_OUT
from lsmfm_jax.train.records import seal_records
from lsmfm_jax.train.weights import read_weights


def leave_out_where_worse(run: pathlib.Path, *, print_line: PrintLine = print) -> dict[str, Any] | None:
    """Leaves a finished run's network out of its predictions where its validation patches are better without.

    Training that goes on writes `run.json` anew, without the decision, and ends here again.

    Args:
        run: folder of a run of task `segment`, whose cut-off is fitted (`predict.cut_off`).
        print_line: prints a line.

    Returns:
        What was recorded as `network_left_out`: the mean foreground Dice of the validation patches `with_network` and
        `without`; None where the network counts, or where there is nothing beside it or no patch to ask.
    """
    weights = read_weights(run)
    if not (weights.record.get("voxel_classifier") or {}).get("network_weight"):
        return None
    patches = read_patches(run_configuration(run), run, print_line=lambda line: None)
    if not patches.validation:
        return None
    dice = {}
    for name, record in (("with_network", weights.record), ("without", without_network(weights.record))):
        predictor = predictor_of(weights._replace(record=record), run)
        dice[name] = float(np.mean(scores_of(mask_by(predictor), patches)))
    if dice["without"] <= dice["with_network"]:
        return None
    replace_json(run / "run.json", {**weights.record, LEFT_OUT: dice})
    seal_records(run)
    print_line(
        f"the network is left out of predictions: foreground Dice of the validation patches {dice['without']:.3f} by "
        f"threshold and regression, {dice['with_network']:.3f} with the network. More steps or patches may change that"
    )
    return dice


def without_network(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that predicts by threshold and regression alone."""
    return {**record, LEFT_OUT: {}}
