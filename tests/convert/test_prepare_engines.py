"""The same bytes from one process, several, one that was killed with -9, and the copy for TensorFlow Datasets."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import prepare_trees as trees
import pytest
from test_prepare import contents, prepared

from detailclip_jax.convert import local_engine
from detailclip_jax.data.labelled import open_set
from detailclip_jax.data.sources import Records, TfdsRecords
from detailclip_jax.prepare import main

ROOT = pathlib.Path(__file__).parents[2]


def start(source, out, *options):
    """The command in a process of its own, which hears SIGINT even where a shell began the tests in the background."""
    command = [sys.executable, "-m", "detailclip_jax.prepare", "webdataset", str(source), "--out", str(out), *options]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process inherits what is ignored
    try:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not condition():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return trees.webdataset(tmp_path_factory.mktemp("tars"), num_tars=6, per_tar=60)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """Made in this process, by one worker."""
    out = tmp_path_factory.mktemp("out")
    prepared(source, out)
    return contents(out)


@pytest.mark.check
@pytest.mark.parametrize("workers", ["2", pytest.param("3", marks=pytest.mark.slow)])
def test_the_output_does_not_depend_on_the_workers(source, expected, tmp_path, workers):
    process = start(source, tmp_path, "--workers", workers)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert contents(tmp_path) == expected


@pytest.mark.check
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(source, expected, tmp_path, workers):
    process = start(source, tmp_path, "--workers", workers)
    work = tmp_path / ".prepare-train"
    wait_for(lambda: len(list(work.glob("0*.json"))) >= 2, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len(list(work.glob("0*.json")))
    assert done >= 2
    assert not (tmp_path / "dataset.json").exists()
    again = start(source, tmp_path, "--workers", workers)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert contents(tmp_path) == expected


@pytest.mark.check
def test_ctrl_c_ends_with_a_message(tmp_path):
    tars, out, image = tmp_path / "tars", tmp_path / "out", trees.jpeg(0, 1600, 1200)  # some 20 ms each to decode
    for tar in range(20):
        members = [[(f"{tar:02}{n:03}.jpg", image), (f"{tar:02}{n:03}.txt", b"a frog")] for n in range(40)]
        trees.write_tar(tars / f"{tar:05}.tar", itertools.chain(*members))
    process = start(tars, out, "--workers", "2")
    wait_for(lambda: list((out / ".prepare-train").glob("0*.json")), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; finished shards stay, and the same command continues" in said
    assert "Traceback" not in said


def test_workers_end_where_the_main_process_was_killed(source, tmp_path):
    process = start(source, tmp_path, "--workers", "2")
    wait_for(lambda: list((tmp_path / ".prepare-train").glob("0*.json")), process)
    workers = [int(pid) for pid in children(process.pid)]
    assert workers
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_a_worker_that_is_killed_is_a_message(source, tmp_path):
    process = start(source, tmp_path, "--workers", "2")
    wait_for(lambda: list((tmp_path / ".prepare-train").glob("0*.json")), process)
    for pid in children(process.pid):
        if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
            break
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: a worker was killed" in said
    assert "Traceback" not in said


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("lists child processes by /proc, which only Linux has")
    return path.read_text().split()


def alive(pid):
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_tells_now_and_then():
    import multiprocessing

    counts = [multiprocessing.Value("q", 0) for _ in range(3)]
    report = local_engine.Report(counts)
    for _ in range(local_engine.BATCH - 1):
        report(1, 10, 1)
    assert [count.value for count in counts] == [0, 0, 0]
    report(1, 10, 0)
    assert [count.value for count in counts] == [local_engine.BATCH, 10 * local_engine.BATCH, local_engine.BATCH - 1]


# TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds_copy(tmp_path_factory):
    """(prepared folder, tfds data_dir) of one small set with named captions."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    members = [trees.sample(f"{n}", n, title=f"title {n}", description=f"text {n}") for n in range(7)]
    trees.write_tar(folder / "in/x.tar", trees.flat(members))
    prepared(folder / "in", folder / "out", 3, caption_columns=("title", "description"))
    assert main(["to-tfds", str(folder / "out"), "--name", "tiny", "--data-dir", str(folder / "tfds")]) == 0
    return folder / "out", folder / "tfds"


def test_tfds_reads_the_same_data(tfds_copy):
    import tensorflow_datasets as tfds

    out, data_dir = tfds_copy
    skip = {"image": tfds.decode.SkipDecoding()}
    data = tfds.data_source("detailclip_image_text/tiny", split="train", data_dir=data_dir, decoders=skip)
    ours = {example["key"].encode(): example for example in (Records(out, "train")[n] for n in range(7))}
    assert len(data) == len(ours) == 7
    for index in range(7):
        example = ours[data[index]["key"]]
        assert data[index]["image"] == example["image"]
        assert data[index]["title"].decode() == example["title"]
        assert data[index]["description"].decode() == example["description"]
        assert [text.decode() for text in data[index]["captions"]] == list(example["captions"])
        assert data[index]["label"] == example["label"]


def test_training_and_prepare_read_the_copy(tfds_copy, tmp_path):
    out, data_dir = tfds_copy
    path = str(data_dir / "detailclip_image_text/tiny/1.0.0")
    assert len(TfdsRecords(path, "train")) == 7
    command = [f"tfds:{path}", "--out", str(tmp_path), "--split", "val", "--subset", "train", "--workers", "1"]
    assert main([*command, "--limit", "5"]) == 0
    again, first = Records(tmp_path, "val"), Records(out, "train")
    known = {first[n]["key"]: first[n] for n in range(7)}
    assert len(again) == 5
    for example in (again[n] for n in range(5)):
        assert example["image"] == known[example["key"]]["image"]
        assert example["captions"][:2] == known[example["key"]]["captions"]


def test_evaluation_takes_the_captions_of_the_copy(tfds_copy, tmp_path):
    """Its label is a number without class names."""
    out, data_dir = tfds_copy
    path = data_dir / "detailclip_image_text/tiny/1.0.0"
    opened, first = open_set(f"folder:{path}", tmp_path, "train"), Records(out, "train")
    known = {first[n]["key"]: first[n]["captions"] for n in range(7)}
    assert opened.classes == () and len(opened.source) == 7
    for number in range(7):
        assert opened.source[number]["captions"] == tuple(known[opened.source[number]["key"].rpartition(":")[2]])


def test_a_name_that_is_taken_is_refused(tfds_copy, capsys):
    out, data_dir = tfds_copy
    assert main(["to-tfds", str(out), "--name", "tiny", "--data-dir", str(data_dir)]) == 2
    assert "already exists" in capsys.readouterr().err
