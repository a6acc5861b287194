"""Inpainting of files: restored where a mask says, untouched elsewhere, and errors that say what to do."""

import jax
import numpy as np
import pytest
from damaged_volumes import AFFINE, SIDE, damaged, save_nifti
from toy_backbone import TOY

import lsmfm_jax
from lsmfm_jax.cli import main
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.run import predict
from lsmfm_jax.tasks.finetuning import Network, backbone_of
from lsmfm_jax.train.weights import write_weights
from lsmfm_jax.volumes.read import read_single

ARCHITECTURE = {"name": "toy", "out_channels": 4, "width": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose weights were drawn and never trained."""
    record = {"task": "inpaint", "architecture": ARCHITECTURE, "patch_size": [16, 16, 16], "fill": 0.0}
    record["scaling"] = {"lower": "1", "upper": "99"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", TOY)
        params, stats = Network(backbone_of(ARCHITECTURE)).init(jax.random.key(0), (16, 16, 16))
        head = {"kernel": 0.2 * jax.random.normal(jax.random.key(1), (4, 1)), "bias": jax.numpy.full((1,), 0.05)}
        folder = tmp_path_factory.mktemp("run")
        write_weights(folder, record=record, params={"backbone": params, "head": head}, batch_stats={"backbone": stats})
        yield folder


def restored(folder, name):
    return read_single(folder / f"{name}_inpainted.nii.gz", allow_constant=True)


def quietly(*arguments, **settings):
    return predict(*arguments, print_line=lambda line: None, **settings)


def test_what_lies_under_a_mask_changes_nothing_and_a_flipped_mask_lies_where_its_affine_says(run, tmp_path):
    damaged(tmp_path, "dark_1", under=0)
    damaged(tmp_path, "bright_1", under=60000)
    _, hidden, _ = damaged(tmp_path, "flipped_1")
    affine = AFFINE * [-1, 1, 1, 1]
    affine[0, 3] = 0.5 * (SIDE - 1)
    save_nifti(tmp_path / "flipped_1_mask.nii.gz", hidden[:, :, ::-1].astype(np.uint8), affine=affine)
    quietly(run, [tmp_path], tmp_path / "out")
    results = {name: restored(tmp_path / "out", f"{name}_1")[0] for name in ("dark", "bright", "flipped")}
    np.testing.assert_array_equal(results["bright"], results["dark"])
    np.testing.assert_array_equal(results["flipped"], results["dark"])


def test_the_result_has_the_type_and_the_units_of_the_image(run, tmp_path):
    kinds = {
        ("bytes_1", np.uint8, ".nii.gz"),
        ("signed_1", np.int16, ".nii.gz"),
        ("floats_1", np.float32, ".npy"),
        ("counts_1", np.uint16, ".npy"),
    }
    made = {name: damaged(tmp_path, name, dtype=dtype, ending=ending) for name, dtype, ending in kinds}
    quietly(run, [tmp_path], tmp_path / "out")
    for name, (image, hidden, whole) in made.items():
        result, _ = restored(tmp_path / "out", name)
        assert result.dtype == image.dtype
        np.testing.assert_array_equal(result[~hidden], image[~hidden])
        assert np.abs(result[hidden].astype(float) - whole[hidden]).mean() < 0.2 * np.ptp(whole)
        assert (result[hidden] != whole[hidden]).any()


def test_masks_that_cannot_be_used_are_named_in_one_line(run, tmp_path):
    image, hidden, _ = damaged(tmp_path, "a_1")
    mask = tmp_path / "a_1_mask.nii.gz"

    def refused(message, **settings):
        with pytest.raises(PredictionError, match=message) as caught:
            quietly(run, [tmp_path / "a_1.nii.gz"], tmp_path / "out", overwrite=True, **settings)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").glob("*.nii.gz"))

    save_nifti(mask, np.zeros(image.shape, np.uint8))
    refused(r"a_1_mask.nii.gz: every voxel is 0, so nothing is to be restored")
    save_nifti(mask, np.ones(image.shape, np.uint8))
    refused(r"a_1_mask.nii.gz: no voxel is 0, so everything is to be restored")
    save_nifti(mask, hidden[:-1].astype(np.uint8))
    refused(r"a_1_mask.nii.gz: its shape is \(19, 20, 20\), that of .*a_1.nii.gz \(20, 20, 20\)")
    save_nifti(mask, hidden.astype(np.uint8), affine=AFFINE + np.eye(4, k=3) * 30)
    refused(r"a_1_mask.nii.gz lies .* voxels off .*a_1.nii.gz")
    large = np.zeros(image.shape, np.uint8)
    large[:17, :17, :17] = 1
    save_nifti(mask, large)
    refused(r"a_1.nii.gz: a box to restore is larger than a window of 16 x 16 x 16 .* --window")
    quietly(run, [tmp_path / "a_1.nii.gz"], tmp_path / "larger", window=(20, 20, 20))
    mask.unlink()
    refused(r"a_1.nii.gz: no mask beside it; add a_1_mask.nii.gz, not 0 in the voxels to restore")


def test_whole_brains_and_arrays_are_refused_in_one_line(run, tmp_path, capsys):
    image, _, _ = damaged(tmp_path, "a_1")
    out = tmp_path / "out.ome.zarr"
    assert main(["predict", "--checkpoint", str(run), str(tmp_path / "a_1.nii.gz"), "--out", str(out)]) == 2
    assert "a run of task 'inpaint' gives no map of a volume" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(PredictionError, match=r"a run of task 'inpaint' gives no result in memory; use lsmfm predict"):
        lsmfm_jax.load(run).predict(image)
