"""Swin UNETR against MONAI's: every feature map, every gradient, both forms of patch merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.networks.nets.swin_unetr")

from lsmfm_jax.convert.swin_unetr import from_torch, infer_swin_unetr, to_torch  # noqa: E402
from lsmfm_jax.models.swin_unetr import SwinUNETR  # noqa: E402


class DuplicatedMerging(monai.PatchMergingV2):
    """Patch merging as MONAI did it up to 1.4.0: two voxels of each 2x2x2 block twice, two never."""

    def forward(self, x):
        z, y, w = torch.tensor(
            [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
        ).T
        blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # Indexed together though apart, the three axes of two come first as one of eight.
        picked = blocks[:, :, z, :, y, :, w].movedim(0, -2)
        return self.reduction(self.norm(picked.flatten(-2)))


def reference(seed: int, **changes) -> torch.nn.Module:
    """A small MONAI network whose every parameter matters: norms, biases and position tables are random too."""
    torch.manual_seed(seed)
    net = monai.SwinUNETR(in_channels=1, **({"out_channels": 24, "feature_size": 12} | changes))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("table"):
                parameter.normal_(0.0, 0.5)
            elif parameter.ndim == 1:
                parameter.normal_(float(name.endswith("weight")), 0.3)
    return net


def state_of(net: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in net.state_dict().items()}


def volume(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_theirs(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def to_ours(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def run_theirs(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and every map on the way to it."""
    seen: dict[str, torch.Tensor] = {}
    names = [f"encoder{i}" for i in (1, 2, 3, 4, 10)] + ["swinViT", "decoder1"]
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y}))
        for name in names
    ]
    seen["output"] = net(x)
    for hook in hooks:
        hook.remove()
    seen.update({f"hidden{i}": value for i, value in enumerate(seen.pop("swinViT"))})
    return seen


def run_ours(net: SwinUNETR, params: dict, x: jnp.ndarray) -> dict[str, jnp.ndarray]:
    trunk = net.apply({"params": params}, x, train=True, method="trunk")
    hidden = net.apply({"params": params}, x, method="hidden_states")
    maps = {f"encoder{i}": value for i, value in zip((1, 2, 3, 4, 10), trunk.stages, strict=True)}
    maps |= {f"hidden{i}": value for i, value in enumerate(hidden)} | {"decoder1": trunk.values}
    return maps | {"output": net.apply({"params": params}, x, train=True)}


def assert_same_maps(ours: dict[str, jnp.ndarray], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], to_ours(value), atol=tolerance, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 64, 64, 64, 1), (1, 32, 64, 96, 1)])
def test_every_map_is_monais(shape: tuple[int, ...]) -> None:
    net, x = reference(shape[0]), volume(1, *shape)
    state = state_of(net)
    params = from_torch(state)["params"]
    ours = jax.jit(lambda params, x: run_ours(SwinUNETR(**infer_swin_unetr(state)), params, x))(params, x)
    with torch.no_grad():
        assert_same_maps(ours, run_theirs(net, to_theirs(x)), 1e-4)
        assert_same_maps(ours, run_theirs(net.eval(), to_theirs(x)), 1e-4)


def test_every_gradient_is_monais() -> None:
    """In float64: a leaky ReLU's slope jumps at zero, so rounding alone moves float32 gradients by up to 1e-2."""
    net, x = reference(3, downsample=DuplicatedMerging).double(), volume(2, 1, 32, 64, 32, 1)
    weight = volume(4, 1, 32, 64, 32, 24)
    theirs = run_theirs(net, to_theirs(np.float64(x)))
    (theirs["output"] * to_theirs(weight)).sum().backward()
    state = state_of(net)
    ours = SwinUNETR(**infer_swin_unetr(state), merging="duplicated", dtype=jnp.float64)
    with jax.enable_x64(True):

        def objective(params, x):
            maps = run_ours(ours, params, x)
            return jnp.sum(maps["output"] * weight), maps

        step = jax.jit(jax.grad(objective, has_aux=True))
        gradient, maps = step(from_torch(state)["params"], np.float64(x))
    assert_same_maps(maps, theirs, 1e-8)
    gradient = to_torch({"params": jax.tree.map(np.asarray, gradient)})
    for name, parameter in net.named_parameters():
        expected = parameter.grad.numpy()
        error = np.linalg.norm(gradient[name] - expected) / np.linalg.norm(expected)
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_conversion_of_monais_own_state_is_bit_for_bit() -> None:
    state = state_of(reference(5, out_channels=7, feature_size=24))
    again = to_torch(from_torch(state))
    assert {key: value.tobytes() for key, value in again.items()} == {k: v.tobytes() for k, v in state.items()}
    assert {key: value.dtype for key, value in again.items()} == {k: v.dtype for k, v in state.items()}


@pytest.mark.parametrize(("feature_size", "count"), [(36, 35_091_422), (24, 15_715_754)])
def test_released_widths_have_monais_parameters(feature_size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Shapes alone are wanted, and MONAI asks for values of a tensor that the meta device cannot give.
    monkeypatch.setattr(torch, "linspace", lambda *a, **k: torch.zeros(a[2], device="cpu"))
    with torch.device("meta"):
        net = monai.SwinUNETR(in_channels=1, out_channels=512, feature_size=feature_size)
    theirs = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    ours = SwinUNETR(out_channels=512, feature_size=feature_size)
    x = jnp.zeros((1, 64, 64, 64, 1))
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, train=True))
    state = to_torch(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
    assert {key: value.shape for key, value in state.items() if not key.endswith("index")} == theirs
