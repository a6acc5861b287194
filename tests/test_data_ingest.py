"""From folders to stores: known files are left alone, bad ones reported, captions demanded first."""

import hashlib
import os
import pathlib
import shutil

import nibabel
import numpy as np
import pytest
from data_files import gzipped, noise, save_nifti, selma_folder, truncated

from lsmfm_jax.store import ingest as ingest_module
from lsmfm_jax.store.captions import CaptionError
from lsmfm_jax.store.ingest import ingest, intensity_statistics
from lsmfm_jax.store.ingest_summary import IngestFailed, IngestSummary
from lsmfm_jax.store.layouts import LayoutError
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.store.verify import verify_store


def _ingest(root: pathlib.Path, out: pathlib.Path, **settings: object) -> IngestSummary:
    captions = [root.with_suffix(".json")]
    return ingest(**{"layout": "selma", "root": root, "out": out, "captions": captions} | settings)


def test_rows_say_what_the_files_hold(tmp_path: pathlib.Path) -> None:
    root = selma_folder(tmp_path / "data")
    steps: list[tuple[int, int]] = []
    summary = _ingest(root, tmp_path / "s", progress=lambda done, total, path: steps.append((done, total)))
    assert (summary.added, summary.added_files, summary.known) == (12, 12, 0) and not summary.failed
    assert steps == [(number, 12) for number in range(1, 13)]
    store = PatchStore.open(tmp_path / "s")
    assert store.captions == {"cfos": ["Nuclei."], "glia": ["Glia.", "Branched cells."]}
    assert {row.volume for row in store.rows} == {f"selma/{c}/{v}" for c in ("cFos", "glia") for v in (1, 2, 3)}
    for i, row in enumerate(store.rows):
        expected = np.asarray(nibabel.load(root / row.file).dataobj).T
        np.testing.assert_array_equal(store.read(i), expected)
        assert row.sha256 == hashlib.sha256((root / row.file).read_bytes()).hexdigest()
        assert row.shape == expected.shape and row.dtype == "uint16"
        assert (row.minimum, row.maximum) == (expected.min(), expected.max())
        for name in ("0.1", "1", "5", "50", "95", "99", "99.5", "99.9", "100"):
            assert row.percentiles[name] == pytest.approx(np.quantile(expected, float(name) / 100))
    assert verify_store(tmp_path / "s") == []


def test_only_what_is_new_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = selma_folder(tmp_path / "data")
    _ingest(root, tmp_path / "s")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "parts").rglob("*")}
    touched = next(iter(sorted(root.rglob("*.nii.gz"))))
    read: list[str] = []
    digest = ingest_module._digest

    def counted(path: pathlib.Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(ingest_module, "_digest", counted)
    summary = _ingest(root, tmp_path / "s")
    assert (summary.added, summary.known, read) == (0, 12, [])
    # Another time stamp: hashed, found to be the same, not decoded.
    os.utime(touched, ns=(1, 1))
    monkeypatch.setattr(ingest_module, "read_volume", None)
    assert _ingest(root, tmp_path / "s").known == 12 and read == [touched.name]
    monkeypatch.undo()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "parts").rglob("*")} == before
    save_nifti(root / "glia" / "patchvolume_9_0.nii.gz", noise(900))
    save_nifti(touched, noise(901))
    summary = _ingest(root, tmp_path / "s")
    assert (summary.added, summary.known) == (1, 11)
    assert summary.failed[0][0] == touched and "changed since" in summary.failed[0][1]


def _with_bad_files(root: pathlib.Path) -> dict[str, str]:
    good = sorted((root / "cFos").glob("*.nii.gz"))
    hole = noise(6).astype(np.float32)
    hole[0, 0, 0] = np.nan
    (root / "cFos" / "patchvolume_8_0.nii.gz").write_bytes(b"")
    truncated(root / "cFos" / "patchvolume_8_1.nii.gz", good[0])
    gzipped(root / "cFos" / "patchvolume_8_2.nii.gz", b"text" * 200)
    save_nifti(root / "cFos" / "patchvolume_8_3.nii.gz", noise(7, shape=(9, 8)))
    save_nifti(root / "cFos" / "patchvolume_8_4.nii.gz", hole)
    save_nifti(root / "cFos" / "patchvolume_8_5.nii.gz", np.zeros((4, 4, 4), np.uint16))
    shutil.copy(good[0], root / "cFos" / "patchvolume_8_6.nii.gz")
    save_nifti(root / "cFos" / "patchvolume_8_7.nii", np.asarray(nibabel.load(good[1]).dataobj).T)
    return {
        "patchvolume_8_0.nii.gz": "empty",
        "patchvolume_8_1.nii.gz": "truncated",
        "patchvolume_8_2.nii.gz": "not NIfTI",
        "patchvolume_8_3.nii.gz": "2 axes",
        "patchvolume_8_4.nii.gz": "NaN",
        "patchvolume_8_5.nii.gz": "constant",
        "patchvolume_8_6.nii.gz": "the same bytes as selma/cFos/patchvolume_1_0",
        "patchvolume_8_7.nii": "the same pixels as selma/cFos/patchvolume_1_1",
    }


def test_bad_files_are_listed_and_the_rest_goes_on(tmp_path: pathlib.Path) -> None:
    root = selma_folder(tmp_path / "data")
    expected = _with_bad_files(root)
    summary = _ingest(root, tmp_path / "s")
    assert summary.added == 12 and len(summary.failed) == 5 and len(summary.duplicates) == 2
    assert [path.name for path, _ in summary.left_out] == ["patchvolume_8_5.nii.gz"]
    for path, reason in summary.failed + summary.duplicates + summary.left_out:
        assert expected[path.name] in reason, (path, reason)
        assert f"{path}: {reason}" in summary.text()
    with pytest.raises(IngestFailed, match=r"patchvolume_8_1\.nii\.gz: its gzip") as caught:
        _ingest(root, tmp_path / "strict", strict=True)
    assert caught.value.summary.added == 12 and len(PatchStore.open(tmp_path / "strict")) == 12


def test_missing_captions_stop_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    root = selma_folder(tmp_path / "data")
    save_nifti(root / "ab plaque" / "patchvolume_1_0.nii.gz", noise(50))
    with pytest.raises(CaptionError, match="ab_plaque") as caught:
        _ingest(root, tmp_path / "s")
    assert "Known keys: c_fos, cfos, glia" in str(caught.value)
    (tmp_path / "bad.json").write_text('{"glia": ')
    with pytest.raises(CaptionError, match=r"bad\.json, line 1"):
        _ingest(root, tmp_path / "s", captions=[tmp_path / "bad.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="no image files"):
        ingest(layout="selma", root=tmp_path / "empty", out=tmp_path / "s", captions=None)
    assert not (tmp_path / "s").exists()
    assert _ingest(root, tmp_path / "s", captions=None).added == 13
    assert PatchStore.open(tmp_path / "s").captions == {}


def test_channels_are_taken_apart_and_share_a_volume(tmp_path: pathlib.Path) -> None:
    zyx = noise(60)
    save_nifti(tmp_path / "d" / "nuclei_patch_0_vol3_ch1.nii.gz", np.stack([zyx, zyx + 1, zyx + 2], axis=-1))
    save_nifti(tmp_path / "d" / "nuclei_patch_1_vol3_ch1.nii.gz", noise(61)[..., None])
    save_nifti(tmp_path / "d" / "nuclei_patch_1_vol3_ch1_label.nii.gz", noise(62))
    summary = ingest(
        layout="flat",
        root=tmp_path / "d",
        out=tmp_path / "s",
        captions=None,
        source="lab",
        voxel_size_um=(6.0, 1.62, 1.62),
    )
    assert (summary.added, summary.added_files) == (4, 2)
    store = PatchStore.open(tmp_path / "s")
    rows = {row.id: (row.channel, i) for i, row in enumerate(store.rows)}
    assert {name: channel for name, (channel, _) in rows.items()} == {
        "lab/nuclei_patch_0_vol3_ch1#0": 0,
        "lab/nuclei_patch_0_vol3_ch1#1": 1,
        "lab/nuclei_patch_0_vol3_ch1#2": 2,
        "lab/nuclei_patch_1_vol3_ch1": 1,
    }
    np.testing.assert_array_equal(store.read(rows["lab/nuclei_patch_0_vol3_ch1#2"][1]), zyx + 2)
    assert {row.volume for row in store.rows} == {"lab/nuclei/vol3"}
    assert {(row.voxel_size_um, row.voxel_size_source) for row in store.rows} == {((6.0, 1.62, 1.62), "given")}


def test_several_sources_in_one_store(tmp_path: pathlib.Path) -> None:
    first, second = selma_folder(tmp_path / "a"), tmp_path / "b"
    save_nifti(second / "run1" / "c0" / "x_1.nii.gz", noise(70))
    (tmp_path / "b.json").write_text('{"c0": "Nuclei of another lab."}')
    _ingest(first, tmp_path / "s", source="ours")
    assert _ingest(second, tmp_path / "s", layout="connection").added == 1
    store = PatchStore.open(tmp_path / "s")
    assert {row.source for row in store.rows} == {"ours", "connection"} and set(store.captions) == {
        "cfos",
        "glia",
        "c0",
    }


def test_statistics_of_a_known_volume() -> None:
    found = intensity_statistics(np.arange(1001, dtype=np.uint16).reshape(7, 11, 13))
    assert found["percentiles"]["0.1"] == 1 and found["percentiles"]["99.5"] == 995
    assert found["mean"] == 500 and found["std"] == pytest.approx(np.sqrt((1001**2 - 1) / 12))


@pytest.mark.parametrize(
    ("folder", "layout", "captions", "count", "volumes"),
    [
        ("pretrain", "wu", ("pretrain/text_prompts_wu.json", "captions/text_prompts_expanded.json"), 7, 7),
        ("delivr", "selma", ("captions/text_prompts_delivr.json",), 60, 12),
        ("finetune", "flat", None, 6, 6),
    ],
)
def test_real_folders(
    shared: pathlib.Path,
    tmp_path: pathlib.Path,
    folder: str,
    layout: str,
    captions: tuple[str, ...] | None,
    count: int,
    volumes: int,
) -> None:
    data = shared / "data"
    files = None if captions is None else [data / name for name in captions]
    summary = ingest(layout=layout, root=data / folder, out=tmp_path / "s", captions=files)
    assert summary.added == count and not summary.failed and not summary.duplicates
    store = PatchStore.open(tmp_path / "s")
    assert len(store.rows) == count and len({row.volume for row in store.rows}) == volumes
    assert all(row.caption_key in store.captions for row in store.rows) is (captions is not None)
    row = store.rows[0]
    raw = np.asarray(nibabel.load(data / folder / row.file).dataobj).reshape(row.shape[::-1]).T
    np.testing.assert_array_equal(store.read(0), raw)
    assert "unverified" in row.voxel_size_source
