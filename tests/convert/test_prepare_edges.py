"""Two runs at once, runs that accept nothing, and what tables and folders hold beside the data."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import prepare_trees as trees
import pytest
from tiny import check_names

from detailclip_jax.convert.job import Options, Request
from detailclip_jax.convert.planning import begin
from detailclip_jax.convert.prepared_set import load
from detailclip_jax.convert.set_report import summary
from detailclip_jax.data.sources import MissingData, Records
from detailclip_jax.prepare import main
from detailclip_jax.runtime import locks
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import check_writable
from detailclip_jax.runtime.locks import Busy, alone

ROOT = Path(__file__).parents[2]


def run(*arguments, out) -> int:
    return main([*map(str, arguments), "--out", str(out), "--workers", "1"])


def captions(folder, split="train") -> dict[str, tuple[str, ...]]:
    source = Records(folder, split)
    return {source[index]["key"]: source[index]["captions"] for index in range(len(source))}


@pytest.fixture
def tars(tmp_path):
    return trees.webdataset(tmp_path / "tars", num_tars=1)


# two runs at once


def test_a_second_run_into_the_same_split_is_refused_with_who_holds_it(tars, tmp_path, capsys):
    out = tmp_path / "out"
    with alone(out / ".lock-train"):
        assert run("webdataset", tars, out=out) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"error: process {os.getpid()} on ") and f"is writing to {out}; wait" in message
        assert run("webdataset", tars, "--split", "val", out=out) == 0  # another split may be made meanwhile
    assert run("webdataset", tars, out=out) == 0
    assert sorted(load(str(out))["splits"]) == ["train", "val"]
    assert not list(out.glob(".*"))  # neither a lock nor a work folder is left


def test_a_finished_split_needs_no_lock(tars, tmp_path, capsys, monkeypatch):
    """It may lie in a folder that is read only, which a test by root cannot make."""
    out = tmp_path / "out"
    assert run("webdataset", tars, out=out) == 0

    def read_only(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(locks, "open", read_only, raising=False)
    assert run("webdataset", tars, out=out) == 0
    assert "already has the split train; nothing to do" in capsys.readouterr().out
    assert run("webdataset", tars, "--max-side", "9", out=out) == 2
    assert "prepared by a different request" in capsys.readouterr().err
    assert run("webdataset", tars, "--split", "val", out=out) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_a_finished_split_whose_table_was_repaired_is_an_error_and_stays(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    table, out = trees.write(folder / "t.csv", "path,caption\na.jpg,one\n"), tmp_path / "out"
    assert run("csv", table, out=out) == 0 and run("csv", table, out=out) == 0
    assert "nothing to do" in capsys.readouterr().out
    trees.write(table, "path,caption\na.jpg,two\n")  # as long as before
    os.utime(table, ns=(1, 1))
    assert run("csv", table, out=out) == 1
    shown = capsys.readouterr().err
    assert f"{table} has changed" in shown and "another --out" in shown
    assert captions(out) == {"t#2": ("one",)}
    table.unlink()
    assert run("csv", table, out=out) == 0  # the source of a finished split may be removed


@pytest.mark.parametrize("kind", ["imagefolder", "csv", "webdataset"])
def test_a_wrong_path_is_named_before_a_set_that_is_already_there(tars, tmp_path, capsys, kind):
    """The message advised to remove the good set."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    assert run("webdataset", tars, "--max-side", "9", out=out) == 0
    for wrong in (tmp_path / "nowhere", empty):
        assert run(kind, wrong, out=out) == 2
        shown = capsys.readouterr().err
        assert str(wrong) in shown and "remove" not in shown and "different request" not in shown


def test_one_file_named_from_two_folders_is_one_request(tmp_path, capsys, monkeypatch):
    own, out = tmp_path / "own", tmp_path / "out"
    trees.write(own / "a.jpg", trees.jpeg(1))
    trees.write(own / "t.csv", "path,caption\na.jpg,one\n")
    for folder, name in ((own, "t.csv"), (tmp_path, "own/t.csv"), (tmp_path, own / "t.csv"), (own, "./t.csv")):
        monkeypatch.chdir(folder)
        assert run("csv", name, out=out) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    trees.write(tmp_path / "t.csv", "path,caption\nown/a.jpg,two\n")
    monkeypatch.chdir(tmp_path)
    assert run("csv", "t.csv", out=out) == 2  # the same name, another file
    check_names(capsys.readouterr().err, "different request", str(own / "t.csv"), str(tmp_path / "t.csv"), "--out")


def test_a_pattern_in_a_folder_with_brackets(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "set[1]"
    trees.webdataset(folder, num_tars=2)
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert run("webdataset", "*.tar", out=tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().out and len(captions(tmp_path / "out")) == 14


def test_another_request_names_what_differs_and_what_to_remove(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("webdataset", tars, out=out) == 0
    assert run("webdataset", tars, "--max-side", "9", "--caption-column=txt", out=out) == 2
    shown = capsys.readouterr().err
    check_names(
        shown, "max_side: 0 before, 9 now", "caption_columns: () before, ('txt',) now", "--out", f"remove {out}"
    )
    assert "paths" not in shown and "kind" not in shown


def add_to_photos(folder, name, caption):
    trees.write(folder / f"{name}.jpg", trees.jpeg(len(name)))
    trees.write(folder / f"{name}.txt", caption)


def edit_caption(folder):
    trees.write(folder / "a/one.txt", "other")  # as long as before
    os.utime(folder / "a/one.txt", ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        edit_caption,
        lambda folder: add_to_photos(folder / "b/deep", "three", "three"),
        lambda folder: (folder / "a/one.txt").unlink(),
        lambda folder: (folder / "a/one.jpg").rename(folder / "a/four.jpg"),
    ],
    ids=["edited", "added", "removed", "renamed"],
)
@pytest.mark.parametrize("links", [False, True])
def test_a_finished_split_whose_pictures_have_changed_is_an_error(tmp_path, capsys, change, links):
    photos, out, real = tmp_path / "photos", tmp_path / "out", tmp_path / ("away" if links else "photos")
    for place, name in (("a", "one"), ("b", "two")):
        add_to_photos(real / place, name, "words")
        if links:
            photos.mkdir(exist_ok=True)
            (photos / place).symlink_to(real / place)
    command = ["imagefolder", photos]
    assert run(*command, out=out) == 0
    for unread in (".DS_Store", "a/.hidden.jpg", "a/notes.md"):
        trees.write(photos / unread, "x")
    assert run(*command, out=out) == 0
    assert "nothing to do" in capsys.readouterr().out
    change(real)
    assert run(*command, out=out) == 1
    shown = capsys.readouterr().err
    assert str(photos) in shown and "4 before" in shown and "another --out" in shown
    shutil.rmtree(photos)
    assert run(*command, out=out) == 0  # the source of a finished split may be removed


@pytest.mark.parametrize("pattern", ["", "*.tar"])
def test_a_finished_split_whose_folder_has_a_new_tar_is_an_error(tars, tmp_path, capsys, pattern):
    out, source = tmp_path / "out", tars / pattern
    assert run("webdataset", source, out=out) == 0 and run("webdataset", source, out=out) == 0
    trees.write_tar(tars / "more.tar", trees.sample("new", 1))
    assert run("webdataset", source, out=out) == 1
    shown = capsys.readouterr().err
    assert f"{source}" in shown and "1 before, 2 now" in shown


@pytest.mark.parametrize("copied", ["", "out", "out/deep"])
@pytest.mark.parametrize("source", ["set", "set/link"])
def test_lists_of_rejects_in_the_folder_of_the_source_are_no_change(tmp_path, capsys, source, copied):
    folder, out = tmp_path / "set", tmp_path / "out"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    trees.write(folder / "t.jsonl", '{"image": "a.jpg", "caption": "one"}\n{')
    (folder / "link").symlink_to(folder)
    assert run("jsonl", tmp_path / source, out=out) == 0
    assert load(str(out))["splits"]["train"]["num_rejected"] == 1
    shutil.copytree(out, folder / copied, dirs_exist_ok=True)
    capsys.readouterr()
    assert run("jsonl", tmp_path / source, out=out) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_table_that_only_seems_to_be_a_list_of_rejects_is_read(tmp_path):
    trees.write(tmp_path / "images/a.jpg", trees.jpeg(1))
    trees.write(tmp_path / "set/many-rejected.jsonl", '{"image": "a.jpg", "caption": "one"}\n')
    assert run("jsonl", tmp_path / "set", "--images", tmp_path / "images", out=tmp_path / "out") == 0
    assert captions(tmp_path / "out") == {"many-rejected#1": ("one",)}


def test_the_figures_of_a_set_below_a_folder_of_images_are_no_change(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    add_to_photos(photos / "a", "one", "words")
    assert run("imagefolder", photos, out=out) == 0
    copied = shutil.copytree(out, photos / "a/set")
    for name in ("statistics", "contact-sheet"):
        trees.write(copied / f"train-{name}.png", trees.jpeg(2))
    capsys.readouterr()
    assert run("imagefolder", photos, out=out) == 0
    assert "nothing to do" in capsys.readouterr().out and len(captions(out)) == 1


ROWS = "image,caption\na.jpg,one\n"
PHOTO = "\t".join(["1", *[""] * 5, "title", "description", *[""] * 15])


@pytest.mark.parametrize(
    ("kind", "table", "content", "other", "is_read"),
    [
        ("csv", "t.csv", ROWS, "T.CSV", False),
        ("csv", "t.csv", ROWS, ".more.csv", False),
        ("csv", "t.csv", ROWS, "more.csv", True),
        ("yfcc-tsv", "yfcc100m_dataset-0.txt", PHOTO, "README.txt", False),
        ("yfcc-tsv", "yfcc100m_dataset-0.txt", PHOTO, "deep/yfcc100m_dataset-1.bz2", True),
        ("imagefolder", "a.txt", "one", "README.txt", False),
        ("imagefolder", "a.txt", "one", "__MACOSX/b.jpg", False),
        ("imagefolder", "a.txt", "one", "B.JPG", True),
    ],
)
def test_the_files_that_a_source_reads_in_a_folder_are_compared_and_no_others(
    tmp_path, capsys, kind, table, content, other, is_read
):
    folder, out = tmp_path / "set", tmp_path / "out"
    for name in ("a.jpg", "1.jpg"):
        trees.write(folder / name, trees.jpeg(1))
    trees.write(folder / table, content)
    command = [kind, folder, *([] if kind == "imagefolder" else ["--images", folder])]
    assert run(*command, out=out) == 0
    trees.write(folder / other, "x")
    capsys.readouterr()
    assert run(*command, out=out) == int(is_read)
    shown = capsys.readouterr()
    assert (f"{folder} have changed" in shown.err) == is_read and ("nothing to do" in shown.out) != is_read


def test_a_finished_split_whose_zip_of_images_has_changed_is_an_error(tmp_path, capsys):
    table = trees.write(tmp_path / "t.csv", "path,caption\na.jpg,one\n")
    images = trees.write_zip(tmp_path / "images.zip", [("a.jpg", trees.jpeg(1))])
    command = ["csv", table, "--images", images]
    assert run(*command, out=tmp_path / "out") == 0 and run(*command, out=tmp_path / "out") == 0
    os.utime(images, ns=(1, 1))
    assert run(*command, out=tmp_path / "out") == 1
    assert f"{images} has changed" in capsys.readouterr().err


def test_a_started_split_whose_source_has_changed_begins_again_where_the_message_says(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    job = begin(request)
    assert begin(request) == job
    trees.write(job.output(0), "")  # killed after the first shard
    (tar,) = tars.iterdir()
    os.utime(tar, ns=(1, 1))
    with pytest.raises(RunError) as refused:
        begin(request)
    shards = f"{request.out}/train-*.arrayrecord"
    check_names(refused.value, f"{tar} has changed", f"remove {request.work} and {shards}", "another --out")
    shutil.rmtree(request.work)
    job.output(0).unlink()
    assert begin(request).files[str(tar)][1] == 1


def test_a_started_split_whose_folder_has_a_new_tar_is_not_continued(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    trees.write(begin(request).output(0), "")
    trees.write_tar(tars / "more.tar", trees.sample("new", 1))
    with pytest.raises(RunError) as refused:
        begin(request)
    check_names(refused.value, str(tars), "1 before, 2 now", f"remove {request.work}")


def test_a_started_split_without_a_finished_shard_is_planned_anew_for_another_request_or_source(tars, tmp_path):
    """So a wrong flag costs nothing: the corrected command runs."""
    begin(Request("webdataset", (str(tars),), str(tmp_path / "out")))
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"), options=Options(max_side=99))
    assert begin(request).request == request
    trees.write_tar(tars / "more.tar", trees.sample("new", 1))
    assert len(begin(request).shards) == 2
    plan = (request.work / "plan.json").read_bytes()
    with pytest.raises(FileNotFoundError):
        begin(dataclasses.replace(request, paths=(str(tmp_path / "none"),)))
    assert (request.work / "plan.json").read_bytes() == plan  # a mistake does not cost the plan, nor an index


def test_the_next_start_removes_what_a_kill_left_half_written(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    begin(request)
    (request.work / "train-00000.arrayrecord.0123.partial").write_bytes(b"half of it")
    begin(request)
    assert [file.name for file in request.work.iterdir()] == ["plan.json"]


def test_what_a_kill_left_beside_a_finished_split_is_removed(tars, tmp_path):
    out = tmp_path / "out"
    assert run("webdataset", tars, out=out) == 0
    (out / ".prepare-train").mkdir()
    assert run("webdataset", tars, out=out) == 0
    assert not list(out.glob(".*"))


HOLDER = """
import pathlib, sys, time
from detailclip_jax.runtime.locks import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_can_be_repeated_at_once(tars, tmp_path):
    lock = tmp_path / "out/.lock-train"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {holder.pid} on "), alone(lock):
            pass
        holder.send_signal(signal.SIGKILL)
    assert lock.exists()
    assert run("webdataset", tars, out=tmp_path / "out") == 0


def test_the_lock_of_a_file_that_its_holder_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    """Between our opening and our locking, the holder may have ended and a third have made the file anew."""
    path, flock, locked = tmp_path / "lock", locks.fcntl.flock, []

    def lock_late(file, flags):
        if not locked:
            path.unlink()
        locked.append(file)
        return flock(file, flags)

    monkeypatch.setattr(locks.fcntl, "flock", lock_late)
    with alone(path):
        assert len(locked) == 2 and f"process {os.getpid()} on " in path.read_text()


def test_where_a_disk_has_no_locks_a_warning_is_all(tmp_path, monkeypatch, caplog):
    def unsupported(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with caplog.at_level("WARNING", logger="absl"), alone(tmp_path / "lock"):
        pass
    assert "no file locks" in caplog.text


# nothing accepted


def test_nothing_accepted_leaves_the_rejected_list_and_no_split(tmp_path, capsys):
    out, table = tmp_path / "out", trees.write(tmp_path / "t.csv", "path,caption\na.jpg,one\nb.jpg,two\n")
    assert run("csv", table, out=out) == 1
    shown = capsys.readouterr()
    assert (
        "error: no example was accepted (2 x missing file, for example t#2: " in shown.err
        and "written to" not in shown.out
    )
    assert "paths are relative to the folder of the table that names them, unless --images ROOT" in shown.err
    assert [path.name for path in out.iterdir()] == ["train-rejected.jsonl"]
    assert str(out / "train-rejected.jsonl") in shown.err
    with pytest.raises(MissingData):
        Records(out, "train")
    trees.write(tmp_path / "images/a.jpg", trees.jpeg(1))
    assert run("csv", table, "--images", tmp_path / "images", out=out) == 0  # another request may follow
    assert captions(out) == {"t#2": ("one",)}


@pytest.mark.parametrize("split", ["../x", "a/b", "", " ", "..", ".x", "a\\b", "a\nb"])
def test_a_split_that_is_no_name_of_a_file_is_refused_before_anything_is_written(tars, tmp_path, capsys, split):
    assert run("webdataset", tars, "--split", split, out=tmp_path / "sets/out") == 2
    check_names(capsys.readouterr().err, f"--split: {split!r}: a name without / is required", "another --out")
    assert list(tmp_path.iterdir()) == [tars]


def test_an_out_that_is_a_file_is_named_with_the_flag(tmp_path, capsys):
    table = trees.write(tmp_path / "t.csv", "path,caption\na.jpg,one\n")
    assert run("csv", table, out=table) == 2
    shown = capsys.readouterr().err
    assert f"--out: {table} is a file" in shown and "continues" not in shown
    with pytest.raises(ValueError, match=r"--out: .*t\.csv is a file"):
        check_writable(table)  # of visualize, evaluate and transfer --predict


def test_rejects_are_summed_up_with_an_example_and_their_list(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    rows = "a.jpg,red, old\n" * 2 + "b.jpg,one\n" + "a.jpg,two\n"
    assert run("csv", trees.write(folder / "t.csv", f"path,caption\n{rows}"), out=tmp_path / "out") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rejected ")]
    assert "3 of 4: 2 x bad row, 1 x missing file" in line
    assert "t#2: 3 cells, 2 columns" in line and "train-rejected.jsonl" in line
    assert line in summary(load(str(tmp_path / "out"))["splits"]["train"])


def test_an_accepted_split_beside_one_that_is_not_stays(tars, tmp_path):
    out = tmp_path / "out"
    assert run("webdataset", tars, out=out) == 0
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", b"no image")])
    assert run("webdataset", tmp_path / "x.tar", "--split", "val", out=out) == 1
    assert list(load(str(out))["splits"]) == ["train"] and len(Records(out, "train")) == 7


def test_some_missing_images_of_a_table_are_a_warning_with_the_hint(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    table = trees.write(folder / "t.csv", "path,caption\na.jpg,one\nb.jpg,two\n")
    assert run("csv", table, out=tmp_path / "out") == 0
    assert "WARNING: 1 image not found; paths are relative to the folder" in capsys.readouterr().out


def test_a_set_without_captions_is_told_as_one(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    images = trees.write(folder / "images.csv", "path\na.jpg\na.jpg\n")
    assert run("csv", images, out=tmp_path / "none") == 0
    shown = capsys.readouterr().out
    assert "no caption  2" in shown and "WARNING: no example has a caption" in shown
    assert "imagefolder: write the captions to files like CLASS/image.txt" in shown
    table = trees.write(folder / "t.csv", "path,headline\na.jpg,one\na.jpg,\n")
    assert run("csv", table, "--caption-column", "headline", out=tmp_path / "one") == 0
    shown = capsys.readouterr().out
    assert "no caption  1" in shown and "WARNING" not in shown


def test_a_set_of_which_most_have_no_caption_is_a_warning_with_the_flag_that_leaves_them_out(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    table = trees.write(folder / "t.csv", "path,caption\na.jpg,one\na.jpg,\na.jpg, \n")
    assert run("csv", table, out=tmp_path / "out") == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    check_names(warning, "2 of 3 examples", "caption", "--require-caption", "--out")
    assert run("csv", table, "--require-caption", out=tmp_path / "some") == 0
    assert "WARNING" not in capsys.readouterr().out


def test_a_table_whose_caption_columns_have_other_names_is_refused(tmp_path, capsys):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    table = trees.write(folder / "t.csv", "image,raw,long\na.jpg,one,two\n")
    assert run("csv", table, out=tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "none of the caption columns title, description, caption" in shown
    assert "its columns are image, raw, long.  Name those of captions with --caption-column" in shown
    assert not list((tmp_path / "out").rglob("*.*record*"))
    assert run("csv", table, "--caption-column=raw", out=tmp_path / "out") == 0  # the folder is not taken
    labelled = trees.write(folder / "l.csv", "image,label,width\na.jpg,3,8\n")
    assert run("csv", labelled, out=tmp_path / "labels") == 0


def test_a_misspelt_caption_is_told_as_one_that_is_blank_everywhere(tmp_path, capsys):
    trees.write_tar(
        tmp_path / "x.tar", [*trees.sample("a", 1, short="one", few=None), *trees.sample("b", 2, few="two")]
    )
    names = [f"--caption-column={name}" for name in ("short", "few", "shrt")]
    assert run("webdataset", tmp_path / "x.tar", *names, out=tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "WARNING: the caption shrt is blank in every example" in shown and "--caption-column is misspelt" in shown


def test_a_caption_of_empty_lists_is_told_as_blank(tmp_path, capsys):
    trees.write_tar(tmp_path / "x.tar", trees.sample("a", 1, short="one", long=[]))
    names = [f"--caption-column={name}" for name in ("short", "long")]
    assert run("webdataset", tmp_path / "x.tar", *names, out=tmp_path / "out") == 0
    assert "WARNING: the caption long is blank in every example" in capsys.readouterr().out


# what else tables and folders hold


def test_null_captions_and_labels_of_jsonl_are_empty_ones(tmp_path):
    folder = tmp_path / "set"
    trees.write(folder / "a.jpg", trees.jpeg(1))
    rows = [
        {"path": "a.jpg", "title": "one", "description": None, "label": 3},
        {"path": "a.jpg", "title": None, "description": None, "label": None},
        {"path": None, "title": "no image", "description": "", "label": 1},
        {"path": "a.jpg", "title": "no description", "label": 1},
    ]
    table = trees.write(folder / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert run("jsonl", table, out=tmp_path / "out") == 0
    assert captions(tmp_path / "out") == {"t#1": ("one", ""), "t#2": ("", ""), "t#4": ("no description", "")}
    source = Records(tmp_path / "out", "train")
    assert sorted(source[index]["label"] for index in range(3)) == [-1, 1, 3]
    assert load(str(tmp_path / "out"))["splits"]["train"]["rejected"] == {"bad row": 1}


def test_a_first_object_without_a_caption_does_not_cost_the_captions_of_others(tmp_path):
    """The columns were the fields of the first object alone."""
    trees.write(tmp_path / "a.jpg", trees.jpeg(1))
    rows = [
        {"image": "a.jpg"},
        {"image": "a.jpg", "caption": "two"},
        {"image": "a.jpg", "boxes": [[1, 1, 3, 3]], "phrases": ["a"]},
    ]
    table = trees.write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert run("jsonl", table, out=tmp_path / "out") == 0
    assert captions(tmp_path / "out") == {"t#1": ("",), "t#2": ("two",), "t#3": ("",)}
    boxes = trees.write(tmp_path / "b.jsonl", json.dumps(rows[2]))
    assert run("jsonl", boxes, out=tmp_path / "boxes") == 0


def test_names_that_are_not_utf8_are_read_and_escaped_in_keys(tmp_path):
    folder, name = tmp_path / os.fsdecode(b"photos\xe9"), os.fsdecode(b"caf\xe9.jpg")
    trees.write(folder / "cat" / name, trees.jpeg(1))
    trees.write(folder / "cat" / name.replace("jpg", "txt"), "a cat")
    assert run("imagefolder", folder, out=tmp_path / "out") == 0
    assert captions(tmp_path / "out") == {r"cat/caf\udce9.jpg": ("a cat",)}
    table = trees.write(folder / "cat/t.jsonl", json.dumps({"image": name, "caption": "a cat"}))  # as "caf\udce9.jpg"
    assert run("jsonl", table, out=tmp_path / "table") == 0
    assert captions(tmp_path / "table") == {"t#1": ("a cat",)}


@pytest.mark.parametrize("root", ["folder", "x.zip"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, root):
    trees.write(tmp_path / "folder/a.jpg", trees.jpeg(1))
    trees.write_zip(tmp_path / "x.zip", [("a.jpg", trees.jpeg(1))])
    rows = [{"image": name, "caption": "one"} for name in ("\ud800.jpg", "a.jpg")]
    table = trees.write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert run("jsonl", table, "--images", tmp_path / root, out=tmp_path / "out") == 0
    assert load(str(tmp_path / "out"))["splits"]["train"]["rejected"] == {"missing file": 1}


def test_hidden_files_and_folders_are_no_classes_and_no_images(tmp_path):
    shown = ["cat/a.jpg", "dog/b.jpg", "dog/deep/c.jpg"]
    hidden = [".ipynb_checkpoints/x.jpg", "__MACOSX/cat/x.jpg", "cat/._a.jpg", "dog/.trash/x.jpg", ".x.jpg"]
    for number, name in enumerate([*shown, *hidden]):
        trees.write(tmp_path / "tree" / name, trees.jpeg(number))
    assert run("imagefolder", tmp_path / "tree", out=tmp_path / "out") == 0
    assert sorted(captions(tmp_path / "out")) == shown
    assert load(str(tmp_path / "out"))["splits"]["train"]["classes"] == ["cat", "dog"]


def test_a_hidden_folder_above_the_tree_does_not_hide_it(tmp_path):
    trees.write(tmp_path / ".cache/tree/cat/a.jpg", trees.jpeg(1))
    assert run("imagefolder", tmp_path / ".cache/tree", out=tmp_path / "out") == 0


def test_help_names_the_columns_and_their_defaults(capsys):
    assert main(["csv", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, first in (
        ("image", "image, jpg, filepath"),
        ("key", "key, id, image_id"),
        ("label", "label, cls, class"),
    ):
        assert f"--{flag}-column NAME" in text and f"default: the first that exists of {first}" in text
    assert "(default: title and description, else the first of caption, captions, text" in text


def test_the_help_of_a_source_has_its_own_flags(capsys):
    assert main(["imagefolder", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(said in text for said in ("--caption-template", "--captions-key", "CLASS/image.txt"))
    assert not any(said in text for said in ("--ids", "--image-column", "--subset", "slip-yfcc15m", "SOURCE"))


@pytest.mark.parametrize("remote", ["gs://bucket/out", "s3://bucket/out"])
def test_remote_folders_are_refused_with_the_way_out(tars, tmp_path, remote, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("webdataset", tars, out=remote) == 2
    assert run("imagefolder", remote, out=tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.count(f"error: {remote}: a local or mounted folder is required; mount the bucket") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tars"]


@pytest.mark.parametrize("source", [("imagefolder", "nowhere"), ("webdataset", "nowhere"), ("csv", "empty.csv")])
def test_a_source_that_is_missing_or_empty_leaves_nothing_behind(tmp_path, monkeypatch, source):
    """Neither the lock's folder nor the plan's; a folder that was there before stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("image,caption\n")
    before = sorted(tmp_path.rglob("*"))
    assert run(*source, out=tmp_path / "deep/out") == 2
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "out").mkdir()
    assert run(*source, out=tmp_path / "out") == 2
    assert (tmp_path / "out").is_dir() and not list((tmp_path / "out").iterdir())


def test_a_set_within_an_imagefolder_is_no_class(tmp_path):
    photos = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        trees.write(photos / name / "0.jpg", trees.jpeg(number))
    assert run("imagefolder", photos, out=tmp_path / "elsewhere") == 0
    classes = load(str(tmp_path / "elsewhere"))["splits"]["train"]["classes"]
    shutil.copytree(tmp_path / "elsewhere", photos / "a_set")
    assert run("imagefolder", photos, out=tmp_path / "again") == 0
    assert load(str(tmp_path / "again"))["splits"]["train"]["classes"] == classes


@pytest.mark.parametrize("out", ["", "cat", "cat/deep", "new"])
@pytest.mark.parametrize("kind", ["imagefolder", "webdataset"])
def test_a_folder_of_the_source_is_no_output(tmp_path, capsys, kind, out):
    photos = tmp_path / "photos"
    trees.write(photos / "cat/0.jpg", trees.jpeg(0))
    (tmp_path / "link").symlink_to(photos)
    assert run(kind, photos, out=tmp_path / "link" / out) == 2
    shown = capsys.readouterr().err
    assert f"is in the source {photos}; choose another --out, such as {photos}-records" in shown
    assert sorted(path.name for path in photos.rglob("*")) == ["0.jpg", "cat"]


def test_the_folder_of_the_images_of_a_table_is_no_output(tmp_path, capsys):
    photos = tmp_path / "photos"
    trees.write(photos / "0.jpg", trees.jpeg(0))
    table = trees.write(tmp_path / "t.csv", "path,caption\n0.jpg,one\n")
    assert run("csv", table, "--images", photos, out=photos / "records") == 2
    assert f"is in the source {photos}; choose another --out, such as {photos}-records" in capsys.readouterr().err
    assert run("csv", table, "--images", photos, out=tmp_path / "photos-records") == 0


def test_the_output_may_lie_beside_a_table_and_its_images(tmp_path):
    trees.write(tmp_path / "0.jpg", trees.jpeg(0))
    table = trees.write(tmp_path / "mine.csv", "image,caption\n0.jpg,one\n")
    for out in ("runs/mine", "runs/again"):  # the second run reads nothing of the first
        assert run("csv", table, out=tmp_path / out) == 0
        assert load(str(tmp_path / out))["splits"]["train"]["num_examples"] == 1


def test_captions_of_an_imagefolder_are_made_of_the_names_of_its_classes(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("red_fox/0.jpg", "owl/1.jpg", "top.jpg"):
        trees.write(photos / name, trees.jpeg(0))
    trees.write(photos / "owl/1.txt", "an owl at night")
    templates = ["--caption-template", "a photo of a {}", "--caption-template", "{}: {0} {name}"]
    assert run("imagefolder", photos, *templates, out=out) == 0
    made = ("a photo of a red fox", "red fox: {0} {name}")
    assert captions(out) == {"red_fox/0.jpg": made, "owl/1.jpg": ("an owl at night",), "top.jpg": ()}
    capsys.readouterr()
    assert run("imagefolder", photos, out=out) == 2
    assert "caption_templates: ('a photo of a {}', '{}: {0} {name}') before, () now" in capsys.readouterr().err


def test_the_text_of_an_image_may_end_in_capitals(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    trees.write(photos / "owl/1.JPG", trees.jpeg(0))
    trees.write(photos / "owl/1.TXT", "an owl at night")
    trees.write(photos / "owl/2.jpg", trees.jpeg(1))
    trees.write(photos / "owl/2.TXT", "of the camera")
    trees.write(photos / "owl/2.txt", "an owl by day")
    assert run("imagefolder", photos, "--caption-template", "a photo of a {}", out=out) == 0
    assert captions(out) == {"owl/1.JPG": ("an owl at night",), "owl/2.jpg": ("an owl by day",)}


def test_a_text_of_a_tar_that_is_not_utf8_rejects_its_example(tmp_path):
    """It was trained with the replacement character; other sources reject such a text."""
    members = [("a.jpg", trees.jpeg(0)), ("a.txt", "ein Käfer".encode("latin-1"))]
    members += [("b.jpg", trees.jpeg(1)), ("b.txt", "\ufeffein Käfer".encode())]
    trees.write_tar(tmp_path / "0.tar", members)
    assert run("webdataset", tmp_path / "0.tar", out=tmp_path / "out") == 0
    assert captions(tmp_path / "out") == {"0/b": ("ein Käfer",)}
    assert '"bad text", "' + "'utf-8' codec" in (tmp_path / "out/train-rejected.jsonl").read_text()


def test_a_prepared_set_among_the_images_of_a_class_is_refused(tmp_path, capsys):
    """`prepare` takes a folder with a prepared set for an output, and would leave its images out."""
    photos = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        trees.write(photos / name / "0.jpg", trees.jpeg(number))
    assert run("imagefolder", photos, out=tmp_path / "made") == 0
    shutil.copytree(tmp_path / "made", photos / "cat", dirs_exist_ok=True)
    assert run("imagefolder", photos, out=tmp_path / "again") == 2
    assert f"{photos}/cat has images and, from prepare, a set" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("inner", ["", "cat/"], ids=["flat", "classes"])
def test_splits_of_an_imagefolder_are_no_classes(tmp_path, capsys, inner):
    for number, split in enumerate(("train", "test")):
        trees.write(tmp_path / "tree" / split / f"{inner}{number}.jpg", trees.jpeg(number))
    assert run("imagefolder", tmp_path / "tree", out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "has the splits train, test" in error and f"imagefolder {tmp_path}/tree/train --split train" in error
    trees.write(tmp_path / "pets/dog/a.jpg", trees.jpeg(1))
    trees.write(tmp_path / "pets/train/b.jpg", trees.jpeg(2))  # next to the class dog, "train" is a class
    assert run("imagefolder", tmp_path / "pets", out=tmp_path / "out") == 0
    assert load(str(tmp_path / "out"))["splits"]["train"]["classes"] == ["dog", "train"]
