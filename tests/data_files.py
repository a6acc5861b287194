"""Small image files for the tests of ingestion, stores and splits."""

import gzip
import json
import pathlib
from collections.abc import Iterable

import nibabel
import numpy as np

from lsmfm_jax.store.manifest import PatchRow


def noise(seed: int, *, shape: tuple[int, ...] = (6, 5, 4), dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(seed).integers(10, 200, shape).astype(dtype)


def save_nifti(path: pathlib.Path, zyx: np.ndarray, *, affine: np.ndarray | None = None) -> pathlib.Path:
    """Write with nibabel alone: axes as NIfTI has them, X first; further axes stay behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = (2, 1, 0, *range(3, zyx.ndim)) if zyx.ndim >= 3 else tuple(range(zyx.ndim))[::-1]
    nibabel.Nifti1Image(zyx.transpose(axes), np.eye(4) if affine is None else affine).to_filename(path)
    return path


def selma_folder(root: pathlib.Path, *, volumes: Iterable[int] = (1, 2, 3), patches: int = 2) -> pathlib.Path:
    """Write two classes of patches in layout `selma`, and their caption file beside the folder."""
    for label in ("cFos", "glia"):
        for volume in volumes:
            for number in range(patches):
                seed = 1000 * volume + 10 * number + (label == "glia")
                save_nifti(root / label / f"patchvolume_{volume}_{number}.nii.gz", noise(seed))
    captions = {"c-fos": "wrong key on purpose", "cfos": "Nuclei.", "glia": ["Glia.", "Branched cells."]}
    root.with_suffix(".json").write_text(json.dumps(captions))
    return root


def truncated(path: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes()[:-40])
    return path


def gzipped(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data))
    return path


def make_row(name: str, *, volume: str = "v", file: str | None = None, pixels: str = "") -> PatchRow:
    return PatchRow(
        id=name,
        part="00000",
        index=0,
        source="s",
        layout="flat",
        volume=volume,
        channel=0,
        caption_key="k",
        percentiles={"1": 1.0, "99": 2.0},
        minimum=0.0,
        maximum=3.0,
        mean=1.0,
        voxel_size_um=None,
        voxel_size_source="unknown",
        shape=(2, 2, 2),
        dtype="uint8",
        sha256=f"sha of {file or name}",
        file=file or name,
        pixels_sha256=pixels or f"pixels of {name}",
    )
