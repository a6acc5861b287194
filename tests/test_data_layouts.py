"""The six layouts, on trees of empty files, and on the real ones where they are there."""

import pathlib

import pytest

from lsmfm_jax.store.layouts import LayoutError, scan, survey


def _touch(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("layout", "name", "key", "volume", "channel"),
    [
        ("wu", "03_AJ12-LG1E n_A/input/x_p08_1_2_3.nii.gz", "03_aj12_lg1e_n_a", "03_AJ12-LG1E n_A", 0),
        ("wu", "nested/01_AA1/input/x.nii", "01_aa1", "01_AA1", 0),
        ("selma", "cFos/patchvolume_695_0.nii.gz", "cfos", "cFos/695", 0),
        ("selma", "Vessel-EB/brain_vol012_patch_3.nii.gz", "vessel_eb", "Vessel-EB/012", 0),
        ("selma", "nucleus/sample_a_17.nii.gz", "nucleus", "nucleus/sample_a", 0),
        ("connection", "run7/c2/a_0001.nii.gz", "c2", "run7", 2),
        ("dev_mouse", "Lectin_ps3_0012.nii.gz", "lectin", "Lectin_ps3", 0),
        ("human2", "sub-I48/a_stain-NeuN_chunk-01.nii.gz", "neun", "sub-I48", 0),
        ("human2", "sub-I48/stain-Gad-67_chunk-01.nii.gz", "gad_67", "sub-I48", 0),
        (
            "flat",
            "train/amyloid_plaque_patch_003_vol016_ch1.nii.gz",
            "amyloid_plaque",
            "amyloid_plaque/vol016",
            1,
        ),
    ],
)
def test_key_volume_and_channel(
    tmp_path: pathlib.Path, layout: str, name: str, key: str, volume: str, channel: int
) -> None:
    stem = name.removesuffix(".gz").removesuffix(".nii")
    root = _touch(tmp_path, name, f"{stem}_label.nii.gz", f"{stem}_blurred.nii.gz", f"{stem}.txt")
    (file,) = scan(layout, root)
    assert (file.relative, file.caption_key, file.volume, file.channel) == (name, key, volume, channel)


def test_files_are_sorted_and_a_pattern_overrides_the_volume(tmp_path: pathlib.Path) -> None:
    names = ["run2/c0/m1_3.nii.gz", "run1/c1/m1_1.nii.gz", "run1/c0/m2_1.nii.gz"]
    root = _touch(tmp_path, *names)
    assert [file.relative for file in scan("connection", root)] == sorted(names)
    for pattern in (r"m\d", r"/(m\d)_", r"(c\d)/(?P<volume>m\d)"):
        assert [file.volume for file in scan("connection", root, volume_pattern=pattern)] == [
            "m2",
            "m1",
            "m1",
        ]
    with pytest.raises(LayoutError, match=r"2 file.* do not follow"):
        scan("connection", root, volume_pattern="run1/c0|run2/c9")
    with pytest.raises(LayoutError, match="not a regular expression"):
        scan("connection", root, volume_pattern="(")


def test_strays_and_empty_folders_are_named(tmp_path: pathlib.Path) -> None:
    root = _touch(tmp_path / "a", "Lectin_ps3_1.nii.gz", "Lectin_1.nii.gz")
    files, problems = survey("dev_mouse", root)
    assert len(files) == 1 and problems[0][0].name == "Lectin_1.nii.gz" and "_ps<digits>_" in problems[0][1]
    with pytest.raises(LayoutError, match="Lectin_1"):
        scan("dev_mouse", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="no image files for layout 'flat'"):
        scan("flat", tmp_path / "empty")
    with pytest.raises(LayoutError, match=r"where layout .*dev_mouse"):
        scan("connection", root)
    with pytest.raises(LayoutError, match="expected one of wu, selma"):
        scan("bids", root)
    with pytest.raises(LayoutError, match="is not a folder"):
        scan("flat", tmp_path / "nowhere")


def test_a_folder_in_another_layout_is_refused_with_one_that_fits(tmp_path: pathlib.Path) -> None:
    for number in range(30):
        (tmp_path / f"scan {number}.nii.gz").touch()
    with pytest.raises(LayoutError, match=r"none of 30 files can be used; the first is .*--layout selma") as refused:
        survey("dev_mouse", tmp_path)
    assert "\n" not in str(refused.value)


def test_real_folders(shared: pathlib.Path) -> None:
    data = shared / "data"
    nested, direct = scan("wu", data / "pretrain"), scan("wu", data / "pretrain" / "wu_brain_patches")
    assert [file.volume for file in nested] == [file.volume for file in direct] and len(direct) == 7
    delivr = scan("selma", data / "delivr")
    assert len(delivr) == 60
    volumes = {file.volume for file in delivr}
    assert {volume for volume in volumes if volume.startswith("cFos/")} == {"cFos/695", "cFos/1147"}
    assert {"microglia/1874", "microglia/2248", "microglia/9153"} < volumes and len(volumes) == 12
    flat = scan("flat", data / "finetune")
    assert len(flat) == 6 and sorted({file.caption_key for file in flat}) == [
        "amyloid_plaque",
        "cell_nucleus",
        "vessels",
    ]
