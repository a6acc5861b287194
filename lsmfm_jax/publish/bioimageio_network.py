"""The network of a segmentation run as PyTorch has it, and what our own makes of a test volume: without PyTorch.

MONAI's SwinUNETR takes the run's last layer into its own. Its UNet ends in a residual unit that cannot, so a short
Python file joins the two.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from lsmfm_jax.convert.exporting import monai_states, network_arguments
from lsmfm_jax.convert.torch_files import torch_file_bytes
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.publish.stated import PackageError
from lsmfm_jax.scale import Scale, measure
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.compilation import run_once_options
from lsmfm_jax.train.weights import Weights

NETWORK_FILE = "network.py"
_JOINED = '''"""MONAI's UNet and the layer that makes the logit of the foreground of its features."""

import torch
from monai.networks.nets import UNet


class SegmentationUNet(torch.nn.Module):
    """Takes a scaled volume (B, 1, Z, Y, X), gives logits (B, 1, Z, Y, X); the arguments are those of MONAI's UNet."""

    def __init__(self, out_channels, **sizes):
        super().__init__()
        self.network = UNet(out_channels=out_channels, **sizes)
        self.head = torch.nn.Conv3d(out_channels, 1, 1)

    def forward(self, volume):
        return self.head(self.network(volume))
'''


@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """A network from scaled volume to logit, for PyTorch.

    Attributes:
        weights: bytes of a state dict, as `torch.save` writes it.
        callable_name: what builds the network.
        arguments: its keyword arguments.
        source: text of the Python file that defines it; None: it is MONAI's own.
        versions: of MONAI that give the same outputs.
    """

    weights: bytes
    callable_name: str
    arguments: dict[str, Any]
    source: str | None
    versions: str = ">=1.5"


def torch_network(run: pathlib.Path, weights: Weights) -> TorchNetwork:
    """The network of a segmentation run; its logit is cut where the run cuts it.

    Args:
        run: folder of the run, for messages.
        weights: what was read from there.

    Raises:
        PackageError: the run is of another task, or its network is none that today's MONAI builds.
    """
    task, architecture = weights.record.get("task"), weights.architecture
    others = "`lsmfm package --for hub` takes every run, and `lsmfm convert export` writes its weights for PyTorch"
    if task != "segment" or architecture["name"] not in ("unet", "swin_unetr"):
        raise PackageError(
            f"{run}: a run of task {task!r} with a {architecture['name']}; packages for bioimage.io are made of "
            f"segmentation runs with a unet or swin_unetr: {others}"
        )
    if architecture.get("merging", "corrected") != "corrected":
        raise PackageError(
            f"{run}: its SwinUNETR merges patches as MONAI up to 1.4 did (merging 'duplicated'), and later versions "
            f"give other outputs with these weights: {others}"
        )
    states, _ = monai_states(weights)
    name, arguments = network_arguments(weights)
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    if "head" not in states:
        return TorchNetwork(torch_file_bytes(".pt", states["backbone"]), name, arguments, None)
    joined = {f"network.{key}": value for key, value in states["backbone"].items()}
    joined |= {f"head.{key}": value for key, value in states["head"].items()}
    return TorchNetwork(torch_file_bytes(".pt", joined), "SegmentationUNet", arguments, _JOINED)


def least_side(weights: Weights) -> int:
    """The smallest side of a volume, in voxels, that the network takes; larger ones are multiples of half of it.

    Two voxels are left on the deepest map: of a single one PyTorch computes no instance norm.
    """
    factor, _ = BACKBONES[weights.architecture["name"]].divisor(weights.architecture)
    return 2 * factor


def example_volumes(
    weights: Weights, scale: Scale
) -> tuple[Float[np.ndarray, "1 1 z y x"], Float[np.ndarray, "1 1 z y x"]]:
    """A generated volume and the probability of foreground that the network alone, in JAX, gives for it.

    The volume holds raw counts where `scale` takes percentiles, which PyTorch's side can do as well; else it is
    scaled to [0, 1] already.

    Args:
        weights: of a segmentation run.
        scale: of the run.
    """
    least = least_side(weights)
    shape = tuple(max(side, least) for side in weights.record["patch_size"])
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 2)
    spots = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    given = np.round(100 + 900 * spots) if scale.name == "percentile" else spots
    seen = measure(given, scale).apply(given) if scale.name == "percentile" else given
    options = run_once_options(jax.default_backend())
    network = jax.jit(build_segmenter(network_record(weights.record)), compiler_options=options)
    probability = network(weights.params, weights.batch_stats, seen[None, ..., None])
    return given[None, None], np.asarray(probability, np.float32)[None, ..., 0]


def network_record(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record without its regression of voxels, and without a calibration that was fitted with that."""
    beside = ("voxel_classifier", "logit_shift") if record.get("voxel_classifier") else ()
    return {key: value for key, value in record.items() if key not in beside}
