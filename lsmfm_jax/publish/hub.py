"""A run as a folder for the Hugging Face hub: what prediction needs of it, and its card as README.md.

The folder is read like a run, on whatever machine it comes to. What only training needs (optimiser, logs, pictures)
stays behind, and of paths nothing but their last part goes along.
"""

import os
import pathlib
import re
import shlex
import shutil
from typing import Any

from lsmfm_jax.errors import os_reason
from lsmfm_jax.files import ForeignOutput, read_json, replace_file, replace_json, replace_text, replacing_folder
from lsmfm_jax.publish.card import card
from lsmfm_jax.publish.stated import NOTHING_STATED, PackageError, Stated, without_folders
from lsmfm_jax.train.checkpoint_checks import committed_steps, hash_files
from lsmfm_jax.train.records import TEXT_FOLDER
from lsmfm_jax.train.state import parameter_count
from lsmfm_jax.train.weights import GROUPS, Weights, read_weights, write_weights

# Of a text model: its sizes and its tokenizer, which embedding a text needs beside the trained weights.
_TEXT_FILES = ("config.json", "model.safetensors", "vocab.txt", "special_tokens_map.json", "added_tokens.json")


def package_for_hub(
    run: pathlib.Path, out: pathlib.Path, *, stated: Stated = NOTHING_STATED, license_file: pathlib.Path | None = None
) -> list[str]:
    """Writes the folder; `lsmfm_jax.load` and `--checkpoint` take it, with the predictions of the run bit for bit.

    Args:
        run: run folder, or one of `lsmfm calibrate` or `lsmfm convert import`.
        out: folder to make; nothing, or an empty folder, may be there. Its name is that of the model.
        stated: licence and authors, for the card.
        license_file: text of the licence, which goes to `LICENSE`.

    Returns:
        Lines that say what was written; the last one is the command that uploads it.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        PackageError: the licence's file or the run's text model cannot be read.
        ForeignOutput: something is in `out`.
    """
    refuse_filled(out)
    weights = read_weights(run)
    name = out.resolve().name
    text = card(run, stated=stated, packaged_as=name)
    terms = read_license(license_file)
    with replacing_folder(out) as folder:
        if weights.record.get("task") == "pretrain":
            _write_pretraining(run, weights, folder)
        # Last of what is a record, as it seals them.
        write_weights(
            folder,
            record=without_folders(weights.record),
            params=weights.params,
            batch_stats=weights.batch_stats,
        )
        _forget_place(folder / GROUPS[0])
        replace_text(folder / "README.md", text)
        if terms is not None:
            replace_file(folder / "LICENSE", terms)
    parameters = sum(parameter_count(part) for part in weights.params.values())
    lines = [
        f"{out}: {parameters:,} parameters of {weights.origin}, and README.md, the card: read it before you upload"
    ]
    if not stated.license:
        lines.append("no --license was given: the card says that none is stated, so others may look but not use it")
    repository = re.sub(r"[^\w.-]+|-{2,}|\.{2,}", "-", name, flags=re.ASCII).strip("-.")[:96] or "model"
    return [*lines, f"hf upload {repository} {shlex.quote(str(out))}"]


def refuse_filled(out: pathlib.Path) -> None:
    """Refuses a place where something is already, an empty folder excepted.

    Raises:
        ForeignOutput: something is there; the message names it.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    what = "a folder with files in it" if out.is_dir() else "a file"
    raise ForeignOutput(f"--out {out}: {what} is there already; name a folder that does not exist, or remove it")


def read_license(file: pathlib.Path | None) -> bytes | None:
    """The text of a licence; None where no file was named.

    Raises:
        PackageError: the file cannot be read.
    """
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise PackageError(f"--license-file {file}: cannot be read ({os_reason(error)}); name a text file") from error


def _forget_place(checkpoints: pathlib.Path) -> None:
    """Orbax notes in a checkpoint where on this machine it was written; the notes go, and the seal is made anew."""
    for step in committed_steps(checkpoints):
        for note in (checkpoints / str(step)).rglob("commit_success.txt"):
            replace_text(note, "Checkpoint commit was successful")
        replace_json(checkpoints / "seals" / f"{step}.json", hash_files(checkpoints / str(step)))


def _write_pretraining(run: pathlib.Path, weights: Weights, folder: pathlib.Path) -> None:
    """What embeddings need beside the weights: sizes of patches, and the text model."""
    config: dict[str, Any] = {}
    if (run / "config.json").is_file():
        config = read_json(run / "config.json")
        replace_json(folder / "config.json", without_folders(config))
    if "text_tower" not in weights.params:
        return
    source = run / TEXT_FOLDER
    if not (source / "config.json").is_file():
        named = str(config.get("text", {}).get("source", ""))
        source = pathlib.Path(named).expanduser()
        if not named or not (source / "config.json").is_file():
            if named.startswith(("/", "~", ".")):
                raise PackageError(
                    f"{run}: its text model, text.source {named}, is not there any more; bring that folder back, or "
                    f"copy it to {run / TEXT_FOLDER}"
                )
            return  # a model of the hub, which is fetched by its name wherever texts are embedded
    (folder / TEXT_FOLDER).mkdir()
    for file in sorted(source.iterdir()):
        if file.name in _TEXT_FILES or file.match("tokenizer*.json"):
            shutil.copyfile(file, folder / TEXT_FOLDER / file.name)
