"""What annotated patches of the next brain give: the run calibrated on them, against the run as it is and thresholds.

python benchmarks/calibration.py --folder PATCHES --runs WORK/scratch-1 WORK/scratch-2 --test a_0 a_1 b_0 \
    b_1 --json FILE

Of each volume among the test patches the first one (`--annotated`: the first ones) that has foreground is annotated
for `lsmfm calibrate`, and the others are judged; a volume with no other is left out. Beside it stands what needs no
network: the threshold that is best on those patches, on the run's own intensity scale and on counts.
"""

import collections
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import few_shot
import numpy as np
import outcome

from lsmfm_jax.baselines import best_threshold
from lsmfm_jax.data.labels import IGNORED, label_values
from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.predict.calibration import calibrate, logits_and_truth
from lsmfm_jax.predict.cut_off import dice
from lsmfm_jax.predict.inputs import find_cases
from lsmfm_jax.predict.network import Predictor, load_predictor
from lsmfm_jax.predict.truth import mask_like
from lsmfm_jax.volumes.read import read_single

AS_IT_IS, CALIBRATED = "run", "run, calibrated"
SAME_SCALE, COUNTS = "threshold of those patches, same scale", "threshold of those patches, counts"
Views = dict[str, tuple[np.ndarray, np.ndarray]]  # of each method what it thresholds, and the truth


def views(predictor: Predictor, path: pathlib.Path) -> Views:
    """Logits, scaled voxels and counts of a labelled patch where somebody annotated, each with the truth."""
    (case,), _ = find_cases([path], task="segment", label_dir=None)
    values = label_values(predictor.record.get("labels"))
    logits, truth = logits_and_truth(predictor, case, values)
    image, info = read_single(case.path, allow_constant=True)
    counted = mask_like(case, image, info, values) != IGNORED
    scaled = predictor.levels(image, info.voxel_size_um).apply(image, clip=False)
    return {
        AS_IT_IS: (logits, truth),
        SAME_SCALE: (scaled[counted][None, None], truth),
        COUNTS: (image[counted][None, None].astype(np.float32), truth),
    }


def above(view: tuple[np.ndarray, np.ndarray], cut_off: float) -> float:
    """Foreground Dice of what lies above a cut-off."""
    values, truth = view
    return dice(values > cut_off, truth)


def judged(run: pathlib.Path, folder: pathlib.Path, names: Sequence[str], annotated: int) -> dict[str, few_shot.Scores]:
    """Dice of each patch that is not for calibration, by method."""
    predictor = load_predictor(run)
    volumes: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        volumes[volume_of(name)].append(name)
    scores: dict[str, few_shot.Scores] = collections.defaultdict(dict)
    for volume, patches in volumes.items():
        paths = {patch: folder / f"{patch}.nii.gz" for patch in patches}
        seen = {patch: views(predictor, path) for patch, path in paths.items()}
        first = [patch for patch in patches if seen[patch][AS_IT_IS][1].any()][:annotated]
        others = [patch for patch in patches if patch not in first]
        if len(first) < annotated or not others:
            print(f"{volume}: left out, it has not {annotated} with foreground beside another")
            continue
        with tempfile.TemporaryDirectory() as place:
            moved = pathlib.Path(place) / "calibrated"
            found = calibrate(run, [paths[patch] for patch in first], moved, print_line=lambda line: None)
            calibrated = load_predictor(moved)
        print(f"{run.name}, {volume}: {found}", flush=True)
        for patch in others:
            scores[AS_IT_IS][patch] = {"dice": above(seen[patch][AS_IT_IS], 0.0)}
            scores[CALIBRATED][patch] = {"dice": above(views(calibrated, paths[patch])[AS_IT_IS], 0.0)}
        for method in (SAME_SCALE, COUNTS):
            cut_off, _ = best_threshold(*zip(*(seen[patch][method] for patch in first), strict=True))
            for patch in others:
                scores[method][patch] = {"dice": above(seen[patch][method], cut_off)}
    return scores


def main() -> None:
    """Judges the runs that the command line names."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--runs", nargs="+", type=pathlib.Path, required=True, help="of one recipe and several seeds")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--annotated", type=int, default=1, help="patches of each volume that calibrate (1)")
    options = parser.parse_args()
    found = [judged(run, options.folder, options.test, options.annotated) for run in options.runs]
    methods: dict[str, Any] = {}
    for method in found[0]:
        scores = [one[method] for one in found]
        methods[method] = {"test": few_shot.summary(scores)}
        if method != AS_IT_IS:
            methods[method]["gain_over_run"] = few_shot.gains(scores, [one[AS_IT_IS] for one in found])
        if method == CALIBRATED:
            methods[method]["gain_over_threshold"] = few_shot.gains(scores, [one[SAME_SCALE] for one in found])
            methods[method]["gain_over_threshold_of_counts"] = few_shot.gains(scores, [one[COUNTS] for one in found])
    facts = outcome.facts("calibration", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    facts["command"] = "benchmarks/calibration.py"
    settings = {"runs": [run.name for run in options.runs], "test": options.test, "annotated": options.annotated}
    outcome.finish({**facts, "settings": settings, "methods": methods}, options.json)


if __name__ == "__main__":
    main()
