"""What the doctor says of a machine, an install, data, and a launch."""

import importlib.metadata
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import app
from jax.experimental import multihost_utils
from launching import ROOT, SMALLEST, environment
from packaging.requirements import Requirement
from test_detection_run import tiny as tiny_detection
from test_segmentation_step import tiny as tiny_segmentation
from tiny import TWO_BLOCKS, check_names, tiny_config

from detailclip_jax import doctor, main, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.data import labelled
from detailclip_jax.dense import runs
from detailclip_jax.dense.dense_loop import loop_task
from detailclip_jax.dense.segmentation.segmentation_task import SEGMENTATION
from detailclip_jax.pretraining import PRETRAINING
from detailclip_jax.training import checkpoint, experiment, preflight, sharding
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.session import Run


def device(platform="cpu", kind="cpu", memory=None):
    limit = None if memory is None else {"bytes_limit": memory}
    return types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: limit)


def test_devices_are_named_and_a_card_that_jax_misses():
    assert doctor.devices([device("gpu", "NVIDIA A100", 40 * 2**30)] * 4, True) == "4 x NVIDIA A100, 40 GiB each"
    assert 'pip install -U "jax[cuda12]"' in doctor.devices([device()], True)
    assert "not for ViT-B/16" in doctor.devices([device()], False)


def test_little_disk_is_said():
    assert "takes 9.6 GiB for 4 checkpoints" in doctor.disk(9 * 2**30)
    assert "checkpoints" not in doctor.disk(10 * 2**30)


def test_a_requirement_is_met_missing_or_of_another_version():
    version = importlib.metadata.version("numpy")
    assert doctor._problem(Requirement("numpy>=1.0")) == ""
    assert doctor._problem(Requirement("numpy<1.0")) == f"numpy {version} (needs <1.0)"
    assert doctor._problem(Requirement("no-such-package-here")) == "no-such-package-here"


def test_an_extra_of_a_package_needs_its_packages_too(monkeypatch):
    needs = {"numpy": ['absent-plugin; extra == "gpu"', 'other; extra == "dev"', "scipy"]}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs.get(name))
    assert doctor._missing([Requirement("numpy[gpu]>=1.0")]) == ["absent-plugin"]
    assert doctor._missing([Requirement("numpy>=1.0")]) == []


def test_extras_are_told_from_what_is_always_needed(monkeypatch):
    given = [
        "numpy>=1.0",
        'absent-one; extra == "demo"',
        'numpy>=1.0; extra == "dev"',
        "absent-two; python_version<'3'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: given)
    names = types.SimpleNamespace(get_all=lambda _: ["demo", "dev"])
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: names)
    assert doctor.requirements() == {"": [], "demo": ["absent-one"], "dev": []}


@pytest.mark.parametrize(("missing", "code"), [({"": [], "demo": ["a"]}, 0), ({"": ["jax"], "demo": []}, 1)])
def test_the_report_has_a_line_for_each(monkeypatch, capsys, missing, code):
    monkeypatch.setattr(doctor, "requirements", lambda: missing)
    assert doctor.main([]) == code
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {"versions", "code", "devices", "host", "disk", "programs", "packages", "[demo]"}
    assert lines["devices"].startswith("8 x cpu") and f"jax {jax.__version__}" in lines["versions"]
    assert ("MISSING: jax" in lines["packages"]) == bool(code)
    assert lines["[demo]"].endswith("ready" if code else "not installed: a (pip install 'detailclip_jax[demo]')")


@pytest.mark.parametrize(("num", "text"), [(1, "1 core, "), (2, "2 cores, ")])
def test_the_cores_of_the_host_are_counted(monkeypatch, num, text):
    monkeypatch.setattr(doctor, "usable_cores", lambda: num)
    assert dict(doctor.description())["host"].startswith(text)


def test_compiled_programs_are_counted(tmp_path):
    (tmp_path / "a-cache").write_bytes(bytes(3 * 2**20))
    assert doctor.programs(str(tmp_path)) == f"1 compiled program, 3 MiB, in {tmp_path} (can be deleted)"
    assert "compiled anew" in doctor.programs(None)


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda'\nmore"), AssertionError()])
def test_a_machine_on_which_jax_finds_no_device_is_told_why(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "requirements", lambda: {"": []})
    monkeypatch.setattr(jax, "local_devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert doctor.main([]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("devices"))
    reason = "Unable to initialize backend 'cuda'" if str(error) else "none of the platforms"
    assert f"NONE that jax can use: {reason}" in line and line.endswith("(JAX_PLATFORMS=cuda)")


def test_data_sets_that_are_ready_are_counted(monkeypatch, capsys, tmp_path):
    sets = [
        labelled.Readiness("pets", True, 3669, 3669, ""),
        labelled.Readiness("sun397", False, None, 19850, "get it"),
    ]
    monkeypatch.setattr(labelled, "ready", lambda folder: sets[:1] if folder == str(tmp_path) else [])
    monkeypatch.setattr(labelled, "ready_choices", lambda folder: sets[1:])
    assert doctor.main(["--data", f"--data-dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "ready   pets                    3,669 of    3,669" in out and "get it" in out
    assert f"1 of 2 sets are ready in {tmp_path}" in out
    assert doctor.main(["--data", "--data-dir=elsewhere"]) == 1


def test_a_folder_whose_name_is_not_utf_8_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(labelled, "ready", lambda folder: [])
    monkeypatch.setattr(labelled, "ready_choices", lambda folder: [])
    assert doctor.main(["--data", "--data-dir=sets\udcff"]) == 1
    assert r"0 of 0 sets are ready in sets\udcff" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lanch", "unknown flag --lanch; did you mean '--launch'?"),
        ("--data-dir=elsewhere", "--data-dir=elsewhere is the folder that --data checks; add --data"),
    ],
)
def test_wrong_flags_are_refused(flag, message, capsys):
    assert doctor.main([flag]) == 2
    assert message in capsys.readouterr().err


def smallest():
    config = tiny_config("clip")
    config.data.source, config.model.vocab_size = "stickers", 49408
    config.data.stickers.num_scenes = 64
    config.evaluate_at_end = False  # evaluators draw scenes of their own
    return config


def test_a_check_that_is_interrupted_ends_without_a_traceback(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "join_processes", interrupt)
    monkeypatch.setattr(main, "from_flags", lambda command: {})
    for command in (main.preflight, main.main):
        assert command(["main"]) == 130
        assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_workdir_that_cannot_be_made_is_named(monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/runs")

    monkeypatch.setattr(main, "join_processes", lambda: None)
    monkeypatch.setattr(main, "from_flags", refuse)
    for command in (main.preflight, main.main):
        assert command(["main"]) == 1
        assert capsys.readouterr().err == "error: Permission denied: /runs\n"


WRONG = {
    "the config of transfer": ("main", "--config=configs/transfer/stickers_linear.py", ["transfer", "segmentation"]),
    "a config of main": ("transfer", SMALLEST, ["main", "clip"]),
    "a typo": ("trasfer", SMALLEST, ["'trasfer'", "'transfer'", "main"]),
    "the name of the console script": ("train", SMALLEST, ["'train'", "'main'"]),
    "nothing": ("", SMALLEST, ["''", "main", "transfer"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_wrong_command_for_a_config_is_refused_before_anything_else(wrong, monkeypatch, capsys):
    command, config, words = WRONG[wrong]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["doctor", config])
    monkeypatch.setattr(main, "_CONFIG", types.SimpleNamespace(value=run_config.load(config.removeprefix("--config="))))
    monkeypatch.setattr(main, "join_processes", lambda: pytest.fail("waits for the other processes"))
    assert main.preflight(["doctor"], command) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1
    check_names(said.err, *words)


@pytest.mark.check
def test_the_command_doctor_refuses_the_wrong_command_for_a_config(tmp_path):
    _, config, words = WRONG["the config of transfer"]
    workdir = tmp_path / "run"
    connects = ["--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=1"]  # nobody is there: it would wait
    result = subprocess.run(
        [sys.executable, "-m", "detailclip_jax.doctor", "--launch=main", config, f"--workdir={workdir}", *connects],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "") and not workdir.exists()
    assert len(result.stderr.strip().splitlines()) == 1
    check_names(result.stderr, *words)


LAUNCHES = [
    (["--launch"], None, []),
    (["--launch", "--config=c"], None, ["--config=c"]),
    (["--launch", "main", "--config=c"], "main", ["--config=c"]),
    (["--config=c", "--launch", "transfer"], "transfer", ["--config=c"]),
    (["--launch=main", "--config=c", "other"], "main", ["--config=c", "other"]),
    (["--launch=", "--config=c"], "", ["--config=c"]),
    (["--launch", "main", "--launch=transfer"], "transfer", []),
]


@pytest.mark.parametrize(("given", "command", "left"), LAUNCHES)
def test_the_command_of_a_launch_may_be_a_word_of_its_own(monkeypatch, given, command, left):
    def preflight(argv, command):
        found.append((command, argv[1:]))
        return 7

    found = []
    monkeypatch.setattr(sys, "argv", ["doctor"])
    monkeypatch.setattr(main, "preflight", preflight)
    monkeypatch.setattr(app, "run", lambda command, flags_parser: sys.exit(command(sys.argv)))
    with pytest.raises(SystemExit, match="7"):
        doctor.main(given)
    assert found == [(command, left)]


@pytest.mark.check
def test_a_launch_that_can_go(capsys, tmp_path):
    assert preflight.run(lambda: pretraining.prepare(smallest(), tmp_path / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = [line for line in lines if line.startswith("ok ")]
    assert [line.split()[1] for line in checks] == [
        "processes",
        "mesh",
        "start",
        "batch",
        "data",
        "memory",
        "workdir",
        "shared",
    ]
    assert "8 pairs: 1 per device" in lines[-5] and "64 examples, the last image" in lines[-4]
    assert not list(tmp_path.iterdir())


@pytest.mark.check
@pytest.mark.parametrize(
    "config",
    [tiny_segmentation(), pytest.param(tiny_detection(), marks=pytest.mark.slow)],
    ids=["segmentation", "detection"],
)
def test_a_launch_of_a_dense_task_that_can_go(config, capsys, tmp_path):
    assert preflight.run(lambda: runs.prepare(config, tmp_path / "run")) == 0
    found = dict(line.removeprefix("ok").split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-9:])
    assert list(found) == ["processes", "mesh", "start", "batch", "data", "evaluation", "memory", "workdir", "shared"]
    assert found["start"].startswith("from scratch") and found["batch"] == "8 images: 1 per device"
    assert found["evaluation"].startswith("stickers: 6 images, the last one 4")
    assert "activations" in found["memory"]
    assert not list(tmp_path.iterdir())


@pytest.mark.check
def test_the_memory_of_a_dense_task_grows_with_the_batch_and_with_what_is_trained():
    def activations(head, **changes):
        config = tiny_segmentation(head, **changes)
        built = runs.build(config, make_mesh(jax.devices()[:1]))
        return preflight.estimate(Run(config, None, built, None, None, loop_task(SEGMENTATION)))["activations"]

    frozen, all_of_it = activations("linear"), activations("linear", **{"encoder.frozen": False})
    assert 0 < frozen < all_of_it
    assert activations("linear", batch_size=16) == pytest.approx(2 * frozen, rel=0.1)


@pytest.fixture
def activations_are_not_counted(monkeypatch):
    """Their count traces the whole step."""
    monkeypatch.setattr(preflight, "activation_bytes", lambda plan: 0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.usefixtures("activations_are_not_counted")
def test_gradients_are_counted_of_the_parameters_that_are_trained(frozen):
    config = tiny_segmentation("linear", **{"encoder.frozen": frozen})
    built = runs.build(config, make_mesh(jax.devices()[:1]))
    params = dict(built.state_shapes.params)
    trained = {name: tree for name, tree in params.items() if name != "image"} if frozen else params
    found = preflight.estimate(Run(config, None, built, None, None, loop_task(SEGMENTATION)))["gradients"]
    assert found == sharding.total_bytes(trained) > 0


@pytest.mark.usefixtures("activations_are_not_counted")
def test_a_frozen_patch_embedding_has_no_gradients():
    config = tiny_config("clip")
    assert config.model.freeze_patch_embed
    params = plan(config).experiment.state_shapes.params
    expected = sharding.total_bytes(params) - sharding.total_bytes(params["image"]["patch_embed"])
    assert preflight.estimate(plan(config))["gradients"] == expected


@pytest.mark.usefixtures("activations_are_not_counted")
def test_a_folder_that_was_there_before_a_launch_stays(tmp_path):
    (tmp_path / "runs").mkdir()
    assert preflight.run(lambda: pretraining.prepare(smallest(), tmp_path / "runs/more/run")) == 0
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.mark.usefixtures("activations_are_not_counted")
def test_a_workdir_of_another_run_is_refused_as_main_refuses_it(tmp_path):
    run_config.claim_workdir(tmp_path, smallest())
    other = smallest()
    other.seed = 7
    with pytest.raises(ValueError, match=r"another config(?s:.*)seed: 0 in the workdir, 7 now"):
        preflight.run(lambda: pretraining.prepare(other, tmp_path))


@pytest.mark.usefixtures("activations_are_not_counted")
def test_each_check_that_fails_is_named(capsys, tmp_path, monkeypatch):
    config = smallest()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(preflight, "device_memory", lambda mesh: 1000)
    assert preflight.run(lambda: pretraining.prepare(config, tmp_path / "file")) == 1
    said = capsys.readouterr()
    failed = [line.split()[1] for line in said.out.splitlines() if line.startswith("FAILED")]
    assert failed == ["memory", "workdir", "shared"]
    assert "process 0: memory: ValueError: at least" in said.err and "--config.accumulation=2" in said.err
    assert "process 0: workdir: FileExistsError" in said.err


def test_a_disk_without_room_for_a_checkpoint_fails(tmp_path, monkeypatch):
    shapes = {"kernel": jax.ShapeDtypeStruct((2**20, 4), np.float32)}
    built = types.SimpleNamespace(state_shapes=shapes)
    plan = Run(smallest(), tmp_path, built, None, None, None)
    free = iter([16 * 2**20, 15 * 2**20])
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=next(free)))
    assert preflight.workdir(plan).text == f"{tmp_path} is writable; 16 MiB are free, and a checkpoint takes 16"
    with pytest.raises(OSError, match="15 MiB are free, and a checkpoint takes 16: free disk space, or choose another"):
        preflight.workdir(plan)


def test_processes_that_found_different_things_fail(capsys, tmp_path, monkeypatch):
    found = np.array([[1, 5], [1, 6]], np.int64).view(np.int32)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: found)
    assert not preflight.everywhere("data", lambda: preflight.Finding("read", 5))
    assert "FAILED  data       read; it differs between processes: [5, 6]" in capsys.readouterr().out


def plan(config, devices=1, fsdp=1):
    built = experiment.build(config, make_mesh(jax.devices()[:devices], fsdp))
    return Run(built.config, None, built, None, None, PRETRAINING)


@pytest.mark.usefixtures("activations_are_not_counted")
def test_the_estimate_of_memory_counts_state_gradients_and_gathered_weights():
    config = tiny_config("clip")
    config.model.freeze_patch_embed, config.model.custom = False, TWO_BLOCKS
    alone = plan(config)
    parts, shapes = preflight.estimate(alone), alone.experiment.state_shapes
    assert parts["state"] == sharding.total_bytes(shapes) and parts["weights"] == 0
    assert parts["gradients"] == sharding.total_bytes(shapes.params)
    divided = preflight.estimate(plan(config, 8, 8))
    assert divided["state"] < parts["state"] / 4 and divided["weights"] == parts["gradients"]
    config.model.scan = True
    by_layer = preflight.estimate(plan(config, 8, 8))
    assert by_layer["weights"] < divided["weights"] and by_layer["gradients"] < divided["gradients"]


@pytest.mark.check
def test_the_estimate_of_memory_counts_the_activations_of_a_chunk():
    config = tiny_config("clip")
    whole = preflight.estimate(plan(config))["activations"]
    config.accumulation = 2
    assert 0.3 * whole < preflight.estimate(plan(config))["activations"] < 0.7 * whole


@pytest.mark.slow
def test_recomputation_of_stacked_blocks_that_gather_their_weights_is_counted():
    config = tiny_config("clip")
    config.model.custom, config.model.scan = TWO_BLOCKS, True
    by_layer = preflight.activation_bytes(plan(config, 8, 8))
    config.model.remat = "dots"  # what stacked blocks that gather their weights do in place of "none"
    assert preflight.activation_bytes(plan(config, 8, 8)) == by_layer > 0


@pytest.mark.check
def test_a_block_of_the_whole_batch_s_logits_is_no_matter_for_a_device_s_rows():
    config = tiny_config("clip")
    config.losses.clip_block = config.batch_size
    assert preflight.activation_bytes(plan(config, 4)) > 0


@pytest.mark.check
def test_full_rematerialisation_keeps_less():
    config, kept = tiny_config("clip"), {}
    config.model.size = "tiny"
    for policy in ("none", "full"):
        config.model.remat = policy
        kept[policy] = preflight.activation_bytes(plan(config))
    assert kept["full"] < kept["none"] / 2
