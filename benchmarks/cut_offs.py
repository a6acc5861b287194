"""How well one threshold carries over to another volume, by intensity scale, and whether unlabelled voxels can move it.

python benchmarks/cut_offs.py --folder PATCHES --scales percentile log_ratio local z_score --per-volume 3 --json FILE

For each ordered pair of volumes the threshold that is best on the patches of the first is judged on those of the
second. `moved` shifts it by a share of what the volumes differ in a statistic that needs no labels: if that helped, a
run could be recalibrated on a new brain without annotating any of it. Takes seconds a patch, and no network.
"""

import collections
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import outcome

from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.scale import SCALES, Scale, measure
from lsmfm_jax.volumes.read import read_single

LABEL = "_label.nii.gz"
CUT_OFFS = np.linspace(0.0, 1.0, 501)
SHARES = (0.25, 0.5, 1.0)


class Patch(NamedTuple):
    """Dice at each of `CUT_OFFS`, and statistics of the scaled voxels."""

    dice: np.ndarray
    statistics: dict[str, float]


def judged(scaled: np.ndarray, target: np.ndarray) -> Patch:
    """One scaled patch (ZYX, from 0 to 1) with its target."""
    counted = target != IGNORED
    values = np.sort(scaled[counted])
    inside = np.sort(scaled[target == 1])
    predicted = values.size - np.searchsorted(values, CUT_OFFS, side="right")
    shared = inside.size - np.searchsorted(inside, CUT_OFFS, side="right")
    total = predicted + inside.size
    dice = np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)
    median = np.median(scaled)
    high = {f"percentile_{level:g}": float(np.percentile(scaled, level)) for level in (95, 99, 99.9)}
    return Patch(dice, {"deviation": float(1.4826 * np.median(np.abs(scaled - median))), **high})


def read_volumes(options: Any, scale: Scale) -> dict[str, list[Patch]]:
    """The judged patches of each volume."""
    values = LabelValues(tuple(options.foreground), (), tuple(options.ignore))
    found: dict[str, list[Patch]] = collections.defaultdict(list)
    for label in sorted(options.folder.glob("*" + LABEL)):
        name = label.name.removesuffix(LABEL)
        kept = found[volume_of(name)]
        if len(kept) >= options.per_volume or name in options.without:
            continue
        image = read_single(label.with_name(name + ".nii.gz"), allow_constant=True)[0]
        target = target_of(read_single(label, allow_constant=True)[0], values, source=name)
        kept.append(judged(measure(image, scale).apply(image), target))
    return {volume: patches for volume, patches in found.items() if patches}


def compare(volumes: dict[str, list[Patch]]) -> dict[str, Any]:
    """Mean Dice of thresholds over ordered pairs of volumes, as they are and moved by each statistic."""
    dice = {volume: np.mean([patch.dice for patch in patches], axis=0) for volume, patches in volumes.items()}
    names = list(next(iter(volumes.values()))[0].statistics)
    statistics = {
        volume: {name: float(np.median([patch.statistics[name] for patch in patches])) for name in names}
        for volume, patches in volumes.items()
    }
    best = {volume: int(np.argmax(values)) for volume, values in dice.items()}

    def transferred(name: str, share: float) -> float:
        scores = []
        for source, other in itertools.permutations(volumes, 2):
            moved = CUT_OFFS[best[source]] + share * (statistics[other][name] - statistics[source][name])
            scores.append(dice[other][int(np.clip(np.searchsorted(CUT_OFFS, moved), 0, len(CUT_OFFS) - 1))])
        return round(float(np.mean(scores)), 4)

    return {
        "of_each_volume": {
            volume: {
                "patches": len(volumes[volume]),
                "cut_off": float(CUT_OFFS[at]),
                "dice": round(dice[volume][at], 4),
            }
            for volume, at in best.items()
        },
        "own_cut_off": round(float(np.mean([dice[volume][at] for volume, at in best.items()])), 4),
        "of_another_volume": transferred(names[0], 0.0),
        "moved": {name: {f"{share:g}": transferred(name, share) for share in SHARES} for name in names},
    }


def study(options: Any, scales: Sequence[str]) -> dict[str, Any]:
    """The comparison for each scale."""
    found = {}
    for name in scales:
        found[name] = compare(read_volumes(options, Scale(name)))
        print(name, {key: found[name][key] for key in ("own_cut_off", "of_another_volume")}, flush=True)
    return found


def main() -> None:
    """Runs the study that the command line describes."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--scales", nargs="+", default=list(SCALES), choices=SCALES)
    parser.add_argument("--per-volume", type=int, default=8, help="patches of each volume at most")
    parser.add_argument("--without", nargs="*", default=(), metavar="NAME", help="patches left out")
    parser.add_argument("--foreground", nargs="*", type=int, default=(), help="label values that are foreground")
    parser.add_argument("--ignore", nargs="*", type=int, default=(), help="label values that count nowhere")
    options = parser.parse_args()
    scales = study(options, options.scales)
    facts = outcome.facts("cut_offs", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    facts["command"] = "benchmarks/cut_offs.py"
    settings = {key: getattr(options, key) for key in ("per_volume", "without", "foreground", "ignore")}
    outcome.finish({**facts, "settings": settings, "scales": scales}, options.json)


if __name__ == "__main__":
    main()
