"""How much a segmentation network should count beside the threshold and the regression of voxels, and what several say.

python benchmarks/network_weight.py --folder PATCHES --runs WORK/scratch-1 WORK/scratch-2 --test a_0 a_1 b_0 \
    --work LOGITS --json FILE

`segment_unet` adds a share of the network's logit to that of a threshold and a regression of voxels. Here shares from
nothing to the network alone are tried on the test patches, for each run and for all runs together (their mean logits,
the ensemble). Logits that are in LOGITS already are not computed again. With `--validate`, validation patches,
there is one more row: a network that makes them worse is left out, as `lsmfm finetune` decides at its end.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import few_shot
import jax.numpy as jnp
import numpy as np
import outcome

from lsmfm_jax.data.labels import IGNORED, label_values
from lsmfm_jax.predict.calibration import logits_and_truth
from lsmfm_jax.predict.cut_off import dice
from lsmfm_jax.predict.inputs import find_cases
from lsmfm_jax.predict.network import predictor_of
from lsmfm_jax.predict.truth import mask_like
from lsmfm_jax.tasks.voxel_classifier import recorded
from lsmfm_jax.train.weights import read_weights
from lsmfm_jax.volumes.read import read_single

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0)
ALONE, ENSEMBLE = "network alone", "ensemble"
DECIDED, COUNTS = "left out where worse", "weight 0.25"


class Logits(NamedTuple):
    """What is said of the annotated voxels of a patch, and what is true."""

    net: np.ndarray
    own: np.ndarray
    truth: np.ndarray


def logits(run: pathlib.Path, folder: pathlib.Path, patches: Sequence[str], work: pathlib.Path) -> list[Logits]:
    """Logits of the network, and of threshold and regression, for each patch; computed, or read from `work`."""
    files = [work / run.name / f"{patch}.npz" for patch in patches]
    if not all(file.exists() for file in files):
        (work / run.name).mkdir(parents=True, exist_ok=True)
        weights = read_weights(run)
        alone = {key: value for key, value in weights.record.items() if key != "voxel_classifier"}
        predictor = predictor_of(weights._replace(record=alone), run)
        classifier = recorded(weights.record["voxel_classifier"])
        values = label_values(weights.record.get("labels"))
        for patch, file in zip(patches, files, strict=True):
            (case,), _ = find_cases([folder / f"{patch}.nii.gz"], task="segment", label_dir=None)
            net, truth = logits_and_truth(predictor, case, values)
            image, info = read_single(case.path, allow_constant=True)
            batch = jnp.asarray(predictor.prepared(image, predictor.levels(image, info.voxel_size_um)))[None, ..., None]
            own = np.asarray(classifier.combined(jnp.zeros_like(batch), batch))[0, ..., 0]
            counted = mask_like(case, image, info, values) != IGNORED
            np.savez(file, net=net[0, 0].astype(np.float32), own=own[counted], truth=truth[0, 0])
    return [_read(file) for file in files]


def _read(file: pathlib.Path) -> Logits:
    with np.load(file) as found:
        return Logits(found["net"], found["own"], found["truth"])


def scored(found: Sequence[Logits], patches: Sequence[str]) -> dict[str, few_shot.Scores]:
    """Dice of each patch by weight of the network."""
    rows = {
        f"weight {weight:g}": [dice(one.own + weight * one.net > 0, one.truth) for one in found] for weight in WEIGHTS
    }
    rows[ALONE] = [dice(one.net > 0, one.truth) for one in found]
    return {
        name: {patch: {"dice": value} for patch, value in zip(patches, row, strict=True)} for name, row in rows.items()
    }


def helps(rows: dict[str, few_shot.Scores]) -> bool:
    """Whether the network, with the weight that the recipes give it, makes patches no worse on average."""
    means = {name: np.mean([scores["dice"] for scores in rows[name].values()]) for name in (COUNTS, "weight 0")}
    return bool(means[COUNTS] >= means["weight 0"])


def together(runs: Sequence[Sequence[Logits]]) -> list[Logits]:
    """The mean logits of several runs."""
    return [
        Logits(np.mean([one.net for one in patch], 0), np.mean([one.own for one in patch], 0), patch[0].truth)
        for patch in zip(*runs, strict=True)
    ]


def judged(
    options: Any, runs: Sequence[pathlib.Path]
) -> tuple[list[dict[str, few_shot.Scores]], list[str], list[list[Logits]]]:
    """Scores of each run by row, the names of those whose network is left out, and their logits on the test patches."""
    found = [logits(run, options.folder, options.test, options.work) for run in runs]
    single, left_out = [scored(one, options.test) for one in found], []
    if options.validate:
        for run, rows in zip(runs, single, strict=True):
            validation = logits(run, options.folder, options.validate, options.work)
            helped = helps(scored(validation, options.validate))
            rows[DECIDED] = rows[COUNTS if helped else "weight 0"]
            left_out += [] if helped else [run.name]
    return single, left_out, found


def main() -> None:
    """Judges the runs that the command line names."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--runs", nargs="+", type=pathlib.Path, required=True, help="of one recipe and several seeds")
    parser.add_argument("--than", nargs="*", type=pathlib.Path, default=(), help="as many others, compared one by one")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--validate", nargs="*", default=(), metavar="NAME", help="validation patches of the runs")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of logits")
    options = parser.parse_args()
    single, left_out, runs = judged(options, options.runs)
    ensemble = scored(together(runs), options.test)
    others = judged(options, options.than)[0] if options.than else None
    methods: dict[str, Any] = {}
    for name in single[0]:
        scores = [one[name] for one in single]
        methods[name] = {
            "test": few_shot.summary(scores),
            "gain_over_weight_0": few_shot.gains(scores, [one["weight 0"] for one in single]),
        }
        if others is not None:
            methods[name]["gain_over_other_runs"] = few_shot.gains(scores, [one[name] for one in others], paired=True)
        if name in ensemble:
            methods[f"{ENSEMBLE}, {name}"] = {
                "test": few_shot.summary([ensemble[name]]),
                "gain_over_one_run": few_shot.gains([ensemble[name]] * len(single), scores),
            }
        print(f"{name}: {methods[name]['test']['dice']}", flush=True)
    if options.validate:
        scores, usual = ([one[name] for one in single] for name in (DECIDED, COUNTS))
        methods[DECIDED] |= {"left_out": left_out, f"gain_over_{COUNTS}": few_shot.gains(scores, usual, paired=True)}
    facts = outcome.facts("network_weight", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    facts["command"] = "benchmarks/network_weight.py"
    settings = {"runs": [run.name for run in options.runs], "test": options.test, "validate": list(options.validate)}
    settings["than"] = [run.name for run in options.than]
    outcome.finish({**facts, "settings": settings, "methods": methods}, options.json)


if __name__ == "__main__":
    main()
