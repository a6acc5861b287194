"""One annotated patch of a new brain moves a run's cut-off there: what a brain needs first is calibration.

Brains differ in how bright an object must be to be drawn. The network and what it has learnt stay; a number is added to
its logits, chosen so that the mask of the new patches is best.

Where the run scales by the background (`local`, `log_ratio`), two scales are tried: the run's own, and the same with
the background fixed at the new patches' level. Within one volume staining and exposure are the same everywhere, and a
person who draws bright cells may in effect draw what is above so many counts: then the fixed one carries over to the
rest of the volume. Where light is uneven, the measured one does. The new patches tell which.

The original run is not touched.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lsmfm_jax.data.labels import IGNORED, LabelValues, label_values
from lsmfm_jax.files import refuse_foreign, replacing_folder
from lsmfm_jax.predict.cut_off import blended_logits, fitted_cut
from lsmfm_jax.predict.inputs import Case, PredictionError, find_cases
from lsmfm_jax.predict.network import Predictor, load_predictor
from lsmfm_jax.predict.truth import mask_like
from lsmfm_jax.scale import Scale, naming
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.volumes.read import read_single


def calibrate(
    run: pathlib.Path,
    patches: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    label_dir: pathlib.Path | None = None,
    print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes a copy of a segmentation run whose cut-off, and level of background, suit patches of a new volume.

    Args:
        run: folder of a finished run of task `segment`, or one that was calibrated before.
        patches: images of the new volume with their labels beside them (`<name>_label`), or folders of them.
        out: folder to write; `predict`, `baseline` excepted, takes it like a run.
        label_dir: where labels are that do not lie beside their image.
        print_line: prints a line.

    Returns:
        `logit_shift` that was added in all, `fixed_level` of the scale (None: the background is measured), and the
        foreground Dice of the patches before and after.

    Raises:
        PredictionError: a run of another task, a patch without a label, or without foreground in any of them.
    """
    refuse_foreign(out, made_by="calibrate", flag=False)
    predictor = load_predictor(run)
    if predictor.task != "segment":
        raise PredictionError(f"{run}: a run of task {predictor.task!r}; only segmentation has a cut-off to calibrate")
    cases, _ = find_cases(patches, task="segment", label_dir=label_dir)
    values = label_values(predictor.record.get("labels"))
    scales = _scales(predictor, cases)
    choices = {scale: _fitted(predictor, scale, cases, values) for scale in dict.fromkeys((*scales, predictor.scale))}
    best = max((choices[scale] for scale in scales), key=lambda one: one.dice)
    before = choices[predictor.scale].dice_before
    weights = read_weights(run)
    shift = float(weights.record.get("logit_shift", 0.0)) - best.cut
    record = {**weights.record, "logit_shift": shift, "calibrated_on": [case.name for case in cases]}
    record["scaling"] = best.scale.record()
    with replacing_folder(out) as folder:
        write_weights(folder, record=record, params=weights.params, batch_stats=weights.batch_stats)
    if len(scales) > 1:
        own, fixed = (f"{choices[scale].dice:.3f}" for scale in scales)
        print_line(f"with the background as each volume has it: Dice {own}; fixed at that of these patches: {fixed}")
    print_line(
        f"foreground Dice of {len(cases)} patches: {before:.3f} before, {best.dice:.3f} now (fitted on these very "
        "patches)"
    )
    if best.scale.fixed_level is not None:
        counts = best.scale.offset_counts + 2.0**best.scale.fixed_level
        print_line(
            f"the background counts as {counts:.0f} everywhere: predict the volume of these patches, and no other"
        )
        if len(cases) == 1:
            print_line("one patch cannot tell whether light is even in the volume: a second one from elsewhere would")
    print_line(f"{shift:+.3f} is added to every logit; written to {out}, which lsmfm predict --checkpoint takes")
    return {
        "logit_shift": shift,
        "fixed_level": best.scale.fixed_level,
        "dice_before": before,
        "dice_after": best.dice,
    }


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A scale, the cut that is best on it, and the mean Dice of the patches there and at the run's own cut."""

    scale: Scale
    cut: float
    dice: float
    dice_before: float


def _scales(predictor: Predictor, cases: Sequence[Case]) -> list[Scale]:
    """The run's scale, measuring the background, and where it has one the same with the patches' level fixed."""
    own = dataclasses.replace(predictor.scale, fixed_level=None)
    if own.name not in ("local", "log_ratio"):
        return [own]
    measuring = dataclasses.replace(predictor, scale=own)
    levels = []
    for case in cases:
        image, info = read_single(case.path, allow_constant=True)
        with naming(case.path):
            levels.append(measuring.levels(image, info.voxel_size_um).level)
    return [own, dataclasses.replace(own, fixed_level=float(np.median(levels)))]


def _fitted(predictor: Predictor, scale: Scale, cases: Sequence[Case], values: LabelValues) -> _Choice:
    """The best cut on one scale.

    Raises:
        PredictionError: no patch has foreground, or one has no label.
    """
    scaled = dataclasses.replace(predictor, scale=scale)
    logits, truths = zip(*(logits_and_truth(scaled, case, values) for case in cases), strict=True)
    if not any(truth.any() for truth in truths):
        names = ", ".join(case.name for case in cases)
        raise PredictionError(
            f"the labels of {names} are empty: there is no foreground to calibrate on. Annotate a patch that has some"
        )
    cut, before, after = fitted_cut(logits, truths)
    return _Choice(scale, cut, after, before)


def logits_and_truth(
    predictor: Predictor, case: Case, values: LabelValues
) -> tuple[Float[np.ndarray, "1 1 voxels"], Bool[np.ndarray, "1 1 voxels"]]:
    """What a segmentation run says of a labelled patch, and what is true, where somebody annotated.

    Raises:
        PredictionError: the patch has no label.
    """
    image, info = read_single(case.path, allow_constant=True)
    truth = mask_like(case, image, info, values)
    if truth is None:
        raise PredictionError(f"{case.path}: no label beside it; add {case.name}_label.nii.gz, or give --label-dir")
    with naming(case.path):
        scaled = predictor.prepared(image, predictor.levels(image, info.voxel_size_um))
    counted = truth != IGNORED
    return blended_logits(predictor, scaled)[counted][None, None], (truth == 1)[counted][None, None]
