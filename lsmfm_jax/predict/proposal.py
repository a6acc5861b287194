"""A box of an image that could be annotated next, and the name that its file gets."""

import dataclasses

import numpy as np
from jaxtyping import Float, Num

from lsmfm_jax.predict.box_choice import Size
from lsmfm_jax.predict.inputs import Case
from lsmfm_jax.volumes.names import volume_of
from lsmfm_jax.volumes.read import VolumeInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Proposal:
    """A box of an image that could be annotated.

    Attributes:
        case: its image.
        volume: that the image is a part of.
        info: what the image's file says of itself.
        corner: ZYX, its first voxel in the image.
        mean_uncertainty: in bits, 0 to 1.
        crop: its raw counts.
        image_slice: of the whole image, through its middle along Z.
        uncertainty_slice: in bits, of the same voxels.
    """

    case: Case
    volume: str
    info: VolumeInfo
    corner: Size
    mean_uncertainty: float
    crop: Num[np.ndarray, "z y x"]
    image_slice: Num[np.ndarray, "h w"]
    uncertainty_slice: Float[np.ndarray, "h w"]

    @property
    def name(self) -> str:
        """Of its file: it tells the place, and is of the same volume as the image by the rule for file names."""
        place = "z{:05d}_y{:05d}_x{:05d}".format(*self.corner)
        name = f"{self.case.name}_{place}"
        # In `mouse_3_17` 17 is the crop's number, but with coordinates behind it it would be the volume's.
        of_image, last = volume_of(self.case.name), self.case.name.removeprefix(volume_of(self.case.name)).strip("_-. ")
        return name if volume_of(name) == of_image or not last else f"{of_image}_crop_{last}_{place}"
