"""What is said of the captions before a run: each warning, the refusal of a set without any, and the one sample."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import check_names

from detailclip_jax import pretraining
from detailclip_jax.config import default, run_config
from detailclip_jax.data.caption_warnings import (
    check_some_caption,
    contrast_floor,
    sample_of,
    warning_of_single_sentences,
    warnings_of,
)
from detailclip_jax.data.mixture import Member, Mixture
from detailclip_jax.data.sources import BadRecord, write_records
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.runtime.progress import Console


def examples_of(*captions, **fields):
    return [{"captions": [each], "key": str(number), **fields} for number, each in enumerate(captions)]


def said(source, rule="random", contrast="", batch_size=64, **fields):
    """The warnings of a run on these examples."""
    config = default()
    config.batch_size = batch_size
    config.update_from_flattened_dict({"data.source": "records", "data.caption": rule, **fields})
    return warnings_of(sample_of(source), config, contrast)


class Counted:
    """Examples that count how often each is read; `bad` ones are unreadable."""

    def __init__(self, examples, bad=()):
        self.examples, self.bad, self.reads = examples, bad, [0] * len(examples)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.reads[index] += 1
        if index in self.bad:
            raise BadRecord(f"#{index}: hash mismatch")
        return self.examples[index]


def test_a_sample_is_the_readable_ones_of_the_same_200_examples_without_their_images():
    examples = examples_of(*map(str, range(1000)), image=b"x" * 9, label=3, long="l")
    once, again = Counted(examples), Counted(examples)
    ((_, size, sampled, num_mixed),) = sample_of(once)
    assert size == 1000 and len(sampled) == num_mixed == 200 == sum(once.reads) and max(once.reads) == 1
    assert sampled[0].keys() == {"captions", "long"}
    assert sampled == sample_of(again)[0].examples and once.reads == again.reads
    some_bad = Counted(examples, bad=range(500))
    assert 50 < len(sample_of(some_bad)[0].examples) < 150 and some_bad.reads == once.reads


def test_every_set_of_a_mixture_is_sampled_and_counts_by_its_share():
    sets = [examples_of(*f"{name} " * 500) for name in "ab"]  # single letters and blanks
    mixed = Mixture([Member("large", sets[0], 99), Member("small", sets[1], 1), Member("scenes", Stickers(), 100)])
    large, small, scenes = sample_of(mixed)
    assert [len(sample.examples) for sample in (large, small, scenes)] == [99, 50, 10]
    assert [sample.num_mixed for sample in (large, small, scenes)] == [99, 1, 100]
    equal, distinct = examples_of(*["a cat"] * 1000), examples_of(*map(str, range(1000)))
    assert not said(Mixture([Member("a", distinct, 99), Member("b", equal, 1)]), contrast="clip")
    (line,) = said(Mixture([Member("a", distinct, 1), Member("b", equal, 1)]), contrast="clip")
    check_names(line, "200 sampled examples have 101 distinct captions")


@pytest.mark.parametrize("text", ["a cat", "A cat. A dog"])
def test_captions_of_one_sentence_are_warned_of(text):
    lines = said(examples_of(*[text] * 10), "diverse", **{"data.num_captions": 4})
    assert len(lines) == (text == "a cat")
    for line in lines:
        check_names(
            line, "the captions of 10 of 10 sampled examples have one sentence: all 4 captions of such an image"
        )
        check_names(line, "'diverse'", "captions of several sentences")


@pytest.mark.parametrize(
    ("captions", "rule", "is_warned"),
    [
        (["A title"], "crops", True),
        (["A title."], "diverse:captions", True),
        (["One. Two"], "diverse", False),
        (["A title"], "random", False),
        (["A title", "a text"], "crops", False),
        ([""], "crops", False),
    ],
)
def test_a_single_sentence_counts_for_rules_of_sentences_only(captions, rule, is_warned):
    assert bool(warning_of_single_sentences([{"captions": captions}] * 20, rule, 8)) == is_warned


def test_examples_without_a_text_in_the_named_fields_are_warned_of():
    """As the images without a row of joined captions, which keep their own."""
    source = [{"captions": ["a"], "key": "k", "long": " "}, *[{"captions": ["a"], "key": "k", "long": "b"}] * 3]
    line = "1 of 4 sampled examples train with an empty text by data.caption '{}'; add a field that they have, as in "
    line += "--config.data.caption={}"
    assert said(source, "field:long") == [line.format("field:long", "field:long,captions")]
    assert said(source, "sources:captions,long") == [
        line.format("sources:captions,long", "sources:captions/captions,long/captions")
    ]
    assert said(source, "field:long,captions") == []
    (no_way_out,) = said([{**example, "captions": [""]} for example in source], "field:long")
    assert no_way_out == "1 of 4 sampled examples train with an empty text by data.caption 'field:long'"


def test_an_empty_caption_is_warned_of_without_a_named_field():
    """A row `a.jpg,` of a table."""
    (line,) = said(examples_of("a", "b", " ", *"defghijkl"))
    check_names(line, "1 of 12 sampled examples train with an empty text by data.caption 'random'", "--require-caption")
    assert said(examples_of("a", "b")) == []


@pytest.mark.parametrize("contrast", ["clip", ""])
def test_few_distinct_captions_are_warned_of_with_the_floor_of_the_contrast(contrast):
    """Issue 53: 1,050 images with three captions trained at ln(64) without a word."""
    source = examples_of(*(f"a {('cat', 'dog', 'bird')[i % 3]}" for i in range(1050)))
    lines = said(source, contrast=contrast)
    assert len(lines) == bool(contrast)
    for line in lines:
        check_names(line, "200 sampled examples have 3 distinct captions", "64", "'clip'", "below about 3.0", "4.16")
        check_names(line, "docs/troubleshooting.md")
    assert said(examples_of(*map(str, range(1050))), contrast=contrast) == []


@pytest.mark.parametrize(("captions", "floor"), [("aabb", np.log(2)), ("aaab", 0.75 * np.log(3)), ("abcd", 0), ("", 0)])
def test_the_floor_of_a_contrast_is_that_of_a_model_which_knows_every_caption(captions, floor):
    """The oracle: the loss of scores that are high wherever two captions are equal."""
    assert contrast_floor(captions, 4) == pytest.approx(floor)
    if captions:
        scores = jax.numpy.array([[100.0 * (a == b) for a in captions] for b in captions])
        loss = -jax.nn.log_softmax(scores).diagonal().mean()
        assert contrast_floor(captions, len(captions)) == pytest.approx(float(loss), abs=1e-6)


def test_captions_that_are_mostly_cut_are_warned_of():
    source = examples_of(*(f"a {colour} thing and another one " * 3 for colour in ("red", "blue", "green") * 12))
    (line,) = said(source, **{"model.context_length": 12})
    assert "100.0% of 36 sampled captions are longer than model.context_length 12" in line
    assert "(median length 20)" in line and "--config.model.context_length=20 keeps more" in line
    assert said(source, **{"model.context_length": 20}) == []


def test_scenes_are_not_judged_by_their_captions():
    """They have few words, by design, and as many scenes as a run takes."""
    fields = {"data.source": "stickers", "model.context_length": 4}
    assert said(Stickers(num_scenes=100), "first", "clip", **fields) == []


@pytest.mark.parametrize(
    "rule", ["random", "crops", "crops:long", "diverse:long", "sources:captions,long", "field:title"]
)
def test_a_set_without_any_caption_is_refused_by_every_rule(rule):
    """An example of such a set has no text field at all, so none can lack."""
    samples = sample_of([{"captions": [], "key": "k"}] * 20)
    where = {"crops:long": " in 'long'", "sources:captions,long": " in 'captions' or 'long'"}.get(rule, "")
    with pytest.raises(
        ValueError, match=f"20 examples, and none of 20 spread over it has a caption{where}.*--caption-c"
    ):
        check_some_caption(samples, rule)


@pytest.mark.parametrize(
    ("rule", "captions", "taken"),
    [
        ("random", [], "field:long,web"),
        ("diverse", [" . "], "diverse:long,web"),
        ("crops:web", ["a"], "crops:captions,long"),
    ],
)
def test_the_fields_that_have_texts_are_named(rule, captions, taken):
    example = {"captions": captions, "key": "k", "long": "A dog. A cat.", "web": "."}
    with pytest.raises(ValueError, match=f"trains on; take --config.data.caption={taken}, prepare the set again"):
        check_some_caption(sample_of([example] * 3), rule)


def test_one_text_in_a_named_field_is_enough():
    samples = sample_of([*examples_of(*"a" * 19), {"captions": ["a"], "key": "k", "title": "t"}])
    check_some_caption(samples, "sources:captions,title")
    check_some_caption(samples, "field:title")
    with pytest.raises(ValueError, match="has a caption in 'web'"):
        check_some_caption(samples, "field:web")


def test_a_set_of_unreadable_examples_is_not_said_to_have_no_captions():
    check_some_caption(sample_of(Counted(examples_of("", ""), bad=(0, 1))), "random")


def test_the_data_are_sampled_once_for_what_is_said_at_the_start_and_before_a_launch(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (40, 40)).save(stream, "PNG")
    examples = [{"image": stream.getvalue(), "captions": ["a cat"], "key": f"{i}", "label": -1} for i in range(60)]
    write_records(tmp_path / "set", examples)
    config = run_config.load("tests/configs/smallest.py:method=clip")
    config.update_from_flattened_dict({"data.source": "records", "data.path": f"{tmp_path}/set", "batch_size": 16})
    run, source = pretraining.prepare(config, tmp_path / "run"), Counted(examples)
    run = run._replace(source=source, console=Console(stream=io.StringIO()))
    run.task.introduce(run)
    check_names(run.console.stream.getvalue(), "*** WARNING: ", "sampled examples have 1 distinct captions")
    assert sum(source.reads) == 0
    check_names(run.task.findings["data"](run).text, "fingerprint", "; WARNING: ", "have 1 distinct captions")
    assert sum(source.reads) == 9  # eight of the fingerprint, and the last image
