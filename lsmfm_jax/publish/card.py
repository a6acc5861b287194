"""A model card of a run, in Markdown: what it is, what it learnt from, how it was judged, and how to load it.

Everything in it is read from the run folder, and from its data where that is still there. What neither says stands
as "not recorded"; nothing is guessed. Its first lines are for the Hugging Face hub (`front_matter.py`).
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lsmfm_jax.files import read_json, refuse_foreign, replace_text
from lsmfm_jax.publish.facts import (
    NOT_STATED,
    UNKNOWN,
    data_places,
    data_rows,
    model_rows,
    settings_rows,
    version_rows,
    volumes_of,
)
from lsmfm_jax.publish.front_matter import front_matter
from lsmfm_jax.publish.stated import NOTHING_STATED, Stated, last_part
from lsmfm_jax.train.tracking import read_metrics
from lsmfm_jax.train.weights import GROUPS, Weights, read_weights
from lsmfm_jax.volumes.names import describe_volumes

MARK = "<!-- made by lsmfm card -->"
PAPER = (
    "Scheinfeld et al., A Multimodal 3D Foundation Model for Light Sheet Fluorescence Microscopy Enables Few-Shot "
    "Segmentation, Classification, and Deblurring, arXiv:2605.26026, 2026"
)
PAPER_URL = "https://arxiv.org/abs/2605.26026"
_LOADING = {
    "segment": "mask = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).mask",
    "classify": "probabilities = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).probabilities",
    "deblur": "sharp = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).volume",
    "pretrain": "vector = model.embed(volume, voxel_size_um=(4.0, 2.0, 2.0))",
}


def write_card(run: pathlib.Path, out: pathlib.Path, *, stated: Stated = NOTHING_STATED) -> pathlib.Path:
    """Writes the model card of a run to a file; an earlier card is replaced, any other file refused.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        ForeignOutput: `out` is there and no model card of this command.
    """
    refuse_foreign(out, made_by="card", mark=MARK.encode(), flag=False)
    replace_text(out, card(run, stated=stated))
    return out


def card(run: pathlib.Path, *, stated: Stated = NOTHING_STATED, packaged_as: str = "") -> str:
    """The model card of a run folder, or of imported or calibrated weights, as Markdown.

    Args:
        run: its folder.
        stated: licence and authors, which no run records.
        packaged_as: name of the folder that is handed on with this card, which then names that folder where it says
            how to load the model, and of data the last parts of paths alone.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        DamagedFile: another of its records cannot be read.
    """
    weights = read_weights(run)
    task = str(weights.record.get("task", UNKNOWN))
    name = _line(packaged_as or run.resolve().name)
    shown = last_part if packaged_as else str
    places = data_places(weights.record, _json(run / "config.json"))
    # Before all else, as the hub wants it.
    top = front_matter(
        name=name,
        task=task,
        architecture=weights.architecture["name"],
        figures=_figures(run, weights),
        data=", ".join(map(last_part, places)) or name,
        stated=stated,
        mark=MARK,
    )
    described = sections(run, weights, stated=stated, shown=shown)
    parts = [
        f"{top}\n# {name}\n\nA run of lsmfm_jax for 3D light-sheet microscopy.",
        *(f"## {title}\n\n{text}" for title, text in described.items()),
        "## How to load it\n\n" + _loading(packaged_as or str(run), task, fetched=bool(packaged_as)),
        f"## Paper\n\nPlease cite [{PAPER}]({PAPER_URL}), whose method this is.",
    ]
    return "\n\n".join(parts) + "\n"


def sections(
    run: pathlib.Path, weights: Weights, *, stated: Stated, shown: Callable[[Any], str], alone: bool = False
) -> dict[str, str]:
    """What a card says of a run, by the titles of its sections.

    Args:
        run: its folder.
        weights: what was read from there.
        stated: licence and authors.
        shown: how a path is written.
        alone: the network goes without this package, so nothing is said of what the package does.
    """
    config, split = (_json(run / name) for name in ("config.json", "split.json"))
    task = str(weights.record.get("task", UNKNOWN))
    limits = _limits(weights, split, task, stated, alone=alone)
    return {
        "Model": _table(model_rows(weights, config, task, stated=stated, shown=shown)),
        "Data": _table(data_rows(weights.record, config, split, shown=shown)),
        "Scale and settings": _table(settings_rows(weights.record, config)),
        "Metrics": _metrics(run, weights, split),
        "Limits": "".join(f"- {line}\n" for line in limits).rstrip(),
        "Versions": _table(version_rows(weights.record)),
    }


def _figures(run: pathlib.Path, weights: Weights) -> dict[str, Any]:
    """What the validation of these very weights gave, by name; empty where it is not recorded."""
    lines = [line for line in read_metrics(run, "validation") if line["step"] == weights.step]
    return {name: value for name, value in (lines[-1] if lines else {}).items() if name not in ("step", "kind")}


def _metrics(run: pathlib.Path, weights: Weights, split: Mapping[str, Any]) -> str:
    figures = _figures(run, weights)
    volumes = volumes_of(split, "validation") or []
    head = f"On the validation patches ({describe_volumes(volumes)}), at step {weights.step}, without intervals:\n\n"
    parts = [head + _table([(name.replace("_", " "), _figure(value)) for name, value in figures.items()])]
    if not figures:
        parts = [f"Validation of these weights: {UNKNOWN}."]
    compared = _json(run / "comparison.json")
    if compared:
        rows = [("method", "foreground Dice", "this run is ahead by", "95 % interval over volumes")]
        for name, row in compared["methods"].items():
            limits = row["interval_95"]
            interval = f"[{limits[0]:.3f}, {limits[1]:.3f}]" if limits else "too few volumes for one"
            own = name == "this run"
            rows.append(
                (name, _figure(row["dice"]), *(("", "") if own else (_figure(row["run_is_ahead_by"]), interval)))
            )
        parts.append("Beside methods without a network, on the same patches:\n\n" + _grid(rows))
        parts.append(f"Verdict of the run: {_line(compared['verdict'])}.")
    return "\n\n".join(parts)


def _limits(weights: Weights, split: Mapping[str, Any], task: str, stated: Stated, *, alone: bool) -> Iterable[str]:
    record = weights.record
    train, validation = (volumes_of(split, side) for side in ("train", "validation"))
    if not validation:
        yield f"How good it is on patches that it did not train on is {UNKNOWN}."
    elif set(validation) & set(train or ()):
        yield "Validation patches are of volumes that it also trained on: on a new volume it may be worse."
    else:
        yield f"Judged on {len(set(validation))} volume(s); on other stains, microscopes and voxel sizes it was not."
    if validation and f"{GROUPS[0]} step" in weights.origin:
        yield "Its weights are the best on the validation patches of several states, so its figures there flatter it."
    if "scaling" in record and not alone:
        yield "It needs raw counts: intensities are scaled as said above when it is loaded."
    yield "Volumes are not resampled: voxels should be about as large as those it was trained on."
    if task == "segment" and "logit_shift" not in record and not alone:
        yield "A new brain may need another cut-off: `lsmfm calibrate` moves it by annotated patches."
    if task in ("pretrain", "backbone"):
        yield "It predicts nothing by itself: it is there to be finetuned."
    yield f"Licence of the weights: {stated.license or NOT_STATED}."


def _loading(run: str, task: str, *, fetched: bool = False) -> str:
    """How to use the weights in a folder.

    Args:
        run: the folder.
        task: of the run.
        fetched: say as well how the folder gets from the hub to a machine.
    """
    if task == "inpaint":
        told = f"`lsmfm predict --checkpoint {run} FOLDER --out OUT` restores what `<name>_mask` beside `<name>` marks."
    elif task not in _LOADING:
        told = f"Finetune it: `lsmfm finetune --config … --config.init_from={run}`"
    else:
        lines = ("import lsmfm_jax", f"model = lsmfm_jax.load({run!r})", _LOADING[task])
        told = "```python\n" + "\n".join(lines) + "\n```\n\n"
        told += "`volume` is an array (Z, Y, X) of raw counts; give its own voxel size, or leave it out."
    if not fetched:
        return told
    return f"`{run}` is the folder of this card; from the hub: `hf download OWNER/{run} --local-dir {run}`.\n\n{told}"


def _json(file: pathlib.Path) -> dict[str, Any]:
    """A record of the run; empty where it has none."""
    return read_json(file) if file.is_file() else {}


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return _grid([("", ""), *((name, _value(value)) for name, value in rows)])


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_line, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def _value(value: Any) -> str:
    if value is None or value == "" or value == []:
        return UNKNOWN
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _line(text: Any) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
