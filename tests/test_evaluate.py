"""Judging folders of masks and label images: matching, formats, errors, the table, and the rows for scale."""

import csv
import pathlib
import warnings

import nibabel
import numpy as np
import pytest
import tifffile

from lsmfm_jax.data.mask_folders import MaskFolderError, masks_in, volume_of
from lsmfm_jax.evaluate import EMPTY, ROLLED, evaluate_folders, evaluate_volumes, format_table
from lsmfm_jax.volumes.names import VolumePatternError
from lsmfm_jax.volumes.read import VolumeError, read_single


def cubes(*corners: tuple[int, int, int], shape=(14, 16, 30)) -> np.ndarray:
    labels = np.zeros(shape, np.uint16)
    for number, (z, y, x) in enumerate(corners, start=1):
        labels[z : z + 3, y : y + 3, x : x + 3] = number
    return labels


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """Write a ZYX array in the format of the suffix, NIfTI as XYZ."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), path)


@pytest.fixture
def folders(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
    """Three patches of three volumes, in three formats: exact, one cube missing, one cube too many."""
    pred, label = tmp_path / "pred", tmp_path / "label"
    truth = cubes((0, 0, 0), (6, 6, 6))
    for number, (prediction, suffix) in enumerate(
        [
            (truth, ".nii.gz"),
            (cubes((0, 0, 0)), ".tif"),
            (cubes((0, 0, 0), (6, 6, 6), (6, 6, 20)), ".npy"),
        ]
    ):
        name = f"nucleus_patch_000_vol{number:03}_ch0"
        save(label / f"{name}_label.nii.gz", (truth > 0).astype(np.uint8))
        save(label / f"{name}.nii.gz", truth * 100)  # the image beside its label
        save(pred / f"{name}_pred{suffix}", (prediction > 0).astype(np.uint8))
    return pred, label


def of(result, method: str, metric: str) -> list[float]:
    return [row.scores[metric] for row in result.rows if row.method == method]


def test_three_formats_are_scored_alike(folders, tmp_path):
    result = evaluate_folders(*folders, tmp_path / "out" / "scores.csv")
    assert of(result, "prediction", "dice") == pytest.approx([1, 2 * 27 / 81, 2 * 54 / 135])
    assert of(result, "prediction", "panoptic_quality") == pytest.approx([1, 2 / 3, 4 / 5])
    assert of(result, "prediction", "count_dice_paper") == pytest.approx([1, 2 / 3, 4 / 5])
    assert of(result, EMPTY, "dice") == [0, 0, 0]
    assert of(result, EMPTY, "total_dice_paper") == pytest.approx([0.498] * 3, abs=2e-3)
    assert of(result, ROLLED, "count_dice_paper") == [1, 1, 1]
    assert of(result, ROLLED, "panoptic_quality") == [0, 0, 0]
    assert result.settings["connectivity"] == "26" and result.settings["minimum_voxels"] == "1"
    assert len(result.notes) == 1
    assert "3 files" in result.notes[0] and "vol001_ch0.nii.gz" in result.notes[0]


def test_the_csv_holds_patches_and_summaries(folders, tmp_path):
    result = evaluate_folders(*folders, tmp_path / "scores.csv", minimum_voxels=5, method="ours")
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["row"] for row in rows[:9]] == ["patch"] * 9
    assert {row["method"] for row in rows} == {"ours", EMPTY, ROLLED}
    assert {row["minimum_voxels"] for row in rows} == {"5"}
    summary = {row["row"]: row for row in rows if row["method"] == "ours" and row["row"] != "patch"}
    assert float(summary["mean"]["dice"]) == pytest.approx(np.mean(of(result, "ours", "dice")), rel=1e-5)
    low, high = float(summary["volumes_low"]["dice"]), float(summary["volumes_high"]["dice"])
    assert 2 * 27 / 81 - 1e-5 <= low < float(summary["mean"]["dice"]) < high <= 1
    assert rows[0]["volume"] == "nucleus/vol000"


def test_two_volumes_have_no_interval_over_volumes(folders, tmp_path):
    result = evaluate_folders(*folders, tmp_path / "scores.csv", volume_pattern=r"vol00(?:0|1)|vol002")
    assert result.summaries[0].over_volumes.units == 3
    pooled = evaluate_folders(*folders, tmp_path / "scores.csv", volume_pattern=r"(vol00)")
    assert pooled.summaries[0].over_volumes.units == 1
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert next(row for row in rows if row["row"] == "volumes_low")["dice"] == ""
    assert "3 patches of 1 volumes" in format_table(pooled)


def test_the_printed_table_names_its_settings(folders, tmp_path):
    text = format_table(evaluate_folders(*folders, tmp_path / "scores.csv", minimum_voxels=7))
    assert "connectivity 26" in text and "minimum voxels 7" in text and "match dice 0.3" in text
    assert all(name in text for name in ("panoptic_quality", "total_dice_paper", EMPTY, ROLLED, "left out"))
    line = next(line for line in text.splitlines() if line.startswith("dice"))
    assert "0.822 [0.667, 1.000]" in line


def test_label_images_keep_touching_instances_apart(tmp_path):
    touching = cubes((0, 0, 0), (0, 0, 3), (6, 6, 6))
    save(tmp_path / "label" / "a_1_label.npy", touching)
    save(tmp_path / "pred" / "a_1_cp_masks.tif", touching)
    as_labels = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv")
    assert as_labels.settings["predictions"] == as_labels.settings["labels"] == "labels"
    assert of(as_labels, "prediction", "true_positives") == [3]
    as_masks = evaluate_folders(
        tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv", kind="mask", label_kind="mask"
    )
    assert of(as_masks, "prediction", "true_positives") == [2]
    mixed = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv", kind="mask")
    assert of(mixed, "prediction", "true_positives") == [2]
    assert of(mixed, "prediction", "false_negatives") == [1]


def test_a_folder_is_of_one_kind_even_where_a_file_has_one_label(tmp_path):
    one = cubes((0, 0, 0))
    one[6:9, 6:9, 6:9] = 1  # one label in two pieces, as a tool may give it
    for number, array in enumerate([one, cubes((0, 0, 0), (6, 6, 6))]):
        save(tmp_path / "label" / f"a_{number}.npy", array)
        save(tmp_path / "pred" / f"a_{number}.npy", array)
    result = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv")
    assert of(result, "prediction", "true_positives") == [1, 2]


def test_probabilities_are_masks(tmp_path):
    truth = cubes((0, 0, 0), (6, 6, 6)) > 0
    probabilities = np.where(truth, 0.9, 0.2).astype(np.float32)
    save(tmp_path / "label" / "a_1.npy", truth)
    save(tmp_path / "pred" / "a_1.npy", probabilities)
    result = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv")
    assert result.settings["predictions"] == "mask"
    assert of(result, "prediction", "dice") == [1.0]


def test_spacing_scales_the_distance(tmp_path):
    save(tmp_path / "label" / "a_1.npy", (cubes((0, 0, 0)) > 0).astype(np.uint8))
    save(tmp_path / "pred" / "a_1.npy", (cubes((4, 0, 0)) > 0).astype(np.uint8))
    folders = tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv"
    assert of(evaluate_folders(*folders), "prediction", "hausdorff_95_voxels") == [4.0]
    in_um = evaluate_folders(*folders, spacing_um=(6.0, 1.6, 1.6))
    assert of(in_um, "prediction", "hausdorff_95_um") == [24.0]


def test_files_without_a_partner_are_named(folders, tmp_path):
    pred, label = folders
    (pred / "nucleus_patch_000_vol000_ch0_pred.nii.gz").unlink()
    save(pred / "other_mask.npy", cubes((0, 0, 0)))
    with pytest.raises(MaskFolderError) as error:
        evaluate_folders(pred, label, tmp_path / "s.csv")
    assert "other_mask.npy" in str(error.value) and "vol000_ch0_label.nii.gz" in str(error.value)
    assert not (tmp_path / "s.csv").exists()


def test_another_shape_is_an_error_that_names_both_files(folders, tmp_path):
    pred, label = folders
    name = "nucleus_patch_000_vol002_ch0"
    np.save(pred / f"{name}_pred.npy", cubes((0, 0, 0)).T)  # X, Y, Z by mistake
    with pytest.raises(
        MaskFolderError, match=rf"{name}_pred\.npy.*\(30, 16, 14\).*{name}_label\.nii\.gz.*\(14, 16, 30\)"
    ):
        evaluate_folders(pred, label, tmp_path / "s.csv")


def test_two_masks_of_one_patch_are_an_error(tmp_path):
    for name in ("a_mask.npy", "a_pred.tif"):
        save(tmp_path / "pred" / name, cubes((0, 0, 0)))
    with pytest.raises(MaskFolderError, match=r"a_mask\.npy.*a_pred\.tif are both masks of 'a'"):
        masks_in(tmp_path / "pred")


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(MaskFolderError, match="is not a folder"):
        masks_in(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no volume")
    with pytest.raises(MaskFolderError, match="holds no volume"):
        masks_in(tmp_path / "empty")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "boxes"}, "kind is 'boxes': use one of auto, mask, labels"),
        ({"connectivity": 8}, "connectivity is 8: use one of 6, 18, 26"),
        ({"minimum_voxels": 0}, "minimum_voxels is 0"),
    ],
)
def test_bad_settings_are_errors(folders, tmp_path, setting, message):
    with pytest.raises(MaskFolderError, match=message):
        evaluate_folders(*folders, tmp_path / "s.csv", **setting)


def test_bad_volume_patterns_are_errors(folders, tmp_path):
    for pattern, message in (("(", "not a regular expression"), ("brain", "'brain' does not match the patch")):
        with pytest.raises(VolumePatternError, match=message):
            evaluate_folders(*folders, tmp_path / "s.csv", volume_pattern=pattern)


@pytest.mark.parametrize(
    ("patch", "volume"),
    [
        ("vessels_patch_017_vol006_ch1", "vessels/vol006"),
        ("patchvolume_1147_3", "1147"),
        ("brain_a-12", "brain_a"),
        ("single", "single"),
        ("12", "12"),
    ],
)
def test_volumes_of_the_known_layouts(patch, volume):
    assert volume_of(patch) == volume


def test_the_papers_metrics_are_fooled_on_real_patches(shared, tmp_path):
    """An empty mask has half the Total Dice; a truth moved by 24 voxels nearly all of the count Dice."""
    folder = shared / "data" / "finetune" / "val"
    result = evaluate_folders(folder, folder, tmp_path / "scores.csv")
    assert [row.patch.split("_patch")[0] for row in result.rows[::3]] == [
        "amyloid_plaque",
        "cell_nucleus",
        "vessels",
    ]
    assert of(result, EMPTY, "total_dice_paper") == pytest.approx([0.500, 0.493, 0.474], abs=5e-4)
    assert of(result, EMPTY, "panoptic_quality") == of(result, EMPTY, "dice") == [0, 0, 0]
    assert of(result, ROLLED, "count_dice_paper") == pytest.approx([1.0, 0.953, 0.857], abs=5e-4)
    assert max(of(result, ROLLED, "panoptic_quality")) < 0.01
    assert of(result, "prediction", "panoptic_quality") == [1, 1, 1]


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_tiff_of_three_or_four_planes_is_a_mask_and_no_colours(planes, dtype, tmp_path):
    """tifffile writes an array of that many planes as the colours of one, where nobody names its axes."""
    truth = cubes((0, 1, 2), (0, 6, 9), shape=(planes, 14, 16))
    predicted = cubes((0, 1, 3), (0, 6, 9), shape=(planes, 14, 16))
    for folder, array in (("pred", predicted), ("label", truth)):
        save(tmp_path / f"{folder}_nifti" / "a.nii.gz", array)
        (tmp_path / f"{folder}_tiff").mkdir()
        with warnings.catch_warnings(action="ignore"):  # tifffile says that it takes them for colours
            tifffile.imwrite(tmp_path / f"{folder}_tiff" / "a.tif", array.astype(dtype))
        with tifffile.TiffFile(tmp_path / f"{folder}_tiff" / "a.tif") as file:
            assert file.series[0].axes == "SYX"
    expected = evaluate_folders(tmp_path / "pred_nifti", tmp_path / "label_nifti", tmp_path / "nifti.csv")
    for label in ("label_tiff", "label_nifti"):
        found = evaluate_folders(tmp_path / "pred_tiff", tmp_path / label, tmp_path / "tiff.csv")
        assert [row.scores for row in found.rows] == [row.scores for row in expected.rows]
    # As one volume each, which is read by boxes.
    paths = [tmp_path / f"{folder}_tiff" / "a.tif" for folder in ("pred", "label")]
    found = evaluate_volumes(*paths, tmp_path / "volumes.csv", print_line=lambda line: None)
    assert found.rows[0].scores["dice"] == expected.rows[0].scores["dice"] < 1.0


def test_colours_stay_refused_in_images_and_pictures_of_masks(tmp_path):
    picture = np.zeros((14, 16, 3), np.uint8)
    picture[2:5, 3:6] = 255
    tifffile.imwrite(tmp_path / "picture.tif", picture, photometric="rgb")
    with warnings.catch_warnings(action="ignore"):
        tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(picture, -1, 0))
    for name, mask in (("picture.tif", True), ("picture.tif", False), ("planes.tif", False)):
        with pytest.raises(VolumeError, match=r"colours \(S\) of a single plane; .*metadata=\{'axes': 'ZYX'\}"):
            read_single(tmp_path / name, mask=mask)
    assert read_single(tmp_path / "planes.tif", mask=True)[0].shape == (3, 14, 16)
