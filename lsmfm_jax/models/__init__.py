"""Networks: two backbones, a ResNet-18 to compare them with, a text tower, heads. Importing this imports no JAX."""

from lsmfm_jax.models.backbones import BACKBONES, build_backbone, configured_architecture
from lsmfm_jax.models.declaration import Architecture, Backbone

__all__ = ["BACKBONES", "Architecture", "Backbone", "build_backbone", "configured_architecture"]
