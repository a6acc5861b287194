"""What surrounds pretraining: stores, split, captions, text tower, the weights to start from, optimiser groups."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError, check_step_count
from lsmfm_jax.data.loader import ValidationBatches, make_loader, validation_batches
from lsmfm_jax.data.splits import Split, describe_sides, load_split, split_by_volume
from lsmfm_jax.data.tokens import TokenTable, build_token_table
from lsmfm_jax.models.tensor_limits import check_map_sizes
from lsmfm_jax.models.text import trainable_text_rules
from lsmfm_jax.models.text_directory import LoadedText, load_text_tower
from lsmfm_jax.models.tiny_bert import build_tiny_bert
from lsmfm_jax.scale import RATIOS
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.tasks.inputs import configured_scale
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.pretrain_networks import build_networks
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.optim import Group, Rule
from lsmfm_jax.train.processes import wait_for_all
from lsmfm_jax.train.records import TEXT_FOLDER, damaged_records
from lsmfm_jax.train.resume import has_checkpoint
from lsmfm_jax.train.run import Setup
from lsmfm_jax.train.weights import Weights, read_weights

log = logging.getLogger(__name__)

# Attributes of an architecture that change what the network computes and the shape of no leaf.
SHAPELESS = ("name", "strides", "merging")


def pretraining_setup(config: ConfigDict, folder: pathlib.Path, *, print_line: Callable[[str], None] = print) -> Setup:
    """Opens the data and the text model of a pretraining run.

    Args:
        config: validated configuration of task `pretrain`.
        folder: run folder; the split goes to `split.json`, a tiny text model to `text/`.
        print_line: prints a line.

    Raises:
        ConfigError: no stores, stores that do not fit together, a batch that makes an array too large, or an
            `init_from` of another architecture or vocabulary.
        CheckpointError: `init_from` is no run, or damaged.
    """
    _check_sizes(config)
    weights = _start(config, folder)
    if not config.data.stores:
        raise ConfigError("data.stores: (); name at least one patch store made by `lsmfm data ingest`")
    stores = [PatchStore.open(path) for path in config.data.stores]
    _check_counts(config, stores)
    split = _split(config, stores, folder)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        split.save(folder / "split.json")
    print_line(
        f"{len(split.train)} patches of {len(split.train_volumes)} volumes to train, {len(split.validation)} of "
        f"{len(split.validation_volumes)} to validate"
    )
    volumes = [row.volume for store in stores for row in store.rows]
    for line in describe_sides([volumes[i] for i in split.train], [volumes[i] for i in split.validation]):
        print_line(line)
    captions = merge_captions(stores)
    text = _text(config, captions, folder, weights) if config.text.enabled else None
    table = build_token_table(captions, text.tokenizer, config.text.max_tokens) if text else None
    steps_per_epoch = max(1, len(split.train) // config.train.batch_size)
    check_step_count("warmup_epochs", config.warmup_epochs, steps_per_epoch)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    bert = text.config if text else None
    task = pretraining_task(config, bert, warmup_steps=warmup_steps)
    initial = [(f"text model {config.text.source}", {"text_tower": text.params}, {})] if text else []
    return Setup(
        task=task,
        rules=pretraining_rules(config, bert.num_layers if bert else 0, warmup_steps),
        batches=_train_batches(config, stores, split, table),
        validation=_validation(config, stores, split, table),
        steps_per_epoch=steps_per_epoch,
        monitor="loss",
        higher_is_better=False,
        teacher_decay=config.teacher.decay,
        teacher_updates_per_step=config.teacher.updates_per_step,
        initial=initial,
        start=weights,
        record=_record(config, stores, split, captions),
    )


def _check_sizes(config: ConfigDict) -> None:
    at_a_time = config.train.batch_size // config.train.accumulate_steps
    backbone, size = build_networks(config, None).backbone, tuple(config.data.input_size)
    try:
        check_map_sizes(backbone, size, batch=at_a_time, devices=jax.device_count())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_counts(config: ConfigDict, stores: Sequence[PatchStore]) -> None:
    """Refuses stores in which a scale of ratios would show most patches the same everywhere."""
    scale = configured_scale(config)
    if scale.name not in RATIOS:
        return
    rows = [row for store in stores for row in store.rows]
    unseen = [row for row in rows if row.minimum < row.maximum <= scale.offset_counts + 1.0]
    if 2 * len(unseen) > len(rows):
        first = unseen[0]
        raise ConfigError(
            f"data.stores: {len(unseen)} of {len(rows)} patches, such as {first.file} with values from "
            f"{first.minimum:g} to {first.maximum:g}, have none above {scale.offset_counts + 1:g}, where data.scale "
            f"{scale.name!r}, a logarithm of counts, sees no difference; ingest the counts as the microscope wrote "
            "them, or set data.scale to z_score (in pretraining and finetuning alike)"
        )


def _start(config: ConfigDict, folder: pathlib.Path) -> Weights | None:
    """The weights of `init_from`, with their teacher; None from scratch, and where the run has its own checkpoint."""
    if not config.init_from or has_checkpoint(folder):
        return None
    weights = read_weights(config.init_from, both=True)
    ours = _architecture(config)
    for key, theirs in weights.architecture.items():
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        # The other attributes show in the shapes of the leaves, each of which is accounted for.
        if key in SHAPELESS and ours.get(key) != theirs:
            path = "model.name" if key == "name" else f"model.{config.model.name}.{key}"
            raise ConfigError(
                f"{path}: {ours.get(key)!r}, and init_from {config.init_from} has {theirs!r}; set it to that, or start "
                "from other weights"
            )
    return weights


def pretraining_rules(config: ConfigDict, text_layers: int, warmup_steps: int) -> list[Rule]:
    """Optimiser groups of pretraining: everything trains from the start but the text tower."""
    base = Group("student and heads")
    rules = [Rule("^(backbone|light_decoder|image_projection)/", base), Rule("^logit_scale$", base)]
    if not config.text.enabled:
        return rules
    frozen = Group("text tower, frozen", frozen=True)
    late = Group("text, after the warm-up", thaw_step=warmup_steps)
    rules.append(Rule("^text_projection/", base if config.text.project_in_warmup else late))
    if config.text.train:
        top_k = min(config.text.top_k_layers, text_layers)
        # Mean pooling gives the pooler no gradient; decay alone would shrink it, which PyTorch does not do.
        still = Group("text pooler, no decay", thaw_step=warmup_steps, weight_decay=0.0)
        rules.append(Rule("^text_tower/pooler/", still))
        for pattern, trains in trainable_text_rules(text_layers, top_k):
            inside = pattern.removeprefix("(^|/)")
            rules.append(Rule(f"^text_tower/(.*/)?{inside}", late if trains else frozen))
    rules.append(Rule("^text_tower/", frozen))
    return rules


def merge_captions(stores: Sequence[PatchStore]) -> dict[str, list[str]]:
    """Caption key to its texts over all stores; a key that several stores have keeps the texts of each."""
    merged: dict[str, list[str]] = {}
    for store in stores:
        for key, texts in store.captions.items():
            known = merged.setdefault(key, [])
            known += [text for text in texts if text not in known]
    return merged


def _split(config: ConfigDict, stores: Sequence[PatchStore], folder: pathlib.Path) -> Split:
    rows = [row for store in stores for row in store.rows]
    earlier = pathlib.Path(config.data.split) if config.data.split else folder / "split.json"
    if config.data.split or earlier.exists():
        return load_split(earlier, rows, by_file=config.data.split_by == "file")
    return split_by_volume(
        rows,
        validation_frac=config.data.validation_frac,
        seed=config.seed,
        by_file=config.data.split_by == "file",
    )


def _text(
    config: ConfigDict, captions: dict[str, list[str]], folder: pathlib.Path, weights: Weights | None
) -> LoadedText:
    """The text model of `text.source`; a tiny one is that of the weights to start from, where they have one."""
    if not captions:
        raise ConfigError(
            "text.enabled: True, but no store has captions; ingest with --captions, or set text.enabled to False"
        )
    source = _text_folder(config, weights)
    if config.text.source != "tiny":
        text = load_text_tower(config.text.source)
        if source is not None:
            _check_same_text(config, text, source)
        return text
    target = folder / TEXT_FOLDER
    # With weights to start from the run has no checkpoint yet: what an earlier start left may have other words.
    if jax.process_index() == 0 and (source is not None or not (target / "config.json").exists()):
        # Under its name only when it is whole: a run killed here makes it anew.
        half = folder / f"{TEXT_FOLDER}.tmp"
        shutil.rmtree(half, ignore_errors=True)
        if source is None:
            texts = [text for key in sorted(captions) for text in captions[key]]
            build_tiny_bert(half, texts, max_positions=config.text.max_tokens, seed=config.seed)
        else:
            # The weights know the words by the numbers of their own vocabulary.
            shutil.copytree(source, half)
        shutil.rmtree(target, ignore_errors=True)
        half.rename(target)
    wait_for_all("text model written")
    return load_text_tower(target)


def _text_folder(config: ConfigDict, weights: Weights | None) -> pathlib.Path | None:
    """The text model beside the weights to start from, where they have a text tower and there is one."""
    source = pathlib.Path(config.init_from) / TEXT_FOLDER
    if weights is None or "text_tower" not in weights.params or not (source / "config.json").is_file():
        return None
    damaged = damaged_records(source.parent, kept_only=True)
    if damaged:
        raise CheckpointError(f"{'; '.join(damaged[:3])}. Restore the text model of init_from from a copy")
    return source


def _check_same_text(config: ConfigDict, text: LoadedText, source: pathlib.Path) -> None:
    other = load_text_tower(source)
    if other.config != text.config or other.tokenizer.get_vocab() != text.tokenizer.get_vocab():
        raise ConfigError(
            f"text.source: {config.text.source!r} has other sizes or another vocabulary than the text model of "
            f"init_from; set it to {str(source)!r}"
        )


def _loader_settings(config: ConfigDict) -> dict[str, Any]:
    return {
        "batch_size": config.train.batch_size,
        "patch_size": tuple(config.data.patch_size),
        "scale": configured_scale(config),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _train_batches(
    config: ConfigDict, stores: Sequence[PatchStore], split: Split, table: TokenTable | None
) -> Callable[[int], Any]:
    def batches(start_step: int) -> Any:
        return make_loader(
            stores,
            split.train,
            seed=config.seed,
            token_table=table,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            max_bad_frac=config.data.max_bad_frac,
            start_step=start_step,
            **_loader_settings(config),
        )

    return batches


def _validation(
    config: ConfigDict, stores: Sequence[PatchStore], split: Split, table: TokenTable | None
) -> ValidationBatches:
    return validation_batches(stores, split.validation, token_table=table, **_loader_settings(config))


def _architecture(config: ConfigDict) -> dict[str, Any]:
    model = config.model
    return {"name": model.name, "out_channels": model.out_channels, **model[model.name].to_dict()}


def _record(
    config: ConfigDict, stores: Sequence[PatchStore], split: Split, captions: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "task": config.task,
        "architecture": _architecture(config),
        "scaling": configured_scale(config).record(),
        "init_from": config.init_from,
        "stores": [str(store.path) for store in stores],
        "patches": {"train": len(split.train), "validation": len(split.validation)},
        "caption_keys": sorted(captions),
    }
