"""What the tensors of a file must be before they become a network: floating, finite, and of shapes that agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lsmfm_jax.convert import swin_unetr, unet
from lsmfm_jax.convert.convolutional import COUNTER, compare_names, torch_shapes
from lsmfm_jax.models import build_backbone

Shapes = dict[str, tuple[int, ...]]
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_INDEX = "relative_position_index"
_NAMED = 4
# The light decoder's convolutions after the first, which takes the backbone's features (paper, section 3.1).
_DECODER_WIDTHS = (64, 32, 1)


def as_float32(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights as float32: half precision widened, which is exact; counters and position indices stay integers.

    Returns:
        The tensors, and lines for the user about what was changed.

    Raises:
        ValueError: weights that are integers, boolean, of double precision, not finite, or none at all; counters
            that are no counts. The message names the tensors.
    """
    whole, double, empty, bad = [], [], [], []
    for key, value in state.items():
        if key.endswith((f".{COUNTER}", f".{_INDEX}")):
            _check_integers(key, value)
        elif value.dtype == np.float64:
            double.append(f"{key} ({value.dtype})")
        elif value.dtype not in (np.float32, *_HALVES):
            whole.append(f"{key} ({value.dtype})")
        elif not value.size:
            empty.append(f"{key} {value.shape}")
        elif not np.isfinite(value).all():
            bad.append(key)
    for keys, reason, remedy in (
        (whole, "weights that are no floating numbers", "undo the quantisation and save the network as float32"),
        (double, "tensors that float32 cannot hold", "save the network as float32"),
        (empty, "tensors without a value", "save the whole network, not one shard of it"),
        (bad, "NaN or Inf in", "take an earlier checkpoint of that run"),
    ):
        if keys:
            raise ValueError(f"{reason}{'' if keys is bad else ':'} {', '.join(keys[:_NAMED])}; {remedy}")
    widened = [key for key, value in state.items() if value.dtype in _HALVES]
    plain = {key: value.astype(np.float32) if key in set(widened) else value for key, value in state.items()}
    return plain, [f"{len(widened)} tensors in half precision, widened to float32"] if widened else []


def _check_integers(key: str, value: np.ndarray) -> None:
    is_counter = key.endswith(COUNTER)
    if value.dtype != np.int64 or (is_counter and (value.shape != () or value < 0)):
        wanted = "a single count of at least 0, int64" if is_counter else "int64"
        raise ValueError(f"{key} has dtype {value.dtype} and shape {value.shape}; it must be {wanted}")


def check_shapes(state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare every tensor with what the network has there, counters and position indices left out.

    Raises:
        ValueError: one is missing, left over or of another shape; the message has its key, its shape and the one
            that fits.
    """
    given = {key for key in state if not key.endswith((f".{COUNTER}", f".{_INDEX}"))}
    compare_names(set(expected), given)
    wrong = []
    for key, shape in expected.items():
        found = state[key].shape
        if found != shape:
            weight = f"{key.rpartition('.')[0]}.weight"
            # The sizes were read off some of the tensors: where the layer's weight gave them, it may be the wrong one.
            beside = f" beside {weight} {state[weight].shape}" if weight != key and weight in state else ""
            wrong.append(f"{key} has shape {found}{beside}, {shape} would fit")
    if wrong:
        more = f" ({len(wrong)} tensors in all)" if len(wrong) > 2 else ""
        raise ValueError(f"layers that do not fit together: {'; '.join(wrong[:2])}{more}; save that network again")


def backbone_shapes(name: str, architecture: Mapping[str, Any]) -> Shapes:
    """Shapes of a backbone's PyTorch tensors, by their names in MONAI, from the sizes that were inferred.

    Raises:
        ValueError: no network has these sizes.
    """
    side = 32 if name == "swin_unetr" else math.prod(architecture["strides"])
    volume = jax.ShapeDtypeStruct((1, side, side, side, 1), jnp.float32)
    try:
        network = build_backbone(name, **architecture)
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), volume)
    except (ValueError, TypeError, ArithmeticError) as error:
        sizes = ", ".join(f"{key} {value}" for key, value in architecture.items())
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"its tensors are those of a network of {sizes}, which cannot be built: {reason}") from error
    module = swin_unetr if name == "swin_unetr" else unet
    shapes = torch_shapes(variables, module.entries_of(variables))
    if name == "swin_unetr":
        shapes[swin_unetr.OUT] += (1, 1, 1)
    return shapes


def decoder_shapes(layers: Sequence[tuple[str, str]], features: int) -> Shapes:
    """Shapes of the light decoder after a backbone of so many features."""
    shapes: Shapes = {}
    for (_, key), inputs, outputs in zip(layers, (features, *_DECODER_WIDTHS), _DECODER_WIDTHS, strict=False):
        side = 1 if outputs == _DECODER_WIDTHS[-1] else 3
        shapes |= {f"{key}.weight": (outputs, inputs, side, side, side), f"{key}.bias": (outputs,)}
    return shapes


def projection_shapes(layers: Sequence[tuple[str, str]], inputs: int, width: int) -> Shapes:
    """Shapes of a projection head: two linear layers and a layer norm of one width."""
    first, second, norm = (key for _, key in layers)
    shapes: Shapes = {
        f"{first}.weight": (width, inputs),
        f"{second}.weight": (width, width),
        f"{norm}.weight": (width,),
    }
    return shapes | {f"{key}.bias": (width,) for key in (first, second, norm)}
