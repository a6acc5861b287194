"""A box of a volume is predicted as in a prediction of the whole: levels, windows and blank cells are the whole's."""

import dataclasses

import numpy as np
import pytest
from brain_runs import blobs, copying, in_memory, make_run, written

from lsmfm_jax.cli import main
from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.output import MASK, PROBABILITY
from lsmfm_jax.predict.shards import read_record
from lsmfm_jax.predict.statistics import measure
from lsmfm_jax.predict.tissue import TissueMask
from lsmfm_jax.scale import Scale
from lsmfm_jax.volumes.lazy import parse_box

# No multiple of a cell, a window, a shard or a stride.
BOX = "21:70,9:61,40:90"


def quiet(line):
    pass


def uneven(shape=(90, 80, 100)):
    """Spots with a dark corner, brighter along X: the levels of a part are not those of the whole."""
    array = (blobs(shape) * np.linspace(1, 6, shape[2])).astype(np.uint16)
    array[:40, :33, :66] = 0
    return array


def _by_place(windows):
    """Depends on the place in the window, so only the same windows with the same weights give the same result."""
    return 0.1 + 0.4 * windows + np.linspace(0, 0.3, windows.shape[1], dtype=np.float32)[:, None, None]


def predict(volume, out, *, scale, box=None, tissue=None, task="segment", levels_from=None, **settings):
    predictor = dataclasses.replace(copying(task=task, network=_by_place), scale=scale)
    chosen = BrainSettings(shard=(32, 16, 24), box=None if box is None else parse_box(box), **settings)
    return predict_brain(
        predictor, volume, out, settings=chosen, tissue=tissue, levels_from=levels_from, print_line=quiet
    )


def part_of(root, image, box):
    return written(root, image)[parse_box(box)]


@pytest.mark.parametrize("scale", [Scale(), Scale("local", sigma_voxels=6.0)], ids=["percentile", "local"])
def test_a_box_has_the_values_of_the_whole(tmp_path, scale):
    volume = in_memory(uneven())
    mask = np.zeros((45, 40, 50), np.uint8)
    mask[13:, 3:, 7:44] = 1
    tissue = TissueMask(in_memory(mask), volume.shape)
    settings = {"scale": scale, "tissue": tissue, "threshold": 0.4}
    predict(volume, tmp_path / "whole.ome.zarr", **settings)
    predict(volume, tmp_path / "box.ome.zarr", box=BOX, **settings)
    for image in (PROBABILITY, MASK):
        expected = part_of(tmp_path / "whole.ome.zarr", image, BOX)
        found = written(tmp_path / "box.ome.zarr", image)
        assert found.shape == (49, 52, 50)
        np.testing.assert_array_equal(found, expected)
        assert 0.05 < (found == 0).mean() < 0.95, "both something and nothing"
    # It would differ if the box were a volume of its own.
    alone = predict(in_memory(uneven()[parse_box(BOX)]), tmp_path / "alone.ome.zarr", scale=scale, threshold=0.4)
    assert (
        written(tmp_path / "alone.ome.zarr", PROBABILITY) != part_of(tmp_path / "whole.ome.zarr", PROBABILITY, BOX)
    ).mean() > 0.5
    assert alone.plan.shape == (49, 52, 50)


def test_parts_of_a_deblurred_box_are_those_of_the_whole(tmp_path):
    volume = in_memory(uneven())
    predict(volume, tmp_path / "whole.ome.zarr", scale=Scale(), task="deblur")
    for part in (2, 1):
        record = predict(volume, tmp_path / "b.ome.zarr", scale=Scale(), task="deblur", box=BOX, part=(part, 2))
    assert len(record.plan.tasks()) >= 8
    image = dataclasses.replace(PROBABILITY, name="deblurred", dtype="uint16")
    found, expected = written(tmp_path / "b.ome.zarr", image), part_of(tmp_path / "whole.ome.zarr", image, BOX)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 50


def test_levels_of_an_earlier_result_are_used_again_and_nothing_is_measured(tmp_path, monkeypatch):
    volume, scale = in_memory(uneven()), Scale("local", sigma_voxels=6.0)
    first = predict(volume, tmp_path / "first.ome.zarr", scale=scale, box="0:32,0:32,0:32")
    assert first.statistics.minimum == 0
    predict(volume, tmp_path / "measured.ome.zarr", scale=scale, box=BOX)
    with pytest.raises(PredictionError, match=r"--levels-from .*first\.ome\.zarr: .* scale .*there, .*z_score.* now"):
        predict(volume, tmp_path / "r.ome.zarr", scale=Scale("z_score"), levels_from=tmp_path / "first.ome.zarr")
    other = in_memory(uneven()[::-1])
    with pytest.raises(PredictionError, match=r"input_content .* Leave the option out, and the volume is measured"):
        predict(other, tmp_path / "r.ome.zarr", scale=scale, levels_from=tmp_path / "first.ome.zarr")
    assert not (tmp_path / "r.ome.zarr").exists()
    monkeypatch.setattr("lsmfm_jax.predict.network.measure", lambda *_, **__: pytest.fail("measured"))
    predict(volume, tmp_path / "r.ome.zarr", scale=scale, box=BOX, levels_from=tmp_path / "first.ome.zarr")
    again = written(tmp_path / "r.ome.zarr", PROBABILITY)
    np.testing.assert_array_equal(again, written(tmp_path / "measured.ome.zarr", PROBABILITY))


def test_another_box_is_refused_and_one_outside_too(tmp_path):
    volume = in_memory(uneven())
    predict(volume, tmp_path / "r.ome.zarr", scale=Scale(), box=BOX)
    with pytest.raises(PredictionError, match="other settings: box 21:70,9:61,40:90 there, 0:9,0:61,40:90 now"):
        predict(volume, tmp_path / "r.ome.zarr", scale=Scale(), box=":9,:61,40:90")
    with pytest.raises(PredictionError, match="--box 95:99,:,:: it lies outside of the volume of 90 x 80 x 100"):
        predict(volume, tmp_path / "s.ome.zarr", scale=Scale(), box="95:99,:,:")


def test_the_command_on_a_box_gives_the_whole_ones_voxels_its_objects_and_where_they_are(tmp_path, capsys):
    run = make_run(tmp_path / "run", "segment")
    array = uneven((40, 50, 60))
    array[:9] = 0
    np.save(tmp_path / "brain.npy", array)
    box = "5:37,11:50,20:59"
    command = ["predict", "--checkpoint", str(run), str(tmp_path / "brain.npy"), "--threshold", "0.35", "--out"]
    assert main([*command, str(tmp_path / "whole.ome.zarr"), "--no-objects"]) == 0
    first = ["--levels-from", str(tmp_path / "whole.ome.zarr")]
    capsys.readouterr()
    assert main([*command, str(tmp_path / "box.ome.zarr"), "--box", box, *first, "--also", "nifti"]) == 0
    said = capsys.readouterr().out
    assert f"input: 40 x 50 x 60 voxels (ZYX) of uint16, voxel size unknown; of it the box {box}" in said
    assert "measuring" not in said
    for image in (PROBABILITY, MASK):
        expected = part_of(tmp_path / "whole.ome.zarr", image, box)
        np.testing.assert_array_equal(written(tmp_path / "box.ome.zarr", image), expected)
    record = read_record(tmp_path / "box.ome.zarr")
    assert record.source["box"] == [[5, 37], [11, 50], [20, 59]]
    assert record.statistics.levels.low == measure(in_memory(array), Scale()).low
    assert (tmp_path / "box.ome.zarr" / "report.html").read_text().count("all of Z") > 0
    header, row = (tmp_path / "box.ome.zarr" / "objects.csv").read_text().splitlines()[:2]
    found = dict(zip(header.split(","), row.split(","), strict=True))
    # Its mean intensity is that of the voxels in the box, not of those at the volume's corner.
    labels = written(tmp_path / "box.ome.zarr", dataclasses.replace(MASK, group="labels/instances", dtype="uint64"))
    mean = array[parse_box(box)][labels == 1].mean()
    assert float(found["mean_intensity"]) == pytest.approx(mean, rel=1e-6)
