"""What stands beside a segmentation network: how much the regression should count, and whether texture would help.

python benchmarks/voxel_models.py --folder PATCHES --draw a b c d --draw a --draw e f g h --test x y z --json FILE

Beside its network a segmentation run has the mean of a threshold and a regression of Gaussian means. Here both are
fitted on each draw of patches and judged on patches of other volumes: alone, with several shares of the regression,
and together with two regressions more, one that also sees gradients and one that sees the curvatures of the Gaussians
(eigenvalues of the Hessian). No network and no training: a share that is chosen on one draw shows on the next whether
it was luck.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import outcome
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lsmfm_jax.baselines import PIXEL_SIGMAS, best_threshold, fit_pixel_classifier
from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.predict.cut_off import dice
from lsmfm_jax.scale import Scale, measure
from lsmfm_jax.volumes.read import read_single

# Voxels of a patch that a regression is fitted on, of the foreground and of the background each.
MOST = 60_000
# Gaussians whose gradient and curvature are looked at, voxels.
TEXTURE_SIGMAS = (1.0, 2.0)
# Members of each mean, and their weights.
MEANS = {
    "threshold": {"threshold": 1.0},
    "regression": {"gaussians": 1.0},
    "share .25": {"threshold": 3.0, "gaussians": 1.0},
    "share .5": {"threshold": 1.0, "gaussians": 1.0},
    "share .75": {"threshold": 1.0, "gaussians": 3.0},
    "four alike": {"threshold": 1.0, "gaussians": 1.0, "gradients": 1.0, "curvatures": 1.0},
}
PRODUCT = "share .5"


class Patch(NamedTuple):
    """Features of all voxels by their names, which are foreground, and which are annotated."""

    features: dict[str, np.ndarray]
    truth: np.ndarray
    counted: np.ndarray


def read(folder: pathlib.Path, name: str, values: LabelValues) -> Patch:
    """A patch on the local scale."""
    image, info = read_single(folder / f"{name}.nii.gz", allow_constant=True)
    target = target_of(read_single(folder / f"{name}_label.nii.gz", allow_constant=True)[0], values, source=name)
    scaled = measure(image, Scale("local"), info.voxel_size_um).apply(image)
    return Patch(features(scaled), target == 1, target != IGNORED)


def features(scaled: np.ndarray) -> dict[str, np.ndarray]:
    """What each regression sees of each voxel: (Z, Y, X, features)."""
    gaussians = [scaled, *(ndimage.gaussian_filter(scaled, sigma) for sigma in PIXEL_SIGMAS)]
    gradients, curvatures = [], []
    for smooth in (ndimage.gaussian_filter(scaled, sigma) for sigma in TEXTURE_SIGMAS):
        slopes = np.gradient(smooth)
        gradients.append(np.sqrt(sum(slope**2 for slope in slopes)))
        hessian = np.empty((*smooth.shape, 3, 3), np.float32)
        for axis, slope in enumerate(slopes):
            hessian[..., axis, :] = np.stack(np.gradient(slope), -1)
        # Rounding apart, a Hessian is symmetric.
        curvatures += list(np.moveaxis(np.linalg.eigvalsh((hessian + np.swapaxes(hessian, -1, -2)) / 2), -1, 0))
    seen = {"gaussians": gaussians, "gradients": gaussians + gradients, "curvatures": gaussians + curvatures}
    return {"threshold": scaled, **{name: np.stack(one, -1) for name, one in seen.items()}}


def fitted(train: Sequence[Patch], test: Sequence[Patch], name: str, seed: int) -> list[np.ndarray]:
    """Logits of the annotated voxels of the test patches by a member fitted on the training patches."""
    if name == "threshold":
        rows = ([p.features[name] for p in train], [p.truth for p in train], [p.counted for p in train])
        found = fit_pixel_classifier(*rows, sigmas=(), seed=seed)
        return [p.features[name][p.counted] * found.weights[0] + found.bias for p in test]
    rng, rows, truths = np.random.default_rng(seed), [], []
    for patch in train:
        for truth in (True, False):
            places = np.flatnonzero(patch.counted & (patch.truth == truth))
            chosen = rng.choice(places, min(len(places), MOST), replace=False)
            rows.append(patch.features[name].reshape(-1, patch.features[name].shape[-1])[chosen])
            truths.append(np.full(len(chosen), truth))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(np.concatenate(rows), np.concatenate(truths))

    def logits(patch: Patch) -> np.ndarray:
        return model.decision_function(patch.features[name][patch.counted]).astype(np.float32)

    cut, _ = best_threshold([logits(p)[None, None] for p in train], [p.truth[p.counted][None, None] for p in train])
    return [logits(p) - cut for p in test]


def judged(train: Sequence[Patch], test: Sequence[Patch], seed: int) -> dict[str, float]:
    """Mean Dice of the test patches for each of `MEANS`."""
    members = {name: fitted(train, test, name, seed) for name in MEANS["four alike"]}
    truths = [patch.truth[patch.counted] for patch in test]
    found = {}
    for name, weights in MEANS.items():
        sums = [sum(w * members[one][place] for one, w in weights.items()) for place in range(len(test))]
        found[name] = round(float(np.mean([dice(one > 0, truth) for one, truth in zip(sums, truths, strict=True)])), 4)
    return found


def main() -> None:
    """Judges the draws that the command line names."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--draw", nargs="+", action="append", required=True, metavar="NAME", help="patches to fit on")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--foreground", nargs="*", type=int, default=(), help="label values that are foreground")
    parser.add_argument("--ignore", nargs="*", type=int, default=(), help="label values that count nowhere")
    options = parser.parse_args()
    values = LabelValues(tuple(options.foreground), (), tuple(options.ignore))
    test = [read(options.folder, name, values) for name in options.test]
    draws: list[dict[str, Any]] = []
    for names in options.draw:
        found = judged([read(options.folder, name, values) for name in names], test, seed=1)
        draws.append({"train": names, "dice": found})
        print(names, found, flush=True)
    means = {name: round(float(np.mean([draw["dice"][name] for draw in draws])), 4) for name in MEANS}
    facts = outcome.facts("voxel_models", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    facts["command"] = "benchmarks/voxel_models.py"
    outcome.finish({**facts, "test": options.test, "draws": draws, "mean": means, "product": PRODUCT}, options.json)


if __name__ == "__main__":
    main()
