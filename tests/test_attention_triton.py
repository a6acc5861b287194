"""The attention kernels, interpreted on the CPU, against the formula in float64 and against the plain form."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lsmfm_jax.config import defaults
from lsmfm_jax.models import (
    attention_fused,
    attention_kernel,
    attention_triton,
    build_backbone,
    configured_architecture,
)
from lsmfm_jax.models.attention_kernel import attend
from lsmfm_jax.tasks.finetune_start import build_network
from lsmfm_jax.tasks.pretrain_networks import build_networks
from lsmfm_jax.train.sharding import BATCH_AXES, make_mesh

# Windows, batch, heads, tokens, width of a head, whether there are regions.
CASES = [
    (2, 2, 3, 27, 12, True),
    (2, 1, 3, 343, 12, True),
    (1, 2, 2, 64, 16, False),
    (3, 1, 3, 100, 8, True),
    (1, 3, 1, 8, 20, False),
]


def operands(windows, batch, heads, tokens, width, regions, *, dtype="float32"):
    """Query, key, value, bias, regions and the gradient of the output."""
    rng = np.random.default_rng(tokens)
    made = [jnp.asarray(rng.normal(size=(windows, batch, heads, tokens, width)), dtype) for _ in range(4)]
    bias = jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32)
    numbers = jnp.asarray(rng.integers(0, 3, (windows, tokens)), jnp.int32) if regions else None
    return (*made[:3], bias, numbers, made[3])


def formula(query, key, value, bias, regions, gradient):
    """Output and gradients of query, key, value and bias, in float64."""
    query, key, value, bias, gradient = (np.float64(x) for x in (query, key, value, bias, gradient))
    scores = np.einsum("wbhqd,wbhkd->wbhqk", query, key) + bias
    if regions is not None:
        regions = np.asarray(regions)
        scores = scores - 100.0 * (regions[:, :, None] != regions[:, None])[:, None, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("wbhqd,wbhkd->wbhqk", gradient, value)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
    return (
        np.einsum("wbhqk,wbhkd->wbhqd", weights, value),
        np.einsum("wbhqk,wbhkd->wbhqd", of_scores, key),
        np.einsum("wbhqk,wbhqd->wbhkd", of_scores, query),
        np.einsum("wbhqk,wbhqd->wbhkd", weights, gradient),
        of_scores.sum((0, 1)),
    )


def differentiated(query, key, value, bias, regions, gradient, *, kernels="plain"):
    """What `formula` gives, by `attend` and its derivative."""
    out, pulled = jax.vjp(lambda *given: attend(*given, regions, kernels), query, key, value, bias)
    return out, *pulled(gradient)


@pytest.fixture
def interpreted(monkeypatch):
    """As `differentiated`, by the kernels, which take the place of the CPU's form and are interpreted there."""
    monkeypatch.setattr(attention_kernel, "FUSED_ON", "cpu")
    for name in ("forward", "backward"):
        monkeypatch.setattr(attention_fused, name, partial(getattr(attention_fused, name), interpret=True))
    # A function of its own, so that nothing traced in another test is found again.
    return jax.jit(lambda *given: differentiated(*given, kernels="fused"))


def assert_close(ours, expected, tolerance):
    for one, other in zip(ours, expected, strict=True):
        other = np.float64(other)
        np.testing.assert_allclose(np.float64(one), other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("case", CASES)
def test_kernels_follow_the_formula(case, interpreted) -> None:
    given = operands(*case)
    assert_close(interpreted(*given), formula(*given), 2e-6)


@pytest.mark.parametrize("case", CASES[:3])
def test_kernels_and_the_plain_form_agree(case, interpreted) -> None:
    given = operands(*case)
    ours, plain = interpreted(*given), differentiated(*given)
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in plain]
    assert_close(ours, plain, 1e-5)


def test_in_bfloat16_only_operands_of_products_are_rounded(interpreted) -> None:
    """Scores of up to 80: rounded to bfloat16 they would be off by 0.25 and the weights by a quarter."""
    query, key, *others, gradient = operands(2, 2, 3, 65, 12, True, dtype="bfloat16")
    given = (4 * query, key, *others, gradient)
    out, *gradients = interpreted(*given)
    assert {x.dtype for x in (out, *gradients[:3])} == {jnp.dtype("bfloat16")}
    assert gradients[3].dtype == jnp.float32
    assert_close((out, *gradients), formula(*given), 2**-7)


def test_windows_shared_by_several_programs_add_up(interpreted, monkeypatch) -> None:
    """Three programs for seven windows of two samples: five, five and four."""
    monkeypatch.setattr(attention_triton, "SUMMING_PROGRAMS", 3)
    monkeypatch.setattr(attention_triton, "PROGRAMS", 3)
    given = operands(7, 2, 1, 16, 12, True)
    assert attention_triton.sizes_of(given[0], given[4], block=(64, 32), summing=True).each == 5
    assert_close(interpreted(*given), formula(*given), 2e-6)


@pytest.mark.parametrize(("regions", "windows"), [(False, None), (True, None), (True, "depth")])
def test_each_device_computes_its_own_samples_and_windows(regions: bool, windows: str | None, interpreted) -> None:
    given = operands(4, 8, 2, 27, 12, regions)
    mesh = make_mesh(data=2, fsdp=2, depth=2)
    split = NamedSharding(mesh, PartitionSpec(windows, BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = [jax.device_put(x, split if x.ndim == 5 else whole) for x in given if x is not None]
    if not regions:
        placed.insert(4, None)
    compiled = interpreted.lower(*placed).compile()
    ours = compiled(*placed)
    assert_close(ours, formula(*given), 2e-6)
    assert ours[1].sharding.is_equivalent_to(split, 5)
    # The sum over devices is the bias gradient's; nothing else is sent.
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_on_a_cpu_fused_is_plain() -> None:
    given = operands(2, 2, 3, 27, 12, True)
    for one, other in zip(differentiated(*given, kernels="fused"), differentiated(*given), strict=True):
        np.testing.assert_array_equal(one, other)


def kernels_in(function, *arguments) -> int:
    """Kernels in a function's program, those of all platforms."""
    return str(jax.make_jaxpr(function)(*arguments)).count("pallas_call[")


def test_one_kernel_forward_and_three_backward() -> None:
    given = operands(2, 2, 3, 27, 12, True)
    assert kernels_in(differentiated, *given) == 0
    assert kernels_in(partial(attend, kernels="fused"), *given[:5]) == 1
    assert kernels_in(partial(differentiated, kernels="fused"), *given) == 4


def test_kernels_within_a_part_that_is_computed_again(interpreted) -> None:
    given = operands(2, 1, 2, 27, 12, True)

    @jax.checkpoint
    def again(query, key, value, bias):
        return jnp.tanh(attend(query, key, value, bias, given[4], "fused"))

    def plain(query, key, value, bias):
        return jnp.tanh(attend(query, key, value, bias, given[4]))

    ours, expected = (
        jax.grad(lambda *a, f=f: jnp.sum(given[5] * f(*a)), (0, 1, 2, 3))(*given[:4]) for f in (again, plain)
    )
    assert_close(ours, expected, 1e-5)


def test_float64_is_computed_the_plain_way() -> None:
    with jax.enable_x64(True):
        given = [jnp.asarray(x, jnp.float64) for x in operands(1, 1, 2, 27, 12, False) if x is not None]
        assert kernels_in(lambda *given: attend(*given, None, kernels="fused"), *given[:4]) == 0


# Later versions of JAX run Triton while lowering, which needs the compiler for cards.
@pytest.mark.skipif(jax.__version_info__ > (0, 10, 2), reason="needs a compiler for cards")
def test_a_program_for_a_card_has_the_kernels_and_no_scores() -> None:
    query = jax.ShapeDtypeStruct((8, 2, 3, 343, 12), jnp.bfloat16)
    bias, regions = jax.ShapeDtypeStruct((3, 343, 343), jnp.float32), jax.ShapeDtypeStruct((8, 343), jnp.int32)
    given = (query, query, query, bias, regions, query)
    traced = {name: jax.jit(partial(differentiated, kernels=name)).trace(*given) for name in ("plain", "fused")}
    lowered = {name: one.lower(lowering_platforms=("cuda",)).as_text() for name, one in traced.items()}
    assert [lowered[name].count("xla.gpu.triton") for name in ("plain", "fused")] == [0, 4]
    assert "tensor<8x2x3x343x343x" in lowered["plain"]
    assert "tensor<8x2x3x343x343x" not in lowered["fused"]
    assert "triton" not in traced["fused"].lower(lowering_platforms=("cpu",)).as_text()


def test_a_network_with_kernels_is_the_same_network() -> None:
    sizes = {"feature_size": 12, "depths": (1, 1, 1, 1), "window": 2, "out_channels": 5}
    plain, fused = (build_backbone("swin_unetr", kernels=name, **sizes) for name in ("plain", "fused"))
    x = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), jnp.float32)
    shapes = [jax.eval_shape(lambda x, n=net: n.init(jax.random.key(0), x, train=False), x) for net in (plain, fused)]
    assert shapes[0] == shapes[1]
    # One for each of four blocks.
    counts = [kernels_in(partial(net.apply, train=False), shapes[0], x) for net in (plain, fused)]
    assert counts == [0, 4]
    # Others have none and are built all the same.
    assert not hasattr(build_backbone("unet", kernels="fused", out_channels=4), "kernels")


def test_who_does_not_want_kernels_need_not_wait_for_pallas() -> None:
    code = "import sys, lsmfm_jax.models.swin_unetr; sys.exit('jax.experimental.pallas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_train_kernels_reaches_the_network_of_every_task(kernels: str) -> None:
    for task in ("pretrain", "segment", "classify", "deblur", "inpaint"):
        config = defaults(task)
        config.model.name, config.train.kernels = "swin_unetr", kernels
        if task == "pretrain":
            backbone = build_networks(config, None).backbone
        else:
            backbone = build_network(
                config, configured_architecture(config.model.to_dict()), steps_per_epoch=1
            ).backbone
        assert backbone.kernels == kernels, task
