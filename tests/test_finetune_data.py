"""Labelled folders: what is found, how it is split and cut, and what is refused with which words."""

import itertools

import numpy as np
import pytest
from labelled_toy import write_patch, write_patches
from scipy import ndimage

from lsmfm_jax.data.labelled import LabelledDataError, find_labelled, with_classes
from lsmfm_jax.data.labelled_batches import LabelledSource, WindowBatches, training_batches
from lsmfm_jax.data.labelled_patches import Blur, LabelledPatch, read_deblurring, read_segmentation
from lsmfm_jax.data.labelled_sides import Sides, choose_sides
from lsmfm_jax.scale import Scale
from lsmfm_jax.volumes.read import VolumeError, read_single, write_nifti


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=6)


def _patch(shape, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 1000, shape).astype(np.uint16)
    return LabelledPatch("a", image, 10.0, 900.0, (image > 800).astype(np.uint8))


def test_patches_are_found_with_companions_volume_and_class(folder):
    found = with_classes(find_labelled(folder, needs="_label"), source="name")
    assert [file.name for file in found] == sorted(file.name for file in found)
    assert len(found) == 6 and all(set(file.companions) == {"_label", "_blurred"} for file in found)
    assert found[0].volume == "dense/vol001" and found[0].class_name == "dense"
    assert [f.name for f in find_labelled(folder, prefix="sparse")] == [f.name for f in found[3:]]
    with pytest.raises(LabelledDataError, match=r"of the 6 there none fits"):
        find_labelled(folder, channels=(1,))


def test_class_from_folder_and_from_csv(tmp_path):
    write_patch(tmp_path / "Cell Nucleus", "patchvolume_7_0")
    write_patch(tmp_path / "vessels", "patchvolume_7_0")
    found = find_labelled(tmp_path)
    assert {f.volume for f in found} == {"Cell Nucleus/7", "vessels/7"}
    assert [f.class_name for f in with_classes(found, source="folder")] == ["cell_nucleus", "vessels"]
    assert [f.class_name for f in with_classes(found, source="folder", classes=("Vessels",))] == ["vessels"]
    table = tmp_path / "classes.csv"
    table.write_text("name,class\nvessels/patchvolume_7_0,B\n")
    with pytest.raises(LabelledDataError, match=r"Nucleus.*classes\.csv has no row"):
        with_classes(found, source="csv", table=table)
    with pytest.raises(LabelledDataError, match=r"must be called <class>_patch_<n>"):
        with_classes(found, source="name")


def test_split_keeps_volumes_together_and_judges_each_class(tmp_path):
    for number, kind in itertools.product(range(6), ("a", "b")):
        write_patch(tmp_path, f"{kind}_patch_{number:03d}_vol{number // 2:03d}_ch0", size=12, seed=number, balls=1)
        (tmp_path / f"{kind}_patch_{number:03d}_vol{number // 2:03d}_ch0_label.nii.gz").unlink()
    files = with_classes(find_labelled(tmp_path), source="name")
    sides = choose_sides(files, validation_frac=0.34, seed=3)
    assert not {f.volume for f in sides.train} & {f.volume for f in sides.validation}
    assert {f.class_name for f in sides.validation} == {"a", "b"}
    assert len(sides.train) == 8 and len(sides.validation) == 4
    few = choose_sides(files, validation_frac=0.34, seed=3, few_shot=1)
    assert sorted(f.class_name for f in few.train) == ["a", "b"] and {f.name for f in few.train} <= {
        f.name for f in sides.train
    }
    with pytest.raises(LabelledDataError, match=r"few_shot: 9; there are 4 training patches of class a"):
        choose_sides(files, validation_frac=0.34, seed=3, few_shot=9)


def test_sides_by_name_and_by_folder(folder):
    files = find_labelled(folder)
    names = [file.name for file in files]
    sides = choose_sides(files, validation_frac=0.2, seed=0, train_names=names[:2], validation_names=names[2:3])
    assert [f.name for f in (*sides.train, *sides.validation)] == names[:3]
    with pytest.raises(LabelledDataError, match=r"'nosuch' fits 0 patches; there are dense_patch"):
        choose_sides(files, validation_frac=0.2, seed=0, train_names=("nosuch",))
    with pytest.raises(LabelledDataError, match=r"on both the training and the validation side: .*vol001"):
        choose_sides(Sides((files[0],), (files[0],)), validation_frac=0.2, seed=0)


def test_one_patch_alone(folder):
    one = find_labelled(folder)[:1]
    with pytest.raises(LabelledDataError, match=r"the only patch.*data\.validation_frac to 0"):
        choose_sides(one, validation_frac=0.2, seed=0)
    assert choose_sides(one, validation_frac=0.0, seed=0) == Sides(tuple(one), ())


def test_label_without_image_and_image_without_label(tmp_path):
    write_patch(tmp_path, "a_0")
    (tmp_path / "a_0_label.nii.gz").rename(tmp_path / "b_0_label.nii.gz")
    with pytest.raises(LabelledDataError, match=r"1 files have no image beside them: .*b_0_label"):
        find_labelled(tmp_path)
    (tmp_path / "b_0_label.nii.gz").unlink()
    with pytest.raises(LabelledDataError, match=r"1 patches have no _label file beside them: a_0"):
        find_labelled(tmp_path, needs="_label")


def test_predictions_beside_the_patches_are_no_patches(folder):
    before = [file.name for file in find_labelled(folder, needs="_label")]
    first, second = before[:2]
    image = (folder / f"{first}.nii.gz").read_bytes()
    for ending in ("_mask", "_prob", "_cp_masks"):
        (folder / f"{first}{ending}.nii.gz").write_bytes(image)
    assert [file.name for file in find_labelled(folder, needs="_label")] == before
    # A patch without its label, though: the mask beside it may be the label, called by another name.
    (folder / f"{second}_mask.nii.gz").write_bytes(image)
    (folder / f"{second}_label.nii.gz").unlink()
    with pytest.raises(LabelledDataError, match=rf"2 patches have no _label file .*{second}, {second}_mask"):
        find_labelled(folder, needs="_label")
    (folder / f"{second}_mask_label.nii.gz").write_bytes(image)
    (folder / f"{second}.nii.gz").unlink()
    (folder / f"{second}_blurred.nii.gz").unlink()
    assert f"{second}_mask" in [file.name for file in find_labelled(folder, needs="_label")]


def test_mask_of_another_shape_and_2d_image(tmp_path):
    write_patch(tmp_path, "a_0")
    write_nifti(tmp_path / "a_0_label.nii.gz", np.zeros((20, 20, 19), np.uint8), like=None)
    (file,) = find_labelled(tmp_path, needs="_label")
    with pytest.raises(LabelledDataError, match=r"\(20, 20, 19\), its image .*\(20, 20, 20\)"):
        read_segmentation(file, scale=Scale())
    np.save(tmp_path / "flat.npy", np.arange(400).reshape(20, 20))
    with pytest.raises(VolumeError, match=r"flat\.npy"):
        read_single(tmp_path / "flat.npy")


def test_a_made_blur_is_scipys_and_its_noise_repeats(folder):
    file = find_labelled(folder)[0]
    quiet = Blur((1.0, 2.0, 3.0), (0.0, 0.0, 0.0), 0.0, seed=1)
    patch = read_deblurring(file, blur=quiet, scale=Scale())
    sharp, _ = read_single(file.path)
    wanted = ndimage.gaussian_filter(sharp.astype(np.float32), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(patch.image, wanted, rtol=1e-6)
    assert patch.low == pytest.approx(np.percentile(wanted, 1)) and (patch.target == sharp).all()
    noisy = Blur((1.0, 2.0, 3.0), (0.0, 0.0, 0.0), 2.5, seed=1)
    first, second = (read_deblurring(file, blur=noisy, scale=Scale()).image for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.std(first - wanted) == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize(("shape", "size"), [((20, 33, 16), (16, 16, 16)), ((9, 12, 40), (16, 8, 16))])
def test_windows_hold_every_voxel_once(shape, size):
    patches = [_patch(shape, seed) for seed in range(3)]
    source = LabelledSource(patches, patch_size=size, first_sample=5)
    batches = WindowBatches(source, batch_size=4)
    voxels, foreground, samples = np.zeros(3), np.zeros(3), set()
    rows = 0
    for batch in batches:
        assert batch["image"].shape == (4, *size)
        rows += 1
        for row in range(4):
            if batch["weight"][row]:
                sample = int(batch["sample"][row])
                samples.add(sample)
                voxels[sample - 5] += batch["valid"][row].sum()
                foreground[sample - 5] += (batch["target"][row] * batch["valid"][row]).sum()
    assert rows == len(batches) and samples == {5, 6, 7}
    np.testing.assert_array_equal(voxels, np.prod(shape))
    np.testing.assert_array_equal(foreground, [patch.target.sum() for patch in patches])


def test_the_stream_depends_on_the_step_alone_and_keeps_pairs():
    source = LabelledSource([_patch((20, 20, 20), seed) for seed in range(3)], patch_size=(8, 8, 8))
    stream = training_batches(source, batch_size=4, seed=1)
    batches = list(itertools.islice(stream, 4))
    for batch in batches:
        np.testing.assert_array_equal(batch["target"], batch["image"] > 800)
    later = next(training_batches(source, batch_size=4, seed=1, start_step=3))
    halves = [
        next(training_batches(source, batch_size=4, seed=1, start_step=3, process_index=p, process_count=2))
        for p in (0, 1)
    ]
    for name, value in batches[3].items():
        np.testing.assert_array_equal(later[name], value)
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), value)
    assert next(training_batches(source, batch_size=1, seed=1, start_step=10**7))["image"].shape == (1, 8, 8, 8)
    # Three batches of four are four epochs of three patches: each patch is drawn as often, never cut the same.
    drawn = np.concatenate([batch["sample"] for batch in batches[:3]])
    np.testing.assert_array_equal(np.bincount(drawn), [4, 4, 4])
    crops = {batch["image"][row].tobytes() for batch in batches for row in range(4)}
    assert len(crops) == 16


def test_crops_are_drawn_around_voxels_of_the_mask():
    patch = _patch((20, 24, 20))
    rare = np.zeros(patch.image.shape, np.uint8)
    rare[2, 12, 17] = 1
    empty = LabelledPatch("b", patch.image, 10.0, 900.0, np.zeros_like(rare))
    source = LabelledSource([LabelledPatch("a", patch.image, 10.0, 900.0, rare), empty], patch_size=(8, 8, 8))
    batches = list(itertools.islice(training_batches(source, batch_size=4, seed=1, foreground_frac=1.0), 5))
    crops = {(int(i), image.tobytes()) for b in batches for i, image in zip(b["sample"], b["image"], strict=True)}
    # The voxel is in the middle along Y, and as near to it as the edges allow along Z and X.
    around = patch.image[0:8, 8:16, 12:20]
    assert [image for index, image in crops if index == 0] == [around.tobytes()]
    assert len([image for index, image in crops if index == 1]) > 5
    some = itertools.islice(training_batches(source, batch_size=4, seed=1, foreground_frac=0.5), 20)
    shares = [float(batch["target"][batch["sample"] == 0].any(axis=(1, 2, 3)).mean()) for batch in some]
    assert 0.4 < np.mean(shares) < 0.8
