"""The command: what it says to mistakes, and a run that is killed, stopped and goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import QUICK

from detailclip_jax import main
from detailclip_jax.config import default
from detailclip_jax.config.command_line import check_names, with_recipe
from detailclip_jax.config.data_path import check_path_is_read
from detailclip_jax.main import VALUES, with_underscores
from detailclip_jax.runtime.metric_files import read_lines

ROOT = Path(__file__).parents[2]
SMALLEST = "tests/configs/smallest.py"
MEASURED = ("images_per_second", "data_wait")


def command(*flags):
    return [sys.executable, "-m", "detailclip_jax.main", *flags]


def environment():
    """One CPU device, and little compilation."""
    return os.environ | QUICK | {"PYTHONPATH": str(ROOT)}


def finished(*flags):
    return subprocess.run(command(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


MISTAKES = [
    ([], "--config is missing. For example"),
    ([SMALLEST], f"--config is missing; write --config={SMALLEST}"),
    (["--config=~/none.py"], f"unknown config file '{Path.home()}/none.py'"),
    (["--config=configs/sticker.py"], "did you mean 'configs/stickers.py'?"),
    (["--config", f"{SMALLEST}:metod=clip"], "unknown config argument 'metod'; known: method"),
    ([f"--config={SMALLEST}", "--config.batchsize=4"], "did you mean 'batch_size'?"),
    ([f"--config={SMALLEST}", "--config.batch_size=many"], "--config.batch_size=many: expected a whole number"),
    ([f"--config={SMALLEST}", "--config.batch_size=None"], "--config.batch_size=None: expected a whole number"),
    ([f"--config={SMALLEST}", "--config.data=records"], "--config.data is a group, not a value: 'records'; set"),
    (
        [f"--config={SMALLEST}", "--config.data={'source': 'records'}"],
        "set its fields, --config.data.FIELD=VALUE; known: caption",
    ),
    ([f"--config={SMALLEST}", "--config.evaluators=retrieval"], "or a dictionary: \"{'FIELD': VALUE}\""),
    (
        [f"--config={SMALLEST}", "--config.optimizer.part_rates={'text': 'x'}"],
        "part_rates.text 'x' must be a number",
    ),
    ([f"--config={SMALLEST}", "--config.views.crops={'large': 3}"], "--config.views.crops is a group, not a value"),
    ([f"--config={SMALLEST}", "--config.evaluators={1: 2}"], "evaluators is a group, not a value: '{1: 2}'"),
    ([f"--config={SMALLEST}", "--config.evaluators={'retrieval': 3}"], "evaluators.retrieval is 3: options are a"),
    ([f"--config={SMALLEST}", "--config.total_steps=none"], "--config.total_steps=none: expected a whole number"),
    ([f"--config={SMALLEST}", "--config.model.scan=maybe"], "--config.model.scan=maybe: expected true or false"),
    ([f"--config={SMALLEST}", "--config.views.crops.large.size=x"], "--config.views.crops.large.size=x"),
    ([f"--config={SMALLEST}", "--worksir=x"], "did you mean '--workdir'?"),
    (
        ["--config=configs/transfer/ade20k_linear.py"],
        "write python -m detailclip_jax.transfer --config=configs/transfer/ade20k_linear.py",
    ),
    (["--batch-size=32"], "unknown flag --batch-size; did you mean '--config.batch_size'?"),
    (["--steps=4"], "unknown flag --steps; did you mean '--config.total_steps'?"),
    (["--data.pth=x"], "unknown flag --data.pth; did you mean '--config.data.path'?"),
    (["--confg=configs/stickers.py"], "unknown flag --confg; did you mean '--config'?"),
    ([f"--config={SMALLEST}", "--confg.batch_size=8"], "did you mean '--config'? (with .batch_size)"),
    ([f"--config={SMALLEST}", "--num_processes=2"], "--coordinator, --num-processes and --process-id must be given"),
    (
        [f"--config={SMALLEST}:method=clip", "--config.losses.weights.patch=0.5"],
        "losses.weights.patch 0.5: method clip has no such term; its weights are clip, and those of terms",
    ),
    ([f"--config={SMALLEST}", "--config.losses.weights.cls=inf"], "losses.weights.cls inf must be a finite number"),
    ([f"--config={SMALLEST}", "--config.optimizer.learning_rate=1e308"], "optimizer.learning_rate 1e+308 must be a"),
    (
        [f"--config={SMALLEST}", "--config.optimizer.part_rates={'text': 1e308}"],
        "optimizer.part_rates.text 1e+308 must be a finite number of float32, at most 3.40282e+38",
    ),
    ([f"--config={SMALLEST}", "--config.model.size=B/15"], "unknown model.size 'B/15'; did you mean 'B/16'?"),
]


FIELDS = [f"--config={SMALLEST}", "--help-config"]
EACH = """
import ast, os, sys
from detailclip_jax import main, pretraining
for number, flags in enumerate(ast.literal_eval(sys.stdin.read())):
    if not os.fork():
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[1]}/{number}-{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv[1:] = flags
        try:
            main.command()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # no second of clearing up
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(status, output, errors) of the command for MISTAKES and FIELDS, each in a fork of a process with all imports."""
    folder, given = tmp_path_factory.mktemp("ended"), repr([*(flags for flags, _ in MISTAKES), FIELDS])
    run = [sys.executable, "-W", "ignore", "-c", EACH, folder]  # jax warns of forks
    done = subprocess.run(run, cwd=ROOT, env=environment(), input=given, capture_output=True, text=True, timeout=300)
    said = lambda number: [(folder / f"{number}-{stream}").read_text() for stream in (1, 2)]
    return [(int(code), *said(number)) for number, code in enumerate(done.stdout.split())]


@pytest.mark.parametrize(("number", "message"), [*enumerate(message for _, message in MISTAKES)])
def test_mistakes_in_flags_get_a_message(ended, number, message):
    code, _, errors = ended[number]
    assert code == 2 and errors.startswith("error: ") and message in errors, MISTAKES[number]
    assert "Traceback" not in errors


def test_a_field_of_the_config_at_hand_without_config_is_recognised():
    flags = ["transfer", "--config=configs/transfer/stickers_detection.py", "--data.num_val=8"]
    with pytest.raises(ValueError, match=r"--data\.num_val; did you mean '--config\.data\.num_val'\?"):
        check_names(flags, VALUES)


def test_a_path_that_stickers_would_ignore_is_refused():
    data = default().data
    data.source, data.path = "stickers", "runs/mine"
    with pytest.raises(ValueError, match=r"'runs/mine' is not read .*add --config\.data\.source=records"):
        check_path_is_read(data, ["data.path"])
    check_path_is_read(data, [])  # the config's own path
    for path in ("records:runs/mine", "stickers:@1,records:runs/mine@1"):
        data.path = path
        check_path_is_read(data, ["data.path"])


def test_the_fields_are_listed_with_meaning_and_source(ended):
    code, output, errors = ended[-1]
    assert code == 0 and not errors
    assert "data.held_out = 0\n    examples held out of training" in output
    assert "batch_size = 8 (default: 4096)" in output


@pytest.mark.parametrize("flags, status", [([], 3), (["--helpfull"], 3), (["--help"], 0)])
def test_a_config_that_ends_the_program_gives_its_own_status(tmp_path, flags, status):
    """`--help` alone does not run the config file."""
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(3)\n")
    assert finished(f"--config={tmp_path}/ends.py", *flags).returncode == status


def test_the_promised_field_method_brings_its_recipe():
    argv = ["main", "--config", SMALLEST, "--config.seed=1", "--config.method=clip"]
    assert with_recipe(argv, SMALLEST)[2:] == [f"{SMALLEST}:method=clip", *argv[3:]]
    assert with_recipe(["main", f"--config={SMALLEST}"], SMALLEST) == ["main", f"--config={SMALLEST}"]
    joined = ["main", f"--config={SMALLEST}", "--config.method", "clip"]
    assert with_recipe(joined, SMALLEST) == ["main", f"--config={SMALLEST}:method=clip", *joined[2:]]


def test_flags_may_be_spelled_with_dashes_as_those_of_other_commands():
    given = ["--num-processes=2", "--process-id", "--num_processes=2", "--config.data.path=a-b", "--no-flag", "-x-y"]
    expected = ["--num_processes=2", "--process_id", *given[2:]]
    assert [with_underscores(argument) for argument in given] == expected


def test_help_explains_without_importing_jax():
    run = [sys.executable, "-X", "importtime", "-m", "detailclip_jax.main", "--help"]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert result.returncode == 0 and "resumes a stopped run" in result.stdout
    assert result.stdout.startswith("usage: python -m detailclip_jax.main ") and "--num-processes N" in result.stdout
    assert "ml_collections" in imported and "jax" not in imported


def toy(workdir, steps=100_000):
    """The command of a run whose step is compiled at once, by default of one that a test ends."""
    return [sys.executable, "tests/toy.py", str(workdir), str(steps)]


def stopped(workdir, number, lines):
    """Starts the run, sends the signal once metrics.jsonl has so many lines, returns (exit code, output)."""
    process = subprocess.Popen(
        toy(workdir),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while num_lines(workdir) < lines and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def killed_while_saving(workdir):
    """Starts the run and kills it while a checkpoint after the first one is unfinished; False if it was too fast."""
    process = subprocess.Popen(toy(workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (unfinished(workdir) and finished_steps(workdir)):
        time.sleep(0.001)
    process.kill()
    process.wait()
    return bool(unfinished(workdir))


def finished_steps(workdir):
    return [folder for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]


def unfinished(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def num_lines(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def trajectory(workdir):
    """Every logged number that training itself made; each step stands once."""
    lines = read_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.mark.check
def test_a_run_killed_while_it_saves_and_then_stopped_goes_on_bit_for_bit(tmp_path):
    """kill -9 while a checkpoint is written, on again, then SIGTERM: the numbers are those of an undisturbed run.

    `make slow` does the same to the real step (tests/survive.py).
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert any(killed_while_saving(broken) for _ in range(5))
    (name,), killed_at = [folder.name for folder in unfinished(broken)], num_lines(broken)
    code, output = stopped(broken, signal.SIGTERM, lines=killed_at + 5)
    assert code == 128 + signal.SIGTERM, output
    assert f"*** WARNING: removed {name} in " in output and not unfinished(broken)
    assert "resuming from the checkpoint of step" in output

    reached = num_lines(broken)
    assert killed_at < reached
    assert f"SIGTERM: saved at step {reached} of 100000; the same command resumes from there" in output
    assert (broken / f"checkpoints/{reached}").is_dir()
    subprocess.run(toy(whole, reached), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, check=True)
    assert trajectory(broken) == trajectory(whole)


@pytest.mark.check
def test_a_run_ends_and_goes_on_for_more_steps(tmp_path):
    """The command with a real step: to its end, and from its last checkpoint to a later one."""
    given = f"--config={SMALLEST}:method=clip", f"--workdir={tmp_path}", "--config.log_every=1"
    for steps in (2, 4):
        run = finished(*given, f"--config.total_steps={steps}")
        assert run.returncode == 0, run.stderr
        assert ("resuming from the checkpoint of step 2" in run.stdout + run.stderr) == (steps == 4)
        assert len(trajectory(tmp_path)) == steps and (tmp_path / f"checkpoints/{steps}").is_dir()


def test_the_command_speaks_before_it_imports_jax(monkeypatch, capsys):
    """Importing jax and opening the data takes seconds, on a busy machine a minute."""
    said = []
    monkeypatch.setattr(main, "join_processes", lambda: said.append(capsys.readouterr().out) or sys.exit(7))
    monkeypatch.setattr(sys, "argv", ["main", "--config=configs/stickers.py"])
    assert main.main(["main"]) == 7
    assert said == ["configs/stickers.py: importing jax and opening the data ...\n"]
