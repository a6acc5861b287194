"""Pictures of finetuning: input, truth and prediction side by side."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.files import replacing
from lsmfm_jax.volumes.pictures import fullest_slice

Panel = tuple[np.ndarray, dict[str, Any]]
_GREY = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}


def draw_masks(arrays: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the slice with the most foreground of each window: input, truth, probability, and where they differ.

    Args:
        arrays: `image` and `prediction` (B, Z, Y, X) in [0, 1], `truth` of the same shape, 0, 1 or `IGNORED` (drawn
            grey, and in no difference), and `weight` (B,), 0 for rows that only fill up a batch.
        path: PNG to write.
    """

    def panels(row: int) -> tuple[str, list[Panel]]:
        labels = arrays["truth"][row]
        z = fullest_slice(labels == 1) if (labels == 1).any() else fullest_slice(labels != IGNORED)
        image, prediction, labels = arrays["image"][row][z], arrays["prediction"][row][z], labels[z]
        annotated, truth = labels != IGNORED, labels == 1
        return f"z = {z}", [
            (image, _GREY),
            (np.where(annotated, truth, 0.5).astype(np.float32), _GREY),
            (prediction, {"cmap": "magma", "vmin": 0.0, "vmax": 1.0}),
            (_differences(image, (prediction >= 0.5) & annotated, truth), {}),
        ]

    _draw(arrays, path, ("input", "truth", "probability", "right, missed, false"), panels)


def draw_volumes(arrays: dict[str, Any], path: pathlib.Path, *, shown: str = "blurred input") -> None:
    """Draws the middle slice of each window: input, truth, prediction, absolute error.

    Args:
        arrays: `image`, `truth` and `prediction` (B, Z, Y, X) on one scale, and `weight` (B,).
        path: PNG to write.
        shown: what the input is, above its column.
    """

    def panels(row: int) -> tuple[str, list[Panel]]:
        z = arrays["image"].shape[1] // 2
        image, truth, prediction = (arrays[name][row][z] for name in ("image", "truth", "prediction"))
        low, high = np.percentile(truth, [0.5, 99.8])
        shades = {"cmap": "gray", "vmin": float(low), "vmax": max(float(high), float(low) + 1e-6)}
        error = {"cmap": "magma", "vmin": 0.0, "vmax": max(1e-6, 0.5 * (shades["vmax"] - shades["vmin"]))}
        return f"z = {z}", [(image, shades), (truth, shades), (prediction, shades), (np.abs(prediction - truth), error)]

    _draw(arrays, path, (shown, "truth", "prediction", "absolute error"), panels)


def draw_classes(arrays: dict[str, Any], path: pathlib.Path, *, classes: Sequence[str]) -> None:
    """Draws the middle slice of each window, its true class, and the probability of each class.

    Args:
        arrays: `image` (B, Z, Y, X) in [0, 1], `label` (B,), `prediction` (B, K), `weight` (B,).
        path: PNG to write.
        classes: names of the K classes.
    """
    rows = [row for row in range(len(arrays["image"])) if arrays["weight"][row] > 0]
    figure = Figure(figsize=(5.5, max(2.1, 0.3 * len(classes)) * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        image = arrays["image"][row]
        axes[0].imshow(image[len(image) // 2], **_GREY, interpolation="nearest")
        axes[0].set(xticks=[], yticks=[])
        axes[0].set_title(classes[int(arrays["label"][row])], fontsize=9)
        colours = ["tab:green" if k == int(arrays["label"][row]) else "tab:grey" for k in range(len(classes))]
        axes[1].barh(range(len(classes)), arrays["prediction"][row], color=colours)
        axes[1].set(xlim=(0.0, 1.0))
        axes[1].set_yticks(range(len(classes)), classes, fontsize=7)
        axes[1].invert_yaxis()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw(arrays: dict[str, Any], path: pathlib.Path, columns: tuple[str, ...], panels: Any) -> None:
    rows = [row for row in range(len(arrays["image"])) if arrays["weight"][row] > 0]
    figure = Figure(figsize=(2.1 * len(columns), 2.1 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in enumerate(rows):
        label, drawn = panels(row)
        for axis, (panel, settings) in zip(axes[line], drawn, strict=True):
            axis.imshow(panel, interpolation="nearest", **settings)
            axis.set(xticks=[], yticks=[])
        axes[line][0].set_ylabel(label, fontsize=8)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _differences(image: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The image in grey, with right foreground green, missed foreground blue and false foreground red."""
    picture = np.repeat(np.clip(image, 0.0, 1.0)[..., None] * 0.6, 3, axis=-1)
    for where, channel in ((truth & ~predicted, 2), (predicted & truth, 1), (predicted & ~truth, 0)):
        picture[where, channel] = 1.0
    return picture
