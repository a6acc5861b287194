"""Prediction: windows against direct application, files as their input was, and errors that say what to do."""

import csv
import itertools

import brain_runs
import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import tifffile
from brain_runs import ARCHITECTURE
from scipy import ndimage

from lsmfm_jax.cli import main
from lsmfm_jax.metrics.image import psnr
from lsmfm_jax.predict.inputs import PredictionError, find_cases
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.run import predict
from lsmfm_jax.predict.windows import average_windows, blend_windows, flip_averaged, window_starts
from lsmfm_jax.tasks.classify import build_classifier
from lsmfm_jax.tasks.deblur import build_deblurrer
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.weights import write_weights

RECORD = {**brain_runs.RECORD, "classes": ["nuclei", "plaque", "vessels"]}
AFFINE = np.array([[-0.5, 0, 0, 3], [0, 0.7, 0.1, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def rng_volume(shape, seed=0):
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.random(shape), 2)
    return (200 + 3000 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.uint16)


def save(path, zyx, *, affine=AFFINE):
    image = nibabel.Nifti1Image(zyx.transpose(2, 1, 0), affine)
    image.header["descrip"] = b"as the microscope wrote it"
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


@pytest.fixture(scope="module")
def weights():
    """Parameters with batch statistics that are not those of a new network, and a head for each task."""
    network = Network(backbone_of(ARCHITECTURE))
    params, stats = jax.jit(lambda key: network.init(key, (16, 16, 16)))(jax.random.key(0))
    stats = jax.tree.map(lambda leaf: leaf + 0.1, stats)
    heads = {
        "segment": init_linear(jax.random.key(1), 6, 1),
        "classify": init_linear(jax.random.key(2), 8, 3),
        "deblur": init_linear(jax.random.key(3), 6, 1),
    }
    return params, {"backbone": stats}, heads


@pytest.fixture(scope="module")
def runs(weights, tmp_path_factory):
    """A run folder for each task."""
    params, stats, heads = weights
    folders = {}
    for task, head in heads.items():
        folders[task] = tmp_path_factory.mktemp(task)
        write_weights(
            folders[task],
            record={**RECORD, "task": task},
            params={"backbone": params, "head": head},
            batch_stats=stats,
        )
    return folders


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def scaled(volume, *, clip):
    low, high = np.percentile(volume, (1, 99))
    x = (volume.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(x, 0, 1) if clip else x


# --- windows ---


@pytest.mark.parametrize("size, window, overlap", [(16, 16, 0.25), (17, 16, 0.25), (50, 16, 0.5), (100, 16, 0.0)])
def test_windows_cover_an_axis_and_overlap_enough(size, window, overlap):
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0 and starts[-1] == size - window
    assert all(b - a <= window * (1 - overlap) for a, b in itertools.pairwise(starts))
    assert len(starts) == 1 or len(starts) - 2 < (size - window) / (window * (1 - overlap))


def test_a_function_of_each_voxel_is_the_same_by_windows():
    volume = rng_volume((20, 33, 7))
    result = blend_windows(
        lambda x: jnp.sqrt(x.astype(jnp.float32)), volume, window=(8, 16, 8), overlap_frac=0.25, batch_size=5
    )
    assert result.shape == volume.shape
    np.testing.assert_allclose(result, np.sqrt(volume), rtol=1e-6)


def test_blending_is_the_weighted_mean_of_the_windows():
    # A window's answer here depends on where the window is, so only the right weights give the right mean.
    volume, window = rng_volume((13, 8, 8)), (8, 8, 8)

    def mean_of_window(x):
        return np.broadcast_to(x.mean(axis=(1, 2, 3), keepdims=True), x.shape)

    result = blend_windows(mean_of_window, volume, window=window, overlap_frac=0.25, batch_size=2)
    gauss = np.exp(-0.5 * ((np.arange(8) - 3.5) / 1.0) ** 2)
    assert window_starts(13, 8, 0.25) == [0, 5]
    total, weight = np.zeros(13), np.zeros(13)
    for start in (0, 5):
        total[start : start + 8] += gauss * volume[start : start + 8].mean()
        weight[start : start + 8] += gauss
    np.testing.assert_allclose(result[:, 2, 5], total / weight, rtol=1e-5)


def test_a_volume_of_the_window_gets_the_answer_itself_and_a_smaller_one_is_reflected():
    def answer(x):
        return jnp.cumsum(x.astype(jnp.float32), axis=1) / 7

    volume = rng_volume((8, 8, 8))
    settings = {"window": (8, 8, 8), "overlap_frac": 0.5, "batch_size": 3}
    direct = np.asarray(answer(volume[None])[0])
    assert blend_windows(answer, volume, **settings).tobytes() == direct.tobytes()
    small = volume[:3, :, :5]
    padded = np.pad(small, ((2, 3), (0, 0), (1, 2)), mode="reflect")
    expected = np.asarray(answer(padded[None])[0])[2:5, :, 1:6]
    assert blend_windows(answer, small, **settings).tobytes() == expected.tobytes()


def test_overlapping_windows_of_a_local_filter_agree_with_the_filter_inside():
    volume = rng_volume((40, 24, 24)).astype(np.float32)

    def smooth(windows):
        return np.stack([ndimage.uniform_filter(one, 3, mode="constant") for one in windows])

    result = blend_windows(smooth, volume, window=(24, 24, 24), overlap_frac=0.5, batch_size=1)
    direct = ndimage.uniform_filter(volume, 3, mode="constant")
    inside = (slice(1, -1),) * 3
    # What a window sees wrongly at its own border weighs 1 to 35 of what its neighbour sees well there.
    assert np.abs(result - direct)[inside].max() < 0.002 * np.abs(direct).max()


def test_classes_are_the_mean_over_windows():
    volume = rng_volume((8, 8, 12))

    def first_and_last(x):
        return np.stack([x[:, 0, 0, 0], x[:, -1, -1, -1]], axis=1)

    result = average_windows(first_and_last, volume, window=(8, 8, 8), overlap_frac=0.5, batch_size=4)
    np.testing.assert_allclose(result, [volume[0, 0, [0, 4]].mean(), volume[-1, -1, [7, 11]].mean()], rtol=1e-6)


def test_flips_leave_an_equivariant_function_alone_and_average_any_other():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6, 1))
    same = flip_averaged(lambda v: jnp.tanh(v) * jnp.mean(v))(x)
    np.testing.assert_allclose(same, jnp.tanh(x) * jnp.mean(x), atol=1e-6)

    def shifted(v):
        return jnp.roll(v, 1, axis=1) + 2 * jnp.roll(v, 1, axis=3)

    numpy = np.asarray(x)
    outputs = []
    for axes in itertools.chain.from_iterable(itertools.combinations((1, 2, 3), n) for n in range(4)):
        flipped = np.flip(numpy, axes)
        outputs.append(np.flip(np.roll(flipped, 1, 1) + 2 * np.roll(flipped, 1, 3), axes))
    np.testing.assert_allclose(flip_averaged(shifted)(x), np.mean(outputs, axis=0), atol=1e-6)
    classes = flip_averaged(lambda v: v[:, 0, 0, 0])(x)
    corners = numpy[:, ::3][:, :, ::4][:, :, :, ::5]
    np.testing.assert_allclose(classes, corners.mean(axis=(1, 2, 3)), atol=1e-6)


# --- files ---


def test_segmentation_of_a_file_is_the_network_on_it(runs, weights, tmp_path, capsys):
    params, stats, heads = weights
    volume = rng_volume((16, 16, 16))
    source = save(tmp_path / "a.nii.gz", volume)
    truth = volume > np.percentile(volume, 80)
    save(tmp_path / "a_label.nii.gz", truth.astype(np.uint8))
    out = tmp_path / "out"
    arguments = ["predict", "--checkpoint", str(runs["segment"]), str(tmp_path), "--out", str(out)]
    assert main(arguments) == 0
    assert "1 files" in capsys.readouterr().out

    apply = build_segmenter({**RECORD, "task": "segment"})
    x = jnp.asarray(scaled(volume, clip=True)[None, ..., None])
    expected = np.asarray(apply({"backbone": params, "head": heads["segment"]}, stats, x))[0, ..., 0]
    image, mask = (nibabel.load(out / f"a_{name}.nii.gz") for name in ("prob", "mask"))
    np.testing.assert_allclose(image.get_fdata().transpose(2, 1, 0), expected, atol=1e-5)
    assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
    clear = np.abs(expected - 0.5) > 1e-4
    np.testing.assert_array_equal((mask.get_fdata().transpose(2, 1, 0) > 0)[clear], (expected >= 0.5)[clear])
    for written in (image, mask):
        np.testing.assert_array_equal(written.affine, nibabel.load(source).affine)
        assert written.header["descrip"].item() == b"as the microscope wrote it"
        assert written.header.get_xyzt_units()[0] == "mm"
    assert (out / "a.png").read_bytes()[:4] == b"\x89PNG"
    (row,) = rows_of(out / "predictions.csv")
    assert row["file"] == str(source) and row["task"] == "segment"
    shared = 2 * (truth & (expected >= 0.5)).sum() / (truth.sum() + (expected >= 0.5).sum())
    assert float(row["dice"]) == pytest.approx(shared, abs=1e-3)
    assert float(row["foreground_frac"]) == pytest.approx((expected >= 0.5).mean(), abs=1e-3)

    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "a_mask.nii.gz and 4 more: there already; name a new folder with --out, or pass --overwrite" in message
    assert main([*arguments, "--overwrite", "--threshold", "1", "--tta", "--window", "16,16,16"]) == 0
    assert not nibabel.load(out / "a_mask.nii.gz").get_fdata().any()
    assert not list(out.glob("*.tmp"))


def test_a_volume_of_another_size_and_type_is_predicted_whole(runs, tmp_path):
    volume = rng_volume((10, 24, 19))
    np.save(tmp_path / "b.npy", volume)
    predict(runs["segment"], [tmp_path / "b.npy"], tmp_path / "out", print_line=lambda line: None)
    probability = nibabel.load(tmp_path / "out" / "b_prob.nii.gz").get_fdata()
    assert probability.shape == (19, 24, 10)
    assert probability.min() >= 0 and probability.max() <= 1 and np.ptp(probability) > 0


def test_classification_writes_a_probability_for_each_class(runs, weights, tmp_path):
    params, stats, heads = weights
    volume = rng_volume((16, 16, 16), seed=3)
    save(tmp_path / "plaque_patch_001_vol002_ch0.nii.gz", volume)
    predict(runs["classify"], [tmp_path], tmp_path / "out", print_line=lambda line: None)
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    apply = build_classifier({**RECORD, "task": "classify"})
    x = jnp.asarray(scaled(volume, clip=True)[None, ..., None])
    expected = np.asarray(apply({"backbone": params, "head": heads["classify"]}, stats, x))[0]
    ours = [float(row[f"probability_{name}"]) for name in RECORD["classes"]]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert row["class"] == RECORD["classes"][int(np.argmax(expected))] and row["truth"] == "plaque"
    assert row["correct"] == str(int(row["class"] == "plaque"))


def test_deblurring_writes_counts_beyond_the_percentiles(runs, weights, tmp_path):
    params, stats, heads = weights
    sharp = rng_volume((16, 16, 16), seed=4)
    blurred = ndimage.gaussian_filter(sharp, 1)
    save(tmp_path / "c.nii.gz", sharp)
    save(tmp_path / "c_blurred.nii.gz", blurred)
    predict(runs["deblur"], [tmp_path], tmp_path / "out", print_line=lambda line: None)
    apply = build_deblurrer({**RECORD, "task": "deblur"})
    x = jnp.asarray(scaled(blurred, clip=False)[None, ..., None])
    result = np.asarray(apply({"backbone": params, "head": heads["deblur"]}, stats, x))[0, ..., 0]
    low, high = np.percentile(blurred, (1, 99))
    written = nibabel.load(tmp_path / "out" / "c_deblurred.nii.gz").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(written, low + result * (high - low), atol=0.1)
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    # The targets' range is 2.5 spans of the input wide.
    expected = psnr(blurred.astype(np.float64), sharp.astype(np.float64), data_range=2.5 * (high - low))
    assert float(row["psnr_blurred"]) == pytest.approx(expected, abs=1e-2)
    assert row["truth"].endswith("c.nii.gz")


# --- which files ---


def test_files_of_a_folder_by_task(tmp_path):
    for name in ("a", "a_label", "a_blurred", "b", "b_mask", "b_prob", "c_blurred"):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 2, 2)))
    cases, left_out = find_cases([tmp_path], task="segment")
    assert [(case.name, case.truth and case.truth.name) for case in cases] == [("a", "a_label.npy"), ("b", None)]
    assert len(left_out) == 5
    cases, _ = find_cases([tmp_path], task="deblur")
    found = [(case.name, case.path.name, case.truth and case.truth.name) for case in cases]
    assert found == [("a", "a_blurred.npy", "a.npy"), ("b", "b.npy", None), ("c", "c_blurred.npy", None)]
    with pytest.raises(PredictionError, match=r"no label of 'c_blurred' in .*--label-dir"):
        find_cases([tmp_path / "c_blurred.npy"], task="segment", label_dir=tmp_path)
    cases, _ = find_cases([tmp_path / "a_blurred.npy"], task="deblur", label_dir=tmp_path)
    assert cases[0].truth == tmp_path / "a.npy"
    with pytest.raises(PredictionError, match="both write a_"):
        find_cases([tmp_path / "a.npy", tmp_path], task="segment")
    with pytest.raises(PredictionError, match="no such file"):
        find_cases([tmp_path / "absent.npy"], task="segment")


def test_labels_are_found_whatever_the_case_of_their_endings(tmp_path):
    for name in ("a b.v2", "a b.v2_label", "ü", "ü_Label"):
        tifffile.imwrite(tmp_path / f"{name}.TIF", np.zeros((5, 6, 7), np.uint8), photometric="minisblack")
    np.save(tmp_path / "a b.v2_label_old.npy", np.zeros((5, 6, 7)))
    cases, _ = find_cases([tmp_path / "a b.v2.TIF", tmp_path / "ü.TIF"], task="segment")
    assert [case.truth.name for case in cases] == ["a b.v2_label.TIF", "ü_Label.TIF"]


def test_a_file_that_fails_is_named_and_the_others_are_predicted(runs, tmp_path):
    save(tmp_path / "good.nii.gz", rng_volume((16, 16, 16)))
    save(tmp_path / "other.nii.gz", rng_volume((16, 16, 16)))
    save(tmp_path / "other_label.nii.gz", np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:500])
    failed = r"2 of 3 files failed, the others are in .*broken.*truncated.*other_label.*\(4, 4, 4\)"
    with pytest.raises(PredictionError, match=failed):
        predict(runs["segment"], [tmp_path], tmp_path / "out", print_line=lambda line: None)
    rows = {row["file"].rpartition("/")[2]: row for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert rows["good.nii.gz"]["error"] == "" and rows["good.nii.gz"]["foreground_frac"]
    assert "copy the file again" in rows["broken.nii.gz"]["error"]


def test_where_all_files_fail_no_others_are_promised(runs, tmp_path):
    for number in range(7):
        (tmp_path / f"broken_{number}.npy").write_bytes(b"x")
    with pytest.raises(PredictionError, match=r"7 of 7 files failed: .*broken_4.*; and 2 more$"):
        predict(runs["segment"], [tmp_path], tmp_path / "out", print_line=lambda line: None)


# --- runs that cannot predict ---


def test_runs_that_cannot_predict_say_why(runs, weights, tmp_path):
    params, stats, _ = weights
    record = {"task": "pretrain", "architecture": ARCHITECTURE}
    write_weights(tmp_path / "run", record=record, params={"backbone": params}, batch_stats=stats)
    with pytest.raises(PredictionError, match=r"task 'pretrain' predicts nothing.*init_from"):
        load_predictor(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no run\.json"):
        load_predictor(tmp_path)
    with pytest.raises(PredictionError, match=r"--window 16,16,15: .*multiples of 2, such as 16,16,16"):
        load_predictor(runs["segment"], window=(16, 16, 15))
    run = tmp_path / "damaged"
    write_weights(run, record=RECORD | {"task": "segment"}, params=params, batch_stats=stats)
    files = [path for path in (run / "best" / "0" / "state").rglob("*") if path.is_file()]
    damaged = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CheckpointError, match=damaged.name):
        load_predictor(run)


def test_arguments_out_of_range_are_refused(runs, tmp_path, capsys):
    arguments = ["predict", "--checkpoint", str(runs["segment"]), str(tmp_path), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--overlap", "1.5"]) == 2
    assert "--overlap 1.5: between 0.0 and 0.9" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "is an image" in capsys.readouterr().err


def test_evaluate_judges_what_predict_wrote(runs, tmp_path, capsys):
    volume = rng_volume((16, 16, 16))
    save(tmp_path / "p_1.nii.gz", volume)
    save(tmp_path / "p_1_label.nii.gz", (volume > np.percentile(volume, 80)).astype(np.uint8))
    out = tmp_path / "out"
    rows = predict(runs["segment"], [tmp_path], out, print_line=lambda line: None)
    table = tmp_path / "scores.csv"
    arguments = ["evaluate", "--pred", str(out), "--label", str(tmp_path), "--out", str(table), "--method", "ours"]
    assert main([*arguments, "--match-dice", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "match dice 0.4" in printed and "ours" in printed
    judged = next(row for row in rows_of(table) if row["row"] == "patch" and row["method"] == "ours")
    assert float(judged["dice"]) == pytest.approx(rows[0]["dice"], abs=1e-5)
    assert main([*arguments, "--volume-pattern", "("]) == 2
    assert "volume pattern" in capsys.readouterr().err


def test_one_channel_of_files_with_several(runs, tmp_path):
    """Each file is predicted as its channel saved alone is."""
    first, second = rng_volume((16, 16, 20)), rng_volume((16, 16, 20), seed=1)
    both = np.stack([first.transpose(2, 1, 0), second.transpose(2, 1, 0)], axis=-1)
    nibabel.Nifti1Image(both, AFFINE).to_filename(tmp_path / "both.nii.gz")
    alone = save(tmp_path / "alone.nii.gz", second)
    arguments = ["predict", "--checkpoint", str(runs["segment"])]
    assert main([*arguments, str(tmp_path / "both.nii.gz"), "--channel", "1", "--out", str(tmp_path / "a")]) == 0
    assert main([*arguments, str(alone), "--out", str(tmp_path / "b")]) == 0
    found, wanted = (
        nibabel.load(tmp_path / name / f"{file}_prob.nii.gz").get_fdata()
        for name, file in (("a", "both"), ("b", "alone"))
    )
    np.testing.assert_array_equal(found, wanted)


def test_files_with_several_channels_need_a_choice(runs, tmp_path, capsys):
    both = np.stack([rng_volume((16, 16, 20)), rng_volume((16, 16, 20), seed=1)], axis=-1)
    nibabel.Nifti1Image(both, AFFINE).to_filename(tmp_path / "both.nii.gz")
    arguments = ["predict", "--checkpoint", str(runs["segment"]), str(tmp_path / "both.nii.gz")]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 2
    assert "2 channels, expected one; name one where the command has --channel" in capsys.readouterr().err
    assert main([*arguments, "--channel", "2", "--out", str(tmp_path / "b")]) == 2
    assert "channel 2 was asked for, it has 2" in capsys.readouterr().err
