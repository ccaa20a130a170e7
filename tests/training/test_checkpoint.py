"""Checkpoints: round trips, retention, damage, and loading without a run."""

import functools
import gc
import json
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import check_names

from detailclip_jax import config as base
from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.config.run_config import to_json
from detailclip_jax.runtime.metric_files import NonFiniteError
from detailclip_jax.training import adopted_config, checkpoint, checkpoint_manifest, experiment
from detailclip_jax.training import state_checksums as sums
from detailclip_jax.training.checkpoint import CheckpointError, Checkpoints, StorageError, load
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.state_checksums import checksums
from detailclip_jax.training.workdirs import steps_in


@struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


WHOLE = P()
ROOT = Path(__file__).parents[2]


def sharding(devices, spec=WHOLE):
    return NamedSharding(make_mesh(jax.devices()[:devices]), spec)


def state_of(seed=0, devices=1, spec=WHOLE):
    kernel = np.random.default_rng(seed).standard_normal((64, 128)).astype(np.float32)
    zeros = np.zeros(8, np.float32)
    state = State(np.int32(seed), {"kernel": kernel, "half": kernel.astype(jnp.bfloat16)}, (zeros, ()))
    return jax.device_put(state, jax.tree.map(lambda x: sharding(devices, spec if x.ndim else P()), state))


def target_of(state, devices=1):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(devices)), state)


def save(checkpoints, steps, scores=None):
    for step in steps:
        checkpoints.save(step, state_of(step), {"examples": 10 * step}, {"config": "{}"})
        if scores and step in scores:
            checkpoints.score(step, scores[step])
    checkpoints.wait()


@pytest.fixture
def opened(tmp_path):
    """Opens Checkpoints of one workdir, with its warnings in a list, and closes them at the end."""
    made = []

    def open_again(**options):
        warnings = []
        made.append(Checkpoints(tmp_path, warn=warnings.append, **options))
        return made[-1], warnings

    yield open_again
    for checkpoints in made:
        checkpoints.close()


def largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_bit(file):
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def assert_equal(state, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, other)


def test_a_save_that_fails_in_the_background_is_known_before_the_next_one(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_manifest, "write", full)
    store = Checkpoints(tmp_path)
    store.save(1, state_of(), {"examples": 8}, {"config": "{}"})
    while store._manager.is_saving_in_progress():
        time.sleep(0.01)
    with pytest.raises(StorageError, match="No space left on device"):
        store.check()


FULL_DISK = """
import pathlib, resource, sys
import numpy as np
from detailclip_jax.training.checkpoint import Checkpoints, StorageError
from detailclip_jax.training.train_state import TrainState

params = {f"{n}": np.random.default_rng(n).random((50, 100)) for n in range(200)}
store = Checkpoints(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
store.save(1, TrainState(np.int32(0), params, {}, {}, (), {}, np.zeros(2, np.uint32)), {"examples": 8}, {})
try:
    store.wait()
except StorageError as error:
    print(error)  # not a traceback: the writer's threads may print their own ones in the middle of its lines
"""


def test_a_full_disk_is_named_and_the_next_start_removes_what_is_left(tmp_path):
    """A limit on the size of a file makes writes fail as a full disk does, in the middle of some hundred arrays."""
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True)
    check_names(run.stdout, "a checkpoint cannot be written: ", "there is no checkpoint. Free disk space")
    assert steps_in(tmp_path / "checkpoints") == []
    Checkpoints(tmp_path).close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_abandoned_checkpoint_does_not_get_its_final_name(tmp_path, monkeypatch):
    write, remove, store = checkpoint_manifest.write, shutil.rmtree, Checkpoints(tmp_path)

    def write_while_it_is_removed(folder, *arguments):
        monkeypatch.setattr(
            checkpoint.shutil, "rmtree", lambda folder, **options: remove(folder / "state", ignore_errors=True)
        )
        store.abandon()
        write(folder, *arguments)

    monkeypatch.setattr(checkpoint_manifest, "write", write_while_it_is_removed)
    store.save(1, state_of(), {"examples": 8}, {"config": "{}"})
    with pytest.raises(StorageError, match="step 1 was abandoned"):
        store.wait()
    assert steps_in(tmp_path / "checkpoints") == []


def test_no_save_begins_without_room_for_the_state(opened, monkeypatch):
    state = state_of()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=49_000))
    checkpoints, _ = opened()
    assert checkpoint.room(checkpoints.folder, state) == (49_000, 4 + 64 * 128 * 6 + 8 * 4)
    with pytest.raises(StorageError, match=r"^step 1 is not saved: .* has 0 MiB free, and a checkpoint takes 0\nIn "):
        checkpoints.save(1, state, {}, {})
    assert checkpoints.steps() == []


@pytest.mark.parametrize("devices", [1, 4])
def test_round_trip_onto_another_number_of_devices(opened, devices):
    state = state_of(seed=3, devices=8)
    checkpoints, _ = opened()
    checkpoints.save(3, state, {"examples": 96}, {"config": "{}", "git_revision": "abc"})
    checkpoints.wait()
    restored = checkpoints.restore(target_of(state, devices))
    assert_equal(restored.state, state)
    assert restored.state.params["kernel"].sharding == sharding(devices)
    assert (restored.step, restored.data) == (3, {"examples": 96})
    assert restored.run == {"config": "{}", "git_revision": "abc"}


def test_empty_workdir_restores_nothing(opened):
    assert opened()[0].restore(target_of(state_of())) is None


def test_keeps_the_last_and_the_best(opened):
    checkpoints, _ = opened(max_to_keep=2, best_metric="top1")
    save(checkpoints, range(1, 6), {2: {"top1": 0.9}, 3: {"top1": float("nan")}, 4: {"top1": 0.1}})
    assert checkpoints.steps() == [2, 4, 5]


def test_retention_holds_over_a_restart(opened):
    save(opened(max_to_keep=1, best_metric="top1")[0], [1, 2, 3], {1: {"top1": 0.5}, 2: {"top1": 0.7}})
    checkpoints, _ = opened(max_to_keep=1, best_metric="top1", scores={1: {"top1": 0.5}, 2: {"top1": 0.7}})
    save(checkpoints, [4, 5], {4: {"top1": 0.6}})
    assert checkpoints.steps() == [2, 5]


def test_a_run_that_starts_anew_forgets_the_scores_of_another(opened):
    checkpoints, _ = opened(max_to_keep=1, best_metric="top1", scores={2: {"top1": 0.9}})
    assert checkpoints.restore(target_of(state_of())) is None and not checkpoints.scored(2)
    save(checkpoints, [1, 2], {1: {"top1": 0.5}, 2: {"top1": 0.1}})
    assert checkpoints.steps() == [1, 2]


def test_without_a_best_metric_only_the_last_stay(opened):
    checkpoints, _ = opened(max_to_keep=2)
    save(checkpoints, range(1, 5), {1: {"top1": 1.0}})
    assert checkpoints.steps() == [3, 4]


def remove_state(folder):
    shutil.rmtree(folder / "state")


def cut_largest(folder):
    file = largest_file(folder)
    file.write_bytes(file.read_bytes()[:100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flip_largest(folder):
    flip_bit(largest_file(folder))


@pytest.mark.parametrize(
    "damage", [remove_state, flip_largest, *(pytest.param(of, marks=pytest.mark.slow) for of in (cut_largest, empty))]
)
def test_a_damaged_checkpoint_gives_way_to_the_previous_one(opened, damage):
    checkpoints, _ = opened(max_to_keep=3)
    save(checkpoints, [1, 2])
    damage(checkpoints.folder / "2")
    checkpoints, warnings = opened(max_to_keep=3)
    restored = checkpoints.restore(target_of(state_of()))
    assert restored.step == 1
    assert_equal(restored.state, state_of(1))
    assert "checkpoint 2" in warnings[0] and "cannot be read" in warnings[0]
    save(checkpoints, [2])  # the run comes to step 2 again and may write it
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(target_of(state_of())).step == 2
    gc.collect()  # a coroutine that the reader dropped would complain here


def test_nothing_readable_is_an_error_and_nothing_is_moved(opened):
    checkpoints, _ = opened()
    save(checkpoints, [1, 2])
    for step in (1, 2):
        remove_state(checkpoints.folder / str(step))
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint in .* can be read:\n  2: .*\n  1: .*Move that"):
        opened()[0].restore(target_of(state_of()))
    assert {entry.name for entry in checkpoints.folder.iterdir()} == {"1", "2"}
    gc.collect()


def test_what_a_kill_left_unfinished_is_removed(opened, tmp_path):
    left = tmp_path / "checkpoints/7.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    checkpoints, warnings = opened()
    assert not left.exists()
    assert checkpoints.steps() == []
    (warning,) = warnings
    assert warning.startswith("removed 7.orbax-checkpoint-tmp in ") and warning.endswith(
        "; there is no other checkpoint"
    )


def test_the_checkpoint_that_takes_the_place_of_an_unfinished_one_is_named(opened, tmp_path):
    save(opened()[0], [3])
    (tmp_path / "checkpoints/7.orbax-checkpoint-tmp").mkdir()
    _, (warning,) = opened()
    assert "left unfinished when the run was killed; continuing from step 3" in warning


def test_a_state_of_another_version_is_not_called_damaged(opened):
    checkpoints, warnings = opened()
    checkpoints.save(1, state_of(), {}, {"git_revision": "abc123"})
    checkpoints.wait()
    other = state_of().replace(params={"kernel": jnp.zeros((64, 4)), "weight": jnp.zeros(3)})
    message = (
        r"(?s)checkpoint 1 in .* another version \(git abc123\); 3 of its arrays differ:.*params/half: \(64, 128\) "
    )
    with pytest.raises(
        CheckpointError,
        match=message + r"in the checkpoint, \(absent\) now.*kernel: \(64, 128\) in the checkpoint, \(64, 4\)",
    ):
        checkpoints.restore(target_of(other))
    assert (checkpoints.steps(), warnings) == ([1], [])


def test_processes_go_on_together_or_not_at_all(opened, monkeypatch):
    """Step 2 can be read here and not on the other process; step 1 on both."""
    checkpoints, warnings = opened()
    save(checkpoints, [1, 2])
    answers = iter([True, False, True, True])  # that the files are whole, and that they were read; of 2, of 1
    monkeypatch.setattr("detailclip_jax.training.checkpoint.all_processes", lambda good: next(answers))
    assert checkpoints.restore(target_of(state_of())).step == 1
    assert "another process failed to read it" in warnings[0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_state_that_is_not_finite_is_not_saved(opened, bad):
    state = state_of().replace(opt_state=(jnp.zeros(8).at[3].set(bad), ()))
    checkpoints, _ = opened()
    with pytest.raises(NonFiniteError, match=r"not finite in .opt_state\[0\] \(1 of 4 arrays\)"):
        checkpoints.save(1, state, {}, {})
    assert checkpoints.steps() == []


def test_checksums_see_every_bit_and_no_sharding():
    state = state_of(devices=1)
    kernel = np.asarray(state.params["kernel"])
    assert checksums(state) == checksums(state_of(devices=8)) == checksums(state_of(devices=8, spec=P("data")))
    changed = state.replace(params=state.params | {"kernel": kernel + np.float32(1e-7) * (kernel == kernel[0, 0])})
    assert checksums(changed) != checksums(state)


def tiny_config():
    config = base.default()
    config.update_from_flattened_dict(
        {
            "batch_size": 8,
            "total_steps": 4,
            "steps_per_epoch": 2,
            "model.size": "tiny",
            "model.image_size": 16,
            "model.context_length": 8,
            "model.vocab_size": 32,
            "model.prototypes": 16,
        }
    )
    config.views.crops.large.size = 16
    return config


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    config, workdir = tiny_config(), tmp_path_factory.mktemp("run")
    shapes = experiment.build(config, make_mesh(jax.devices()[:1])).state_shapes
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jax.device_put(rng.random(x.shape).astype(x.dtype), x.sharding), shapes)
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        marked = jax.tree.map(lambda x, step=step: jax.device_put(np.asarray(x) + step, x.sharding), state.ema_params)
        checkpoints.save(step, state.replace(ema_params=marked), {"examples": 8}, {"config": to_json(config)})
    checkpoints.close()
    return workdir, state


def test_load_gives_model_parameters_and_config(saved_run):
    workdir, state = saved_run
    model, variables, config = load(workdir)
    assert_equal(variables["params"], state.params)
    assert_equal(variables["ema_params"], jax.tree.map(lambda x: np.asarray(x) + 2, state.ema_params))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(variables))
    assert to_json(config) == to_json(tiny_config())
    embed = jax.jit(functools.partial(model.apply, method="embed_image"))
    embedding = embed({"params": variables["params"]}, np.zeros((2, 16, 16, 3), np.float32))
    assert embedding.shape == (2, 64)


def test_a_lost_process_is_no_damaged_file(saved_run, monkeypatch):
    def lose(*_):
        raise jax.errors.JaxRuntimeError("UNKNOWN: the other process is gone")

    monkeypatch.setattr(checkpoint, "_read_part", lose)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the other process is gone"):
        load(saved_run[0])


def test_a_tokenizer_that_has_moved_is_found_in_the_workdir(saved_run, tmp_path):
    """With a digest: "clip" is no file."""
    _, state = saved_run
    trees = {name: getattr(state, name) for name in ("params", "ema_params", "batch_stats", "running")}
    config, workdir = tiny_config(), tmp_path / "run"
    config.data.tokenizer, config.data.tokenizer_digest = str(tmp_path / "gone/tokenizer.json"), "0" * 12
    checkpoint.save_weights(workdir, trees, config, "noise")
    assert checkpoint.load(workdir)[2].data.tokenizer == config.data.tokenizer
    (workdir / "tokenizer.json").write_text("{}")
    assert checkpoint.load(workdir)[2].data.tokenizer == str(workdir / "tokenizer.json")
    assert adopted_config.config_of(str(workdir)).data.tokenizer == str(workdir / "tokenizer.json")  # of --config.init


def test_load_of_an_older_step(saved_run):
    workdir, state = saved_run
    assert_equal(
        load(str(workdir), step=1)[1]["ema_params"], jax.tree.map(lambda x: np.asarray(x) + 1, state.ema_params)
    )


def test_a_config_with_an_unknown_field_is_of_another_version_and_no_other_step_is_named(tmp_path):
    stored = tiny_config().to_dict()
    stored |= {"schema": 1, "model": {**stored["model"], "window": 7}}
    with closing(Checkpoints(tmp_path)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(), {}, {"config": json.dumps(stored)})
    with pytest.raises(CheckpointError, match=r"checkpoints/2 has the field model.window, .*version") as caught:
        load(tmp_path)
    assert "step" not in str(caught.value)


def test_a_method_that_no_imported_module_has_added_is_no_damage(tmp_path):
    config = tiny_config()
    config.method = "mine"
    with closing(Checkpoints(tmp_path)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(), {}, {"config": to_json(config)})
    with pytest.raises(
        CheckpointError, match=r"checkpoints/2 is of a method of your own.*'mine'.*import the module"
    ) as e:
        load(tmp_path)
    assert "try step" not in str(e.value)


def test_load_names_the_steps_there_are(saved_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 in .*; its steps are 1, 2"):
        load(saved_run[0], step=5)
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no checkpoint"):
        load(tmp_path)


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def change_digit(folder):
    file = next((folder / "data").glob("metadata"))
    file.write_text(file.read_text().replace("20", "30"))


def no_data(folder):
    (folder / "data/metadata").write_text("{}")


def renamed(folder):
    folder.rename(folder.with_name("60"))


@pytest.mark.parametrize(
    "damage, said",
    [
        (change_digit, "data/metadata has changed since it was written"),
        (no_data, "data/metadata has 2 bytes instead of 16"),
        (renamed, "this folder was written as 2 and renamed to 60: rename it to 2"),
    ],
)
def test_data_and_name_of_a_checkpoint_are_checked(opened, damage, said):
    checkpoints, _ = opened(max_to_keep=3)
    save(checkpoints, [1, 2])
    damage(checkpoints.folder / "2")
    checkpoints, warnings = opened(max_to_keep=3)
    assert checkpoints.restore(target_of(state_of())).step == 1
    assert said in warnings[0]


@pytest.mark.parametrize("name", [checkpoint_manifest.LAST, "commit_success.txt"])
def test_a_run_resumes_without_the_files_that_orbax_writes_last(opened, name):
    checkpoints, _ = opened()
    save(checkpoints, [1])
    for damage in (lambda file: file.write_bytes(b"\xff{"), lambda file: file.unlink()):
        damage(checkpoints.folder / "1" / name)
        again, warnings = opened()
        assert_equal(again.restore(target_of(state_of())).state, state_of(1))
        assert not warnings


def test_every_other_file_of_a_checkpoint_is_covered(opened, tmp_path):
    """Deleted, emptied, cut, flipped or renamed: each is noticed before a library reads the file, and named."""
    checkpoints, _ = opened()
    save(checkpoints, [1])
    whole = checkpoints.folder / "1"
    assert {"state", "data", "run"} <= {file.relative_to(whole).parts[0] for file in files_of(whole)}
    for file in files_of(whole):
        if file.name in (checkpoint_manifest.LAST, "commit_success.txt"):
            continue
        name, kept = str(file.relative_to(whole)), file.read_bytes()
        assert checkpoint_manifest.problem(whole) == ""
        for damaged in (None, b"", kept[:-1], kept[:-1] + bytes([kept[-1] ^ 1])):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            assert name in checkpoint_manifest.problem(whole), (name, damaged)
            file.write_bytes(kept)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"folder": "1", "files": {"data": 3}}', "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/data").write_text("{}")
    (tmp_path / "1/manifest.json").write_text(text)
    assert "manifest.json is damaged" in checkpoint_manifest.problem(tmp_path / "1")


def test_the_one_that_is_asked_for_is_refused_with_the_others_named(saved_run, tmp_path):
    shutil.copytree(saved_run[0], tmp_path / "run")
    flip_bit(tmp_path / "run/checkpoints/2/data/metadata")
    said = r"checkpoint of step 2 in .* cannot be read: data/metadata has changed .*--step=1"
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "run")


def test_networks_of_another_version_are_named(saved_run, monkeypatch):
    """The method's networks were others when the checkpoint was written."""
    monkeypatch.setitem(methods.METHODS, "detailclip", methods.METHODS["clip"])
    with pytest.raises(CheckpointError, match=r"another version: .* detailclip .*different: decoder, pixel_head,"):
        load(saved_run[0])


def test_checksums_on_the_host_are_those_on_devices(monkeypatch):
    wide = jnp.arange(70_000.0).reshape(7, 100, 100)  # more than SMALL
    arrays = {"ints": jnp.arange(-3, 3), "none": jnp.zeros((0, 2)), "key": jax.random.key_data(jax.random.key(1))}
    state = state_of()
    state = state.replace(params=state.params | arrays | {"wide": wide})
    here = checksums(state)
    monkeypatch.setattr(sums, "SMALL", -1)
    assert checksums(state) == here
    for small in (-1, 2**16):
        monkeypatch.setattr(sums, "SMALL", small)
        with pytest.raises(NonFiniteError, match=r"not finite in .*half.* \(1 of 8 arrays\)"):
            checksums(state.replace(params=state.params | {"half": jnp.full(3, jnp.inf, jnp.bfloat16)}))


def test_checksums_see_the_order_of_values():
    state = state_of()
    for moved in (
        lambda kernel: kernel[::-1],
        lambda kernel: jnp.roll(kernel, 1, 1),
        lambda kernel: kernel.T.reshape(64, 128),
    ):
        changed = state.replace(params=state.params | {"kernel": moved(state.params["kernel"])})
        assert checksums(changed)[".params['kernel']"] != checksums(state)[".params['kernel']"]
    zeros = State(jnp.int32(0), {"a": jnp.zeros(4)}, ())
    assert checksums(zeros) != checksums(zeros.replace(params={"a": jnp.zeros(5)}))


def run_in(workdir, seed=0, steps=(1, 2)):
    """A workdir with the config of a run and its checkpoints."""
    config = base.default()
    config.seed = seed
    run_config.claim_workdir(workdir, config)
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, state_of(seed), {"examples": 8}, {"config": to_json(config)})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize(
    ("seed", "said"), [(1, "seed: 1 in the checkpoint, 0 in the workdir"), (0, "id: [0-9a-f]{32}")]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, seed, said):
    own, other = run_in(tmp_path / "own"), run_in(tmp_path / "other", seed, steps=[3])
    copied = shutil.copytree(other / "checkpoints/3", own / "checkpoints/3")
    said = (
        rf"(?s)^checkpoint 3 in .* of another run .*{said}.*\nMove {copied} away, .*--config.init, and another --work"
    )
    for read in (lambda: load(own), lambda: checkpoint.load_state(own, target_of(state_of()))):
        with pytest.raises(CheckpointError, match=said):
            read()
    with closing(Checkpoints(own, max_to_keep=3)) as checkpoints, pytest.raises(CheckpointError, match=said):
        checkpoints.restore(target_of(state_of()))
    shutil.rmtree(copied)
    with closing(Checkpoints(own)) as checkpoints:
        assert checkpoints.restore(target_of(state_of())).step == 2


def test_a_workdir_that_is_copied_or_has_lost_its_id_is_resumed(tmp_path):
    own = run_in(tmp_path / "own")
    moved = shutil.copytree(own, tmp_path / "moved")
    shutil.copytree(own / "checkpoints", run_in(tmp_path / "new", steps=()) / "checkpoints", dirs_exist_ok=True)
    (tmp_path / "new/run_id.txt").unlink()
    for workdir in (moved, tmp_path / "new"):
        with closing(Checkpoints(workdir)) as checkpoints:
            assert checkpoints.restore(target_of(state_of())).step == 2
        assert (workdir / "run_id.txt").read_text() == (own / "run_id.txt").read_text()


def test_without_ids_the_configs_are_compared(tmp_path):
    own = run_in(tmp_path / "own", steps=())
    shutil.copytree(run_in(tmp_path / "other", seed=1) / "checkpoints", own / "checkpoints", dirs_exist_ok=True)
    (own / "run_id.txt").unlink()
    with (
        closing(Checkpoints(own)) as checkpoints,
        pytest.raises(CheckpointError, match="seed: 1 in the checkpoint, 0 "),
    ):
        checkpoints.restore(target_of(state_of()))
