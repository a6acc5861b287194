"""Vectors of volumes and of texts, from any run: what its encoder, or its pair of towers, makes of them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Num
from ml_collections import ConfigDict

from lsmfm_jax.config import defaults, recorded_config
from lsmfm_jax.data.tokens import build_token_table
from lsmfm_jax.losses.pretrain import mean_normalised_features
from lsmfm_jax.metrics.zero_shot import unit_vectors
from lsmfm_jax.models.heads import ProjectionHead
from lsmfm_jax.models.text import TextTower
from lsmfm_jax.models.text_directory import LoadedText, load_text_tower
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import recorded_window
from lsmfm_jax.predict.windows import Size, average_windows
from lsmfm_jax.resample import resize_trilinear
from lsmfm_jax.scale import Scale, check_seen, measure, naming, scale_of
from lsmfm_jax.tasks.finetune_tasks import FINETUNING
from lsmfm_jax.tasks.finetuning import Network, backbone_of, pooled_features
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.train.records import TEXT_FOLDER
from lsmfm_jax.train.weights import Weights

Trees = tuple[Any, Any]  # parameters and batch statistics


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """The image side of a run.

    Attributes:
        trees: parameters, of the backbone and its projection where there is one, and batch statistics.
        apply: pure, of parameters, statistics and scaled windows (B, Z, Y, X): vectors (B, D).
        window: ZYX voxels that the network takes at a time.
        scale: of intensities, as in training.
        clips: whether scaled intensities are cut to [0, 1].
        unit: whether vectors have length 1.
    """

    trees: Trees
    apply: Callable[..., Array]
    window: Size
    scale: Scale
    clips: bool
    unit: bool

    def with_weights(self, params: Any, batch_stats: Any) -> "ImageEncoder":
        """The same network with other weights, such as those of `random_network`."""
        return dataclasses.replace(self, trees=({name: params[name] for name in self.trees[0]}, batch_stats))

    def embed(
        self,
        volume: Num[np.ndarray, "z y x"],
        voxel_size_um: Sequence[float] | None = None,
        *,
        source: object = "the array",
    ) -> Float[np.ndarray, " d"]:
        """The vector of a volume, float32: the mean over its windows, of length 1 again where those are.

        Args:
            volume: raw counts.
            voxel_size_um: ZYX, None where it is unknown.
            source: where the volume is from, for the message.

        Raises:
            ScaleError: the run's scale sees nothing in it.
        """
        with naming(source):
            levels = check_seen(measure(volume, self.scale, voxel_size_um))
        vector = average_windows(
            lambda windows: self.apply(*self.trees, windows),
            levels.apply(volume, clip=self.clips),
            window=self.window,
            overlap_frac=0.25,
            batch_size=1,
        )
        return unit_vectors(vector[None])[0] if self.unit else vector


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """The text side of a run.

    Attributes:
        params: of the tower and its projection.
        apply: pure, of parameters, token ids and mask (B, T): unit vectors (B, D).
        tokenizer: of the text model.
        max_tokens: longer texts are cut.
    """

    params: Any
    apply: Callable[..., Array]
    tokenizer: Any
    max_tokens: int

    def with_weights(self, params: Any) -> "TextEncoder":
        """The same network with other weights."""
        return dataclasses.replace(self, params={name: params[name] for name in self.params})

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """A unit vector for each text, float32.

        Real tokens alone are averaged, whatever `text.pooling` the run had: a text's vector must not depend on the
        length of those beside it.

        Raises:
            PredictionError: no text, an empty one, or something other than texts.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise PredictionError(f"texts: {str(texts)[:80]!r}; a list of one or more texts is needed, none empty")
        table = build_token_table({"texts": list(texts)}, self.tokenizer, self.max_tokens)
        return np.asarray(self.apply(self.params, table.tokens, table.mask), np.float32)


def image_encoder(weights: Weights, folder: pathlib.Path) -> ImageEncoder:
    """The image side of a run.

    Of a pretraining run with a text tower: the vector that is compared with texts, of length 1, of the whole volume
    (nothing is hidden). Of any other run: the mean over voxels of the encoder's deepest map.

    Args:
        weights: of the run.
        folder: where they are from.

    Raises:
        PredictionError: the folder does not say how intensities were scaled, as an imported backbone alone.
    """
    if weights.record.get("task") in FINETUNING:
        window, clips = recorded_window(weights, folder), FINETUNING[weights.record["task"]].clips
        return _encoder(weights, _deepest(weights), window=window, input_size=window, clips=clips, unit=False)
    config = pretraining_config(weights, folder)
    network = _projected(weights) if has_text(weights) else _deepest(weights)
    window, input_size = tuple(config.data.patch_size), tuple(config.data.input_size)
    return _encoder(weights, network, window=window, input_size=input_size, clips=True, unit=has_text(weights))


def text_encoder(weights: Weights, folder: pathlib.Path) -> TextEncoder:
    """The text side of a run.

    Raises:
        PredictionError: the run has no text tower, or its text model is another one.
        TextModelError: its text model cannot be read.
    """
    if not has_text(weights):
        raise PredictionError(
            f"{folder}: a run of task {weights.record.get('task')!r} without a text tower; name a pretraining run with "
            "captions (text.enabled)"
        )
    config = pretraining_config(weights, folder)
    text = _text(weights, folder, config)
    tower, projection = TextTower(text.config), _projection(weights, "text_projection")

    @jax.jit
    def apply(params: Any, tokens: Array, mask: Array) -> Array:
        vector = tower.apply({"params": params["text_tower"]}, tokens, mask, mask)
        return projection.apply({"params": params["text_projection"]}, vector)

    params = {name: weights.params[name] for name in ("text_tower", "text_projection")}
    return TextEncoder(jax.device_put(params), apply, text.tokenizer, config.text.max_tokens)


def random_network(weights: Weights, folder: pathlib.Path) -> Callable[[int], Trees]:
    """Of a seed, parameters and statistics of a new pretraining network of the same sizes, nothing of it trained."""
    config = pretraining_config(weights, folder)
    task = pretraining_task(config, _text(weights, folder, config).config, warmup_steps=0)
    init = jax.jit(task.init)  # compiled once for all seeds
    return lambda seed: init(jax.random.key(seed))


def has_text(weights: Weights) -> bool:
    """Whether images and texts of a run share a space."""
    return {"image_projection", "text_tower", "text_projection"} <= weights.params.keys()


def pretraining_config(weights: Weights, folder: pathlib.Path) -> ConfigDict:
    """The configuration of a pretraining run; an imported checkpoint has the released code's sizes and scale.

    Those are the defaults of the keys: patches of 96³ voxels, seen at 64³, percentiles 1 and 99 at 0 and 1.

    Raises:
        PredictionError: an imported backbone of which nobody knows how it was trained.
    """
    if (folder / "config.json").is_file():
        config = recorded_config(folder)
    elif weights.record.get("task") == "pretrain":
        config = defaults("pretrain")
    else:
        raise PredictionError(
            f"{folder}: weights of a backbone alone, which do not say how intensities were scaled; finetune them "
            f"(lsmfm finetune, with init_from={str(folder)!r}) and name that run"
        )
    architecture = {key: tuple(v) if isinstance(v, list) else v for key, v in weights.architecture.items()}
    with config.unlocked():
        config.model.name, config.model.dtype = architecture.pop("name"), "float32"
        config.model.out_channels = architecture.pop("out_channels")
        config.model[config.model.name] = ConfigDict(architecture)
    return config


def _text(weights: Weights, folder: pathlib.Path, config: ConfigDict) -> LoadedText:
    """The text model: beside the run where there is one, as of tiny and imported ones, else that of `text.source`."""
    beside, source = folder / TEXT_FOLDER, config.text.source
    if (beside / "config.json").is_file():
        source = beside
    elif source == "tiny":
        raise PredictionError(
            f"{folder}: its text model is not in {beside}, so texts cannot be read; restore that folder, or import the "
            "checkpoint again with --text-model DIR"
        )
    text = load_text_tower(source)
    ours, theirs = (tree["embeddings"]["word"].shape for tree in (weights.params["text_tower"], text.params))
    if ours != theirs:
        raise PredictionError(
            f"{folder}: its text tower has {ours[0]} tokens of width {ours[1]}, and the text model {source} has "
            f"{theirs[0]} of {theirs[1]}; put the model that the run was trained with into {beside}"
        )
    return text


def _deepest(weights: Weights) -> Callable[..., Array]:
    network = Network(backbone_of(weights.architecture))
    return lambda params, batch_stats, volumes: pooled_features(network.trunk(params, batch_stats, volumes))


def _projected(weights: Weights) -> Callable[..., Array]:
    network, projection = Network(backbone_of(weights.architecture)), _projection(weights, "image_projection")

    def apply(params: Any, batch_stats: Any, volumes: Array) -> Array:
        trunk = network.trunk(params, batch_stats, volumes)
        features = mean_normalised_features(trunk.values, trunk.tail)
        return projection.apply({"params": params["image_projection"]}, features)

    return apply


def _projection(weights: Weights, name: str) -> ProjectionHead:
    return ProjectionHead(weights.params[name]["dense_0"]["bias"].shape[0])


def _encoder(
    weights: Weights, network: Callable[..., Array], *, window: Size, input_size: Size, clips: bool, unit: bool
) -> ImageEncoder:
    @jax.jit
    def apply(params: Any, batch_stats: Any, windows: Array) -> Array:
        return network(params, batch_stats, resize_trilinear(windows[..., None], input_size))

    used = ("backbone", "image_projection") if unit else ("backbone",)
    return ImageEncoder(
        trees=jax.device_put(({name: weights.params[name] for name in used}, weights.batch_stats)),
        apply=apply,
        window=window,
        scale=scale_of(weights.record.get("scaling", {})),
        clips=clips,
        unit=unit,
    )
