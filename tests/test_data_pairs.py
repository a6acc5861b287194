"""Cut patches as files beside their labels: each voxel of the label is that of the image's own place."""

import nibabel
import numpy as np
import pytest
from volume_files import ome_zarr

from lsmfm_jax.cli import main
from lsmfm_jax.store.cut import cut
from lsmfm_jax.store.pairs import PairsError, write_pairs
from lsmfm_jax.volumes.names import volume_of
from lsmfm_jax.volumes.open import open_volume


@pytest.fixture
def volumes(tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 60_000, (40, 50, 60)).astype("uint16")
    path = ome_zarr(tmp_path / "mouse 7.ome.zarr", [whole], version="0.5")
    labels = ome_zarr(tmp_path / "labels.zarr", [(whole > 30_000).astype("uint64") * 300], version="0.5")
    cut([path], out=tmp_path / "store", size=(12, 14, 16), count=3, threshold=0)
    return tmp_path, whole, labels


def test_images_and_labels_are_of_the_same_voxels(volumes, capsys):
    folder, whole, labels = volumes
    assert main(["data", "pairs", f"{folder}/store", "--labels", str(labels), "--out", f"{folder}/pairs"]) == 0
    assert "3 patches with labels" in capsys.readouterr().out
    images = sorted(path for path in (folder / "pairs").iterdir() if "_label" not in path.name)
    assert len(images) == 3 and len(list((folder / "pairs").iterdir())) == 6
    # All patches of a brain on one side of a split.
    assert len({volume_of(path.name.removesuffix(".nii.gz")) for path in images}) == 1
    for path in images:
        image = open_volume(path)
        label = open_volume(path.with_name(path.name.replace(".nii", "_label.nii")))
        assert image.voxel_size_um == label.voxel_size_um == (2.0, 0.5, 0.5)
        z, y, x = (int(part[1:]) for part in path.name.removesuffix(".nii.gz").split("_")[-3:])
        everything = (slice(None),) * 3
        np.testing.assert_array_equal(image.read(everything), whole[z : z + 12, y : y + 14, x : x + 16])
        np.testing.assert_array_equal(label.read(everything), (image.read(everything) > 30_000) * 300)
        assert nibabel.load(path).header.get_xyzt_units()[0] in ("micron", "mm", "unknown")


def test_images_alone_for_annotating(volumes):
    folder, _, _ = volumes
    assert len(write_pairs(folder / "store", folder / "alone")) == len(list((folder / "alone").iterdir())) == 3


def test_labels_of_another_volume_are_refused(volumes):
    folder, whole, labels = volumes
    small = ome_zarr(folder / "small.zarr", [(whole[:12, :14, :16] > 5).astype("uint8")], version="0.5")
    with pytest.raises(PairsError, match="end before the patch"):
        write_pairs(folder / "store", folder / "p", labels=small)
    share = ome_zarr(folder / "share.zarr", [whole.astype("float32") / 60_000], version="0.5")
    with pytest.raises(PairsError, match="not probabilities"):
        write_pairs(folder / "store", folder / "p", labels=share)
    with pytest.raises(PairsError, match="no patch cut from brain/other; its cut volumes: brain/mouse 7"):
        write_pairs(folder / "store", folder / "p", volume="brain/other")
    cut(
        [ome_zarr(folder / "b.zarr", [whole], version="0.5")],
        out=folder / "store",
        size=(12, 14, 16),
        count=1,
        threshold=0,
    )
    with pytest.raises(PairsError, match="choose one with --volume: brain/b, brain/mouse 7"):
        write_pairs(folder / "store", folder / "p", labels=labels)
    assert not (folder / "p").exists()
