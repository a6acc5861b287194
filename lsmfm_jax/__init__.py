"""A foundation model for 3D light-sheet fluorescence microscopy in JAX and Flax.

`load` reads a trained run; see `lsmfm_jax.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsmfm_jax.api import Model, Models, load

__version__ = "0.1.0"
__all__ = ["Model", "Models", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Only when asked for: JAX takes seconds to import, and the command line answers many questions without it.
    if name in ("Model", "Models", "load"):
        from lsmfm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
