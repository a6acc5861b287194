"""A model card of a run, in Markdown: what it is, what it learnt from, how it was judged, and how to load it.

Everything in it is read from the run folder, and from its data where that is still there. What neither says stands
as "not recorded"; nothing is guessed.
"""

import contextlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsmfm_jax import __version__
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_json, refuse_foreign, replace_text
from lsmfm_jax.scale import Scale, scale_of
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.train.state import parameter_count
from lsmfm_jax.train.tracking import read_metrics
from lsmfm_jax.train.weights import GROUPS, Weights, read_weights
from lsmfm_jax.volumes.names import describe_volumes

MARK = "<!-- made by lsmfm card -->"
UNKNOWN = "not recorded"
NOT_STATED = "not stated"
_TASKS = {
    "segment": "segmentation: a mask and a probability for each voxel",
    "classify": "classification: a probability for each class of a patch",
    "deblur": "deblurring: a sharper volume",
    "inpaint": "inpainting: hidden voxels restored from those around them",
    "pretrain": "pretraining: an encoder to finetune; with captions, vectors of volumes and texts in one space",
    "backbone": "a backbone to finetune, without a head",
}
_LOADING = {
    "segment": "mask = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).mask",
    "classify": "probabilities = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).probabilities",
    "deblur": "sharp = model.predict(volume, voxel_size_um=(4.0, 2.0, 2.0)).volume",
    "pretrain": "vector = model.embed(volume, voxel_size_um=(4.0, 2.0, 2.0))",
}
_LICENCE_NAMES = ("license", "licence", "copying")


def write_card(run: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the model card of a run to a file; an earlier card is replaced, any other file refused.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        ForeignOutput: `out` is there and no model card of this command.
    """
    refuse_foreign(out, made_by="card", mark=MARK.encode(), flag=False)
    replace_text(out, card(run))
    return out


def card(run: pathlib.Path) -> str:
    """The model card of a run folder, or of imported or calibrated weights, as Markdown.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        DamagedFile: another of its records cannot be read.
    """
    weights = read_weights(run)
    config, split = (_json(run / name) for name in ("config.json", "split.json"))
    task = str(weights.record.get("task", UNKNOWN))
    name = _line(run.resolve().name)
    sections = [
        f"{MARK}\n# {name}\n\nA run of lsmfm_jax for 3D light-sheet microscopy.",
        "## Model\n\n" + _table(_model(weights, config, task)),
        "## Data\n\n" + _table(_data(weights.record, config, split)),
        "## Scale and settings\n\n" + _table(_settings(weights.record, config)),
        "## Metrics\n\n" + _metrics(run, weights, split),
        "## Limits\n\n" + "".join(f"- {line}\n" for line in _limits(weights, split, task)).rstrip(),
        "## Versions\n\n" + _table(_versions(weights.record)),
        "## How to load it\n\n" + _loading(run, task),
    ]
    return "\n\n".join(sections) + "\n"


def _model(weights: Weights, config: Mapping[str, Any], task: str) -> list[tuple[str, Any]]:
    architecture = dict(weights.architecture)
    parts = {name: parameter_count(part) for name, part in sorted(weights.params.items())}
    record = weights.record
    imported = record.get("imported") or {}
    start = record.get("init_from", config.get("init_from"))
    origin = f"`{imported['file']}`, SHA-256 {imported['sha256']}, converted" if imported else None
    rows = [
        ("task", _TASKS.get(task, task)),
        ("architecture", architecture.pop("name")),
        *((key.replace("_", " "), value) for key, value in architecture.items()),
        ("parameters", f"{sum(parts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in parts.items())})"),
        # A calibrated copy has no configuration, and does not say from which step its weights are.
        ("weights", origin or (f"step {weights.step}" if config else None)),
        ("started from", "scratch" if start == "" else start),
    ]
    if record.get("network_cut_off"):
        rows.append(
            ("network's logit cut at", f"{record['network_cut_off']['logit']:+.3f}, fitted on training patches")
        )
    if record.get("lora"):
        rows.append(("adaptation", f"low rank {record['lora']['rank']} (LoRA), merged into a frozen encoder"))
    if record.get("voxel_classifier"):
        rows.append(("beside the network", "a logistic regression of single voxels"))
    if record.get("classes"):
        rows.append(("classes", record["classes"]))
    if "logit_shift" in record:
        shift = f"{record['logit_shift']:+.3f} added to every logit"
        rows.append(("calibrated", f"{shift}, by {', '.join(record.get('calibrated_on', ())) or UNKNOWN}"))
    return rows


def _data(record: Mapping[str, Any], config: Mapping[str, Any], split: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data = config.get("data", {})
    places = list(record.get("stores") or data.get("stores") or ([data["folder"]] if data.get("folder") else []))
    patches = record.get("patches") or {}
    counts = {side: n if isinstance(n, int) else len(n) for side, n in patches.items()}
    rows: list[tuple[str, Any]] = [("stores" if "stores" in data else "folder", places)]
    for side in ("train", "validation"):
        volumes = _volumes(split, side)
        told = describe_volumes(volumes) if volumes is not None else f"number of volumes {UNKNOWN}"
        rows.append((f"patches, {side}", f"{counts[side]} of {told}" if side in counts else None))
    stores = _stores(places)
    if "caption_keys" in record:
        keys = record["caption_keys"]
        text = config.get("text", {})
        used = "" if not text else f"; text model {text['source']}" if text.get("enabled") else "; not used in training"
        rows.append(("captions", f"{len(keys)} keys ({', '.join(keys)}){used}" if keys else "none"))
    sizes = Counter(row.voxel_size_um for store in stores for row in store.rows)
    told = [f"{' × '.join(f'{side:g}' for side in size)} µm ({n} patches)" for size, n in sizes.items() if size]
    rows.append(("voxel size, Z × Y × X", told))
    rows.append(("licence of the data", _licences(places) or NOT_STATED))
    return rows


def _settings(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data, train, optim = (config.get(name, {}) for name in ("data", "train", "optim"))
    rows = [
        ("intensities", _scale(scale_of(record["scaling"])) if "scaling" in record else None),
        ("window, voxels Z × Y × X", record.get("patch_size") or data.get("patch_size")),
    ]
    if "input_size" in data:
        rows.append(("resized to, voxels", data["input_size"]))
    if "labels" in record:
        labels = {name: values for name, values in record["labels"].items() if isinstance(values, list) and values}
        told = [f"{name} {', '.join(map(str, values))}" for name, values in labels.items()]
        rows.append(("label values", told or "all above 0 are foreground"))
    rows += [
        ("seed", config.get("seed")),
        ("batch size", train.get("batch_size")),
        ("most epochs", train.get("epochs")),
        ("learning rate", optim.get("learning_rate")),
        ("schedule", optim.get("schedule")),
        ("loss", ", ".join(f"{key} {value}" for key, value in config.get("loss", {}).items()) or None),
    ]
    return rows


def _scale(scale: Scale) -> str:
    if scale.name == "percentile":
        return f"percentiles {scale.percentiles[0]:g} and {scale.percentiles[1]:g} of the volume become 0 and 1"
    sigma = f"{scale.sigma_um:g} µm (else {scale.sigma_voxels:g} voxels)" if scale.sigma_um else ""
    told = {
        "log_ratio": "log ratio to the level of the tissue",
        "local": f"log ratio to the background around each voxel, sigma {sigma or f'{scale.sigma_voxels:g} voxels'}",
        "z_score": "standard deviations from the tissue's mean",
    }[scale.name]
    return f"{told}; camera offset {scale.offset_counts:g} counts"


def _metrics(run: pathlib.Path, weights: Weights, split: Mapping[str, Any]) -> str:
    lines = [line for line in read_metrics(run, "validation") if line["step"] == weights.step]
    figures = {name: value for name, value in (lines[-1] if lines else {}).items() if name not in ("step", "kind")}
    volumes = _volumes(split, "validation") or []
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


def _limits(weights: Weights, split: Mapping[str, Any], task: str) -> Iterable[str]:
    record = weights.record
    train, validation = (_volumes(split, side) for side in ("train", "validation"))
    if not validation:
        yield f"How good it is on patches that it did not train on is {UNKNOWN}."
    elif set(validation) & set(train or ()):
        yield "Validation patches are of volumes that it also trained on: on a new volume it may be worse."
    else:
        yield f"Judged on {len(set(validation))} volume(s); on other stains, microscopes and voxel sizes it was not."
    if validation and f"{GROUPS[0]} step" in weights.origin:
        yield "Its weights are the best on the validation patches of several states, so its figures there flatter it."
    if "scaling" in record:
        yield "It needs raw counts: intensities are scaled as said above when it is loaded."
    yield "Volumes are not resampled: voxels should be about as large as those it was trained on."
    if task == "segment" and "logit_shift" not in record:
        yield "A new brain may need another cut-off: `lsmfm calibrate` moves it by annotated patches."
    if task in ("pretrain", "backbone"):
        yield "It predicts nothing by itself: it is there to be finetuned."
    yield f"Licence of the weights: {NOT_STATED}."


def _versions(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    trained = record.get("versions") or {}
    return [
        ("trained with", ", ".join(f"{name} {version}" for name, version in trained.items()) or None),
        ("card written by", f"lsmfm_jax {__version__}"),
    ]


def _loading(run: pathlib.Path, task: str) -> str:
    if task == "inpaint":
        return f"`lsmfm predict --checkpoint {run} FOLDER --out OUT` restores what `<name>_mask` beside `<name>` marks."
    if task not in _LOADING:
        return f"Finetune it: `lsmfm finetune --config … --config.init_from={run}`"
    lines = ("import lsmfm_jax", f"model = lsmfm_jax.load({str(run)!r})", _LOADING[task])
    explained = "`volume` is an array (Z, Y, X) of raw counts; give its own voxel size, or leave it out."
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{explained}"


def _volumes(split: Mapping[str, Any], side: str) -> list[str] | None:
    """The volume of each patch of a side; None where the run has no split."""
    return [str(row["volume"]) for row in split[side]] if side in split else None


def _stores(places: Sequence[str]) -> list[PatchStore]:
    """Those of the stores that are still there and whole; a card can do without."""
    stores = []
    for place in places:
        with contextlib.suppress(LsmfmError):
            stores.append(PatchStore.open(place))
    return stores


def _licences(places: Sequence[str]) -> list[str]:
    """Licence files that lie with the data, each with its first line."""
    found = []
    for place in map(pathlib.Path, places):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.is_file() and file.name.lower().startswith(_LICENCE_NAMES):
                lines = file.read_text(errors="replace").splitlines()
                first = next((line.strip() for line in lines if line.strip()), "empty")
                found.append(f"{file}: {first[:200]}")
    return found


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
