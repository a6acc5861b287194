"""Tiny networks and volumes for tests of whole-volume prediction."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from scipy import ndimage

from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.output import Array, Image
from lsmfm_jax.scale import Scale
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.train.weights import write_weights
from lsmfm_jax.volumes.lazy import LazyVolume

ARCHITECTURE = {
    "name": "unet",
    "out_channels": 6,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "norm": "batch",
}
RECORD = {
    "architecture": ARCHITECTURE,
    "patch_size": [16, 16, 16],
    "scaling": {"lower": "1", "upper": "99"},
    "classes": ["nuclei", "plaque"],
    "target_range": [-0.5, 2.0],
}


def make_run(folder: pathlib.Path, task: str) -> pathlib.Path:
    """A run whose weights were drawn and never trained; its batch statistics are not those of a new network."""
    network = Network(backbone_of(ARCHITECTURE))
    params, stats = jax.jit(lambda key: network.init(key, (16, 16, 16)))(jax.random.key(0))
    stats = jax.tree.map(lambda leaf: leaf + 0.1, stats)
    head = init_linear(jax.random.key(1), 8 if task == "classify" else 6, 2 if task == "classify" else 1)
    # Larger, so that probabilities are not all near one half.
    head = jax.tree.map(lambda leaf: 10 * leaf, head)
    write_weights(
        folder,
        record={**RECORD, "task": task},
        params={"backbone": params, "head": head},
        batch_stats={"backbone": stats},
    )
    return folder


def blobs(shape: tuple[int, int, int], *, seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    """Smooth bright spots on a background."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return (20 + 200 * (values - values.min()) / np.ptp(values)).astype(dtype)


def in_memory(
    array: np.ndarray,
    *,
    chunk: tuple[int, int, int] = (16, 16, 16),
    voxel_size_um: tuple[float, float, float] | None = (2.0, 1.0, 1.0),
    path: str = "memory",
) -> LazyVolume:
    """An array as a volume that is read by boxes."""
    return LazyVolume(
        path=path,
        shape=array.shape,
        dtype=array.dtype,
        voxel_size_um=voxel_size_um,
        voxel_size_source="test",
        chunk=chunk,
        channels=1,
        levels=1,
        channel=0,
        level=0,
        origin=(0, 0, 0),
        source=lambda box: array[box],
    )


def copying(
    *,
    task: str = "segment",
    window: tuple[int, int, int] = (16, 16, 16),
    network: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Predictor:
    """A predictor whose network is a function of numpy arrays: its input itself, if none is given."""
    return Predictor(
        task=task,
        record={},
        origin="a function",
        window=window,
        scale=Scale(),
        apply=network or (lambda windows: windows),
        fingerprint="function",
    )


def quiet(line):
    """Prints nothing."""


def predict_copy(
    volume, out, *, network=None, task="segment", tissue=None, window=(16, 16, 16), print_line=quiet, **settings
):
    """A volume predicted in small shards by a function of numpy arrays, nothing left out."""
    predictor = copying(task=task, window=window, network=network)
    chosen = BrainSettings(**{"shard": (32, 32, 32), "skip_blank": False, **settings})
    return predict_brain(predictor, volume, out, settings=chosen, tissue=tissue, print_line=print_line)


def written(root: pathlib.Path, image: Image, *, level: int = 0) -> np.ndarray:
    """All of an image of a result."""
    return np.asarray(Array(root, image, level=level).read((slice(None), slice(None), slice(None))))
