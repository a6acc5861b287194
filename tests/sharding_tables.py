"""Writes the sharding tables of the big recipes: `python tests/sharding_tables.py` after a wanted change."""

import functools
import pathlib

import jax
from jax.sharding import AbstractMesh, AxisType

from lsmfm_jax.config.load import load_config
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.pretrain_setup import pretraining_rules
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import optimiser_settings
from lsmfm_jax.train.sharding import batch_shardings, sharding_table
from lsmfm_jax.train.state import TrainState, create_state

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden_sharding"
RECIPES = ("pretrain_unet", "pretrain_swin_unetr")
# No device of these is needed: (data, fsdp, depth).
MESHES = {"h200_8": (1, 8, 1), "v5e_64": (4, 8, 2)}

# The published bert-base-uncased.
BERT_BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    token_types=2,
    layer_norm_epsilon=1e-12,
    pad_token=0,
)


def pretend_mesh(sizes: tuple[int, int, int]) -> AbstractMesh:
    return AbstractMesh(sizes, ("data", "fsdp", "depth"), axis_types=(AxisType.Auto,) * 3)


@functools.cache
def state_shapes(recipe: str) -> TrainState:
    """The train state of a recipe, as shapes."""
    config = load_config(str(ROOT / "configs" / f"{recipe}.py"))
    task = pretraining_task(config, BERT_BASE, warmup_steps=10)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rules = pretraining_rules(config, BERT_BASE.num_layers, 10)
    optimiser = make_optimiser(shapes[0], rules, optimiser_settings(config, 10))
    return jax.eval_shape(lambda key: create_state(task, optimiser, key), jax.random.key(0))


def batch_shapes(recipe: str, mesh: AbstractMesh) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
    """A batch with two patches for each share of it, and the volumes that are made of it for the network."""
    config = load_config(str(ROOT / "configs" / f"{recipe}.py"))
    size = 2 * mesh.shape["data"] * mesh.shape["fsdp"]
    shapes = {
        "image": ((size, *config.data.patch_size), "uint16"),
        "low": ((size,), "float32"),
        "tokens": ((size, config.text.max_tokens), "int32"),
        "caption_key": ((size,), "int32"),
    }
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return batch, {"resized image": jax.ShapeDtypeStruct((size, *config.data.input_size, 1), "float32")}


def table(recipe: str, mesh_name: str) -> str:
    """The text that is kept under golden_sharding/."""
    mesh = pretend_mesh(MESHES[mesh_name])
    batch, rows = batch_shapes(recipe, mesh)
    lines = [sharding_table(state_shapes(recipe), mesh), "", "batch                 shape -> held by a device"]
    shardings = batch_shardings(batch, mesh) | batch_shardings(rows, mesh, split_depth=True)
    for name, sharding in shardings.items():
        shape = (batch | rows)[name].shape
        lines.append(f"{name:22}{shape} -> {sharding.shard_shape(shape)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for recipe in RECIPES:
        for mesh_name in MESHES:
            file = GOLDEN / f"{recipe}_{mesh_name}.txt"
            file.write_text(table(recipe, mesh_name))
            print(file)
