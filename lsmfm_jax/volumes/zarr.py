"""Zarr arrays of version 2 and 3 and OME-Zarr pyramids (0.1 to 0.5), on a disk or behind an address."""

from typing import Any

import tensorstore

from lsmfm_jax.volumes.axes import Stored, guessed_axes, in_micrometres, level_of
from lsmfm_jax.volumes.formats import Size, Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted, choose
from lsmfm_jax.volumes.remote import open_array, read_json

MARKERS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
# Axes of OME-Zarr before version 0.3, which did not name them.
OLDEST_AXES = "tczyx"


def open_zarr(store: tensorstore.KvStore, wanted: Wanted) -> Level | None:
    """Open a zarr array, or the pyramid of an OME-Zarr group; None where neither metadata file is there.

    Raises:
        Unreadable: a group that is no image (it is said which of its members are), or damaged metadata.
    """
    metadata = read_json(store, "zarr.json")
    if metadata is not None:
        attributes = metadata.get("attributes") or {}
        attributes = attributes.get("ome", attributes)
        if metadata.get("node_type") == "array":
            return _single(open_array(store, "zarr3"), metadata.get("dimension_names"), wanted)
        return _group(store, "zarr3", attributes, wanted, listing=metadata.get("consolidated_metadata"))
    if read_json(store, ".zarray") is not None:
        named = (read_json(store, ".zattrs") or {}).get("_ARRAY_DIMENSIONS")
        return _single(open_array(store, "zarr"), named, wanted)
    attributes = read_json(store, ".zattrs")
    if attributes is None and read_json(store, ".zgroup") is None:
        return None
    return _group(store, "zarr", attributes or {}, wanted, listing=read_json(store, ".zmetadata"))


def _single(stored: Stored, names: Any, wanted: Wanted) -> Level:
    named = isinstance(names, list) and {"z", "y", "x"} <= {str(name).lower() for name in names}
    axes = tuple(map(str, names)) if named else guessed_axes(stored.shape)
    return level_of(stored._replace(axes=axes), wanted)


def _group(store: tensorstore.KvStore, driver: str, attributes: dict[str, Any], wanted: Wanted, listing: Any) -> Level:
    try:
        if attributes.get("multiscales"):
            return _pyramid(store, driver, attributes["multiscales"][0], wanted)
        if "plate" in attributes:
            wells = [well["path"] for well in attributes["plate"]["wells"]]
            raise Unreadable(f"it is a plate of {len(wells)} wells", f"name one image of it, such as {wells[0]}/0")
    except Unreadable:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise Unreadable(f"its OME-Zarr metadata are damaged ({error!r})", "export it again") from None
    if "bioformats2raw.layout" in attributes:
        # The converter writes each series of a file as an image called 0, 1, ...
        if _image(store, "1/") is None:
            return open_zarr(store / "0/", wanted) or _no_image(listing)
        raise Unreadable("it holds several images (series)", "name one of them: add /0, /1 or another to the path")
    return _no_image(listing)


def _image(store: tensorstore.KvStore, key: str) -> dict[str, Any] | None:
    return read_json(store / key, "zarr.json") or read_json(store / key, ".zattrs")


def _no_image(listing: Any) -> Level:
    metadata = listing.get("metadata", {}) if isinstance(listing, dict) else {}
    names = [key.removesuffix(".zarray").rstrip("/") for key, node in metadata.items() if "chunks" in node]
    names += [key for key, node in metadata.items() if isinstance(node, dict) and node.get("node_type") == "array"]
    which = f": {', '.join(sorted(names)[:5])}" if names else ""
    raise Unreadable(
        "it is a zarr group without OME-Zarr's multiscales", f"add the name of one of its arrays to the path{which}"
    )


def _pyramid(store: tensorstore.KvStore, driver: str, multiscales: dict[str, Any], wanted: Wanted) -> Level:
    datasets = multiscales["datasets"]
    number = choose(wanted.level, len(datasets), what="level", option="--level")
    stored = open_array(store / f"{datasets[number]['path'].strip('/')}/", driver)
    rank = len(stored.shape)
    axes = multiscales.get("axes") or list(OLDEST_AXES[-rank:])
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    names = tuple(str(axis["name"]) for axis in axes)
    if len(names) != rank:
        raise Unreadable(f"its metadata name {len(names)} axes, its array has {rank}", "export it again")
    scale = [1.0] * rank
    given = False
    for transforms in (
        datasets[number].get("coordinateTransformations"),
        multiscales.get("coordinateTransformations"),
    ):
        for transform in transforms or ():
            if transform.get("type") == "scale":
                given = True
                scale = [a * float(b) for a, b in zip(scale, transform["scale"], strict=True)]
    size: Size | None = None
    source = "unknown"
    lower = [name.lower() for name in names]
    if given and {"z", "y", "x"} <= set(lower):
        places = [lower.index(name) for name in "zyx"]
        size, source = in_micrometres(
            [scale[place] for place in places], [axes[place].get("unit") for place in places], where="OME-Zarr"
        )
    stored = stored._replace(axes=names)
    return level_of(stored, wanted, levels=len(datasets), voxel_size_um=size, voxel_size_source=source)
