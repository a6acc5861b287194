"""A picture of boxes to annotate next: where each lies in its image, how uncertain it is there, and the box itself."""

import pathlib
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lsmfm_jax.files import replacing
from lsmfm_jax.predict.box_choice import Size
from lsmfm_jax.predict.pictures import grey
from lsmfm_jax.predict.proposal import Proposal
from lsmfm_jax.volumes.pictures import MARK

# Boxes in the picture; the table and the files have all.
MOST_DRAWN = 20


def draw_boxes(path: pathlib.Path, proposals: Sequence[Proposal], *, size: Size, measure: str) -> None:
    """Draws a row for each box: image and uncertainty of the slice through its middle with the box, then the box.

    Args:
        path: PNG to write.
        proposals: boxes, of which the first `MOST_DRAWN` are drawn.
        size: ZYX voxels of a box.
        measure: what the uncertainty is.
    """
    drawn = proposals[:MOST_DRAWN]
    # One scale for all rows, so that they can be compared; disagreements are mostly far below one bit.
    brightest = max(float(one.uncertainty_slice.max()) for one in drawn)
    figure = Figure(figsize=(8.4, 0.6 + 2.9 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{measure}; white: {brightest:.2g} bits", fontsize=9)
    for row, one in zip(figure.subplots(len(drawn), 3, squeeze=False), drawn, strict=True):
        z, y, x = one.corner
        across = grey(one.image_slice)
        uncertain = one.uncertainty_slice / max(brightest, 1e-9)
        inside = across[y : y + size[1], x : x + size[2]]
        titles = (one.case.name, f"mean of the box: {one.mean_uncertainty:.3f} bits", f"box at z {z}, y {y}, x {x}")
        for axis, pixels, title in zip(row, (across, uncertain, inside), titles, strict=True):
            axis.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in row[:2]:
            # Pixels are drawn around their middles, so a box begins half a pixel before its first one.
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), size[2], size[1], fill=False, edgecolor=MARK, linewidth=1.5))
        row[0].set_ylabel(f"z = {z + size[0] // 2}", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
