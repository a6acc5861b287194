"""What ingestion meets in other people's folders: names, siblings, masks, blanks, and choices left to a person."""

import os
import pathlib

import numpy as np
import pytest
import tifffile
from data_files import noise, save_nifti
from test_volume_containers import multi_file_ome

from lsmfm_jax.cli import main
from lsmfm_jax.store.ingest import ingest
from lsmfm_jax.store.ingest_summary import IngestFailed, IngestSummary
from lsmfm_jax.store.layouts import survey
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.store.verify import verify_store


def _ingest(root: pathlib.Path, out: pathlib.Path, **settings: object) -> IngestSummary:
    return ingest(**{"layout": "selma", "root": root, "out": out, "captions": None} | settings)


def _ids(store: pathlib.Path) -> dict[str, str]:
    assert verify_store(store) == []
    return {row.id: row.volume for row in PatchStore.open(store).rows}


def test_files_that_differ_in_their_suffix_alone_have_ids_of_their_own(tmp_path):
    for number, name in enumerate(("dup.nii", "dup.nii.gz", "single.nii")):
        save_nifti(tmp_path / "d" / "glia" / name, noise(number))
    first = _ingest(tmp_path / "d", tmp_path / "s")
    assert first.added == 3 and not first.failed
    assert set(_ids(tmp_path / "s")) == {"selma/glia/dup", "selma/glia/dup.nii.gz", "selma/glia/single"}
    # What comes later gets a name that is free, and channels count as names.
    np.save(tmp_path / "d" / "glia" / "dup.npy", np.stack([noise(5), noise(6)]))
    np.save(tmp_path / "d" / "glia" / "single#1.npy", noise(7))
    tifffile.imwrite(tmp_path / "d" / "glia" / "single.tif", noise(8), photometric="minisblack")
    assert _ingest(tmp_path / "d", tmp_path / "s").known == 3
    ids = _ids(tmp_path / "s")
    assert len(ids) == 7 and {"selma/glia/dup.npy#0", "selma/glia/dup.npy#1", "selma/glia/single.tif"} < set(ids)
    assert _ingest(tmp_path / "d", tmp_path / "s").known == 6


def test_one_name_that_is_no_utf8_loses_nothing(tmp_path, capsys):
    root = tmp_path / "d"
    save_nifti(root / "glia" / "good_1.nii.gz", noise(1))
    for number, raw in enumerate((b"Hirn_\xe4_vol2_a.nii.gz", b"M\xfcll\ner_vol3.nii.gz")):
        save_nifti(root / "x.nii.gz", noise(2 + number))
        os.rename(root / "x.nii.gz", os.fsencode(root) + b"/glia/" + raw)
    os.rename(save_nifti(root / "bad.nii", noise(9)), os.fsencode(root) + b"/glia/\xff.nii")
    with open(os.fsencode(root) + b"/glia/\xff.nii", "wb") as file:
        file.write(b"no image")
    assert main(["data", "ingest", "--layout", "selma", "--root", str(root), "--out", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    printed.encode()
    assert "3 patches added from 3 files" in printed and f"failed: {root}/glia/%FF.nii: " in printed
    assert _ids(tmp_path / "s") == {
        "selma/glia/good_1": "selma/glia/good",
        "selma/glia/Hirn_%E4_vol2_a": "selma/glia/2",
        "selma/glia/M%FCll%0Aer_vol3": "selma/glia/3",
    }
    assert _ingest(root, tmp_path / "s").known == 3


def test_a_multi_file_ome_is_stored_once(tmp_path):
    root = tmp_path / "d"
    volume = noise(1, shape=(9, 7, 5))
    files = multi_file_ome(root / "brainA", volume)
    save_nifti(root / "brainA" / "another.nii", noise(2))
    summary = _ingest(root, tmp_path / "s")
    assert (summary.added, len(summary.members), summary.failed) == (2, 8, [])
    assert f"8 files are parts of the image of {files[0]}" in summary.text()
    store = PatchStore.open(tmp_path / "s")
    at = next(i for i, row in enumerate(store.rows) if row.id == "selma/brainA/plane000")
    np.testing.assert_array_equal(store.read(at), volume)
    # The next time the first file is known and not opened; the others are still no volumes.
    again = _ingest(root, tmp_path / "s")
    assert (again.added, again.known, len(again.members), again.failed) == (0, 2, 8, [])
    files[5].unlink()
    lacking = _ingest(root, tmp_path / "other")
    assert lacking.added == 1 and len(lacking.failed) == 8
    assert all("plane005.ome.tif" in reason for _, reason in lacking.failed)


def test_masks_of_other_tools_are_no_images_and_are_listed(tmp_path):
    glia = tmp_path / "d" / "glia"
    for number, name in enumerate(("m_1", "m_1_label", "m_2", "m_2_cp_masks", "m_3_seg", "m_2_Simple Segmentation")):
        save_nifti(glia / f"{name}.nii.gz", noise(number))
    summary = _ingest(tmp_path / "d", tmp_path / "s")
    # `m_3_seg` has no image beside it, so nothing tells that it is a mask.
    assert set(_ids(tmp_path / "s")) == {"selma/glia/m_1", "selma/glia/m_2", "selma/glia/m_3_seg"}
    assert {path.name for path, _ in summary.left_out} == {"m_2_cp_masks.nii.gz", "m_2_Simple Segmentation.nii.gz"}


def test_blank_volumes_are_left_out_and_are_no_failure(tmp_path):
    glia = tmp_path / "d" / "glia"
    save_nifti(glia / "a_1.nii.gz", noise(1))
    save_nifti(glia / "a_2.nii.gz", np.full((6, 5, 4), 90, np.uint16))
    np.save(glia / "a_3.npy", np.stack([noise(2), np.zeros((6, 5, 4), np.uint16)]))
    summary = _ingest(tmp_path / "d", tmp_path / "s", strict=True)
    assert summary.left_out == [(glia / "a_2.nii.gz", "it is constant: every voxel is 90")]
    assert "1 left out" in summary.text() and "channel 1 is constant" in summary.text()
    assert set(_ids(tmp_path / "s")) == {"selma/glia/a_1", "selma/glia/a_3#0"}


def test_one_bad_image_never_ends_an_ingest(tmp_path):
    glia = tmp_path / "d" / "glia"
    save_nifti(glia / "a_1.nii.gz", noise(1))
    np.savez(glia / "npz", noise(2))
    (glia / "npz.npz").rename(glia / "b.npy")
    for name, offset, value in (("c.nii", 42, b"\xff\xff"), ("d.nii", 123, b"\x06"), ("e.nii", 112, b"\0\0\x80\x7f")):
        path = save_nifti(glia / name, noise(ord(name[0])))
        data = bytearray(path.read_bytes())
        data[offset : offset + len(value)] = value
        path.write_bytes(data)
    huge = np.full((4, 4, 4), -3e38, np.float32)
    huge[2:] = 3e38
    np.save(glia / "f.npy", huge)
    summary = _ingest(tmp_path / "d", tmp_path / "s")
    assert {path.name for path, _ in summary.failed} == {"b.npy", "c.nii", "e.nii"}
    assert all("\n" not in reason for _, reason in summary.failed)
    assert set(_ids(tmp_path / "s")) == {"selma/glia/a_1", "selma/glia/d", "selma/glia/f"}


def test_a_folder_of_bad_images_is_a_failure_until_one_is_good(tmp_path, capsys):
    glia = tmp_path / "d" / "glia"
    glia.mkdir(parents=True)
    (glia / "a_1.nii.gz").write_bytes(b"no image")
    command = ["data", "ingest", "--layout", "selma", "--root", str(tmp_path / "d"), "--out", str(tmp_path / "s")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "failed: " in printed.out and "a_1.nii.gz" in printed.out and "Traceback" not in printed.err
    save_nifti(glia / "a_2.nii.gz", noise(1))
    assert main(command) == 0
    assert set(_ids(tmp_path / "s")) == {"selma/glia/a_2"}


def test_choices_on_the_command_line(tmp_path, capsys):
    glia = tmp_path / "d" / "glia"
    volume = noise(1).astype(np.float32)
    volume[0] = np.nan
    save_nifti(glia / "nan_1.nii", volume)
    two = np.stack([noise(2), noise(3)])
    tifffile.imwrite(_parent(glia / "two_1.ome.tif"), noise(4, shape=(3, 5, 6)), ome=True, photometric="minisblack")
    with tifffile.TiffWriter(glia / "both_1.tif") as file:
        for array in (noise(5), noise(6, shape=(7, 8, 9))):
            file.write(array, photometric="minisblack")
    np.save(glia / "channels_1.npy", two)
    command = ["data", "ingest", "--layout", "selma", "--root", str(tmp_path / "d"), "--out"]
    assert main([*command, str(tmp_path / "plain")]) == 0
    printed = capsys.readouterr().out
    assert "3 failed" in printed and all(option in printed for option in ("--nan-fill", "--axes", "--series"))
    assert main([*command, str(tmp_path / "s"), "--nan-fill", "-1", "--series", "0"]) == 0
    assert set(_ids(tmp_path / "s")) == {f"selma/glia/{n}" for n in ("nan_1", "both_1", "channels_1#0", "channels_1#1")}
    row = next(row for row in PatchStore.open(tmp_path / "s").rows if row.id.endswith("nan_1"))
    assert row.minimum == -1
    assert main([*command, str(tmp_path / "t"), "--axes", "zyx", "--channel", "0"]) == 0
    assert "selma/glia/two_1" in _ids(tmp_path / "t")


def _parent(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_another_channel_can_be_added_later(tmp_path):
    np.save(_parent(tmp_path / "d" / "glia" / "a_1.npy"), np.stack([noise(1), noise(2), noise(3)]))
    assert _ingest(tmp_path / "d", tmp_path / "s", channel=1).added == 1
    assert _ingest(tmp_path / "d", tmp_path / "s", channel=1).known == 1
    assert _ingest(tmp_path / "d", tmp_path / "s", channel=2).added == 1
    with pytest.raises(IngestFailed, match="channel 3 was asked for"):
        _ingest(tmp_path / "d", tmp_path / "s", channel=3)
    assert set(_ids(tmp_path / "s")) == {"selma/glia/a_1#1", "selma/glia/a_1#2"}


@pytest.mark.parametrize(
    "option",
    [
        *(f"--voxel-size-um={value}" for value in ("nan,1,1", "1,inf,1", "0,1,1", "1,1,-2", "1,1", "1e9,1,1", "a,1,1")),
        *(f"--channel={value}" for value in ("-1", "1.5", "x", "9" * 30)),
        *(f"--series={value}" for value in ("-1", "²")),
        *(f"--nan-fill={value}" for value in ("nan", "inf", "1e39", "zero")),
        *(f"--axes={value}" for value in ("XY", "ZZYX", "TZYX", "")),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, capsys, option):
    save_nifti(tmp_path / "d" / "glia" / "a_1.nii", noise(1))
    command = ["data", "ingest", "--layout", "selma", "--root", str(tmp_path / "d"), "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit) as caught:
        main([*command, option])
    assert caught.value.code == 2 and option.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_volumes_and_their_rule_are_printed(tmp_path):
    for name in ("brain1_z0000_y0000_x0000", "brain1_z0064_y0000_x0000", "mouse_1", "mouse_2"):
        save_nifti(tmp_path / "d" / "glia" / f"{name}.nii", noise(len(name) + ord(name[-1]) + ord(name[10:11] or "0")))
    text = _ingest(tmp_path / "d", tmp_path / "s").text()
    assert "added: 3 volumes (selma/glia/brain1 2 patches, selma/glia/mouse_1 1, selma/glia/mouse_2 1)" in text
    assert "volumes are told from file names" in text
    assert "volumes are told" not in _ingest(tmp_path / "d", tmp_path / "t", volume_pattern="glia").text()


def test_real_crops_of_one_volume_are_one(shared):
    more = shared / "data" / "more"
    if not more.is_dir():
        pytest.skip(f"no further real volumes at {more}")
    files, problems = survey("selma", more)
    assert not problems and {file.volume for file in files} == {
        "dlmbmap_axons/axon_example",
        "phathom_nuclei/example",
        "trailmap_labelled/original_training",
        "trailmap_labelled/training",
        "trailmap_labelled/validation",
        "trailmap_unlabelled/serotonin",
        "vesselexpress_liver/liver_1",
    }
