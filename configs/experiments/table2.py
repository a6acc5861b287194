"""The paper's Table 2: classification in 12 classes, and deblurring from 5 to 15 pairs of patches.

    lsmfm experiment table2 --workdir DIR --data PATCHES --pretrained unet_image=RUN --pretrained unet_image_text=RUN \
        --pretrained swin_image=RUN --pretrained swin_image_text=RUN

`PATCHES` holds `<class>_patch_<n>_vol<m>_ch<c>.nii.gz` of the twelve classes, and beside those of plaques, nuclei and
vessels `<name>_blurred`. A size of classification is that of all classes together, shared out equally. Beside the
networks stand principal components with a logistic regression, the ResNet-18, and the blurred image as it is.

Variants:
    (none)  1,560 cells; a graphics card
    tiny    the five kinds of generated patches and networks that learn little from them, the UNet alone

Hardware: see classify_unet and deblur_unet. The tiny variant is made for a CPU: 19 minutes with --jobs 2 on
two busy cores.
"""

from lsmfm_jax.experiment import paper_grid, tiny
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Pretraining, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "tiny")
CLASSES = (
    *("TPH2", "VIP_ASLM_on", "VIP_ASLM_off", "amyloid_plaque", "c-Fos", "cell_nucleus"),
    *("vessels", "CR", "LEC", "NN", "NPY", "YO"),
)
SIMPLE = Arm("simple", BASELINES, against="unet_scratch")


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    return _tiny() if variant == "tiny" else _full()


def _full() -> Experiment:
    classes = tuple(DataType(name, f"{name}_patch_", paper="classes") for name in CLASSES)
    arms = (*paper_grid.network_arms("classify"), Arm("resnet18", "classify_resnet18", paper="ResNet"), SIMPLE)
    return Experiment(
        "table2",
        (
            Study("classify", classes, arms, sizes=(56, 70, 84, 105), paper_sizes=(56, 105)),
            Study(
                "deblur",
                paper_grid.TYPES,
                paper_grid.network_arms("deblur"),
                sizes=paper_grid.SIZES,
                paper_sizes=paper_grid.FEW_AND_MANY,
            ),
        ),
        pretrained=paper_grid.PRETRAINED,
    )


def _tiny() -> Experiment:
    kinds = tuple(DataType(name, name) for name in ("plaques", "nuclei", "vessels", "neurons", "glia"))
    resnet = Arm("resnet18", "classify_resnet18:tiny", {**tiny.QUIET, **tiny.CROPS, "train.epochs": 5})
    return Experiment(
        "table2:tiny",
        (
            Study("classify", kinds, (*_tiny_arms("classify"), resnet, SIMPLE), sizes=(25,)),
            Study("deblur", kinds[1:3], _tiny_arms("deblur"), sizes=(5,)),
        ),
        pretrained=(Pretraining("unet_image_text", recipe="pretrain_unet:tiny", overrides=tiny.PRETRAINING),),
        phantoms=tiny.PHANTOMS,
        seeds=(1,),
    )


def _tiny_arms(task: str) -> tuple[Arm, ...]:
    recipe, start = f"{task}_unet:tiny", "unet_image_text"
    return (
        Arm("unet_scratch", recipe, tiny.FINETUNING),
        Arm(start, recipe, tiny.FINETUNING, pretrained=start, against="unet_scratch"),
    )
