"""What is read off the text of a compiled program, in the forms of CPUs and of TPUs."""

import textwrap

from instruct_jax.plan.collectives import Collective, collectives


def read(text: str) -> list[tuple]:
    return [
        (one.kind, one.bytes, one.parties, one.times) for one in collectives(textwrap.dedent(text))
    ]


def test_a_loop_of_a_cpu_says_how_often_it_runs():
    text = """\
    %b (p: f32[8]) -> f32[8] {
      %x = f32[8]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, metadata={op_name="jit(f)/dot"}
    }
    %c (p: f32[8]) -> pred[] {
    }
    ENTRY %main (a: f32[8]) -> f32[8] {
      %w = f32[8]{0} while(%a), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"5"}}
    }
    """
    assert read(text) == [("all-reduce", 32, 2, 5)]
    assert collectives(textwrap.dedent(text))[0].source == "jit(f)/dot"


def test_a_loop_of_a_tpu_has_its_length_in_its_condition():
    text = """\
    %body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
      %g = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[2,32]<=[32,2]T(1,0)
      %h = bf16[4,8]{1,0} all-gather(%p), replica_groups=mesh['a'=32,'b'=2] {'a','b'}
    }
    %cond (p: (s32[], bf16[4,8])) -> pred[] {
      %constant.1 = s32[]{:T(128)} constant(16)
      %i = s32[]{:T(128)} get-tuple-element(%p), index=0
      ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
    }
    %fused (p: (s32[], pred[])) -> pred[] {
      %limit = s32[] constant(7)
      %below = pred[] compare(%i, %limit), direction=LT
      ROOT %and = pred[] and(%below, %going_on)
    }
    %early (p: (s32[], pred[])) -> pred[] {
      ROOT %f = pred[] fusion(%p), kind=kLoop, calls=%fused
    }
    ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
      %w = (s32[], bf16[4,8]) while(%a), condition=%cond, body=%body
      %v = (s32[], bf16[4,8]) while(%w), condition=%early, body=%body
    }
    """
    assert read(text) == [("all-gather", 64, n, times) for times in (16, 7) for n in (32, 64)]


def test_starts_name_their_operand_too_and_a_reduce_scatter_of_a_tpu_is_a_fusion():
    text = """\
    %all-reduce-scatter.1 (input: f32[64,16]) -> f32[64,2] {
      %all-reduce.75 = f32[64,16]{1,0} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}
      ROOT %slice = f32[64,2]{1,0} dynamic-slice(%all-reduce.75, %a, %b), dynamic_slice_sizes={64,2}
    }
    ENTRY %main (a: f32[64,16]) -> f32[64,2] {
      %s = (bf16[8]{0}, bf16[8]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
      %d = bf16[8]{0} collective-permute-done(%s)
      %r = f32[64,2]{1,0} fusion(%a), calls=%all-reduce-scatter.1, metadata={op_name="jit(f)/psum"}
    }
    """
    assert read(text) == [("collective-permute", 16, 1, 1), ("reduce-scatter", 512, 8, 1)]


def test_what_a_ring_sends():
    """Gathering X sends (n-1)/n X, reducing and gathering it twice that; a scattered result is 1/n
    of X.
    """
    sent = {
        kind: Collective(kind, 800, 8, 3, "").sent
        for kind in ("all-gather", "all-reduce", "collective-permute")
    }
    assert sent == {"all-gather": 3 * 700, "all-reduce": 3 * 1400, "collective-permute": 3 * 800}
    assert Collective("reduce-scatter", 100, 8, 3, "").sent == 3 * 700
