"""What is counted from a program's text: against programs compiled here and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from maeclip_jax.preflight import hlo

TEXT = """HloModule jit_step, is_scheduled=true

%inner (p0: bf16[32,64], p1: bf16[64,128]) -> bf16[32,128] {
  %p0 = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[64,128]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[32,128]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf, backend_config={"window_config":{"estimated_cycles":"999"}}
}

%piece (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[32,4]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %sum = f32[] add(%l, %r)
}

%body (state: (s32[], bf16[32,64])) -> (s32[], bf16[32,64]) {
  %state = (s32[]{:T(128)}, bf16[32,64]{1,0}) parameter(0)
  %x = bf16[32,64]{1,0} get-tuple-element(%state), index=1
  %w = bf16[64,128]{1,0} constant({...})
  %fusion.1 = bf16[32,128]{1,0} fusion(%x, %w), kind=kOutput, calls=%inner, metadata={op_name="jit(_step)/transpose(jvp(Clip))/Clip._contrast/text/trunk/while/body/closed_call/checkpoint/blocks/mlp/up/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %all-reduce.1 = f32[10]{0} all-reduce(%g), channel_id=3, to_apply=%add
  %g = f32[10]{0} constant({...})
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %tuple = (s32[], bf16[32,64]{1,0}) tuple(%i, %x)
}

%condition (state.1: (s32[], bf16[32,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[32,64]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(12)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: (s32[], bf16[32,64])) -> f32[] {
  %a = (s32[], bf16[32,64]{1,0}) parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[32,64]{1,0}) while(%a), condition=%condition, body=%body
  %s = bf16[8,4]{1,0} constant({...})
  %fusion.2 = bf16[32,4]{1,0} fusion(%s), kind=kCustom, calls=%piece
  %fusion.3 = bf16[32,4]{1,0} fusion(%s), kind=kCustom, calls=%piece
  %kernel = f32[4]{0} custom-call(%s), custom_call_target="tpu_custom_call"
  %note = f32[4]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %reduce = f32[] reduce(%s), backend_config={"window_config":{"estimated_cycles":"50"}}
}
"""  # noqa: E501


def test_a_loop_counts_its_turns():
    found = hlo.costs(TEXT)
    assert found.cycles == 12 * 1000 + 50  # what is inside a fusion has its cycles in the fusion's
    assert found.flops == 12 * 2 * 32 * 64 * 128
    assert found.unknown_loops == 0
    assert found.top(1) == [("text/trunk/blocks/mlp/up dot_general, backward", 12000)]


@pytest.mark.parametrize("kind, step, turns", [("s32", 1, 12), ("u32", 2, 6), ("u32", 5, 3)])
def test_a_loop_counts_by_its_step(kind, step, turns):
    """Products in windows of sharded arrays go over an unsigned counter by twos."""
    text = TEXT.replace("s32[]", f"{kind}[]").replace(
        f"  %i = {kind}[] get-tuple-element(%state), index=0\n",
        f"  %i.0 = {kind}[] get-tuple-element(%state), index=0\n  %by = {kind}[] constant({step})\n"
        f"  %i = {kind}[] add(%i.0, %by)\n",
    )
    found = hlo.costs(text)
    assert (found.cycles, found.unknown_loops) == (turns * 1000 + 50, 0)


def test_collectives_count_once_a_channel_and_calls_without_an_estimate_are_told():
    found = hlo.costs(TEXT)
    assert found.collectives == {"all-reduce": 12 * 10 * 4, "all-gather": 32 * 4 * 2}
    assert found.uncosted == {"tpu_custom_call": 1}


def test_every_reduce_scatter_counts_though_they_share_a_channel():
    """libtpu fuses them of an all-reduce and a slice; it numbers all of them 1, and other collectives outside loops."""
    scatter = """%all-reduce-scatter.N (g.N: f32[64,10]) -> f32[8,10] {
  %g.N = f32[64,10]{1,0} parameter(0)
  %o.N = s32[] constant(0)
  %all-reduce.N0 = f32[64,10]{1,0} all-reduce(%g.N), channel_id=1, to_apply=%add
  ROOT %mine.N = f32[8,10]{1,0} dynamic-slice(%all-reduce.N0, %o.N), dynamic_slice_sizes={8,10}
}

"""
    text = TEXT.replace("ENTRY", scatter.replace("N", "7") + scatter.replace("N", "8") + "ENTRY")
    for n in "78":
        call = f"  %scatter.{n} = f32[8,10]{{1,0}} fusion(%s), kind=kCustom, calls=%all-reduce-scatter.{n}\n"
        text = text.replace("  %note =", f"{call}  %note =")
    last = "  %s3 = f32[3]{0} constant({...})\n  %sum = f32[3]{0} all-reduce(%s3), channel_id=1, to_apply=%add\n"
    text = text.replace("  %note =", f"{last}  %note =")
    found = hlo.costs(text).collectives
    assert found == {"all-reduce": 12 * 10 * 4 + 3 * 4, "all-gather": 32 * 4 * 2, "reduce-scatter": 2 * 64 * 10 * 4}


def test_a_collective_of_a_computation_that_is_called_twice_counts_twice():
    called = """%both (p: f32[25]) -> f32[25] {
  %p = f32[25] parameter(0)
  ROOT %twice = f32[25] all-reduce(%p), channel_id=9, to_apply=%add
}

"""
    calls = """  %s25 = f32[25]{0} constant({...})
  %call.1 = f32[25] call(%s25), to_apply=%both
  %call.2 = f32[25] call(%call.1), to_apply=%both
"""
    text = TEXT.replace("ENTRY", f"{called}ENTRY").replace("  %note =", f"{calls}  %note =")
    assert hlo.costs(text).collectives["all-reduce"] == 12 * 10 * 4 + 2 * 25 * 4


def test_the_dearest_branch_is_that_which_takes_longest_with_its_loops():
    """Twelve turns of 1,000 cycles against 5,000 in one go."""
    branches = """%looped (a.1: (s32[], bf16[32,64])) -> (s32[], bf16[32,64]) {
  %a.1 = (s32[], bf16[32,64]{1,0}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[32,64]{1,0}) while(%a.1), condition=%condition, body=%body
}

%flat (a.2: (s32[], bf16[32,64])) -> (s32[], bf16[32,64]) {
  %a.2 = (s32[], bf16[32,64]{1,0}) parameter(0)
  ROOT %copy.1 = (s32[], bf16[32,64]{1,0}) copy(%a.2), backend_config={"estimated_cycles":"5000"}
}

"""
    loop = "  %while.1 = (s32[]{:T(128)}, bf16[32,64]{1,0}) while(%a), condition=%condition, body=%body\n"
    either = (
        "  %q = s32[] constant(0)\n  %either = (s32[], bf16[32,64]) conditional(%q, %a, %a), branch_computations={%B}\n"
    )
    for names in ("looped, %flat", "flat, %looped"):
        text = TEXT.replace(loop, either.replace("B", names)).replace("ENTRY", f"{branches}ENTRY")
        assert hlo.costs(text).cycles == 12 * 1000 + 50


def test_kernels_are_told_with_what_they_say_of_themselves():
    says = """, metadata={op_name="jit(f)/cond/branch_0_fun/mine_2_steps/pallas_call" stack_frame_id=1}, backend_config={"custom_call_config":{"body":"TUz","cost_estimate":{"flops":"700","transcendentals":"9","bytes_accessed":"80"}}}"""  # noqa: E501
    told = hlo.costs(TEXT.replace('"tpu_custom_call"', f'"tpu_custom_call"{says}'))
    assert told.kernels == {hlo.Kernel("mine_2_steps", ("bf16[8,4]",), 700, 80): 1}
    assert not told.uncosted and told.flops == hlo.costs(TEXT).flops + 700


def test_an_operand_may_be_a_part_of_a_tuple():
    """jax 0.11 writes `%fusion.1#1` for what was an operation of its own."""
    one = "%fusion.1 = (f32[1000]{0:T(8,128)}, /*index=1*/f32[10]{0}) fusion(%x, %w), kind=kLoop, calls=%inner"
    text = TEXT.replace("%g = f32[10]{0} constant({...})", one).replace("all-reduce(%g)", "all-reduce(%fusion.1#1)")
    assert hlo.costs(text).collectives["all-reduce"] == 12 * 4 * 10


def test_a_loop_of_unknown_length_is_told():
    assert hlo.costs(TEXT.replace("direction=LT", "direction=NE")).unknown_loops == 1


def test_what_the_compiler_notes_of_a_loop_wins():
    noted = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert hlo.costs(noted).flops == 5 * 2 * 32 * 64 * 128


def convolution(dims: str, window: str, lhs: str, rhs: str, out: str) -> float:
    """FLOPs of one convolution."""
    line = f"  ROOT %c = bf16[{out}]{{0}} convolution(%l, %r), window={{{window}}}, dim_labels={dims}"
    operands = [f"  %{name} = bf16[{shape}]{{0}} parameter(0)" for name, shape in (("l", lhs), ("r", rhs))]
    return hlo.costs("\n".join(["ENTRY %e (l: f32[1]) -> f32[1] {", *operands, line, "}"])).flops


def test_products_written_as_convolutions():
    # 8 batched products of [4, 16] and [16, 5]: one tap of the window meets a real input.
    batched = convolution("0bf_0io->0bf", "size=8 stride=7 pad=0_0 lhs_dilate=8", "8,4,16", "8,16,5", "8,4,5")
    assert batched == 2 * 8 * 4 * 16 * 5
    picture = convolution("b01f_01io->b01f", "size=3x3", "2,6,6,3", "3,3,3,8", "2,4,4,8")
    assert picture == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)
    padded = convolution("b0f_0io->b0f", "size=3 pad=1_1", "1,4,1", "3,1,1", "1,4,1")
    assert padded == 2 * (2 + 3 + 3 + 2)  # taps in the padding do not count


@pytest.mark.parametrize("unroll", [1, 4])
def test_scanned_and_unrolled_programs_count_the_same(unroll):
    def step(x, w):
        return jax.lax.scan(lambda c, k: (c @ k, None), x, w, unroll=unroll)[0]

    args = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((4, 16, 16), jnp.float32)
    found = hlo.costs(jax.jit(step).lower(*args).compile().as_text())
    assert found.flops == 4 * 2 * 8 * 16 * 16 and found.unknown_loops == 0
