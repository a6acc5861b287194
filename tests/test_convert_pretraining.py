"""Pretraining weights to the released code's names and back, without a checkpoint of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.convert.pretraining import Pretraining, from_lightning, to_lightning
from lsmfm_jax.models.heads import LightDecoder, ProjectionHead, initial_logit_scale
from lsmfm_jax.models.text import BertConfig, TextTower
from lsmfm_jax.models.unet import UNet

ARCHITECTURE = {"channels": (4, 6), "strides": (2,), "num_res_units": 1, "out_channels": 5, "norm": "batch"}
BERT = BertConfig(
    vocab_size=11,
    hidden_size=64,
    num_layers=2,
    num_heads=1,
    intermediate_size=16,
    max_positions=7,
    token_types=2,
    layer_norm_epsilon=1e-12,
    pad_token=0,
)


def random_like(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def weights():
    """Random weights of a tiny UNet, its teacher, heads and text tower."""
    key, tokens = jax.random.key(0), jnp.zeros((1, 3), jnp.int32)

    def init():
        return {
            "backbone": UNet(**ARCHITECTURE).init(key, jnp.zeros((1, 8, 8, 8, 1)), train=False),
            "light_decoder": LightDecoder().init(key, jnp.zeros((1, 2, 2, 2, 5))),
            "image_projection": ProjectionHead(5).init(key, jnp.zeros((1, 5))),
            "text_tower": TextTower(BERT).init(key, tokens, tokens == 0),
            "text_projection": ProjectionHead(5).init(key, jnp.zeros((1, 64))),
        }

    shapes = jax.eval_shape(init)
    drawn, teacher = random_like(shapes, 1), random_like(shapes["backbone"], 2)
    params = {name: variables["params"] for name, variables in drawn.items()}
    return Pretraining(
        backbone="unet",
        architecture=ARCHITECTURE,
        params=params | {"logit_scale": np.asarray(initial_logit_scale(0.1))},
        batch_stats={"backbone": drawn["backbone"]["batch_stats"]},
        teacher=dict(teacher),
        bert=BERT,
        ema_decay=np.float32(0.996),
        batches_tracked=(17, 0),
    )


def equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_there_and_back(weights):
    state = to_lightning(weights)
    again = from_lightning(state, text_heads=1)
    for field in ("params", "batch_stats", "teacher"):
        equal(getattr(again, field), getattr(weights, field))
    assert (again.backbone, again.bert, again.batches_tracked) == ("unet", BERT, (17, 0))
    assert {key: again.architecture[key] for key in ("channels", "strides", "out_channels")} == {
        key: ARCHITECTURE[key] for key in ("channels", "strides", "out_channels")
    }
    # Dense kernels are stored out by in, convolutions out, in, Z, Y, X.
    kernel = weights.params["text_projection"]["dense_0"]["kernel"]
    np.testing.assert_array_equal(state["text_proj.0.weight"], kernel.T)
    kernel = weights.params["light_decoder"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(state["reconstruction_head.decoder.0.weight"][3, 2, 0, 1, 2], kernel[0, 1, 2, 2, 3])


def test_image_only_runs_have_no_text(weights):
    params = {name: weights.params[name] for name in ("backbone", "light_decoder")}
    image_only = weights._replace(params=params, bert=None, ema_decay=None)
    state = to_lightning(image_only)
    assert {key.split(".")[0] for key in state} == {"student_encoder", "teacher_encoder", "reconstruction_head"}
    again = from_lightning(state)
    equal(again.params, params)
    assert again.bert is None
    assert again.ema_decay is None


def test_what_does_not_belong_is_named(weights):
    state = to_lightning(weights)
    with pytest.raises(ValueError, match=r"left over \['loss.weight'\]"):
        from_lightning(state | {"loss.weight": np.zeros(1)}, text_heads=1)
    without = {key: value for key, value in state.items() if key != "image_proj.5.bias"}
    with pytest.raises(ValueError, match=r"image_proj: .*missing \['5.bias'\]"):
        from_lightning(without, text_heads=1)
    with pytest.raises(ValueError, match="text_heads is 5"):
        from_lightning(state, text_heads=5)
    with pytest.raises(ValueError, match=r"no \['prototypes'\]"):
        to_lightning(weights._replace(params=weights.params | {"prototypes": np.zeros(1)}))
