"""ResNet-18 by itself: shapes and names. Its numbers are compared in tests/parity."""

import jax
import jax.numpy as jnp

from lsmfm_jax.convert.convolutional import flatten
from lsmfm_jax.models.resnet import ResNet18


def shapes_of(module, size):
    x = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    start = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=True), x)
    run = lambda start, x: module.apply(start, x, train=True, mutable=["batch_stats"])  # noqa: E731
    return start, jax.eval_shape(run, start, x)


def test_shapes_and_size():
    start, (logits, updated) = shapes_of(ResNet18(12), (20, 16, 24))
    assert logits.shape == (2, 12) and logits.dtype == jnp.float32
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(start["batch_stats"])
    assert sum(leaf.size for leaf in jax.tree.leaves(start["params"])) == 33_167_052


def test_half_precision_leaves_parameters_and_logits_in_float32():
    start, (logits, updated) = shapes_of(ResNet18(3, widths=(4, 4, 6, 8), dtype=jnp.bfloat16), (16, 16, 16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((start, logits, updated)))


def test_names_are_those_documented():
    start, _ = shapes_of(ResNet18(3, widths=(4, 4, 6, 8)), (16, 16, 16))
    tops = {path.split("/")[0] for path in flatten(start["params"])}
    stages = {f"stage_{i}_block_{j}" for i in range(4) for j in range(2)}
    assert tops == {"stem_conv", "stem_norm", "classifier", *stages}
    shortcuts = {path.split("/")[0] for path in flatten(start["params"]) if "shortcut_conv" in path}
    assert shortcuts == {"stage_1_block_0", "stage_2_block_0", "stage_3_block_0"}
