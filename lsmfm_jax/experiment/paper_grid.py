"""What the paper's Tables 1 and 2 share: types of data, numbers of patches, backbones and where they start from."""

from collections.abc import Mapping
from typing import Any

from lsmfm_jax.experiment.declaration import Arm, DataType, Pretraining

TYPES = (
    DataType("amyloid_plaque", "amyloid_plaque", paper="Amyloid Plaque"),
    DataType("cell_nucleus", "cell_nucleus", paper="Cell Nucleus"),
    DataType("vessels_ch0", "vessels", channels=(0,), paper="Vessels"),
    DataType("vessels_ch1", "vessels", channels=(1,), paper="Vessels"),
)
# Annotated patches of a type, and which of these the paper calls few and many.
SIZES, FEW_AND_MANY = (5, 7, 9, 11, 13, 15), (5, 15)
# Our name, that of the recipes and the paper's.
_BACKBONES = (("unet", "unet", "UNet"), ("swin", "swin_unetr", "Swin"))
_STARTS = (("image", "Img"), ("image_text", "Img+T"))
PRETRAINED = tuple(Pretraining(f"{backbone}_{start}") for backbone, _, _ in _BACKBONES for start, _ in _STARTS)


def network_arms(task: str, overrides: Mapping[str, Any] | None = None) -> tuple[Arm, ...]:
    """Both backbones from scratch and from either pretraining, which is a claim against the same one from scratch.

    Args:
        task: segment, classify or deblur.
        overrides: keys of the recipes that are others here.
    """
    arms, changed = [], dict(overrides or {})
    for backbone, recipe, name in _BACKBONES:
        scratch = f"{backbone}_scratch"
        arms.append(Arm(scratch, f"{task}_{recipe}:scratch", changed, paper=f"Scr {name}"))
        for start, called in _STARTS:
            of = f"{backbone}_{start}"
            arms.append(Arm(of, f"{task}_{recipe}", changed, pretrained=of, against=scratch, paper=f"{called} {name}"))
    return tuple(arms)
