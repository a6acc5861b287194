"""The XML file beside a BigDataViewer container: what its view setups are and how large their voxels."""

import pathlib
import xml.etree.ElementTree
from typing import NamedTuple

from lsmfm_jax.volumes.axes import in_micrometres
from lsmfm_jax.volumes.formats import Size


class Setup(NamedTuple):
    """One view setup: its number, its name, and the size of its finest voxels, ZYX."""

    number: int
    name: str
    voxel_size_um: Size | None
    voxel_size_source: str


def view_setups(container: pathlib.Path) -> list[Setup]:
    """Read the setups of the XML file that has the container's name; none where there is no such file."""
    path = container.with_suffix(".xml")
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except (OSError, xml.etree.ElementTree.ParseError):
        return []
    setups = []
    for element in root.iter("ViewSetup"):
        number, name = element.findtext("id"), element.findtext("name") or ""
        text, unit = element.findtext("voxelSize/size"), element.findtext("voxelSize/unit")
        size: Size | None = None
        source = "unknown"
        try:
            values = [float(value) for value in (text or "").split()]
            number = int(number or "")
        except ValueError:
            continue
        if len(values) == 3:
            size, source = in_micrometres(values[::-1], [unit] * 3, where=f"{path.name} beside it")
        setups.append(Setup(number, name, size, source))
    return setups
