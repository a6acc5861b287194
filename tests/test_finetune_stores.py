"""Finetuning from a patch store: the same patches, classes and volumes as from the files it was made of."""

import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.config import defaults
from lsmfm_jax.data.labelled import LabelledDataError, find_labelled, with_classes
from lsmfm_jax.data.labelled_store import find_stored
from lsmfm_jax.store.ingest import ingest
from lsmfm_jax.store.reader import DamagedPatch, PatchStore
from lsmfm_jax.tasks.finetune_patches import read_patches


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    files = write_patches(tmp_path_factory.mktemp("files"), count=6)
    store = tmp_path_factory.mktemp("stores") / "store"
    ingest(layout="flat", root=files, out=store, captions=None, voxel_size_um=(4.0, 2.0, 2.0))
    return files, store


def read(task, folder, run, **changes):
    config = defaults(task)
    config.data.folder, config.data.validation_frac = str(folder), 0.34
    for path, value in changes.items():
        part, _, name = path.partition("__")
        config[part][name] = value
    return read_patches(config, run, print_line=lambda line: None)


def by_name(patches):
    return {patch.name.rpartition("/")[2]: patch for patch in (*patches.train, *patches.validation)}


def test_classification_from_a_store_is_that_from_its_files(folders, tmp_path):
    files, store = folders
    ours, theirs = (read("classify", folder, tmp_path / folder.name) for folder in (store, files))
    assert ours.classes == theirs.classes == ("dense", "sparse")
    one, other = by_name(ours), by_name(theirs)
    assert one.keys() == other.keys() and len(one) == 6 and len(ours.validation) == 2
    for name, patch in one.items():
        np.testing.assert_array_equal(patch.image, other[name].image)
        assert (patch.label, patch.low, patch.high) == (other[name].label, other[name].low, other[name].high)
    stored, plain = find_stored(store), with_classes(find_labelled(files), source="name")
    assert [file.volume.removeprefix("flat/") for file in stored] == [file.volume for file in plain]
    # The store's own record of the pixels is in the split, so that another store under its name is refused.
    assert (tmp_path / store.name / "split.json").is_file()
    read("classify", store, tmp_path / store.name)
    with pytest.raises(LabelledDataError, match=r"began with other patches"):
        read("classify", store, tmp_path / store.name, data__few_shot=1)


def test_patches_of_a_store_are_chosen_as_files_are(folders):
    _, store = folders
    names = [file.name for file in find_stored(store)]
    assert [file.name for file in find_stored(store, prefix="sparse")] == names[3:]
    assert {f.volume for f in find_stored(store, volume_pattern=r"/(dense|sparse)_")} == {"dense", "sparse"}
    with pytest.raises(LabelledDataError, match=r"none of the 6 patches of .* fits data\.prefix and data\.channels"):
        find_stored(store, channels=(1,))


def test_deblurring_from_a_store_makes_its_blur_in_micrometres(folders, tmp_path):
    files, store = folders
    blur = {"blur__source": "made", "blur__noise_counts": 0.0}
    ours = read("deblur", store, tmp_path / "a", **blur, blur__sigma_um=(4.0, 4.0, 4.0))
    theirs = read("deblur", files, tmp_path / "b", **blur, blur__sigma_voxels=(1.0, 2.0, 2.0))
    one, other = by_name(ours), by_name(theirs)
    for name in one:
        np.testing.assert_allclose(one[name].image, other[name].image, rtol=1e-6)
        np.testing.assert_array_equal(one[name].target, other[name].target)


def test_what_a_store_cannot_give_is_told(folders, tmp_path):
    _, store = folders
    with pytest.raises(LabelledDataError, match=r"is a store, which holds no _label volumes; name the folder"):
        read("segment", store, tmp_path / "a")
    with pytest.raises(LabelledDataError, match=r"holds no _blurred volumes; .* or set blur\.source to made"):
        read("deblur", store, tmp_path / "b")


def test_a_damaged_patch_of_a_store_is_named(tmp_path):
    files, store = write_patches(tmp_path / "files", count=4), tmp_path / "store"
    ingest(layout="flat", root=files, out=store, captions=None)
    part = store / "parts" / PatchStore.open(store).rows[0].part
    shard = max((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedPatch, match=r"of part .* is damaged"):
        read("classify", store, tmp_path / "run")
