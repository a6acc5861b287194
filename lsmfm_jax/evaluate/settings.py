"""How masks are judged: limits and thresholds, checked before any file is read."""

import dataclasses
import math
from typing import Any

from lsmfm_jax.data.labels import LabelNames
from lsmfm_jax.data.mask_folders import KINDS, MaskFolderError
from lsmfm_jax.metrics.instances import CONNECTIVITIES

# The settings of label values as the command line has them.
NAMES = LabelNames("--foreground", "--background", "--ignore", "--label-kind mask")
# About the radius of a nucleus in the sampling of light-sheet data.
MATCH_VOXELS = 4.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a score beside the files.

    Attributes:
        kind: of the predictions, one of `KINDS`; `label_kind`: of the labels.
        threshold: a voxel of a mask is predicted foreground at this value and above.
        connectivity: of components, 6, 18 or 26.
        minimum_voxels: smaller instances are left out of the instance metrics, on both sides.
        match_dice: least Dice of two matched instances, 0 to 1.
        spacing_um: voxel size ZYX in micrometres, or None.
        match_distance_voxels: largest distance of the centroids of two objects that are one; `match_distance_um`:
            the same in micrometres, which needs `spacing_um`. With neither it is `MATCH_VOXELS`.
        seed: of the bootstrap.

    Raises:
        MaskFolderError: a value that is not allowed; the message has its option, the value and what is.
    """

    kind: str = "auto"
    label_kind: str = "auto"
    threshold: float = 0.5
    connectivity: int = 26
    minimum_voxels: int = 1
    match_dice: float = 0.3
    spacing_um: tuple[float, ...] | None = None
    match_distance_voxels: float | None = None
    match_distance_um: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("label_kind", KINDS), ("connectivity", CONNECTIVITIES)):
            if getattr(self, name) not in allowed:
                raise MaskFolderError(f"{name} is {getattr(self, name)!r}: use one of {', '.join(map(str, allowed))}")
        if not 1 <= self.minimum_voxels < 2**31:
            raise MaskFolderError(
                f"minimum_voxels is {self.minimum_voxels}: give 1, which keeps all instances, or more"
            )
        if not 0 <= self.seed < 2**63:
            raise MaskFolderError(f"seed is {self.seed}: give a whole number from 0 on")
        _within(
            "threshold", self.threshold, low=0.0, high=2.0**32, above=True, usual="above 0, for probabilities up to 1"
        )
        _within("match_dice", self.match_dice, low=0.0, high=1.0, usual="from 0 to 1")
        for side in self.spacing_um if self.spacing_um is not None else ():
            _within("spacing_um", side, low=1e-3, high=1e4, usual="three sizes from 0.001 to 10000 micrometres")
        if self.spacing_um is not None and len(self.spacing_um) != 3:
            raise MaskFolderError(f"spacing_um is {self.spacing_um}: give three sizes Z,Y,X in micrometres")
        for name in ("match_distance_voxels", "match_distance_um"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), low=0.0, high=1e6, above=True, usual="above 0, up to 1000000")
        if self.match_distance_um is not None and self.match_distance_voxels is not None:
            raise MaskFolderError("match_distance_um and match_distance_voxels are both given: leave one out")
        if self.match_distance_um is not None and self.spacing_um is None:
            raise MaskFolderError(
                f"match_distance_um is {self.match_distance_um:g}, but the voxel size is unknown: give it with "
                "--spacing-um Z,Y,X, or the distance with --match-distance-voxels"
            )

    @property
    def match(self) -> dict[str, Any]:
        """The largest distance of a match, as `segmentation_scores` takes it."""
        if self.match_distance_um is not None:
            return {"match_distance": float(self.match_distance_um), "match_in_um": True}
        return {"match_distance": float(self.match_distance_voxels or MATCH_VOXELS), "match_in_um": False}

    def shown(self) -> dict[str, Any]:
        """What the table has of the settings."""
        names = ("connectivity", "minimum_voxels", "match_dice", "threshold", "spacing_um")
        unit = "um" if self.match_distance_um is not None else "voxels"
        return {
            **{name: getattr(self, name) for name in names},
            f"match_distance_{unit}": self.match["match_distance"],
        }


def _within(name: str, value: float, *, low: float, high: float, usual: str, above: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (above and value == low):
        raise MaskFolderError(f"{name} is {value:g}: give a number {usual}")
