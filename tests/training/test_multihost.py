"""Two processes as one run: its losses, the loss of a process, resuming on other machines, scores of dense tasks."""

import json
import re
import shutil
import signal
import sys
import time

import known_scores
import pytest
from launching import SMALLEST, environment, free_port, losses, started, wait_for_lines

MAIN = [sys.executable, "-m", "detailclip_jax.main", SMALLEST]


def two(workdir, cache, *flags):
    """Both processes, started."""
    address, variables = f"--coordinator=127.0.0.1:{free_port()}", environment(cache, JAX_NUM_CPU_DEVICES="4")
    here = [f"--workdir={workdir}", "--num_processes=2", address, *flags]
    return [started([*MAIN, *here, f"--process_id={index}"], variables) for index in (0, 1)]


def finished(runs):
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    assert {run.returncode for run in runs} == {0}, "\n".join(outputs)
    return outputs


def compare(found, expected, first):
    """Losses from step `first` on, to 1e-5."""
    steps = [step for step in found if step >= first]
    assert steps == list(range(first, max(expected) + 1))
    assert [found[step] for step in steps] == pytest.approx([expected[step] for step in steps], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_of_two_hosts_survives_one_of_them(tmp_path, victim):
    """1 x 8 devices trains 40 steps.  2 x 4: one is killed, the other ends by itself; both again; then on 1 x 2."""
    alone, workdir = tmp_path / "alone", tmp_path / "together"
    one = started([*MAIN, f"--workdir={alone}"], environment(tmp_path, JAX_NUM_CPU_DEVICES="8"))
    finished([one])
    expected = losses(alone)

    runs = two(workdir, tmp_path)
    wait_for_lines(workdir, 6, runs)
    runs[victim].kill()
    killed, survivor = time.monotonic(), runs[1 - victim]
    runs[victim].communicate()
    output, _ = survivor.communicate(timeout=60)
    assert time.monotonic() - killed < 60 and survivor.returncode not in (0, None)
    assert f"error: process {1 - victim} of 2 ended before the run was complete: it lost another process" in output
    assert "they resume from the last checkpoint" in output

    first, _ = finished(two(workdir, tmp_path, "--config.mesh.fsdp=8"))  # weights now spread over both processes
    resumed = int(first.split("resuming from the checkpoint of step ")[1].split()[0])
    assert resumed >= 4
    compare(losses(workdir), expected, 1)


@pytest.mark.slow
def test_a_checkpoint_of_two_hosts_goes_on_with_one(tmp_path):
    """Saved by 2 x 4 devices that share each copy of the state between them, resumed by 1 process of 2 and of 1."""
    alone, workdir = tmp_path / "alone", tmp_path / "together"
    one = started([*MAIN, f"--workdir={alone}"], environment(tmp_path, JAX_NUM_CPU_DEVICES="8"))
    finished([one])
    runs = two(workdir, tmp_path, "--config.mesh.fsdp=8")
    wait_for_lines(workdir, 6, runs)
    runs[0].send_signal(signal.SIGTERM)
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [128 + signal.SIGTERM] * 2, "\n".join(outputs)
    for devices in ("1", "2"):
        copy = tmp_path / devices
        shutil.copytree(workdir, copy)
        run = started([*MAIN, f"--workdir={copy}"], environment(tmp_path, JAX_NUM_CPU_DEVICES=devices))
        assert "resuming from the checkpoint" in run.communicate(timeout=600)[0] and run.returncode == 0
        compare(losses(copy), losses(alone), 1)


@pytest.mark.slow
def test_two_processes_cut_captions_as_one_does(tmp_path):
    """Of batches 2 and 3, one process alone would cut its part to fewer words than the other."""
    flags = ["--config.model.context_length=24", "--config.data.text_buckets=(12,16)", "--config.total_steps=4"]
    alone = started([*MAIN, f"--workdir={tmp_path}/alone", *flags], environment(tmp_path, JAX_NUM_CPU_DEVICES="8"))
    (expected,) = finished([alone])
    found, _ = finished(two(tmp_path / "together", tmp_path, *flags))
    programs = [re.findall(r"compiled .*(captions of up to \d+ tokens)", output) for output in (expected, found)]
    assert programs[0] == programs[1] == ["captions of up to 16 tokens", "captions of up to 24 tokens"]
    compare(losses(tmp_path / "together"), losses(tmp_path / "alone"), 1)


@pytest.mark.check
def test_two_processes_score_what_one_does_and_count_every_image_once(tmp_path):
    """Of five images one process has three and the other two; of one image the other has none."""
    pytest.importorskip("pycocotools")

    command = [sys.executable, "tests/known_scores.py", f"127.0.0.1:{free_port()}", "2"]
    runs = [started([*command, index], environment(tmp_path / "cache")) for index in "01"]
    alone = json.loads(known_scores.text())
    outputs = [each.communicate(timeout=300)[0] for each in runs]
    assert [each.returncode for each in runs] == [0, 0], outputs
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first == second == alone
    (scores, results), (of_masks, counts) = alone[0]
    assert 0 < scores["bbox_AP"] < 100 and len({one["image_id"] for one in results}) == 5
    assert 0 < of_masks["mIoU"] < 100 and sum(map(sum, counts[0])) + counts[3] == 5 * 48 * 48
