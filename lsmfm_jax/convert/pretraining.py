"""Pretraining checkpoints of the paper's released code to and from our parameter tree, bit for bit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.convert import bert, checks, heads, swin_unetr, unet
from lsmfm_jax.convert.convolutional import shape_of
from lsmfm_jax.models.text import BertConfig

STUDENT, TEACHER = "student_encoder", "teacher_encoder"
# Their module, ours, and how its layers pair up.
HEADS = (
    ("reconstruction_head", "light_decoder", heads.LIGHT_DECODER),
    ("image_proj", "image_projection", heads.IMAGE_PROJECTION),
    ("text_proj", "text_projection", heads.TEXT_PROJECTION),
)
TEXT = "text_encoder"
SCALARS = ("logit_scale", "ema_decay")
REQUIRED = (STUDENT, TEACHER, "reconstruction_head")


class Pretraining(NamedTuple):
    """A pretraining run's weights, with what is needed to build the networks for them.

    Attributes:
        backbone: "unet" or "swin_unetr".
        architecture: keyword arguments of the backbone, without its dtype.
        params: the tree of a pretraining state: backbone (the student), light_decoder and, where the run had
            text, image_projection, text_tower, text_projection and logit_scale.
        batch_stats: the student's, under "backbone".
        teacher: the teacher's "params" and "batch_stats".
        bert: sizes of the text tower, or None.
        ema_decay: the decay that the checkpoint stores beside its weights, or None.
        batches_tracked: what the batch norms of student and teacher counted; 0 without batch norms.
    """

    backbone: str
    architecture: dict[str, Any]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    teacher: dict[str, Any]
    bert: BertConfig | None
    ema_decay: np.ndarray | None
    batches_tracked: tuple[int, int] = (0, 0)


def from_lightning(
    state: Mapping[str, np.ndarray],
    *,
    text_heads: int | None = None,
    merging: str = "duplicated",
) -> Pretraining:
    """Convert the state dict of a Lightning checkpoint of the released code.

    Args:
        state: the checkpoint's `state_dict`.
        text_heads: attention heads of the text encoder, which its weights do not tell; needed where there is one.
        merging: patch merging of a SwinUNETR, which its weights do not tell; the released ones were trained
            with MONAI 1.4.0, whose merging duplicates two slices.

    Raises:
        ValueError: tensors are missing, left over or of shapes that do not fit together; the message names them.
    """
    parts = _split(state)
    known = {STUDENT, TEACHER, TEXT, *SCALARS, *(theirs for theirs, _, _ in HEADS)}
    missing = sorted(set(REQUIRED) - set(parts))
    left_over = sorted(key for key in state if key.split(".", 1)[0] not in known)
    if missing or left_over:
        raise ValueError(f"not a pretraining checkpoint: no tensors of {missing}, left over {left_over}")
    is_swin = any(key.startswith("swinViT.") for key in parts[STUDENT])
    backbone, converter = ("swin_unetr", swin_unetr) if is_swin else ("unet", unet)
    if is_swin:
        architecture = _named(STUDENT, swin_unetr.infer_swin_unetr, parts[STUDENT]) | {"merging": merging}
    else:
        architecture = _named(STUDENT, unet.infer_unet, parts[STUDENT])
    sizes = (
        _named(TEXT, lambda part: bert.infer_bert(part, num_heads=text_heads), parts[TEXT]) if TEXT in parts else None
    )
    for name, shapes in _expected_shapes(state, parts, backbone, architecture, sizes).items():
        _named(name, checks.check_shapes, parts[name], shapes)
    student, teacher = (_named(name, converter.from_torch, parts[name]) for name in (STUDENT, TEACHER))

    params: dict[str, Any] = {"backbone": student["params"]}
    for theirs, ours, layers in HEADS:
        if theirs in parts:
            params[ours] = _named(theirs, heads.from_torch, parts[theirs], layers)["params"]
    if TEXT in parts:
        params["text_tower"] = _named(TEXT, bert.from_torch, parts[TEXT])["params"]
    if "logit_scale" in state:
        params["logit_scale"] = np.asarray(state["logit_scale"])
    return Pretraining(
        backbone=backbone,
        architecture=architecture,
        params=params,
        batch_stats={"backbone": student["batch_stats"]},
        teacher={"params": teacher["params"], "batch_stats": teacher["batch_stats"]},
        bert=sizes,
        ema_decay=np.asarray(state["ema_decay"]) if "ema_decay" in state else None,
        batches_tracked=(_batches_tracked(parts[STUDENT]), _batches_tracked(parts[TEACHER])),
    )


def to_lightning(weights: Pretraining) -> dict[str, np.ndarray]:
    """Convert back to the state dict of the released code: inverse of `from_lightning`.

    Raises:
        ValueError: parameters are missing or left over; the message names them.
    """
    params = dict(weights.params)
    student = {"params": params.pop("backbone"), "batch_stats": weights.batch_stats["backbone"]}
    parts = {}
    both = ((STUDENT, student), (TEACHER, weights.teacher))
    for (name, variables), tracked in zip(both, weights.batches_tracked, strict=True):
        if weights.backbone == "unet":
            parts[name] = unet.to_torch(variables, batches_tracked=tracked)
        else:
            parts[name] = swin_unetr.to_torch(variables)
    for theirs, ours, layers in HEADS:
        if ours in params:
            parts[theirs] = heads.to_torch({"params": params.pop(ours)}, layers)
    if "text_tower" in params:
        parts[TEXT] = bert.to_torch({"params": params.pop("text_tower")})
    state = {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
    if "logit_scale" in params:
        state["logit_scale"] = np.asarray(params.pop("logit_scale"))
    if params:
        raise ValueError(f"a pretraining tree has no {sorted(params)}")
    if weights.ema_decay is not None:
        state["ema_decay"] = weights.ema_decay
    return state


def _split(state: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Tensors by module, the module's name taken off."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        if rest:
            parts.setdefault(module, {})[rest] = value
    return parts


def _expected_shapes(
    state: Mapping[str, np.ndarray],
    parts: Mapping[str, Mapping[str, np.ndarray]],
    backbone: str,
    architecture: dict[str, Any],
    sizes: BertConfig | None,
) -> dict[str, checks.Shapes]:
    """Shapes of each module's tensors, from the sizes of the networks and the width of the embeddings."""
    for scalar in SCALARS:
        if scalar in state:
            shape_of(state, scalar, rank=0)
    network = _named(STUDENT, checks.backbone_shapes, backbone, architecture)
    decoder, image, text = (layers for _, _, layers in HEADS)
    shapes = {STUDENT: network, TEACHER: network}
    shapes["reconstruction_head"] = checks.decoder_shapes(decoder, architecture["out_channels"])
    # The projections take the means of the dense features and of the caption's hidden states.
    if "image_proj" in parts:
        width = shape_of(state, f"image_proj.{image[0][1]}.weight", rank=2)[0]
        shapes["image_proj"] = checks.projection_shapes(image, architecture["out_channels"], width)
        if "text_proj" in parts and sizes is not None:
            shapes["text_proj"] = checks.projection_shapes(text, sizes.hidden_size, width)
    if sizes is not None:
        shapes[TEXT] = bert.expected_shapes(sizes)
    return shapes


def _batches_tracked(state: Mapping[str, np.ndarray]) -> int:
    counts = {int(value) for key, value in state.items() if key.endswith(".num_batches_tracked")}
    if len(counts) > 1:
        raise ValueError(f"num_batches_tracked differs between batch norms: {sorted(counts)}")
    return counts.pop() if counts else 0


def _named(module: str, convert: Any, *arguments: Any) -> Any:
    """Convert a module, and say which one it was where that fails."""
    try:
        return convert(*arguments)
    except ValueError as error:
        raise ValueError(f"{module}: {error}") from error
