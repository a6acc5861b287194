"""Boxes to annotate next: where segmentation runs are most uncertain, cut out of the images as files to be labelled."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsmfm_jax.files import refuse_foreign, replacing_folder
from lsmfm_jax.predict.box_choice import Size, best_boxes, round_robin
from lsmfm_jax.predict.ensemble import Ensemble, load_ensemble
from lsmfm_jax.predict.in_memory import Settings, segment
from lsmfm_jax.predict.inputs import Case, PredictionError, find_cases
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.next_boxes_picture import draw_boxes
from lsmfm_jax.predict.proposal import Proposal
from lsmfm_jax.predict.table import Row, write_table
from lsmfm_jax.predict.uncertainty import binary_entropy
from lsmfm_jax.scale import naming
from lsmfm_jax.volumes.names import describe_volumes, volume_of
from lsmfm_jax.volumes.read import VolumeInfo, read_single, write_nifti

TABLE, PICTURE = "boxes.csv", "boxes.png"
MOST_BOXES = 1000


def propose_boxes(
    checkpoints: Sequence[pathlib.Path],
    inputs: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    count: int = 5,
    size: Size = (32, 32, 32),
    settings: Settings | None = None,
    window: Size | None = None,
    flips: bool = False,
    volume_pattern: str | None = None,
    print_line: Callable[[str], None] = print,
) -> list[Row]:
    """Writes the boxes whose mean uncertainty is highest, to be annotated and trained on.

    Uncertainty is how much several runs disagree (`uncertainty.mutual_information`), for one run with `flips` how much
    its flips do, and else the entropy of the run's probability. Boxes are taken in turns from the volumes, so that no
    volume has more than its share, and do not overlap. Padding is left out. Nothing is drawn by chance: the same images
    and runs give the same boxes.

    Args:
        checkpoints: run folders of segmentation.
        inputs: image files and folders of them.
        out: folder to write, with `boxes.csv` (a row for each box, corners in voxels of the file, the last one beyond
            the box), a NIfTI file of each box that lies where it lay in its image, and `boxes.png`.
        count: of boxes.
        size: ZYX voxels of a box.
        settings: of the predictions.
        window: ZYX voxels; None: the patch size of each run.
        flips: average over the eight flips; of a single run, take them for the members that may disagree.
        volume_pattern: regular expression that tells the volume from a file's name.
        print_line: prints a line.

    Returns:
        The rows of the table.

    Raises:
        PredictionError: a wrong argument, runs that cannot be combined, an image smaller than a box, or no box at all.
        VolumeError: an image cannot be read.
        ForeignOutput: the folder is there and not empty, and may hold labels by now.
    """
    if not 1 <= count <= MOST_BOXES:
        raise PredictionError(f"--count {count}: from 1 to {MOST_BOXES} boxes can be proposed")
    refuse_foreign(out, made_by="next-boxes", flag=False)
    predictor = _segmentation(checkpoints, window=window, flips=flips)
    cases, _ = find_cases(inputs, task="segment")
    volumes = {case.name: volume_of(case.name, pattern=volume_pattern) for case in cases}
    measure = _measure_text(predictor, len(checkpoints))
    _print_inputs(cases, volumes, measure, print_line)
    best = _best_of_volumes(
        predictor, cases, volumes, settings or Settings(), size=size, count=count, print_line=print_line
    )
    chosen = [one for _, one in round_robin(best, count=count, value=lambda one: one.mean_uncertainty)]
    if not chosen:
        raise PredictionError(
            f"no box of {_text(size)} voxels is left: all have too much padding; name a smaller --size, or other images"
        )
    rows = _write(out, chosen, size=size, measure=measure)
    _print_chosen(chosen, out, size=size, count=count, volumes=len(best), print_line=print_line)
    return rows


def _segmentation(checkpoints: Sequence[pathlib.Path], *, window: Size | None, flips: bool) -> Predictor | Ensemble:
    """The runs as one, with an uncertainty where there are several or flips."""
    # What networks do not know yet is the question, also of those that predictions leave out for now.
    predictor = load_ensemble(
        checkpoints, window=window, flips=flips, uncertainty=flips and len(checkpoints) == 1, always_network=True
    )
    if predictor.task != "segment":
        raise PredictionError(f"{checkpoints[0]}: a run of task {predictor.task!r}; boxes are proposed by segmentation")
    return predictor


def _print_inputs(
    cases: Sequence[Case], volumes: dict[str, str], measure: str, print_line: Callable[[str], None]
) -> None:
    print_line(f"{len(cases)} images of {describe_volumes(volumes.values())}; uncertainty: {measure}")
    labelled = sum(case.truth is not None for case in cases)
    if labelled:
        print_line(f"note: {labelled} of them have a label beside them already; boxes of them are proposed as well")


def _best_of_volumes(
    predictor: Predictor | Ensemble,
    cases: Sequence[Case],
    volumes: dict[str, str],
    settings: Settings,
    *,
    size: Size,
    count: int,
    print_line: Callable[[str], None],
) -> dict[str, list[Proposal]]:
    """The best boxes of each volume, the most uncertain first; `volumes` has that of each image by its name."""
    best: dict[str, list[Proposal]] = {}
    for case in cases:
        volume = volumes[case.name]
        found = _proposals(predictor, case, volume, settings, size=size, count=count)
        first = f", the best {found[0].mean_uncertainty:.3f} bits" if found else ""
        print_line(f"{case.path.name}: {len(found)} boxes{first}")
        # No more of a volume can be chosen, so no more are kept.
        ordered = sorted([*best.get(volume, []), *found], key=lambda one: -one.mean_uncertainty)
        best[volume] = ordered[:count]
    return best


def _print_chosen(
    chosen: Sequence[Proposal],
    out: pathlib.Path,
    *,
    size: Size,
    count: int,
    volumes: int,
    print_line: Callable[[str], None],
) -> None:
    share = -(-count // volumes)
    print_line(
        f"{len(chosen)} boxes of {_text(size)} voxels, in turns from {describe_volumes(one.volume for one in chosen)}: "
        f"at most {share} of a volume, unless others have no more"
    )
    if len(chosen) < count:
        print_line(
            f"fewer than the {count} asked for: no more fit beside each other; name a smaller --size or more images"
        )
    print_line(
        f"{TABLE}, {PICTURE} and the boxes are in {out}; put <name>_label.nii.gz beside each, for lsmfm finetune"
    )


def _measure_text(predictor: Predictor | Ensemble, runs: int) -> str:
    if runs > 1:
        return f"disagreement (mutual information) of {runs} runs"
    if isinstance(predictor, Ensemble):
        return f"disagreement (mutual information) of the {len(predictor.members)} flips of one run"
    return "entropy of the probability of one run, which has nobody to disagree with"


def _proposals(
    predictor: Predictor | Ensemble, case: Case, volume: str, settings: Settings, *, size: Size, count: int
) -> list[Proposal]:
    image, info = read_single(case.path)
    if any(side > length for side, length in zip(size, image.shape, strict=True)):
        raise PredictionError(
            f"{case.path}: its {_text(image.shape)} voxels (ZYX) are fewer than a box of {_text(size)} takes; name a "
            "smaller --size, or leave the image out"
        )
    with naming(case.path):
        found = segment(predictor, image, info.voxel_size_um, settings)
    uncertainty = binary_entropy(found.probability) if found.uncertainty is None else found.uncertainty
    proposals = []
    for corner, mean in best_boxes(uncertainty, image, size=size, count=count):
        crop = image[tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))].copy()
        z = corner[0] + size[0] // 2
        proposals.append(Proposal(case, volume, info, corner, mean, crop, image[z].copy(), uncertainty[z].copy()))
    return proposals


def _write(out: pathlib.Path, chosen: Sequence[Proposal], *, size: Size, measure: str) -> list[Row]:
    rows = [_row(one, size, measure) for one in chosen]
    with replacing_folder(out) as folder:
        for one in chosen:
            write_nifti(folder / f"{one.name}.nii.gz", one.crop, like=_placed(one.info, one.corner))
        write_table(folder / TABLE, rows)
        draw_boxes(folder / PICTURE, chosen, size=size, measure=measure)
    return rows


def _row(one: Proposal, size: Size, measure: str) -> Row:
    ends = [start + side for start, side in zip(one.corner, size, strict=True)]
    return {
        "box": f"{one.name}.nii.gz",
        "file": str(one.case.path),
        "volume": one.volume,
        **dict(zip(("z0", "y0", "x0"), one.corner, strict=True)),
        **dict(zip(("z1", "y1", "x1"), ends, strict=True)),
        "mean_uncertainty_bits": one.mean_uncertainty,
        "uncertainty": measure,
    }


def _placed(info: VolumeInfo, corner: Size) -> VolumeInfo:
    """What a box's file says of itself: its voxels lie in the world where they lie in the image."""
    affine = np.eye(4) if info.voxel_size_um is None else np.diag([*info.voxel_size_um[::-1], 1.0])
    affine = np.array(affine if info.affine is None else info.affine, float)
    affine[:3, 3] += affine[:3, :3] @ np.array(corner[::-1], float)
    return dataclasses.replace(info, affine=affine)


def _text(size: Sequence[Any]) -> str:
    return " x ".join(map(str, size))
