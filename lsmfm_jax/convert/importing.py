"""Weights from PyTorch files to folders that finetuning, prediction and export take like a run of ours."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.convert import checks, pretraining, swin_unetr, text_folder, unet
from lsmfm_jax.convert.torch_files import TorchFile, read_torch_file
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import file_sha256, refuse_foreign, replacing_folder
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.train.weights import write_weights

MERGINGS = ("duplicated", "corrected")
# The key that shows where a MONAI network begins in a state dict, whatever module it was wrapped in.
_FIRST_KEY = re.compile(r"(.*?)(?:swinViT\.patch_embed\.proj\.|model\.0\.conv\.unit0\.conv\.)weight$")
# Our note in the files we export: what tensors do not tell.
NOTE = "lsmfm_jax"


class ConversionError(LsmfmError, ValueError):
    """Weights cannot be converted; the message names the file, the reason and what to do."""


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


def import_checkpoint(
    file: pathlib.Path,
    out: pathlib.Path,
    *,
    teacher: bool = False,
    merging: str | None = None,
    text_model: pathlib.Path | None = None,
    text_heads: int | None = None,
) -> list[str]:
    """Reads a PyTorch checkpoint and writes it as a folder that `read_weights` and `init_from` take like a run.

    Known are Lightning checkpoints of the released pretraining code, and state dicts of a MONAI UNet or
    SwinUNETR, wrapped in a module or not, as .ckpt, .pt, .pth or .safetensors. The architecture comes from the
    tensors and, for what they do not tell, from the hyper-parameters beside them. Every tensor is accounted
    for: the result is converted back and compared with the file bit for bit before anything is written.

    Args:
        file: the checkpoint; nothing in it is run.
        out: folder to make; it appears whole or not at all.
        teacher: take the teacher for the backbone in place of the student, which is then left out.
        merging: patch merging of a SwinUNETR, "duplicated" or "corrected"; None: duplicated for checkpoints of
            the released code, as MONAI 1.4.0 had it, corrected for others.
        text_model: Hugging Face directory of the text encoder, for its attention heads and its tokenizer;
            None: the directory of the name in the hyper-parameters, if it lies beside the file.
        text_heads: attention heads of the text encoder where there is no directory of it. The weights do not
            tell them; where nothing does, the text encoder is kept but cannot be used, and a line says so.

    Returns:
        Lines that tell what was read, the first one the coverage.

    Raises:
        ConversionError: unknown tensors, missing ones, ones that do not fit together, none of the networks known
            here, or a folder that holds something already.
        TorchFileError: the file is damaged or would need code to be read.
        TorchFileMissing: no such file.
    """
    _check_new(out)
    if text_model is not None and not (text_model / "config.json").is_file():
        raise ConversionError(f"--text-model {text_model}: no config.json there; name a Hugging Face BERT directory")
    if text_heads is not None and text_heads < 1:
        raise ConversionError(f"--text-heads {text_heads}: give the number of attention heads, at least 1")
    content = read_torch_file(file)
    has_text = any(key.startswith(f"{pretraining.TEXT}.") for key in content.state)
    if not has_text and (text_model or text_heads):
        option = "--text-heads" if text_heads else "--text-model"
        raise ConversionError(f"{option}: {file} holds no text encoder ({pretraining.TEXT}. ...); leave it out")
    text_model = text_model or text_folder.beside(file, content.metadata)
    text = text_folder.TextSource(text_model if has_text else None, text_heads)
    try:
        state, notes = checks.as_float32(content.state)
        found = _read(state, content, merging, text)
    except ValueError as error:
        raise ConversionError(f"{file}: {error}") from error
    if teacher:
        found = _with_teacher(found, file)
    record = {
        "task": "pretrain" if found.facts["layout"] == "lightning" else "backbone",
        "architecture": found.architecture,
        "imported": {"file": file.name, "sha256": file_sha256(file), **found.facts},
    }
    notes = [_coverage(found, state), _describe(found), *notes]
    with replacing_folder(out) as folder:
        if found.bert is not None:
            notes.append(_write_text(folder, out / text_folder.FOLDER, found, text.directory))
        write_weights(folder, record=record, params=found.params, batch_stats=found.batch_stats, teacher=found.teacher)
    return notes + _warnings(found, merging, teacher=teacher)


def _check_new(out: pathlib.Path) -> None:
    """The folder must be new, or empty: an import never adds to what somebody else put there."""
    if (out / "run.json").exists() or (out / "best").exists():
        raise ConversionError(f"{out}: holds a run already; name a new folder with --out")
    refuse_foreign(out, made_by="convert import", flag=False)


def _read(
    state: dict[str, np.ndarray], content: TorchFile, merging: str | None, text: text_folder.TextSource
) -> Imported:
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


def _write_text(half: pathlib.Path, final: pathlib.Path, found: Imported, text_model: pathlib.Path | None) -> str:
    if found.heads_known:
        tower = found.params["text_tower"]
        copied = text_folder.write_text_model(half / text_folder.FOLDER, tower, found.bert, tokenizer_from=text_model)
        return text_folder.describe(final, found.bert, has_tokenizer=copied)
    return (
        f"text tower {found.bert.hidden_size} wide: its weights do not tell its attention heads, so {final} is not "
        "written; import again with --text-model DIR, or --text-heads N (bert-base has 12, the MiniLM models 12), to "
        "use its text side (the image side needs nothing)"
    )


def _with_teacher(found: Imported, file: pathlib.Path) -> Imported:
    if found.teacher is None:
        raise ConversionError(f"{file}: it has no teacher; leave out --teacher")
    params = {**found.params, "backbone": found.teacher["params"]}
    stats = {**found.batch_stats, "backbone": found.teacher["batch_stats"]}
    return dataclasses.replace(
        found, params=params, batch_stats=stats, teacher=None, facts={**found.facts, "backbone": "teacher"}
    )


def _coverage(found: Imported, state: Mapping[str, np.ndarray]) -> str:
    count = sum(found.tensors.values())
    parts = ", ".join(f"{part} {number}" for part, number in sorted(found.tensors.items()))
    values = sum(value.size for value in state.values())
    return (
        f"coverage {100 * count / len(state):.2f} %: {count} of {len(state)} tensors, {values:,} values, the same "
        f"bit for bit when converted back ({parts})"
    )


def _describe(found: Imported) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.architecture.items())


def _warnings(found: Imported, merging: str | None, *, teacher: bool) -> list[str]:
    lines = []
    if found.architecture["name"] == "swin_unetr" and merging is None:
        how = found.architecture["merging"]
        lines.append(f"patch merging taken to be {how}, which the weights do not tell; --merging says otherwise")
    stats = found.batch_stats["backbone"] if teacher else (found.teacher or {}).get("batch_stats")
    if stats and _untouched(stats):
        lines.append(
            "the teacher's batch-norm statistics are those of a new network (mean 0, variance 1), as the released "
            "code leaves them: the student is the better backbone"
        )
    return lines


def _untouched(stats: Mapping[str, Any]) -> bool:
    flat = unet.flatten(stats)
    return all(np.all(leaf == float(path.endswith("var"))) for path, leaf in flat.items())
