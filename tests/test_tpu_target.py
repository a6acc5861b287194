"""Compiling for TPUs that are not there: padding, the compiler's messages, and a tiny step where libtpu is there."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    kept = dict(os.environ)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    # The module sets what JAX reads when it starts.
    os.environ.clear()
    os.environ.update(kept)


@pytest.mark.parametrize(
    ("array", "values", "laid_out"),
    [
        ("f32[16,128]{1,0:T(8,128)}", 4 * 16 * 128, 4 * 16 * 128),
        ("f32[9,129]{1,0:T(8,128)}", 4 * 9 * 129, 4 * 16 * 256),
        # The fastest axis is the first of the braces: here 9 lie along the lanes, and 129 along the rows.
        ("f32[9,129]{0,1:T(8,128)}", 4 * 9 * 129, 4 * 136 * 128),
        ("bf16[2,64,64,64,36]{4,3,2,1,0:T(8,128)(2,1)}", 2 * 2 * 64**3 * 36, 2 * 2 * 64**3 * 128),
        # Pairs of rows in one word: three rows of bf16 take four.
        ("bf16[3,128]{1,0:T(1,128)(2,1)}", 2 * 3 * 128, 2 * 3 * 2 * 128),
        ("f32[64]{0:T(128)}", 4 * 64, 4 * 128),
        ("s32[]{:T(128)}", 4, 4 * 128),
        ("pred[10,10]{1,0}", 100, 100),
        ("f32[7]", 28, 28),
    ],
)
def test_an_array_takes_whole_tiles(array, values, laid_out):
    import tiles

    assert tiles.array_bytes(array) == (values, laid_out)


HLO = """HloModule step, is_scheduled=true

%fused (p: f32[8,1]) -> f32[8,1] {
  ROOT %inside = f32[8,1]{1,0:T(8,128)} add(%p, %p), backend_config={"estimated_cycles":"1000"}
}

%cond.1 (t: (f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%t, %limit), direction=LT
}

%body.1 (t: (f32[8,128])) -> (f32[8,128]) {
  %t = (f32[8,128]{1,0:T(8,128)}) parameter(0)
  %again = f32[8,128]{1,0:T(8,128)} copy(%x), backend_config={"estimated_cycles":"100"}
  ROOT %out = (f32[8,128]{1,0:T(8,128)}) tuple(%again)
}

ENTRY %main (a: f32[8,1]) -> f32[8,1] {
  %a = f32[8,1]{1,0:T(8,128)} parameter(0)
  %fast = f32[8,1]{1,0:T(8,128)S(1)} fusion(%a), kind=kLoop, calls=%fused
  %begun = (f32[8,1]{1,0:T(8,128)}, f32[8,1]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%fast)
  %done = f32[8,1]{1,0:T(8,128)} copy-done(%begun)
  %loop = (f32[8,128]{1,0:T(8,128)}) while(%s), condition=%cond.1, body=%body.1
  ROOT %two = (f32[8,1]{1,0:T(8,128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) fusion(%done), x={"estimated_cycles":"7"}
}
"""


def test_padding_counts_what_a_program_writes_to_memory_once():
    import tiles

    found = tiles.waste(HLO)
    whole = 8 * 128 * 4
    # The argument, the copy, the loop's copy, and both results of the last fusion.
    assert found["logical_bytes"] == 3 * 8 * 4 + whole + 16 * 128 * 2
    assert found["laid_out_bytes"] == 3 * whole + whole + 16 * 128 * 2
    assert found["ratio"] == pytest.approx(found["laid_out_bytes"] / found["logical_bytes"], abs=1e-3)
    assert found["largest"][0] == {"array": "f32[8,1]{1,0:T(8,128)}", "count": 3, "wasted_bytes": 3 * (whole - 32)}


def test_cycles_of_a_loop_count_as_often_as_it_runs():
    import executed

    assert executed.cycles(HLO) == 5 * 100 + 7


def test_a_message_of_the_compiler_says_how_much_memory_is_needed():
    import tpu_target

    # As libtpu 0.0.42 writes it.
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (24.00G) exceeds "
        "available HBM (15.75G)."
    )
    error = tpu_target.OutOfMemory(message)
    assert error.needed_bytes == 24 * 2**30
    found = tpu_target.too_large(error, "tpu-v5e")
    assert found["fits"] is False and found["outcome"] == "out_of_memory" and found["chip_bytes"] == 16 * 2**30
    assert found["message"] == [message] and found["needed_bytes"] == error.needed_bytes
    assert tpu_target.needed_bytes("Ran out of memory. Used 18.25G of 15.75G hbm.") == round(18.25 * 2**30)
    assert tpu_target.needed_bytes("Used 950.5M of 512.0M hbm") == round(950.5 * 2**20)
    assert tpu_target.needed_bytes("RESOURCE_EXHAUSTED: scoped vmem") is None


def test_figures_of_a_program_are_those_of_one_chip():
    import tpu_target

    sizes = {"temp": 16 * 2**30, "argument": 300, "output": 200, "alias": 100, "generated_code": 50}

    class Program:
        def memory_analysis(self):
            return type("Memory", (), {f"{name}_size_in_bytes": size for name, size in sizes.items()})

        def cost_analysis(self):
            return {"flops": 7.0, "bytes accessed": 9.0, "optimal_seconds": -2.5}

        def as_text(self):
            return HLO

    found = tpu_target.figures(Program(), "tpu-v5e")
    assert found["needed_bytes"] == 16 * 2**30 + 450
    # Of 16 GiB a program gets 15.75.
    assert found["fits"] is False and found["available_bytes"] == 15.75 * 2**30
    assert tpu_target.figures(Program(), "tpu-v6e")["fits"] is True
    assert found["compiler_seconds"] == pytest.approx(507 / 1.5e9) and found["bytes_accessed"] == 9.0


def test_the_plan_for_memory_is_in_the_compilers_log():
    import tpu_target

    line = "I1129 09:06:02.803960 2065 heap_simulator.h:1196] Primary algorithm finished with size: "
    assert tpu_target.planned_bytes(f"{line}512\n{line}3485925376\n") == 3485925376
    assert tpu_target.planned_bytes("nothing yet") is None


def test_products_of_matrices_are_no_convolutions():
    import compiled_program

    product = "  %c = f32[16,16,16]{2,1,0} convolution(%a, %b), window={size=16 pad=15_15}, dim_labels=bf0_i0o->b0f"
    assert compiled_program.wide_convolutions([product]) == ["16"]
    assert compiled_program.wide_convolutions([product + ', metadata={op_name="jit(f)/vmap()/dot_general"}']) == []


def test_all_reduces_of_many_gradients_at_once_are_counted():
    """From the sixth result on, a comment with an equals sign stands in the type: 68 were counted, and not the rest."""
    import compiled_program

    kernel, bias = "bf16[3,3,3,8,16]{4,3,2,1,0:T(8,128)(2,1)S(1)}", "f32[16]{0:T(128)}"
    many = ", ".join([kernel, *[bias] * 4, f"/*index=5*/{kernel}", *[bias] * 4, f"/*index=10*/{bias}"])
    lines = [
        "  %norm = f32[32]{0:T(128)S(1)} all-reduce(%sums), channel_id=1, to_apply=%add",
        "  %few = (f32[8]{0:T(128)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=2, to_apply=%add",
        f"  %gradients = ({many}) all-reduce(%c, %d, /*index=5*/%e), channel_id=3, to_apply=%add",
        "  %begun = (f32[4]{0}, f32[32]{0}) all-gather-start(%f), channel_id=4, dimensions={0}",
        "  %done = f32[32]{0} all-gather-done(%begun)",
        # It takes the result of one, and is none.
        "  %mean = f32[32]{0:T(128)S(1)} fusion(%all-reduce.1), kind=kLoop, calls=%fused",
    ]
    gradients = 2 * (3 * 3 * 3 * 8 * 16) * 2 + 9 * 16 * 4
    assert compiled_program._collectives(lines) == {
        "all-reduce": {"count": 3, "bytes": 32 * 4 + (8 + 1) * 4 + gradients},
        "all-gather": {"count": 1, "bytes": 32 * 4},
    }


def _compiled_only(*options, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "compile_only.py"), "--target", "tpu-v5e", "--tiny", *options]
    subprocess.run([*command, "--json", str(out)], check=True, capture_output=True, cwd=ROOT)
    return json.loads(out.read_text())


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler for TPUs, is not installed: `make bench-tpu-env` makes an environment that has it",
)


@needs_libtpu
@pytest.mark.slow
def test_the_tiny_step_compiles_for_a_tpu(tmp_path):
    found = _compiled_only("--size", "16", "--batch", "1", tmp_path=tmp_path)
    assert found["outcome"] == "compiled" and found["fits"]
    assert 0 < found["temporary_bytes"] < found["needed_bytes"] < found["chip_bytes"] == 16 * 2**30
    assert found["collectives"] == {} and found["padding"]["ratio"] > 1


@needs_libtpu
@pytest.mark.slow
def test_a_compiler_that_takes_too_long_is_given_up(tmp_path):
    found = _compiled_only("--size", "16", "--batch", "1", "--limit", "0.5", tmp_path=tmp_path)
    assert found["outcome"] == "timed_out" and found["limit_s"] == 0.5 and "needed_bytes" not in found


@needs_libtpu
@pytest.mark.slow
def test_memory_is_planned_before_code_is_made(tmp_path):
    found = _compiled_only("--size", "16", "--batch", "1", "--plan-only", tmp_path=tmp_path)
    # 213,504 with libtpu 0.0.42: most arrays of so small a step lie in fast memory, which the plan leaves out.
    assert found["outcome"] == "planned" and 10**4 < found["planned_bytes"] < 10**8
