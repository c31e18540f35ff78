"""The collectives of compiled programs, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clara_jax.plan.counts import array_bytes, groups_of, traffic
from clara_jax.sharding import make_mesh

LAYERS, WIDTH = 5, 64


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(data=1, fsdp=8)
    whole = NamedSharding(mesh, PartitionSpec())
    cut = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    rows = NamedSharding(mesh, PartitionSpec("fsdp", None))
    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((8, WIDTH), jnp.float32, sharding=rows)

    def layers(x, weights):
        def layer(x, weight):
            weight = jax.lax.with_sharding_constraint(weight, whole)
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), rows)
            return x, None

        return jax.lax.scan(layer, x, weights)[0]

    found = traffic(compiled(layers, x, weights).as_text(), devices=8)
    # Each layer's matrix is gathered once: 7 eighths of it come from others.
    assert found["sent"] == {"all-gather": LAYERS * WIDTH * WIDTH * 4 * 7 / 8}
    assert found["count"] == {"all-gather": LAYERS}
    assert found["endless"] == 0


def test_a_sum_over_one_axis():
    mesh = make_mesh(data=4, fsdp=2)
    x = jax.ShapeDtypeStruct((8, WIDTH), jnp.float32)
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "fsdp"),
        mesh=mesh,
        in_specs=PartitionSpec("fsdp", None),
        out_specs=PartitionSpec(None, None),
    )
    found = traffic(compiled(total, x).as_text(), devices=8)
    # A ring of two sends each half of the four rows there and back.
    assert found["sent"] == {"all-reduce": 4 * WIDTH * 4 * 2 / 2}


PROGRAM = """\
HloModule m, is_scheduled=true

%fused (p: bf16[4,8,128]) -> bf16[8,128] {
  %p = bf16[4,8,128]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %cut = bf16[1,8,128]{2,1,0} dynamic-slice(%p, %zero, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %b = bf16[8,128]{1,0} bitcast(%cut)
}

%all-reduce-scatter.1 (q: f32[8,128]) -> f32[2,128] {
  %q = f32[8,128]{1,0} parameter(0)
  %sum = f32[8,128]{1,0} all-reduce(%q), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %r = f32[2,128]{1,0} dynamic-slice(%sum, %q, %q), dynamic_slice_sizes={2,128}
}

%body (t: (s32[], bf16[4,8,128])) -> (s32[], bf16[4,8,128]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %w = bf16[4,8,128]{2,1,0} get-tuple-element(%t), index=1
  %f = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kLoop, calls=%fused
  %c = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %d = f32[8,128]{1,0:S(1)} copy-done(%c)
  %x = f32[8,128]{1,0} convert(%f)
  %s = f32[2,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %p = f32[2,128]{1,0} collective-permute(%s), channel_id=9, source_target_pairs={{0,4},{4,0}}
  ROOT %o = (s32[], bf16[4,8,128]{2,1,0}) tuple(%n, %w)
}

%cond (t: (s32[], bf16[4,8,128])) -> pred[] {
  %limit = s32[] constant(3)
  %u = (s32[], bf16[4,8,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%u), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}

ENTRY %main (w: bf16[4,8,128]) -> bf16[4,8,128] {
  %w = bf16[4,8,128]{2,1,0} parameter(0)
  %k = s32[] constant(0)
  %in = (s32[], bf16[4,8,128]{2,1,0}) tuple(%k, %w)
  %loop = (s32[], bf16[4,8,128]{2,1,0}) while(%in), condition=%cond, body=%body
  ROOT %end = bf16[4,8,128]{2,1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_program_as_tpus_write_it():
    found = traffic(PROGRAM, devices=8, slices=2)
    tile = 8 * 128
    assert found["sent"] == {
        "reduce-scatter": 3 * tile * 4 * 3 / 4,
        "collective-permute": 3 * 2 * 128 * 4,
    }
    assert found["far"] == {"collective-permute": 3 * 2 * 128 * 4}
    assert found["count"] == {"reduce-scatter": 3, "collective-permute": 3}


FAR = """\
HloModule m, is_scheduled=true

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2
  %got = (f32[8,128]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1
  ROOT %y = f32[8,128]{1,0:T(8,128)} get-tuple-element(%got), index=0
}
"""  # noqa: E501


def test_sums_between_slices_go_through_the_hosts():
    found = traffic(FAR, devices=8, slices=2)
    assert found["sent"] == found["far"] == {"all-reduce": 8 * 128 * 4 * 2 / 2}


BESIDE = """\
HloModule m, is_scheduled=true

%begin (p: bf16[2,128]) -> (bf16[2,128], bf16[8,128], u32[]) {
  %p = bf16[2,128]{1,0} parameter(0)
  %g = bf16[8,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %s = (bf16[2,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[2,128], b: bf16[8,128], x: f32[4,4]) -> (f32[4,4], bf16[8,128]) {
  %p = bf16[2,128]{1,0} parameter(0)
  %b = bf16[8,128]{1,0} parameter(1)
  %x = f32[4,4]{1,0} parameter(2)
  %g = bf16[8,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %y = f32[4,4]{1,0} exponential(%x)
  ROOT %t = (f32[4,4]{1,0}, bf16[8,128]{1,0}) tuple(%y, %b)
}

%end (p: bf16[2,128], b: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  %b = bf16[8,128]{1,0} parameter(1)
  %g = bf16[8,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = bf16[8,128]{1,0} custom-call(%p, %b, %g), custom_call_target="AsyncCollectiveDone"
}

%body (t: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %t = (s32[], bf16[2,128]{1,0}, bf16[8,128]{1,0}, f32[4,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%n, %two)
  %a = bf16[2,128]{1,0} get-tuple-element(%t), index=1
  %b = bf16[8,128]{1,0} get-tuple-element(%t), index=2
  %x = f32[4,4]{1,0} get-tuple-element(%t), index=3
  %f = (f32[4,4]{1,0}, bf16[8,128]{1,0}) fusion(%a, %b, %x), kind=kLoop, calls=%async_collective_fusion.1
  %y = f32[4,4]{1,0} get-tuple-element(%f), index=0
  ROOT %o = (s32[], bf16[2,128]{1,0}, bf16[8,128]{1,0}, f32[4,4]{1,0}) tuple(%next, %a, %b, %y)
}

%cond (t: (s32[], f32[4,4])) -> pred[] {
  %u = (s32[], bf16[2,128]{1,0}, bf16[8,128]{1,0}, f32[4,4]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%u), index=0
  %limit = s32[]{:S(6)} constant(8)
  ROOT %lt = pred[]{:S(6)} compare(%i, %limit), direction=LT
}

ENTRY %main (w: bf16[2,128], x: f32[4,4]) -> bf16[8,128] {
  %w = bf16[2,128]{1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %k = s32[] constant(0)
  %s = (bf16[2,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%begin
  %a = bf16[2,128]{1,0} get-tuple-element(%s), index=0
  %b = bf16[8,128]{1,0} get-tuple-element(%s), index=1
  %in = (s32[], bf16[2,128]{1,0}, bf16[8,128]{1,0}, f32[4,4]{1,0}) tuple(%k, %a, %b, %x)
  %loop = (s32[], bf16[2,128]{1,0}, bf16[8,128]{1,0}, f32[4,4]{1,0}) while(%in), condition=%cond, body=%body
  %c = bf16[8,128]{1,0} get-tuple-element(%loop), index=2
  ROOT %d = bf16[8,128]{1,0} fusion(%a, %c), kind=kCustom, calls=%end
}
"""  # noqa: E501


def test_a_collective_beside_a_loop_counts_once_and_unrolled_turns_as_they_are():
    found = traffic(BESIDE, devices=4)
    assert found["sent"] == {"all-gather": 3 * 2 * 128 * 2}
    assert found["count"] == {"all-gather": 1}
    assert found["endless"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups(text, expected):
    assert groups_of(f", {text}, x=1", 8).tolist() == expected


def test_bytes_of_types():
    assert array_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert array_bytes("(f32[2]{0}, s32[], pred[3])") == 15
    assert array_bytes("s4[8]") == 4


EITHER = """\
HloModule m, is_scheduled=true

%one (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %r = f32[4]{0} all-reduce(%p), channel_id=1, replica_groups={}, to_apply=%add
}

%two (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %r = f32[8]{0} all-gather(%p), channel_id=2, replica_groups={}, dimensions={0}
}

ENTRY %main (which: s32[], x: f32[4]) -> f32[4] {
  %which = s32[] parameter(0)
  %x = f32[4]{0} parameter(1)
  ROOT %y = f32[4]{0} conditional(%which, %x, %x), branch_computations={%one, %two}
}
"""


def test_of_branches_the_one_that_sends_most_counts():
    assert traffic(EITHER, devices=4)["sent"] == {"all-gather": 3 * 4 * 4}


def test_a_loop_without_a_known_end_is_told():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x)

    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert traffic(compiled(until, x).as_text(), devices=1)["endless"] == 1
