"""The scripts of launch/: this machine's for real, those of clusters against stand-ins for their commands."""

import os
import shutil
import signal
import subprocess

import jax
import pytest
import yaml
from launching import ROOT, SMALLEST, environment, losses, stopped

from detailclip_jax.config import run_config
from detailclip_jax.data.pipeline import open_pipeline, open_source
from detailclip_jax.training import experiment, mesh

CONFIG = f"{SMALLEST}:method=clip"
NUM_STEPS = 100_000
LONG = [CONFIG, f"--config.total_steps={NUM_STEPS}"]


@pytest.mark.check
def test_two_processes_equal_one_and_stop_together(tmp_path):
    """2 processes of 1 device = 1 process of 2 devices, to 1e-5; a signal stops both at one step, saved."""
    together = tmp_path / "together"
    code, output = stopped(["launch/local.sh", "2", *LONG], together, tmp_path)
    assert code == 128 + signal.SIGTERM, output
    for process in (0, 1):
        for module in ("doctor --launch=main", "main"):
            assert f"-m detailclip_jax.{module} " in output
        assert f"--num-processes=2 --process-id={process}" in output
    assert "2 processes are connected, 1 x cpu each" in output and "FAILED" not in output
    (line,) = (line for line in output.splitlines() if "saved at step" in line)
    step = int(line.split("saved at step ")[1].split()[0])
    assert (together / f"checkpoints/{step}").is_dir()
    found = losses(together)
    assert [found[step] for step in range(1, 5)] == pytest.approx(losses_on_two_devices(4), rel=1e-5)


def losses_on_two_devices(num_steps):
    """Of the first steps of the same run, in this process."""
    config = run_config.load(CONFIG.removeprefix("--config="))
    config.total_steps = NUM_STEPS
    made, found = experiment.build(config, mesh.make_mesh(jax.devices()[:2])), []
    state = made.init(config.seed)
    with open_pipeline(config, open_source(config)) as batches:
        for _ in range(num_steps):
            state, values = made.train_step(state, made.put(next(batches)))
            found.append(float(values["loss"]))
    return found


@pytest.mark.check
def test_a_preflight_that_fails_ends_before_the_run(tmp_path):
    command = ["launch/local.sh", "1", CONFIG, "--config.batch_size=7", f"--workdir={tmp_path}"]
    two_devices = environment(tmp_path, CPU_DEVICES="2")
    run = subprocess.run(command, cwd=ROOT, env=two_devices, capture_output=True, text=True)
    assert run.returncode == 2 and "batch_size 7 does not divide over 2 devices" in run.stderr
    assert "detailclip_jax.main" not in run.stdout


@pytest.mark.parametrize("arguments", [[], ["0"], ["two"], [CONFIG]])
def test_usage_of_local(arguments):
    result = subprocess.run(["launch/local.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, "usage: launch/local.sh N" in result.stderr) == (2, True)


def stand_ins(folder, **commands):
    """A folder of commands that bash finds first, and an environment with it."""
    for name, text in commands.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


@pytest.mark.check
def test_processes_end_with_the_one_that_fails(tmp_path):
    """Process 1 would sleep for a minute; it is ended five seconds after process 0."""
    fails = f'[[ "$*" == *--process-id=0* ]] && exit 2; echo $$ > {tmp_path}/pid; exec sleep 60'
    fake = stand_ins(tmp_path, py=fails) | {"PYTHON": "py", "PORT": "1"}
    run = subprocess.run(["launch/local.sh", "2", CONFIG], cwd=ROOT, env=fake, capture_output=True, timeout=30)
    assert run.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_interpreter_of_the_checkout_is_taken_where_python_lacks_the_package(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "launch/python.sh", tmp_path / "launch")
    script = ["bash", "-c", f'source {tmp_path}/launch/python.sh; echo "$python"']
    bare = stand_ins(tmp_path, python="exit 1")
    without = subprocess.run(script, env=bare, capture_output=True, text=True)
    assert without.returncode == 2 and "neither python nor" in without.stderr and "PYTHON=" in without.stderr
    stand_ins(tmp_path / ".venv/bin", python="exit 0")
    assert subprocess.run(script, env=bare, capture_output=True, text=True).stdout == f"{tmp_path}/.venv/bin/python\n"
    named = subprocess.run(script, env=bare | {"PYTHON": "/other"}, capture_output=True, text=True)
    assert named.stdout == "/other\n"


@pytest.mark.parametrize(("named", "module"), [({}, "main"), ({"COMMAND": "transfer"}, "transfer")])
def test_every_launch_file_runs_the_command_that_is_named(tmp_path, named, module):
    fake = stand_ins(tmp_path, srun='echo "$@"', gcloud='printf "%s\\n" "$@"')
    fake |= {"PYTHON": "echo", "PORT": "1", "SLURM_SUBMIT_DIR": str(ROOT), **named}
    for script in (["local.sh", "1"], ["slurm.sbatch"], ["tpu-pod.sh", "pod", "zone-a"]):
        command = [f"launch/{script[0]}", *script[1:], CONFIG]
        run = subprocess.run(command, cwd=ROOT, env=fake, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        check, train = (
            run.stdout.rindex(f"-m detailclip_jax.{name} ") for name in (f"doctor --launch={module}", module)
        )
        assert check < train


def test_slurm_checks_then_trains_and_queues_again_after_a_signal(tmp_path):
    log = tmp_path / "log"
    given = f'echo "$XLA_FLAGS" > {log}.flags; echo "$SRUN_CPUS_PER_TASK" > {log}.cores'
    ends = f'{given}; echo "srun $*" >> {log}; [[ "$*" != *detailclip_jax.main* ]] || exit 143'
    fake = stand_ins(tmp_path, srun=ends, scontrol=f'echo "scontrol $*" >> {log}')
    fake |= {"PYTHON": "py", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    fake |= {"XLA_FLAGS": "--mine=1"}
    run = subprocess.run(
        ["launch/slurm.sbatch", CONFIG, "--workdir=w"], cwd=ROOT, env=fake, capture_output=True, text=True
    )
    check, train, requeue = log.read_text().splitlines()
    assert check == f"srun --kill-on-bad-exit=1 py -u -m detailclip_jax.doctor --launch=main {CONFIG} --workdir=w"
    assert train == f"srun --kill-on-bad-exit=1 py -u -m detailclip_jax.main {CONFIG} --workdir=w"
    assert (run.returncode, requeue) == (143, "scontrol requeue 7")
    assert (tmp_path / "log.flags").read_text() == "--xla_gpu_enable_latency_hiding_scheduler=true --mine=1\n"
    assert (tmp_path / "log.cores").read_text() == "8\n"
    assert train in run.stdout
    assert subprocess.run(["launch/slurm.sbatch"], cwd=ROOT, env=fake, capture_output=True).returncode == 2


def test_slurm_runs_both_commands_in_a_container(tmp_path):
    fake = stand_ins(tmp_path, srun=f'printf "%s\\n" "$@" >> {tmp_path}/log')
    fake |= {"SLURM_SUBMIT_DIR": str(ROOT), "CONTAINER": "own.sqsh", "MOUNTS": "/data,/my runs"}
    subprocess.run(["launch/slurm.sbatch", CONFIG], cwd=ROOT, env=fake, check=True, capture_output=True)
    image = ["--container-image=own.sqsh", f"--container-mounts={ROOT}:{ROOT},/data,/my runs"]
    start = ["--kill-on-bad-exit=1", *image, f"--container-workdir={ROOT}", "python", "-u", "-m"]
    check, train = ["detailclip_jax.doctor", "--launch=main", CONFIG], ["detailclip_jax.main", CONFIG]
    assert (tmp_path / "log").read_text().splitlines() == [*start, *check, *start, *train]


def test_slurm_asks_for_the_paper_s_machine():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    for line in ("--nodes=4", "--ntasks-per-node=4", "--gres=gpu:4", "--signal=TERM@120", "--requeue"):
        assert f"#SBATCH {line}\n" in text


def test_a_tpu_pod_gets_one_command_for_every_host(tmp_path):
    fake = stand_ins(tmp_path, gcloud='printf "%s\\n" "$@"')
    flags = [CONFIG, "--config.method=a b"]
    run = subprocess.run(
        ["launch/tpu-pod.sh", "pod", "zone-a", *flags], cwd=ROOT, env=fake, capture_output=True, text=True
    )
    said, *arguments = run.stdout.splitlines()
    assert arguments[:7] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone-a", "--worker=all"]
    command = arguments[7].removeprefix("--command=")
    assert said == f"on every host of pod: {command}"
    check, train = command.removeprefix("cd detailclip_jax && ").split(" && ")
    given = f"--distributed {CONFIG} --config.method=a\\ b"
    assert check == f".venv/bin/python -u -m detailclip_jax.doctor --launch=main {given}"
    assert train == f".venv/bin/python -u -m detailclip_jax.main {given}"
    for wrong in ([], ["pod"], ["pod", CONFIG], ["--config=x", "zone", CONFIG]):
        assert subprocess.run(["launch/tpu-pod.sh", *wrong], cwd=ROOT, env=fake, capture_output=True).returncode == 2


def test_the_jobset_s_pods_find_each_other_and_run_both_commands(tmp_path):
    jobset = yaml.safe_load((ROOT / "launch/gke-jobset.yaml").read_text())
    name, (job,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    container = pods["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert pods["completionMode"] == "Indexed"
    assert env["XLA_FLAGS"] == "--xla_gpu_enable_latency_hiding_scheduler=true"
    assert int(env["JAX_NUM_PROCESSES"]) == pods["parallelism"] == pods["completions"]
    host, port = env["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}" and int(port) == container["ports"][0]["containerPort"]
    (number,) = (entry["valueFrom"] for entry in container["env"] if entry["name"] == "JAX_PROCESS_ID")
    assert "job-completion-index" in number["fieldRef"]["fieldPath"]
    fake = stand_ins(tmp_path, python='echo "ran $*"')
    assert env["COMMAND"] == "main"
    given = " ".join(container["args"])
    for module in ("main", "transfer"):
        command = [*container["command"], *container["args"]]
        run = subprocess.run(command, env=fake | {"COMMAND": module}, capture_output=True, text=True)
        said, check, train = run.stdout.splitlines()
        assert said == f"python -u -m detailclip_jax.{module} {given}"
        assert check == f"ran -u -m detailclip_jax.doctor --launch={module} {given}"
        assert train == f"ran -u -m detailclip_jax.{module} {given}"
