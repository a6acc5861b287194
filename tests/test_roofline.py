"""Bytes and operations of kernels, counted by hand on a small program, and what follows from them."""

import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


# Two voxels along each axis of a map, 3 channels in and 4 out; all sizes small enough to count.
PROGRAM = """HloModule step, is_scheduled=true

%product (p.0: bf16[8,16], p.1: bf16[16,32]) -> f32[8,32] {
  %p.0 = bf16[8,16]{1,0} parameter(0)
  %p.1 = bf16[16,32]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,32]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%piece (p.2: f32[10,100], p.3: s32[]) -> f32[1,100] {
  %p.2 = f32[10,100]{1,0} parameter(0)
  %p.3 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,100]{1,0} dynamic-slice(%p.2, %p.3, %zero), dynamic_slice_sizes={1,100}
}

%put (p.4: f32[10,100], p.5: f32[1,100], p.6: s32[]) -> f32[10,100] {
  %p.4 = f32[10,100]{1,0} parameter(0)
  %p.5 = f32[1,100]{1,0} parameter(1)
  %p.6 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %changed = f32[10,100]{1,0} dynamic-update-slice(%p.4, %p.5, %p.6, %zero.1)
}

%body (state: (s32[], f32[10,100])) -> (s32[], f32[10,100]) {
  %state = (s32[], f32[10,100]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %all = f32[10,100]{1,0} get-tuple-element(%state), index=1
  %one = f32[1,100]{1,0} fusion(%all, %index), kind=kLoop, calls=%piece
  %new = f32[10,100]{1,0} fusion(%all, %one, %index), kind=kLoop, calls=%put, metadata={op_name="jit(step)/put"}
  ROOT %next = (s32[], f32[10,100]{1,0}) tuple(%index, %new)
}

%condition (state.1: (s32[], f32[10,100])) -> pred[] {
  %limit = s32[] constant(7)
}

%as_one (p.7: bf16[8,16], p.8: bf16[16,32]) -> f32[8,32] {
  %p.7 = bf16[8,16]{1,0} parameter(0)
  %p.8 = bf16[16,32]{1,0} parameter(1)
  ROOT %product.1 = f32[8,32]{1,0} fusion(%p.7, %p.8), kind=kCustom, calls=%product
}

ENTRY %main (x: bf16[1,3,2,2,2], k: bf16[4,3,3,3,3], a: bf16[8,16], b: bf16[16,32], s: (s32[], f32[10,100])) -> f32[] {
  %x = bf16[1,3,2,2,2]{4,3,2,1,0} parameter(0)
  %k = bf16[4,3,3,3,3]{4,3,2,1,0} parameter(1)
  %a = bf16[8,16]{1,0} parameter(2)
  %b = bf16[16,32]{1,0} parameter(3)
  %s = (s32[], f32[10,100]{1,0}) parameter(4)
  %conv = (bf16[1,4,2,2,2]{4,3,2,1,0}, u8[1000]{0}) custom-call(%x, %k), dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convForward"
  %y = bf16[1,4,2,2,2]{4,3,2,1,0} get-tuple-element(%conv), index=0
  %grad = (bf16[4,3,3,3,3]{4,3,2,1,0}, u8[0]{0}) custom-call(%x, %y), dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convBackwardFilter"
  %back = (bf16[1,3,2,2,2]{4,3,2,1,0}, u8[0]{0}) custom-call(%y, %k), dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convBackwardInput"
  %called = f32[8,32]{1,0} call(%a, %b), to_apply=%as_one
  %lib = (f32[8,32]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}
  %turned = bf16[16,8]{0,1} copy(%a)
  %mine = f32[8,32]{1,0} custom-call(%a, %b), custom_call_target="__gpu$xla.gpu.triton", backend_config={ir = "\\22", serialized_metadata = "{\\22operations\\22: \\2276543\\22, \\22bytes\\22: \\228765\\22}"}
  %silent = f32[8,32]{1,0} custom-call(%a, %b), custom_call_target="__gpu$xla.gpu.triton", backend_config={ir = "\\22"}
  ROOT %loop = (s32[], f32[10,100]{1,0}) while(%s), condition=%condition, body=%body
}
"""  # noqa: E501


def _kernels():
    from kernels import kernels

    return {kernel.name.lstrip("%"): kernel for kernel in kernels(PROGRAM)}


def test_a_convolution_and_its_gradients_have_the_same_operations():
    found = _kernels()
    each = 2 * (2 * 2 * 2) * 4 * 3 * 27  # places, channels out, channels in, kernel
    x, y, kernel = 2 * 3 * 8, 2 * 4 * 8, 2 * 4 * 3 * 27
    for name in ("conv", "grad", "back"):
        assert (found[name].kind, found[name].operations, found[name].times) == ("convolution", each, 1)
        # Workspace does not count.
        assert found[name].bytes == x + y + kernel


def test_products_count_in_fusions_calls_and_libraries():
    found = _kernels()
    for name in ("product.1", "lib"):
        assert found[name].kind == "product"
        assert found[name].operations == 2 * 8 * 32 * 16
        assert found[name].bytes == 2 * 8 * 16 + 2 * 16 * 32 + 4 * 8 * 32
    assert found["turned"].kind == "copy" and found["turned"].bytes == 2 * 2 * 8 * 16
    # What is in a fusion is none, and no more are a tuple, a parameter or a loop itself.
    assert set(found) == {"conv", "grad", "back", "product.1", "lib", "turned", "mine", "silent", "one", "new"}


def test_a_hand_written_kernel_costs_what_it_declares():
    found = _kernels()
    assert (found["mine"].kind, found["mine"].operations, found["mine"].bytes) == ("hand-written", 76543, 8765)
    silent = found["silent"]
    assert (silent.kind, silent.operations) == ("hand-written", 0)
    assert silent.bytes == 2 * 8 * 16 + 2 * 16 * 32 + 4 * 8 * 32


def test_in_a_loop_pieces_count_as_often_as_it_runs():
    found = _kernels()
    row, index = 4 * 100, 4
    assert (found["one"].times, found["one"].bytes) == (7, row + index + row)
    # Read: the row and its place; written: the row, into an array that stays where it is.
    assert (found["new"].times, found["new"].bytes) == (7, row + index + row)
    assert found["new"].source == "jit(step)/put"


def test_a_loop_runs_as_often_as_the_compiler_found():
    import executed

    known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert dict(executed.runs(known))["%body"] == 3


def test_the_larger_of_both_times_counts():
    import roofline
    from kernels import Kernel

    found = [
        Kernel("%slow", "convolution", "", 1, operations=10_000, bytes=20),
        Kernel("%wide", "other", "", 3, operations=0, bytes=500),
        Kernel("%both", "convolution", "", 2, operations=1_000, bytes=400),
    ]
    result = roofline.bounds(found, 4, operations_per_s=1e3, bytes_per_s=1e2)
    assert result["least_ms"] == pytest.approx(1e3 * (10 + 3 * 5 + 2 * 4))
    assert result["operations_ms"] == pytest.approx(12e3) and result["bytes_ms"] == pytest.approx(23.2e3)
    assert result["bound_patches_per_s"] == pytest.approx(4 / 33)
    assert [row["name"] for row in result["longest"]] == ["%wide", "%slow", "%both"]
    assert [row["limit"] for row in result["longest"]] == ["bytes", "operations", "bytes"]
    kinds = {row["kind"]: row for row in result["kinds"]}
    assert kinds["convolution"]["kernels"] == 3 and kinds["convolution"]["operations"] == 12_000
    assert sum(row["least_ms"] for row in kinds.values()) == pytest.approx(result["least_ms"])
    (everything,) = result["parts"]
    assert (everything["part"], everything["kernels"], everything["bytes"]) == ("rest", 6, 20 + 1500 + 800)
    assert "%slow" in roofline.table(found, 1e3, 1e2)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("jit(step)/transpose(jvp(UNet.trunk))/jvp(UNet.trunk)/checkpoint/up_0.grow/norm/reduce_sum", "UNet"),
        ("jit(step)/jvp(SwinUNETR.trunk)/stage_0/block_1/attention/cond/while/body/mul", "SwinUNETR, attention"),
        ("jit(step)/jvp(LightDecoder)/conv_0/conv_general_dilated", "LightDecoder"),
        ("jit(step)/jvp()/while/body/closed_call/jit(log_softmax)/sub", "losses, in loops"),
        ("jit(step)/jvp()/cond/branch_0_fun/distillation_kernels/forward/pallas_call", "losses, in kernels"),
        ("jit(step)/add", "rest"),
        ("", "rest"),
    ],
)
def test_the_part_of_the_step_is_the_module(source, part):
    import roofline

    assert roofline.part(source) == part
