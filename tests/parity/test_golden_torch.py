"""The golden step again in PyTorch and MONAI, in float64: how far off are the golden float32 figures themselves?"""

import json
import re

import numpy as np
import pytest
from golden_float64 import GRADIENT_NORMS, INERT

torch = pytest.importorskip("torch")
pytest.importorskip("monai")
from monai.networks.nets import SwinUNETR, UNet  # noqa: E402
from monai.networks.nets.swin_unetr import PatchMergingV2  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

WIDTH = 24
# Where each of the eight slices starts along Z, Y, X; in MONAI 1.4.0 two of them are taken twice.
DUPLICATED = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class DuplicatedMerging(PatchMergingV2):
    def forward(self, x):
        return self.reduction(self.norm(torch.cat([x[:, z::2, y::2, w::2] for z, y, w in DUPLICATED], -1)))


def build_backbone(name, config):
    if name == "unet":
        model = config["unet"]
        return UNet(3, 1, WIDTH, model["channels"], model["strides"], num_res_units=2, norm=model["norm"])
    network = SwinUNETR(1, WIDTH, feature_size=config["swinunetr"]["feature_size"])
    for module in network.modules():
        if isinstance(module, PatchMergingV2):
            module.__class__ = DuplicatedMerging
    return network


def build_modules(name, config, folder):
    from transformers import BertConfig, BertModel

    def projection(inputs, *first):
        layers = nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        return nn.Sequential(*first, *layers)

    decoder = nn.Module()
    decoder.decoder = nn.Sequential(
        nn.Conv3d(WIDTH, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(32, 1, 1),
    )
    text = BertModel(BertConfig.from_pretrained(folder / "tiny_bert"))
    return {
        "student_encoder": build_backbone(name, config),
        "teacher_encoder": build_backbone(name, config).eval(),
        "text_encoder": text.eval(),
        "text_proj": projection(text.config.hidden_size),
        "image_proj": projection(WIDTH, nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        "reconstruction_head": decoder,
    }


def losses_of(modules, scale, arrays, config):
    x, mask = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["mask"])
    features = modules["student_encoder"](x * ~mask)
    normalised = functional.normalize(features, dim=1)
    with torch.no_grad():
        target = functional.normalize(modules["teacher_encoder"](x), dim=1)
    log_student = torch.log_softmax(normalised / config["temp_student"], 1)
    probability = torch.softmax(target / config["temp_teacher"], 1)
    divergence = functional.kl_div(log_student, probability, reduction="none").sum(1)
    reconstruction = modules["reconstruction_head"].decoder(features)
    tokens = {name: torch.from_numpy(arrays[f"tok_{name}"]) for name in ("input_ids", "attention_mask")}
    pooled = modules["text_encoder"](**tokens).last_hidden_state.mean(1)
    image = functional.normalize(modules["image_proj"](normalised), dim=-1)
    text = functional.normalize(modules["text_proj"](pooled), dim=-1)
    scores, labels = scale.exp().clamp(1e-3, 100) * image @ text.T, torch.arange(len(x))
    return {
        "distill": divergence[mask[:, 0]].mean(),
        "recon_l1": (reconstruction - x).abs()[mask].sum() / mask.sum(),
        "align": 1 - functional.cosine_similarity(image, text.detach()).mean(),
        "clip": 0.5 * (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "name"), [("unet", "unet"), ("swin_unetr", "swinunetr")])
def test_golden_figures_against_float64(shared, backbone, name):
    folder = shared / "golden"
    checkpoint = torch.load(folder / f"{name}_image_text_tiny.ckpt", map_location="cpu", weights_only=False)
    figures = json.loads((folder / f"{name}_step.json").read_text())
    modules = build_modules(name, figures["config"]["model"], folder)
    for prefix, module in modules.items():
        state = checkpoint["state_dict"].items()
        module.load_state_dict({k.removeprefix(f"{prefix}."): v for k, v in state if k.startswith(f"{prefix}.")})
        module.double()
    scale = checkpoint["state_dict"]["logit_scale"].double().requires_grad_()
    losses = losses_of(modules, scale, dict(np.load(folder / f"{name}_step.npz")), figures["config"]["model"])
    weights = figures["config"]["loss_weights"]
    weight_names = {"distill": "distill", "recon_l1": "reconstruction", "align": "align", "clip": "clip"}
    losses["total"] = sum(weights[f"{weight_names[key]}_weight"] * value for key, value in losses.items())
    losses["total"].backward()
    for key, value in losses.items():
        assert value.item() == pytest.approx(figures["losses"][key], rel=1e-6), key

    exact = {"logit_scale": scale.grad.norm().item()}
    for prefix, module in modules.items():
        for key, parameter in module.named_parameters():
            if parameter.grad is not None:
                exact[f"{prefix}.{key}"] = parameter.grad.norm().item()
    golden = figures["grad_norm"]
    inert = {key for key in golden if re.search(INERT, key)}
    assert max(exact[key] for key in inert) < 1e-13
    off = {key for key in golden if key not in inert and abs(golden[key] - exact[key]) > 1e-3 * exact[key]}
    assert off == set(GRADIENT_NORMS[backbone])
    for key, value in GRADIENT_NORMS[backbone].items():
        assert exact[key] == pytest.approx(value, rel=1e-7)
