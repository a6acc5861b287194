"""Baselines of a finetuned run: fitted on its training patches, judged and written as its predictions are."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from ml_collections import ConfigDict

from lsmfm_jax import baselines
from lsmfm_jax.data.labelled_batches import LabelledPatch, LabelledSource
from lsmfm_jax.data.volumes import read_single, write_nifti
from lsmfm_jax.metrics.segmentation import segmentation_scores
from lsmfm_jax.predict.inputs import Case, PredictionError
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.pictures import draw_segmentation
from lsmfm_jax.predict.run import Settings, truth_like, volume_facts, write_cases, write_classes
from lsmfm_jax.predict.table import Row
from lsmfm_jax.tasks.finetune_patches import Patches, read_patches, run_configuration
from lsmfm_jax.train.checkpoint import write_json_atomically

FACTS = "baseline.json"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One fitted baseline.

    Attributes:
        name: of its folder.
        endings: of the files that it writes for a case.
        facts: what was fitted, on what.
        write: `(case, folder) -> row` of the table.
    """

    name: str
    endings: tuple[str, ...]
    facts: dict[str, Any]
    write: Callable[[Case, pathlib.Path], Row]


def predict_baselines(
    run: pathlib.Path,
    inputs: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    label_dir: pathlib.Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Fits the baselines of a run's task on exactly its training patches, and predicts on image files.

    Segmentation: Otsu's threshold of each volume (`otsu`), and the threshold that is best on the training patches
    (`threshold`). Classification: principal components and logistic regression (`pca`). Each goes to a folder of
    its own below `out`, as `predict` writes it, with what was fitted in `baseline.json`.

    Args:
        run: folder of a finetuned run; its configuration and its split are read, its weights are not.
        inputs: image files and folders of them, as in `predict`.
        out: folder to write; made if absent.
        label_dir: where labels are that do not lie beside their image.
        overwrite: replace results that are there.
        say: prints a line.

    Returns:
        The rows of each table.

    Raises:
        ConfigError: the folder is not that of a finetuned run.
        LabelledDataError: the patches are no longer those that the run was trained on.
        PredictionError: the task has no baseline, a result that is there already, or files that failed.
    """
    config = run_configuration(run)
    if config.task not in FITS:
        raise PredictionError(
            f"{run}: a run of task {config.task!r} needs no baseline: the table of lsmfm predict has the figures of "
            f"the blurred input beside those of the result; there are baselines for {', '.join(FITS)}"
        )
    if not (run / "split.json").is_file():
        raise PredictionError(f"{run}: no split.json there, so the patches that it trained on are unknown")
    patches = read_patches(config, run, say=say)
    tables = {}
    for baseline in FITS[config.task](config, patches):
        folder = out / baseline.name
        shown = ", ".join(f"{key} {value}" for key, value in baseline.facts.items() if key != "patches")
        tables[baseline.name] = write_cases(
            inputs,
            folder,
            lambda case, baseline=baseline, folder=folder: baseline.write(case, folder),
            task=config.task,
            endings=baseline.endings,
            title=f"{baseline.name} ({shown})",
            label_dir=label_dir,
            overwrite=overwrite,
            say=say,
        )
        write_json_atomically(folder / FACTS, {"baseline": baseline.name, "run": str(run), **baseline.facts})
    return tables


def _fit_thresholds(config: ConfigDict, patches: Patches) -> list[Baseline]:
    percentiles = _percentiles(config)
    # Not clipped: a threshold above the upper percentile is what sparse structures need.
    volumes = [_scaled(patch.image, patch.low, patch.high) for patch in patches.train]
    best, dice = baselines.best_threshold(volumes, [patch.target > 0 for patch in patches.train])

    def otsu(image: np.ndarray) -> tuple[np.ndarray, float]:
        mask = baselines.otsu_mask(image)
        return mask, float(image[mask].min()) if mask.any() else float("inf")

    def threshold(image: np.ndarray) -> tuple[np.ndarray, float]:
        low, high = map(float, np.percentile(image, percentiles))
        return _scaled(image, low, high) > best, low + best * _width(low, high)

    trained = _names(patches.train)
    return [
        _segmenter("otsu", otsu, percentiles, {"threshold": "of each volume"}),
        _segmenter("threshold", threshold, percentiles, {"scaled_threshold": best, "train_dice": dice, **trained}),
    ]


def _segmenter(
    name: str,
    find: Callable[[np.ndarray], tuple[np.ndarray, float]],
    percentiles: tuple[float, float],
    facts: dict[str, Any],
) -> Baseline:
    """A baseline from a function that gives the mask of an image, and the threshold in counts."""

    def write(case: Case, folder: pathlib.Path) -> Row:
        image, info = read_single(case.path)
        truth = truth_like(case, image)
        truth = None if truth is None else truth > 0
        mask, threshold = find(image)
        write_nifti(folder / f"{case.name}_mask.nii.gz", mask.astype(np.uint8), like=info)
        draw_segmentation(folder / f"{case.name}.png", image, None, mask, truth)
        low, high = np.percentile(image, percentiles)
        row = volume_facts(image, info, (float(low), float(high)))
        row |= {"threshold_counts": threshold, "foreground_frac": float(mask.mean())}
        if truth is None:
            return row
        return {**row, "truth": str(case.truth), **segmentation_scores(mask.astype(np.uint8), truth.astype(np.uint8))}

    return Baseline(name, ("_mask.nii.gz", ".png"), facts, write)


def _fit_classifier(config: ConfigDict, patches: Patches) -> list[Baseline]:
    size = tuple(config.data.patch_size)
    source = LabelledSource(patches.train, patch_size=size)
    rows = [source.window(index, start) for index, start in source.windows()]
    images, lows, highs, labels = (np.stack([row[name] for row in rows]) for name in ("image", "low", "high", "label"))
    fitted = baselines.fit_pca_classifier(_clipped(images, lows, highs), labels, seed=config.seed)

    def apply(windows: np.ndarray, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "b k"]:
        return baselines.pca_probabilities(fitted, _clipped(windows, low, high))

    predictor = Predictor(
        task="classify",
        record={"classes": list(patches.classes)},
        origin="pca",
        window=size,
        percentiles=_percentiles(config),
        _apply=apply,
    )
    facts = {"components": int(fitted.pipeline[0].n_components_), "windows": len(rows), **_names(patches.train)}

    def write(case: Case, folder: pathlib.Path) -> Row:
        return write_classes(predictor, case, folder, Settings())

    return [Baseline("pca", (".png",), facts, write)]


FITS: dict[str, Callable[[ConfigDict, Patches], list[Baseline]]] = {
    "segment": _fit_thresholds,
    "classify": _fit_classifier,
}


def _names(patches: Sequence[LabelledPatch]) -> dict[str, Any]:
    return {"train_patches": len(patches), "patches": [patch.name for patch in patches]}


def _percentiles(config: ConfigDict) -> tuple[float, float]:
    return float(config.data.lower_percentile), float(config.data.upper_percentile)


def _width(low: float, high: float) -> float:
    return high - low if high > low else 1.0


def _scaled(image: Num[np.ndarray, "z y x"], low: float, high: float) -> Float[np.ndarray, "z y x"]:
    return (image.astype(np.float32) - np.float32(low)) / np.float32(_width(low, high))


def _clipped(
    windows: Num[np.ndarray, "n z y x"], low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n z y x"]:
    """Windows as the networks see them."""
    spans = zip(windows, low, high, strict=True)
    return np.stack([np.clip(_scaled(one, float(start), float(end)), 0.0, 1.0) for one, start, end in spans])
