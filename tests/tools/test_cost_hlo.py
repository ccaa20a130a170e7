"""Collectives out of a program's text: written by hand, and of the real step on eight devices."""

import json
from pathlib import Path

import cost as command
import jax
import pytest
from costs import hlo
from costs.hlo import Collective

from detailclip_jax.benchmarks import counting, step, variants
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
