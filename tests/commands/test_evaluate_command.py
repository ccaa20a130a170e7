"""python -m detailclip_jax.evaluate on a tiny checkpoint: what it writes, what it says, how it goes on."""

import csv
import json
import os
import re

import jax
import numpy as np
import pytest
from evaluation_data import CLASSES, write_checkpoint, write_folders

import detailclip_jax
from detailclip_jax import evaluate as command
from detailclip_jax import evaluation
from detailclip_jax.data import labelled
from detailclip_jax.evaluation import paper_numbers, protocols, results, tasks
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.protocols import slip
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.locks import alone

FIELDS = ("task", "dataset", "weights", "metric", "value", "n", "chance", "low", "high")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three classes, one of its images damaged; and a known set whose classes do not match."""
    folder = tmp_path_factory.mktemp("data")
    write_folders(folder / "toys")
    (folder / "toys/test/frog/3.png").write_bytes(b"no image")
    write_folders(folder / "pets", 1, splits=("test",))
    return folder


def run(workdir, out, *arguments):
    return command.main([f"--checkpoint={workdir}", f"--out={out}", "--batch-size=8", *arguments])


def records(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_folder_that_another_evaluation_writes_is_left_to_it(workdir, tmp_path, capsys):
    """Each of two evaluations wrote its own results over the other's."""
    with alone(tmp_path / "out" / command.LOCK):
        assert run(workdir, tmp_path / "out", "--tasks=zero_shot:stickers", "--num-examples=16") == errors.RUN_ERROR
    error = capsys.readouterr().err
    assert f"is writing to {tmp_path / 'out'}" in error and command.KEPT not in error


@pytest.mark.check
def test_tasks_on_stickers_need_no_data_and_are_not_run_twice(workdir, tmp_path, capsys, monkeypatch):
    tasks = "--tasks=zero_shot:stickers;retrieval:stickers_pairs;knn:stickers;kept_objects:stickers"
    assert run(workdir, tmp_path, tasks, "--num-examples=16", "--num-train-examples=16") == 0
    screen = capsys.readouterr().out
    assert "zero_shot stickers, top-1" in screen and "knn stickers, k=10, top-1" in screen
    assert "student and ema weights; published numbers of this method use the ema weights" in screen
    found = records(tmp_path)
    assert all(tuple(record)[: len(FIELDS)] == FIELDS for record in found)
    assert {(r["task"], r["weights"]) for r in found} == {
        (task, weights) for task in ("zero_shot", "retrieval", "knn", "kept_objects") for weights in ("student", "ema")
    }
    assert all(r["low"] <= r["value"] <= r["high"] and r["step"] == 0 and r["fingerprint"] for r in found)
    assert {r["n"] for r in found} == {16, 32}  # text to image asks with both captions
    monkeypatch.setattr(Embedder, "_embed_images", lambda *_: pytest.fail("embedded twice"))
    assert run(workdir, tmp_path, tasks, "--num-examples=16", "--num-train-examples=16") == 0
    assert "zero_shot:stickers ema: already measured" in capsys.readouterr().out
    assert records(tmp_path) == found
    assert (
        run(workdir, tmp_path, "--tasks=retrieval:stickers_pairs", "--num-examples=16", "--protocol=clip_benchmark")
        == 0
    )


def test_a_folder_of_images_gives_what_a_loop_gives(workdir, data, tmp_path, capsys):
    """Zero-shot over a folder's own classes; the damaged image is left out, counted and named."""
    assert run(workdir, tmp_path, "--tasks=zero_shot:toys", f"--data-dir={data}", "--weights=ema") == 0
    assert "toys, example 3: " in capsys.readouterr().out
    top1, *of_classes = records(tmp_path)
    assert [r["metric"] for r in of_classes] == [f"top1_of_{name}" for name in CLASSES]
    assert (top1["metric"], top1["n"], top1["unreadable"], top1["weights"]) == ("top1", 11, 1, "ema")
    model = detailclip_jax.load(workdir)
    templates = slip()["imagenet"]["templates"]
    means = [
        model.encode_text([t.replace("{}", name.replace("_", " ")) for t in templates]).mean(0) for name in CLASSES
    ]
    classes = np.stack([mean / np.linalg.norm(mean) for mean in means])
    files = [data / f"toys/test/{name}/{i}.png" for name in CLASSES for i in range(4) if (name, i) != ("frog", 3)]
    answers = (model.encode_image(files) @ classes.T).argmax(1)
    truth = [0] * 3 + [1] * 4 + [2] * 4
    assert top1["value"] == pytest.approx(np.mean(answers == truth))


@pytest.mark.check
def test_embeddings_are_kept_for_other_tasks_and_protocols(workdir, data, tmp_path, monkeypatch):
    made = []
    embed = Embedder._embed_images
    monkeypatch.setattr(Embedder, "_embed_images", lambda self, *args: made.append(args[3]) or embed(self, *args))
    asked = (f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path, "--tasks=zero_shot:toys;knn:toys;linear:toys", *asked) == 0
    assert made == ["image", "cls", "cls"]  # the probe finds what k-NN has embedded
    assert run(workdir, tmp_path, "--tasks=zero_shot:toys", "--protocol=clip_benchmark", *asked) == 0
    assert made == ["image", "cls", "cls"]
    assert {r["protocol"] for r in records(tmp_path) if r["task"] == "zero_shot"} == {
        "clip_benchmark, ImageNet's prompts"  # the set is not a published one
    }


def test_what_is_missing_is_listed_and_the_others_run(workdir, data, tmp_path, capsys):
    arguments = ("--tasks=zero_shot:imagenet,toys;retrieval:coco", f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path, *arguments) == 0
    screen = capsys.readouterr().out
    assert "zero_shot:imagenet: no data of 'imagenet'" in screen and "download_and_prepare()" in screen
    assert (
        "\nNot measured, data missing: zero_shot:imagenet, retrieval:coco.\n" in (tmp_path / "results.md").read_text()
    )
    assert {r["dataset"] for r in records(tmp_path)} == {"toys"}


def test_where_nothing_is_measured_nothing_is_written(workdir, data, tmp_path, capsys):
    assert run(workdir, tmp_path / "none", "--tasks=zero_shot:imagenet", f"--data-dir={data}") == 1
    screen = capsys.readouterr().out
    assert "\n1 task, protocol slip" in screen and "\nNot measured, data missing:\n" in screen
    assert screen.endswith("\nnothing was measured\n") and "others ran" not in screen and "written to" not in screen
    assert not list((tmp_path / "none").glob("results*"))
    (tmp_path / "void/mnist").mkdir(parents=True)
    assert run(workdir, tmp_path / "none", "--tasks=zero_shot:mnist", f"--data-dir={tmp_path / 'void'}") == 1
    assert "no data of 'mnist'" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
def test_interrupted_it_goes_on_with_what_is_left(workdir, tmp_path, capsys, monkeypatch, damaged):
    """A task that lacked an image is measured again, of the features that are stored."""
    folder, out = tmp_path / "data", tmp_path / "out"
    write_folders(folder / "toys")
    if damaged:
        (folder / "toys/test/frog/3.png").write_bytes(b"no image")
    arguments = ("--tasks=zero_shot:toys;knn:toys", f"--data-dir={folder}", "--weights=student")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("detailclip_jax.evaluation.knn.knn_metrics", stopped)
        assert run(workdir, out, *arguments) == errors.INTERRUPTED
    assert "the same command continues" in capsys.readouterr().err
    assert {r["task"] for r in records(out)} == {"zero_shot"}
    monkeypatch.setattr(Embedder, "_embed_images", lambda *_: pytest.fail("embedded twice"))
    assert run(workdir, out, *arguments) == 0
    screen = capsys.readouterr().out
    assert ("zero_shot:toys student: already measured" in screen) != damaged
    assert ("toys, example 3: " in screen) == damaged
    assert {r["task"] for r in records(out)} == {"zero_shot", "knn"}


def test_captions_that_are_cut_are_counted(workdir, tmp_path, capsys):
    """The tiny context has twelve tokens, less than a caption of four objects needs."""
    arguments = ("--tasks=retrieval:stickers", "--num-examples=16", "--weights=student")
    assert run(workdir, tmp_path, *arguments) == 0
    count = records(tmp_path)[0]["truncated"]
    assert count > 0 and f"- retrieval:stickers: {count}" in capsys.readouterr().out


def test_a_failing_task_does_not_stop_the_others_and_the_status_says_so(workdir, data, tmp_path, capsys):
    arguments = ("--tasks=zero_shot:pets,toys", f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path, *arguments) == 1
    screen = capsys.readouterr().out
    assert "zero_shot:pets: FAILED: pets, protocol slip: 3 classes of the data have an unknown name" in screen
    assert {r["dataset"] for r in records(tmp_path)} == {"toys"}


def test_the_paper_s_numbers_stand_beside_ours(workdir, tmp_path, data, monkeypatch):
    """A set under a name of the paper: the tables have the paper's columns and this method's rows."""
    toys = labelled.open_set("toys", data)
    monkeypatch.setattr(labelled, "open_set", lambda name, *args, **kwargs: toys._replace(name=name))
    monkeypatch.setitem(slip(), "dtd", {"classes": list(CLASSES), "templates": ["a {}"], "metric": "accuracy"})
    assert run(workdir, tmp_path, "--tasks=zero_shot:toys,dtd", "--compare=paper", f"--data-dir={data}") == 0
    text = (tmp_path / "results.md").read_text()
    head, _, *rows = [line for line in text.split("## Table 3")[1].split("##")[0].splitlines() if line[:1] == "|"]
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert columns == ["", *paper_numbers.columns("zero_shot"), "mean"]
    assert [row.split("|")[1].strip() for row in rows] == [
        "student",
        "EMA",
        "paper: DetailCLIP, 25 epochs",
        "paper: DetailCLIP, 50 epochs",
    ]
    cells = [cell.strip() for cell in rows[2].split("|")[1:-1]]
    assert cells[columns.index("dtd")] == "30.1" and cells[-1] == "37.3"  # as printed
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]].count("") == 13  # twelve sets and the mean of all
    with (tmp_path / "results.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["metric"] == "top1"]
    assert [line["dataset"] for line in lines] == ["dtd", "dtd", "toys", "toys"]  # the paper's first
    assert [float(line["paper: DetailCLIP, 50 epochs"] or 0) for line in lines] == pytest.approx([0.298, 0.298, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=zero_shoot:toys"], "unknown task 'zero_shoot'; did you mean 'zero_shot'?"),
        (["--tasks=zero_shot:imagenett"], "unknown set 'imagenett'; did you mean 'imagenet'?"),
        (["--tasks=paper:imagenet"], "'paper:imagenet': paper "),
        (["--tasks=imagenet"], "'imagenet' is a set, not a task; write for example zero_shot:imagenet"),
        (["--tasks=retrieval:pets"], "pets has classes and no captions; sets for retrieval are"),
        (["--tasks=zero_shot:coco"], "coco has captions and no classes; sets for zero_shot are"),
        (["--tasks=segmentation:pets"], "write segmentation:stickers"),
        (["--tasks=knn:stickers_pairs"], "write knn:stickers"),
        (["--tasks=;"], "--tasks is empty"),
        (["--tasks=zero_shot"], "--tasks: zero_shot names no set; write for example zero_shot:pets"),
        (["--weights=teacher"], "unknown weights 'teacher'"),
        (["--num-examples=0"], "argument --num-examples: '0' must be a whole number of at least 1"),
        (["--protocol=slipp"], "unknown protocol 'slipp'; did you mean 'slip'?"),
        (["--step=7"], "no checkpoint of step 7"),
        (["--checkpoint=nowhere"], "folder nowhere does not exist"),
        (["--checkpoint={workdir}/checkpoints"], "give the run, {workdir}"),
        (["--checkpoint={workdir}/checkpoints/0"], "give the run, {workdir}, and step 0"),
        (["--checkpoint={workdir}/config.json"], "config.json is inside of a run; give the run, {workdir}"),
    ],
)
def test_mistakes_are_one_message(workdir, tmp_path, capsys, arguments, message):
    given = [argument.format(workdir=workdir) for argument in arguments]
    assert run(workdir, tmp_path, *given) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message.format(workdir=workdir) in error and "Traceback" not in error


def test_a_damaged_checkpoint_is_one_message(tmp_path, capsys):
    workdir = write_checkpoint(tmp_path / "damaged")
    for file in (workdir / "checkpoints/0/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert run(workdir, tmp_path / "out") == errors.RUN_ERROR
    assert "error: the checkpoint of step 0 in" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", "1", '{"task": "zero_shot"}', "null"])
def test_a_foreign_results_file_is_refused_and_kept(workdir, data, tmp_path, capsys, line):
    file = tmp_path / "out/results.jsonl"
    file.parent.mkdir()
    file.write_text(line)
    assert run(workdir, tmp_path / "out", "--tasks=zero_shot:toys", f"--data-dir={data}") == errors.USAGE_ERROR
    assert f"error: {file} is not a results.jsonl of this command" in capsys.readouterr().err
    assert file.read_text() == line


def test_a_disk_that_takes_no_more_is_one_message(workdir, data, tmp_path, capsys, monkeypatch):
    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "replace_text", full)
    asked = ("--tasks=zero_shot:toys", f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path / "out", *asked) == errors.RUN_ERROR
    assert "error: No space left on device; what was measured is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ValueError("--out=/out holds results of other weights"),
            2,
            "error: --out=/out holds results of other weights\n",
        ),
        (OSError(28, "No space left on device"), 1, f"error: No space left on device; {command.KEPT}\n"),
        (KeyboardInterrupt(), 130, f"\ninterrupted; {command.KEPT}\n"),
    ],
)
def test_one_of_several_processes_says_the_same(workdir, tmp_path, capsys, monkeypatch, error, code, said):
    """It ends by os._exit, past `main`, for the others would wait for it."""

    class Ended(BaseException):
        pass

    def ends(status):
        raise Ended(status)

    def fails(*_, **__):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise error

    monkeypatch.setattr(evaluation, "run_tasks", fails)
    monkeypatch.setattr(os, "_exit", ends)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.jsonl").touch()
    with pytest.raises(Ended) as ended:
        run(workdir, tmp_path / "out", "--tasks=zero_shot:stickers")
    assert ended.value.args == (code,) and capsys.readouterr().err == said


def test_a_folder_that_cannot_be_written_is_said_before_the_work(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "run_tasks", lambda *_, **__: pytest.fail("said too late"))
    (tmp_path / "file").touch()
    assert run(workdir, tmp_path / "file/out", "--tasks=zero_shot:stickers") == errors.RUN_ERROR
    said = capsys.readouterr()
    assert f"{tmp_path}/file/out" in said.err and "is kept" not in said.err
    assert "data in data" not in said.out and "sets on disk: data; results: " in said.out


def test_the_folder_of_another_checkpoint_is_refused(workdir, data, tmp_path, capsys):
    asked = ("--tasks=zero_shot:toys", f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path / "out", *asked) == 0
    file = tmp_path / "out/results.jsonl"
    file.write_text(file.read_text().replace(records(tmp_path / "out")[0]["digest"], "another"))
    assert run(workdir, tmp_path / "out", *asked) == errors.USAGE_ERROR
    assert "results of other weights (step 0 of" in capsys.readouterr().err


def test_flags_override_how_images_are_made(workdir, data, tmp_path, capsys, monkeypatch):
    seen, real = [], Embedder.images
    monkeypatch.setattr(Embedder, "images", lambda *given: seen.append(given[3]) or real(*given))
    asked = ("--tasks=zero_shot:toys", f"--data-dir={data}", "--weights=student")
    assert run(workdir, tmp_path / "out", *asked, "--resize-filter=bicubic", "--crop-ratio=.8") == 0
    assert "preprocess: shorter side to 40 px (bicubic), center crop 32 px, mean 0.485" in capsys.readouterr().out
    assert seen == [(32, 40, "bicubic", "shorter_side", "upright", 0, 0)]
    assert run(workdir, tmp_path / "out", *asked) == errors.USAGE_ERROR
    assert "or of another preprocessing; choose another folder" in capsys.readouterr().err
    assert run(workdir, tmp_path / "new", *asked, "--crop-ratio=2") == errors.USAGE_ERROR
    assert "crop_ratio 2.0 must be greater than 0 and at most 1" in capsys.readouterr().err


def test_a_row_without_text_leaves_out_what_needs_it(tmp_path, data, capsys):
    workdir = write_checkpoint(tmp_path / "dino", "dino")
    asked = ("--tasks=zero_shot:toys;knn:toys", f"--data-dir={data}", "--weights=ema")
    assert run(workdir, tmp_path / "out", *asked) == 0
    assert "zero_shot:toys ema: dino has no image_projection, text, text_projection" in capsys.readouterr().out
    assert {r["task"] for r in records(tmp_path / "out")} == {"knn"}


def test_help_names_every_kind_set_and_option(capsys):
    """It is written out, so that --help imports none of them."""
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = lambda start: text.partition(start)[2].partition("\n\n")[0].partition("\nor any")[0].strip(".")
    names = lambda start: [name.strip(" .") for name in listed(start).replace("\n", " ").split(",")]
    assert names("\nSets of choice: ") == ["stickers", *labelled.CHOICES] and names("\nSets: ") == [*labelled.KNOWN]
    kinds = re.findall(r"^  (\w+) +\S", listed("splits at ;):\n\n"), re.MULTILINE)
    assert kinds == [*tasks.KINDS]
    of_stickers = [entry.partition(":")[0] for entry in tasks.GROUPS["stickers"].split(";")]
    assert f"as a task: {', '.join(of_stickers)}\n" in text
    assert command.PROTOCOLS == protocols.PROTOCOLS and "--num-examples" in text
