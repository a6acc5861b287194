"""Weights of a run of ours to files that PyTorch loads."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsmfm_jax import files
from lsmfm_jax.convert import pretraining, resnet, swin_unetr, text_folder, unet
from lsmfm_jax.convert.importing import ConversionError
from lsmfm_jax.convert.layouts import NOTE
from lsmfm_jax.convert.torch_files import torch_file_bytes
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.models.text_directory import read_bert_config
from lsmfm_jax.train.weights import Weights, read_weights

LAYOUTS = ("monai", "lightning")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
# Tasks whose head is a linear map of each voxel's features, and what comes out of it.
VOXELWISE = {
    "segment": "the logit of the foreground",
    "deblur": "the residual, in the targets' range",
    "inpaint": "the residual, to be added to a smooth fill of the hidden voxels",
}
# Of a regression of voxels, in the runs that did not record them yet.
SIGMAS = (1.0, 2.0, 4.0)
# The version that Lightning's loader asks of a checkpoint; any of the 2 series reads it.
_LIGHTNING_VERSION = "2.0.0"


def export_run(run: pathlib.Path, out: pathlib.Path, *, layout: str = "monai", teacher: bool = False) -> list[str]:
    """Writes the weights of a run, or of an imported checkpoint, as a PyTorch file.

    "monai" is the state dict of the backbone alone, which `monai.networks.nets.UNet` or `SwinUNETR` loads
    with `strict=True`. "lightning" holds all of a pretraining run under the released code's names: student,
    teacher, heads and text. The head of a finetuned run: where it is a linear map of each voxel's features, a
    SwinUNETR takes it into its own last convolution; for the others it is a file of its own beside `out`.

    Args:
        run: run folder, or a folder made by `lsmfm convert import`.
        out: file to write; .safetensors, or .pt, .pth or .ckpt as `torch.save` writes them.
        layout: "monai" or "lightning".
        teacher: export the averaged backbone in place of the student's; the Lightning layout has both.

    Returns:
        Lines that tell what was written and how PyTorch builds the network for it.

    Raises:
        ConversionError: an unknown suffix, a file that is there, or a run that the layout cannot hold.
        CheckpointError: the run has no whole checkpoint, or no teacher.
    """
    if out.suffix not in SUFFIXES:
        raise ConversionError(f"--out {out}: end it in one of {', '.join(SUFFIXES)}")
    if layout not in LAYOUTS:
        raise ConversionError(f"--layout {layout}: use one of {', '.join(LAYOUTS)}")
    if layout == "lightning" and teacher:
        raise ConversionError("--teacher: the Lightning layout holds student and teacher; leave it out")
    weights = read_weights(run, teacher=teacher)
    name = weights.architecture["name"]
    if name not in BACKBONES:
        raise ConversionError(f"{run}: a {name!r} has no export; exported are {', '.join(BACKBONES)}")
    if layout == "lightning":
        states = {out: _lightning_state(run, weights)}
        lines = []
    else:
        parts, lines = monai_states(weights)
        states = {_beside(out, part): state for part, state in parts.items()}
    for file in states:
        if os.path.lexists(file):
            raise ConversionError(f"{file}: is there already; remove it or name another file with --out")
    _write_all(
        {
            file: torch_file_bytes(file.suffix, state, metadata=_metadata(run, weights, file, layout))
            for file, state in states.items()
        }
    )
    for file, state in states.items():
        values = sum(value.size for value in state.values())
        lines.insert(0, f"{file}: {len(state)} tensors, {values:,} values, from {weights.origin}")
    return [*lines, *_instructions(weights)]


def _write_all(contents: Mapping[pathlib.Path, bytes]) -> None:
    """All of the files, or none."""
    written: list[pathlib.Path] = []
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            files.replace_file(file, content)
            written.append(file)
    except OSError as error:
        for made in written:
            made.unlink(missing_ok=True)
        reason = error.strerror or error
        raise ConversionError(f"--out {file}: cannot be written ({reason}); nothing was left there") from error


def _beside(out: pathlib.Path, part: str) -> pathlib.Path:
    return out if part == "backbone" else out.with_name(f"{out.stem}_{part}{out.suffix}")


def monai_states(weights: Weights) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """The backbone's state dict, a head's (`head`) where the backbone cannot take it in, and what to know of them."""
    params = weights.params["backbone"]
    if weights.architecture["name"] == "resnet18":
        whole = {
            "params": {**params, "classifier": weights.params["head"]},
            "batch_stats": weights.batch_stats["backbone"],
        }
        return {"backbone": resnet.to_torch(whole)}, []
    variables = {"params": params, "batch_stats": weights.batch_stats.get("backbone", {})}
    states: dict[str, dict[str, np.ndarray]] = {}
    lines = []
    head, voxelwise = _head(weights), weights.record["task"] in VOXELWISE
    lines += beside_the_network(weights.record)
    if head is not None and _takes_in_head(weights):
        variables["params"] = {**params, "out": _composed(params["out"], head)}
        lines.append(f"composed with the head into one convolution: the output is {VOXELWISE[weights.record['task']]}")
    elif head is not None:
        states["head"] = _head_state(head, voxelwise=voxelwise)
        outputs, inputs = states["head"]["weight"].shape[:2]
        layer = f"torch.nn.Conv3d({inputs}, {outputs}, 1)" if voxelwise else f"torch.nn.Linear({inputs}, {outputs})"
        on = "the network's output" if voxelwise else "the mean over voxels of the encoder's deepest map"
        lines.append(f"the head is a file of its own: {layer} on {on}")
    if weights.architecture["name"] == "swin_unetr":
        states["backbone"] = swin_unetr.to_torch(variables)
    else:
        states["backbone"] = unet.to_torch(variables, batches_tracked=_tracked(weights)[0])
    return states, lines


def beside_the_network(record: Mapping[str, Any]) -> list[str]:
    """What a segmentation run adds to its network's logit and no PyTorch network has; `_head` has the rest."""
    voxels = record.get("voxel_classifier")
    if not voxels:
        return []
    shift, sigmas = float(record.get("logit_shift", 0.0)), ", ".join(f"{one:g}" for one in voxels.get("sigmas", SIGMAS))
    first, *others = (f"{weight:.6g}" for weight in voxels["weights"])
    network = f"{voxels['network_weight']:g} times the network's logit + "
    if "network_left_out" in record:
        network = "nothing of the network, which made the validation patches worse, but "
    return [
        f"NOT in the file: the run's regression of voxels. lsmfm predict takes {network}{first} times the scaled voxel "
        f"+ {', '.join(others)} times its Gaussian means (sigma {sigmas} voxels) + {voxels['bias'] + shift:.6g}, and "
        "calls foreground what is above 0"
    ]


def _takes_in_head(weights: Weights) -> bool:
    """Whether the backbone ends in a linear layer of its own, and the head is one more on each voxel."""
    voxelwise = weights.record["task"] in VOXELWISE
    return "head" in weights.params and voxelwise and weights.architecture["name"] == "swin_unetr"


def _head(weights: Weights) -> dict[str, np.ndarray] | None:
    """The head of a finetuned run: a kernel (inputs, outputs) and a bias, which takes in where its logit is cut."""
    head = weights.params.get("head")
    if head is None:
        return None
    leaves = {name: np.asarray(leaf) for name, leaf in head.items()}
    leaves["bias"] = leaves["bias"] - np.float32(weights.record.get("network_cut_off", {}).get("logit", 0.0))
    if not weights.record.get("voxel_classifier"):
        leaves["bias"] = leaves["bias"] + np.float32(weights.record.get("logit_shift", 0.0))
    return leaves


def _composed(out: Mapping[str, Any], head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Two linear maps in a row are one; in double precision, so that only the last rounding is new.
    wide = head["kernel"].astype(np.float64)
    return {
        "kernel": (np.asarray(out["kernel"], np.float64) @ wide).astype(np.float32),
        "bias": (np.asarray(out["bias"], np.float64) @ wide + head["bias"]).astype(np.float32),
    }


def _head_state(head: Mapping[str, np.ndarray], *, voxelwise: bool) -> dict[str, np.ndarray]:
    weight = np.ascontiguousarray(head["kernel"].T)
    return {"weight": weight.reshape(*weight.shape, 1, 1, 1) if voxelwise else weight, "bias": head["bias"]}


def _lightning_state(run: pathlib.Path, weights: Weights) -> dict[str, np.ndarray]:
    if weights.record.get("task") != "pretrain":
        raise ConversionError(
            f"{run}: the Lightning layout is that of pretraining, and this is {weights.record.get('task')!r}; "
            "export it with --layout monai"
        )
    averaged = read_weights(run, teacher=True)
    decay = weights.record.get("imported", {}).get("ema_decay", _configured_decay(run))
    try:
        return pretraining.to_lightning(
            pretraining.Pretraining(
                backbone=weights.architecture["name"],
                architecture=weights.architecture,
                params=weights.params,
                batch_stats=weights.batch_stats,
                teacher={
                    "params": averaged.params["backbone"],
                    "batch_stats": averaged.batch_stats.get("backbone", {}),
                },
                bert=None,
                ema_decay=None if decay is None else np.asarray(decay, np.float32),
                batches_tracked=_tracked(weights),
            )
        )
    except (ValueError, KeyError) as error:
        raise ConversionError(f"{run}: {error}") from error


def _tracked(weights: Weights) -> tuple[int, int]:
    counts = weights.record.get("imported", {}).get("batches_tracked", [0, 0])
    return counts[0], counts[-1]


def _configured_decay(run: pathlib.Path) -> float | None:
    file = run / "config.json"
    if not file.exists():
        return None
    return json.loads(file.read_text()).get("teacher", {}).get("decay")


def _metadata(run: pathlib.Path, weights: Weights, file: pathlib.Path, layout: str) -> dict[str, Any] | None:
    architecture = {
        key: list(value) if isinstance(value, tuple) else value for key, value in weights.architecture.items()
    }
    note: dict[str, Any] = {"architecture": architecture}
    if (run / text_folder.FOLDER / "config.json").is_file():
        note["text_heads"] = read_bert_config(run / text_folder.FOLDER).num_heads
    if file.suffix == ".safetensors":
        return {"format": "pt", "layout": layout, NOTE: json.dumps(note)}
    if layout == "monai":
        return None  # a plain state dict has no place for more
    sizes = {key: value for key, value in architecture.items() if key not in ("name", "out_channels")}
    key = "unet" if architecture["name"] == "unet" else "swinunetr"
    model = {
        "use_text": "text_tower" in weights.params,
        "embed_dim": architecture["out_channels"],
        key: sizes,
    }
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": _LIGHTNING_VERSION,
        "hyper_parameters": {"model": model, NOTE: note},
    }


def _instructions(weights: Weights) -> list[str]:
    """How MONAI builds the network, as a line of Python."""
    sizes = weights.architecture
    if sizes["name"] == "resnet18":
        return [
            f"MONAI: ResNet(ResNetBlock, [2, 2, 2, 2], {list(sizes['widths'])}, spatial_dims=3, n_input_channels=1, "
            f"num_classes={_head(weights)['bias'].size})"
        ]
    name, arguments = network_arguments(weights)
    lines = [f"MONAI: {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"]
    if sizes["name"] == "unet":
        return lines
    merging = sizes.get("merging", "corrected")
    versions = {"corrected": "1.5 and later", "duplicated": "up to 1.4"}
    return [
        *lines,
        f"its patch merging is {merging}, that of MONAI {versions[merging]}: other versions load these weights and "
        "give other outputs",
    ]


def network_arguments(weights: Weights) -> tuple[str, dict[str, Any]]:
    """MONAI's class for the backbone of `monai_states`, a UNet or a SwinUNETR, and the arguments that build it."""
    sizes = weights.architecture
    if sizes["name"] == "unet":
        return "UNet", {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": sizes["out_channels"],
            "channels": tuple(sizes["channels"]),
            "strides": tuple(sizes["strides"]),
            "num_res_units": sizes["num_res_units"],
            "norm": sizes["norm"],
        }
    return "SwinUNETR", {
        "in_channels": 1,
        "out_channels": _head(weights)["bias"].size if _takes_in_head(weights) else sizes["out_channels"],
        "feature_size": sizes["feature_size"],
        "depths": tuple(sizes["depths"]),
        "num_heads": tuple(sizes["num_heads"]),
        "window_size": sizes["window"],
    }
