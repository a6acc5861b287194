"""README.md of a package for bioimage.io: what the network takes and gives, what is not in it, how it was judged."""

import pathlib

from lsmfm_jax.convert.exporting import beside_the_network
from lsmfm_jax.publish.card import PAPER, PAPER_URL, sections
from lsmfm_jax.publish.facts import described_scale
from lsmfm_jax.publish.stated import Stated, last_part
from lsmfm_jax.scale import Scale
from lsmfm_jax.train.weights import Weights


def documentation(run: pathlib.Path, weights: Weights, scale: Scale, *, name: str, stated: Stated) -> str:
    """The text, as Markdown.

    Args:
        run: folder of a segmentation run.
        weights: what was read from there.
        scale: of the run.
        name: of the model.
        stated: licence and authors.
    """
    window = " × ".join(map(str, weights.record["patch_size"]))
    described = sections(run, weights, stated=stated, shown=last_part, alone=True)
    parts = [
        f"# {name}",
        "A segmentation network for 3D light-sheet microscopy, trained with lsmfm_jax. This package holds the network "
        "alone, for PyTorch and MONAI.",
        "## What it takes",
        f"One channel of one volume, axes Z, Y, X. It was trained on windows of {window} voxels: cut larger volumes "
        "into windows of about that size which overlap, and blend what comes out.",
        *_scaling(scale),
        "## What it gives",
        "For each voxel the probability that it is foreground; .5 and above is foreground.",
        *(f"{line}." for line in beside_the_network(weights.record)),
        "## Validation",
        described.pop("Metrics"),
        *(
            ["These are figures of the run with what it adds to its network."]
            * bool(beside_the_network(weights.record))
        ),
        "On data of your own, compare its masks with labels that somebody drew, of volumes that it was not trained on; "
        "`lsmfm evaluate` does so with masks of any tool.",
    ]
    for title, text in described.items():
        parts += [f"## {title}", text]
    return "\n\n".join([*parts, "## Paper", f"[{PAPER}]({PAPER_URL})"]) + "\n"


def _scaling(scale: Scale) -> list[str]:
    """How counts become what the network sees."""
    if scale.name == "percentile":
        return [
            f"Give raw counts: {described_scale(scale)}, and what lies beyond is cut off. Programs that read "
            "`rdf.yaml` do so by themselves, for each volume that they are given."
        ]
    named = ("sigma_voxels", "sigma_um", "offset_counts", "fixed_level")
    settings = ", ".join(f"{key}={getattr(scale, key)!r}" for key in named)
    return [
        f"Counts have to be scaled first, which `rdf.yaml` cannot say: {described_scale(scale)}; 0 and 1 are the "
        "limits. With lsmfm_jax, where `volume` has its own voxel size, Z, Y, X in micrometres:",
        "```python\nfrom lsmfm_jax.scale import Scale, measure\n\n"
        f"scale = Scale({scale.name!r}, {settings})\n"
        "scaled = measure(volume, scale, (4.0, 2.0, 2.0)).apply(volume)\n```",
    ]
