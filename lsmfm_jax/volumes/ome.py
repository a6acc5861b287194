"""OME-XML, the description in an OME-TIFF: which files make up its image, how many planes, which voxel size."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

import tifffile

from lsmfm_jax.volumes.formats import Size, Unreadable, judge_voxel_size

UNITS_UM = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6}
NAMED = 5


class OmeFiles(NamedTuple):
    """The file that holds the description, and all files of the image, sorted; none if it is one file alone."""

    main: pathlib.Path
    members: tuple[pathlib.Path, ...]


def ome_files(path: pathlib.Path) -> OmeFiles:
    """Find the files that an OME-TIFF shares its image with; they lie in one folder with it.

    Raises:
        Unreadable: files of the image are missing, lie elsewhere, or are described by a file that is no TIFF.
        OSError: the file cannot be opened.
    """
    root = _description(path)
    if root is None:
        return OmeFiles(path, ())
    main = path
    binary_only = next((element for element in root if _tag(element) == "BinaryOnly"), None)
    if binary_only is not None:
        name = _plain_name(binary_only.attrib.get("MetadataFile", ""))
        main = path.parent / name
        root = _description(main) if main.is_file() and name.lower().endswith((".tif", ".tiff")) else None
        if root is None:
            siblings = sorted(other.name for other in path.parent.glob("*.ome.tif*") if other != path)
            raise Unreadable(
                f"it is one of several files of an image that {name} describes"
                f"{' (beside it: ' + _listed(siblings) + ')' if siblings else ''}",
                "that kind of multi-file OME-TIFF is not read: save the image as one OME-TIFF",
            )
    others = _other_names(root, main)
    if not others:
        return OmeFiles(main, ())
    members = tuple(path.parent / name for name in sorted(others | {main.name, path.name}))
    missing = [member.name for member in members if not member.is_file()]
    if missing:
        raise Unreadable(
            f"it is one of {len(members)} files of one image, and {len(missing)} of them are not beside it: "
            f"{_listed(missing)}",
            "put all files of the image into one folder under their own names",
        )
    return OmeFiles(main, members)


def promised_planes(xml: str, image: int = 0) -> int | None:
    """Give the number of planes, over Z, C and T, that the description promises for one of its images."""
    pixels = _pixels(xml, image)
    try:
        return None if pixels is None else _planes(pixels)
    except (KeyError, ValueError):
        return None


def ome_voxel_size(xml: str, image: int = 0) -> tuple[Size | None, str]:
    """Give the voxel size of one of the images, and how far it can be believed (see `judge_voxel_size`)."""
    pixels = _pixels(xml, image)
    sizes = []
    for axis in "ZYX":
        value = None if pixels is None else pixels.attrib.get(f"PhysicalSize{axis}")
        scale = UNITS_UM.get("µm" if pixels is None else pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is None or scale is None:
            return None, "unknown"
        try:
            sizes.append(float(value) * scale)
        except ValueError:
            return None, "unknown"
    return judge_voxel_size(sizes, "micron")


def _planes(pixels: ElementTree.Element) -> int:
    channels = [element for element in pixels if _tag(element) == "Channel"]
    samples = int(channels[0].attrib.get("SamplesPerPixel", 1)) if channels else 1
    count = 1
    for axis in "ZCT":
        count *= int(pixels.attrib[f"Size{axis}"])
    return count // max(1, samples)


def _pixels(xml: str, image: int) -> ElementTree.Element | None:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    found = [pixels for element in root if _tag(element) == "Image" for pixels in element if _tag(pixels) == "Pixels"]
    return found[image] if image < len(found) else None


def _description(path: pathlib.Path) -> ElementTree.Element | None:
    try:
        with tifffile.TiffFile(path) as file:
            xml = file.ome_metadata
        return None if xml is None else ElementTree.fromstring(xml)
    except OSError:
        raise
    # Whatever is wrong with the file is found, and told, when it is read.
    except Exception:
        return None


def _other_names(root: ElementTree.Element, main: pathlib.Path) -> set[str]:
    own = root.attrib.get("UUID")
    names = set()
    for element in _elements(root, "UUID"):
        name = element.attrib.get("FileName", "")
        is_own = element.text == own if own else name.lower() == main.name.lower()
        if name and not is_own:
            names.add(_plain_name(name))
    return names - {main.name}


def _plain_name(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise Unreadable(f"its OME description names the file {name!r}", "save the image as one OME-TIFF")
    return name


def _elements(root: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (element for element in root.iter() if _tag(element) == tag)


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
