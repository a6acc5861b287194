"""Restores what a mask beside an image marks: the part of prediction that is inpainting's own."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Num

from lsmfm_jax.errors import InputError
from lsmfm_jax.metrics.image import scores_inside
from lsmfm_jax.predict.in_memory import Settings
from lsmfm_jax.predict.inputs import Case, PredictionError, file_beside
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.part import in_counts
from lsmfm_jax.predict.pictures import draw_inpainting
from lsmfm_jax.predict.table import Row, volume_facts
from lsmfm_jax.predict.truth import truth_like
from lsmfm_jax.predict.windows import blend_windows
from lsmfm_jax.resample import fill_smoothly
from lsmfm_jax.scale import Levels
from lsmfm_jax.volumes.read import VolumeInfo, read_single, write_nifti

MASK = "_mask"
RESTORED = "_inpainted.nii.gz"


@dataclasses.dataclass(frozen=True, eq=False)
class Inpainting:
    """What an inpainting run makes of a volume.

    Attributes:
        volume: restored where voxels were hidden, in the type and the counts of the input; all others as they were.
        levels: how the volume's counts were scaled, by its visible voxels.
    """

    volume: Num[np.ndarray, "z y x"]
    levels: Levels


def inpaint(
    predictor: Predictor, image: Num[np.ndarray, "z y x"], hidden: Bool[np.ndarray, "z y x"], settings: Settings
) -> Inpainting:
    """Restores the hidden voxels of a volume; their own values change nothing in the result.

    Args:
        predictor: of an inpainting run.
        image: raw counts.
        hidden: voxels to restore, some but not all.
        settings: how.

    Raises:
        PredictionError: a window of the network sees no visible voxel.
    """
    # All scales of this task are those of percentiles, which do not ask where a voxel lies.
    levels = predictor.levels(image[~hidden].reshape(1, 1, -1))
    scaled = np.where(hidden, np.float32(np.nan), predictor.prepared(image, levels))

    def apply(windows: np.ndarray) -> np.ndarray:
        if np.isnan(windows).all(axis=(1, 2, 3)).any():
            raise PredictionError(
                f"a box to restore is larger than a window of {' x '.join(map(str, predictor.window))} voxels, so "
                "nothing around it is seen; mark less, or take larger windows with --window"
            )
        return np.asarray(predictor.apply(windows))

    result = blend_windows(
        apply,
        scaled,
        window=predictor.window,
        overlap_frac=settings.overlap_frac,
        batch_size=settings.batch_size,
    )
    return Inpainting(np.where(hidden, in_counts(result, levels, image.dtype), image), levels)


def write_inpainted(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    """Writes the restored volume of a file and its picture, and gives its row of the table.

    Where there is an intact volume, the row has the absolute error and the SSIM of the restored voxels on the scale
    of the network, and beside them those of a smooth fill (`_smooth`) and of the mean of the visible voxels (`_mean`).

    Raises:
        PredictionError: there is no mask beside the image, it marks nothing or everything, it does not lie on the
            image, or a box is larger than the network's windows.
    """
    image, info = read_single(case.path, channel=settings.channel)
    hidden = _hidden_of(case, image, info)
    truth = truth_like(case, image, info)
    try:
        found = inpaint(predictor, image, hidden, settings)
        scores = {} if truth is None else _scores(found, image, hidden, truth)
    except (PredictionError, InputError) as error:
        raise PredictionError(f"{case.path}: {error}") from None
    write_nifti(out / f"{case.name}{RESTORED}", found.volume, like=info)
    draw_inpainting(out / f"{case.name}.png", image, hidden, found.volume, truth)
    row = volume_facts(image, info, found.levels) | {
        "hidden_frac": float(hidden.mean()),
        "hidden_mean": float(found.volume[hidden].mean(dtype=np.float64)),
        "visible_mean": float(image[~hidden].mean(dtype=np.float64)),
    }
    return row if truth is None else {**row, "truth": str(case.truth), **scores}


def _hidden_of(case: Case, image: np.ndarray, info: VolumeInfo) -> Bool[np.ndarray, "z y x"]:
    """The voxels that the mask beside an image marks."""
    path = file_beside(case.path.parent, case.name, MASK)
    if path is None:
        raise PredictionError(
            f"{case.path}: no mask beside it; add {case.name}{MASK}.nii.gz, not 0 in the voxels to restore "
            "and 0 in all others"
        )
    hidden = truth_like(case._replace(truth=path), image, info, mask=True) != 0
    if hidden.all() or not hidden.any():
        what = "every voxel is 0, so nothing is" if not hidden.any() else "no voxel is 0, so everything is"
        raise PredictionError(f"{path}: {what} to be restored; mark the voxels to restore, and leave the others at 0")
    return hidden


def _scores(found: Inpainting, image: np.ndarray, hidden: np.ndarray, truth: np.ndarray) -> Row:
    """Scores of the restored voxels and of two plain fills, on the scale that the network saw."""
    wanted, levels = found.levels.apply(truth, clip=False), found.levels
    visible = levels.apply(image, clip=False)
    smooth = fill_smoothly(jnp.asarray(visible)[None, ..., None], jnp.asarray(~hidden)[None])
    fills = {
        "": levels.apply(found.volume, clip=False),
        "_smooth": np.asarray(smooth)[0, ..., 0],
        "_mean": np.full(image.shape, visible[~hidden].mean(dtype=np.float64), np.float32),
    }
    return {
        f"{name}{ending}": value
        for ending, fill in fills.items()
        for name, value in scores_inside(fill, wanted, hidden).items()
    }
