"""A foundation model for 3D light-sheet fluorescence microscopy in JAX and Flax."""

__version__ = "0.1.0"
