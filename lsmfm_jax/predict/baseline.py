"""Baselines of a finetuned run: fitted on its training patches, judged and written as its predictions are."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from ml_collections import ConfigDict

from lsmfm_jax import baselines
from lsmfm_jax.data.labelled_batches import LabelledSource
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED, LabelValues
from lsmfm_jax.files import replace_json
from lsmfm_jax.metrics.segmentation import segmentation_scores
from lsmfm_jax.predict.inputs import Case, PredictionError
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.pictures import draw_segmentation
from lsmfm_jax.predict.run import Settings, write_cases, write_classes
from lsmfm_jax.predict.table import Row, volume_facts
from lsmfm_jax.predict.truth import mask_like
from lsmfm_jax.scale import Scale, measure
from lsmfm_jax.tasks.declaration import Patches
from lsmfm_jax.tasks.finetune_patches import read_patches, run_configuration
from lsmfm_jax.tasks.inputs import configured_scale
from lsmfm_jax.tasks.segment import configured_values
from lsmfm_jax.volumes.read import VolumeInfo, read_single, write_nifti

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
    data: pathlib.Path | None = None,
    overwrite: bool = False,
    print_line: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Fits the baselines of a run's task on exactly its training patches, and predicts on image files.

    Segmentation: Otsu's threshold of each volume (`otsu`), the threshold that is best on the training patches, on
    counts (`threshold_counts`), on the run's scale (`threshold`) and on the ratio to the local background
    (`threshold_local`, where that is another), and a logistic regression of voxels (`pixel_classifier`).
    Classification: principal components and logistic regression (`pca`). Each goes to a folder of
    its own below `out`, as `predict` writes it, with what was fitted in `baseline.json`.

    Args:
        run: folder of a finetuned run; its configuration and its split are read, its weights are not.
        inputs: image files and folders of them, as in `predict`.
        out: folder to write; made if absent.
        label_dir: where labels are that do not lie beside their image.
        data: where the run's labelled patches are now, if they have moved; the split's hashes tell whether they are
            the same. None: where they were.
        overwrite: replace results that are there.
        print_line: prints a line.

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
    if data is not None:
        config.data.folder = str(data)
    patches = read_patches(config, run, print_line=print_line)
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
            print_line=print_line,
        )
        replace_json(folder / FACTS, {"baseline": baseline.name, "run": str(run), **baseline.facts})
    return tables


# Whether a voxel of an image is foreground, and where that is a threshold on counts, which one.
Find = Callable[[np.ndarray, VolumeInfo], tuple[np.ndarray, float]]


def _fit_segmentation(config: ConfigDict, patches: Patches) -> list[Baseline]:
    values = configured_values(config)
    facts = _names(patches.train)
    return [
        _segmenter(name, find, configured_scale(config), values, {**own, **facts})
        for name, find, own in fit_masks(config, patches)
    ]


def fit_masks(config: ConfigDict, patches: Patches) -> list[tuple[str, Find, dict[str, Any]]]:
    """Name, function and facts of each way to a mask without a network, fitted on a run's training patches.

    Otsu's threshold of each image; the best threshold of the training patches on counts, on the run's own scale and on
    the ratio to the local background; and a logistic regression of voxels on the latter.
    """
    own = configured_scale(config)
    local = dataclasses.replace(own, name="local")
    # Thresholds look at no neighbours: the annotated voxels of a patch are all that is needed of it.
    annotated = [patch.target != IGNORED for patch in patches.train]
    masks = [patch.target == 1 for patch in patches.train]
    truths = [mask[counted][None, None] for mask, counted in zip(masks, annotated, strict=True)]

    def best(volumes: Sequence[np.ndarray]) -> tuple[float, float]:
        rows = [volume[counted][None, None] for volume, counted in zip(volumes, annotated, strict=True)]
        return baselines.best_threshold(rows, truths)

    def otsu(image: np.ndarray, info: VolumeInfo) -> tuple[np.ndarray, float]:
        mask = baselines.otsu_mask(image)
        return mask, float(image[mask].min()) if mask.any() else float("inf")

    counts, dice = best([patch.counts for patch in patches.train])

    def above_counts(image: np.ndarray, info: VolumeInfo) -> tuple[np.ndarray, float]:
        return image > counts, counts

    found = [
        ("otsu", otsu, {"threshold": "of each volume"}),
        ("threshold_counts", above_counts, {"scale": "counts", "threshold": counts, "train_dice": dice}),
    ]
    for name, scale in {"threshold": own, "threshold_local": local}.items():
        if name == "threshold" or scale != own:
            found.append(_scaled_threshold(name, scale, patches, best))
    volumes = [_on(scale=local, image=p.counts, voxel_size_um=p.voxel_size_um) for p in patches.train]
    fitted = baselines.fit_pixel_classifier(volumes, masks, annotated, seed=config.seed)

    def pixel(image: np.ndarray, info: VolumeInfo) -> tuple[np.ndarray, float]:
        scaled = _on(scale=local, image=image, voxel_size_um=info.voxel_size_um)
        return baselines.pixel_logits(fitted, scaled) > 0, float("nan")

    return [*found, ("pixel_classifier", pixel, {"scale": "local", "weights": fitted.weights, "bias": fitted.bias})]


def _scaled_threshold(
    name: str, scale: Scale, patches: Patches, best: Callable[[Sequence[np.ndarray]], tuple[float, float]]
) -> tuple[str, Find, dict[str, Any]]:
    # Not clipped: a threshold above the upper percentile is what sparse structures need.
    volumes = [_on(scale=scale, image=p.counts, voxel_size_um=p.voxel_size_um) for p in patches.train]
    threshold, dice = best(volumes)

    def find(image: np.ndarray, info: VolumeInfo) -> tuple[np.ndarray, float]:
        levels = measure(image, scale, info.voxel_size_um)
        one_number = scale.name in ("percentile", "z_score")
        counts = levels.low + threshold * (levels.high - levels.low) if one_number else float("nan")
        return levels.apply(image, clip=False) > threshold, counts

    return name, find, {"scale": scale.name, "scaled_threshold": threshold, "train_dice": dice}


def _on(
    *, scale: Scale, image: np.ndarray, voxel_size_um: tuple[float, float, float] | None
) -> Float[np.ndarray, "z y x"]:
    return measure(image, scale, voxel_size_um).apply(image, clip=False)


def _segmenter(name: str, find: Find, scale: Scale, values: LabelValues, facts: dict[str, Any]) -> Baseline:
    """A baseline from a function that gives the mask of an image."""

    def write(case: Case, folder: pathlib.Path) -> Row:
        image, info = read_single(case.path, allow_constant=True)
        truth = mask_like(case, image, info, values)
        blank = image.min() == image.max()
        mask, threshold = (np.zeros(image.shape, bool), float("inf")) if blank else find(image, info)
        write_nifti(folder / f"{case.name}_mask.nii.gz", mask.astype(np.uint8), like=info)
        draw_segmentation(folder / f"{case.name}.png", image, None, mask, None if truth is None else truth == 1)
        row = volume_facts(image, info, measure(image, scale, info.voxel_size_um))
        row |= {"threshold_counts": threshold, "foreground_frac": float(mask.mean())}
        if truth is None:
            return row
        scores = segmentation_scores(mask, truth == 1, annotated=truth != IGNORED)
        return {**row, "truth": str(case.truth), **scores}

    return Baseline(name, ("_mask.nii.gz", ".png"), facts, write)


def _fit_classifier(config: ConfigDict, patches: Patches) -> list[Baseline]:
    size = tuple(config.data.patch_size)
    source = LabelledSource(patches.train, patch_size=size)
    rows = [source.window(index, start) for index, start in source.windows()]
    images, lows, highs, labels = (np.stack([row[name] for row in rows]) for name in ("image", "low", "high", "label"))
    fitted = baselines.fit_pca_classifier(_clipped(images, lows, highs), labels, seed=config.seed)

    def apply(windows: Float[np.ndarray, "b z y x"]) -> Float[np.ndarray, "b k"]:
        return baselines.pca_probabilities(fitted, windows)

    predictor = Predictor(
        task="classify",
        record={"classes": list(patches.classes)},
        origin="pca",
        window=size,
        scale=configured_scale(config),
        apply=apply,
    )
    facts = {"components": int(fitted.pipeline[0].n_components_), "windows": len(rows), **_names(patches.train)}

    def write(case: Case, folder: pathlib.Path) -> Row:
        return write_classes(predictor, case, folder, Settings())

    return [Baseline("pca", (".png",), facts, write)]


FITS: dict[str, Callable[[ConfigDict, Patches], list[Baseline]]] = {
    "segment": _fit_segmentation,
    "classify": _fit_classifier,
}


def _names(patches: Sequence[LabelledPatch]) -> dict[str, Any]:
    return {"train_patches": len(patches), "patches": [patch.name for patch in patches]}


def _scaled(image: Num[np.ndarray, "z y x"], low: float, high: float) -> Float[np.ndarray, "z y x"]:
    return (image.astype(np.float32) - np.float32(low)) / np.float32(high - low if high > low else 1.0)


def _clipped(
    windows: Num[np.ndarray, "n z y x"], low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n z y x"]:
    """Windows as the networks see them."""
    spans = zip(windows, low, high, strict=True)
    return np.stack([np.clip(_scaled(one, float(start), float(end)), 0.0, 1.0) for one, start, end in spans])
