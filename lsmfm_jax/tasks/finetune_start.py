"""Where a finetuning run starts from: the architecture, the weights, and the groups in which they train."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError, check_divisible, check_step_count
from lsmfm_jax.models import BACKBONES, configured_architecture
from lsmfm_jax.tasks.finetune_tasks import finetune_task
from lsmfm_jax.tasks.finetuning import Network, backbone_of
from lsmfm_jax.train.low_rank import LowRank
from lsmfm_jax.train.optim import Group, Rule, leaf_path
from lsmfm_jax.train.resume import has_checkpoint
from lsmfm_jax.train.task import PyTree
from lsmfm_jax.train.weights import Weights, read_weights


class Start(NamedTuple):
    """The architecture, and the weights to start from (None: scratch, or the run's own checkpoint)."""

    architecture: dict[str, Any]
    weights: Weights | None


def read_start(config: ConfigDict, folder: pathlib.Path, *, print_line: Callable[[str], None]) -> Start:
    """The architecture is that of the run itself, else of `init_from`, else of the configuration's `model`.

    Raises:
        ConfigError: `init_from` holds another backbone than `model.name`, patches do not fit its strides, or the run
            began with other low-rank factors.
        CheckpointError: `init_from` is no run, or damaged.
    """
    model, weights = config.model, None
    if has_checkpoint(folder):
        record = json.loads((folder / "run.json").read_text())
        architecture = record["architecture"]
        _same_factors(config, record.get("lora"), folder)
    elif config.init_from:
        weights = read_weights(config.init_from, teacher=config.init_teacher)
        architecture = weights.architecture
        print_line(f"architecture of {weights.origin}: {_described(architecture)}; of model.* only dtype is used")
    else:
        architecture = configured_architecture(model.to_dict())
    if architecture["name"] != model.name:
        raise ConfigError(
            f"init_from: {config.init_from} holds a {architecture['name']}, and model.name is {model.name!r}; "
            f"use the recipe of the {architecture['name']}, or set model.name to it"
        )
    check_divisible("data.patch_size", config.data.patch_size, architecture=architecture)
    return Start(architecture, weights)


def _same_factors(config: ConfigDict, before: dict[str, Any] | None, folder: pathlib.Path) -> None:
    """Refuses to continue a run with factors of another rank or scaling than they were trained with."""
    low_rank = low_rank_of(config)
    now = None if low_rank is None else low_rank.record()
    if now != before:
        began = (
            "without low-rank factors" if before is None else f"with rank {before['rank']}, alpha {before['alpha']:g}"
        )
        raise ConfigError(
            f"encoder.lora_rank: {config.encoder.lora_rank}, encoder.lora_alpha: {config.encoder.lora_alpha:g}; the "
            f"run in {folder} began {began}: set them back, or use another --workdir"
        )


def low_rank_of(config: ConfigDict) -> LowRank | None:
    """The low-rank adaptation that is configured, or None; alpha 0 stands for the rank."""
    rank, alpha = config.encoder.lora_rank, config.encoder.lora_alpha
    if not rank:
        return None
    return LowRank(BACKBONES[config.model.name].low_rank, rank, float(alpha or rank))


def _described(architecture: dict[str, Any]) -> str:
    others = ", ".join(f"{key} {value}" for key, value in architecture.items() if key != "name")
    return f"{architecture['name']}, {others}"


def build_network(config: ConfigDict, architecture: dict[str, Any], *, steps_per_epoch: int) -> Network:
    """The backbone with its optimiser groups; `rules` of it are those of the whole run."""
    rules = finetuning_rules(config, architecture["name"], steps_per_epoch=steps_per_epoch)
    return Network(backbone_of(architecture, dtype=config.model.dtype, kernels=config.train.kernels), rules)


def finetuning_rules(config: ConfigDict, name: str, *, steps_per_epoch: int) -> list[Rule]:
    """Optimiser groups: encoder, bottleneck where there is one apart, decoder, head; all parameters are covered.

    The encoder is frozen as configured; from scratch it is frozen only if it is so to the end. Classification uses no
    decoder: it is kept as it is.

    With low-rank factors the encoder itself is frozen to the end, and they train from the first step at the head's
    rate: they begin at what was pretrained, and a step of Adam in B moves a kernel by about sqrt(rank / inputs) of the
    rate (at rank 8 and 36 to 1152 inputs 0.1 to 0.5 of it), which is what `encoder.rate_multiplier` is for.
    """
    settings, pretrained = config.encoder, bool(config.init_from)
    check_step_count("encoder.thaw_epochs", settings.thaw_epochs, steps_per_epoch)
    encoder = Group(
        "encoder",
        rate_multiplier=settings.rate_multiplier if pretrained else 1.0,
        thaw_step=settings.thaw_epochs * steps_per_epoch if pretrained else 0,
        frozen=settings.frozen or settings.lora_rank > 0,
    )
    rules = [Rule(_below_backbone(encoder_of(config, name)), encoder)]
    if BACKBONES[name].bottleneck is not None:
        rules.append(Rule(_below_backbone(BACKBONES[name].bottleneck), Group("bottleneck")))
    uses_decoder = finetune_task(config.task).uses_decoder
    rules.append(Rule("^backbone/", Group("decoder") if uses_decoder else Group("decoder, not used", frozen=True)))
    if settings.lora_rank:
        rules.append(Rule("^lora/", Group("encoder, low rank")))
    return [*rules, Rule("^head/", Group("head"))]


def encoder_of(config: ConfigDict, name: str) -> str:
    """Regular expression of what counts as the encoder in a run, below the backbone."""
    # A linear probe trains nothing below its linear layer, which reads the bottleneck's map.
    deepest_only = not finetune_task(config.task).uses_decoder
    bottleneck = (deepest_only and config.encoder.frozen) or config.encoder.bottleneck == "encoder"
    # Blocks for the decoder alone get no gradient without one; they must not decay either.
    return BACKBONES[name].encoder_pattern(with_bottleneck=bottleneck, deepest_only=deepest_only)


def _below_backbone(pattern: str) -> str:
    return pattern.replace("^", "^backbone/")


def initial_parts(
    config: ConfigDict,
    weights: Weights | None,
    init: Callable[[jax.Array], tuple[PyTree, PyTree]],
    *,
    head_record: dict[str, Any],
    print_line: Callable[[str], None],
) -> list[tuple[str, dict[str, PyTree], dict[str, PyTree]]]:
    """What replaces freshly drawn parameters, for `Setup.initial`.

    The backbone is taken, and the head too where the weights are of the same task with the same outputs.

    Args:
        config: of a finetuning task.
        weights: what `init_from` holds, or None.
        init: the task's.
        head_record: the run's own record of its head, compared with that of the weights.
        print_line: prints a line.
    """
    if weights is None:
        return []
    same_head = weights.record.get("task") == config.task and weights.record.get("head") == head_record
    parts = ("backbone", "head") if same_head else ("backbone",)
    unused = sorted(weights.params.keys() - set(parts))
    if unused:
        print_line(f"not used of {weights.origin}: {', '.join(unused)}")
    params = {name: weights.params[name] for name in parts}
    batch_stats = {"backbone": weights.batch_stats.get("backbone", {})}
    if config.get("reinit_top"):
        params["backbone"], batch_stats["backbone"] = _fresh_top(
            config, params, batch_stats, init, print_line=print_line
        )
    return [(weights.origin, params, batch_stats)]


def _fresh_top(
    config: ConfigDict,
    params: dict[str, PyTree],
    batch_stats: dict[str, PyTree],
    init: Callable[[jax.Array], tuple[PyTree, PyTree]],
    *,
    print_line: Callable[[str], None],
) -> tuple[PyTree, PyTree]:
    """The backbone's parameters and statistics, those of its last block drawn anew."""
    top = BACKBONES[config.model.name].top
    if top is None:
        raise ConfigError(f"reinit_top: a {config.model.name} declares no last block to draw anew; leave it False")

    def drawn(key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        return tuple(
            {
                leaf_path(path): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree["backbone"])
                if re.search(top, leaf_path(path))
            }
            for tree in init(key)
        )

    fresh = jax.device_get(jax.jit(drawn)(jax.random.key(config.seed)))
    print_line(f"reinit_top: {len(fresh[0])} parameters of {top} are drawn anew")
    return tuple(
        jax.tree_util.tree_map_with_path(lambda path, leaf, new=new: new.get(leaf_path(path), leaf), tree["backbone"])
        for tree, new in zip((params, batch_stats), fresh, strict=True)
    )
