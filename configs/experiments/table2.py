"""The paper's Table 2: classification in 12 classes, and deblurring from 5 to 15 pairs of patches.

    lsmfm experiment table2 --workdir DIR --data PATCHES --pretrained unet_image=RUN --pretrained unet_image_text=RUN \
        --pretrained swin_image=RUN --pretrained swin_image_text=RUN

`PATCHES` holds `<class>_patch_<n>_vol<m>_ch<c>.nii.gz` of the twelve classes, and beside those of plaques, nuclei and
vessels `<name>_blurred`. A size of classification is that of all classes together, shared out equally. Beside the
networks stand principal components with a logistic regression, the ResNet-18, and the blurred image as it is.

Variants:
    (none)  1,560 cells; a graphics card
    tiny    the five kinds of generated patches and networks that learn little from them, the UNet alone

Hardware: see classify_unet and deblur_unet. The tiny variant is made for a CPU (--jobs 2 on two cores); nobody has
timed it on a quiet machine yet.
"""

from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Phantoms, Pretraining, Study
from lsmfm_jax.experiment.load import unknown_variant

VARIANTS = ("", "tiny")
CLASSES = (
    *("TPH2", "VIP_ASLM_on", "VIP_ASLM_off", "amyloid_plaque", "c-Fos", "cell_nucleus"),
    *("vessels", "CR", "LEC", "NN", "NPY", "YO"),
)


def get_experiment(variant: str = "") -> Experiment:
    """The experiment of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    return _tiny() if variant == "tiny" else _full()


def _full() -> Experiment:
    classes = tuple(DataType(name, f"{name}_patch_", paper="classes") for name in CLASSES)
    types = (
        DataType("amyloid_plaque", "amyloid_plaque", paper="Amyloid Plaque"),
        DataType("cell_nucleus", "cell_nucleus", paper="Cell Nucleus"),
        DataType("vessels_ch0", "vessels", channels=(0,), paper="Vessels"),
        DataType("vessels_ch1", "vessels", channels=(1,), paper="Vessels"),
    )
    others = (
        Arm("resnet18", "classify_resnet18", paper="ResNet"),
        Arm("simple", BASELINES, against="unet_scratch"),
    )
    names = ("unet_image", "unet_image_text", "swin_image", "swin_image_text")
    return Experiment(
        "table2",
        (
            Study("classify", classes, (*_arms("classify"), *others), sizes=(56, 70, 84, 105), paper_sizes=(56, 105)),
            Study("deblur", types, _arms("deblur"), sizes=(5, 7, 9, 11, 13, 15), paper_sizes=(5, 15)),
        ),
        pretrained=tuple(Pretraining(name) for name in names),
    )


def _arms(task: str) -> tuple[Arm, ...]:
    """Both backbones from scratch and from either pretraining."""
    arms = []
    for backbone, recipe, name in (("unet", "unet", "UNet"), ("swin", "swin_unetr", "Swin")):
        scratch = f"{backbone}_scratch"
        arms.append(Arm(scratch, f"{task}_{recipe}:scratch", paper=f"Scr {name}"))
        for start, called in (("image", "Img"), ("image_text", "Img+T")):
            of = f"{backbone}_{start}"
            arms.append(Arm(of, f"{task}_{recipe}", pretrained=of, against=scratch, paper=f"{called} {name}"))
    return tuple(arms)


def _tiny() -> Experiment:
    plain = {"train.tensorboard": False, "train.pictures_every_epochs": 0}
    small = {**plain, "model.unet.channels": (4, 8), "model.unet.strides": (2,), "model.out_channels": 4}
    crops = {"data.patch_size": (16, 16, 16), "data.crops_per_patch": 4, "train.batch_size": 4, "train.epochs": 10}
    learning = {**small, **crops, "train.validate_every_epochs": 5}
    pretraining = {
        **small,
        "data.patch_size": (24, 24, 24),
        "data.input_size": (16, 16, 16),
        "train.batch_size": 4,
        "train.epochs": 4,
        "train.validate_every_epochs": 2,
    }

    def arms(task: str) -> tuple[Arm, ...]:
        recipe, start = f"{task}_unet:tiny", "unet_image_text"
        return (
            Arm("unet_scratch", recipe, learning),
            Arm(start, recipe, learning, pretrained=start, against="unet_scratch"),
        )

    kinds = tuple(DataType(name, name) for name in ("plaques", "nuclei", "vessels", "neurons", "glia"))
    others = (
        Arm("resnet18", "classify_resnet18:tiny", {**plain, **crops, "train.epochs": 5}),
        Arm("simple", BASELINES, against="unet_scratch"),
    )
    return Experiment(
        "table2:tiny",
        (
            Study("classify", kinds, (*arms("classify"), *others), sizes=(25,)),
            Study("deblur", kinds[1:3], arms("deblur"), sizes=(5,)),
        ),
        pretrained=(Pretraining("unet_image_text", recipe="pretrain_unet:tiny", overrides=pretraining),),
        phantoms=Phantoms(count=75, pretraining_count=30, size=(32, 32, 32)),
        seeds=(1,),
    )
