"""Predictions on files: masks, classes or volumes that are sharper or restored, a table and a picture of each."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.data.labels import IGNORED, label_values
from lsmfm_jax.metrics.image import image_scores
from lsmfm_jax.metrics.segmentation import segmentation_scores
from lsmfm_jax.predict import in_memory
from lsmfm_jax.predict.ensemble import Ensemble, load_ensemble, members_of
from lsmfm_jax.predict.in_memory import Result, Settings, VoxelSize
from lsmfm_jax.predict.inpaint import RESTORED, write_inpainted
from lsmfm_jax.predict.inputs import Case, PredictionError, find_cases
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.pictures import draw_classification, draw_deblurring, draw_segmentation
from lsmfm_jax.predict.table import CONFUSION, SUMMARY, TABLE, Row, cell, summarise, volume_facts, write_table
from lsmfm_jax.predict.truth import class_of, mask_like, truth_like
from lsmfm_jax.predict.windows import Size
from lsmfm_jax.scale import ScaleError, naming
from lsmfm_jax.volumes.read import VolumeError, read_single, write_nifti
from lsmfm_jax.volumes.voxel_sizes import other_size

UNCERTAINTY = "_uncertainty.nii.gz"
LISTED = 5  # failures in a message; the table has all


def predict(
    checkpoint: pathlib.Path | Sequence[pathlib.Path],
    inputs: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    settings: Settings | None = None,
    window: Size | None = None,
    flips: bool = False,
    uncertainty: bool = False,
    xla: str | None = None,
    label_dir: pathlib.Path | None = None,
    overwrite: bool = False,
    print_line: Callable[[str], None] = print,
) -> list[Row]:
    """Predicts on image files of any size with a finetuned run, or the mean of several, and writes the results.

    The table has a row for each file; where there are truths, `summary.csv` has the means with their intervals.
    NIfTI results have the affine and header of their input. A file that fails does not stop the others: it has
    its reason in the table, and all failures are raised together at the end.

    Args:
        checkpoint: run folder; several of segmentation: the mean of their probabilities, and the uncertainty.
        inputs: NIfTI, TIFF or .npy files, and folders of them; see `find_cases`.
        out: folder to write; made if absent.
        settings: how; None for the defaults.
        window: ZYX voxels; None: the patch size of the run.
        flips: average over the eight flips.
        uncertainty: of a single run with `flips`, write how much the flips disagree.
        xla: flags of the compiler, a mode of `train.xla`; None: that of the run.
        label_dir: where labels are that do not lie beside their image.
        overwrite: replace results that are there.
        print_line: prints a line.

    Returns:
        The rows of the table.

    Raises:
        PredictionError: a wrong argument, a result that is there already, runs that cannot be combined, or files
            that failed.
        CheckpointError: there is no run, or it is damaged.
    """
    settings = settings or Settings()
    checkpoints = [checkpoint] if isinstance(checkpoint, pathlib.Path) else list(checkpoint)
    predictor = load_ensemble(checkpoints, window=window, flips=flips, uncertainty=uncertainty, xla=xla)
    task = predictor.task
    if task not in WRITERS:
        raise PredictionError(f"{checkpoints[0]}: task {task!r} writes no files; those of {', '.join(WRITERS)} do")
    writer = WRITERS[task]
    other_sizes = _OtherSizes(predictor, print_line)
    modes = list(dict.fromkeys(one.xla for one in members_of(predictor)))
    compiled: Row = {} if modes == ["default"] else {"xla": ", ".join(modes)}

    def write(case: Case) -> Row:
        row = compiled | writer.write(predictor, case, out, settings)
        other_sizes.look(case, row)
        return row

    return write_cases(
        inputs,
        out,
        write,
        task=task,
        endings=writer.endings,
        title=f"{task} with {predictor.origin}, windows of {_windows_text(predictor)} voxels"
        f"{', mean of 8 flips' if flips else ''}",
        label_dir=label_dir,
        overwrite=overwrite,
        print_line=print_line,
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
    print_line: Callable[[str], None],
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
        print_line: prints a line.
    """
    cases, left_out = find_cases(inputs, task=task, label_dir=label_dir)
    _check_outputs(cases, out, endings, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    print_line(
        f"{title}: {len(cases)} files{f'; {len(left_out)} labels, masks and the like left out' if left_out else ''}"
    )
    rows, failures = [], []
    for case in cases:
        row: Row = {"file": str(case.path), "task": task}
        try:
            with naming(case.path):
                row |= write(case)
            print_line(_summary(case, row))
        except (VolumeError, PredictionError, ScaleError) as error:
            row["error"] = str(error)
            failures.append(str(error))
        rows.append(row)
        write_table(out / TABLE, rows)
    for line in summarise(rows, out):
        print_line(line)
    if failures:
        others = f", the others are in {out}" if len(failures) < len(cases) else ""
        more = f"; and {len(failures) - LISTED} more" if len(failures) > LISTED else ""
        listed = "; ".join(failures[:LISTED])
        raise PredictionError(f"{len(failures)} of {len(cases)} files failed{others}: {listed}{more}")
    print_line(f"{len(rows)} predictions and {TABLE} in {out}")
    return rows


class _OtherSizes:
    """Says once of each voxel size that the run has learnt from others."""

    def __init__(self, predictor: Predictor | Ensemble, print_line: Callable[[str], None]) -> None:
        self._trained = [size for one in members_of(predictor) for size in one.record.get("voxel_sizes_um", [])]
        self._print_line, self._told = print_line, set()

    def look(self, case: Case, row: Row) -> None:
        # A task whose rows say nothing of voxels is not asked.
        text = row.get("voxel_size_um", "")
        size = tuple(map(float, text.split())) or None
        told = other_size(size, row.get("voxel_size_source", ""), self._trained)
        if told and text not in self._told:
            self._told.add(text)
            self._print_line(f"{case.path}: {told}")


def _windows_text(predictor: Predictor | Ensemble) -> str:
    return " and ".join(dict.fromkeys(" x ".join(map(str, one.window)) for one in members_of(predictor)))


def _segment(predictor: Predictor | Ensemble, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    image, info = read_single(case.path, allow_constant=True, channel=settings.channel)
    truth = mask_like(case, image, info, label_values(predictor.record.get("labels")))
    found = in_memory.segment(predictor, image, info.voxel_size_um, settings)
    probability, mask = found.probability, found.mask
    write_nifti(out / f"{case.name}_mask.nii.gz", mask.astype(np.uint8), like=info)
    write_nifti(out / f"{case.name}_prob.nii.gz", probability, like=info)
    if found.uncertainty is None:
        # An earlier one, of other runs, would be taken for that of this probability.
        (out / f"{case.name}{UNCERTAINTY}").unlink(missing_ok=True)
    else:
        write_nifti(out / f"{case.name}{UNCERTAINTY}", found.uncertainty, like=info)
    true = None if truth is None else truth == 1
    draw_segmentation(out / f"{case.name}.png", image, probability, mask, true, uncertainty=found.uncertainty)
    row = volume_facts(image, info, found.levels) | {
        "threshold": settings.threshold,
        "foreground_frac": float(mask.mean()),
        "mean_probability": float(probability.mean()),
    }
    if found.uncertainty is not None:
        row["mean_uncertainty"] = float(found.uncertainty.mean(dtype=np.float64))
    if truth is None:
        return row
    # Left of "truth", behind which the scores stand: where it is 0, so is the Dice of whatever is marked.
    row["label_foreground_frac"] = float(true.mean())
    scores = segmentation_scores(mask, true, annotated=truth != IGNORED)
    return {**row, "truth": str(case.truth), **scores}


def write_classes(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    """Writes the picture of a classified file and gives its row."""
    image, info = read_single(case.path, channel=settings.channel)
    found = in_memory.classify(predictor, image, info.voxel_size_um, settings)
    classes, probabilities = list(found.probabilities), np.array(list(found.probabilities.values()), np.float32)
    truth = class_of(case, classes)
    draw_classification(out / f"{case.name}.png", image, probabilities, classes, truth)
    row = volume_facts(image, info, found.levels) | {"class": found.class_name}
    if truth is not None:
        row |= {"truth": truth, "correct": int(found.class_name == truth)}
    return row | {f"probability_{name}": probability for name, probability in found.probabilities.items()}


def _deblur(predictor: Predictor, case: Case, out: pathlib.Path, settings: Settings) -> Row:
    image, info = read_single(case.path, channel=settings.channel)
    truth = truth_like(case, image, info)
    found = in_memory.deblur(predictor, image, info.voxel_size_um, settings)
    sharp, levels = found.volume, found.levels
    low, high = levels.low, levels.high
    span = high - low if high > low else 1.0
    write_nifti(out / f"{case.name}_deblurred.nii.gz", sharp, like=info)
    draw_deblurring(out / f"{case.name}.png", image, sharp, truth)
    difference = float(np.abs(sharp - image).mean())
    row = volume_facts(image, info, levels) | {
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


class Writer(NamedTuple):
    """What prediction writes for a file `<name>` with a run of some task.

    Attributes:
        write: writes the files and gives the row of the table.
        endings: of those files.
        compute: gives the result of a volume in memory, raw counts (Z, Y, X), for the Python API; None: it has none.
        takes_constant: whether a volume whose voxels are all the same has a result.
    """

    # Only the writer of segmentation gets an ensemble, as only runs of segmentation are combined.
    write: Callable[[Any, Case, pathlib.Path, Settings], Row]
    endings: tuple[str, ...]
    compute: Callable[[Any, np.ndarray, VoxelSize, Settings], Result] | None = None
    takes_constant: bool = False


WRITERS: dict[str, Writer] = {
    "segment": Writer(
        _segment, ("_mask.nii.gz", "_prob.nii.gz", UNCERTAINTY, ".png"), in_memory.segment, takes_constant=True
    ),
    "classify": Writer(write_classes, (".png",), in_memory.classify),
    "deblur": Writer(_deblur, ("_deblurred.nii.gz", ".png"), in_memory.deblur),
    "inpaint": Writer(write_inpainted, (RESTORED, ".png")),
}


def _check_outputs(cases: Sequence[Case], out: pathlib.Path, endings: Sequence[str], *, overwrite: bool) -> None:
    targets = [out / f"{case.name}{ending}" for case in cases for ending in endings]
    if out.exists() and not out.is_dir():
        raise PredictionError(f"--out {out}: a file, and the results are several: name a folder")
    inputs = {path.resolve() for case in cases for path in (case.path, case.truth) if path is not None}
    own = [str(path) for path in targets if path.resolve() in inputs]
    if own:
        raise PredictionError(f"{own[0]}: an input would be replaced by its prediction; name another --out")
    tables = [out / name for name in (TABLE, SUMMARY, f"{CONFUSION}.csv", f"{CONFUSION}.png")]
    there = [path for path in (*targets, *tables) if path.exists()]
    if there and not overwrite:
        raise PredictionError(
            f"{there[0]}{f' and {len(there) - 1} more' if len(there) > 1 else ''}: there already; name a new folder "
            "with --out, or pass --overwrite"
        )


def _summary(case: Case, row: Row) -> str:
    told = [
        f"{name} {cell(row[name])}"
        for name in ("foreground_frac", "class", "truth", "dice", "psnr", "psnr_blurred", "l1", "l1_smooth", "ssim")
        if name in row and not (name == "truth" and "class" not in row)
    ]
    if row.get("label_foreground_frac") == 0.0 and row["dice"] == 0.0:
        told.append(
            f"{case.truth} has no voxel that counts as foreground in this run: the Dice is 0 whatever is marked"
        )
    return f"{case.path.name}: {', '.join(told)}"
