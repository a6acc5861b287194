"""The paper's Table 1: segmentation of plaques, nuclei and vessels from 5 to 15 annotated patches.

    lsmfm experiment table1 --workdir DIR --data PATCHES --pretrained unet_image=RUN --pretrained unet_image_text=RUN \
        --pretrained swin_image=RUN --pretrained swin_image_text=RUN

`PATCHES` holds `amyloid_plaque_patch_<n>_vol<m>_ch0.nii.gz`, `cell_nucleus_...`, `vessels_...` in two channels, each
with its `_label`. Both backbones start from scratch and from either pretraining; beside them stand thresholds and a
regression of single voxels, and the programs of others that `--tool` names. The networks are judged alone, without that
regression, which `segment_unet` adds.

Variants:
    (none)  1,368 cells; a graphics card
    tiny    generated patches and networks that learn little from them, the UNet alone

Hardware: see segment_unet. The tiny variant is made for a CPU: 10 minutes with --jobs 2 on two busy cores.
"""

from lsmfm_jax.experiment import paper_grid, tiny
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Pretraining, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "tiny")
ALONE = {"voxel_classifier.enabled": False}
THRESHOLDS = Arm("thresholds", BASELINES, against="unet_scratch")
# Left out where `--tool NAME=PYTHON` does not say where they are installed.
TOOLS = tuple(
    Arm(name, f"tool:{name}", against="unet_scratch")
    for name in (
        "cellpose3",
        "cellpose_sam",
        "cellpose_sam_zero_shot",
        "micro_sam_base",
        "micro_sam_base_zero_shot",
        "micro_sam_large",
        "micro_sam_large_zero_shot",
        "cellseg3d_swin_zero_shot",
        "cellseg3d_wnet_zero_shot",
        "stardist",
        "nnunet",
    )
)


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    return _tiny() if variant == "tiny" else _full()


def _full() -> Experiment:
    arms = (*paper_grid.network_arms("segment", ALONE), THRESHOLDS, *TOOLS)
    study = Study("segment", paper_grid.TYPES, arms, sizes=paper_grid.SIZES, paper_sizes=paper_grid.FEW_AND_MANY)
    return Experiment("table1", (study,), pretrained=paper_grid.PRETRAINED)


def _tiny() -> Experiment:
    types = tuple(DataType(name, name) for name in ("plaques", "nuclei", "vessels"))
    recipe, own = "segment_unet:tiny", {**tiny.FINETUNING, **ALONE}
    arms = (
        Arm("unet_scratch", recipe, own),
        Arm("unet_image", recipe, own, pretrained="unet_image", against="unet_scratch"),
        Arm("unet_image_text", recipe, own, pretrained="unet_image_text", against="unet_scratch"),
        THRESHOLDS,
    )
    return Experiment(
        "table1:tiny",
        (Study("segment", types, arms, sizes=(5,)),),
        pretrained=(
            Pretraining("unet_image", recipe="pretrain_unet:tiny_image_only", overrides=tiny.PRETRAINING),
            Pretraining("unet_image_text", recipe="pretrain_unet:tiny", overrides=tiny.PRETRAINING),
        ),
        phantoms=tiny.PHANTOMS,
        seeds=(1,),
    )
