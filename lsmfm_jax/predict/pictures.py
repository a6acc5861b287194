"""A picture of each prediction: the input, the truth where there is one, what came out."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.files import replacing
from lsmfm_jax.volumes.pictures import fullest_slice

Volume = Shaped[np.ndarray, "z y x"]
Panel = tuple[str, np.ndarray]


def draw_segmentation(
    path: pathlib.Path,
    image: Volume,
    probability: Float[np.ndarray, "z y x"] | None,
    mask: Bool[np.ndarray, "z y x"],
    truth: Bool[np.ndarray, "z y x"] | None,
    uncertainty: Float[np.ndarray, "z y x"] | None = None,
) -> None:
    """Draws the slice with most foreground: image, truth, probability and uncertainty if any, mask over the image."""
    z = fullest_slice(mask if truth is None else truth)
    pixels = grey(image[z])
    panels = [("input", pixels)]
    panels += [] if truth is None else [("truth", overlay(pixels, truth[z]))]
    panels += [] if probability is None else [("probability", probability[z])]
    panels += [] if uncertainty is None else [("uncertainty (white: 1 bit)", uncertainty[z])]
    panels += [("prediction", overlay(pixels, mask[z]))]
    _draw(path, panels, f"z = {z} of {len(image)}")


def draw_deblurring(path: pathlib.Path, image: Volume, sharp: Volume, truth: Volume | None) -> None:
    """Draws the middle slice: input, truth if any, prediction, all on the scale of the input's slice."""
    z = len(image) // 2
    low, high = np.percentile(image[z], (1, 99.9))
    panels = [("input", image), *([] if truth is None else [("truth", truth)]), ("prediction", sharp)]
    _draw(path, [(name, grey(volume[z], low, high)) for name, volume in panels], f"z = {z} of {len(image)}")


def draw_inpainting(
    path: pathlib.Path, image: Volume, hidden: Bool[np.ndarray, "z y x"], restored: Volume, truth: Volume | None
) -> None:
    """Draws the slice with most hidden voxels: visible ones, truth if any, result, on the scale of what is visible."""
    z = fullest_slice(hidden)
    seen = image[~hidden] if hidden[z].all() else image[z][~hidden[z]]
    low, high = np.percentile(seen, (1, 99.9))
    visible = np.where(hidden[z], 0.0, grey(image[z], low, high))
    panels = [("visible, and what is hidden", overlay(visible, hidden[z]))]
    panels += [] if truth is None else [("truth", grey(truth[z], low, high))]
    panels += [("restored", grey(restored[z], low, high))]
    _draw(path, panels, f"z = {z} of {len(image)}")


def draw_classification(
    path: pathlib.Path,
    image: Volume,
    probabilities: Float[np.ndarray, " k"],
    classes: Sequence[str],
    truth: str | None,
) -> None:
    """Draws the middle slice beside a bar for each class."""
    z = len(image) // 2
    figure = Figure(figsize=(7.0, max(2.6, 0.3 * len(classes))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(grey(image[z]), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    left.set_title("input" if truth is None else f"input: {truth}", fontsize=9)
    left.set_xticks([])
    left.set_yticks([])
    places = np.arange(len(classes))
    right.barh(places, probabilities, color=["tab:orange" if name == truth else "tab:gray" for name in classes])
    right.set_yticks(places, classes, fontsize=8)
    right.set_xlim(0.0, 1.0)
    right.invert_yaxis()
    right.set_title(f"prediction: {classes[int(np.argmax(probabilities))]}", fontsize=9)
    _save(figure, path)


def _draw(path: pathlib.Path, panels: Sequence[Panel], label: str) -> None:
    figure = Figure(figsize=(2.6 * len(panels), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, pixels) in zip(axes, panels, strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(label, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: pathlib.Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def grey(pixels: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Pixels from 0 to 1; without limits, the 1st and the 99.7th percentile."""
    pixels = pixels.astype(np.float32)
    if low is None or high is None:
        low, high = np.percentile(pixels, (1, 99.7))
    return np.clip((pixels - low) / max(high - low, 1e-6), 0.0, 1.0)


def overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Grey pixels in colour, orange where the mask is."""
    coloured = np.repeat(0.85 * pixels[..., None], 3, axis=-1)
    coloured[mask] = 0.5 * coloured[mask] + 0.5 * np.array([1.0, 0.55, 0.0], np.float32)
    return coloured
