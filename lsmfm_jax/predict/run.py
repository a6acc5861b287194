"""Predictions on files: masks, classes or deblurred volumes, a table and a picture of each."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from lsmfm_jax.data.captions import normalise_key
from lsmfm_jax.data.volumes import VolumeError, VolumeInfo, read_single, write_nifti
from lsmfm_jax.metrics.image import image_scores
from lsmfm_jax.metrics.segmentation import segmentation_scores
from lsmfm_jax.predict.inputs import Case, PredictionError, find_cases
from lsmfm_jax.predict.network import Predictor, load_predictor
from lsmfm_jax.predict.pictures import draw_classification, draw_deblurring, draw_segmentation
from lsmfm_jax.predict.table import TABLE, Row, cell, summarise, write_table
from lsmfm_jax.predict.windows import Size, average_windows, blend_windows

# What each task writes for `<name>`, beside its row in the table.
ENDINGS = {
    "segment": ("_mask.nii.gz", "_prob.nii.gz", ".png"),
    "classify": (".png",),
    "deblur": ("_deblurred.nii.gz", ".png"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How predictions are made.

    Attributes:
        overlap_frac: least share of a window that the next one covers again, at most 0.9.
        threshold: probability from which on a voxel is foreground.
        batch_size: windows on the device at a time.
    """

    overlap_frac: float = 0.25
    threshold: float = 0.5
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--overlap", self.overlap_frac, 0.0, 0.9),
            ("--threshold", self.threshold, 0.0, 1.0),
            ("--batch", self.batch_size, 1, 4096),
        ):
            if not low <= value <= high:
                raise PredictionError(f"{name} {value}: between {low} and {high} is needed")


def predict(
    checkpoint: pathlib.Path,
    inputs: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    settings: Settings | None = None,
    window: Size | None = None,
    flips: bool = False,
    label_dir: pathlib.Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Predicts on image files of any size with a finetuned run, and writes the results to a folder.

    The table has a row for each file; where there are truths, `summary.csv` has the means with their intervals.
    NIfTI results have the affine and header of their input. A file that fails does not stop the others: it has
    its reason in the table, and all failures are raised together at the end.

    Args:
        checkpoint: run folder.
        inputs: NIfTI, TIFF or .npy files, and folders of them; see `find_cases`.
        out: folder to write; made if absent.
        settings: how; None for the defaults.
        window: ZYX voxels; None: the patch size of the run.
        flips: average over the eight flips.
        label_dir: where labels are that do not lie beside their image.
        overwrite: replace results that are there.
        say: prints a line.

    Returns:
        The rows of the table.

    Raises:
        PredictionError: a wrong argument, a result that is there already, or files that failed.
        CheckpointError: there is no run, or it is damaged.
    """
    settings = settings or Settings()
    predictor = load_predictor(checkpoint, window=window, flips=flips)
    task = predictor.task
    return write_cases(
        inputs,
        out,
        lambda case: WRITERS[task](predictor, case, out, settings),
        task=task,
        endings=ENDINGS[task],
        title=f"{task} with {predictor.origin}, windows of {' x '.join(map(str, predictor.window))} voxels"
        f"{', mean of 8 flips' if flips else ''}",
        label_dir=label_dir,
        overwrite=overwrite,
        say=say,
    )


def write_cases(
    inputs: Sequence[pathlib.Path],
    out: pathlib.Path,
    write: Callable[[Case], Row],
    *,
    task: str,
    endings: Sequence[str],
    title: str,
    label_dir: pathlib.Path | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> list[Row]:
    """Does one thing for each of the files, and writes the table of what it gave; as `predict`, which see.

    Args:
        inputs: files and folders.
        out: folder to write; made if absent.
        write: writes the results of a file, whose names are the case's with `endings`, and gives its row.
        task: whose rules say what is an image and what is its truth.
        endings: of the files that `write` writes.
        title: what is done, to be printed.
        label_dir: where labels are that do not lie beside their image.
        overwrite: replace results that are there.
        say: prints a line.
    """
    cases, left_out = find_cases(inputs, task=task, label_dir=label_dir)
    _check_outputs(cases, out, endings, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    say(f"{title}: {len(cases)} files{f'; {len(left_out)} labels, masks and the like left out' if left_out else ''}")
    rows, failures = [], []
    for case in cases:
        row: Row = {"file": str(case.path), "task": task}
        try:
            row |= write(case)
            say(_summary(case, row))
        except (VolumeError, PredictionError) as error:
            row["error"] = str(error)
            failures.append(str(error))
        rows.append(row)
        write_table(out / TABLE, rows)
    for line in summarise(rows, out):
        say(line)
    if failures:
        raise PredictionError(
            f"{len(failures)} of {len(cases)} files failed, the others are in {out}: {'; '.join(failures[:5])}"
        )
    say(f"{len(rows)} predictions and {TABLE} in {out}")
    return rows


def _segment(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    image, info = read_single(case.path)
    truth = truth_like(case, image)
    truth = None if truth is None else truth > 0
    probability = np.clip(_blended(predictor, image, settings), 0.0, 1.0)
    mask = probability >= settings.threshold
    write_nifti(out / f"{case.name}_mask.nii.gz", mask.astype(np.uint8), like=info)
    write_nifti(out / f"{case.name}_prob.nii.gz", probability, like=info)
    draw_segmentation(out / f"{case.name}.png", image, probability, mask, truth)
    row = volume_facts(image, info, predictor.span(image)) | {
        "threshold": settings.threshold,
        "foreground_frac": float(mask.mean()),
        "mean_probability": float(probability.mean()),
    }
    if truth is None:
        return row
    scores = segmentation_scores(probability, truth.astype(np.uint8), threshold=settings.threshold)
    return {**row, "truth": str(case.truth), **scores}


def write_classes(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    """Writes the picture of a classified file and gives its row."""
    image, info = read_single(case.path)
    classes = [str(name) for name in predictor.record["classes"]]
    probabilities = average_windows(
        predictor.on(image),
        image,
        window=predictor.window,
        overlap_frac=settings.overlap_frac,
        batch_size=settings.batch_size,
    )
    truth = _class_of(case, classes)
    predicted = classes[int(np.argmax(probabilities))]
    draw_classification(out / f"{case.name}.png", image, probabilities, classes, truth)
    row = volume_facts(image, info, predictor.span(image)) | {"class": predicted}
    if truth is not None:
        row |= {"truth": truth, "correct": int(predicted == truth)}
    return row | {f"probability_{name}": float(p) for name, p in zip(classes, probabilities, strict=True)}


def _deblur(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    image, info = read_single(case.path)
    truth = truth_like(case, image)
    low, high = predictor.span(image)
    span = high - low if high > low else 1.0
    result = _blended(predictor, image, settings)
    sharp = (low + result * span).astype(np.float32)
    write_nifti(out / f"{case.name}_deblurred.nii.gz", sharp, like=info)
    draw_deblurring(out / f"{case.name}.png", image, sharp, truth)
    difference = float(np.abs(sharp - image).mean())
    row = volume_facts(image, info, predictor.span(image)) | {
        "minimum": float(sharp.min()),
        "maximum": float(sharp.max()),
        "mean_absolute_change": difference,
    }
    if truth is None:
        return row
    # Judged on the scale that the network was trained on, where its targets fill [0, 1].
    bottom, top = predictor.record["target_range"]

    def wide(counts: np.ndarray) -> np.ndarray:
        return ((counts.astype(np.float32) - low) / span - bottom) / (top - bottom)

    scores = image_scores(wide(sharp), wide(truth))
    before = {f"{name}_blurred": value for name, value in image_scores(wide(image), wide(truth)).items()}
    return {**row, "truth": str(case.truth), **scores, **before}


WRITERS: dict[str, Callable[[Predictor, Case, pathlib.Path, Settings], Row]] = {
    "segment": _segment,
    "classify": write_classes,
    "deblur": _deblur,
}


def _blended(predictor: Predictor, image: np.ndarray, settings: Settings) -> np.ndarray:
    return blend_windows(
        predictor.on(image),
        image,
        window=predictor.window,
        overlap_frac=settings.overlap_frac,
        batch_size=settings.batch_size,
    )


def truth_like(case: Case, image: np.ndarray) -> np.ndarray | None:
    """The truth of a case, if it has one.

    Raises:
        PredictionError: its shape is not that of the image.
    """
    if case.truth is None:
        return None
    truth, _ = read_single(case.truth, allow_constant=True)
    if truth.shape != image.shape:
        raise PredictionError(
            f"{case.truth}: its shape is {truth.shape}, that of {case.path} {image.shape} (ZYX); they must be equal"
        )
    return truth


def _class_of(case: Case, classes: Sequence[str]) -> str | None:
    """The class that a file's name or its folder's gives, if it is one of the run's."""
    named = re.match(r"(.+)_patch_\d+", case.path.name)
    for name in (named[1] if named else "", case.path.parent.name):
        if normalise_key(name) in classes:
            return normalise_key(name)
    return None


def volume_facts(image: np.ndarray, info: VolumeInfo, span: tuple[float, float]) -> Row:
    """What the table has of every volume: shape, voxel size, and the counts that became 0 and 1."""
    size = info.voxel_size_um
    return {
        "shape": " ".join(map(str, image.shape)),
        "voxel_size_um": "" if size is None else " ".join(f"{side:g}" for side in size),
        "scaled_from": span[0],
        "scaled_to": span[1],
    }


def _check_outputs(cases: Sequence[Case], out: pathlib.Path, endings: Sequence[str], *, overwrite: bool) -> None:
    targets = [out / f"{case.name}{ending}" for case in cases for ending in endings]
    inputs = {path.resolve() for case in cases for path in (case.path, case.truth) if path is not None}
    own = [str(path) for path in targets if path.resolve() in inputs]
    if own:
        raise PredictionError(f"{own[0]}: an input would be replaced by its prediction; name another --out")
    there = [path for path in (*targets, out / TABLE) if path.exists()]
    if there and not overwrite:
        raise PredictionError(
            f"{there[0]}{f' and {len(there) - 1} more' if len(there) > 1 else ''}: there already; name a new folder "
            "with --out, or pass --overwrite"
        )


def _summary(case: Case, row: Row) -> str:
    told = [
        f"{name} {cell(row[name])}"
        for name in ("foreground_frac", "class", "truth", "dice", "psnr", "psnr_blurred", "ssim")
        if name in row and not (name == "truth" and "class" not in row)
    ]
    return f"{case.path.name}: {', '.join(told)}"
