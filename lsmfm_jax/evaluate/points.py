"""Judging where objects are, with points that a person or a tool set on one side or on both."""

import pathlib

import numpy as np
from jaxtyping import Bool, Float, Num

from lsmfm_jax.data.mask_folders import MASK_ENDINGS, MaskFolderError
from lsmfm_jax.data.spreadsheets import points_in, read_points
from lsmfm_jax.evaluate.settings import Settings
from lsmfm_jax.evaluate.table import EMPTY, ROLLED, ROLLED_VOXELS, PatchScores
from lsmfm_jax.metrics.detection import centroids, detection_scores
from lsmfm_jax.metrics.instances import components, renumber
from lsmfm_jax.metrics.segmentation import foreground, whole_labels

# What tools put behind the name of a patch for its table of points; longer ones first.
POINT_ENDINGS = tuple(sorted(("_centroids", "_points", "_cells", *MASK_ENDINGS), key=len, reverse=True))

Places = Float[np.ndarray, "_ 3"]


def point_files(folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
    """The tables of points of a folder by the name of their patch; other CSVs are left out.

    Raises:
        MaskFolderError: two tables for one patch.
    """
    found: dict[str, pathlib.Path] = {}
    for path in sorted(pathlib.Path(folder).glob("*")):
        if path.suffix.lower() != ".csv" or path.name.startswith(".") or not points_in(path):
            continue
        name = path.stem
        ending = next((e for e in POINT_ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
        patch = name[: len(name) - len(ending)]
        if patch in found:
            raise MaskFolderError(f"{found[patch]} and {path} are both points of {patch!r}: keep one of them")
        found[patch] = path
    return found


def places_of(path: pathlib.Path, settings: Settings) -> Places:
    """Places of a table of points in voxels.

    Raises:
        MaskFolderError: they are in micrometres and the voxel size is not given.
        SpreadsheetError: the table cannot be read.
    """
    points = read_points(path)
    if not points.in_um:
        return points.places
    if settings.spacing_um is None:
        raise MaskFolderError(f"{path}: its points are in micrometres; give the voxel size with --spacing-um Z,Y,X")
    return points.places / np.array(settings.spacing_um)


def places_in(volume: Num[np.ndarray, "z y x"], settings: Settings, *, labels: bool) -> Places:
    """Centroids of the instances of a mask or a label image, in voxels."""
    if labels:
        return centroids(renumber(whole_labels(volume), minimum_voxels=settings.minimum_voxels))
    mask = foreground(volume, labels=False, threshold=settings.threshold)
    return centroids(components(mask, connectivity=settings.connectivity, minimum_voxels=settings.minimum_voxels))


def score_points(
    predicted: Places,
    true: Places,
    settings: Settings,
    *,
    method: str,
    patch: str,
    volume: str,
    annotated: Bool[np.ndarray, "z y x"] | None = None,
) -> list[PatchScores]:
    """Detection scores of a prediction, and for scale of none at all and of the truth moved along X.

    Args:
        predicted: places in voxels.
        true: places in voxels.
        settings: with the largest distance of a match.
        method: name of the prediction's row.
        patch: its name.
        volume: that it is from.
        annotated: where places count; None for everywhere.
    """
    if annotated is not None:
        predicted, true = (_inside(places, annotated) for places in (predicted, true))
    match = settings.match
    spacing = settings.spacing_um if match["match_in_um"] else (1.0, 1.0, 1.0)

    def score(places: Places) -> dict[str, float]:
        return detection_scores(places, true, distance=match["match_distance"], spacing=tuple(spacing))

    return [
        PatchScores(method, patch, volume, score(predicted)),
        PatchScores(EMPTY, patch, volume, score(true[:0])),
        PatchScores(ROLLED, patch, volume, score(true + np.array([0.0, 0.0, ROLLED_VOXELS]))),
    ]


def _inside(places: Places, annotated: Bool[np.ndarray, "z y x"]) -> Places:
    voxels = np.rint(places).astype(np.int64)
    within = ((voxels >= 0) & (voxels < annotated.shape)).all(axis=1)
    kept = np.zeros(len(places), bool)
    kept[within] = annotated[tuple(voxels[within].T)]
    return places[kept]
