"""N5 arrays and pyramids, BigDataViewer's among them; N5 counts X first, so the axes are reversed here."""

import dataclasses
import itertools
from typing import Any

import tensorstore

from lsmfm_jax.volumes.axes import Stored, guessed_axes, in_micrometres, level_of
from lsmfm_jax.volumes.bigdataviewer import Setup
from lsmfm_jax.volumes.formats import Size, Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted, choose
from lsmfm_jax.volumes.remote import open_array, read_json

METADATA = "attributes.json"


def open_n5(store: tensorstore.KvStore, wanted: Wanted, *, setups: list[Setup] | None = None) -> Level | None:
    """Open an N5 array, a pyramid s0, s1, ..., or a BigDataViewer container; None where it is none of them.

    `setups` are the view setups of the XML file beside a BigDataViewer container, for the voxel size.

    Raises:
        Unreadable: an N5 group that is neither, or damaged metadata.
    """
    attributes = read_json(store, METADATA)
    if attributes is not None and "dimensions" in attributes:
        stored = open_array(store, "n5")
        size, source = _voxel_size([attributes], len(stored.shape))
        return level_of(_named(stored, attributes), wanted, voxel_size_um=size, voxel_size_source=source)
    if read_json(store, f"s0/{METADATA}") is not None:
        return _pyramid(store, attributes or {}, wanted)
    if read_json(store, f"setup0/{METADATA}") is not None:
        return _bigdataviewer(store, wanted, setups)
    if attributes is None:
        return None
    raise Unreadable(
        "it is an N5 group without an array or a pyramid s0, s1, ...", "add the name of one of its arrays to the path"
    )


def _pyramid(
    store: tensorstore.KvStore, group: dict[str, Any], wanted: Wanted, *, size: Size | None = None, source: str = ""
) -> Level:
    each = _counted(store, "s")
    number = choose(wanted.level, len(each), what="level", option="--level")
    finest, stored = open_array(store / "s0/", "n5"), open_array(store / f"s{number}/", "n5")
    if size is None:
        size, source = _voxel_size([each[0], group], len(stored.shape))
    stored = _named(stored, {**group, **each[number]})
    if size is not None and number:
        factors = each[number].get("downsamplingFactors") or [
            round(before / after) for before, after in zip(finest.shape, stored.shape, strict=True)
        ]
        # Along X, Y, Z, as everything in N5.
        z, y, x = (value * float(factor) for value, factor in zip(size, factors[2::-1], strict=True))
        size = (z, y, x)
    return level_of(stored, wanted, levels=len(each), voxel_size_um=size, voxel_size_source=source)


def _bigdataviewer(store: tensorstore.KvStore, wanted: Wanted, setups: list[Setup] | None) -> Level:
    count = len(_counted(store, "setup"))
    number = choose(wanted.channel, count, what="view setup", option="--channel")
    chosen = store / f"setup{number}/"
    time = choose(wanted.time, len(_counted(chosen, "timepoint", "s0/")), what="time point", option="--time")
    setup = next((setup for setup in setups or () if setup.number == number), None)
    level = _pyramid(
        chosen / f"timepoint{time}/",
        {},
        Wanted(None, wanted.level),
        size=setup and setup.voxel_size_um,
        source=setup.voxel_size_source if setup else "unknown",
    )
    return dataclasses.replace(level, channels=count, channel=number)


def _counted(store: tensorstore.KvStore, prefix: str, below: str = "") -> list[dict[str, Any]]:
    found = (read_json(store, f"{prefix}{number}/{below}{METADATA}") for number in itertools.count())
    return list(itertools.takewhile(lambda attributes: attributes is not None, found))


def _named(stored: Stored, attributes: dict[str, Any]) -> Stored:
    names = attributes.get("axes")
    if isinstance(names, list) and len(names) == len(stored.shape) and all(isinstance(name, str) for name in names):
        return stored._replace(axes=tuple(names))
    return stored._replace(axes=tuple(reversed(guessed_axes(stored.shape[::-1]))))


def _voxel_size(candidates: list[dict[str, Any]], rank: int) -> tuple[Size | None, str]:
    """The size in the words of whichever program wrote it: n5-viewer, Paintera or n5-ij."""
    for attributes in candidates:
        resolution = attributes.get("pixelResolution", attributes.get("resolution"))
        unit = attributes.get("unit")
        units = attributes.get("units", [unit] * rank)
        if isinstance(resolution, dict):
            units = [resolution.get("unit")] * rank
            resolution = resolution.get("dimensions")
        if isinstance(resolution, list) and len(resolution) >= 3 and len(units) >= 3:
            return in_micrometres([float(value) for value in resolution[2::-1]], units[2::-1], where="N5")
        transform = attributes.get("transform")
        if isinstance(transform, dict) and sorted(transform.get("axes", ())) == ["x", "y", "z"]:
            order = [transform["axes"].index(name) for name in "zyx"]
            scale, units = transform["scale"], transform.get("units", [None] * 3)
            return in_micrometres([float(scale[i]) for i in order], [units[i] for i in order], where="N5")
    return None, "unknown"
