"""What a file's name says: its stem, whether it is a mask or another companion, and which volume a patch is from.

Two patches of one brain on both sides of a split make a validation worthless, so the volume is what remains of a
name when all that says *where in the volume* is taken away. In this order:

1. `sub-<id>...` (BIDS) is volume `sub-<id>`; `<class>_patch_<n>_vol<m>...` is `<class>/vol<m>`;
   `patchvolume_<id>_<n>` is `<id>`; any other name with `_vol<m>` ends there.
2. Marks that name themselves go, wherever they stand: `_z0100_y0200_x0300` (two or more of z, y, x in any order, or
   one of them with two digits or more; ranges such as `z0-63` too), `X00_Y01`, `[00 x 01]`, `row0_col1`, `p<n>`
   before coordinates, a number behind one of CROP_WORDS (`tile`, `patch`, `crop`, `block`, `chunk`, ...), and the
   channel (`_ch<n>`, `_c<n>`, `channel<n>`).
3. Where no such mark of a place was found, bare numbers at the end decide. One number is the crop's (`axon_a_17` is
   `axon_a`), unless it is a date (`20240131`) or stands behind one of SUBJECT_WORDS (`mouse_1`, `brain-12`, `KO_3`).
   Of two, the last is the crop's (`mouse_3_17` is `mouse_3`); three are coordinates; of more, the last three are.
   A number that is part of a word (`mouse1`, `KO3`) is never a crop's.

Where the rule is wrong for a data set, a volume pattern (a regular expression) replaces it.
"""

import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable

from lsmfm_jax.errors import LsmfmError

SUFFIXES = (".nii.gz", ".nii", ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".npy")
# Formats of whole volumes, which are files, folders or addresses.
VOLUME_ENDINGS = (
    ".ome.zarr",
    ".zarr",
    ".n5",
    ".precomputed",
    ".h5",
    ".hdf5",
    ".hdf",
    ".he5",
    ".ims",
    ".btf",
    ".tf8",
    *SUFFIXES,
)
# What lies beside an image under its own name is not another image.
COMPANIONS = ("_label", "_blurred")
# Name endings that mark a file as a mask of the patch named before, with the tools that write them; longer ones first.
MASK_ENDINGS = (
    "_simple segmentation",  # ilastik
    "_object predictions",
    "_object identities",
    "_groundtruth",
    "_ground_truth",
    "_segmentation",  # ITK-SNAP, 3D Slicer
    "_annotations",
    "_annotation",
    "_prediction",
    "_cp_masks",  # Cellpose
    "_instances",
    "_stardist",
    "_labels",
    "_masks",
    "_label",
    "_dseg",  # BIDS
    "_pred",
    "_mask",
    "_seg",
    "-label",
    ".label",
    "-seg",
    ".seg",
    "_gt",
)
# What `lsmfm predict` writes beside them: in a folder of images none of these is an image.
NO_IMAGES = (*MASK_ENDINGS, "_prob", "_uncertainty", "_deblurred", "_inpainted")

CROP_WORDS = (
    "tile",
    "patch",
    "crop",
    "block",
    "chunk",
    "cube",
    "roi",
    "fov",
    "piece",
    "window",
    "subvolume",
    "subvol",
    "substack",
    "part",
    "slab",
    "cutout",
    "position",
    "pos",
    "plane",
    "slice",
)
SUBJECT_WORDS = (
    "mouse",
    "mice",
    "rat",
    "animal",
    "subject",
    "sub",
    "subj",
    "specimen",
    "sample",
    "individual",
    "patient",
    "donor",
    "case",
    "brain",
    "hemisphere",
    "embryo",
    "fish",
    "zebrafish",
    "larva",
    "organoid",
    "tumor",
    "tumour",
    "liver",
    "kidney",
    "lung",
    "heart",
    "spleen",
    "organ",
    "volume",
    "vol",
    "id",
    "wt",
    "wildtype",
    "ko",
    "het",
    "hom",
    "tg",
    "control",
    "ctrl",
    "ctl",
    "treated",
    "untreated",
    "vehicle",
    "sham",
    "lesion",
    "male",
    "female",
)
VOLUME_RULE = (
    "volumes are told from file names: z/y/x coordinates, tile, patch and crop numbers, channels and a last bare "
    "number are taken away, a number behind a word such as mouse or brain is kept; a volume pattern replaces the rule"
)
UNNAMED = "volume"

_GAP = r"[_\-. ]"
_END = rf"(?={_GAP}|$)"
_START = rf"(?:^|(?<={_GAP}))"
_AXIS = r"(?:[zyx]|rows?|cols?|columns?)_?\d+(?:-\d+)?"
_PLACES = re.compile(
    "|".join(
        (
            rf"{_START}{_AXIS}(?:{_GAP}?{_AXIS})+{_END}",
            rf"{_START}(?:z\d+|[yx]\d{{2,}})(?:-\d+)?{_END}",
            rf"{_START}r\d+{_GAP}?c\d+{_END}",
            r"\[\s*\d+\s*x\s*\d+\s*\]",
            rf"{_START}p\d+(?:{_GAP}\d+){{2,}}{_END}",
            rf"{_START}(?:{'|'.join(CROP_WORDS)}){_GAP}?\d+(?:{_GAP}\d+)*{_END}",
            # A word such as `tile` whose place is told by the axes behind it.
            rf"{_START}(?:{'|'.join(CROP_WORDS)})(?={_GAP}+{_AXIS})",
        )
    ),
    re.IGNORECASE,
)
_CHANNEL = re.compile(rf"{_START}(?:c\d{{1,2}}|ch(?:an|annel)?{_GAP}?\d{{1,2}}){_END}", re.IGNORECASE)
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_SUBJECT = re.compile(rf"{_START}(?:{'|'.join(SUBJECT_WORDS)})$", re.IGNORECASE)


class VolumePatternError(LsmfmError, ValueError):
    """A volume pattern is no regular expression, or does not match a patch; the message names both."""


def stem(path: pathlib.PurePath) -> str:
    """Give the file name without its image suffix, `.nii.gz` and `.ome.tif` each counting as one."""
    name = path.name
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def volume_name(path: str | pathlib.PurePath) -> str:
    """Give the last part of a path or address without the ending of its format."""
    name = str(path).split("?")[0].rstrip("/").replace("\\", "/").rpartition("/")[2]
    ending = next((ending for ending in VOLUME_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def without_ending(name: str, endings: tuple[str, ...] = MASK_ENDINGS) -> str:
    """Give a stem without the first of these endings that it has, whatever its case; a name is never emptied."""
    ending = next((one for one in endings if name.lower().endswith(one) and len(name) > len(one)), "")
    return name[: len(name) - len(ending)]


def volume_of(patch: str, *, pattern: str | None = None) -> str:
    """Give the volume that a patch is from, by its name without suffix; see the module for the rule.

    With a `pattern`, what its first group or else the whole match holds is the volume.

    Raises:
        VolumePatternError: a pattern that is no regular expression, or does not match.
    """
    if pattern is None:
        return _volume_by_rule(patch)
    try:
        match = re.search(pattern, patch)
    except re.error as error:
        raise VolumePatternError(f"volume pattern {pattern!r} is not a regular expression: {error}") from None
    if match is None:
        raise VolumePatternError(f"volume pattern {pattern!r} does not match the patch {patch!r}")
    return match[1] if match.re.groups else match[0]


def earlier_volume_of(patch: str) -> str:
    """Give the volume by the rule of version 0.1, which runs that began with it keep: any last number is the crop's."""
    if flat := re.match(r"(.+)_patch_\d+_(vol[^_]+)", patch):
        return f"{flat[1]}/{flat[2]}"
    if selma := re.match(r"patchvolume_(\w+?)_\d+$", patch):
        return selma[1]
    return re.sub(r"[_-]?\d+$", "", patch) or patch


def describe_volumes(volumes: Iterable[str], *, longest: int = 12) -> str:
    """Count patches by volume for people: `3 volumes (a 4 patches, b 2, c 1)`, given the volume of each patch."""
    counts = sorted(Counter(volumes).items())
    parts = [f"{printable(name)} {count}" for name, count in counts[:longest]]
    if parts:
        parts[0] += " patch" if counts[0][1] == 1 else " patches"
    if len(counts) > longest:
        parts.append(f"and {len(counts) - longest} more")
    return f"{len(counts)} volume{'' if len(counts) == 1 else 's'}" + (f" ({', '.join(parts)})" if parts else "")


def printable(name: str | pathlib.PurePath) -> str:
    r"""Give a name that can be written as UTF-8 on one line: bytes that are no UTF-8 and line ends become `%XX`."""
    text = os.fsencode(str(name)).decode("utf-8", "surrogateescape")
    return "".join(_escaped(letter) if _unprintable(letter) else letter for letter in text)


def _unprintable(letter: str) -> bool:
    return "\ud800" <= letter <= "\udfff" or letter < " " or letter == "\x7f"


def _escaped(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))


def _volume_by_rule(patch: str) -> str:
    if subject := re.match(r"sub-[A-Za-z0-9]+(?=[_.]|$)", patch):
        return subject[0]
    if flat := re.match(r"(.+)_patch_\d+_(vol[^_]+)", patch):
        return f"{flat[1]}/{flat[2]}"
    if selma := re.match(r"patchvolume_(\w+?)_\d+$", patch):
        return selma[1]
    if numbered := re.match(r"(?:.*_)?vol(?!ume)[^_]*\d[^_]*(?=_|$)", patch, re.IGNORECASE):
        patch = numbered[0]
    # Places first: the `c01` of `r00_c01` is a column.
    placeless = _PLACES.sub("", patch)
    left = _CHANNEL.sub("", placeless)
    if placeless == patch:
        left = _without_crop_number(left if left == patch else _tidy(left))
    if left == patch:
        return patch
    # A name that is nothing but a place is one volume together with the others like it.
    return _tidy(left) or _tidy(re.sub(r"\d+", "", patch)) or UNNAMED


def _without_crop_number(name: str) -> str:
    numbers = re.search(rf"(?:(?:^|{_GAP})\d+)+$", name)
    if numbers is None:
        return name
    before = name[: numbers.start()]
    run = re.findall(rf"{_GAP}?\d+", numbers[0])
    if len(run) == 1:
        kept = 1 if not before or _SUBJECT.search(before) else 0
    else:
        kept = 1 if len(run) == 2 else len(run) - 3
    while kept < len(run) and _DATE.fullmatch(run[kept].strip("_-. ")):
        kept += 1
    return before + "".join(run[:kept])


def _tidy(name: str) -> str:
    """Close the gaps that what was taken away has left."""
    name = re.sub(r"_{2,}", "_", re.sub(r" {2,}", " ", re.sub(r"-{2,}", "-", name)))
    return re.sub(r"[_\-. ]*([_\-. ])", r"\1", name).strip("_-. ")
