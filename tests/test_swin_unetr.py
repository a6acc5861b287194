"""Swin UNETR without PyTorch: windows, regions, attention and its gradient, the tail, shapes, conversion."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.util import view_as_blocks

from lsmfm_jax.convert.swin_unetr import from_torch, infer_swin_unetr, to_torch
from lsmfm_jax.models import attention_kernel
from lsmfm_jax.models.attention_kernel import attend
from lsmfm_jax.models.swin_transformer import PatchMerging
from lsmfm_jax.models.swin_unetr import SwinUNETR
from lsmfm_jax.models.window_attention import (
    WindowAttention,
    merge_windows,
    partition_windows,
    plan_windows,
    relative_position_bias,
    relative_position_index,
    shift_regions,
)

TINY = {"out_channels": 5, "feature_size": 12, "window": 3}


def draw(seed: int, *shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(net: SwinUNETR, size: int = 64) -> dict:
    x = jnp.zeros((1, size, size, size, 1))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=True))


@pytest.fixture(scope="module")
def params() -> dict:
    """Random parameters; drawn here because an initialisation would run the network."""
    leaves, tree = jax.tree.flatten(shapes_of(SwinUNETR(**TINY), 32)["params"])
    return jax.tree.unflatten(tree, [0.2 * draw(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize(("feature_size", "count"), [(36, 35_091_422), (24, 15_715_754)])
def test_parameter_count_at_the_released_widths(feature_size: int, count: int) -> None:
    variables = shapes_of(SwinUNETR(out_channels=512, feature_size=feature_size))
    assert list(variables) == ["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_parameter_groups_can_be_told_apart() -> None:
    params = shapes_of(SwinUNETR(out_channels=512, feature_size=36))["params"]
    encoders, decoders = {f"encoder_{i}" for i in range(4)}, {f"decoder_{i}" for i in range(5)}
    assert set(params) == encoders | decoders | {"transformer", "bottleneck", "out"}
    # The bottleneck is half of the network, which a prefix slip once made part of the transformer.
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["bottleneck"])) == 2 * 27 * 576**2


@pytest.mark.parametrize("size", [(32, 32, 32), (8, 16, 8), (4, 4, 4), (4, 7, 9)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_go_back_where_they_came_from(size: tuple[int, int, int], shifted: bool) -> None:
    plan = plan_windows(size, 7, shifted=shifted)
    x = draw(0, 2, *size, 6)
    windows = partition_windows(x, plan, 3)
    assert windows.shape == (math.prod(plan.counts), 2, 3, math.prod(plan.window), 2)
    np.testing.assert_array_equal(merge_windows(windows, plan), x)


def test_windows_are_blocks_in_raster_order() -> None:
    x = draw(0, 1, 8, 4, 12, 1)
    blocks = view_as_blocks(np.asarray(x[0, ..., 0]), (4, 4, 4)).reshape(-1, 64)
    np.testing.assert_array_equal(
        partition_windows(x, plan_windows((8, 4, 12), 4, shifted=False), 1)[:, 0, 0, :, 0], blocks
    )


def test_a_map_that_fits_into_one_window_is_neither_shifted_nor_padded() -> None:
    plan = plan_windows((4, 7, 8), 7, shifted=True)
    assert plan.window == (4, 7, 7)
    assert plan.shift == (0, 0, 3)
    assert plan.padding == (0, 0, 6)
    assert shift_regions(plan_windows((4, 7, 5), 7, shifted=True)) is None


@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_attends_to_its_window_and_region_only(shifted: bool) -> None:
    size, window = (2, 5, 7), 3
    x = draw(1, 1, *size, 4)
    layer = WindowAttention(heads=2, window=window, shifted=shifted)
    variables = layer.init(jax.random.key(0), x)
    slope = jax.jacobian(lambda x: layer.apply(variables, x).sum(-1))(x)
    reached = np.abs(slope).max(-1).reshape(math.prod(size), -1)

    def group(token: tuple[int, ...]) -> tuple[int, ...]:
        # Windows shifted by one start at token 1; what lies before is a group of its own.
        starts = [1 if shifted and n > window else 0 for n in size]
        return tuple((t - s) // window for t, s in zip(token, starts, strict=True))

    tokens = list(itertools.product(*map(range, size)))
    same = np.array([[group(a) == group(b) for b in tokens] for a in tokens])
    assert reached[same].min() > 1e-7
    assert reached[~same].max() < 1e-30


def test_bias_is_the_table_at_the_offset_of_each_pair() -> None:
    window, table = 3, draw(2, 125, 2)
    bias = relative_position_bias(table, window=window, tokens=27)
    cube = np.asarray(table).reshape(5, 5, 5, 2)
    tokens = list(itertools.product(range(window), repeat=3))
    expected = [[cube[tuple(np.subtract(q, k) + 2)] for k in tokens] for q in tokens]
    np.testing.assert_array_equal(bias, np.moveaxis(np.array(expected), -1, 0))
    np.testing.assert_array_equal(np.asarray(table)[relative_position_index(window)], expected)


def plain_attention(query, key, value, bias, regions):
    scores = jnp.einsum("wbhqd,wbhkd->wbhqk", query, key) + bias
    apart = regions[:, None, None, :, None] != regions[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(apart, -jnp.inf, scores))
    return jnp.einsum("wbhqk,wbhkd->wbhqd", weights, value)


@pytest.mark.parametrize("limit", [1, 2000, 2**30])
def test_attention_and_its_gradient(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain formula and JAX's own derivative of it, in one to six chunks."""
    monkeypatch.setattr(attention_kernel, "CPU_SCORES", limit)
    query, key, value, weight = (draw(i, 6, 2, 3, 10, 4) for i in range(4))
    bias, regions = draw(5, 3, 10, 10), jnp.asarray(np.random.default_rng(6).integers(0, 3, (6, 10)))
    operands = (query, key, value, bias)
    np.testing.assert_allclose(attend(*operands, regions), plain_attention(*operands, regions), atol=2e-6)
    ours = jax.grad(lambda *a: jnp.sum(weight * attend(*a, regions)), (0, 1, 2, 3))(*operands)
    plain = jax.grad(lambda *a: jnp.sum(weight * plain_attention(*a, regions)), (0, 1, 2, 3))(*operands)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_attention_in_bfloat16_keeps_scores_in_float32() -> None:
    query, key, value = (4 * draw(i, 1, 1, 2, 20, 4).astype(jnp.bfloat16) for i in range(3))
    bias = draw(3, 2, 20, 20)
    out = attend(query, key, value, bias, None)
    assert out.dtype == jnp.bfloat16
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    expected = plain_attention(*wide, bias, jnp.zeros((1, 20), int))
    # Scores reach 50: rounded to bfloat16 they would be off by 0.1 and more, the output then by several per cent.
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2**-7 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("form", "unseen"), [("corrected", set()), ("duplicated", {(1, 1, 0), (0, 1, 1)})])
def test_merging_forms_see_the_voxels_they_should(form: str, unseen: set[tuple[int, int, int]]) -> None:
    x = draw(0, 1, 2, 2, 2, 3)
    layer = PatchMerging(form)
    variables = layer.init(jax.random.key(0), x)
    slope = jax.grad(lambda x: jnp.sum(jnp.square(layer.apply(variables, x))))(x)
    silent = np.argwhere(np.abs(slope[0]).max(-1) == 0)
    assert {tuple(map(int, place)) for place in silent} == unseen


def test_tail_stages_and_call_belong_together(params: dict) -> None:
    net = SwinUNETR(**TINY)

    @jax.jit
    def both(x):
        return net.apply({"params": params}, x, train=True, method="trunk"), net.apply(
            {"params": params}, x, train=False
        )

    trunk, dense = both(draw(0, 1, 32, 64, 32, 1))
    kernel, bias = (np.float64(part) for part in trunk.tail)
    assert trunk.values.shape == (1, 32, 64, 32, 12)
    assert kernel.shape == (12, 5)
    np.testing.assert_allclose(np.float64(trunk.values) @ kernel + bias, dense, atol=1e-5)
    widths = [(1, 12), (2, 12), (4, 24), (8, 48), (32, 192)]
    assert [stage.shape for stage in trunk.stages] == [(1, 32 // s, 64 // s, 32 // s, c) for s, c in widths]


def test_bfloat16_computes_in_bfloat16_and_keeps_the_tail_in_float32(params: dict) -> None:
    net = SwinUNETR(**TINY, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 32, 32, 32, 1))
    trunk = jax.eval_shape(lambda: net.apply({"params": params}, x, train=True, method="trunk"))
    assert {part.dtype for part in (trunk.values, *trunk.stages)} == {jnp.dtype("bfloat16")}
    assert {part.dtype for part in trunk.tail} == {jnp.dtype("float32")}


def test_impossible_sizes_and_forms_are_refused(params: dict) -> None:
    with pytest.raises(ValueError, match=r"multiples of 32, got \(64, 48, 64\)"):
        SwinUNETR(**TINY).apply({"params": params}, jnp.zeros((1, 64, 48, 64, 1)), train=True)
    with pytest.raises(ValueError, match=r"corrected.*duplicated.*mergingv2"):
        shapes_of(SwinUNETR(**TINY, merging="mergingv2"))


def test_conversion_is_its_own_inverse_bit_for_bit(params: dict) -> None:
    state = to_torch({"params": params})
    assert infer_swin_unetr(state) == {**TINY, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
    back = from_torch(state)
    assert back["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, back["params"], params)
    again = to_torch(back)
    assert {key: value.tobytes() for key, value in again.items()} == {k: v.tobytes() for k, v in state.items()}


def test_conversion_names_what_it_cannot_account_for(params: dict) -> None:
    state = to_torch({"params": params})
    index = "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    with pytest.raises(ValueError, match=r"missing \['encoder10.layer.conv1.conv.weight'\], unknown \['x'\]"):
        from_torch({k: v for k, v in state.items() if "encoder10.layer.conv1" not in k} | {"x": np.zeros(1)})
    with pytest.raises(ValueError, match=index):
        from_torch(state | {index: state[index] + 1})
    with pytest.raises(ValueError, match="not the state dict"):
        from_torch({"weight": np.zeros(1)})
    with pytest.raises(ValueError, match=r"unknown \['params/extra'\]"):
        to_torch({"params": {**params, "extra": np.zeros(1)}})
