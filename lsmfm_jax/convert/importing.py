"""Weights from PyTorch files to folders that finetuning, prediction and export take like a run of ours."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsmfm_jax.convert import checks, pretraining, text_folder, unet
from lsmfm_jax.convert.layouts import Imported, read_network
from lsmfm_jax.convert.torch_files import read_torch_file
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import file_sha256, refuse_foreign, replacing_folder
from lsmfm_jax.train.weights import write_weights


class ConversionError(LsmfmError, ValueError):
    """Weights cannot be converted; the message names the file, the reason and what to do."""


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
        found = read_network(state, content, merging, text)
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
