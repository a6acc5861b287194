"""The paper's Table 1: segmentation of plaques, nuclei and vessels from 5 to 15 annotated patches.

    lsmfm experiment table1 --workdir DIR --data PATCHES --pretrained unet_image=RUN --pretrained unet_image_text=RUN \
        --pretrained swin_image=RUN --pretrained swin_image_text=RUN

`PATCHES` holds `amyloid_plaque_patch_<n>_vol<m>_ch0.nii.gz`, `cell_nucleus_...`, `vessels_...` in two channels, each
with its `_label`. Both backbones start from scratch and from either pretraining; beside them stand thresholds and a
regression of single voxels. The networks are judged alone, without that regression, which `segment_unet` adds.

Variants:
    (none)  1,368 cells; a graphics card
    tiny    generated patches and networks that learn little from them, the UNet alone

Hardware: see segment_unet. The tiny variant is made for a CPU (--jobs 2 on two cores); nobody has timed it on a quiet
machine yet.
"""

from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Phantoms, Pretraining, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "tiny")
ALONE = {"voxel_classifier.enabled": False}


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    return _tiny() if variant == "tiny" else _full()


def _full() -> Experiment:
    types = (
        DataType("amyloid_plaque", "amyloid_plaque", paper="Amyloid Plaque"),
        DataType("cell_nucleus", "cell_nucleus", paper="Cell Nucleus"),
        DataType("vessels_ch0", "vessels", channels=(0,), paper="Vessels"),
        DataType("vessels_ch1", "vessels", channels=(1,), paper="Vessels"),
    )
    arms = []
    for backbone, recipe, name in (("unet", "segment_unet", "UNet"), ("swin", "segment_swin_unetr", "Swin")):
        scratch = f"{backbone}_scratch"
        arms.append(Arm(scratch, f"{recipe}:scratch", ALONE, paper=f"Scr {name}"))
        for start, called in (("image", "Img"), ("image_text", "Img+T")):
            of = f"{backbone}_{start}"
            arms.append(Arm(of, recipe, ALONE, pretrained=of, against=scratch, paper=f"{called} {name}"))
    arms.append(Arm("thresholds", BASELINES, against="unet_scratch"))
    names = ("unet_image", "unet_image_text", "swin_image", "swin_image_text")
    return Experiment(
        "table1",
        (Study("segment", types, tuple(arms), sizes=(5, 7, 9, 11, 13, 15), paper_sizes=(5, 15)),),
        pretrained=tuple(Pretraining(name) for name in names),
    )


def _tiny() -> Experiment:
    small = {
        "model.unet.channels": (4, 8),
        "model.unet.strides": (2,),
        "model.out_channels": 4,
        "train.tensorboard": False,
        "train.pictures_every_epochs": 0,
    }
    learning = {
        **small,
        **ALONE,
        "data.patch_size": (16, 16, 16),
        "data.crops_per_patch": 4,
        "train.batch_size": 4,
        "train.epochs": 10,
        "train.validate_every_epochs": 5,
    }
    pretraining = {
        **small,
        "data.patch_size": (24, 24, 24),
        "data.input_size": (16, 16, 16),
        "train.batch_size": 4,
        "train.epochs": 4,
        "train.validate_every_epochs": 2,
    }
    types = tuple(DataType(name, name) for name in ("plaques", "nuclei", "vessels"))
    arms = (
        Arm("unet_scratch", "segment_unet:tiny", learning),
        Arm("unet_image", "segment_unet:tiny", learning, pretrained="unet_image", against="unet_scratch"),
        Arm("unet_image_text", "segment_unet:tiny", learning, pretrained="unet_image_text", against="unet_scratch"),
        Arm("thresholds", BASELINES, against="unet_scratch"),
    )
    return Experiment(
        "table1:tiny",
        (Study("segment", types, arms, sizes=(5,)),),
        pretrained=(
            Pretraining("unet_image", recipe="pretrain_unet:tiny_image_only", overrides=pretraining),
            Pretraining("unet_image_text", recipe="pretrain_unet:tiny", overrides=pretraining),
        ),
        phantoms=Phantoms(count=75, pretraining_count=30, size=(32, 32, 32)),
        seeds=(1,),
    )
