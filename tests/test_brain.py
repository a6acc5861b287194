"""Volumes of any size: the result of blocks is that of the whole, in bounded memory, resumable, in parts."""

import dataclasses

import numpy as np
import pytest
from brain_runs import blobs, copying, in_memory, make_run, quiet, written
from brain_runs import predict_copy as predict
from scipy import ndimage

from lsmfm_jax.cli import main
from lsmfm_jax.predict.background import ahead
from lsmfm_jax.predict.blocks import make_grid, make_layers, read_layers
from lsmfm_jax.predict.brain import plan_brain, predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.output import MASK, PROBABILITY, deblurred, shard_file
from lsmfm_jax.predict.plan import make_plan, parse_bytes
from lsmfm_jax.predict.shards import part_of, read_record
from lsmfm_jax.predict.statistics import CELL, VolumeStatistics, measure
from lsmfm_jax.predict.sweep import sweep
from lsmfm_jax.predict.tissue import TissueMask
from lsmfm_jax.predict.windows import blend_windows
from lsmfm_jax.scale import SCALES, Scale
from lsmfm_jax.scale import measure as measure_levels

GIB = 2**30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), "segment")


# --- statistics of a whole volume ---


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "int64"])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_percentiles_are_those_of_the_whole(kind, seed, monkeypatch):
    monkeypatch.setattr("lsmfm_jax.predict.statistics.STEP_VOXELS", 2**14)
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(3, 90, 3))
    wide = 1e6 if kind in ("uint32", "int32", "float32") else 1
    values = np.clip(rng.normal(40 if kind[0] == "u" else 0, 30, shape), 0 if kind[0] == "u" else -100, 100) * wide
    array = values.astype(kind)
    found = measure(in_memory(array, chunk=(5, 16, 64)), Scale(percentiles=(1.0, 99.7)))
    np.testing.assert_allclose([found.low, found.high], np.percentile(array, (1.0, 99.7)), rtol=1e-6)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    expected = ndimage.maximum_filter(np.pad(array, [(0, -size % CELL) for size in shape], mode="edge"), size=CELL)
    assert (found.cell_maxima == expected[CELL // 2 :: CELL, CELL // 2 :: CELL, CELL // 2 :: CELL]).all()
    np.testing.assert_array_equal(found.projection, array.max(axis=0))


def test_voxels_that_are_no_numbers_are_refused():
    array = blobs((20, 20, 20), dtype=np.float32)
    array[3, 4, 5] = np.nan
    with pytest.raises(PredictionError, match="NaN or infinite"):
        measure(in_memory(array), Scale())


@pytest.mark.parametrize("scale", [Scale(name) for name in SCALES], ids=SCALES)
def test_a_patch_has_the_values_of_its_volume_where_the_levels_are_the_volumes(scale):
    array = blobs((40, 40, 40))
    levels = measure(in_memory(array, chunk=(7, 16, 40)), scale).levels
    box = (slice(3, 20), slice(5, 30), slice(0, 11))
    whole = levels.apply(array)
    assert levels.apply(array[box], (3, 5, 0)).tobytes() == whole[box].tobytes()
    # By parts as in memory.
    np.testing.assert_allclose(whole, measure_levels(array, scale).apply(array), atol=1e-4)


# --- blocks ---


def _not_shift_invariant(windows):
    """Depends on the place in the window, so only the same windows with the same weights give the same result."""
    return np.cumsum(windows, axis=1) * 0.02 + np.cumsum(windows, axis=3) * 0.01 + windows


@pytest.mark.parametrize("seed", range(12))
def test_blocks_of_any_grid_give_the_result_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(3, 80, 3))
    window = tuple(int(side) for side in rng.choice([8, 16, 24], 3))
    overlap = float(rng.choice([0.0, 0.25, 0.5]))
    array = rng.random(shape).astype(np.float32)
    expected = blend_windows(_not_shift_invariant, array, window=window, overlap_frac=overlap, batch_size=3)
    grid, found = make_grid(shape, window=window, overlap_frac=overlap), np.full(shape, np.nan, np.float32)
    side = [int(length) for length in rng.integers(5, 60, 3)]
    corners = np.stack(np.meshgrid(*(range(0, n, s) for n, s in zip(shape, side, strict=True))), -1).reshape(-1, 3)
    volume = in_memory(array, chunk=tuple(int(length) for length in rng.integers(1, 40, 3)))
    for corner in corners:
        ends = zip(corner, side, shape, strict=True)
        box = tuple(slice(int(start), int(min(start + length, size))) for start, length, size in ends)
        layers = make_layers(grid, box, None)

        def emit(first, last, values, box=box):
            assert np.isnan(found[first:last, box[1], box[2]]).all(), "each plane once"
            found[first:last, box[1], box[2]] = 0 if values is None else values

        prepare = lambda tile, where: tile.astype(np.float32)  # noqa: E731
        tiles = ahead(read_layers(volume, prepare, grid=grid, layers=layers, box=box))
        sweep(_not_shift_invariant, tiles, grid=grid, layers=layers, box=box, batch_size=2, emit=emit)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_trained_network_by_blocks_is_the_network_in_memory(run, tmp_path):
    predictor = load_predictor(run)
    array = blobs((16, 26, 32))
    blended = blend_windows(
        predictor.apply,
        predictor.prepared(array, predictor.levels(array)),
        window=(16, 16, 16),
        overlap_frac=0.25,
        batch_size=1,
    )
    assert np.ptp(blended) > 0.05
    threshold = float(np.median(blended))
    settings = BrainSettings(shard=(16, 16, 16), skip_blank=False, batch_size=2, threshold=threshold)
    predict_brain(predictor, in_memory(array), tmp_path / "r.ome.zarr", settings=settings, print_line=quiet)
    probability, mask = written(tmp_path / "r.ome.zarr", PROBABILITY), written(tmp_path / "r.ome.zarr", MASK)
    assert np.abs(probability / 255 - blended).max() < 0.5 / 255 + 1e-5
    clear = np.abs(blended - threshold) > 1e-5
    np.testing.assert_array_equal(mask[clear] > 0, (blended >= threshold)[clear])
    assert 0.1 < mask.mean() < 0.9


@pytest.mark.parametrize("shard", [(16, 24, 8), (32, 32, 32), (64, 64, 64)])
def test_no_seam_wherever_the_faces_of_shards_are(tmp_path, shard):
    array = blobs((40, 50, 60), seed=5)
    predict(in_memory(array), tmp_path / "r.ome.zarr", shard=shard, network=_not_shift_invariant, part=(1, 1))
    predictor = copying(network=_not_shift_invariant)
    expected = blend_windows(
        predictor.apply,
        predictor.prepared(array, predictor.levels(array)),
        window=(16, 16, 16),
        overlap_frac=0.25,
        batch_size=1,
    )
    found = written(tmp_path / "r.ome.zarr", PROBABILITY)
    np.testing.assert_allclose(found / 255, np.clip(expected, 0, 1), atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_a_deblurred_volume_has_the_type_and_the_counts_of_its_input(tmp_path, kind):
    array = blobs((20, 30, 40), dtype=kind)
    predict(in_memory(array), tmp_path / "r.ome.zarr", task="deblur")
    found = written(tmp_path / "r.ome.zarr", deblurred(kind))
    assert found.dtype == kind
    np.testing.assert_allclose(found, array, atol=1e-3 if kind == "float32" else 0)


def test_counts_that_a_type_cannot_hold_are_cut(tmp_path):
    array = blobs((20, 30, 40), dtype="uint8")
    predict(in_memory(array), tmp_path / "r.ome.zarr", task="deblur", network=lambda x: 4 * x - 1)
    found = written(tmp_path / "r.ome.zarr", deblurred("uint8"))
    low, high = np.percentile(array, (1, 99))
    expected = low + (4 * (array - low) / (high - low) - 1) * (high - low)
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.6)
    assert expected.max() > 260 and expected.min() < -5


# --- what is left out ---


def test_blank_cells_are_left_out_and_the_rest_is_unchanged(tmp_path):
    array = np.zeros((96, 96, 96), np.uint16)
    array[:40, 33:64, 40:90] = blobs((40, 31, 50))
    lines, seen = [], []

    def network(windows):
        seen.append(len(windows))
        return 0.4 + 0.5 * windows

    for name, skip in (("skipped", True), ("full", False)):
        predict(
            in_memory(array), tmp_path / f"{name}.ome.zarr", network=network, skip_blank=skip, print_line=lines.append
        )
        seen.append(0)
    skipped, full = (written(tmp_path / f"{name}.ome.zarr", PROBABILITY) for name in ("skipped", "full"))
    cells = np.zeros((96, 96, 96), bool)
    cells[:64, 32:64, 32:96] = True
    np.testing.assert_array_equal(skipped, np.where(cells, full, 0))
    assert (full[~cells] == 102).all()
    assert any("85.2% of the volume is left out (blank)" in line for line in lines), lines
    end = seen.index(0)
    assert sum(seen[:end]) < 0.4 * sum(seen[end:])
    # The files of shards without any voxel are not there.
    assert not shard_file(tmp_path / "skipped.ome.zarr", PROBABILITY, (2, 0, 0)).exists()


@pytest.mark.parametrize("shape", [(50, 60, 70), (25, 20, 9)])
def test_a_tissue_mask_of_any_resolution_limits_the_result(tmp_path, shape):
    array = blobs((50, 60, 70))
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2, :, shape[2] // 3 :] = 7
    tissue = TissueMask(in_memory(mask), array.shape)
    predict(in_memory(array), tmp_path / "r.ome.zarr", network=lambda x: 0.2 + 0.5 * x, tissue=tissue)
    found = written(tmp_path / "r.ome.zarr", PROBABILITY)
    places = [np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(array.shape, shape, strict=True)]
    inside = mask[np.ix_(*places)] > 0
    assert (found[inside] > 0).all() and not found[~inside].any() and 0.1 < inside.mean() < 0.6
    with pytest.raises(PredictionError, match="is larger than that of the volume"):
        TissueMask(in_memory(np.zeros((51, 3, 3), np.uint8)), array.shape)


# --- plan ---


@pytest.mark.parametrize("seed", range(20))
def test_plans_keep_to_the_memory_and_cover_the_volume(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(20, 6000, 3))
    parts, limit = int(rng.integers(1, 20)), int(rng.uniform(1.5, 40) * GIB)
    plan = make_plan(
        shape, window=(96, 96, 96), itemsize=2, chunk_rows=64, output_bytes=2, network_bytes=0, max_ram_bytes=limit,
        parts=parts,
    )  # fmt: skip
    assert plan.needed_bytes <= limit
    assert all(side % piece == 0 for side, piece in zip(plan.shard, plan.chunk, strict=True))
    assert all(side % piece == 0 for side, piece in zip(plan.task, plan.shard, strict=True))
    tasks = plan.tasks()
    assert sum(np.prod([one.stop - one.start for one in task]) for task in tasks) == np.prod(shape)
    assert len(tasks) >= min(parts, len(plan.shards()))
    dealt = [tuple(map(str, task)) for part in range(1, parts + 1) for task in part_of(tasks, (part, parts))]
    assert sorted(dealt) == sorted(tuple(map(str, task)) for task in tasks)


def test_too_little_memory_is_refused_with_what_is_needed():
    with pytest.raises(PredictionError, match=r"--max-ram 500 MiB: even shards of 64 x 64 x 64 voxels need \d+"):
        make_plan(
            (999, 999, 999), window=(96, 96, 96), itemsize=2, chunk_rows=64, output_bytes=2, network_bytes=0,
            max_ram_bytes=500 * 2**20,
        )  # fmt: skip


def test_too_little_memory_to_measure_the_background_is_refused_with_what_is_needed():
    """Its map grows with the volume up to 2^25 blocks: a brain of any size is measured in what its prediction takes."""
    settings = BrainSettings(max_ram_bytes=GIB)
    predictor = dataclasses.replace(copying(), scale=Scale("local"))
    small = in_memory(np.zeros((16, 16, 16), np.uint16), voxel_size_um=None)

    def planned(side, settings=settings):
        return plan_brain(predictor, dataclasses.replace(small, shape=(side,) * 3), settings)

    # 24 bytes for each of nearly 2^25 blocks, and what a process takes anyway.
    with pytest.raises(PredictionError, match=r"--max-ram 1\.0 GiB: measuring the background .* needs 1\.4 GiB"):
        planned(4096)
    assert planned(512).needed_bytes < GIB
    assert planned(8000, BrainSettings(max_ram_bytes=2 * GIB)).needed_bytes < 2 * GIB


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_a_map_beyond_0_and_1_is_clipped_before_it_is_cut_and_counted(threshold, tmp_path):
    array = blobs((32, 32, 32))
    shift = lambda windows: 2.0 * windows - 0.5  # noqa: E731
    predict(in_memory(array), tmp_path / "r.ome.zarr", network=shift, window=(32, 32, 32), threshold=threshold)
    low, high = np.percentile(array, (1, 99))
    expected = np.clip(2.0 * np.clip((array - low) / (high - low), 0, 1) - 0.5, 0, 1)
    clear = np.abs(expected - threshold) > 1e-4 if 0 < threshold < 1 else np.ones(array.shape, bool)
    np.testing.assert_array_equal(written(tmp_path / "r.ome.zarr", MASK)[clear] > 0, (expected >= threshold)[clear])
    np.testing.assert_allclose(written(tmp_path / "r.ome.zarr", PROBABILITY), 255 * expected, atol=0.51)


@pytest.mark.parametrize(
    "text, value", [("16G", 16 * GIB), ("800M", 800 * 2**20), ("1.5GiB", 1.5 * GIB), ("2tb", 2048 * GIB)]
)
def test_sizes_of_memory(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "16", "G", "-3G", "1.2.3G", "0G"])
def test_sizes_of_memory_that_are_none(text):
    with pytest.raises(PredictionError, match="a size such as 16G"):
        parse_bytes(text)


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, tmp_path, capsys):
    np.save(tmp_path / "a.npy", blobs((40, 50, 60)))
    out = tmp_path / "r.ome.zarr"
    arguments = ["predict", "--checkpoint", str(run), str(tmp_path / "a.npy"), "--out", str(out), "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "40 x 50 x 60 voxels" in said and "windows of 16 x 16 x 16" in said and "--max-ram" in said
    assert not out.exists()
    assert main([*arguments, "--max-ram", "300M"]) == 2
    assert "--max-ram 300 MiB: even shards of" in capsys.readouterr().err


# --- resume ---


def test_what_is_done_is_left_alone_and_what_is_torn_is_done_again(tmp_path):
    array, out, lines = blobs((60, 60, 60)), tmp_path / "r.ome.zarr", []
    predict(in_memory(array), out)
    before = written(out, PROBABILITY)
    files = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("c/*/*/*"))}
    predict(in_memory(array), out, print_line=lines.append)
    assert "0 of 8 shards to do" in lines[0]
    shards = [(0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 0, 1)]
    torn, flipped, gone, unmarked = (shard_file(out, PROBABILITY, shard) for shard in shards)
    torn.write_bytes(torn.read_bytes()[:100])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 4
    flipped.write_bytes(data)
    gone.unlink()
    (out / "prediction" / "done" / "1.0.1.json").unlink()
    unmarked.write_bytes(b"half a shard")
    lines.clear()
    predict(in_memory(array), out, print_line=lines.append)
    assert sum("predicted again" in line for line in lines) == 3
    assert any("4 of 8 shards to do" in line for line in lines), lines
    np.testing.assert_array_equal(written(out, PROBABILITY), before)
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert {torn, flipped, gone, unmarked} <= changed and len(changed) == 8  # their masks too


def test_other_settings_are_refused_with_the_difference(tmp_path):
    array, out = blobs((40, 40, 40)), tmp_path / "r.ome.zarr"
    predict(in_memory(array), out)
    for change, words in (
        ({"threshold": 0.25}, "threshold 0.5 there, 0.25 now"),
        ({"overlap_frac": 0.5}, "overlap 0.25 there, 0.5 now"),
        ({"window": (32, 16, 16)}, r"window \[16, 16, 16\] there, \[32, 16, 16\] now"),
        ({"blank_below": 30.0}, "blank_below None there, 30.0 now"),
    ):
        with pytest.raises(PredictionError, match=f"holds a prediction with other settings: {words}"):
            predict(in_memory(array), out, **change)
    other = array.copy()
    other[:] = other[::-1]
    with pytest.raises(PredictionError, match="input_content"):
        predict(in_memory(other), out)
    # Where the volume lies does not matter.
    predict(in_memory(array, path="elsewhere"), out)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "r.ome.zarr").mkdir()
    (tmp_path / "r.ome.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(PredictionError, match=r"r\.ome\.zarr: there already, and not made by lsmfm predict"):
        predict(in_memory(blobs((20, 20, 20))), tmp_path / "r.ome.zarr")
    assert (tmp_path / "r.ome.zarr" / "zarr.json").read_text() == "{}"


def test_parts_together_are_the_whole(tmp_path):
    array = blobs((70, 70, 70))
    predict(in_memory(array), tmp_path / "whole.ome.zarr", network=_not_shift_invariant)
    for part in (3, 1, 2):
        predict(in_memory(array), tmp_path / "parts.ome.zarr", network=_not_shift_invariant, part=(part, 3))
    assert len(read_record(tmp_path / "parts.ome.zarr").plan.tasks()) >= 12
    whole, parts = (written(tmp_path / f"{name}.ome.zarr", PROBABILITY) for name in ("whole", "parts"))
    # A batch may be made of other windows, so the last bit of a float may differ.
    assert np.abs(whole.astype(int) - parts).max() <= 1 and (whole == parts).mean() > 0.999


def test_an_error_while_reading_stops_with_the_shards_before_it(tmp_path):
    array = blobs((96, 20, 20))

    def read(box):
        if box[0].stop > 60 and broken:
            raise PredictionError("the disk is gone")
        return array[box]

    broken = False
    volume = in_memory(array)
    object.__setattr__(volume, "source", read)
    settings = {"shard": (32, 32, 32)}
    predictor = copying()
    chosen = BrainSettings(**settings, skip_blank=False)
    predict_brain(predictor, volume, tmp_path / "r.ome.zarr", settings=chosen, prepare_only=True, print_line=quiet)
    broken = True
    object.__setattr__(volume, "source", lambda box: read(box) if box[0].stop - box[0].start != 24 else array[box])
    with pytest.raises(PredictionError, match="the disk is gone"):
        predict_brain(predictor, volume, tmp_path / "r.ome.zarr", settings=chosen, print_line=quiet)
    done = sorted(path.name for path in (tmp_path / "r.ome.zarr" / "prediction" / "done").glob("*.json"))
    assert done == ["0.0.0.json"]
    broken = False
    predict_brain(predictor, volume, tmp_path / "r.ome.zarr", settings=chosen, print_line=quiet)
    assert written(tmp_path / "r.ome.zarr", PROBABILITY)[-1].any()


def test_statistics_of_a_box_move_with_it():
    # A pixel of the projection is a voxel in volumes of up to 1024.
    array = blobs((8, 1100, 40))
    found = measure(in_memory(array), Scale())
    assert isinstance(found, VolumeStatistics) and found.projection.shape == (550, 20)
    np.testing.assert_array_equal(found.projection, array.reshape(8, 550, 2, 20, 2).max(axis=(0, 2, 4)))
