"""What file names print_line: the volume of a patch, companions, and names that no terminal can print."""

import os

import pytest

from lsmfm_jax.data.splits import describe_sides
from lsmfm_jax.volumes.names import (
    VolumePatternError,
    describe_volumes,
    earlier_volume_of,
    printable,
    stem,
    volume_of,
    without_ending,
)


@pytest.mark.parametrize(
    ("patches", "volume"),
    [
        (("brain1_z0100_y0200_x0300", "brain1_z0200_y0200_x0300", "brain1_z0_y64_x0"), "brain1"),
        (("Brain7-x003-y001", "Brain7-x000-y012"), "Brain7"),
        (("kidney3_Z000_Y064", "kidney3_Z128_Y000", "kidney3_z12", "kidney3_x0448"), "kidney3"),
        (("cortex_z0-63_y0-63_x64-127", "cortex_z64-127_y0-63_x0-63"), "cortex"),
        (("KO3_tile_X00_Y01", "KO3_tile_X02_Y10", "KO3_tile-12", "KO3_tile03"), "KO3"),
        (("UltraII[00 x 01]", "UltraII[03 x 00]", "UltraII_[11 x 02]"), "UltraII"),
        (("scan_r00_c01", "scan_r03_c12", "scan_row1_col4"), "scan"),
        (("mouse_1_patch_3", "mouse_1_patch_17", "mouse_1_crop4", "mouse_1_z0000_y0064_x0000"), "mouse_1"),
        (("mouse_1_5", "mouse_1_12", "mouse_1_0_64_128", "mouse_1"), "mouse_1"),
        (("aa10-po-c-r1_p08_1_2_3", "aa10-po-c-r1_p09_0_2_3"), "aa10-po-c-r1"),
        (("lung_0_64_128", "lung_64_0_0"), "lung"),
        (("fish_4_ch0", "fish_4_ch1", "fish_4_c2", "fish_4_channel_1"), "fish_4"),
        (("patchvolume_695_0", "patchvolume_695_12"), "695"),
        (("vessels_patch_017_vol006_ch1", "vessels_patch_1_vol006_ch0"), "vessels/vol006"),
        (("sub-I48_stain-NeuN_chunk-01", "sub-I48_stain-GAD67_chunk-07"), "sub-I48"),
        (("nuclei_vol3_a", "nuclei_vol3_b"), "nuclei_vol3"),
        (("axon_a-12", "axon_a-13", "axon_a_7"), "axon_a"),
        (("training_04", "training_09"), "training"),
        (("z0000_y0000_x0000", "z0064_y0000_x0000"), "z_y_x"),
        (("000000_000100_000200", "000064_000100_000200"), "volume"),
    ],
)
def test_crops_of_one_volume_have_one_name(patches, volume):
    assert {patch: volume_of(patch) for patch in patches} == dict.fromkeys(patches, volume)


@pytest.mark.parametrize(
    "patches",
    [
        ("mouse_1", "mouse_2", "mouse-3", "mouse 4", "mouse1", "mouse"),
        ("KO_1", "KO_2", "WT_1", "control_1", "ctrl-2"),
        ("brain12", "brain13", "M01", "M02", "single"),
        ("rat_1_z0000_y0000_x0000", "rat_2_z0000_y0000_x0000"),
        ("sample_3_17", "sample_4_17", "tumour_3_17"),
        ("liver_1_tile_X00_Y00", "liver_2_tile_X00_Y00"),
        ("cFos_20240131", "cFos_20240201"),
        ("sub-01_chunk-01", "sub-02_chunk-01"),
        ("12", "13"),
    ],
)
def test_subjects_keep_their_number(patches):
    assert len({volume_of(patch) for patch in patches}) == len(patches)


def test_names_without_a_mark_stay_as_they_are():
    for name in ("single", "mouse_1", "a__b", "x-", "M3_left", "c1q_glia", "chat_neurons", "zebra_tx2"):
        assert volume_of(name) == name


def test_a_pattern_replaces_the_rule():
    assert volume_of("mouse_1_z3", pattern=r"(mouse)_\d") == "mouse"
    assert volume_of("mouse_1_z3", pattern=r"mouse_\d") == "mouse_1"
    with pytest.raises(VolumePatternError, match="not a regular expression"):
        volume_of("a", pattern="(")
    with pytest.raises(VolumePatternError, match="'b' does not match the patch 'a'"):
        volume_of("a", pattern="b")


def test_the_earlier_rule_is_kept_for_runs_that_began_with_it():
    earlier = {"mouse_1": "mouse", "brain1_z0100_y0200_x0300": "brain1_z0100_y0200_x", "patchvolume_7_1": "7", "1": "1"}
    assert {name: earlier_volume_of(name) for name in earlier} == earlier


def test_stems_and_the_mask_endings_of_other_tools(tmp_path):
    for name in ("a.b.nii.gz", "a.b.NII", "a.b.ome.tif", "a.b.tiff", "a.b.npy"):
        assert stem(tmp_path / name) == "a.b"
    for ending in ("_label", "_cp_masks", "_Simple Segmentation", "_segmentation", "-label", ".seg", "_dseg", "_GT"):
        assert without_ending(f"mouse_1{ending}") == "mouse_1"
    assert without_ending("_label") == "_label" and without_ending("unlabelled") == "unlabelled"


def test_names_that_are_no_utf8_can_be_printed():
    name = os.fsdecode(b"Hirn_\xe4_2\n.nii")
    assert printable(name) == "Hirn_%E4_2%0A.nii" and printable("Gehirn_ä µ") == "Gehirn_ä µ"
    printable(name).encode()


def test_both_sides_are_described_before_training():
    assert describe_sides(["b", "a", "a"], ["c"]) == [
        "train: 2 volumes (a 2 patches, b 1)",
        "validation: 1 volume (c 1 patch)",
    ]
    assert describe_sides(["a"], ["a", "b"])[2] == "on both sides: 1 volume (a 2 patches)"
    assert describe_sides(["a"], [])[1] == "validation: 0 volumes"
    assert describe_volumes([f"v{i:02d}" for i in range(15)]).endswith("v10 1, v11 1, and 3 more)")
