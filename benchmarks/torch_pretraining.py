"""The pretraining objective in plain PyTorch with MONAI's networks: what the JAX step is compared with.

Written as a PyTorch user would write it: channels first, dense features of all channels at full resolution,
autocast to bfloat16 on a graphics card, AdamW, and an averaged teacher. Modules are named as in the released
code, so that weights converted from JAX load strictly.
"""

from collections.abc import Mapping
from typing import Any

import torch
from ml_collections import ConfigDict
from monai.networks.nets import SwinUNETR, UNet
from torch import nn
from torch.nn import functional

Batch = dict[str, torch.Tensor]


def backbone(config: ConfigDict) -> nn.Module:
    """MONAI's network of a configuration."""
    model = config.model
    if model.name == "unet":
        unet = model.unet
        return UNet(
            3, 1, model.out_channels, unet.channels, unet.strides, num_res_units=unet.num_res_units, norm=unet.norm
        )
    swin = model.swin_unetr
    return SwinUNETR(
        1,
        model.out_channels,
        feature_size=swin.feature_size,
        depths=swin.depths,
        num_heads=swin.num_heads,
        window_size=swin.window,
    )


class Decoder(nn.Module):
    """Three convolutions from dense features back to voxels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Conv3d(width, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 1, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Predict intensities."""
        return self.decoder(features)


def projection(inputs: int, width: int, *first: nn.Module) -> nn.Sequential:
    """Linear, ReLU, Linear, LayerNorm."""
    return nn.Sequential(*first, nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))


class Pretraining(nn.Module):
    """Student, teacher, light decoder and, with `bert`, the text side."""

    def __init__(self, config: ConfigDict, bert: dict[str, int] | None) -> None:
        super().__init__()
        self.config, width = config, config.model.out_channels
        self.student_encoder = backbone(config)
        self.teacher_encoder = backbone(config).eval().requires_grad_(False)
        self.reconstruction_head = Decoder(width)
        self.has_text = bert is not None
        if bert is not None:
            self.text_encoder = text_encoder(bert)
            self.text_proj = projection(bert["hidden_size"], width)
            self.image_proj = projection(width, width, nn.AdaptiveAvgPool3d(1), nn.Flatten())
            self.logit_scale = nn.Parameter(torch.zeros(()))

    def losses(self, image: torch.Tensor, mask: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses of a batch; `image` is (B, 1, Z, Y, X) in [0, 1], `mask` the same in bool.

        Source: paper, "Pretraining Objective", equation 1.
        """
        weights = self.config.loss
        features = self.student_encoder(image.masked_fill(mask, 0.0))
        with torch.no_grad():
            target = functional.normalize(self.teacher_encoder(image).float(), dim=1)
            probability = torch.softmax(target / weights.teacher_temperature, 1)
        normalised = functional.normalize(features.float(), dim=1)
        log_student = torch.log_softmax(normalised / weights.student_temperature, 1)
        divergence = functional.kl_div(log_student, probability, reduction="none").sum(1, keepdim=True)
        error = (self.reconstruction_head(features).float() - image).abs()
        found = {"distill": divergence[mask].mean(), "reconstruct": error[mask].mean()}
        if self.has_text:
            found |= self._pair_losses(normalised, batch)
        found["loss"] = sum(weights[name] * value for name, value in found.items())
        return found

    def _pair_losses(self, normalised: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        hidden = self.text_encoder(batch["tokens"], batch["token_mask"].long()).last_hidden_state
        real = batch["token_mask"][..., None].float()
        pooled = (hidden.float() * real).sum(1) / real.sum(1)
        image = functional.normalize(self.image_proj(normalised).float(), dim=-1)
        text = functional.normalize(self.text_proj(pooled).float(), dim=-1)
        scores = self.logit_scale.exp().clamp(1e-3, 100) * image @ text.T
        labels = torch.arange(len(image), device=image.device)
        both_ways = functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)
        return {"align": 1 - (image * text.detach()).sum(1).mean(), "contrast": 0.5 * both_ways}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the teacher towards the student, statistics included."""
        student, teacher = self.student_encoder.state_dict(), self.teacher_encoder.state_dict()
        pairs = [(teacher[name], value) for name, value in student.items() if value.is_floating_point()]
        torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - decay)


def text_encoder(bert: dict[str, int]) -> nn.Module:
    """Hugging Face's BERT of these sizes, without dropout; its attention is PyTorch's fused one."""
    from transformers import BertConfig as TheirConfig
    from transformers import BertModel

    sizes = TheirConfig(
        vocab_size=bert["vocab_size"],
        hidden_size=bert["hidden_size"],
        num_hidden_layers=bert["num_layers"],
        num_attention_heads=bert["num_heads"],
        intermediate_size=bert["intermediate_size"],
        max_position_embeddings=bert["max_positions"],
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(sizes)


def trained_text(name: str, *, layers: int, top_k: int) -> bool:
    """Whether a parameter of the text encoder trains: top layers, embeddings, layer norms, pooler."""
    if "encoder.layer." not in name or "LayerNorm" in name:
        return True
    return int(name.split("encoder.layer.")[1].split(".")[0]) >= layers - top_k


def load(model: Pretraining, state: Mapping[str, Any]) -> None:
    """Load converted weights; every one of them must match."""
    tensors = {name: torch.as_tensor(value) for name, value in state.items() if name != "ema_decay"}
    known = {name for name, _ in model.named_buffers()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    # Position ids and the like are computed, not converted.
    missing = [name for name in missing if name not in known]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, left over {unexpected}")


def prepare(batch: Batch, size: int) -> torch.Tensor:
    """Scale each patch to [0, 1] and resize it, as (B, 1, Z, Y, X)."""
    low, high = (batch[name][:, None, None, None] for name in ("low", "high"))
    scaled = ((batch["image"].float() - low) / (high - low)).clamp(0, 1)
    return functional.interpolate(scaled[:, None], (size,) * 3, mode="trilinear", align_corners=False)


def block_mask(batch: int, size: int, *, block_sizes: tuple[int, ...], ratio: float, device: str) -> torch.Tensor:
    """Random cubes of each sample, a given share of them, as (B, 1, Z, Y, X) in bool."""
    masks = []
    for _ in range(batch):
        block = block_sizes[int(torch.randint(len(block_sizes), ()))]
        blocks = size // block
        chosen = torch.zeros(blocks**3, dtype=torch.bool, device=device)
        chosen[torch.randperm(blocks**3, device=device)[: round(ratio * blocks**3)]] = True
        grid = chosen.reshape(1, 1, blocks, blocks, blocks)
        masks.append(functional.interpolate(grid.float(), (size,) * 3, mode="nearest").bool())
    return torch.cat(masks)
