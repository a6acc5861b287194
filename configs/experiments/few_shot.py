"""One to five annotated patches: a network from scratch with and without the regression of voxels, and thresholds.

    lsmfm experiment few_shot --workdir DIR --data PATCHES

`PATCHES` holds `<name>.nii.gz` and `<name>_label.nii.gz` of one structure, of three volumes or more (see
`lsmfm data info` for what counts as a volume). The question is whether a network is worth it: claims are that it beats
the network without the regression. Thresholds and the regression alone stand beside it in the table.

Variants:
    (none)  `segment_unet:cpu`, 3 seeds, 63 cells of minutes each on a CPU (not timed as a whole)
    tiny    nuclei that are generated, 2 sizes, a network that learns little

Hardware: none but a CPU.
"""

from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Phantoms, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "tiny")


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    recipe, sizes, own = "segment_unet:cpu", (2, 3, 5), {}
    of, prefix = "patches", ""
    if variant == "tiny":
        recipe, sizes = "segment_unet:tiny", (3, 6)
        of = prefix = "nuclei"
        own = {
            "model.unet.channels": (4, 8),
            "model.unet.strides": (2,),
            "model.out_channels": 4,
            "data.patch_size": (16, 16, 16),
            "data.crops_per_patch": 4,
            "train.batch_size": 4,
            "train.epochs": 10,
            "train.validate_every_epochs": 5,
            "train.tensorboard": False,
            "train.pictures_every_epochs": 0,
        }
    arms = (
        Arm("network_alone", recipe, {**own, "voxel_classifier.enabled": False}),
        Arm("network_and_regression", recipe, own, against="network_alone"),
        Arm("thresholds", BASELINES, against="network_alone"),
    )
    return Experiment(
        "few_shot:tiny" if variant else "few_shot",
        (Study("segment", (DataType(of, prefix),), arms, sizes=sizes),),
        phantoms=Phantoms(count=75, pretraining_count=1, size=(32, 32, 32)) if variant else None,
        seeds=(1,) if variant else (1, 2, 3),
    )
