"""The figures of an experiment, from the marks of its finished cells: means, differences, verdicts."""

import dataclasses
from collections.abc import Sequence

from lsmfm_jax.experiment.cells import OWN, Place, read_done, volumes_of
from lsmfm_jax.experiment.declaration import DataType, Study
from lsmfm_jax.experiment.grid import Cell, is_done
from lsmfm_jax.experiment.paper import FEW, MANY, printed
from lsmfm_jax.experiment.scores import Scores
from lsmfm_jax.experiment.statistics import difference_of, holm, mean_of, p_value_of, verdict
from lsmfm_jax.metrics.intervals import Interval

# Of each task; the first is the one that claims are judged by.
METRICS = {
    "segment": (
        *("dice", "iou", "panoptic_quality", "detection_f1", "cl_dice"),
        *("total_dice_paper", "count_dice_paper"),
    ),
    "classify": ("macro_f1", "accuracy"),
    "deblur": ("ssim", "psnr"),
}
ALL_TYPES = "all types"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one type with one size.

    Attributes:
        task: of its study.
        group: type of data, or `ALL_TYPES`.
        method: arm, or the baseline's name.
        size: annotated patches.
        against: the arm that it is compared with; empty: none.
        runs: scores of each patch, one entry for each seed.
        volumes: of each patch.
        means: of each metric, with the interval over seeds and volumes.
        paper: the paper's printed figure of a metric, where it is the same metric on the same data.
    """

    task: str
    group: str
    method: str
    size: int
    against: str
    runs: list[Scores]
    volumes: dict[str, str]
    means: dict[str, Interval]
    paper: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a method is better than the one it is against, by the main metric of its task.

    Attributes:
        row: of the method.
        metric: the main one.
        difference: method minus other, on the patches that both have.
        p_value: of the paired bootstrap.
        adjusted: the same by Holm's method over all claims of the experiment.
        verdict: in words.
    """

    row: Row
    metric: str
    difference: Interval
    p_value: float
    adjusted: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All rows, all paired differences by row and metric, and the claims."""

    rows: list[Row]
    differences: dict[tuple[str, str, str, int, str], Interval]
    claims: list[Claim]


def collect(place: Place, cells: Sequence[Cell]) -> Results:
    """The figures of the cells that are done."""
    rows = []
    for study in place.experiment.studies:
        of_study = [cell for cell in cells if cell.task == study.task and is_done(place.workdir, cell)]
        found = _rows_of(place, study, of_study)
        rows += found
        if study.task != "classify" and len(study.types) > 1:
            rows += _pooled(study, found)
    return _compared(place, rows)


def _rows_of(place: Place, study: Study, cells: Sequence[Cell]) -> list[Row]:
    rows = []
    for group, types in study.groups.items():
        for size in study.sizes:
            seen: set[str] = set()
            for arm in study.arms:
                mine = [cell for cell in cells if (cell.group, cell.size, cell.arm) == (group, size, arm.name)]
                volumes = {patch: of for cell in mine for patch, of in volumes_of(place, cell).items()}
                for method, runs in _by_method(place, mine).items():
                    name = arm.name if method == OWN else method
                    if name in seen:  # the blurred input is the same for every arm
                        continue
                    seen.add(name)
                    against = arm.against if method == OWN else ""
                    called = arm.paper if method == OWN else {"pca": "PCA"}.get(method, "")
                    paper = _printed(study, types[0], size, called)
                    rows.append(_row(study.task, group, name, size, against, runs, volumes, paper))
    return rows


def _printed(study: Study, of: DataType, size: int, arm: str) -> dict[str, float]:
    """What the paper prints of this type, size and arm, by metric."""
    if size not in study.paper_sizes or not of.paper:
        return {}
    shots = FEW if size == study.paper_sizes[0] else MANY
    figures = {
        metric: printed(study.task, metric, arm=arm, of_type=of.paper, shots=shots) for metric in METRICS[study.task]
    }
    return {metric: value for metric, value in figures.items() if value is not None}


def _row(
    task: str,
    group: str,
    method: str,
    size: int,
    against: str,
    runs: list[Scores],
    volumes: dict[str, str],
    paper: dict[str, float],
) -> Row:
    patches = list(runs[0])
    of = [volumes[patch] for patch in patches]
    means = {metric: mean_of(runs, patches, metric, of) for metric in METRICS[task]}
    return Row(task, group, method, size, against, runs, {patch: volumes[patch] for patch in patches}, means, paper)


def _by_method(place: Place, cells: Sequence[Cell]) -> dict[str, list[Scores]]:
    """Scores by method, one entry for each seed: of seeds that have all folds, or of the one that has most."""
    by_seed: dict[int, list[dict[str, Scores]]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(read_done(place.workdir, cell)["methods"])
    most = max(map(len, by_seed.values()), default=0)
    full = [folds for folds in by_seed.values() if len(folds) == most]
    chosen = full if most == place.experiment.folds else full[:1]
    methods: dict[str, list[Scores]] = {}
    for folds in chosen:
        for method in folds[0]:
            merged = {patch: scores for fold in folds for patch, scores in fold[method].items()}
            methods.setdefault(method, []).append(merged)
    return methods


def _pooled(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Each method over all types, where it has them all with the same seeds."""
    pooled = []
    for size in study.sizes:
        for method in dict.fromkeys(row.method for row in rows):
            mine = [row for row in rows if (row.method, row.size) == (method, size)]
            if len(mine) < len(study.groups) or len({len(row.runs) for row in mine}) > 1:
                continue
            runs = [
                {f"{row.group}/{patch}": scores for row in mine for patch, scores in row.runs[seed].items()}
                for seed in range(len(mine[0].runs))
            ]
            # Two channels of one volume are no two volumes: these keep their names.
            volumes = {f"{row.group}/{patch}": volume for row in mine for patch, volume in row.volumes.items()}
            pooled.append(_row(study.task, ALL_TYPES, method, size, mine[0].against, runs, volumes, {}))
    return pooled


def _compared(place: Place, rows: list[Row]) -> Results:
    """Every arm that is declared against another, on the patches that both have."""
    by_place = {(row.task, row.group, row.method, row.size): row for row in rows}
    differences = {}
    claims = []
    for row in rows:
        other = by_place.get((row.task, row.group, row.against, row.size))
        patches = [] if other is None else [patch for patch in row.volumes if patch in other.volumes]
        if not patches:
            continue
        pair = row.runs, other.runs, patches
        volumes = [row.volumes[patch] for patch in patches]
        for metric in METRICS[row.task]:
            differences[row.task, row.group, row.method, row.size, metric] = difference_of(*pair, metric, volumes)
        if _is_claim(place.study(row.task), row):
            main = METRICS[row.task][0]
            difference = differences[row.task, row.group, row.method, row.size, main]
            claims.append((row, main, difference, p_value_of(*pair, main, volumes)))
    adjusted = holm([p_value for *_, p_value in claims])
    found = [
        Claim(*one, adjusted=value, verdict=verdict(one[2].value, value))
        for one, value in zip(claims, adjusted, strict=True)
    ]
    return Results(rows, differences, found)


def _is_claim(study: Study, row: Row) -> bool:
    """Whether a verdict is given: over all types, at the sizes that the paper calls few and many, or at all there are.

    Each further claim makes every verdict harder: single types and sizes between have their differences, no verdicts.
    """
    sizes = study.paper_sizes if any(study.paper_sizes) else study.sizes
    return row.group == (ALL_TYPES if len(study.groups) > 1 else next(iter(study.groups))) and row.size in sizes
