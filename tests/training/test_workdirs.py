"""The workdir that a user names: a wrong path is one sentence with the run that may be meant, in every command."""

import pytest
from PIL import Image
from tiny import check_names

from detailclip_jax import demo, embed, evaluate, export, interop, transfer, visualize
from detailclip_jax.runtime import errors
from detailclip_jax.training import adopted_config, workdirs


def make_run(folder, *steps):
    """A folder that looks like a workdir with checkpoints of these steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text('{"method": "clip"}')


def said(path):
    with pytest.raises(FileNotFoundError) as error:
        workdirs.pick_step(path)
    return str(error.value)


def test_the_newest_step_is_taken_unless_one_is_given(tmp_path):
    make_run(tmp_path, 300, 1200)
    assert workdirs.pick_step(tmp_path) == 1200 and workdirs.pick_step(str(tmp_path), 300) == 300
    with pytest.raises(FileNotFoundError) as error:
        workdirs.pick_step(tmp_path, 5)
    check_names(error.value, "step 5", "300, 1200")


def test_a_missing_workdir_names_the_nearest_run(tmp_path):
    for name in ("stickers", "clip", "unfinished"):
        make_run(tmp_path / name, *([3] if name != "unfinished" else []))
    check_names(said(tmp_path / "sticker"), "does not exist", repr(str(tmp_path / "stickers")))
    assert "'clip" not in said(tmp_path / "sticker")


def test_without_a_near_name_the_first_five_runs_are_named(tmp_path):
    for number in range(7):
        make_run(tmp_path / f"run-{number}", 3)
    message = said(tmp_path / "x")
    check_names(message, f"the runs in {tmp_path} are", "run-0, run-1, run-2, run-3, run-4", "2 more")
    assert "run-5" not in message


def test_without_any_run_the_message_says_where_runs_come_from(tmp_path):
    for missing in ("x", "no/folder/x"):
        check_names(said(tmp_path / missing), "does not exist", "detailclip_jax.main", "detailclip_jax.import_torch")


def test_a_misspelt_folder_of_runs_is_answered_with_the_right_one(tmp_path):
    make_run(tmp_path / "runs/stickers", 3)
    check_names(said(tmp_path / "rums/stickers"), repr(str(tmp_path / "runs")))


INSIDE = {
    "checkpoints/4": False,
    "nothing": False,
    "figures": False,
    "figures/more/deeper": False,
    "checkpoints": False,
    "checkpoints/3": True,
    "checkpoints/3/state": True,
    "checkpoints/3/state/d/0": True,
}


@pytest.mark.parametrize(("inner", "in_a_checkpoint"), INSIDE.items())
def test_a_path_inside_a_run_is_answered_with_the_run(tmp_path, inner, in_a_checkpoint):
    make_run(tmp_path / "run", 3)
    for folder in ("figures/more/deeper", "checkpoints/3/state/d/0"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    message = said(tmp_path / "run" / inner)
    check_names(message, f"give the run, {tmp_path}/run")
    assert ("and step 3" in message) == in_a_checkpoint


def test_a_folder_of_checkpoints_of_another_program_is_no_run(tmp_path):
    project = tmp_path / "proj"
    (project / "checkpoints/100").mkdir(parents=True)
    make_run(project / "data/runs/stickers", 3)
    check_names(said(project / "data/runs/sticker"), repr(str(project / "data/runs/stickers")))
    check_names(said(project / "data/runs"), str(project / "data/runs/stickers"))
    for other in ("data/none", "checkpoints/100", "data"):
        assert "give the run" not in said(project / other)
    assert "it has no config.json; a workdir" in workdirs.no_run(project)


def test_a_typo_of_a_run_inside_another_run_is_answered_with_the_nearest(tmp_path):
    make_run(tmp_path, 9)
    make_run(tmp_path / "runs/stickers", 3)
    check_names(said(tmp_path / "runs/sticker"), repr(str(tmp_path / "runs/stickers")))
    check_names(said(tmp_path / "runs"), str(tmp_path / "runs/stickers"))
    check_names(said(tmp_path / "figures"), f"give the run, {tmp_path}")


def test_what_else_a_path_may_be(tmp_path):
    (tmp_path / "empty").mkdir()
    check_names(said(tmp_path / "empty"), "no config.json and no checkpoint")
    make_run(tmp_path / "begun")
    check_names(said(tmp_path / "begun"), "not saved any checkpoint", "if it is running")
    (tmp_path / "vit.pth").write_text("weights")
    check_names(said(tmp_path / "vit.pth"), "not converted", "import_torch")
    make_run(tmp_path / "several/one", 3)
    check_names(said(tmp_path / "several"), str(tmp_path / "several/one"))


WEIGHTS = {
    "of transformers": ["model.safetensors"],
    "with the state of its training": ["optimizer.bin", "pytorch_model.bin", "scheduler.bin"],
    "in one file and in shards": ["model-00001-of-00002.safetensors", "pytorch_model.bin"],
    "in shards": ["model-00001-of-00001.safetensors"],
    "of TIPS": ["tips_vision.npz", "tips_text.npz"],
}


@pytest.mark.parametrize("config", ['{"model_type": "clip"}', "", None], ids=["of transformers", "damaged", "none"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_folder_of_weights_that_can_be_imported_is_answered_with_the_import(tmp_path, weights, config):
    folder = tmp_path / "clip vit"
    folder.mkdir()
    for name in WEIGHTS[weights]:
        (folder / name).write_text("weights")
    if config is not None:
        (folder / "config.json").write_text(config)
    message = said(folder)
    check_names(message, f"import_torch '{folder}' --out")
    assert "has not saved" not in message
    with pytest.raises(ValueError, match="neither a PyTorch file"):  # it is these files that the import opens
        interop.load(folder)


@pytest.mark.parametrize(
    "names", [["photos.npz"], ["optimizer.bin"], ["a_vision.npz"], ["a_vision.npz", "b_vision.npz", "a_text.npz"]]
)
def test_a_folder_of_other_files_is_no_folder_of_weights(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("numbers")
    message = said(tmp_path)
    check_names(message, "no config.json and no checkpoint")
    assert "folder of weights" not in message


@pytest.mark.parametrize("config", ['{"model_type": "clip"}', "[]", "{"])
def test_the_config_of_another_program_is_no_run(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    message = said(tmp_path)
    check_names(message, str(tmp_path), "config.json", "method", "detailclip_jax.import_torch")
    assert "has not saved" not in message


def test_weights_that_were_exported_into_a_folder_of_runs_do_not_hide_the_runs(tmp_path):
    make_run(tmp_path / "one", 3)
    make_run(tmp_path / "begun")
    for folder in (tmp_path, tmp_path / "begun"):
        (folder / "exported.safetensors").write_text("weights")
    check_names(said(tmp_path), str(tmp_path / "one"))
    check_names(said(tmp_path / "begun"), "not saved any checkpoint", "if it is running")


COMMANDS = {
    "evaluate": lambda path, here: evaluate.main([f"--checkpoint={path}"]),
    "embed": lambda path, here: embed.main([f"--checkpoint={path}", "--text=a frog", f"--out={here}/out.npz"]),
    "export": lambda path, here: export.main([f"--checkpoint={path}", "--to=timm", f"--out={here}/out.pth"]),
    "visualize": lambda path, here: visualize.main([f"--checkpoint={path}", f"--out={here}/out"]),
    "segmentation": lambda path, here: visualize.main([f"--checkpoint={path}", "--what=segmentation"]),
    "transfer": lambda path, here: transfer.predict(
        [f"--checkpoint={path}", f"--predict={here}/image.png", f"--out={here}/out"]
    ),
    "demo": lambda path, here: demo.main([f"--checkpoint={path}", "--port=0"]),
    "init": lambda path, here: errors.run(lambda: bool(adopted_config.config_of(str(path)))),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_a_wrong_workdir_with_one_sentence(command, tmp_path, capsys):
    if command == "demo":
        pytest.importorskip("starlette")
    make_run(tmp_path / "runs/stickers", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a workdir")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for wrong, names in {
        tmp_path / "runs/sticker": ["does not exist", repr(str(tmp_path / "runs/stickers"))],
        tmp_path / "notes.txt": ["is a file", "import_torch"],
        tmp_path / "empty": ["no config.json and no checkpoint"],
    }.items():
        assert COMMANDS[command](wrong, tmp_path) == errors.USAGE_ERROR
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ") and len(message.splitlines()) == 1, message
        check_names(message, str(wrong), *names)
    assert not any((tmp_path / "empty").iterdir())
