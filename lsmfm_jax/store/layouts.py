"""Where six folder layouts keep the caption key, the volume and the channel of a patch."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.store.captions import normalise_key
from lsmfm_jax.volumes.names import COMPANIONS, SUFFIXES, printable, stem, volume_of, without_ending


class LayoutError(LsmfmError, ValueError):
    """A folder does not hold what the layout promises."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An image file and what its place and name say of it.

    Attributes:
        path: the file.
        relative: its path from the root, with forward slashes, and `%XX` for bytes that are no UTF-8.
        caption_key: normalised; `volume` is the group for splits, unique within the root.
        channel: the channel that the name speaks of, 0 if of none.
    """

    path: pathlib.Path
    relative: str
    caption_key: str
    volume: str
    channel: int = 0


class Survey(NamedTuple):
    """The files of a layout, sorted, and those (path, reason) whose name does not follow its rule."""

    files: list[SourceFile]
    problems: list[tuple[pathlib.Path, str]]


class _Named(NamedTuple):
    caption_key: str
    volume: str
    channel: int = 0


class _Layout(NamedTuple):
    patterns: tuple[str, ...]
    expected: str
    name: Callable[[pathlib.PurePosixPath, str], _Named | None]


def scan(layout: str, root: str | pathlib.Path, *, volume_pattern: str | None = None) -> list[SourceFile]:
    """List the image files of a layout, sorted by path; see `survey` for the rules.

    Raises:
        LayoutError: no such folder or layout, no image in it, or a file whose name does not follow the rule.
    """
    files, problems = survey(layout, root, volume_pattern=volume_pattern)
    if problems:
        path, reason = problems[0]
        raise LayoutError(f"{len(problems)} file(s) do not follow layout {layout!r}, the first is {path}: {reason}")
    return files


def survey(layout: str, root: str | pathlib.Path, *, volume_pattern: str | None = None) -> Survey:
    """List the image files of a layout, and apart from them the files that do not follow its rule.

    `volume_pattern` is a regular expression searched in the path from the root. What its group `volume`, its
    first group or else the whole match holds is then the volume, whatever the caption key; so that, say, two
    channel folders of one brain can be one volume.

    Raises:
        LayoutError: no such folder or layout, a pattern that is none, no image file in the folder, or none that
            follows the rule.
    """
    root = pathlib.Path(root)
    if layout not in LAYOUTS:
        raise LayoutError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}.")
    if not root.is_dir():
        raise LayoutError(f"{root} is not a folder: name the folder that holds the patches with --root.")
    try:
        pattern = re.compile(volume_pattern) if volume_pattern else None
    except re.error as error:
        raise LayoutError(f"volume pattern {volume_pattern!r} is not a regular expression: {error}.") from None
    paths, _ = _images(root, LAYOUTS[layout].patterns)
    if not paths:
        raise LayoutError(_nothing_found(layout, root))
    files, problems = [], []
    for path in paths:
        relative = printable(path.relative_to(root).as_posix())
        place = pathlib.PurePosixPath(relative)
        named = LAYOUTS[layout].name(place, stem(place))
        if named is None:
            problems.append((path, f"its name does not follow layout {layout!r}: {LAYOUTS[layout].expected}"))
            continue
        volume = _volume(pattern, relative) if pattern else named.volume
        if volume is None:
            problems.append((path, f"the volume pattern {volume_pattern!r} does not match {relative!r}"))
            continue
        key = normalise_key(named.caption_key)
        files.append(SourceFile(path, relative, key, volume, named.channel))
    if not files:
        path, reason = problems[0]
        others = " Any names will do in a folder for each stain: --layout selma." if layout != "selma" else ""
        raise LayoutError(f"none of {len(problems)} files can be used; the first is {path}: {reason}.{others}")
    return Survey(files, problems)


def masks_left_out(layout: str, root: str | pathlib.Path) -> list[pathlib.Path]:
    """List what `survey` takes for masks and not for images: named as an image beside them, and a mask's ending."""
    return _images(pathlib.Path(root), LAYOUTS[layout].patterns)[1]


def _images(root: pathlib.Path, patterns: Iterable[str]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The images, and the masks that other tools have left beside them (other companions are never listed)."""
    found = {path for pattern in patterns for path in root.glob(pattern)}
    volumes = [
        path
        for path in found
        if path.name.lower().endswith(SUFFIXES)
        and not path.name.startswith(".")
        and not stem(path).lower().endswith(COMPANIONS)
        and path.is_file()
    ]
    stems = {(path.parent, stem(path)) for path in volumes}
    masks = {
        path for path in volumes if (bare := without_ending(stem(path))) != stem(path) and (path.parent, bare) in stems
    }
    ordered = sorted(volumes, key=lambda path: path.relative_to(root).as_posix())
    return [path for path in ordered if path not in masks], [path for path in ordered if path in masks]


def _volume(pattern: re.Pattern[str], relative: str) -> str | None:
    match = pattern.search(relative)
    if match is None:
        return None
    if "volume" in pattern.groupindex:
        return match["volume"]
    return match[1] if pattern.groups else match[0]


def _nothing_found(layout: str, root: pathlib.Path) -> str:
    others = [name for name, other in LAYOUTS.items() if _images(root, other.patterns)[0] and name != layout]
    hint = f" Files are where layout {' or '.join(others)} would have them." if others else ""
    return (
        f"no image files for layout {layout!r} under {root}: expected {LAYOUTS[layout].expected} "
        f"(with one of {', '.join(SUFFIXES)}; names ending in {' or '.join(COMPANIONS)} are no images).{hint}"
    )


def _name_wu(relative: pathlib.PurePosixPath, stem: str) -> _Named:
    folder = relative.parent.parent.name
    return _Named(folder, folder)


def _name_selma(relative: pathlib.PurePosixPath, stem: str) -> _Named:
    # `patchvolume_<id>_<n>`, `..._vol<id>_...`, or the rule for any name: in this order, as names hold several.
    label = relative.parent.name
    match = re.match(r"patchvolume_(\w+?)_\d+$", stem) or re.search(r"_vol(?!ume)([^_]+)(?:_|$)", stem)
    volume = match[1] if match else volume_of(stem)
    return _Named(label, f"{label}/{volume}")


def _name_connection(relative: pathlib.PurePosixPath, stem: str) -> _Named:
    channel = relative.parent.name
    return _Named(channel, relative.parent.parent.name, int(channel[1:]))


def _name_dev_mouse(relative: pathlib.PurePosixPath, stem: str) -> _Named | None:
    match = re.match(r"((.+?)_ps\d+)_", stem)
    return _Named(match[2], match[1]) if match else None


def _name_human2(relative: pathlib.PurePosixPath, stem: str) -> _Named | None:
    match = re.search(r"(?:^|_)stain-([^_.]+)", stem)
    return _Named(match[1], relative.parent.name) if match else None


def _name_flat(relative: pathlib.PurePosixPath, stem: str) -> _Named | None:
    match = re.fullmatch(r"(.+)_patch_\d+_(vol\d+)_ch(\d+)", stem)
    return _Named(match[1], f"{match[1]}/{match[2]}", int(match[3])) if match else None


LAYOUTS = {
    "wu": _Layout(("*/input/*", "*/*/input/*"), "<volume>/input/<file>", _name_wu),
    "selma": _Layout(("*/*",), "<class>/<file>", _name_selma),
    "connection": _Layout(("*/c[012]/*",), "<run>/{c0,c1,c2}/<file>", _name_connection),
    "dev_mouse": _Layout(("*",), "<stain>_ps<digits>_<rest>", _name_dev_mouse),
    "human2": _Layout(("*/*",), "<subject>/<file with stain-KEY in its name>", _name_human2),
    "flat": _Layout(("*", "*/*"), "<class>_patch_<n>_vol<m>_ch<c>, in the folder or one below", _name_flat),
}
