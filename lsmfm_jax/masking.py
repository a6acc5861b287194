"""Which voxels the student does not see: blocks drawn per sample, exact in number, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lsmfm_jax.config.pretrain_keys import MASK_ROUNDINGS
from lsmfm_jax.errors import InputError


def _block_grid(grid: tuple[int, int, int], block_size: int) -> tuple[int, int, int]:
    if block_size < 1 or any(side % block_size for side in grid):
        raise InputError(
            f"mask block size {block_size} does not divide the grid {grid}; allowed are common divisors of "
            "the three sides: change the block sizes or the patch size"
        )
    return tuple(side // block_size for side in grid)


def _mask_of_one_size(
    keys: Key[Array, "b"],
    grid: tuple[int, int, int],
    block_size: int,
    *,
    ratio: float | Float[Array, ""],
    rounding: str,
) -> Bool[Array, "b z y x"]:
    blocks = _block_grid(grid, block_size)
    count = blocks[0] * blocks[1] * blocks[2]
    share = jnp.asarray(ratio, jnp.float32) * count
    wanted = jnp.clip(jnp.floor(share) if rounding == "down" else jnp.round(share), 1, count)
    # The order of random numbers gives each block a distinct rank, so the count is exact even where two tie.
    ranks = jnp.argsort(jax.vmap(lambda key: jax.random.bits(key, (count,)))(keys), axis=1)
    masked = (ranks < wanted).reshape(-1, blocks[0], 1, blocks[1], 1, blocks[2], 1)
    whole = (len(keys), blocks[0], block_size, blocks[1], block_size, blocks[2], block_size)
    return jnp.broadcast_to(masked, whole).reshape(len(keys), *grid)


def block_mask(
    keys: Key[Array, "b"],
    *,
    grid: tuple[int, int, int],
    block_sizes: tuple[int, ...] = (4, 8),
    ratio: float | Float[Array, ""],
    rounding: str = "nearest",
) -> Bool[Array, "b z y x"]:
    """Draw a mask of cubic blocks for each sample, True where the student sees nothing (paper section 2.2).

    Each sample takes one of `block_sizes` (voxels) with equal chance; of the blocks that tile `grid` (Z, Y, X
    voxels) `ratio * blocks` are masked, made whole by `rounding` ("nearest", or "down" as the released code does), at
    least one. `ratio` may be a traced scalar: the warm-up changes it without compiling again. A sample's mask depends
    on its own key alone.

    Raises:
        ValueError: a block size does not divide the grid, there is none, `ratio` is outside (0, 1], or `rounding` is
            unknown.
    """
    if rounding not in MASK_ROUNDINGS:
        raise InputError(f"mask rounding {rounding!r} is unknown; allowed: {', '.join(MASK_ROUNDINGS)}")
    if not block_sizes:
        raise InputError("mask block sizes are empty; give at least one, in voxels")
    if isinstance(ratio, float) and not 0 < ratio <= 1:
        raise InputError(f"mask ratio {ratio} is outside (0, 1]")
    halves = jax.vmap(jax.random.split)(keys)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(block_sizes)))(halves[:, 0])
    mask = _mask_of_one_size(halves[:, 1], grid, block_sizes[0], ratio=ratio, rounding=rounding)
    for index, block_size in enumerate(block_sizes[1:], 1):
        other = _mask_of_one_size(halves[:, 1], grid, block_size, ratio=ratio, rounding=rounding)
        mask = jnp.where((choice == index)[:, None, None, None], other, mask)
    return mask


def fixed_masks(
    seed: int,
    sample_ids: Int[Array, "b"],
    *,
    grid: tuple[int, int, int],
    block_sizes: tuple[int, ...] = (4, 8),
    ratio: float | Float[Array, ""],
    rounding: str = "nearest",
) -> Bool[Array, "b z y x"]:
    """Draw the masks of validation: the same for a patch at every evaluation, whatever batch it stands in.

    `sample_ids` identify the patches; see `block_mask` for the rest.
    """
    base = jax.random.key(seed)
    keys = jax.vmap(lambda sample: jax.random.fold_in(base, sample))(sample_ids)
    return block_mask(keys, grid=grid, block_sizes=block_sizes, ratio=ratio, rounding=rounding)


def apply_mask(images: Float[Array, "b z y x c"], mask: Bool[Array, "b z y x"]) -> Float[Array, "b z y x c"]:
    """Set the masked voxels to zero in all channels."""
    return jnp.where(mask[..., None], jnp.zeros((), images.dtype), images)
