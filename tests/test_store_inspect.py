"""What `info` counts and warns of, and that the contact sheet is a picture of the patches."""

import pathlib

import matplotlib.image
import numpy as np
from data_files import noise, save_nifti, selma_folder

from lsmfm_jax.store.ingest import ingest
from lsmfm_jax.store.inspect import contact_sheet, info, problems, projection
from lsmfm_jax.store.reader import PatchStore


def _store(tmp_path: pathlib.Path) -> PatchStore:
    root = selma_folder(tmp_path / "data")
    ingest(layout="selma", root=root, out=tmp_path / "s", captions=[tmp_path / "data.json"])
    return PatchStore.open(tmp_path / "s")


def test_info_counts(tmp_path: pathlib.Path) -> None:
    text = info(_store(tmp_path))
    lines = [line.split() for line in text.splitlines()]
    assert ["selma/glia/2", "2"] in lines and ["selma", "(selma)", "12"] in lines
    assert ["cfos", "6", "1"] in lines and ["glia", "6", "2"] in lines
    assert "(6, 5, 4), uint16" in text and "12 patches of 6 volumes" in text


def test_problems_are_found_and_name_their_patches(tmp_path: pathlib.Path) -> None:
    images = np.random.default_rng(0).normal(1000, 100, (6, 14, 13, 12)).astype(np.uint16)
    images[1, :3] = 5000
    images[2] = 0
    images[2, 0, 0, :3] = (300, 400, 500)
    images[3] = images[3] // 100 + 100
    images[3, 0, 0, 0] = 150
    here = np.diag([0.002, 0.002, 0.003, 1.0])
    here[:3, 3] = (4, 5, 6)
    for number, label in enumerate(("ok", "bright", "void", "dull", "here", "there")):
        path = tmp_path / "d" / label / f"patchvolume_{number}_0.nii.gz"
        save_nifti(path, images[number], affine=here if number > 3 else None)
    ingest(layout="selma", root=tmp_path / "d", out=tmp_path / "s", captions=None)
    found = problems(PatchStore.open(tmp_path / "s"))

    def about(word: str) -> str:
        (line,) = (line for line in found if line.startswith(word))
        return line

    assert "1 patches (selma/bright/patchvolume_1_0)" in about("saturated")
    assert "1 patches (selma/void/patchvolume_2_0)" in about("nearly empty")
    assert "2 patches (selma/dull/patchvolume_3_0, selma/void" in about("flat")
    assert "6 patches" in about("voxel size unverified")
    assert "selma/here/4, selma/there/5" in about("volumes") and "same place" in about("volumes")
    ingest(layout="selma", root=selma_folder(tmp_path / "e"), out=tmp_path / "s", captions=[tmp_path / "e.json"])
    found = problems(PatchStore.open(tmp_path / "s"))
    assert "6 patches" in about("no caption")
    assert info(PatchStore.open(tmp_path / "s")).count("problems: ") == 1


def test_contact_sheet_shows_every_volume(tmp_path: pathlib.Path) -> None:
    store = _store(tmp_path)
    contact_sheet(store, tmp_path / "out" / "sheet.png", count=7)
    picture = matplotlib.image.imread(tmp_path / "out" / "sheet.png")[..., :3]
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    assert np.mean(picture.max(axis=-1) > 0.9) > 0.01
    (store.path / "parts" / "00000" / "c" / "0" / "0" / "0" / "0").unlink()
    contact_sheet(PatchStore.open(store.path), tmp_path / "damaged.png", count=2)
    assert (tmp_path / "damaged.png").stat().st_size > 1000


def test_projection_is_the_scaled_maximum_over_the_middle(tmp_path: pathlib.Path) -> None:
    pixels = noise(8, shape=(40, 9, 8))
    pixels[0], pixels[20, 3, 4] = 60000, 500
    save_nifti(tmp_path / "d" / "c" / "patchvolume_1_0.nii.gz", pixels)
    ingest(layout="selma", root=tmp_path / "d", out=tmp_path / "s", captions=None)
    seen = projection(PatchStore.open(tmp_path / "s"), 0)
    assert seen.shape == (9, 8) and seen[3, 4] == seen.max() == 1
    assert seen.min() == 0 and np.median(seen) > 0.05
