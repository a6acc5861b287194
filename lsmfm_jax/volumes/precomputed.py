"""Neuroglancer's precomputed volumes: axes X, Y, Z, channel, sizes in nanometres, and a pyramid of scales."""

import tensorstore

from lsmfm_jax.volumes.axes import in_micrometres, level_of
from lsmfm_jax.volumes.formats import Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted, choose
from lsmfm_jax.volumes.remote import open_array, read_json

METADATA = "info"


def open_precomputed(store: tensorstore.KvStore, wanted: Wanted) -> Level | None:
    """Open one scale of a precomputed volume; its voxel offset is dropped. None where there is no `info`.

    Raises:
        Unreadable: `info` describes no volume, or is damaged.
    """
    info = read_json(store, METADATA)
    if info is None:
        return None
    scales = info.get("scales")
    if not isinstance(scales, list) or not scales:
        raise Unreadable(
            f"its info is of type {info.get('@type')!r}, not a volume with scales",
            "name a volume, not meshes or skeletons",
        )
    number = choose(wanted.level, len(scales), what="level", option="--level")
    stored = open_array(store, "neuroglancer_precomputed", ("x", "y", "z", "c"), scale_index=number)
    try:
        resolution = [float(value) for value in scales[number]["resolution"][::-1]]
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"its info names no resolution ({error!r})", "export it again") from None
    size, source = in_micrometres(resolution, ["nm"] * 3, where="precomputed")
    return level_of(stored, wanted, levels=len(scales), voxel_size_um=size, voxel_size_source=source)
