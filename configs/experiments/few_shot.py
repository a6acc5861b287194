"""One to five annotated patches: a network from scratch with and without the regression of voxels, and thresholds.

    lsmfm experiment few_shot --workdir DIR --data PATCHES

`PATCHES` holds `<name>.nii.gz` and `<name>_label.nii.gz` of one structure, of three volumes or more (see
`lsmfm data info` for what counts as a volume). The question is whether a network is worth it: claims are that it beats
the network without the regression. Thresholds and the regression alone stand beside it in the table.

Variants:
    (none)  `segment_unet:cpu`, 3 seeds, 63 cells of minutes each on a CPU (not timed as a whole)
    reduced `segment_unet:cpu`, one seed, 50 steps for 2 patches and 200 for 5, and a network that starts from a run of
            finetuning on other structures: `--pretrained structures=RUN`; 30 cells, 55 minutes with --jobs 2 on two
            cores that had other work
    tiny    nuclei that are generated, 2 sizes, a network that learns little

Hardware: none but a CPU.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lsmfm_jax.experiment import tiny
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Pretraining, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "reduced", "tiny")


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    return {"": _full, "reduced": _reduced, "tiny": _tiny}[variant]()


def _full() -> Experiment:
    arms = _arms("segment_unet:cpu")
    return Experiment("few_shot", (Study("segment", (DataType("patches", ""),), arms, sizes=(2, 3, 5)),))


def _reduced() -> Experiment:
    few_steps = {"data.crops_per_patch": 100, "train.epochs": 1, "train.pictures_every_epochs": 0}
    arms = _arms("segment_unet:cpu", few_steps)
    started = tuple(
        dataclasses.replace(arm, name=f"{arm.name}_pretrained", pretrained="structures", against=arm.name)
        for arm in arms[:2]
    )
    study = Study("segment", (DataType("patches", ""),), (*arms, *started), sizes=(2, 5))
    return Experiment("few_shot:reduced", (study,), pretrained=(Pretraining("structures"),), seeds=(1,), test_patches=4)


def _tiny() -> Experiment:
    arms = _arms("segment_unet:tiny", tiny.FINETUNING)
    return Experiment(
        "few_shot:tiny",
        (Study("segment", (DataType("nuclei", "nuclei"),), arms, sizes=(3, 6)),),
        phantoms=dataclasses.replace(tiny.PHANTOMS, pretraining_count=1),
        seeds=(1,),
    )


def _arms(recipe: str, overrides: Mapping[str, Any] | None = None) -> tuple[Arm, ...]:
    own = dict(overrides or {})
    return (
        Arm("network_alone", recipe, {**own, "voxel_classifier.enabled": False}),
        Arm("network_and_regression", recipe, own, against="network_alone"),
        Arm("thresholds", BASELINES, against="network_alone"),
    )
