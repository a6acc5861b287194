"""The layouts of PyTorch files that are known here: Lightning checkpoints of the released code, and MONAI networks."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.convert import checks, pretraining, swin_unetr, text_folder, unet
from lsmfm_jax.convert.torch_files import TorchFile
from lsmfm_jax.models.text import BertConfig

MERGINGS = ("duplicated", "corrected")
# The key that shows where a MONAI network begins in a state dict, whatever module it was wrapped in.
_FIRST_KEY = re.compile(r"(.*?)(?:swinViT\.patch_embed\.proj\.|model\.0\.conv\.unit0\.conv\.)weight$")
# Our note in the files we export: what tensors do not tell.
NOTE = "lsmfm_jax"


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was read from a file.

    Attributes:
        architecture: `name` of the backbone and its attributes.
        params: parts by name, float32.
        batch_stats: statistics by part.
        teacher: `params` and `batch_stats` of the averaged backbone, or None.
        bert: sizes of the text tower, or None; `heads_known` says whether its attention heads are.
        facts: what export needs to write the same file again.
        tensors: how many tensors of the file went to each part.
    """

    architecture: dict[str, Any]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    teacher: dict[str, Any] | None
    bert: BertConfig | None
    heads_known: bool
    facts: dict[str, Any]
    tensors: dict[str, int]


def read_network(
    state: dict[str, np.ndarray], content: TorchFile, merging: str | None, text: text_folder.TextSource
) -> Imported:
    """The network in the tensors of a file, which are the same bit for bit when it is converted back.

    Args:
        state: tensors of the file by name, as float32.
        content: the file, for what stands beside the tensors.
        merging: patch merging of a SwinUNETR, one of `MERGINGS`; None: as noted in the file, or by its layout.
        text: where the facts of a text encoder come from.

    Raises:
        ValueError: none of the layouts, tensors that do not fit together, or a damaged note of ours.
    """
    if any(key.startswith(f"{pretraining.STUDENT}.") for key in state):
        return _read_lightning(state, content, merging, text)
    return _read_monai(state, content, merging)


def _read_lightning(
    state: dict[str, np.ndarray], content: TorchFile, merging: str | None, text: text_folder.TextSource
) -> Imported:
    note = _our_note(content)
    heads = text.heads(note.text_heads)
    # One head fits every width; the sizes do not depend on their number.
    weights = pretraining.from_lightning(state, text_heads=heads or 1, merging=merging or note.merging or "duplicated")
    bert = text.complete(weights.bert) if weights.bert is not None else None
    _same(state, pretraining.to_lightning(weights))
    architecture = {"name": weights.backbone, **weights.architecture}
    architecture = _told_by_hyper_parameters(architecture, content.metadata.get("hyper_parameters"))
    facts: dict[str, Any] = {"layout": "lightning", "batches_tracked": list(weights.batches_tracked)}
    if weights.ema_decay is not None:
        facts["ema_decay"] = float(weights.ema_decay)
    if bert is not None:
        facts["text"] = {**dataclasses.asdict(bert), "num_heads": heads}
    tensors: dict[str, int] = {}
    for key in state:
        part = key.split(".", 1)[0]
        tensors[part] = tensors.get(part, 0) + 1
    return Imported(
        architecture=architecture,
        params=weights.params,
        batch_stats=weights.batch_stats,
        teacher=weights.teacher,
        bert=bert,
        heads_known=heads is not None,
        facts=facts,
        tensors=tensors,
    )


def _read_monai(state: dict[str, np.ndarray], content: TorchFile, merging: str | None) -> Imported:
    found = next((match for key in state if (match := _FIRST_KEY.match(key))), None)
    if found is None:
        raise ValueError(
            f"its {len(state)} tensors are no network known here; they begin with "
            f"{', '.join(sorted({key.split('.')[0] for key in state})[:6])}. Known are a MONAI UNet (model.0.conv. "
            "...), a MONAI SwinUNETR (swinViT. ...) and pretraining checkpoints of the released code "
            "(student_encoder. ...)"
        )
    prefix = found[1]
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        raise ValueError(f"tensors beside the network {prefix!r}: {', '.join(others[:8])}; save that network alone")
    plain = {key.removeprefix(prefix): value for key, value in state.items()}
    note = _our_note(content)
    if "swinViT.patch_embed.proj.weight" in plain:
        sizes = {**swin_unetr.infer_swin_unetr(plain), "merging": merging or note.merging or "corrected"}
        checks.check_shapes(plain, checks.backbone_shapes("swin_unetr", sizes))
        variables = swin_unetr.from_torch(plain)
        architecture = {"name": "swin_unetr", **sizes}
        tracked, again = 0, swin_unetr.to_torch(variables)
    else:
        sizes = unet.infer_unet(plain)
        checks.check_shapes(plain, checks.backbone_shapes("unet", sizes))
        variables = unet.from_torch(plain)
        architecture = _with_strides({"name": "unet", **sizes}, note.strides)
        counts = {int(value) for key, value in plain.items() if key.endswith(".num_batches_tracked")}
        tracked = counts.pop() if len(counts) == 1 else 0
        again = unet.to_torch(variables, batches_tracked=tracked)
    _same(plain, again)
    return Imported(
        architecture=architecture,
        params={"backbone": variables["params"]},
        batch_stats={"backbone": variables["batch_stats"]},
        teacher=None,
        bert=None,
        heads_known=False,
        facts={"layout": "monai", "prefix": prefix, "batches_tracked": [tracked]},
        tensors={"backbone": len(plain)},
    )


def _same(state: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> None:
    """Every tensor, converted there and back, must be the same bytes."""
    differing = sorted(
        key
        for key in state.keys() | again.keys()
        if key not in state or key not in again or not _equal(state[key], again[key])
    )
    if differing:
        raise ValueError(f"tensors that do not survive the conversion: {', '.join(differing[:8])}")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


class _Note(NamedTuple):
    """What an export of ours wrote beside the tensors, as far as it is needed here."""

    merging: str | None = None
    strides: Any = None
    text_heads: int | None = None


def _our_note(content: TorchFile) -> _Note:
    """Our note in the hyper-parameters, or as text in safetensors."""
    for source in (content.metadata, content.metadata.get("hyper_parameters")):
        if isinstance(source, Mapping) and NOTE in source:
            note = source[NOTE]
            try:
                note = json.loads(note) if isinstance(note, str) else note
            except (ValueError, RecursionError) as error:
                raise ValueError(f"its note {NOTE!r} is damaged ({str(error)[:120]})") from error
            architecture = note.get("architecture", {}) if isinstance(note, Mapping) else None
            if not isinstance(architecture, Mapping):
                raise ValueError(f"its note {NOTE!r} is damaged: no dictionary of sizes")
            merging, heads = architecture.get("merging"), note.get("text_heads")
            if merging is not None and merging not in MERGINGS:
                raise ValueError(f"its note {NOTE!r} is damaged: merging is one of {', '.join(MERGINGS)}")
            if heads is not None and (type(heads) is not int or heads < 1):
                raise ValueError(f"its note {NOTE!r} is damaged: text_heads is a whole number of at least 1")
            return _Note(merging, architecture.get("strides"), heads)
    return _Note()


def _told_by_hyper_parameters(architecture: dict[str, Any], hyper: Any) -> dict[str, Any]:
    """Takes the strides, which tensors do not tell, from the released code's hyper-parameters."""
    model = hyper.get("model") if isinstance(hyper, Mapping) else None
    given = model.get("unet") if isinstance(model, Mapping) else None
    if architecture["name"] != "unet" or not isinstance(given, Mapping):
        return architecture
    return _with_strides(architecture, given.get("strides"))


def _with_strides(architecture: dict[str, Any], given: Any) -> dict[str, Any]:
    if not isinstance(given, list | tuple):
        return architecture
    inferred = architecture["strides"]
    if len(given) != len(inferred) or any(type(stride) is not int or not 1 <= stride <= 64 for stride in given):
        raise ValueError(f"the strides noted beside the tensors are not {len(inferred)} whole numbers from 1 to 64")
    if any((a == 1) != (b == 1) for a, b in zip(given, inferred, strict=True)):
        raise ValueError(f"strides {tuple(given)} beside the tensors, which are those of {inferred}")
    return {**architecture, "strides": tuple(given)}
