"""What a run recorded of its network, data and settings, as rows of a name and a value; None: it is not recorded."""

import contextlib
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsmfm_jax import __version__
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.publish.stated import Stated
from lsmfm_jax.scale import Scale, scale_of
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.train.state import parameter_count
from lsmfm_jax.train.weights import Weights
from lsmfm_jax.volumes.names import describe_volumes

UNKNOWN = "not recorded"
NOT_STATED = "not stated"
Rows = list[tuple[str, Any]]
_TASKS = {
    "segment": "segmentation: a mask and a probability for each voxel",
    "classify": "classification: a probability for each class of a patch",
    "deblur": "deblurring: a sharper volume",
    "inpaint": "inpainting: hidden voxels restored from those around them",
    "pretrain": "pretraining: an encoder to finetune; with captions, vectors of volumes and texts in one space",
    "backbone": "a backbone to finetune, without a head",
}
_LICENCE_NAMES = ("license", "licence", "copying")


def model_rows(
    weights: Weights, config: Mapping[str, Any], task: str, *, stated: Stated, shown: Callable[[Any], str]
) -> Rows:
    """Of the network: task, architecture, parameters, where its weights are from, what prediction adds to it.

    Args:
        weights: of the run.
        config: its `config.json`; empty where it has none.
        task: of the run.
        stated: authors.
        shown: how a path is written.
    """
    architecture = dict(weights.architecture)
    parts = {name: parameter_count(part) for name, part in sorted(weights.params.items())}
    record = weights.record
    imported = record.get("imported") or {}
    start = record.get("init_from", config.get("init_from"))
    origin = f"`{shown(imported['file'])}`, SHA-256 {imported['sha256']}, converted" if imported else None
    rows = [
        *([("authors", ", ".join(stated.authors))] if stated.authors else []),
        ("task", _TASKS.get(task, task)),
        ("architecture", architecture.pop("name")),
        *((key.replace("_", " "), value) for key, value in architecture.items()),
        ("parameters", f"{sum(parts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in parts.items())})"),
        # A calibrated copy has no configuration, and does not say from which step its weights are.
        ("weights", origin or (f"step {weights.step}" if config else None)),
        ("started from", "scratch" if start == "" else start and shown(start)),
    ]
    if record.get("network_cut_off"):
        rows.append(
            ("network's logit cut at", f"{record['network_cut_off']['logit']:+.3f}, fitted on training patches")
        )
    if record.get("lora"):
        rows.append(("adaptation", f"low rank {record['lora']['rank']} (LoRA), merged into a frozen encoder"))
    if record.get("voxel_classifier"):
        rows.append(("beside the network", "a logistic regression of single voxels"))
    if record.get("network_left_out"):
        rows.append(("the network itself", "left out of predictions: validation patches are better without it"))
    if record.get("classes"):
        rows.append(("classes", record["classes"]))
    if "logit_shift" in record:
        shift = f"{record['logit_shift']:+.3f} added to every logit"
        rows.append(("calibrated", f"{shift}, by {', '.join(record.get('calibrated_on', ())) or UNKNOWN}"))
    return rows


def data_places(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Where the data lay."""
    data = config.get("data", {})
    return list(record.get("stores") or data.get("stores") or ([data["folder"]] if data.get("folder") else []))


def data_rows(
    record: Mapping[str, Any], config: Mapping[str, Any], split: Mapping[str, Any], *, shown: Callable[[Any], str]
) -> Rows:
    """Of the data: folders, patches and volumes of both sides, captions, voxel sizes, licence files beside them.

    Args:
        record: the run's `run.json`.
        config: its `config.json`; empty where it has none.
        split: its `split.json`, likewise.
        shown: how a path is written.
    """
    places = data_places(record, config)
    patches = record.get("patches") or {}
    counts = {side: n if isinstance(n, int) else len(n) for side, n in patches.items()}
    rows: Rows = [("stores" if "stores" in config.get("data", {}) else "folder", list(map(shown, places)))]
    for side in ("train", "validation"):
        volumes = volumes_of(split, side)
        told = describe_volumes(volumes) if volumes is not None else f"number of volumes {UNKNOWN}"
        rows.append((f"patches, {side}", f"{counts[side]} of {told}" if side in counts else None))
    stores = _stores(places)
    if "caption_keys" in record:
        keys = record["caption_keys"]
        used = _text_model(config.get("text", {}), shown)
        rows.append(("captions", f"{len(keys)} keys ({', '.join(keys)}){used}" if keys else "none"))
    sizes = Counter(row.voxel_size_um for store in stores for row in store.rows)
    told = [f"{' × '.join(f'{side:g}' for side in size)} µm ({n} patches)" for size, n in sizes.items() if size]
    rows.append(("voxel size, Z × Y × X", told))
    rows.append(("licence of the data", _licences(places, shown) or NOT_STATED))
    return rows


def settings_rows(record: Mapping[str, Any], config: Mapping[str, Any]) -> Rows:
    """Of the training: scale of intensities, window, label values, seed, schedule, loss; arguments as `data_rows`."""
    data, train, optim = (config.get(name, {}) for name in ("data", "train", "optim"))
    rows = [
        ("intensities", described_scale(scale_of(record["scaling"])) if "scaling" in record else None),
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


def described_scale(scale: Scale) -> str:
    """What becomes of raw counts, in words."""
    if scale.name == "percentile":
        return f"percentiles {scale.percentiles[0]:g} and {scale.percentiles[1]:g} of the volume become 0 and 1"
    sigma = f"{scale.sigma_um:g} µm (else {scale.sigma_voxels:g} voxels)" if scale.sigma_um else ""
    told = {
        "log_ratio": "log ratio to the level of the tissue",
        "local": f"log ratio to the background around each voxel, sigma {sigma or f'{scale.sigma_voxels:g} voxels'}",
        "z_score": "standard deviations from the tissue's mean",
    }[scale.name]
    return f"{told}; camera offset {scale.offset_counts:g} counts"


def version_rows(record: Mapping[str, Any]) -> Rows:
    """Of the software, when the run was trained and now."""
    trained = record.get("versions") or {}
    return [
        ("trained with", ", ".join(f"{name} {version}" for name, version in trained.items()) or None),
        ("card written by", f"lsmfm_jax {__version__}"),
    ]


def volumes_of(split: Mapping[str, Any], side: str) -> list[str] | None:
    """The volume of each patch of a side; None where the run has no split."""
    return [str(row["volume"]) for row in split[side]] if side in split else None


def _stores(places: Sequence[str]) -> list[PatchStore]:
    """Those of the stores that are still there and whole; a card can do without."""
    stores = []
    for place in places:
        with contextlib.suppress(LsmfmError):
            stores.append(PatchStore.open(place))
    return stores


def _licences(places: Sequence[str], shown: Callable[[Any], str]) -> list[str]:
    """Licence files that lie with the data, each with its first line."""
    found = []
    for place in map(pathlib.Path, places):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.is_file() and file.name.lower().startswith(_LICENCE_NAMES):
                lines = file.read_text(errors="replace").splitlines()
                first = next((line.strip() for line in lines if line.strip()), "empty")
                found.append(f"{pathlib.PurePath(shown(place), file.name)}: {first[:200]}")
    return found


def _text_model(text: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """What read the captions: a model of the hub by its whole name, a folder as others may know it."""
    if not text:
        return ""
    if not text.get("enabled"):
        return "; not used in training"
    source = text["source"]
    return f"; text model {shown(source) if source.startswith(('/', '~', '.')) else source}"
