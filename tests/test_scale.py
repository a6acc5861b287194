"""Intensity scales: what they mean, that a patch and the volume around it agree, and what they stand."""

import json
import tracemalloc

import numpy as np
import pytest

from lsmfm_jax.scale import (
    OCTAVES,
    RATIOS,
    SCALES,
    Scale,
    ScaleError,
    Survey,
    check_seen,
    levels_of,
    measure,
    naming,
    scale_of,
    survey_bytes,
    tissue_blocks,
)
from lsmfm_jax.scale.survey import MOST_BLOCKS, block_sides

RATIO_OF_BACKGROUND = -OCTAVES[0] / (OCTAVES[1] - OCTAVES[0])


def tissue(seed: int, shape: tuple[int, int, int] = (70, 60, 90), level: float = 900.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(level, 0.05 * level, shape).clip(1, 65535).astype(np.uint16)


@pytest.mark.parametrize("name", ["log_ratio", "local"])
@pytest.mark.parametrize("gain", [0.3, 1.0, 7.0])
def test_gain_changes_nothing(name, gain):
    volume = tissue(0).astype(np.float32)
    volume[20:24, 20:24, 20:24] *= 4
    reference = measure(volume, Scale(name)).apply(volume)
    np.testing.assert_allclose(measure(volume * gain, Scale(name)).apply(volume * gain), reference, atol=2e-3)


@pytest.mark.parametrize("name", ["log_ratio", "local"])
def test_background_and_octaves(name):
    volume = tissue(1)
    volume[30:33, 30:33, 30:33] = 4 * 900
    scaled = measure(volume, Scale(name)).apply(volume)
    assert scaled.dtype == np.float32 and scaled.min() >= 0 and scaled.max() <= 1
    assert np.median(scaled) == pytest.approx(RATIO_OF_BACKGROUND, abs=0.01)
    two_octaves = (2 - OCTAVES[0]) / (OCTAVES[1] - OCTAVES[0])
    assert scaled[31, 31, 31] == pytest.approx(two_octaves, abs=0.02)


def test_local_follows_a_background_that_changes():
    volume = tissue(2, (40, 40, 200)).astype(np.float32) * np.linspace(1, 3, 200)
    for start in (10, 170):
        volume[20:23, 20:23, start : start + 3] = 2 * volume[10:30, 10:30, start : start + 3].mean()
    local = measure(volume, Scale("local")).apply(volume)
    whole = measure(volume, Scale("log_ratio")).apply(volume)
    first, second = (float(local[20:23, 20:23, s : s + 3].mean()) for s in (10, 170))
    assert abs(first - second) < 0.03
    assert abs(float(whole[20:23, 20:23, 10:13].mean() - whole[20:23, 20:23, 170:173].mean())) > 0.2


@pytest.mark.parametrize("outside_frac", [0.55, 0.8, 0.9])
@pytest.mark.parametrize("level", [500.0, 900.0, 20000.0])
def test_what_is_outside_the_tissue_does_not_count(outside_frac, level):
    """A patch at the brain's border gets the values of a patch inside of it."""
    inside = tissue(3, (80, 80, 80), level)
    inside[60:64, 70:74, 70:74] = 3 * level
    border = inside.copy()
    cut = int(80 * outside_frac)
    border[:, :cut] = np.random.default_rng(4).normal(110, 5, border[:, :cut].shape).astype(np.uint16)
    levels = measure(border, Scale("log_ratio"))
    assert levels.tissue_frac == pytest.approx(1 - outside_frac, abs=0.1)
    assert levels.level == pytest.approx(np.log2(level), abs=0.05)
    for name in ("log_ratio", "local"):
        value = measure(border, Scale(name)).apply(border)[60:64, 76:80, 70:74]
        expected = measure(inside, Scale(name)).apply(inside)[60:64, 76:80, 70:74]
        np.testing.assert_allclose(value, expected, atol=0.04)


@pytest.mark.parametrize("outside", [0, 1, 120])
@pytest.mark.parametrize("name", ["log_ratio", "local"])
def test_the_border_of_the_tissue_is_as_bright_as_its_middle(name, outside):
    """Blocks that hold both tissue and outside once lowered the background there: the border was foreground."""
    volume = tissue(11, (64, 64, 64), 600.0)
    z, y, x = np.indices(volume.shape)
    # A slanted border: it cuts blocks at all shares.
    volume[z + 0.7 * y + 0.4 * x > 45] = outside
    scaled = measure(volume, Scale(name)).apply(volume)
    inside = z + 0.7 * y + 0.4 * x < 44
    np.testing.assert_allclose(scaled[inside], RATIO_OF_BACKGROUND, atol=0.08)


@pytest.mark.parametrize("name", ["log_ratio", "local"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_padding_with_zeros_makes_no_edge(name, dtype):
    """Regressions of voxels and networks drew the outline of what is padded."""
    volume = tissue(13, (48, 48, 48)).astype(dtype)
    volume[20:] = 0
    scaled = measure(volume, Scale(name)).apply(volume)
    # Noise of 5 % is a third of an octave at its extremes.
    np.testing.assert_allclose(scaled, RATIO_OF_BACKGROUND, atol=0.08)
    # A tile of it that begins elsewhere gets the same.
    np.testing.assert_array_equal(measure(volume, Scale(name)).apply(volume[10:30], (10, 0, 0)), scaled[10:30])


def test_tissue_of_a_single_block_has_a_level():
    volume = np.zeros((60, 60, 60), np.uint16)
    volume[24:30, 24:30, 24:30] = tissue(12, (6, 6, 6), 700.0)
    levels = measure(volume, Scale("local"))
    assert levels.level == pytest.approx(np.log2(700), abs=0.02)
    assert levels.background[4, 4, 4] == pytest.approx(np.log2(700), abs=0.02)


@pytest.mark.parametrize("name", ["local", "log_ratio", "z_score"])
def test_measuring_stays_below_the_memory_that_is_promised(name):
    """The maps of a volume of 8 million blocks, half of it outside: `lsmfm predict --max-ram` relies on it."""
    shape = (1200, 1200, 1200)
    survey = Survey(Scale(name), shape)
    tracemalloc.start()
    slab = np.broadcast_to(np.where(np.arange(1200) < 600, np.uint16(300), np.uint16(20)), (6, *shape[1:]))
    for first in (0, 6, 600):
        survey.add(slab, (first, 0, 0))
    levels = survey.levels()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert levels.tissue_frac == 0.5
    held = sum(values.nbytes for values in (survey._sums, survey._counts, survey._squares))
    assert held + peak < survey_bytes(survey.scale, shape)[0]


def test_a_volume_of_any_size_has_a_bounded_number_of_blocks():
    """Measuring grew with the volume: 3 GB for 10^10 voxels, 100 GB for a brain of 4 * 10^11."""
    most = survey_bytes(Scale("local"), (1200, 1200, 1200))[0] / 200**3 * MOST_BLOCKS
    for shape in ((4000, 4000, 4000), (6000, 8000, 8000), (200, 100_000, 100_000)):
        sigmas = 30.0, 12.0, 12.0
        survey, _ = survey_bytes(Scale("local", sigma_um=12.0), shape, (0.4, 1.0, 1.0))
        assert 0.7 * most < survey <= most
        sides = block_sides(sigmas, shape)
        # As many sigmas along each axis as one voxel allows.
        longest = [side / sigma for side, sigma in zip(sides, sigmas, strict=True)]
        assert max(longest) - min(longest) < 1.001 / min(sigmas)
    assert block_sides((12.0, 12.0, 12.0), (1200, 1200, 1200)) == (6, 6, 6)


@pytest.mark.parametrize("sides", [(6, 6, 6), (9, 9, 9), (12, 12, 12)])
def test_coarser_blocks_give_nearly_the_same_background(sides, monkeypatch):
    volume = tissue(3, (96, 96, 96), 400.0) * np.linspace(0.7, 1.5, 96)
    fine = measure(volume, Scale("local"))
    monkeypatch.setattr("lsmfm_jax.scale.survey.block_sides", lambda *_: sides)
    coarse = measure(volume, Scale("local"))
    assert coarse.block == sides
    # The scale has six octaves in all.
    np.testing.assert_allclose(coarse.apply(volume), fine.apply(volume), atol=0.02 if sides != fine.block else 0)


def test_tissue_with_bright_objects_is_all_tissue():
    """Objects are no second level of tissue: they are few, and blocks are larger."""
    volume = tissue(5)
    rng = np.random.default_rng(5)
    for z, y, x in rng.integers(4, 56, (30, 3)):
        volume[z : z + 4, y : y + 4, x : x + 4] = 9000
    assert measure(volume, Scale("log_ratio")).tissue_frac == 1.0


@pytest.mark.parametrize("name", SCALES[1:])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_tiles_in_any_order_measure_what_the_whole_does(name, dtype):
    shape = (37, 50, 45)
    rng = np.random.default_rng(6)
    volume = rng.gamma(3, 20, shape).clip(0, 250).astype(dtype)
    whole = measure(volume, Scale(name))
    survey = Survey(Scale(name), shape)
    boxes = [(z, y, x) for z in range(0, 37, 10) for y in range(0, 50, 17) for x in range(0, 45, 45)]
    for index in rng.permutation(len(boxes)):
        z, y, x = boxes[index]
        survey.add(volume[z : z + 10, y : y + 17, x : x + 45], (z, y, x))
    parts = survey.levels()
    np.testing.assert_allclose(parts.apply(volume), whole.apply(volume), atol=1e-4)
    again = levels_of(json.loads(json.dumps(parts.facts())), parts.background)
    np.testing.assert_array_equal(again.apply(volume[5:20], (5, 0, 0)), parts.apply(volume[5:20], (5, 0, 0)))


@pytest.mark.parametrize("name", SCALES)
def test_a_tile_gets_the_values_it_has_in_the_whole(name):
    volume = tissue(7)
    levels = measure(volume, Scale(name))
    whole = levels.apply(volume)
    for box in (np.s_[3:40, 11:50, 60:90], np.s_[0:1, 0:60, 89:90], np.s_[69:70, 59:60, 0:90]):
        origin = tuple(s.start for s in box)
        np.testing.assert_allclose(levels.apply(volume[box], origin), whole[box], atol=1e-6)


def test_percentiles_are_those_of_numpy():
    rng = np.random.default_rng(8)
    for volume in (rng.poisson(40, (9, 8, 7)).astype(np.uint16), rng.integers(-300, 300, (5, 6, 7)).astype(np.int16)):
        for wanted in ((1.0, 99.0), (0.1, 99.9), (5.0, 100.0), (50.0, 95.0)):
            levels = measure(volume, Scale("percentile", percentiles=wanted))
            np.testing.assert_allclose((levels.low, levels.high), np.percentile(volume, wanted), rtol=1e-12)


def test_an_offset_is_taken_off_before_the_ratio():
    volume = np.full((20, 20, 20), 300, np.uint16)
    volume[5, 5, 5] = 500
    plain = measure(volume, Scale("log_ratio")).apply(volume)
    offset = measure(volume, Scale("log_ratio", offset_counts=100)).apply(volume)
    octave = 1 / (OCTAVES[1] - OCTAVES[0])
    assert offset[5, 5, 5] == pytest.approx(RATIO_OF_BACKGROUND + octave, abs=1e-3)
    assert plain[5, 5, 5] == pytest.approx(RATIO_OF_BACKGROUND + np.log2(5 / 3) * octave, abs=1e-3)


def test_sigma_in_micrometres_follows_the_voxel_size():
    fine = Survey(Scale("local", sigma_um=16.0), (64, 64, 64), (4.0, 1.0, 1.0))
    assert fine.sigmas == (4.0, 16.0, 16.0)
    assert fine.block == (2, 8, 8)
    assert Survey(Scale("local", sigma_um=16.0, sigma_voxels=10.0), (64, 64, 64)).sigmas == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("value", [0, 7, 65535])
def test_constant_and_blank_volumes_give_finite_numbers(name, value):
    volume = np.full((9, 10, 11), value, np.uint16)
    scaled = measure(volume, Scale(name)).apply(volume)
    assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1


@pytest.mark.parametrize("name", SCALES)
def test_negative_counts_after_registration_are_no_nan(name):
    volume = tissue(9, (20, 20, 20)).astype(np.float32)
    volume[:5] = -30.0
    assert np.isfinite(measure(volume, Scale(name)).apply(volume)).all()


def test_what_a_run_writes_down_is_read_back():
    scale = Scale("local", (0.1, 99.9), 12.0, 30.0, 105.0)
    assert scale_of(scale.record()) == scale
    assert scale_of({"lower": "1", "upper": "99.9"}) == Scale("percentile", (1.0, 99.9))
    with pytest.raises(ScaleError, match=r"gamma.*percentile"):
        scale_of({"name": "gamma"})


def test_small_gaps_between_sides_are_no_border():
    logs = np.concatenate([np.full((4, 8, 8), 9.0), np.full((4, 8, 8), 9.6)]).astype(np.float32)
    assert tissue_blocks(logs).all()
    logs[4:] += 1.0
    assert tissue_blocks(logs).mean() == 0.5


@pytest.mark.parametrize("name", RATIOS)
def test_values_that_are_no_counts_are_refused_by_ratios(name):
    """Scaled to [0, 1], or beginning at a negative offset, they would all be below one count, and look alike."""
    counts = tissue(3, (20, 30, 40))
    counts[5:9, 5:9, 5:9] = 4000
    for volume in ((counts / 4095).astype(np.float32), (counts.astype(np.int32) - 32768).astype(np.int16)):
        levels = measure(volume, Scale(name))
        assert np.ptp(levels.apply(volume)) == 0  # that is why
        with (
            pytest.raises(ScaleError, match=rf"brain\.tif: its values from .* sees no difference.*{name}|{name}.*sees"),
            naming("brain.tif"),
        ):
            check_seen(levels)
    assert check_seen(measure(counts, Scale(name))).seen_frac == 1.0


@pytest.mark.parametrize("name", RATIOS)
def test_a_negative_offset_gives_signed_counts_the_values_of_unsigned_ones(name):
    """Zero is a count like others there, and no padding."""
    counts = tissue(4, (20, 30, 40))
    counts[5:9, 5:9, 5:9] = 32768 + 7
    signed = (counts.astype(np.int32) - 32768).astype(np.int16)
    signed[0, 0, 0], counts[0, 0, 0] = 0, 32768
    levels = check_seen(measure(signed, Scale(name, offset_counts=-32768.0)))
    np.testing.assert_allclose(levels.apply(signed), measure(counts, Scale(name)).apply(counts), atol=1e-6)


def test_dark_constant_and_padded_volumes_are_no_mistake():
    padded = np.zeros((20, 20, 20), np.uint16)
    padded[3:6, 3:6, 3:6] = 500
    sparse = np.full((30, 30, 30), 0.3, np.float32)
    sparse[9, 9, 9:12] = 40.5  # a deconvolved speck: .01 % of the voxels
    for volume in (padded, sparse, np.zeros((9, 9, 9), np.float32), np.full((9, 9, 9), 0.25, np.float32)):
        check_seen(measure(volume, Scale("local")))
