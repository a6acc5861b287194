"""Results of whole brains against the models of OME-Zarr 0.5, and their voxels as zarr-python reads them."""

import numpy as np
import pytest
import zarr
from brain_runs import blobs, copying, in_memory, written
from ome_zarr_models.v05 import Image, ImageLabel, Labels

from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.merge import merge
from lsmfm_jax.predict.output import INSTANCES, MASK, PROBABILITY


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A finished result with two levels."""
    out = tmp_path_factory.mktemp("brain") / "r.ome.zarr"
    settings = BrainSettings(shard=(32, 32, 32), threshold=0.6, skip_blank=False)
    volume = in_memory(blobs((40, 50, 300)), voxel_size_um=(4.0, 1.5, 1.5))
    predict_brain(copying(), volume, out, settings=settings, print_line=lambda line: None)
    merge(out, print_line=lambda line: None)
    return out


def test_groups_are_valid_images_and_labels(result):
    root = zarr.open_group(result, mode="r")
    image = Image.from_zarr(root)
    levels = image.attributes.ome.multiscales[0].datasets
    assert [level.path for level in levels] == ["0", "1"]
    assert levels[0].coordinateTransformations[0].scale == [4.0, 1.5, 1.5]
    # Voxels are long along Z, so the first halving leaves them.
    assert levels[1].coordinateTransformations[0].scale == [4.0, 3.0, 3.0]
    assert levels[1].coordinateTransformations[1].translation == [0.0, 0.75, 0.75]
    labels = Labels.from_zarr(root["labels"])
    assert sorted(labels.attributes.ome.labels) == ["instances", "mask"]
    for name in ("mask", "instances"):
        label = ImageLabel.from_zarr(root["labels"][name])
        assert label.attributes.ome.image_label.source.image == "../../"
        assert len(label.attributes.ome.multiscales[0].datasets) == len(levels)


@pytest.mark.parametrize("image", [PROBABILITY, MASK, INSTANCES], ids=lambda image: image.name)
def test_another_reader_has_the_same_voxels(result, image):
    for level in (0, 1):
        array = zarr.open_array(result / image.array(level), mode="r")
        assert array.metadata.dimension_names == ("z", "y", "x")
        values = array[:]
        assert values.dtype == image.dtype and values.any()
        np.testing.assert_array_equal(values, written(result, image, level=level))
