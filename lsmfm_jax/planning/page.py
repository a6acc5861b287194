"""The page of a plan: what each volume measures, what was decided, and a picture of each on the planned scale."""

import html
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax import html_page
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.planning.fingerprint import facts
from lsmfm_jax.planning.plan import Plan
from lsmfm_jax.planning.recipe import source_of
from lsmfm_jax.scale import Scale, measure
from lsmfm_jax.volumes.pictures import fullest_slice

MARK = '<meta name="generator" content="lsmfm plan">'
_VOLUMES_SHOWN = 12
_OUTLINE = "#ff9f1c"


def plan_page(plan: Plan, patches: Sequence[LabelledPatch], *, title: str, subtitle: str, scale: Scale) -> str:
    """The page as HTML.

    Args:
        plan: what was measured and decided.
        patches: that were measured; of each volume the one with the most foreground is drawn.
        title: of the page, plain text.
        subtitle: a sentence below it, plain text.
        scale: of the intensities as planned, on which the pictures are drawn.
    """
    shown = plan.volumes[:_VOLUMES_SHOWN]
    columns = {plan.overall.name: facts(plan.overall)} | {volume.name: facts(volume) for volume in shown}
    decided = [
        [one.key, source_of(one.value), "set" if one.changed else "as the recipe has it", one.why]
        for one in plan.decisions
    ]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="muted">{html.escape(subtitle)}</p>',
        "<h2>What was decided</h2>",
        html_page.table(("key", "value", "plan", "why"), decided),
        "<h2>What was measured</h2>",
        "<p>Sizes of objects are medians in which an object counts by its voxels; voxels are mean voxels where "
        "they are not cubes. A tube is an object that is four times as long as wide, or a network.</p>",
        html_page.columns_of(columns),
    ]
    left_out = len(plan.volumes) - len(shown)
    parts += [f'<p class="muted">{left_out} volumes more were measured and are in the first column.</p>'] * bool(
        left_out
    )
    parts.append("<h2>On the planned scale, with the outline of the labels</h2>")
    parts += [_picture(_fullest([p for p in patches if p.volume == volume.name]), scale) for volume in shown]
    return html_page.page(title, parts, head=MARK)


def _fullest(patches: Sequence[LabelledPatch]) -> LabelledPatch:
    return max(patches, key=lambda patch: int((np.asarray(patch.target) == 1).sum()))


def _picture(patch: LabelledPatch, scale: Scale) -> str:
    counts, target = patch.counts, patch.target
    assert counts is not None and target is not None
    levels = measure(counts, scale, patch.voxel_size_um)
    z = fullest_slice(target == 1 if (target == 1).any() else target != IGNORED)
    pixels, labels = levels.apply(counts)[z], target[z]
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, title in zip(figure.subplots(1, 2), ("image", "foreground outlined"), strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    if (labels == 1).any():
        axis.contour(labels == 1, levels=[0.5], colors=_OUTLINE, linewidths=0.8)
    if (labels == IGNORED).any():
        veil = np.zeros((*labels.shape, 4))
        veil[labels == IGNORED] = (0.2, 0.4, 0.8, 0.35)
        axis.imshow(veil, interpolation="nearest")
        axis.set_title("foreground outlined, blue: not annotated", fontsize=9)
    text = f"{patch.name}, z = {z} of {len(counts)}; {100 * levels.tissue_frac:.0f} % is taken for tissue"
    return f'<p class="muted">{html.escape(text)}</p>{html_page.drawn(figure, text)}'
