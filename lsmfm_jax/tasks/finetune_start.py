"""Where a finetuning run starts from: the architecture, the weights, and the groups in which they train."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError, check_divisible
from lsmfm_jax.tasks.finetuning import SWIN_BOTTLENECK, TOPS, Network, backbone_of, encoder_pattern
from lsmfm_jax.train.optim import Group, Rule, leaf_path
from lsmfm_jax.train.run import has_checkpoint
from lsmfm_jax.train.task import PyTree
from lsmfm_jax.train.weights import Weights, read_weights


class Start(NamedTuple):
    """The architecture, and the weights to start from (None: scratch, or the run's own checkpoint)."""

    architecture: dict[str, Any]
    weights: Weights | None


def read_start(config: ConfigDict, folder: pathlib.Path, *, say: Callable[[str], None]) -> Start:
    """The architecture is that of the run itself, else of `init_from`, else of the configuration's `model`.

    Raises:
        ConfigError: `init_from` holds another backbone than `model.name`, or patches do not fit its strides.
        CheckpointError: `init_from` is no run, or damaged.
    """
    model, weights = config.model, None
    if has_checkpoint(folder):
        architecture = json.loads((folder / "run.json").read_text())["architecture"]
    elif config.init_from:
        weights = read_weights(config.init_from, teacher=config.init_teacher)
        architecture = weights.architecture
        say(f"architecture of {weights.origin}: {_described(architecture)}; of model.* only dtype is used")
    else:
        dense = {} if model.name == "resnet18" else {"out_channels": model.out_channels}
        architecture = {"name": model.name, **dense, **model[model.name].to_dict()}
    if architecture["name"] != model.name:
        raise ConfigError(
            f"init_from: {config.init_from} holds a {architecture['name']}, and model.name is {model.name!r}; "
            f"use the recipe of the {architecture['name']}, or set model.name to it"
        )
    strides = architecture.get("strides", ())
    check_divisible("data.patch_size", config.data.patch_size, name=architecture["name"], strides=strides)
    return Start(architecture, weights)


def _described(architecture: dict[str, Any]) -> str:
    others = ", ".join(f"{key} {value}" for key, value in architecture.items() if key != "name")
    return f"{architecture['name']}, {others}"


def build_network(config: ConfigDict, architecture: dict[str, Any], *, steps_per_epoch: int) -> Network:
    """The backbone, its encoder resting as configured; from scratch it rests only if it is frozen to the end."""
    return Network(
        backbone_of(architecture, dtype=config.model.dtype),
        encoder=_encoder(config, architecture["name"]),
        frozen=config.encoder.frozen,
        thaw_step=config.encoder.thaw_epochs * steps_per_epoch if config.init_from else 0,
    )


def finetuning_rules(config: ConfigDict, name: str, *, network: Network) -> list[Rule]:
    """Optimiser groups: encoder, the SwinUNETR's bottleneck, decoder, head; all parameters are covered.

    Classification uses no decoder: it is kept as it is.
    """
    multiplier = config.encoder.rate_multiplier if config.init_from else 1.0
    encoder = Group("encoder", rate_multiplier=multiplier, thaw_step=network.thaw_step, frozen=config.encoder.frozen)
    rules = [Rule(_below_backbone(network.encoder), encoder)]
    if name == "swin_unetr":
        rules.append(Rule(_below_backbone(SWIN_BOTTLENECK), Group("bottleneck")))
    if config.task == "classify":
        rules.append(Rule("^backbone/", Group("decoder, not used", frozen=True)))
    else:
        rules.append(Rule("^backbone/", Group("decoder")))
    return [*rules, Rule("^head/", Group("head"))]


def _encoder(config: ConfigDict, name: str) -> str:
    # A linear probe trains nothing below its linear layer, and classification reads the bottleneck's map.
    classify = config.task == "classify"
    bottleneck = (classify and config.encoder.frozen) or config.encoder.bottleneck == "encoder"
    # What classification has no use for gets no gradient; it must not decay either.
    return encoder_pattern(name, with_bottleneck=bottleneck, with_skips=not classify)


def _below_backbone(pattern: str) -> str:
    return pattern.replace("^", "^backbone/")


def initial_parts(
    config: ConfigDict,
    weights: Weights | None,
    init: Callable[[jax.Array], tuple[PyTree, PyTree]],
    *,
    head_record: dict[str, Any],
    say: Callable[[str], None],
) -> list[tuple[str, dict[str, PyTree], dict[str, PyTree]]]:
    """What replaces freshly drawn parameters, for `Setup.initial`.

    The backbone is taken, and the head too where the weights are of the same task with the same outputs.

    Args:
        config: of a finetuning task.
        weights: what `init_from` holds, or None.
        init: the task's.
        head_record: the run's own record of its head, compared with that of the weights.
        say: prints a line.
    """
    if weights is None:
        return []
    same_head = weights.record.get("task") == config.task and weights.record.get("head") == head_record
    parts = ("backbone", "head") if same_head else ("backbone",)
    unused = sorted(weights.params.keys() - set(parts))
    if unused:
        say(f"not used of {weights.origin}: {', '.join(unused)}")
    params = {name: weights.params[name] for name in parts}
    batch_stats = {"backbone": weights.batch_stats.get("backbone", {})}
    if config.get("reinit_top"):
        params["backbone"], batch_stats["backbone"] = _fresh_top(config, params, batch_stats, init, say=say)
    return [(weights.origin, params, batch_stats)]


def _fresh_top(
    config: ConfigDict,
    params: dict[str, PyTree],
    batch_stats: dict[str, PyTree],
    init: Callable[[jax.Array], tuple[PyTree, PyTree]],
    *,
    say: Callable[[str], None],
) -> tuple[PyTree, PyTree]:
    """The backbone's parameters and statistics, those of its last block drawn anew."""
    top = TOPS[config.model.name]

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
    say(f"reinit_top: {len(fresh[0])} parameters of {top} are drawn anew")
    return tuple(
        jax.tree_util.tree_map_with_path(lambda path, leaf, new=new: new.get(leaf_path(path), leaf), tree["backbone"])
        for tree, new in zip((params, batch_stats), fresh, strict=True)
    )
