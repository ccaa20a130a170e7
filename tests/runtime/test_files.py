"""Files that are written whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detailclip_jax import doctor, embed
from detailclip_jax.config import default, segmentation_fields
from detailclip_jax.runtime import signals
from detailclip_jax.runtime.files import check_writable, nothing_left, replace_text, with_home, written_atomically


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with written_atomically(file) as partial, partial.open("w") as stream:
        stream.write("new")
        assert file.read_text() == "old" and partial.parent == tmp_path
    assert file.read_text() == "new" and entries(tmp_path) == ["a.txt"]


def test_the_other_name_may_be_given(tmp_path):
    with written_atomically(tmp_path / "a", tmp_path / "elsewhere") as partial:
        partial.write_bytes(b"new")
        assert entries(tmp_path) == ["elsewhere"]
    assert entries(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    replace_text(tmp_path / "a", "old")
    for file in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(error), written_atomically(file) as partial:
            partial.write_text("half")
            raise error
    assert entries(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_an_error_names_the_file_of_the_caller(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        replace_text(tmp_path / "nowhere/a.txt", "new")
    assert caught.value.filename == str(tmp_path / "nowhere/a.txt")

    def refuse(dir):
        raise PermissionError(13, "Permission denied", f"{dir}/tmp4x5y")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(PermissionError) as caught:
        check_writable(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_a_kill_leaves_the_old_file(tmp_path):
    replace_text(tmp_path / "a", "old")
    code = """
import os, pathlib, sys
from detailclip_jax.runtime.files import written_atomically
with written_atomically(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "a").read_text() == "old"
    replace_text(tmp_path / "a", "new")
    assert entries(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


def test_a_file_that_nobody_wrote_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), written_atomically(tmp_path / "a"):
        pass
    assert entries(tmp_path) == []


@pytest.mark.parametrize("end", ["an error", "a signal"])
def test_what_failed_to_be_made_goes_and_what_was_there_stays(tmp_path, end):
    """`clean_up` is what a signal calls before it ends the process."""

    def fail():
        said.append(signals.clean_up() if end == "a signal" else "interrupted")
        left.append(entries(tmp_path))
        raise KeyboardInterrupt

    said, left = [], []
    for name in ("new", "old"):
        folder = tmp_path / name
        if name == "old":
            folder.mkdir()
        with pytest.raises(KeyboardInterrupt), nothing_left(folder):
            folder.mkdir(exist_ok=True)
            (folder / "half").write_text("")
            fail()
    with pytest.raises(KeyboardInterrupt), nothing_left(tmp_path / "file"):
        (tmp_path / "file").write_text("half")
        fail()
    with pytest.raises(KeyboardInterrupt), written_atomically(tmp_path / "whole") as partial:
        partial.write_text("half")
        fail()
    with nothing_left(tmp_path / "made"):
        (tmp_path / "made").mkdir()
    assert entries(tmp_path) == ["made", "old"] and entries(tmp_path / "old") == ["half"]
    if end == "a signal":
        assert left == [[], ["old"], ["old"], ["old"]]
        assert said[1] == f"interrupted; {tmp_path / 'old'} existed before and may now be incomplete"
        assert {said[0], *said[2:]} == {"interrupted"}


@pytest.mark.parametrize(
    "text, path",
    [
        ("--out=~/x.npz", "--out=/home/me/x.npz"),
        ("--data-dir=~", "--data-dir=/home/me"),
        ("data.path=~/cc3m@3,tfds:~/coco,~@1", "data.path=/home/me/cc3m@3,tfds:/home/me/coco,/home/me@1"),
        (
            "--tasks=knn:folder:~/birds;dense:folder:~/b:gem",
            "--tasks=knn:folder:/home/me/birds;dense:folder:/home/me/b:gem",
        ),
        ("~/photos/*.jpg", "/home/me/photos/*.jpg"),
        ("--out=~nobody-of-this-name/x", "--out=~nobody-of-this-name/x"),
        ("--out=old~/a~b.npz", "--out=old~/a~b.npz"),
        ("--text=about ~5 frogs", "--text=about ~5 frogs"),
    ],
)
def test_a_tilde_is_the_home_folder_where_a_path_begins(text, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home(text) == path


def test_flags_and_fields_of_paths_take_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = embed.parser().parse_args(["--checkpoint=~/run", "--images", "photos", "--out=~/x.npz"])
    assert (given.checkpoint, given.out) == ("/home/me/run", Path("/home/me/x.npz"))
    assert doctor.parser().parse_args(["--data-dir=~/sets"]).data_dir == "/home/me/sets"
    config, dense = default(), segmentation_fields.segmentation()
    config.data.path, config.init, dense.data.train_masks = "~/a,~/b", "~/run", "~/masks"
    config.data.update({"tokenizer": "~/spm.model"})
    assert (config.data.path, config.init) == ("/home/me/a,/home/me/b", "/home/me/run")
    assert (config.data.tokenizer, dense.data.train_masks) == ("/home/me/spm.model", "/home/me/masks")
