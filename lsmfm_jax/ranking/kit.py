"""The kit: a folder that experts open from disk, and beside it the key, which says what letter is which method.

The page has to work from `file://`, where a browser reads no other file except as a script or a picture. So the
voxels of each case are a script that hands over base64 text: the image as one byte for each voxel, and all masks
as one byte in which each letter is a bit, both packed by zlib, which browsers unpack by themselves.

A byte is not much for counts of light-sheet images, where the background may lie at a hundredth of what is bright.
Therefore the byte is the square root of the scaled counts: 255 steps that are finer where it is dark, which the page
squares again before it applies the contrast.
"""

import base64
import contextlib
import hashlib
import importlib.resources
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import WriteError, replace_file, replacing_folder, seal
from lsmfm_jax.ranking.cases import LETTERS, Case, RankingError, draw_cases, find_samples
from lsmfm_jax.volumes.names import describe_volumes
from lsmfm_jax.volumes.read import read_single

KEY = "ranking key"
KEY_VERSION = 1
PAGE_FILES = ("index.html", "ranking.css", "voxels.js", "pictures.js", "progress.js", "ranking.js")
# A browser holds two cases at a time, each as a byte for image and masks: 400 voxels along each side.
LARGEST_VOXELS = 400**3
# Counts outside are shown as black or white: a few hot pixels must not darken all others.
_PERCENTILES = (0.1, 99.9)


def make_kit(
    images: str | pathlib.Path,
    methods: Mapping[str, pathlib.Path],
    out: str | pathlib.Path,
    *,
    cases: int = 60,
    seed: int = 0,
    threshold: float = 0.5,
    pattern: str | None = None,
    volume_pattern: str | None = None,
    print_line: Callable[[str], None] = print,
) -> pathlib.Path:
    """Write a kit for blinded ranking, and its key beside it.

    The same arguments give the same kit, byte for byte.

    Args:
        images: folder of volumes.
        methods: folder of each method's masks by the method's name; see `find_samples`.
        out: folder to write, which may not be there, or be empty.
        cases: images to draw; all where there are fewer.
        seed: of what is drawn, of the order of the cases and of the letters.
        threshold: value of a mask file from which on a voxel is foreground, above 0.
        pattern: see `find_samples`.
        volume_pattern: see `find_samples`.
        print_line: gets what is to be told.

    Returns:
        The path of the key, `<out>.key.json`.

    Raises:
        RankingError: something is at `out` or at the key's place, fewer than one case, a threshold that is not above
            0, masks of other shapes than their images, too many voxels; else as `find_samples`.
        LabelGridError: a mask that does not lie on its image, by their affines.
        VolumeError: a file that cannot be read as one volume.
        WriteError: the system does not take a file.
    """
    out = pathlib.Path(out)
    key_path = key_beside(out)
    _refuse_present(out, key_path)
    if cases < 1:
        raise RankingError(f"--cases {cases}: at least one is needed")
    if not 0.0 < threshold < np.inf:
        raise RankingError(f"--threshold {threshold:g}: give a number above 0, such as 0.5")
    samples, unused = find_samples(images, methods, pattern=pattern, volume_pattern=volume_pattern)
    drawn = draw_cases(samples, count=cases, seed=seed)
    if len(drawn) < cases:
        print_line(f"{images} has {len(drawn)} images: all of them are used, for the {cases} cases that were asked for")
    if unused:
        print_line(f"{len(unused)} masks have no image there and are left out, such as {unused[0]}")
    print_line(f"{len(drawn)} cases from {describe_volumes(case.sample.volume for case in drawn)}")
    try:
        with replacing_folder(out) as folder:
            kit = _write_pages(folder, drawn, threshold=threshold)
            replace_file(key_path, seal(_key(kit, drawn, methods, seed=seed, threshold=threshold)))
    except LsmfmError:
        # Neither without the other; above it was seen that no earlier key is here.
        with contextlib.suppress(OSError):
            key_path.unlink(missing_ok=True)
        raise
    print_line(f"kit:  {out} (give experts a copy of this folder; they open index.html, which needs no network)")
    print_line(f"key:  {key_path} (keep it away from experts: it says which letter is which method)")
    print_line(f"next: lsmfm ranking score RESULTS.json ... --key {key_path} --out SCORES")
    return key_path


def key_beside(out: pathlib.Path) -> pathlib.Path:
    """Where the key of a kit is."""
    return out.with_name(f"{out.name}.key.json")


def _refuse_present(*paths: pathlib.Path) -> None:
    for path in paths:
        if os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
            raise RankingError(
                f"{path} is there already, and no kit is replaced: without its key the results of experts are worth "
                "nothing; name another folder with --out"
            )


def _write_pages(folder: pathlib.Path, cases: Sequence[Case], *, threshold: float) -> str:
    """Write all files of a kit; gives its id, which is made from what experts have anyway."""
    digest = hashlib.sha256()
    (folder / "data").mkdir()
    for case in cases:
        data = case_script(case, threshold=threshold)
        digest.update(data)
        _write(folder / "data" / f"{case.name}.js", data)
    kit = digest.hexdigest()[:16]
    letters = LETTERS[: len(cases[0].methods)]
    about = {"id": kit, "cases": [case.name for case in cases], "letters": list(letters)}
    _write(folder / "kit.js", f"window.KIT = {json.dumps(about)};\n".encode())
    source = importlib.resources.files("lsmfm_jax.ranking.page")
    for name in PAGE_FILES:
        _write(folder / name, (source / name).read_bytes())
    return kit


def _write(path: pathlib.Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise WriteError(path, error) from error


def case_script(case: Case, *, threshold: float) -> bytes:
    """The voxels of a case as the script that hands them to the page.

    Raises:
        RankingError: too many voxels, or a mask of another shape than the image.
        LabelGridError: a mask that does not lie on its image.
        VolumeError: a file that cannot be read.
    """
    sample = case.sample
    image, info = read_single(sample.image)
    if image.size > LARGEST_VOXELS:
        raise RankingError(
            f"{sample.image} has {image.size} voxels, more than a browser can show at once ({LARGEST_VOXELS}): cut "
            "patches from it (lsmfm data cut, lsmfm data pairs) and rank the masks of those"
        )
    bits = np.zeros(image.shape, np.uint8)
    for number, method in enumerate(case.methods):
        path = sample.masks[method]
        mask, mask_info = read_single(path, mask=True)
        mask = on_grid_of(mask, mask_info, like=info, like_shape=image.shape)
        if mask.shape != image.shape:
            raise RankingError(
                f"{path} has the shape {mask.shape}, its image {sample.image} {image.shape} (ZYX): give the mask of "
                "the whole image; TIFF and .npy arrays are taken as Z, Y, X"
            )
        bits |= (mask >= threshold).astype(np.uint8) << number
    # Square pixels where nothing is known.
    _, height, width = info.voxel_size_um or (1.0, 1.0, 1.0)
    body = {
        "shape": list(image.shape),
        "pixel": [round(height / width, 4), 1.0],
        "image": _packed(shown_bytes(image)),
        "masks": _packed(bits),
    }
    return f'window.caseLoaded("{case.name}", {json.dumps(body)});\n'.encode()


def shown_bytes(image: Num[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """Counts as bytes: 0 and 255 at the percentiles that bound what is shown, the square root between them."""
    low, high = (float(value) for value in np.percentile(image, _PERCENTILES))
    if high <= low:  # all but a few voxels are the same
        low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.rint(255.0 * np.sqrt(scaled.clip(0.0, 1.0))).astype(np.uint8)


def _packed(array: UInt8[np.ndarray, "z y x"]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode()


def _key(
    kit: str, cases: Sequence[Case], methods: Mapping[str, pathlib.Path], *, seed: int, threshold: float
) -> dict[str, Any]:
    return {
        "what": KEY,
        "version": KEY_VERSION,
        "kit": kit,
        "seed": seed,
        "threshold": threshold,
        "methods": [{"name": name, "folder": str(folder)} for name, folder in methods.items()],
        "cases": [
            {
                "case": case.name,
                "image": case.sample.name,
                "volume": case.sample.volume,
                "letters": dict(zip(LETTERS, case.methods, strict=False)),
            }
            for case in cases
        ],
    }
