"""Examples of one's own data that training never sees, and what a run says about them at its end."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import on_devices

from detailclip_jax import evaluation, main, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.data import held_out, mixture, pipeline
from detailclip_jax.data.image_operations import evaluation_view
from detailclip_jax.data.sources import MissingData, write_records
from detailclip_jax.evaluation import run_figures
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import train as training

INDICES = [61, 479, 774, 845, 971]  # of the bits of PCG64, which numpy promises to keep
WORDS = ("red", "blue", "green", "black")


def examples(num, first=0, caption="a {colour} thing, number {i}"):
    for i in range(first, first + num):
        stream = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(stream, "PNG")
        text = caption.format(colour=WORDS[i % 4], i=i)
        yield {"image": stream.getvalue(), "captions": [text] if text else [], "key": f"{i}"}


def config_of(path, **fields):
    config = run_config.load("tests/configs/smallest.py")
    config.data.source, config.data.path, config.steps_per_epoch = "records", str(path), None
    config.update_from_flattened_dict({"data.held_out": 1000, "total_steps": 2, "evaluate_at_end": True} | fields)
    return config


def keys(source):
    return {source[index]["key"] for index in range(len(source))}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, examples(60))
    return folder


@pytest.mark.parametrize(
    ("asked", "num_examples", "expected"),
    [(1000, 14_689_580, 1000), (1000, 5_000, 100), (1000, 200, 8), (1000, 30, 3), (1000, 9, 0), (5, 5_000, 5)],
)
def test_a_few_examples_and_never_more_than_a_tenth_are_held_back(asked, num_examples, expected):
    assert held_out.number(asked, num_examples) == expected


def test_which_places_are_drawn_is_no_matter_of_numpy_s_version():
    assert sorted(held_out.sample_indices(1000, 5)) == INDICES
    for num, count in ((10, 10), (10, 1), (1, 1), (5, 0), (15_000_000, 1000)):
        found = held_out.sample_indices(num, count)
        assert len(set(found)) == len(found) == count and set(found) <= set(range(num))


def test_every_place_is_drawn_as_often():
    counts = np.zeros(40)
    for num in range(20, 41):  # other sizes give other draws of the same bits
        counts[held_out.sample_indices(num, num // 2)] += 1
    assert counts[:20].min() >= 4 and counts[:20].max() <= 18  # of 21, each with a chance of a half


def test_what_is_held_back_is_not_trained_on(records):
    config = config_of(records)
    kept, held = pipeline.open_source(config), held_out.open_held_out(config.data)
    assert (len(kept), len(held.source)) == (54, 6) and held.origin == "6 of 60 examples"
    assert keys(kept) | keys(held.source) == {str(i) for i in range(60)} and not keys(kept) & keys(held.source)
    other = held_out.open_held_out(config_of(records, seed=1).data)  # runs of other seeds compare
    assert keys(other.source) == keys(held.source)
    with pytest.raises(IndexError):
        kept[54]
    assert len(pipeline.open_source(config_of(records, **{"data.held_out": 0}))) == 60


@pytest.mark.parametrize(("num_rows", "num_held"), [(1, 20), (5, 20), (7, 21), (200, 39)])
def test_rows_of_one_image_are_held_out_together(num_rows, num_held):
    rows = [{"image": b"%d" % (i // num_rows)} for i in range(200)]
    held = held_out.choose(rows, 20).tolist()
    assert held == sorted(set(held)) and len(held) == num_held
    if num_rows < 200:  # of a single image, one part is held out
        images = {rows[i]["image"] for i in held}
        assert not images & {row["image"] for i, row in enumerate(rows) if i not in held}


def test_each_set_of_a_mixture_holds_back_its_share(records, tmp_path):
    write_records(tmp_path / "more", examples(200, first=100))
    config = config_of(f"{records}@1,{tmp_path / 'more'}@3")
    kept, held = pipeline.open_source(config), held_out.open_held_out(config.data)
    assert [len(member.source) for member in mixture.members_of(kept)] == [54, 192]
    assert [member.weight for member in mixture.members_of(kept)] == [1, 3]
    assert len(held.source) == 14 and not keys(kept) & keys(held.source)


def test_a_split_of_its_own_is_taken_instead(records, tmp_path):
    write_records(tmp_path, examples(30))
    write_records(tmp_path, examples(5, first=90), split="val")
    config = config_of(tmp_path)
    held = held_out.open_held_out(config.data)
    assert len(pipeline.open_source(config)) == 30 and held.origin.endswith(" examples, split val")
    assert keys(held.source) == {str(i) for i in range(90, 95)}


@pytest.mark.parametrize(
    ("file", "message"),
    [("val-00000.arrayrecord", "not readable as ArrayRecord"), (".prepare-val/plan.json", "prepare has not finished")],
)
def test_a_split_of_its_own_that_cannot_be_read_is_an_error(tmp_path, file, message):
    write_records(tmp_path, examples(30))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    config = config_of(tmp_path, **{"data.held_out": 1000})
    with pytest.raises(MissingData, match=message):
        pipeline.open_source(config)
    assert evaluation.held_out_pairs.find(config) is None and re.search(
        message, evaluation.held_out_pairs.none_because(config)
    )
    assert len(pipeline.open_source(config_of(tmp_path, **{"data.held_out": 0}))) == 30  # which holds nothing out


def test_scenes_without_end_hold_nothing_back():
    config = run_config.load("configs/stickers.py")
    assert config.data.held_out == 1000 and held_out.open_held_out(config.data) is None
    assert not hasattr(pipeline.open_source(config), "places") and "held_out" not in evaluation.plan(config)
    before = run_config.load("configs/stickers.py")
    before.data.held_out = 0  # a run of an earlier version goes on
    assert not run_config.differences(before, config)
    assert "data.held_out" in run_config.differences(config_of("/a"), config_of("/a", **{"data.held_out": 0}))


@pytest.fixture(scope="module")
def finished(records, tmp_path_factory):
    """A run on own data, from the first step to its report."""
    with on_devices(2):
        run = pretraining.prepare(config_of(records), tmp_path_factory.mktemp("run"))
        run = run._replace(console=Console(stream=io.StringIO()))
        assert training.train(run) == 0
    return run


@pytest.mark.check
def test_a_run_on_own_data_ends_with_numbers_and_images(finished):
    text, report = finished.console.stream.getvalue(), (finished.workdir / "report.md").read_text()
    assert "data records: 54 examples" in text and "2 steps of 8, 0.296 epochs" in text
    assert "held out from training: 6 of 60 examples" in text
    assert "schedules count 6 steps as an epoch" in text
    assert "image to text R@1" in report and "no evaluator has a result" not in report
    assert "Held out: 6 of 60 examples." in report
    results = json.loads((finished.workdir / "results.json").read_text())["results"]
    assert {(r["task"], r["weights"]) for r in results} == {("held_out", "student"), ("held_out", "ema")}
    assert {r["n"] for r in results} == {6}
    assert re.search(r"^\| -+ \|( -+: \|)+$", report, re.MULTILINE), "a table that Markdown reads, with n below 10"
    drawn = {file.name for file in (finished.workdir / "figures").iterdir()}
    assert drawn == {"loss_curves.png", "attention.png", "reconstructions.png"}


@pytest.mark.check
def test_the_figures_show_held_out_images_of_the_data(finished):
    shown = run_figures.held_out_images(finished.config)
    assert shown.images.shape == (6, 32, 32, 3) and (shown.name, shown.credit) == ("image", "")


def test_the_figures_show_images_of_all_the_data_and_none_that_is_unreadable(tmp_path, caplog):
    made = [example | ({"image": b"damaged"} if i in (20, 29) else {}) for i, example in enumerate(examples(30))]
    write_records(tmp_path, examples(9))
    write_records(tmp_path, made, split="val")
    config = config_of(tmp_path)
    shown, source = evaluation.held_out_pairs.images(config, 3), held_out.open_held_out(config.data).source
    expected = [evaluation_view(pipeline.read(source, index)[1], 32) for index in (0, 10, 21)]
    np.testing.assert_array_equal(shown, expected)
    assert len(evaluation.held_out_pairs.images(config, 40)) == 28 and "20: not an image" in caplog.text


def test_a_run_without_held_out_examples_says_how_to_have_some(tmp_path):
    write_records(tmp_path, examples(9))
    config = run_config.resolve(config_of(tmp_path), 9)
    assert evaluation.plan(config) == {}
    text = evaluation.run_report.markdown({}, config, step=2)
    assert "no evaluator has a result" in text
    assert "Held out: none; too few examples (9) to hold any out; " in text and "data.held_out" not in text
    none = config_of(tmp_path, **{"data.held_out": 0})
    assert "Held out: none; exclude some" in evaluation.run_report.markdown({}, run_config.resolve(none, 9), step=2)
    config.unlock()
    config.evaluators = {"held_out": {}}
    with pytest.raises(ValueError, match="the data have no held-out examples"):
        evaluation.check(None, config)


@pytest.mark.check
def test_held_out_examples_without_captions_are_no_error(finished, tmp_path):
    write_records(tmp_path, examples(100, caption=""))
    config = config_of(tmp_path)
    (evaluator,) = evaluation.build_all(finished.experiment.encode, config).values()
    assert list(evaluator.run({})) == []
    assert "or the data have no captions: held_out" in evaluation.run_report.markdown({}, config, step=2)


@pytest.mark.check
def test_a_supervised_run_on_own_data_ends_with_its_accuracy(tmp_path):
    """Issue 53: it ended with "no evaluator has a result"."""
    write_records(tmp_path / "set", ({**example, "label": int(example["key"]) % 2} for example in examples(60)))
    classes = {"splits": {"train": {"classes": ["cat", "dog"]}}}
    (tmp_path / "set/dataset.json").write_text(json.dumps(classes))
    config = config_of(tmp_path / "set", **{"model.num_classes": 2, "losses.weights.labels": 1.0})
    config.method = "supervised"
    run = pretraining.prepare(config, tmp_path / "run")
    assert training.train(run._replace(console=Console(stream=io.StringIO()))) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())["results"]
    found = {result["metric"]: result for result in results if result["task"] == "held_out_classes"}
    assert set(found) == {"top1", "top1_of_cat", "top1_of_dog"} and found["top1"]["n"] == 6
    hits = sum(found[name]["value"] * found[name]["n"] for name in ("top1_of_cat", "top1_of_dog"))
    assert found["top1"]["value"] == pytest.approx(hits / 6)
    assert "top-1 of the held-out examples" in (tmp_path / "run/report.md").read_text()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a/train": "cat dog fox", "a/val": "cat fox"}, "label 1 is 'dog' in {}/a, split train, but 'fox' in .*val"),
        ({"a/train": "cat dog", "b/train": "bird cat"}, "label 0 is 'cat' in {}/a, split train, but 'bird' in {}/b"),
        ({"a/train": "cat dog fox", "a/val": "cat dog"}, None),
        ({"a/train": "cat", "b/train": "cat dog", "c/train": "cat fox"}, "label 1 is 'dog' in {}/b"),
    ],
)
def test_a_label_means_one_class_in_all_sets_and_splits(tmp_path, sets, message):
    """The folders of each split are numbered by themselves, so the accuracy on another split was a wrong number."""
    described = {}
    for place, classes in sets.items():
        name, split = place.split("/")
        labels = range(len(classes.split()))
        write_records(tmp_path / name, ({**one, "label": label} for one, label in zip(examples(9), labels)), split)
        described.setdefault(name, {})[split] = {"classes": classes.split()}
    for name, splits in described.items():
        (tmp_path / name / "dataset.json").write_text(json.dumps({"splits": splits}))
    (tmp_path / "a/classnames.txt").write_text("readable\nnames\n")  # not compared: they may be other words
    (tmp_path / "a/.prepare-test").mkdir()
    (tmp_path / "a/.prepare-test/plan.json").write_text("{}")  # another split that is not finished stops no run
    fields = {"model.num_classes": 3, "data.held_out": 0}
    config = config_of(",".join(str(tmp_path / name) for name in described), **fields)
    if message is None:
        pipeline.open_source(config)
    else:
        with pytest.raises(ValueError, match=message.format(tmp_path, tmp_path)):
            pipeline.open_source(config)


def test_a_finished_run_names_the_command_that_goes_on(tmp_path):
    flags = ["--config=a.py", "--config.total_steps", "20", "--config.data.path=/my data", "-config.num_epochs=3"]
    text = main.next_commands(flags, tmp_path / "my run", 20)
    first = text.splitlines()[0]
    assert first.endswith(
        "python -m detailclip_jax.main --config=a.py '--config.data.path=/my data' --config.total_steps=40"
    )
    assert f"--checkpoint='{tmp_path}/my run'" in text
