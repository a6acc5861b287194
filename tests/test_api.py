"""The Python API: the numbers of `lsmfm predict`, the embeddings of pretraining, and what it does not take."""

import csv
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from tiny_pretrained import make_run

import lsmfm_jax
from lsmfm_jax.config import recorded_config
from lsmfm_jax.errors import InputError
from lsmfm_jax.losses.classify import cross_entropy
from lsmfm_jax.models.text_directory import TextModelError, TextModelMissing, load_text_tower
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.run import Settings, predict
from lsmfm_jax.scale import ScaleError, measure
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.platform_flags import FLAGS, Flag
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.volumes.read import VolumeError, VolumeInfo, read_single, write_nifti

SIZE = (16, 16, 16)
VOXEL_UM = (4.0, 2.0, 2.0)
ARCHITECTURE = {"name": "unet", "out_channels": 6, "channels": [4, 8], "strides": [2], "num_res_units": 1}
RECORD = {
    "architecture": ARCHITECTURE | {"norm": "batch"},
    "patch_size": list(SIZE),
    # Micrometres, so that a voxel size that is lost on the way shows.
    "scaling": {"name": "local", "sigma_voxels": 3.0, "sigma_um": 20.0},
    "classes": ["nuclei", "plaque", "vessels"],
    "target_range": [-0.5, 2.0],
}


def counts(seed, shape=(18, 24, 19)):
    return np.random.default_rng(seed).poisson(200, shape).astype(np.uint16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run folder of each finetuning task."""
    network = Network(backbone_of(RECORD["architecture"]))
    params, stats = jax.jit(lambda key: network.init(key, SIZE))(jax.random.key(0))
    heads = {"segment": (6, 1), "classify": (8, 3), "deblur": (6, 1)}
    folders = {}
    for task, (width, outputs) in heads.items():
        folders[task] = tmp_path_factory.mktemp(task)
        head = init_linear(jax.random.key(outputs), width, outputs)
        record = {**RECORD, "task": task}
        write_weights(
            folders[task], record=record, params={"backbone": params, "head": head}, batch_stats={"backbone": stats}
        )
    return folders


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run with captions, and the folder of its patches."""
    return make_run(tmp_path_factory.mktemp("pretrained"))


def saved(path, array):
    write_nifti(path, array, like=VolumeInfo(path, VOXEL_UM, "test"))
    again, info = read_single(path)
    assert again.dtype == array.dtype and info.voxel_size_um == pytest.approx(VOXEL_UM)
    return info.voxel_size_um


def loaded(path):
    return nibabel.load(path).get_fdata(dtype=np.float32).transpose(2, 1, 0)


def test_importing_the_package_and_asking_for_help_import_no_jax():
    code = (
        "import sys, lsmfm_jax\nfrom lsmfm_jax import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'jax' not in sys.modules\nassert callable(lsmfm_jax.load) and 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {"Model", "load"} <= set(lsmfm_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        lsmfm_jax.loda  # noqa: B018


def test_segmentation_is_that_of_the_file(runs, tmp_path):
    array = counts(1)
    size = saved(tmp_path / "a.nii.gz", array)
    model = lsmfm_jax.load(str(runs["segment"]))
    assert (model.task, model.classes) == ("segment", tuple(RECORD["classes"])) and "unet" in repr(model)
    cut = float(np.quantile(model.predict(array, size).probability, 0.7))  # so that the mask is not empty
    settings = Settings(threshold=cut)
    predict(runs["segment"], [tmp_path / "a.nii.gz"], tmp_path / "out", settings=settings, print_line=lambda line: None)
    result = model.predict(array, voxel_size_um=size, threshold=cut)
    assert result.probability.dtype == np.float32 and result.mask.dtype == bool
    assert 0.2 < result.mask.mean() < 0.4
    np.testing.assert_array_equal(result.probability, loaded(tmp_path / "out" / "a_prob.nii.gz"))
    np.testing.assert_array_equal(result.mask, loaded(tmp_path / "out" / "a_mask.nii.gz") > 0)
    assert not np.array_equal(model.predict(array).probability, result.probability)  # another background
    # The same voxels in other types and places.
    for same in (array.astype(np.int64), np.asfortranarray(array), jnp.asarray(array), array.tolist()):
        np.testing.assert_array_equal(model.predict(same, size).probability, result.probability)


def test_a_blank_volume_has_an_empty_mask_and_no_class(runs):
    blank = np.full(SIZE, 107, np.uint16)
    result = lsmfm_jax.load(runs["segment"]).predict(blank, threshold=0.0)
    assert not result.mask.any() and not result.probability.any()
    for task in ("classify", "deblur"):
        with pytest.raises(VolumeError, match="it is constant: every voxel is 107"):
            lsmfm_jax.load(runs[task]).predict(blank)


def test_classes_are_those_of_the_file(runs, tmp_path):
    size = saved(tmp_path / "b.nii.gz", counts(2))
    predict(runs["classify"], [tmp_path / "b.nii.gz"], tmp_path / "out", print_line=lambda line: None)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    result = lsmfm_jax.load(runs["classify"]).predict(counts(2), size)
    assert list(result.probabilities) == RECORD["classes"] and result.class_name == row["class"]
    assert {name: f"{value:.6g}" for name, value in result.probabilities.items()} == {
        name: row[f"probability_{name}"] for name in RECORD["classes"]
    }
    assert sum(result.probabilities.values()) == pytest.approx(1.0, abs=1e-5)


def test_a_deblurred_volume_is_that_of_the_file(runs, tmp_path):
    size = saved(tmp_path / "c.nii.gz", counts(3))
    predict(runs["deblur"], [tmp_path / "c.nii.gz"], tmp_path / "out", print_line=lambda line: None)
    result = lsmfm_jax.load(runs["deblur"]).predict(counts(3), size)
    assert result.volume.dtype == np.float32 and np.ptp(result.volume) > 0
    np.testing.assert_array_equal(result.volume, loaded(tmp_path / "out" / "c_deblurred.nii.gz"))


def test_flips_and_windows_are_those_of_the_command(runs, tmp_path):
    size = saved(tmp_path / "d.nii.gz", counts(4))
    settings = {"window": (16, 8, 8), "flips": True}
    predict(runs["segment"], [tmp_path / "d.nii.gz"], tmp_path / "out", print_line=lambda line: None, **settings)
    result = lsmfm_jax.load(runs["segment"], **settings).predict(counts(4), size)
    np.testing.assert_array_equal(result.probability, loaded(tmp_path / "out" / "d_prob.nii.gz"))


def test_the_embedding_of_a_finetuned_run_is_what_its_classes_are_made_of(runs):
    model, volume = lsmfm_jax.load(runs["classify"]), counts(5, SIZE)
    vector = model.embed(volume)
    assert vector.shape == (8,) and vector.dtype == np.float32
    head = read_weights(runs["classify"]).params["head"]
    logits = vector @ head["kernel"] + head["bias"]
    losses = cross_entropy(jnp.tile(logits, (3, 1)), jnp.arange(3))
    expected = list(model.predict(volume).probabilities.values())
    np.testing.assert_allclose(np.exp(-np.asarray(losses)), expected, rtol=1e-4)


def test_vectors_of_images_and_texts_are_those_of_the_validation(pretrained):
    run, patches = pretrained
    model = lsmfm_jax.load(run)
    path = sorted(patches.glob("*_ch0.nii.gz"))[0]
    array, _ = read_single(path)
    vector, texts = model.embed(array), model.embed_text(["Many round nuclei.", "One"])
    assert vector.dtype == texts.dtype == np.float32 and vector.shape == (8,) and texts.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm([vector, *texts], axis=1), 1.0, rtol=1e-5)

    # The task's own validation, with nothing hidden.
    config, weights = recorded_config(run), read_weights(run, both=True)
    with config.unlocked():
        config.model.dtype = "float32"
    text = load_text_tower(run / "text")
    task = pretraining_task(config, text.config, warmup_steps=0)
    scaled = model._image_encoder.scale
    tokens = np.zeros((1, 32), np.int32)
    ids = text.tokenizer("Many round nuclei.")["input_ids"]
    tokens[0, : len(ids)] = ids
    batch = {
        "image": measure(array, scaled).apply(array)[None],
        "low": np.zeros(1, np.float32),
        "high": np.ones(1, np.float32),
        "sample": np.zeros(1, np.int32),
        "caption_key": np.zeros(1, np.int32),
        "volume": np.zeros(1, np.int32),
        "tokens": tokens,
        "token_mask": np.arange(32)[None] < len(ids),
    }
    rows = task.prepare_validation({name: jnp.asarray(leaf) for name, leaf in batch.items()})
    rows["mask"] = jnp.zeros_like(rows["mask"])
    out = jax.jit(task.evaluate)(weights.params, weights.batch_stats, weights.teacher, rows)
    np.testing.assert_allclose(vector, out["image"][0], atol=2e-6)
    np.testing.assert_allclose(texts[0], out["text"][0], atol=2e-6)
    # A text's vector does not depend on those beside it, nor an image's on how its counts are stored.
    np.testing.assert_allclose(model.embed_text(["One"])[0], texts[1], atol=1e-6)
    np.testing.assert_array_equal(model.embed(array.astype(np.int32)), vector)
    with pytest.raises(PredictionError, match="predicts nothing by itself; finetune it"):
        model.predict(array)
    for wrong in ([], "One", ["One", " "]):
        with pytest.raises(PredictionError, match="a list of one or more texts is needed"):
            model.embed_text(wrong)


def test_a_run_without_its_text_model_still_embeds_volumes(pretrained, tmp_path):
    run, _ = pretrained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "text" / "tokenizer.json").write_text("{")
    with pytest.raises(TextModelError, match="its tokenizer cannot be read"):
        lsmfm_jax.load(copy).embed_text(["One"])
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / "text" / name).unlink()
    with pytest.raises(TextModelMissing, match=r"no tokenizer\.json and no vocab\.txt there"):
        lsmfm_jax.load(copy).embed_text(["One"])
    shutil.rmtree(copy / "text")
    model = lsmfm_jax.load(copy)
    with pytest.raises(PredictionError, match=r"its text model is not in .*text, so texts cannot be read"):
        model.embed_text(["One"])
    np.testing.assert_allclose(np.linalg.norm(model.embed(counts(6, SIZE))), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((2, 16, 16, 16)), r"its shape is \(2, 16, 16, 16\), with 4 axes in place of 3"),
        (np.ones((16, 16)), "with 2 axes in place of 3"),
        (np.ones((0, 16, 16)), "it has no voxel"),
        (np.full(SIZE, "a"), "its pixel type is <U1"),
        (np.full(SIZE, 1j), "its pixel type is complex128"),
        (np.where(np.arange(16) == 3, np.nan, np.ones(SIZE)), "256 voxels that are NaN or Inf; replace them"),
        ([[[1, 2]], [[3]]], "it is no array"),
        ("brain.nii.gz", "it is the name 'brain.nii.gz'; read the file first"),
    ],
)
def test_arrays_that_are_no_volume_are_refused(runs, array, said):
    model = lsmfm_jax.load(runs["segment"])
    with pytest.raises(VolumeError, match=said):
        model.predict(array)
    with pytest.raises(VolumeError, match=said):
        model.embed(array)


def test_what_a_run_cannot_do_is_refused(runs, tmp_path):
    model = lsmfm_jax.load(runs["segment"])
    for size in ((1.0, 2.0), (1.0, 0.0, 2.0), (1.0, float("nan"), 2.0), [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(PredictionError, match="three positive numbers of micrometres"):
            model.predict(counts(0), size)
    with pytest.raises(PredictionError, match=r"--threshold 2\.0: between"):
        model.predict(counts(0), threshold=2.0)
    with pytest.raises(PredictionError, match="without a text tower; name a pretraining run"):
        model.embed_text(["nuclei"])
    with pytest.raises(CheckpointError, match=r"no run\.json there"):
        lsmfm_jax.load(tmp_path)
    weights = read_weights(runs["segment"])
    record = {"task": "backbone", "architecture": weights.architecture}
    write_weights(tmp_path / "w", record=record, params=weights.params, batch_stats=weights.batch_stats)
    with pytest.raises(PredictionError, match="do not say how intensities were scaled"):
        lsmfm_jax.load(tmp_path / "w").embed(counts(0))
    record = {"task": "segment", "architecture": weights.architecture}
    write_weights(tmp_path / "old", record=record, params=weights.params, batch_stats=weights.batch_stats)
    for method in ("predict", "embed"):
        with pytest.raises(PredictionError, match="no patch_size and no scaling; finetune the run again"):
            getattr(lsmfm_jax.load(tmp_path / "old"), method)(counts(0))


def test_an_array_that_was_scaled_to_one_is_refused_where_the_run_sees_counts(runs):
    scaled = (counts(3) / 65535).astype(np.float32)
    model = lsmfm_jax.load(runs["segment"])
    with pytest.raises(ScaleError, match=r"the array: its values from .* sees no difference\. Give the counts"):
        model.predict(scaled)
    assert not model.predict(np.full(SIZE, 0.5, np.float32)).mask.any()  # blank, as a blank file


def test_a_file_that_was_scaled_to_one_is_named_and_does_not_stop_the_others(runs, tmp_path):
    np.save(tmp_path / "a.npy", (counts(3) / 65535).astype(np.float32))
    np.save(tmp_path / "b.npy", counts(3))
    with pytest.raises(PredictionError, match=r"1 of 2 files failed.*a\.npy: its values from .* sees no difference"):
        predict(
            runs["segment"], [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "out", print_line=lambda line: None
        )
    assert (tmp_path / "out" / "b_mask.nii.gz").is_file()


def test_prediction_has_the_compiler_flags_of_the_run_or_those_asked_for(runs, tmp_path, monkeypatch):
    fast = tmp_path / "fast"
    weights = read_weights(runs["segment"])
    record = weights.record | {"xla": {"mode": "fast", "platform": "gpu", "flags": {}, "own_flags": {}}}
    write_weights(fast, record=record, params=weights.params, batch_stats=weights.batch_stats)
    np.save(tmp_path / "a.npy", counts(1, SIZE))
    # A mode whose flag no compiler takes: it is refused wherever it counts.
    flags = {"xla_cpu_of_tomorrow": Flag(True, "for the test", needed=True)}
    monkeypatch.setitem(FLAGS["cpu"], "fast", flags)
    with pytest.raises(InputError, match=r"train\.xla: 'fast' needs xla_cpu_of_tomorrow"):
        load_predictor(fast)
    arguments = {"inputs": [tmp_path / "a.npy"], "print_line": lambda line: None}
    for number, (run, mode, told) in enumerate(
        [(fast, "deterministic", "deterministic"), (fast, "default", None), (runs["segment"], None, None)]
    ):
        out = tmp_path / f"out{number}"
        predict(run, out=out, xla=mode, **arguments)
        with open(out / "predictions.csv", newline="") as file:
            assert next(csv.DictReader(file)).get("xla") == told
    assert load_predictor(fast, xla="deterministic").xla == "deterministic"
    # Compiled otherwise, the same network: its last bits may differ.
    first, *others = (loaded(tmp_path / f"out{number}" / "a_prob.nii.gz") for number in range(3))
    np.testing.assert_array_equal(*others)
    np.testing.assert_allclose(first, others[0], atol=1e-5)


def test_masked_arrays_and_settings_out_of_range_are_told_by_name(runs, caplog):
    model = lsmfm_jax.load(runs["segment"])
    assert not [record for record in caplog.records if record.name == "absl"]  # Orbax says much that means nothing
    array = counts(4, SIZE)
    hidden = np.ma.masked_array(array, np.zeros(SIZE, bool))
    model.predict(hidden)
    hidden[:2] = np.ma.masked
    with pytest.raises(VolumeError, match=r"the array: 512 of its voxels are masked; fill them"):
        model.predict(hidden)
    for name, setting, value in (("--batch", "batch_size", True), ("--overlap", "overlap_frac", np.nan)):
        with pytest.raises(PredictionError, match=rf"{name} {value}: .*between .* and .* is needed"):
            model.predict(array, **{setting: value})


def test_arguments_of_wrong_types_are_told_by_name(runs):
    """In a process without the type checks of the tests."""
    code = """
import sys, numpy as np, lsmfm_jax
from lsmfm_jax.errors import LsmfmError
array = np.arange(4096).reshape(16, 16, 16)
def told(work):
    try: work()
    except LsmfmError as error: print(error)
for window in (16, (16.0, 16, 16), (16, 16), "16,16,16"):
    told(lambda: lsmfm_jax.load(sys.argv[1], window=window).predict(array))
for setting in ({"threshold": "half"}, {"batch_size": 1.5}, {"overlap_frac": None}):
    told(lambda: lsmfm_jax.load(sys.argv[1]).predict(array, **setting))
for run in (None, 7):
    told(lambda: lsmfm_jax.load(run))
"""
    done = subprocess.run([sys.executable, "-c", code, runs["segment"]], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["--window"] * 4 + ["--threshold", "--batch", "--overlap"] + [
        "lsmfm_jax.load:"
    ] * 2
    assert all("takes three multiples of 2, such as " in line for line in lines[:4])
    assert "absl" not in done.stderr
