"""Collectives out of a program's text: written by hand, and of the real step on eight devices."""

import json
from pathlib import Path

import cost as command
import jax
import pytest

from detailclip_jax.benchmarks import counting, hlo, step, variants
from detailclip_jax.benchmarks.hlo import Collective
from detailclip_jax.runtime import errors

SMALLEST = str(Path(__file__).parents[1] / "configs/smallest.py")
PROGRAM = """
HloModule jit_step

%sum.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%body.2_spmd (param: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %p.1 = f32[16,8]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/ring"}
}

ENTRY %main.5_spmd (param.3: f32[16,8]) -> f32[16,8] {
  %while.9 = (s32[], f32[16,8]{1,0}) while(%t), condition=%cond, body=%body.2_spmd, CONFIG
  %ar = (f32[96]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, METADATA
  %get-tuple-element.1 = f32[96]{0} get-tuple-element(%ar), index=0, metadata={op_name="jit(f)/psum"}
  %ags = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), replica_groups=[2,4]<=[8], dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ags)
  ROOT %rs = f32[2,8]{1,0} reduce-scatter(%d), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum.1
}
""".replace("CONFIG", 'backend_config={"known_trip_count":{"n":"7"}}').replace(
    "METADATA", 'to_apply=%sum.1, metadata={op_name="jit(f)/psum"}'
)


def test_collectives_of_a_program():
    assert hlo.collectives(PROGRAM) == [
        Collective("collective-permute", 512, 2, 7, "jit(f)/ring"),
        Collective("all-reduce", 96 * 4 + 6 * 2, 4, 1, "jit(f)/psum"),
        Collective("all-gather", 64, 4, 1, ""),
        Collective("reduce-scatter", 64, 8, 1, ""),
    ]


FUSED = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%reduced.1 (p.1: f32[64]) -> f32[64] {
  %p.1 = f32[64]{0} parameter(0)
  %start.1 = f32[64]{0} all-reduce-start(%p.1), replica_groups={}, to_apply=%sum
  %dot.1 = f32[8,16]{1,0} dot(%q.1, %r.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %done.1 = f32[64]{0} all-reduce-done(%start.1)
}

ENTRY %main.1 (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %out = f32[64]{0} fusion(%x), kind=kCustom, calls=%reduced.1
}
"""


def test_a_collective_in_a_fusion_overlaps_with_the_fusions_products_and_without_groups_has_all_devices():
    assert hlo.collectives(FUSED, per_host=4) == [Collective("all-reduce", 256, 8, 1, "", overlaps=True, leaving=1 / 7)]
    assert hlo.collectives(FUSED.replace("num_partitions=8", "replica_count=2, num_partitions=2"))[0].group == 4


MORE = """
%fused.1 (p: bf16[12,8,4], i: s32[]) -> bf16[8,4] {
  %p = bf16[12,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %ds = bf16[8,4]{1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,8,4}
}

%fused.2 (p.2: bf16[8,4], q.2: bf16[4,16]) -> bf16[8,16] {
  %p.2 = bf16[8,4]{1,0} parameter(0)
  %q.2 = bf16[4,16]{1,0} parameter(1)
  %dot.2 = f32[8,16]{1,0} dot(%p.2, %q.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %half.2 = bf16[8,16]{1,0} convert(%dot.2)
}

%condition.3 (t.3: (s32[])) -> pred[] {
  %most.3 = s32[] constant(12)
  ROOT %less.3 = pred[] compare(%step.3, %most.3), direction=LT
}

%body.3 (t.4: (s32[], bf16[12,8,4])) -> (s32[], bf16[12,8,4]) {
  %stack = bf16[12,8,4]{2,1,0} get-tuple-element(%t.4), index=1
  %step = s32[] get-tuple-element(%t.4), index=0
  %layer = bf16[8,4]{1,0} fusion(%stack, %step), kind=kLoop, calls=%fused.1
  %turned = bf16[8,4]{0,1} copy(%layer)
LOOP_PRODUCT}

ENTRY %main.4 (x: bf16[8,4], w: bf16[4,16]) -> bf16[8,16] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = bf16[4,16]{1,0:T(8,128)S(1)} parameter(1)
  %start = f32[64]{0} all-reduce-start(%g), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%sum
  %loop = (s32[], bf16[12,8,4]{2,1,0}) while(%t), condition=%condition.3, body=%body.3
  %done = f32[64]{0} all-reduce-done(%start)
  %late = f32[64]{0} all-reduce-start(%g), replica_groups=[2,2]<=[4], to_apply=%sum
  %late-done = f32[64]{0} all-reduce-done(%late)
  %exact = f32[8,16]{1,0} dot(%f, %f.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = bf16[8,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused.2
}
"""
MULTIPLIES = MORE.replace("LOOP_PRODUCT", "  %d.3 = bf16[8,16]{1,0} fusion(%layer, %w.3), calls=%fused.2\n")
MORE = MORE.replace("LOOP_PRODUCT", "")


def test_a_collective_overlaps_if_a_loop_multiplies_meanwhile_and_crosses_hosts_by_its_groups():
    assert not any(each.overlaps for each in hlo.collectives(MORE))  # its loop only copies
    first, second = hlo.collectives(MULTIPLIES, per_host=2)
    assert (first.overlaps, first.between_hosts) == (True, 256)  # devices 0 and 2, 1 and 3
    assert (second.overlaps, second.between_hosts) == (False, 0)
    assert not any(each.between_hosts for each in hlo.collectives(MORE))


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("f32[1024] all-reduce(%a), replica_groups={}", 2 * 1 / 2 / 8),  # each device a part of the sum of its host
        ("f32[1024] all-gather(%a), replica_groups={}", 1 / 2 / 8),
        ("f32[1024] reduce-scatter(%a), replica_groups={}", 1),  # of the sixteen parts, the eight of the other host
        ("f32[1024] all-to-all(%a), replica_groups={}", 1 / 2),
        ("f32[1024] all-reduce(%a), replica_groups=[2,8]<=[16]", 0),
        ("f32[1024] all-reduce(%a), replica_groups=[8,2]<=[2,8]T(1,0)", 1),  # devices 0 and 8, 1 and 9, ...
        ("f32[1024] collective-permute(%a), source_target_pairs={{0,1},{7,8},{15,0}}", 1 / 8),
        ("f32[1024] collective-permute(%a), source_target_pairs={{0,8},{1,9},{9,8}}", 2 / 8),
        ("f32[1024] collective-permute(%a), source_target_pairs={{0,1},{1,0}}", 0),
    ],
)
def test_bytes_between_two_hosts_of_eight_devices_are_the_least_of_any_algorithm(line, sent):
    text = f"HloModule m, num_partitions=16\n\nENTRY %main (a: f32[1024]) -> f32[1024] {{\n  ROOT %r = {line}\n}}\n"
    (found,) = hlo.collectives(text, per_host=8)
    assert found.between_hosts == pytest.approx(sent * 4096)


def test_products_have_the_type_that_their_fusion_writes():
    assert [(each.result, each.size, each.times) for each in hlo.products(MORE)] == [("f32", 512, 1), ("bf16", 256, 1)]
    assert [each.factors for each in hlo.products(MORE)] == ["", "bf16"]


def test_copies_count_once_per_iteration():
    assert hlo.copies(MORE) == {"copy": hlo.Moved(12, 12 * 64), "transpose": hlo.Moved(0, 0)}


def test_traffic_counts_what_is_sliced_and_leaves_out_what_stays_on_the_chip():
    loop = 12 * (64 + 4 + 64 + 64 + 64)  # the slice, its index and the layer, then the copy
    rest = 2 * 256 + 512 + (64 + 256)  # results of the sums, the product alone, the fusion without %w
    assert hlo.traffic(MORE) == loop + rest


ASYNC = """
%wrapped.1 (p.1: f32[64], q.1: f32[64]) -> f32[64] {
  %p.1 = f32[64]{0} parameter(0)
  %q.1 = f32[64]{0} parameter(1)
  ROOT %sum.1 = f32[64]{0} add(%p.1, %q.1)
}

ENTRY %main.1 (a: f32[64], b: f32[64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %start = ((f32[64]{0}, f32[64]{0}), f32[64]{0}, u32[]) async-start(%a, %b), calls=%wrapped.1
  %later = ((f32[64]{0}, f32[64]{0}), f32[64]{0}, u32[]) async-update(%start)
  ROOT %done = f32[64]{0} async-done(%later)
}
"""
SLICED = """
ENTRY %main.1 (a: bf16[12,8,4], i: s32[], j: s32[]) -> bf16[1,8,4] {
  %a = bf16[12,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %j = s32[] parameter(2)
  START
  ROOT %done = bf16[1,8,4]{2,1,0:S(1)} slice-done(%start)
}
"""
DYNAMIC = (
    "%start = ((bf16[12,8,4]{2,1,0}, s32[], s32[], s32[]), bf16[1,8,4]{2,1,0:S(1)}, u32[]) "
    "dynamic-slice-start(%a, %i, %j, %j), dynamic_slice_sizes={1,8,4}"
)
STATIC = "%start = ((bf16[12,8,4]{2,1,0}), bf16[1,8,4]{2,1,0:S(1)}, u32[]) slice-start(%a), slice={[0:1], [0:8], [0:4]}"


def test_traffic_of_asynchronous_instructions_counts_once():
    assert hlo.traffic(ASYNC) == 3 * 256  # two operands and the result of the sum


@pytest.mark.parametrize("start", [DYNAMIC, STATIC])
def test_traffic_of_an_asynchronous_slice_is_the_slice(start):
    assert hlo.traffic(SLICED.replace("START", start)) == 64


def test_bytes_on_the_wire_are_a_ring_s():
    moved = {c.kind: c.moved for c in hlo.collectives(PROGRAM)}
    assert moved == {
        "collective-permute": 7 * 512,
        "all-reduce": 2 * 3 / 4 * 396,  # every part of the sum passes round once, and the results once more
        "all-gather": 3 * 16,  # each device passes on the three parts of others
        "reduce-scatter": 7 * 64,
    }


@pytest.mark.parametrize(
    ("shape", "size"), [("f32[]", 4), ("pred[3]{0}", 3), ("(f64[2]{0}, s8[5]{0}, u32[0]{0})", 21), ("bf16[2,2]", 8)]
)
def test_sizes_of_types(shape, size):
    assert hlo.size_of(shape) == size


def test_an_instruction_made_of_many_names_each_place_once():
    line = '%x = f32[] all-reduce(%a), metadata={op_name="jit(step)/(jvp()/psum:jvp()/psum:t(jvp())/psum)"}'
    assert hlo.origin_of(line) == "jit(step)/(jvp()/psum:t(jvp())/psum)"
    assert hlo.origin_of('op_name="jit(step)/t(jvp())/psum"') == "jit(step)/t(jvp())/psum"


@pytest.mark.slow
def test_the_step_on_eight_devices_reduces_gradients_and_shares_embeddings_once(tmp_path, capsys):
    """One gradient reduction as large as what is trained, one gather of embeddings, its reduce-scatter, scalars."""
    file = tmp_path / "out.json"
    arguments = [f"--config={SMALLEST}", "--batch=16", "--devices=8", f"--json={file}", "--method=clip"]
    assert command.main(["collectives", *arguments]) == 0
    found = json.loads(file.read_text())
    made = variants.build(SMALLEST, {"batch": 16, "method": "clip"})
    experiment = step.experiments.build(made.config, step.make_mesh(made, jax.devices()[:8]))
    gradients = 4 * counting.count_parameters(experiment)["trained"]
    bytes_of = {kind: sum(c["result"] * c["times"] for c in found if c["kind"] == kind) for kind in kinds(found)}
    embeddings = 3 * 16 * 64 * 4  # two views and a text of sixteen pairs, 64 wide
    assert bytes_of["all-gather"] == embeddings and bytes_of["reduce-scatter"] == embeddings // 8
    assert gradients <= bytes_of["all-reduce"] < 1.01 * gradients
    assert kinds(found) == {"all-reduce", "all-gather", "reduce-scatter"}
    shown = capsys.readouterr().out
    assert "on 8 devices" in shown and "sent per device" in shown


def kinds(found):
    return {c["kind"] for c in found}


def test_one_device_talks_to_nobody(capsys):
    assert command.main(["collectives", f"--config={SMALLEST}", "--devices=1"]) == errors.USAGE_ERROR
    assert "--devices=8" in capsys.readouterr().err
