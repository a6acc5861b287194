"""The UNet against MONAI's: outputs, every stage, statistics and gradients, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet as MonaiUNet

from lsmfm_jax.convert import unet as convert
from lsmfm_jax.models.conv import Conv, ConvTranspose
from lsmfm_jax.models.unet import UNet

TOLERANCE = 1e-4


def monai_unet(*, channels, strides, out_channels, norm="batch", units=2, seed=0):
    torch.manual_seed(seed)
    model = MonaiUNet(3, 1, out_channels, channels, strides, num_res_units=units, norm=norm)
    with torch.no_grad():  # away from ones and zeros, so that a mix-up shows
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("running_var", "N.weight")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "N.bias", "A.weight")):
                value.uniform_(-0.5, 0.5)
    return model


def numpy_state(model):
    return {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


def record_stages(model, levels):
    """Collect the outputs of the encoder blocks and of the bottom one, shallow to deepest."""
    found, sequence = [], model.model
    for _ in range(levels):
        sequence[0].register_forward_hook(lambda module, inputs, output: found.append(output))
        sequence = sequence[1].submodule
    sequence.register_forward_hook(lambda module, inputs, output: found.append(output))
    return found


def channel_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE * scale)


CASES = {
    "released depth": (
        {"channels": (4, 6, 8, 10, 12), "strides": (2, 2, 2, 1), "out_channels": 7},
        (24, 16, 32),
    ),
    "golden": ({"channels": (8, 16, 24), "strides": (2, 1), "out_channels": 24}, (10, 8, 12)),
    "instance": (
        {"channels": (4, 6, 8), "strides": (2, 2), "out_channels": 5, "norm": "instance"},
        (8, 16, 12),
    ),
    "one unit, equal widths": (
        {"channels": (6, 6, 6), "strides": (1, 2), "out_channels": 6, "units": 1},
        (8, 6, 10),
    ),
}


@pytest.mark.parametrize(
    ("case", "train"),
    [
        ("released depth", True),
        ("golden", True),
        ("golden", False),
        ("instance", True),
        ("one unit, equal widths", True),
        ("one unit, equal widths", False),
    ],
)
def test_equals_monai(case, train):
    settings, size = CASES[case]
    model = monai_unet(**settings).train(train)
    state = numpy_state(model)
    ours = UNet(**convert.infer_unet(state))
    variables = jax.tree.map(jnp.asarray, convert.from_torch(state))
    x = np.random.default_rng(1).standard_normal((2, 1, *size), np.float32)

    stages = record_stages(model, len(settings["strides"]))
    theirs = model(torch.from_numpy(x))

    def features(params, x):
        tree = {**variables, "params": params}
        trunk, updated = ours.apply(tree, x, train=train, method="trunk", mutable=["batch_stats"])
        return trunk.values, (trunk, updated)

    cotangent = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))

    @jax.jit
    def run(params, x, cotangent):
        if not train:
            return *features(params, x)[1], None
        _, pull, (trunk, updated) = jax.vjp(lambda params: features(params, x), params, has_aux=True)
        return trunk, updated, pull(cotangent)[0]

    trunk, updated, gradients = run(variables["params"], np.moveaxis(x, 1, -1), channel_last(cotangent))
    assert trunk.tail is None
    assert_close(trunk.values, channel_last(theirs))
    assert len(trunk.stages) == len(stages) == len(settings["channels"])
    for mine, stage in zip(trunk.stages, stages, strict=True):
        assert_close(mine, channel_last(stage))

    after = convert.to_torch({"params": variables["params"], **updated})
    for key, value in numpy_state(model).items():
        if "running" in key:
            assert_close(after[key], value)
    if train:
        theirs.backward(cotangent)
        named = convert.to_torch({"params": gradients, "batch_stats": variables["batch_stats"]})
        compare_gradients(named, dict(model.named_parameters()))


def compare_gradients(ours, theirs):
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.values())
    for key, parameter in theirs.items():
        # A bias ahead of a norm has no gradient, only rounding, which is measured by the largest gradient.
        vanishes = key.endswith("conv.bias") and key.replace("conv.bias", "adn.A.weight") in theirs
        scale = max(float(parameter.grad.abs().max()), largest if vanishes else 1e-2 * largest)
        gradient = parameter.grad.numpy()
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=TOLERANCE * scale, err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bitwise(case):
    settings, _ = CASES[case]
    state = numpy_state(monai_unet(**settings))
    back = convert.to_torch(convert.from_torch(state))
    assert set(back) == set(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape, key
        assert back[key].tobytes() == value.tobytes(), key


def test_size_read_off_the_released_network():
    with torch.device("meta"):
        model = MonaiUNet(3, 1, 128, (32, 64, 128, 256, 512), (2, 2, 2, 1), num_res_units=2, norm="batch")
    state = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in model.state_dict().items()}
    assert convert.infer_unet(state) == {
        "channels": (32, 64, 128, 256, 512),
        "strides": (2, 2, 2, 1),
        "num_res_units": 2,
        "out_channels": 128,
        "norm": "batch",
    }
    theirs = sum(parameter.numel() for parameter in model.parameters())
    x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)
    shapes = jax.eval_shape(lambda x: UNet().init(jax.random.key(0), x, train=True), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == theirs == 19_030_321


def test_missing_and_unknown_keys_are_named():
    state = numpy_state(monai_unet(channels=(4, 6), strides=(2,), out_channels=3))
    extra = {**state, "model.9.weight": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match=r"unknown \['model.9.weight'\]"):
        convert.from_torch(extra)
    del state["model.2.0.conv.bias"]
    with pytest.raises(ValueError, match=r"missing \['model.2.0.conv.bias'\]"):
        convert.from_torch(state)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Conv(40, 3), torch.nn.Conv3d(20, 40, 3)),
        (ConvTranspose(40, 3, 2), torch.nn.ConvTranspose3d(20, 40, 3, 2)),
    ],
    ids=["convolution", "transposed"],
)
def test_initialisation_follows_the_same_law(ours, theirs):
    """Spread and bounds of fresh weights, not the draws."""
    fresh = ours.init(jax.random.key(3), jnp.zeros((1, 3, 3, 3, 20)))["params"]
    weight, bias = theirs.weight.detach().numpy(), theirs.bias.detach().numpy()
    np.testing.assert_allclose(fresh["kernel"].std(), weight.std(), rtol=0.03)
    np.testing.assert_allclose(np.abs(fresh["kernel"]).max(), np.abs(weight).max(), rtol=0.01)
    np.testing.assert_allclose(np.abs(fresh["bias"]).max(), np.abs(bias).max(), rtol=0.2)


def test_golden_features(shared):
    """The authors' own network and weights: student features of one step, batch statistics in use."""
    checkpoint = torch.load(shared / "golden" / "unet_image_text_tiny.ckpt", weights_only=True)
    prefix = "student_encoder."
    state = {
        key.removeprefix(prefix): value.numpy()
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    golden = np.load(shared / "golden" / "unet_step.npz")
    x = np.moveaxis(golden["x"] * (1 - golden["mask"]), 1, -1)
    model = UNet(**convert.infer_unet(state))
    features, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        convert.from_torch(state), x
    )
    subsampled = np.asarray(features)[:, ::4, ::4, ::4]
    assert_close(subsampled, np.moveaxis(golden["student_feats_raw"], 1, -1))
