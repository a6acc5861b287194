"""The truth of a file to predict on: a mask or a sharp volume beside it, or the class in its name."""

import re
from collections.abc import Sequence

import numpy as np

from lsmfm_jax.data.label_checks import check_labels
from lsmfm_jax.data.label_grid import LabelGridError, on_grid_of
from lsmfm_jax.data.labels import LabelError, LabelValues, target_of
from lsmfm_jax.predict.inputs import Case, PredictionError
from lsmfm_jax.store.captions import normalise_key
from lsmfm_jax.volumes.read import VolumeInfo, read_single


def truth_like(case: Case, image: np.ndarray, info: VolumeInfo, *, mask: bool = False) -> np.ndarray | None:
    """The truth of a case, if it has one: a volume, or a `mask`.

    Raises:
        PredictionError: its shape is not that of the image, or by their affines it does not lie on it.
    """
    if case.truth is None:
        return None
    truth, truth_info = read_single(case.truth, allow_constant=True, mask=mask)
    try:
        truth = on_grid_of(truth, truth_info, like=info, like_shape=image.shape)
    except LabelGridError as error:
        raise PredictionError(str(error)) from None
    if truth.shape != image.shape:
        raise PredictionError(
            f"{case.truth}: its shape is {truth.shape}, that of {case.path} {image.shape} (ZYX); they must be equal"
        )
    return truth


def mask_like(case: Case, image: np.ndarray, info: VolumeInfo, values: LabelValues) -> np.ndarray | None:
    """The mask of a case, if it has one: 1, 0, and `IGNORED` where nothing is annotated.

    Raises:
        PredictionError: its shape is not that of the image, or a label value has no meaning.
    """
    labels = truth_like(case, image, info, mask=True)
    if labels is None:
        return None
    try:
        check_labels(labels, values, source=str(case.truth))
        return target_of(labels, values, source=str(case.truth))
    except LabelError as error:
        raise PredictionError(str(error)) from None


def class_of(case: Case, classes: Sequence[str]) -> str | None:
    """The class that a file's name or its folder's gives, if it is one of the run's."""
    named = re.match(r"(.+)_patch_\d+", case.path.name)
    for name in (named[1] if named else "", case.path.parent.name):
        if normalise_key(name) in classes:
            return normalise_key(name)
    return None
