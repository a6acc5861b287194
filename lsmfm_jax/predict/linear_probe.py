"""What a run's features say of voxels: a linear layer is fitted on them, and the network stays as it is.

A pretraining is worth something for segmentation if its features tell foreground from background on volumes that
nobody annotated, better than those of a network that has learnt nothing and than a threshold. This takes a minute
where finetuning takes an hour, and works on a run that is still training: each call reads its last checkpoint.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lsmfm_jax.baselines import best_threshold, fit_pixel_classifier, pixel_logits
from lsmfm_jax.config import defaults
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.files import replace_json
from lsmfm_jax.predict.comparison import ahead_of
from lsmfm_jax.predict.cut_off import dice
from lsmfm_jax.predict.embedding import pretraining_config
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import recorded_window
from lsmfm_jax.predict.windows import Size, blend_windows, pad_to_window, window_starts
from lsmfm_jax.scale import Scale, scale_of
from lsmfm_jax.tasks.declaration import Patches
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.tasks.finetune_tasks import FINETUNING
from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head
from lsmfm_jax.train.weights import Weights, read_weights

# Voxels of a patch that the layer is fitted on, of the foreground and of the background each.
MOST = 20_000
RUN, RANDOM = "features of this run", "random weights"
OVERLAP_FRAC = 0.25

Volume = Float[np.ndarray, "z y x"]
Score = Callable[[Volume], Volume]


def probe_run(
    run: pathlib.Path,
    folder: pathlib.Path,
    *,
    foreground: Sequence[int] = (),
    background: Sequence[int] = (),
    ignore: Sequence[int] = (),
    out: pathlib.Path | None = None,
    seed: int = 0,
    print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fits a logistic regression on a run's dense features of annotated patches and judges it on other volumes.

    Beside it stand the same network with weights just drawn, a threshold, and a regression of voxels and Gaussian
    means, all fitted on the same patches on the run's intensity scale.

    Args:
        run: folder of a pretraining or finetuning run; its last weights are read.
        folder: images with their masks beside them, as `data.folder` of a finetuning: `train/` and `val/` in it are
            the sides, else volumes are drawn for validation.
        foreground: label values that are foreground, as `data.foreground_labels`.
        background: as `data.background_labels`.
        ignore: as `data.ignore_labels`.
        out: JSON to write the result to.
        seed: of the draws of volumes, voxels and random weights.
        print_line: prints a line.

    Returns:
        `methods`: for each the mean foreground `dice` of the validation patches, and by how much the run is ahead of
        it with its 95 % interval; `patches`, `volumes` and `run`.

    Raises:
        PredictionError: no validation patches, no foreground in the training patches, or a run that does not say how
            it saw intensities.
        LabelledDataError: patches that cannot be used.
    """
    weights = read_weights(run)
    window, scale = _window(weights, run), scale_of(weights.record.get("scaling", {}))
    config = _configuration(folder, scale, window=window, values=(foreground, background, ignore), seed=seed)
    with tempfile.TemporaryDirectory() as record:
        patches = read_patches(config, pathlib.Path(record), print_line=print_line)
    if not patches.validation:
        raise PredictionError(f"{folder}: no patches to judge on; add patches of another volume")
    if not any((patch.target == 1).any() for patch in patches.train):
        raise PredictionError(f"{folder}: the masks of all training patches are empty: there is nothing to fit")
    network = Network(backbone_of(weights.architecture))
    drawn, statistics = jax.jit(lambda key: network.init(key, window))(jax.random.key(seed))
    trees = {
        RUN: ({"backbone": weights.params["backbone"]}, weights.batch_stats),
        RANDOM: ({"backbone": drawn}, {"backbone": statistics}),
    }
    scores = {name: _fitted(_Probe(network, *tree, window), patches, seed=seed) for name, tree in trees.items()}
    methods = {name: _dice(score, patches.validation) for name, score in (scores | _simple(patches, seed)).items()}
    found = {"run": weights.origin, **_compared(methods, patches.validation)}
    print_line(f"foreground Dice of a linear layer fitted on {len(patches.train)} patches, judged on:")
    for name, row in found["methods"].items():
        print_line(f"  {name:20} {row['dice']:.3f}{_ahead(row)}")
    if out is not None:
        replace_json(out, found)
    return found


class _Probe:
    """The dense features of a network, and a linear layer on them."""

    def __init__(self, network: Network, params: Any, batch_stats: Any, window: Size) -> None:
        self.window = window
        # Arguments and not constants, which the compiler would fold for minutes.
        self._trees = jax.device_put((params, batch_stats))

        @jax.jit
        def features(params: Any, batch_stats: Any, windows: Float[Array, "b z y x"]) -> Float[Array, "b z y x c"]:
            trunk = network.trunk(params, batch_stats, windows[..., None])
            values = trunk.values.astype(jnp.float32)
            return values if trunk.tail is None else values @ trunk.tail[0] + trunk.tail[1]

        @jax.jit
        def logits(params: Any, batch_stats: Any, head: Any, windows: Array) -> Float[Array, "b z y x"]:
            return dense_head(head, network.trunk(params, batch_stats, windows[..., None]))[..., 0]

        self._features, self._logits = features, logits

    def rows(self, volume: Volume, chosen: Bool[np.ndarray, "z y x"]) -> Float[np.ndarray, "n c"]:
        """The features of chosen voxels, in the order of `chosen`, each from the first window that holds it."""
        padded, inside = pad_to_window(volume, self.window)
        wanted = np.zeros(padded.shape, bool)
        wanted[inside] = chosen
        place = np.full(padded.shape, -1)
        place[wanted] = np.arange(np.count_nonzero(wanted))
        found: np.ndarray | None = None
        starts = [window_starts(*sizes, 0.0) for sizes in zip(padded.shape, self.window, strict=True)]
        for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
            box = tuple(slice(start, start + size) for start, size in zip(corner, self.window, strict=True))
            here = wanted[box]
            if not here.any():
                continue
            values = np.asarray(self._features(*self._trees, padded[box][None]))[0][here]
            found = np.empty((np.count_nonzero(chosen), values.shape[1]), np.float32) if found is None else found
            found[place[box][here]] = values
            wanted[box] = False
        assert found is not None
        return found

    def score(self, weights: Float[np.ndarray, " c"], bias: float) -> Score:
        """The layer's logit of each voxel of a volume."""
        head = {"kernel": jnp.asarray(weights, jnp.float32)[:, None], "bias": jnp.asarray([bias], jnp.float32)}
        settings: dict[str, Any] = {"window": self.window, "overlap_frac": OVERLAP_FRAC, "batch_size": 1}
        return lambda volume: blend_windows(
            lambda windows: self._logits(*self._trees, head, windows), volume, **settings
        )


def _fitted(probe: _Probe, patches: Patches, *, seed: int) -> Score:
    """The layer that separates the training patches, with its best cut on them."""
    rng = np.random.default_rng(seed)
    rows, truths = [], []
    for patch in patches.train:
        chosen = np.zeros(patch.target.shape, bool)
        for value in (0, 1):
            places = np.flatnonzero(patch.target == value)
            chosen.flat[rng.choice(places, min(len(places), MOST), replace=False)] = True
        if chosen.any():
            rows.append(probe.rows(patch.scaled(), chosen))
            truths.append(patch.target[chosen] == 1)
    fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    fit.fit(np.concatenate(rows), np.concatenate(truths))
    weights = fit[1].coef_[0] / fit[0].scale_
    bias = float(fit[1].intercept_[0] - weights @ fit[0].mean_)
    return _cut(probe.score(weights, bias), patches)


def _simple(patches: Patches, seed: int) -> dict[str, Score]:
    """What needs no network: a threshold, and a regression of voxels and Gaussian means."""
    volumes = [patch.scaled() for patch in patches.train]
    masks = [patch.target == 1 for patch in patches.train]
    annotated = [patch.target != IGNORED for patch in patches.train]
    fitted = fit_pixel_classifier(volumes, masks, annotated, seed=seed)
    return {
        "threshold": _cut(lambda volume: volume, patches),
        "regression of voxels": lambda volume: pixel_logits(fitted, volume),
    }


def _cut(score: Score, patches: Patches) -> Score:
    """A score with the value taken off above which the Dice of the training patches is best."""
    kept = [patch.target != IGNORED for patch in patches.train]
    found = [score(patch.scaled())[counted] for patch, counted in zip(patches.train, kept, strict=True)]
    truths = [(patch.target == 1)[counted] for patch, counted in zip(patches.train, kept, strict=True)]
    cut, _ = best_threshold([one[None, None] for one in found], [one[None, None] for one in truths])
    return lambda volume: score(volume) - cut


def _dice(score: Score, patches: Sequence[LabelledPatch]) -> list[float]:
    return [dice((score(patch.scaled()) > 0) & (patch.target != IGNORED), patch.target == 1) for patch in patches]


def _compared(methods: dict[str, list[float]], patches: Sequence[LabelledPatch]) -> dict[str, Any]:
    volumes = [patch.volume for patch in patches]
    rows: dict[str, Any] = {}
    for name, values in methods.items():
        rows[name] = {"dice": float(np.mean(values)), "dice_of_patches": values}
        if name != RUN:
            rows[name] |= ahead_of(methods[RUN], values, volumes)
    return {"methods": rows, "patches": [patch.name for patch in patches], "volumes": sorted(set(volumes))}


def _ahead(row: dict[str, Any]) -> str:
    if "run_is_ahead_by" not in row:
        return ""
    limits = row["interval_95"]
    interval = "" if limits is None else f" [{limits[0]:+.3f}, {limits[1]:+.3f}]"
    return f"   the run is ahead by {row['run_is_ahead_by']:+.3f}{interval}"


def _window(weights: Weights, run: pathlib.Path) -> Size:
    """The voxels that the network was trained on at a time, ZYX."""
    if weights.record.get("task") in FINETUNING:
        return recorded_window(weights, run)
    z, y, x = pretraining_config(weights, run).data.input_size
    return z, y, x


def _configuration(
    folder: pathlib.Path, scale: Scale, *, window: Size, values: Sequence[Sequence[int]], seed: int
) -> ConfigDict:
    """What a finetuning would be told of the patches."""
    config = defaults("segment")
    data = config.data
    data.folder, data.patch_size, config.seed = str(folder), window, seed
    data.foreground_labels, data.background_labels, data.ignore_labels = map(tuple, values)
    data.scale, data.camera_offset = scale.name, scale.offset_counts
    data.background_sigma_voxels, data.background_sigma_um = scale.sigma_voxels, scale.sigma_um
    data.lower_percentile, data.upper_percentile = (f"{value:g}" for value in scale.percentiles)
    return config
