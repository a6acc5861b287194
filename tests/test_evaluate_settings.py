"""`lsmfm evaluate`: what it refuses, names of other tools' files, grids, and points."""

import math

import nibabel
import numpy as np
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.data.mask_folders import MaskFolderError, masks_in
from lsmfm_jax.evaluate import EMPTY, ROLLED, evaluate_folders
from lsmfm_jax.volumes.read import write_nifti


def cubes(*corners, shape=(14, 16, 30)):
    mask = np.zeros(shape, np.uint8)
    for z, y, x in corners:
        mask[z : z + 3, y : y + 3, x : x + 3] = 1
    return mask


@pytest.fixture
def folders(tmp_path):
    for side in ("pred", "label"):
        (tmp_path / side).mkdir()
        for number in range(3):
            mask = cubes((0, 0, 0), (6, 6, 6)) if side == "label" else cubes((0, 0, 1), (6, 6, 20))
            write_nifti(tmp_path / side / f"a_{number}_{side}.nii.gz", mask, like=None)
    return tmp_path / "pred", tmp_path / "label"


def of(result, method, metric):
    return [row.scores[metric] for row in result.rows if row.method == method]


BAD = [
    *[("threshold", value) for value in (math.nan, math.inf, -math.inf, 0.0, -0.5)],
    *[("match_dice", value) for value in (math.nan, math.inf, -0.1, 1.01)],
    *[("match_distance_voxels", value) for value in (math.nan, math.inf, 0.0, -1.0)],
    *[("spacing_um", (1.0, value, 1.0)) for value in (math.nan, math.inf, 0.0, -2.0, 1e9)],
    *[("spacing_um", (1.0, 1.0)), ("seed", -1), ("minimum_voxels", -3), ("minimum_voxels", 10**30)],
    ("match_distance_um", 5.0),
    ("threshold", 1.5),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_numbers_that_make_no_sense_are_refused(name, value, folders, tmp_path):
    with pytest.raises(MaskFolderError, match=f"{name} is .*") as error:
        evaluate_folders(*folders, tmp_path / "s.csv", **{name: value})
    assert "\n" not in str(error.value) and not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *[("--threshold", value) for value in ("nan", "inf", "0")],
        *[("--match-dice", value) for value in ("nan", "2")],
        *[("--spacing-um", value) for value in ("nan,1,1", "inf,1,1", "0,1,1", "1,1")],
    ],
)
def test_the_command_refuses_them_too(arguments, folders, tmp_path, capsys):
    command = ["evaluate", "--pred", str(folders[0]), "--label", str(folders[1]), "--out", str(tmp_path / "s.csv")]
    try:
        code = main([*command, *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2 and not (tmp_path / "s.csv").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("victim", ["label", "own file", "folder", "link"])
def test_the_table_replaces_nothing_but_a_table(victim, folders, tmp_path):
    label = folders[1] / "a_0_label.nii.gz"
    mine = tmp_path / "mine.csv"
    mine.write_text("z,y,x\n1,2,3\n")
    link = tmp_path / "link.csv"
    link.symlink_to(label)
    out = {"label": label, "own file": mine, "folder": folders[0], "link": link}[victim]
    before = label.read_bytes()
    with pytest.raises(MaskFolderError, match=rf"--out .*{out.name}: .* is there already, and is not replaced"):
        evaluate_folders(*folders, out)
    assert label.read_bytes() == before and mine.read_text() == "z,y,x\n1,2,3\n"
    evaluate_folders(*folders, tmp_path / "new" / "s.csv")
    evaluate_folders(*folders, tmp_path / "new" / "s.csv", method="ours")
    text = (tmp_path / "new" / "s.csv").read_text()
    assert "\npatch,ours,a_0," in text and "\npatch,prediction," not in text
    assert not list((tmp_path / "new").glob("*.tmp"))


def test_names_of_other_tools(folders, tmp_path):
    pred, label = folders
    for number, path in enumerate(sorted(pred.iterdir())):
        path.rename(pred / f"C2-a_{number}-OBJ-v3.nii.gz")
    np.save(pred / "a_1.npy", cubes())  # the image
    with pytest.raises(MaskFolderError, match="--pattern"):
        evaluate_folders(pred, label, tmp_path / "s.csv")
    result = evaluate_folders(pred, label, tmp_path / "s.csv", pattern=r"^C\d-(.+)-OBJ")
    assert [row.patch for row in result.rows[::3]] == ["a_0", "a_1", "a_2"]
    assert any("a_1.npy" in note for note in result.notes)
    assert list(masks_in(pred, pattern=r"^C\d-(.+)-OBJ-v3\.nii")[0]) == ["a_0", "a_1", "a_2"]
    for wrong, message in (("C2", "has no group"), ("(", "not a regular expression")):
        with pytest.raises(MaskFolderError, match=rf"--pattern .*{message}"):
            evaluate_folders(pred, label, tmp_path / "s.csv", pattern=wrong)


def test_a_mirrored_prediction_is_turned_and_a_shifted_one_refused(tmp_path):
    mask = cubes((0, 0, 0), (6, 6, 6))
    mirror, shift = np.diag([-1.0, 1.0, 1.0, 1.0]), np.eye(4)
    mirror[0, 3], shift[1, 3] = 29, 4
    for side, array, affine in (("label", mask, np.eye(4)), ("pred", mask[:, :, ::-1], mirror)):
        (tmp_path / side).mkdir()
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine), tmp_path / side / "a_0.nii.gz")
    assert of(evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv"), "prediction", "dice") == [1]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(mask.T), shift), tmp_path / "pred" / "a_0.nii.gz")
    with pytest.raises(ValueError, match=r"pred/a_0\.nii\.gz lies 4 in Y voxels off .*label/a_0\.nii\.gz"):
        evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "t.csv")


@pytest.mark.parametrize("fill", [0, 1])
def test_blank_volumes_are_judged(fill, tmp_path):
    for side in ("pred", "label"):
        (tmp_path / side).mkdir()
        for number in range(2):
            blank = np.full((8, 9, 10), fill if side == "pred" else 0, np.uint8)
            blank[2:4, 2:4, 2:4] |= np.uint8(side == "label" and number)
            np.save(tmp_path / side / f"a_{number}.npy", blank)
    result = evaluate_folders(tmp_path / "pred", tmp_path / "label", tmp_path / "s.csv")
    dice = of(result, "prediction", "dice")
    assert dice == ([1.0, 0.0] if fill == 0 else [0.0, pytest.approx(2 * 8 / (720 + 8))])
    assert of(result, "prediction", "detection_f1")[0] == float(fill == 0)
    assert all(np.isfinite(value) for row in result.rows for value in row.scores.values())


def test_an_ignore_value_that_is_not_named_is_asked_about(folders, tmp_path):
    label = cubes((0, 0, 0), (6, 6, 6))
    label[10:] = 255
    write_nifti(folders[1] / "a_1_label.nii.gz", label, like=None)
    with pytest.raises(ValueError, match=r"a_1_label\.nii\.gz: the label value 255 stands beside 0, 1;.*--ignore"):
        evaluate_folders(*folders, tmp_path / "s.csv")


def test_detection_is_in_the_table(folders, tmp_path):
    result = evaluate_folders(*folders, tmp_path / "s.csv")
    assert of(result, "prediction", "detection_f1") == [0.5] * 3
    assert of(result, ROLLED, "detection_f1") == [0, 0, 0] and result.settings["match_distance_voxels"] == "4"
    wide = evaluate_folders(*folders, tmp_path / "s.csv", match_distance_um=30.0, spacing_um=(6.0, 2.0, 2.0))
    assert of(wide, "prediction", "detection_f1") == [1.0] * 3 and wide.settings["match_distance_um"] == "30"
    assert "detection_recall" in (tmp_path / "s.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("header", ["z,y,x", "Z;Y;X", "id,z_um,y_um,x_um"])
def test_points_of_a_person(header, folders, tmp_path):
    points = tmp_path / "points"
    points.mkdir()
    separator = ";" if ";" in header else ","
    scale = (6.0, 2.0, 2.0) if "um" in header else (1.0, 1.0, 1.0)
    for number in range(3):
        places = [(1, 1, 1), (7, 7, 7), (12, 12, 12)][: 3 - number]
        lines = [separator.join(f"{along * by:g}" for along, by in zip(place, scale, strict=True)) for place in places]
        lines = [f"{k},{line}" for k, line in enumerate(lines)] if "id" in header else lines
        (points / f"a_{number}_points.csv").write_text("\n".join([header, *lines]) + "\n")
    (points / "notes.csv").write_text("who,when\nme,today\n")
    settings = {"spacing_um": (6.0, 2.0, 2.0)} if "um" in header else {}
    result = evaluate_folders(folders[0], points, tmp_path / "s.csv", match_distance_voxels=2.0, **settings)
    assert result.settings["labels"] == "points"
    assert of(result, "prediction", "detection_recall") == pytest.approx([1 / 3, 1 / 2, 1])
    assert of(result, "prediction", "detection_precision") == pytest.approx([1 / 2] * 3)
    assert of(result, EMPTY, "detection_f1") == [0, 0, 0]
    both = evaluate_folders(points, points, tmp_path / "s.csv", **settings)
    assert of(both, "prediction", "detection_f1") == [1, 1, 1]
    if "um" in header:
        with pytest.raises(MaskFolderError, match=r"a_0_points\.csv: its points are in micrometres; .*--spacing-um"):
            evaluate_folders(folders[0], points, tmp_path / "s.csv")


def test_points_where_nobody_looked_do_not_count(folders, tmp_path):
    from lsmfm_jax.data.labels import LabelValues

    label = cubes((0, 0, 0), (6, 6, 6)) + 1
    label[8:] = 0
    (tmp_path / "points").mkdir()
    for number in range(3):
        write_nifti(folders[1] / f"a_{number}_label.nii.gz", label, like=None)
        (tmp_path / "points" / f"a_{number}.csv").write_text("z,y,x\n1,1,1\n6.5,7,7\n12,12,12\n")
    values = LabelValues(foreground=(2,), ignore=(0,))
    result = evaluate_folders(tmp_path / "points", folders[1], tmp_path / "s.csv", values=values)
    assert of(result, "prediction", "detection_f1") == [1, 1, 1]


def test_the_command_takes_ignored_values_and_patterns(folders, tmp_path, capsys):
    label = cubes((0, 0, 1), (6, 6, 20)) + 1
    label[:, :2] = 0
    for number in range(3):
        write_nifti(folders[1] / f"a_{number}_label.nii.gz", label, like=None)
    arguments = ["evaluate", "--pred", str(folders[0]), "--label", str(folders[1]), "--out", str(tmp_path / "s.csv")]
    assert main([*arguments, "--ignore", "0", "--foreground", "2", "--match-distance-voxels", "2"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("dice"))
    assert "1.000 [1.000, 1.000]" in line and "ignore labels 0" in text
