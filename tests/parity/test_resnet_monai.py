"""ResNet-18 against MONAI's: logits, statistics and gradients, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from monai.networks.nets import resnet18
from monai.networks.nets.resnet import ResNet, ResNetBlock

from lsmfm_jax.convert import resnet as convert
from lsmfm_jax.models.resnet import ResNet18

WIDTHS = (6, 8, 10, 12)


def monai_resnet(widths=WIDTHS):
    torch.manual_seed(0)
    model = ResNet(ResNetBlock, [2, 2, 2, 2], list(widths), spatial_dims=3, n_input_channels=1, num_classes=5)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.5, 0.5)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
        for name, value in model.named_parameters():
            if "bn" in name or "downsample.1" in name:
                value.uniform_(0.3, 1.2)
    return model


def numpy_state(model):
    return {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


def assert_close(ours, theirs, scale, name):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_equals_monai(train):
    model = monai_resnet().train(train)
    variables = jax.tree.map(jnp.asarray, convert.from_torch(numpy_state(model)))
    ours = ResNet18(5, widths=WIDTHS)
    x = np.random.default_rng(1).standard_normal((2, 1, 22, 16, 19), np.float32)
    theirs = model(torch.from_numpy(x))
    cotangent = np.random.default_rng(2).standard_normal((2, 5), np.float32)

    def loss(params):
        logits, updated = ours.apply(
            {**variables, "params": params}, jnp.moveaxis(x, 1, -1), train=train, mutable=["batch_stats"]
        )
        return jnp.vdot(logits, cotangent), (logits, updated)

    if not train:
        logits = jax.jit(lambda params: loss(params)[1][0])(variables["params"])
        assert_close(logits, theirs.detach().numpy(), float(theirs.detach().abs().max()), "logits")
        return

    theirs.backward(torch.from_numpy(cotangent))
    gradients, (logits, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert_close(logits, theirs.detach().numpy(), float(theirs.detach().abs().max()), "logits")
    after = convert.to_torch({"params": variables["params"], **updated})
    for key, value in numpy_state(model).items():
        if "running" in key:
            assert_close(after[key], value, np.abs(value).max(), key)
    named = convert.to_torch({"params": gradients, "batch_stats": variables["batch_stats"]})
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for key, parameter in model.named_parameters():
        scale = max(float(parameter.grad.abs().max()), 1e-2 * largest)
        assert_close(named[key], parameter.grad.numpy(), scale, key)


def test_round_trip_is_bitwise():
    state = numpy_state(monai_resnet())
    back = convert.to_torch(convert.from_torch(state))
    assert set(back) == set(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape, key
        assert back[key].tobytes() == value.tobytes(), key


def test_default_size_is_that_of_resnet18():
    with torch.device("meta"):
        model = resnet18(spatial_dims=3, n_input_channels=1, num_classes=12)
    x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)
    start = jax.eval_shape(lambda x: ResNet18(12).init(jax.random.key(0), x, train=True), x)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), start)
    shapes = {key: value.shape for key, value in convert.to_torch(zeros).items()}
    assert shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_missing_keys_are_named():
    state = numpy_state(monai_resnet())
    del state["layer3.0.downsample.0.bias"]
    with pytest.raises(ValueError, match=r"missing \['layer3.0.downsample.0.bias'\]"):
        convert.from_torch(state)
