"""Each benchmark runs at a tiny size and its JSON has what it promises; counts and projections are checked by hand."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from quick_compiling import quick_flags

from lsmfm_jax.bench import BENCHMARKS, BenchmarksMissing, run_benchmark
from lsmfm_jax.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
FACTS = {"benchmark", "command", "device", "versions", "commit", "time"}
SPREAD = {"median", "min", "max", "count"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def _bench(name, out, *arguments):
    """Runs a benchmark through the command line, in a process of its own, on one device."""
    # The same step again is not compiled again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent.parent / "compiled")}
    environment = {**os.environ, "XLA_FLAGS": quick_flags(), "JAX_PLATFORMS": "cpu", **cache}
    command = [sys.executable, "-m", "lsmfm_jax.cli", "bench", name, *map(str, arguments), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_every_benchmark_is_there_and_explains_itself():
    for name in BENCHMARKS:
        text = (FOLDER / f"{name}.py").read_text()
        assert text.startswith('"""') and "outcome.parser(__doc__)" in text, name


def test_means_of_voxel_models_are_judged_on_other_patches(tmp_path):
    """Balls that are brighter than the rest: all means find them, and a draw is judged by itself."""
    import voxel_models
    from labelled_toy import write_patches

    folder = write_patches(tmp_path / "patches", count=4, size=24)
    names = sorted(path.name.removesuffix("_label.nii.gz") for path in folder.glob("*_label.nii.gz"))
    patches = [voxel_models.read(folder, name, voxel_models.LabelValues((), (), ())) for name in names]
    assert patches[0].features["curvatures"].shape == (24, 24, 24, 10)
    found = voxel_models.judged(patches[:2], patches[2:], seed=1)
    assert found.keys() == voxel_models.MEANS.keys() and min(found.values()) > 0.8
    # Where all is foreground that one of two members finds, their mean lies between.
    members = {name: voxel_models.fitted(patches[:2], patches[2:], name, 1)[0] for name in ("threshold", "gaussians")}
    truth = patches[2].truth[patches[2].counted]
    both = voxel_models.dice(members["threshold"] + members["gaussians"] > 0, truth)
    alone = voxel_models.judged(patches[:2], patches[2:3], seed=1)
    assert alone["share .5"] == pytest.approx(both, abs=1e-4)


def test_patches_are_put_back_where_their_names_say(tmp_path):
    import real_planes

    rng = np.random.default_rng(0)
    volume = rng.integers(1, 2**16, (20, 30, 40), np.uint16)
    for z, y, x in ((0, 0, 0), (10, 15, 20), (10, 8, 20)):
        patch = volume[z : z + 10, y : y + 15, x : x + 20]
        # The whole lay at (100, 0, 7) of something larger; NIfTI has X, Y, Z.
        nibabel.save(
            nibabel.Nifti1Image(patch.T, np.eye(4)), tmp_path / f"a_z{z + 100:04d}_y{y:04d}_x{x + 7:04d}.nii.gz"
        )
    expected = np.zeros_like(volume)
    expected[:10, :15, :20] = volume[:10, :15, :20]
    expected[10:, 8:, 20:] = volume[10:, 8:, 20:]
    np.testing.assert_array_equal(real_planes.together(tmp_path), expected)
    with pytest.raises(SystemExit, match="no patch there has its place in its name"):
        real_planes.together(FOLDER)


def test_without_the_checkout_the_command_says_what_to_do(tmp_path, capsys, monkeypatch):
    with pytest.raises(BenchmarksMissing, match="clone the repository"):
        run_benchmark("tail", [], folder=tmp_path)
    with pytest.raises(SystemExit):
        main(["bench", "nosuch"])
    assert "step_dummy_data" in capsys.readouterr().err


def test_steps_with_and_without_data(tmp_path):
    tiny = ("--tiny", "--size", 16, "--batch", 2, "--steps", 2)
    result = _bench("step_real_data", tmp_path / "real.json", *tiny, "--patches", 5)
    assert result.keys() >= FACTS | {"ratio_real_to_dummy", "peak_frac", "peak_memory_bytes", "tflops_per_s_per_device"}
    for name in ("step_s", "patches_per_s", "dummy_patches_per_s"):
        assert set(result[name]) == SPREAD
        assert result[name]["min"] <= result[name]["median"] <= result[name]["max"]
    assert result["patches_per_s"]["median"] == pytest.approx(2 / result["step_s"]["median"], rel=0.3)
    assert result["data"]["patches"] == 5 and result["versions"]["jax"] == jax.__version__
    projected = _bench("project_paper_run", tmp_path / "paper.json", tmp_path / "real.json", "--devices", 2)
    rate = result["patches_per_s_per_device"]["median"]
    assert projected["hours"]["median"] == pytest.approx(500 * (921 + 34) / (2 * rate) / 3600)
    assert projected["assumes_perfect_scaling"] and not projected["within_an_hour"]


def test_loader_alone(tmp_path):
    arguments = ("--size", 16, "--batch", 2, "--patches", 5, "--steps", 2, "--batches-each", 8)
    result = _bench("loader_only", tmp_path / "loader.json", *arguments)
    assert result.keys() >= FACTS | {"patches_per_s", "megabytes_per_s"}
    assert result["patch_size"] == [24, 24, 24] and result["patches_per_s"]["median"] > 1


def test_memory_of_whole_brains(tmp_path):
    arguments = ("--voxels", 3e5, 4e5, "--largest-no-skip", 3.5e5, "--window", 32, "--work", tmp_path)
    result = _bench("brain_memory", tmp_path / "brains.json", *arguments)
    assert result.keys() >= FACTS
    cases = result["cases"]
    assert [(one["shape"][0], one["case"]) for one in cases] == [(67, "usual"), (67, "nothing_skipped"), (74, "usual")]
    for one in cases:
        assert one["peak_bytes"] == max(one["peak_bytes_of"].values()) > 1e8
        assert one["planned_bytes"] <= 2 * 2**30 and 0 < one["peak_frac_of_max_ram"] < 1
        assert 0 < one["objects"] <= one["cells"]
        assert one["mvoxel_per_s"]["predicting"] > 0 and set(one["predicting_share"]) == {"reading", "writing"}
    ratios = result["largest_to_smallest"]
    assert ratios["nothing_skipped"]["all"] == 1 and set(ratios["usual"]) == {"all", *cases[0]["seconds"]}
    assert not list(tmp_path.glob("tmp*")), "brains and results are removed"


def test_a_sweep_writes_a_table_and_a_plot(tmp_path, monkeypatch):
    """The points themselves are steps on dummy data, one process each; here they are given."""
    import sweep_batch

    points = {1: (3.0, ""), 2: (4.0, ""), 4: (0.0, "out of memory")}

    def point(options, size, width, batch):
        rate, error = points[batch]
        row = {"model": "unet", "size": size, "width": width, "batch": batch, "error": error}
        if not error:
            row |= {"patches_per_s": rate, "least": rate - 1, "most": rate + 1, "peak_memory_bytes": 2**30 * batch}
        return row, "a device"

    monkeypatch.setattr(sweep_batch, "point", point)
    out = str(tmp_path / "sweep.json")
    monkeypatch.setattr(sys, "argv", f"x --sizes 64 96 --batches 1 2 4 --out {tmp_path} --json {out}".split())
    sweep_batch.main()
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert len(result["rows"]) == 6 and result["device"] == "a device"
    table = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(table) == 7 and table[3].endswith("out of memory")
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_a_point_of_a_sweep_runs(tmp_path):
    arguments = ("--tiny", "--batches", 2, "--sizes", 16, "--widths", 1, "--steps", 1)
    result = _bench("sweep_batch", tmp_path / "sweep.json", *arguments)
    (row,) = result["rows"]
    assert row["error"] == "" and row["patches_per_s"] > 0 and row["peak_memory_bytes"] > 1e8


def test_scaling_compares_losses_and_rates_over_devices(tmp_path, monkeypatch):
    """The step itself is compared over meshes in test_devices; here its figures are given."""
    import scaling

    def row(options, devices, *, global_batch):
        assert global_batch == 2 * 8
        rate = {"median": 10.0 - len(devices), "min": 1.0, "max": 9.0}
        return {"count": len(devices), "loss_of_fixed_batch": 2.0 + len(devices) / 8, "patches_per_s_per_device": rate}

    monkeypatch.setattr(scaling, "row", row)
    monkeypatch.setattr(sys, "argv", f"x --batch 2 --json {tmp_path / 'scaling.json'}".split())
    scaling.main()
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["count"] for row in result["devices"]] == [1, 2, 4, 8]
    assert result["efficiency"]["8"] == pytest.approx(2 / 9)
    assert result["loss_difference"] == pytest.approx((3 - 2.125) / 2.125)


def test_operations_are_those_of_the_published_networks():
    """Measured before with another counter: 1.52 T for the UNet and 0.67 T for the SwinUNETR, factorised."""
    from flops import training_operations_per_patch
    from recipes import recipe

    unet = training_operations_per_patch(recipe("unet", size=64, batch=1, dtype="bfloat16"))
    swin = training_operations_per_patch(recipe("swin_unetr", size=64, batch=1, dtype="bfloat16"))
    assert unet["step"] == pytest.approx(1.52e12, rel=0.005)
    assert swin["step"] == pytest.approx(0.67e12, rel=0.01)


def test_operations_of_known_programs():
    from flops import count

    left, right = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
    assert count(jnp.matmul, left, right) == 2 * 3 * 5 * 7 * 11
    assert count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=4)[0], jnp.ones((6, 6))) == 4 * 2 * 6**3

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    x, kernel = jnp.ones((2, 8, 8, 8, 3)), jnp.ones((3, 3, 3, 3, 5))
    forward = 2 * 2 * 8**3 * 27 * 3 * 5
    assert count(convolve, x, kernel) == forward
    gradient = jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), argnums=(0, 1))
    assert 2.9 * forward < count(gradient, x, kernel) < 4.1 * forward


def test_operations_of_hand_written_kernels_are_those_of_their_products():
    from flops import count

    from lsmfm_jax.losses.pretrain import distillation

    values, tail = jnp.ones((2, 3, 9, 16, 36)), (jnp.ones((36, 512)), jnp.ones(512))

    def loss(values, tail):
        settings = {"student_temperature": 0.1, "teacher_temperature": 0.1, "kernels": "fused"}
        mask = jnp.ones(values.shape[:-1], bool)
        return distillation(values, tail, values, tail, mask, **settings).divergence.sum()

    # Two rows of blocks for nine rows of voxels, and 64 columns for 36 values.
    features = 2 * (2 * 3 * 16 * 16) * 64 * 512
    assert count(loss, values, tail) == 5 * features
    # Student and teacher once more, and one product each, for the values and for the tail.
    assert count(jax.grad(loss, argnums=(0, 1)), values, tail) == (5 + 3 + 3) * features


def test_the_plain_tail_has_the_same_features_and_more_operations():
    from flops import count
    from plain_tail import plain_tail
    from recipes import recipe

    from lsmfm_jax.models import BACKBONES
    from lsmfm_jax.tasks.pretrain_networks import build_networks

    config = recipe("swin_unetr", size=32, batch=1, dtype="float32", tiny=True)
    config.model.swin_unetr.depths = (1, 1, 1, 1)
    usual = build_networks(config, None).backbone
    with plain_tail():
        plain = build_networks(config, None).backbone
    assert type(BACKBONES["swin_unetr"].build()) is type(usual) is not type(plain)
    x = jnp.zeros((1, 32, 32, 32, 1))
    variables = jax.eval_shape(lambda: usual.init(jax.random.key(0), x, train=True))
    assert variables == jax.eval_shape(lambda: plain.init(jax.random.key(0), x, train=True))

    def features(network, variables, x):
        return network.apply(variables, x, train=True, method="trunk")

    made = jax.eval_shape(lambda v, x: features(plain, v, x), variables, x)
    kept = jax.eval_shape(lambda v, x: features(usual, v, x), variables, x)
    assert made.tail is None and made.values.shape == (1, 32, 32, 32, 48)
    assert kept.tail is not None and kept.values.shape == (1, 32, 32, 32, 12)
    extra = count(lambda v, x: features(plain, v, x), variables, x)
    extra -= count(lambda v, x: features(usual, v, x), variables, x)
    assert extra == 2 * 32**3 * 12 * 48


HLO = """
  %a = bf16[8,128,64,64,64]{4,3,2,1,0} convolution(%x, %k), window={size=3x3x3}, dim_labels=bf012_oi012->bf012
  %b = f32[64,64,3,3,3]{4,3,2,1,0} convolution(%x, %g), window={size=32x32x32}, dim_labels=fb012_io012->bf012
  %r = (f32[128]{0}, f32[256]{0}) all-reduce-start(%p, %q), channel_id=1
  %d = (f32[128]{0}, f32[256]{0}) all-reduce-done(%r)
  %s = f32[16,128]{1,0} all-gather(%e), dimensions={0}
  %t = (bf16[4,64,64,64,36]{4,3,2,1,0}, bf16[8,64,64,64,36]{4,3,2,1,0}) all-gather-start(%v), dimensions={0}
  %c = f32[10,10]{1,0} copy(%z)
"""


def test_a_compiled_program_is_read_for_what_it_moves():
    import compiled_program

    class Program:
        def as_text(self):
            return HLO

        def memory_analysis(self):
            return type("Memory", (), dict.fromkeys(MEMORY, 5))

    MEMORY = [f"{name}_size_in_bytes" for name in ("temp", "argument", "output", "alias")]
    found = compiled_program.describe(Program())
    assert found["temporary_bytes"] == 5
    assert found["collectives"]["all-reduce"] == {"count": 1, "bytes": 4 * (128 + 256)}
    assert found["collectives"]["all-gather"] == {"count": 2, "bytes": 4 * 16 * 128 + 2 * 8 * 64**3 * 36}
    assert found["deepest_convolution"] == 64
    assert found["wide_convolutions"] == ["32x32x32"]
    assert len(found["gathered_activations"]) == 1 and "36" in found["gathered_activations"][0]
    assert found["copies_and_transposes"] == {"count": 1, "bytes": 400}


def test_messages_between_cards_cost_what_the_arithmetic_says():
    import scaling

    assert scaling.all_reduce_seconds(0, 0, cards=256) == 0
    inside = 2 * 7 / 8 * 77e6 / 360e9
    assert scaling.all_reduce_seconds(77e6, 0, cards=8) == pytest.approx(inside)
    between = 2 * 31 / 32 * 77e6 / 8 / 40e9
    assert scaling.all_reduce_seconds(77e6, 0, cards=256) == pytest.approx(inside + between)
    with pytest.raises(ValueError, match="one card"):
        scaling.project({"devices": 1})


def test_halos_between_the_parts_of_a_volume_are_counted():
    import scaling

    compiled = {"model": "unet", "device": "none", "devices": 8, "batch_size": 8, "input_size": [64] * 3, "mesh": {}}
    compiled |= {
        "operations_per_patch": {"step": 1e12},
        "collectives": {"all-reduce": {"count": 3, "bytes": 5_000_000}},
    }
    plain = scaling.project(compiled)
    compiled["collectives"]["collective-permute"] = {"count": 90, "bytes": 130_000_000}
    split = scaling.project(compiled)
    for cards in ("on_8_cards", "on_256_cards"):
        more = split[cards]["message_s"] - plain[cards]["message_s"]
        assert more == pytest.approx(130e6 / 360e9 + 90 * 20e-6)
    assert split["other_collectives"] == {}


def test_losses_of_both_sides_are_compared_figure_by_figure():
    import vs_torch

    ours, theirs = {"loss": 1.1, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": 2.0, "other": 3.0}
    assert vs_torch.relative_differences(ours, theirs) == pytest.approx({"loss": 0.1, "grad_norm": 0.0})


def test_rows_of_a_result_stand_on_a_line_each_and_nothing_is_lost():
    import outcome

    result = {
        "rows": [{"name": "a, b", "mean": 0.5, "against": None}, {"name": "{line\n  break] [", "of_seeds": [1, 2]}],
        "one": {"mean": 1.0},
        "list": ["x", 2],
        "brackets": ["x ]y", [" } "]],
        "more": [{"name": "x }y"}],
        "nothing": [],
    }
    text = outcome.as_text(result)
    assert json.loads(text) == result
    assert '  {"name": "a, b", "mean": 0.5, "against": null},' in text.splitlines()
    assert ' "list": ["x", 2],' in text.splitlines()


def test_committed_results_name_their_machine():
    for file in (FOLDER / "results").rglob("*.json"):
        assert json.loads(file.read_text()).keys() >= {"benchmark"}, file
        assert file.stat().st_size < 50_000, file
