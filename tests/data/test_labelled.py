"""Small trees in each real layout, and what a reader must notice about them."""

import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data.image_operations import SUFFIXES
from detailclip_jax.data.labelled import KNOWN, open_set, ready
from detailclip_jax.data.labelled import tfds_sets as tfds_layout
from detailclip_jax.data.labelled.known_sets import PAPER
from detailclip_jax.data.labelled.opening import FirstCaptions
from detailclip_jax.data.pipeline import read
from detailclip_jax.data.sources import BadRecord, MissingData, Source, write_records
from detailclip_jax.evaluation.evaluation_sets import Sets

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}


def make_image(colour: tuple[int, int, int], seed: int = 0, form: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 40, (9, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise + np.array(colour, np.uint8)).save(stream, form)
    return stream.getvalue()


def put(path: pathlib.Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def class_folders(root: pathlib.Path, classes=("cat", "dog", "owl"), num: int = 2) -> None:
    for name in classes:
        for i in range(num):
            put(root / name / f"{i}.png", make_image(COLOURS[name], i))


def tar(path: pathlib.Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def wds(root: pathlib.Path, shards: list[list[tuple[str, bytes]]], classes: str | None = "cat\ndog\nowl\n") -> None:
    """As clip-benchmark's converter writes it."""
    for number, members in enumerate(shards):
        tar(root / "test" / f"{number}.tar", members)
    put(root / "test" / "nshards.txt", f"{len(shards)}\n")
    if classes is not None:
        put(root / "classnames.txt", classes)
        put(root / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of the {c}.\n")
    else:
        put(root / "dataset_type.txt", "retrieval\n")


def labelled_members(labels: list[int], first: int = 0) -> list[tuple[str, bytes]]:
    colours = list(COLOURS.values())
    return [
        member
        for i, label in enumerate(labels, first)
        for member in (
            (f"s{i:07d}.webp", make_image(colours[label], i, "WEBP")),
            (f"s{i:07d}.cls", str(label).encode()),
        )
    ]


def colour_of(source: Source, index: int) -> str:
    """The class that an image shows, whatever its label says."""
    mean = read(source, index)[1].mean((0, 1))
    return min(COLOURS, key=lambda name: np.abs(mean - np.array(COLOURS[name]) - 20).sum())


def assert_labels_are_right(opened) -> None:
    shown = [colour_of(opened.source, i) for i in range(len(opened.source))]
    assert shown == [opened.classes[opened.source[i]["label"]] for i in range(len(opened.source))]


# folders


def test_folders_give_classes_in_order_of_names(tmp_path):
    class_folders(tmp_path / "animals" / "test")
    opened = open_set("animals", tmp_path)
    assert opened.classes == ("cat", "dog", "owl") and len(opened.source) == 6 and opened.expected is None
    assert opened.source[3]["key"] == "dog/1.png" and isinstance(opened.source, Source)
    assert_labels_are_right(opened)


@pytest.mark.parametrize("name", ["test", "val", "validation", "dev"])
def test_the_evaluated_split_has_several_names(tmp_path, name):
    class_folders(tmp_path / "animals" / name)
    class_folders(tmp_path / "animals" / "train", num=1)
    assert len(open_set("animals", tmp_path).source) == 6
    assert len(open_set("animals", tmp_path, split="train").source) == 3


def test_a_split_without_labels_is_passed_over(tmp_path):
    put(tmp_path / "imagenet" / "test" / "ILSVRC2012_test_00000001.png", make_image(COLOURS["cat"]))
    class_folders(tmp_path / "imagenet" / "val")
    assert len(open_set("imagenet", tmp_path).source) == 6


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
    class_folders(tmp_path / "toys")
    (tmp_path / "toys" / "owl").rename(tmp_path / "toys" / name)
    opened = open_set("toys", tmp_path)
    assert opened.classes == tuple(sorted(("cat", "dog", name))) and len(opened.source) == 6
    with pytest.raises(MissingData, match="no labelled images of split train"):
        open_set("toys", tmp_path, split="train")


def test_a_class_called_train_may_have_folders_below_its_images(tmp_path):
    class_folders(tmp_path / "toys", ("cat", "dog"))
    for name in ("1.png", "steam/2.png"):
        put(tmp_path / "toys" / "train" / name, make_image(COLOURS["owl"]))
    assert open_set("toys", tmp_path).classes == ("cat", "dog", "train")


def test_a_class_called_train_stands_in_splits(tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / "toys" / split, ("cat", "dog"))
        put(tmp_path / "toys" / split / "train" / "0.png", make_image(COLOURS["owl"]))
    for split in ("train", "test"):
        opened = open_set("toys", tmp_path, split=split)
        assert opened.classes == ("cat", "dog", "train") and len(opened.source) == 5


def test_splits_lie_beside_other_folders(tmp_path):
    """ImageNet has a devkit without images there; samples with images make no class of val/CLASS/*.jpg either."""
    class_folders(tmp_path / "imagenet" / "val")
    put(tmp_path / "imagenet" / "test" / "0.png", make_image(COLOURS["cat"]))
    for name in ("devkit/readme.txt", "samples/0.png"):
        put(tmp_path / "imagenet" / name, make_image(COLOURS["cat"]))
        opened = open_set("imagenet", tmp_path)
        assert opened.classes == ("cat", "dog", "owl") and len(opened.source) == 6


@pytest.mark.parametrize("form", ["folder:{}", "{}", "folder:{}/"])
def test_any_path_is_a_set(tmp_path, form):
    class_folders(tmp_path / "mine")
    opened = open_set(form.format(tmp_path / "mine"), "/nowhere")
    assert opened.classes == ("cat", "dog", "owl") and len(opened.source) == 6


def test_a_folder_without_splits_is_no_training_data(tmp_path):
    class_folders(tmp_path / "mine")
    with pytest.raises(MissingData, match="mine holds no labelled images of split train") as found:
        open_set("mine", tmp_path, split="train")
    assert "mine/train/CLASS/*.jpg" in str(found.value) and "mine/test/CLASS/*.jpg" in str(found.value)
    assert "mine/CLASS/*.jpg" not in str(found.value)  # what is there, and is no training data


def test_a_set_of_your_own_without_captions_names_the_way_to_them(tmp_path):
    class_folders(tmp_path / "mine")
    (empty := tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"mine has classes and no captions.*prepare csv mine\.csv .*--split test"):
        Sets(tmp_path).captioned("mine")
    way_out = rf"Do one of these:\n.*prepare csv .* --out {empty}-records --split .*retrieval:folder:{empty}-records"
    with pytest.raises(MissingData, match=way_out):  # not among the photos of a folder that exists
        Sets(tmp_path).captioned(f"folder:{empty}")
    with pytest.raises(MissingData, match=rf"prepare csv .* --out {tmp_path}/fresh --split test"):
        Sets(tmp_path).captioned("fresh")
    with pytest.raises(MissingData, match=r"none/CLASS/\*\.jpg"):
        Sets(tmp_path).labelled(f"folder:{empty}")


def test_what_is_no_image_is_left_out(tmp_path):
    class_folders(tmp_path / "mine")
    for name in ("cat/notes.txt", "cat/.hidden.png", "cat/._0.png", "__MACOSX/cat/._0.png", ".git/0.png", "readme.md"):
        put(tmp_path / "mine" / name, b"x")
    put(tmp_path / "mine" / "dog" / "deep" / "er" / "7.JPG", make_image(COLOURS["dog"], 7, "JPEG"))
    put(tmp_path / "mine" / "owl" / "7.HEIC", b"x")  # an unreadable image, which is counted
    opened = open_set("mine", tmp_path)
    assert opened.classes == ("cat", "dog", "owl")
    assert [opened.source[i]["key"] for i in range(len(opened.source))] == [
        *(
            "cat/0.png",
            "cat/1.png",
            "dog/0.png",
            "dog/1.png",
            "dog/deep/er/7.JPG",
            "owl/0.png",
            "owl/1.png",
            "owl/7.HEIC",
        )
    ]


def test_an_empty_class_folder_stays_a_class(tmp_path):
    class_folders(tmp_path / "mine")
    (tmp_path / "mine" / "bat").mkdir()
    opened = open_set("mine", tmp_path)
    assert opened.classes == ("bat", "cat", "dog", "owl") and opened.source[0]["label"] == 1


def test_an_unreadable_image_is_a_bad_record(tmp_path):
    class_folders(tmp_path / "mine")
    (tmp_path / "mine" / "cat" / "1.png").write_bytes(b"no image")
    source = open_set("mine", tmp_path).source
    with pytest.raises(BadRecord, match=r"cat/1\.png: not an image"):
        read(source, 1)
    (tmp_path / "mine" / "dog" / "0.png").unlink()
    with pytest.raises(BadRecord, match=r"dog/0\.png: No such file"):
        source[2]
    assert read(source, 5)[1].shape == (9, 12, 3)


def test_folders_agree_with_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision").datasets
    class_folders(tmp_path / "mine", ("owl", "cat"), num=12)
    put(tmp_path / "mine" / "owl" / "a b" / "0.jpeg", make_image(COLOURS["owl"], 0, "JPEG"))
    oracle = datasets.ImageFolder(str(tmp_path / "mine"))
    opened = open_set("mine", tmp_path)
    assert list(opened.classes) == oracle.classes
    ours = [(str(tmp_path / "mine" / name), label) for name, _, label in opened.source.files]
    assert ours == oracle.imgs
    assert set(datasets.folder.IMG_EXTENSIONS) <= set(SUFFIXES)


# tars


def test_tars_are_read_in_order(tmp_path):
    wds(tmp_path / "wds_animals", [labelled_members([2, 0, 1]), labelled_members([1, 2], 3)])
    opened = open_set("animals", tmp_path)
    assert opened.classes == ("cat", "dog", "owl") and len(opened.source) == 5
    assert [opened.source[i]["label"] for i in range(5)] == [2, 0, 1, 1, 2]
    assert opened.templates == ("a photo of a {c}.", "art of the {c}.")
    assert opened.source[4]["key"] == "1.tar:s0000004"
    assert_labels_are_right(opened)


def test_tars_agree_with_the_library(tmp_path):
    library = pytest.importorskip("webdataset.tariterators")
    members = [
        ("a/x.png", make_image(COLOURS["cat"])),
        ("a/x.cls", b"0"),
        ("b/x.jpg", make_image(COLOURS["dog"], 1, "JPEG")),
    ]
    wds(tmp_path / "mine", [[*members, ("b/x.cls", b"1")], labelled_members([2])])
    oracle = []
    for number in (0, 1):
        with open(tmp_path / "mine" / "test" / f"{number}.tar", "rb") as file:
            members = ({**member, "__url__": file.name} for member in library.tar_file_iterator(file))
            oracle += library.group_by_keys(members)
    opened = open_set("mine", tmp_path)
    assert [opened.source[i]["key"].partition(":")[2] for i in range(3)] == [sample["__key__"] for sample in oracle]
    assert opened.source[2]["image"] == oracle[2]["webp"]


def test_a_second_image_of_a_key_takes_no_label_of_the_first(tmp_path):
    members = [("a.png", make_image(COLOURS["cat"])), ("a.cls", b"0"), ("a.png", make_image(COLOURS["dog"]))]
    wds(tmp_path / "wds_animals", [members])
    source = open_set("animals", tmp_path).source
    assert len(source) == 2 and source[0]["image"] == members[0][1]
    with pytest.raises(BadRecord, match=r"0\.tar:a: no cls, only png"):
        source[1]


def test_a_captioned_set_has_no_classes_and_at_most_five_captions(tmp_path):
    texts = [f"caption {i}" for i in range(7)]
    wds(
        tmp_path / "wds_mscoco_captions",
        [[("s0.jpg", make_image(COLOURS["cat"])), ("s0.txt", "\n".join(texts).encode())]],
        None,
    )
    opened = open_set("coco", tmp_path)
    assert opened.classes == () and opened.expected == 5000
    assert opened.source[0]["captions"] == tuple(texts[:5]) and opened.source[0]["label"] == -1
    everything = open_set("coco", tmp_path, num_captions=None)
    assert everything.source[0]["captions"] == tuple(texts) and everything.fingerprint != opened.fingerprint


def test_a_set_of_one_s_own_with_classes_and_captions_is_read_either_way(tmp_path):
    """`prepare imagefolder` keeps both the class folders and the texts beside the images."""
    image = make_image(COLOURS["cat"])
    write_records(tmp_path, [{"image": image, "captions": ["a cat"], "label": 0}], "test")
    (tmp_path / "dataset.json").write_text(json.dumps({"splits": {"test": {"classes": ["cat"]}}}))
    assert open_set(f"folder:{tmp_path}", tmp_path).classes == ("cat",)
    captioned = open_set(f"folder:{tmp_path}", tmp_path, captioned=True)
    assert captioned.classes == () and captioned.source[0]["captions"] == ("a cat",)


def test_an_image_without_caption_is_a_bad_record(tmp_path):
    wds(tmp_path / "wds_flickr30k", [[("s0.jpg", make_image(COLOURS["cat"])), ("s0.txt", b"")]], None)
    with pytest.raises(BadRecord, match=r"0\.tar:s0: no caption"):
        open_set("flickr30k", tmp_path).source[0]


def test_blank_captions_are_left_out(tmp_path):
    """All blanks are one text, which would be right for every image that has one."""
    examples = [{"captions": captions, "key": "s0"} for captions in (("", "a", " \t", "b"), ("", " "))]
    source = FirstCaptions(examples, 1)
    assert source[0]["captions"] == ("a",) and FirstCaptions(examples, None)[0]["captions"] == ("a", "b")
    with pytest.raises(BadRecord, match="s0: no caption"):
        source[1]


def test_tars_survive_pickling(tmp_path):
    wds(tmp_path / "animals", [labelled_members([2, 0])])
    source = open_set("animals", tmp_path).source
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_tar_that_is_cut_off_is_named(tmp_path, share):
    wds(tmp_path / "animals", [labelled_members([0, 1, 2, 0, 1, 2])])
    path = tmp_path / "animals" / "test" / "0.tar"
    end = 12 * 1024  # members of at most a block each
    path.write_bytes(path.read_bytes()[: int(end * share)])
    with pytest.raises(MissingData, match=r"0\.tar: not readable as an uncompressed tar"):
        open_set("animals", tmp_path)


def test_no_cut_of_a_tar_goes_unnoticed(tmp_path):
    wds(tmp_path / "animals", [labelled_members([0, 1])])
    path = tmp_path / "animals" / "test" / "0.tar"
    with tarfile.open(path) as file:
        file.getmembers()
        end = file.offset
    whole = path.read_bytes()
    for length in range(0, end + 512, 128):
        path.write_bytes(whole[:length])
        with pytest.raises(MissingData):
            open_set("animals", tmp_path)
    path.write_bytes(whole[: end + 512])
    assert len(open_set("animals", tmp_path).source) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("s0.cls", b"0")], r"0\.tar:s0: no webp or png or jpg or jpeg, only cls"),
        ([("s0.png", b"x"), ("s0.json", b"0")], r"0\.tar:s0: no cls, only png, json"),
        ([("s0.png", b"x"), ("s0.cls", b"cat")], r"0\.tar:s0: label b'cat' is not a class number"),
        ([("s0.png", b"x"), ("s0.cls", b"-1")], r"0\.tar:s0: label b'-1' is not a class number"),
    ],
)
def test_a_damaged_example_is_a_bad_record(tmp_path, members, message):
    wds(tmp_path / "animals", [members])
    with pytest.raises(BadRecord, match=message):
        open_set("animals", tmp_path).source[0]


def test_members_outside_of_the_archive_are_never_written(tmp_path):
    wds(tmp_path / "animals", [[("../../evil.png", make_image(COLOURS["cat"])), ("../../evil.cls", b"0")]])
    assert open_set("animals", tmp_path).source[0]["label"] == 0
    assert not list(tmp_path.rglob("evil*"))


# prepared records


@pytest.mark.parametrize("described", ["dataset.json", "classnames.txt"])
def test_prepared_records(tmp_path, described):
    examples = [{"image": make_image(COLOURS[name]), "label": i, "key": name} for i, name in enumerate(COLOURS)]
    write_records(tmp_path / "animals", examples, split="test", shard_size=2)
    text = (
        json.dumps({"splits": {"test": {"classes": list(COLOURS)}}})
        if described == "dataset.json"
        else "\n".join([*COLOURS, "", ""])  # blank lines at the end are no classes
    )
    put(tmp_path / "animals" / described, text)
    opened = open_set("animals", tmp_path)
    assert opened.classes == tuple(COLOURS) and opened.source[2]["key"] == "owl"
    assert_labels_are_right(opened)


def test_prepared_sets_of_equal_sizes_have_different_fingerprints(tmp_path):
    """Shards are padded, so their sizes are equal; results of the other set were taken for those of this one."""
    marks = []
    for number, digest in enumerate(("a" * 64, "b" * 64)):
        folder = tmp_path / str(number) / "animals"
        write_records(
            folder, [{"image": make_image(COLOURS["cat"]), "label": 0, "key": "a"}], split="test", shard_size=1
        )
        (shard,) = (path.name for path in folder.glob("*.arrayrecord"))
        split = {"classes": ["cat"], "shards": [{"name": shard, "sha256": digest}]}
        put(folder / "dataset.json", json.dumps({"splits": {"test": split}}))
        marks.append(open_set("animals", folder.parent).fingerprint)
    assert len({*marks}) == 2


def test_folders_that_were_prepared(tmp_path):
    from detailclip_jax.convert import local_engine
    from detailclip_jax.convert.job import Request
    from detailclip_jax.convert.planning import begin
    from detailclip_jax.convert.prepared_set import finish
    from detailclip_jax.runtime.progress import Console

    class_folders(tmp_path / "tree")
    request = Request("imagefolder", (str(tmp_path / "tree"),), str(tmp_path / "animals"), "test")
    job = begin(request, 2)
    local_engine.run(job, 1, Console(stream=io.StringIO()))
    finish(job)
    opened = open_set("animals", tmp_path)
    assert opened.classes == ("cat", "dog", "owl") and len(opened.source) == 6
    assert_labels_are_right(opened)


def test_prepared_captions(tmp_path):
    write_records(
        tmp_path / "flickr30k", [{"image": make_image(COLOURS["cat"]), "captions": list("abcdefg")}], split="test"
    )
    opened = open_set("flickr30k", tmp_path)
    assert opened.classes == () and opened.source[0]["captions"] == tuple("abcde")


# split files


def split_file(root: pathlib.Path, name: str = "coco", num_texts: int = 6) -> None:
    rows = []
    for i, split in enumerate(["test", "train", "val", "restval", "test"]):
        file, folder = f"COCO_{i:012d}.jpg", "train2014" if "t" in split[:1] and split != "test" else "val2014"
        put(root / (folder if name == "coco" else "flickr30k-images") / file, make_image(COLOURS["dog"], i, "JPEG"))
        row = {"filename": file, "split": split, "sentences": [{"raw": f"text {i} {t}"} for t in range(num_texts)]}
        rows.append({**row, "filepath": folder} if name == "coco" else row)
    put(root / f"dataset_{name}.json", json.dumps({"images": rows, "dataset": name}))


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_split_files_choose_their_split_only(tmp_path, name):
    split_file(tmp_path / name, name)
    put(tmp_path / name / "dataset_another.json", "{}")  # its authors publish the files of all sets in one zip
    opened = open_set(name, tmp_path)
    assert len(opened.source) == 2 and opened.classes == ()
    assert opened.source[1]["captions"] == tuple(f"text 4 {t}" for t in range(5))
    assert read(opened.source, 1)[1].shape == (9, 12, 3)
    assert len(open_set(name, tmp_path, split="train").source) == 2  # COCO's restval is training data


def test_a_missing_caption_of_a_split_file_is_left_out(tmp_path):
    split_file(tmp_path / "coco")
    file = tmp_path / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace('"text 4 0"', "null"))
    assert open_set("coco", tmp_path).source[1]["captions"] == tuple(f"text 4 {t}" for t in range(1, 6))


def test_an_image_of_a_split_file_that_was_replaced_is_noticed(tmp_path):
    split_file(tmp_path / "coco")
    before = open_set("coco", tmp_path).fingerprint
    file = next((tmp_path / "coco").rglob("*_000000000004.jpg"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_set("coco", tmp_path).fingerprint != before


# TensorFlow Datasets


def prepared(folder, name, features, rows, split="test", version="1.0.0", fields=()):
    """A data set of that name on disk, as TFDS prepares it."""
    pytest.importorskip("importlib_resources")
    tfds = pytest.importorskip("tensorflow_datasets")

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features(tfds)))

    body = {
        "VERSION": tfds.core.Version(version),
        "name": name,
        "_info": info,
        "_split_generators": lambda self, manager: {split: self._generate_examples()},
        "_generate_examples": lambda self: iter(enumerate(rows)),
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


def pet_features(tfds):
    names = ["Abyssinian", "american_bulldog", "basset_hound"]
    return {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=names),
        "file_name": tfds.features.Text(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }


def pet_rows():
    for i, label in enumerate([2, 0, 1, 1]):
        image = make_image(list(COLOURS.values())[label], i)
        yield {
            "image": io.BytesIO(image),
            "label": label,
            "file_name": f"{i}.jpg",
            "segmentation_mask": io.BytesIO(gray()),
        }


def gray() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (12, 9), 3).save(stream, "PNG")
    return stream.getvalue()


def test_tfds_by_its_own_name(tmp_path):
    prepared(tmp_path, "oxford_iiit_pet", pet_features, list(pet_rows()))
    opened = open_set("pets", tmp_path)
    assert opened.classes == ("Abyssinian", "american_bulldog", "basset_hound") and opened.expected == 3669
    found = sorted((opened.source[i] for i in range(4)), key=lambda example: example["key"])
    assert [(example["key"], example["label"]) for example in found] == [
        *(("0.jpg", 2), ("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 1))
    ]
    assert found[0]["image"] == make_image(COLOURS["owl"])
    assert pickle.loads(pickle.dumps(opened.source))[3] == opened.source[3]
    rows = [row | {"file_name": "x" * 20} for row in pet_rows()]  # as many examples, of another size
    prepared(tmp_path / "again", "oxford_iiit_pet", pet_features, rows)
    assert open_set("pets", tmp_path / "again").fingerprint != opened.fingerprint


def test_tfds_newest_version_and_split_name(tmp_path):
    for version, num in (("2.0.0", 1), ("10.0.0", 3)):
        prepared(tmp_path, "food101", pet_features, list(pet_rows())[:num], "validation", version)
    assert len(open_set("food101", tmp_path).source) == 3


def test_tfds_part_of_a_split(tmp_path):
    parts = {"test": "train[1:]", "train": "train[:1]"}
    prepared(tmp_path, "mine", pet_features, list(pet_rows()), "train")
    folder = tmp_path / "mine"
    assert len(tfds_layout.read(folder, "test", parts).source) == 3
    assert len(tfds_layout.read(folder, "train", parts).source) == 1


def test_tfds_captions(tmp_path):
    def features(tfds):
        text = tfds.features.Text()
        captions = tfds.features.Sequence({"id": np.int64, "text": text})
        return {"image": tfds.features.Image(), "image/id": np.int64, "captions": captions}

    texts = [{"id": i, "text": f"zwei ö {i}"} for i in range(6)]
    rows = [{"image": io.BytesIO(make_image(COLOURS["cat"])), "image/id": 7, "captions": texts}]
    prepared(tmp_path, "coco_captions", features, rows)
    opened = open_set("coco", tmp_path)
    assert opened.source[0]["captions"] == tuple(f"zwei ö {i}" for i in range(5)) and opened.classes == ()


def test_tfds_without_the_split_or_a_label_is_named(tmp_path):
    prepared(tmp_path, "mnist", pet_features, list(pet_rows()), "train")
    with pytest.raises(MissingData, match=r"mnist/1\.0\.0 has no split test; it has train"):
        open_set("mnist", tmp_path)
    prepared(tmp_path, "dtd", lambda tfds: {"image": tfds.features.Image()}, [{"image": io.BytesIO(gray())}])
    with pytest.raises(MissingData, match=r"has no field label with class names .* it has image;"):
        open_set("dtd", tmp_path)
    numbered = lambda tfds: {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    prepared(tmp_path, "gtsrb", numbered, [{"image": io.BytesIO(gray()), "label": 3}])
    with pytest.raises(MissingData, match=r"has no field label with class names .* it has image, label; prepare"):
        open_set("folder:" + str(tmp_path / "gtsrb"), tmp_path)


@pytest.mark.parametrize("pattern", ["features.json", "*.array_record*"])
def test_tfds_with_files_missing_is_named(tmp_path, pattern):
    prepared(tmp_path, "dtd", pet_features, list(pet_rows()))
    for path in (tmp_path / "dtd" / "1.0.0").glob(pattern):
        path.unlink()
    with pytest.raises(MissingData, match=r"prepare (it|the set) again"):
        len(open_set("dtd", tmp_path).source)


@pytest.mark.parametrize(
    ("types", "depths", "expected"),
    [
        ([0, 4, 0], [30.0, 2.0, 7.9], 0),
        ([1], [8.0], 0),
        ([2], [8.1], 1),
        ([0, 3], [20.5, 1.0], 2),
        ([3, 4, 7], [1.0, 2.0, -1000.0], 3),
        ([], [], 3),
    ],
)
def test_kitti_label_is_the_closest_vehicle(types, depths, expected):
    location = np.array([[0.0, 0.0, depth] for depth in depths], np.float32).reshape(-1, 3)
    assert tfds_layout.closest_vehicle({"objects": {"type": np.array(types, int), "location": location}}) == expected
    # VTAB: the largest i with threshold i < distance, vehicles without a depth standing at 1000
    distance = min([depth for kind, depth in zip(types, depths) if kind < 3], default=1000.0)
    assert expected == max(i for i, threshold in enumerate([-100.0, 8.0, 20.0, 999.0]) if threshold < distance)


def test_derived_labels_on_disk(tmp_path):
    def kitti(tfds):
        objects = tfds.features.Sequence(
            {
                "type": tfds.features.ClassLabel(num_classes=8),
                "location": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
        )
        return {"image": tfds.features.Image(), "objects": objects}

    def clevr(tfds):
        return {
            "image": tfds.features.Image(),
            "objects": tfds.features.Sequence({"color": tfds.features.ClassLabel(num_classes=8)}),
        }

    near = {"type": 0, "location": np.array([1, 1, 12], np.float32)}
    prepared(tmp_path, "kitti", kitti, [{"image": io.BytesIO(gray()), "objects": [near]}])
    opened = open_set("kitti_distance", tmp_path)
    assert opened.classes[opened.source[0]["label"]] == "a photo i took with a car nearby."
    prepared(tmp_path, "clevr", clevr, [{"image": io.BytesIO(gray()), "objects": [{"color": 1}] * 4}], "validation")
    opened = open_set("clevr_counts", tmp_path)
    assert opened.classes[opened.source[0]["label"]] == "4" and len(opened.classes) == 8


# what is wrong with a set


def records(root: pathlib.Path, split: str) -> None:
    write_records(root, [{"image": make_image(COLOURS["cat"]), "label": 0}], split=split)


TREES = {
    "nothing": lambda root: None,
    "classes": lambda root: class_folders(root / "test"),
    "a broken link": lambda root: (class_folders(root / "test"), (root / "test/cat/broken.png").symlink_to("nowhere")),
    "two tars": lambda root: wds(root, [labelled_members([0]), labelled_members([1], 1)]),
    "split file": lambda root: split_file(root),
    "records": lambda root: records(root, "test"),
    "records of val": lambda root: records(root, "val"),
    "records of train": lambda root: records(root, "train"),
}
NO_SPLIT_FILE, DAMAGED = r"dataset_coco\.json is not a Karpathy split file", r"dataset\.json is damaged"
MISTAKES = {  # name: set, its tree, files that are added or (None) removed, words of the message
    "unknown set": ("petz", "nothing", {}, "known sets are imagenet, sun397"),
    "no images": ("mine", "nothing", {"cat/a.psd": "", "dog/a.psd": ""}, r"mine: 2 folders, .*no image.* \.jpg"),
    "broken link": ("mine", "a broken link", {}, r"broken\.png.*link"),
    "no captions": ("coco", "classes", {}, "coco holds no captioned images"),
    "missing tar": ("mine", "two tars", {"test/1.tar": None}, r"1\.tar are missing, of 2 tars; download them again"),
    "pointer to a tar": (
        *("mine", "two tars", {"test/0.tar": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}),
        r"0\.tar: not readable as an uncompressed tar .*download it again",
    ),
    "no class names": ("mine", "two tars", {"classnames.txt": ""}, r"classnames\.txt is missing or empty"),
    "number of tars": ("mine", "two tars", {"test/nshards.txt": "many"}, r"contains 'many'; expected a number"),
    "no tars": ("mine", "two tars", {"test/nshards.txt": "0"}, r"0 tars in .* contain no example"),
    "type of tars": (
        *("mine", "two tars", {"dataset_type.txt": "multilabel"}),
        r"unsupported type multilabel; supported: classification, retrieval",
    ),
    "no images beside the split file": (
        *("coco", "split file", {"val2014": None}),
        r"images of the split file .* are missing: looked for .*coco/val2014/COCO_000000000000\.jpg",
    ),
    "split file cut off": ("coco", "nothing", {"dataset_coco.json": "{"}, NO_SPLIT_FILE),
    "split file without images": ("coco", "nothing", {"dataset_coco.json": "[]"}, NO_SPLIT_FILE),
    "split file without list": ("coco", "nothing", {"dataset_coco.json": '{"images": 3}'}, NO_SPLIT_FILE),
    "split file without sentences": (
        *("coco", "nothing", {"dataset_coco.json": '{"images": [{"filename": "a.jpg"}]}'}),
        NO_SPLIT_FILE,
    ),
    "records of another split": (
        *("mine", "records of train", {}),
        r"its records have train: prepare the split with --split test",
    ),
    "records without class names": ("pets", "records", {}, "pets holds no labelled images of split test"),
    "records not prepared to the end": (
        *("pets", "records of val", {"classnames.txt": "cat", ".prepare-test/plan.json": "{}"}),
        r"the split test of .* is not complete: prepare has not finished it",
    ),
    "description cut off": ("mine", "records", {"dataset.json": "{"}, DAMAGED),
    "description without object": ("mine", "records", {"dataset.json": "[]"}, DAMAGED),
    "description without splits": ("mine", "records", {"dataset.json": '{"splits": 3}'}, DAMAGED),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_a_set_is_named(tmp_path, mistake):
    name, tree, changes, words = MISTAKES[mistake]
    TREES[tree](tmp_path / name)
    for file, content in changes.items():
        if content is not None:
            put(tmp_path / name / file, content)
        else:
            (tmp_path / name / file).rename(tmp_path / "elsewhere")
    with pytest.raises(MissingData, match=words):
        open_set(name, tmp_path)


# what is missing, and what is ready


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(MissingData) as error:
        open_set("pets", tmp_path)
    message = str(error.value)
    for part in ("oxford_iiit_pet does not exist", "pets does not exist", "wds_vtab-pets does not exist"):
        assert f"{tmp_path}/{part}" in message
    assert f"{tmp_path}/pets/test/CLASS/*.jpg" in message
    assert (
        f"hf download clip-benchmark/wds_vtab-pets --repo-type dataset --local-dir {tmp_path}/wds_vtab-pets" in message
    )
    assert f'tfds.builder("oxford_iiit_pet", data_dir="{tmp_path}", file_format="array_record")' in message


def test_a_misspelt_folder_is_answered_with_the_nearest_one(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # the working folder is searched too, and a user's may have photos
    class_folders(tmp_path / "photos")
    with pytest.raises(MissingData, match=f"does not exist; did you mean '{tmp_path}/photos'"):
        open_set(f"folder:{tmp_path}/photo", tmp_path)
    with pytest.raises(MissingData, match=f"does not exist; did you mean '{tmp_path}/photos'"):
        open_set("./photo", tmp_path)  # relative to --data-dir too


def test_no_file_and_no_folder_that_was_searched_is_suggested(tmp_path):
    class_folders(tmp_path / "wds_birds")
    (tmp_path / "photos.zip").touch()
    for name in ("birds", f"folder:{tmp_path}/photos"):
        with pytest.raises(MissingData) as error:
            open_set(name, tmp_path, split="train")
        assert "did you mean" not in str(error.value)


def test_a_folder_that_cannot_be_listed_is_only_missing(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", refused)
    with pytest.raises(MissingData, match="does not exist"):
        open_set(f"folder:{tmp_path}/photos", tmp_path)


@pytest.mark.parametrize("name", ["", " ", "folder:"])
def test_no_name_is_no_set(tmp_path, name):
    class_folders(tmp_path)
    with pytest.raises(MissingData, match="unknown set"):
        open_set(name, tmp_path)


def test_a_name_is_never_a_folder_of_the_working_directory(tmp_path, monkeypatch):
    class_folders(tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingData, match="data/docs does not exist; data/wds_docs does not exist"):
        open_set("docs", "data")
    assert len(open_set("./docs", "data").source) == 6


def test_ready_counts_and_compares(tmp_path):
    class_folders(tmp_path / "pets" / "test")
    wds(tmp_path / "mnist", [labelled_members([0])])
    put(tmp_path / "mnist" / "test" / "0.tar", b"")
    found = {each.name: each for each in ready(tmp_path)}
    assert set(found) == set(KNOWN)
    assert found["dtd"][1:4] == (False, None, 1880) and "hf download" in found["dtd"].note
    assert found["pets"][1:4] == (False, 6, 3669) and "6 images, not 3669" in found["pets"].note
    assert not found["mnist"].ready and "0.tar" in found["mnist"].note


def test_ready_knows_other_published_sizes(tmp_path, monkeypatch):
    class_folders(tmp_path / "pets" / "test")
    monkeypatch.setitem(KNOWN, "pets", KNOWN["pets"]._replace(other_sizes={6: "a subset"}))
    assert [each for each in ready(tmp_path) if each.ready] == [("pets", True, 6, 6, "a subset")]
    monkeypatch.setitem(KNOWN, "pets", KNOWN["pets"]._replace(num_test=6))
    assert [each for each in ready(tmp_path) if each.ready] == [("pets", True, 6, 6, "")]


def test_a_wrong_count_is_logged(tmp_path, caplog):
    class_folders(tmp_path / "pets" / "test")
    from absl import logging

    logging.get_absl_logger().addHandler(caplog.handler)
    opened = open_set("pets", tmp_path)
    logging.get_absl_logger().removeHandler(caplog.handler)
    assert opened.expected == 3669 and "pets has 6 test images, but the published set has 3669" in caplog.text


def test_the_sets_of_the_paper_are_known():
    assert [known.name for known in PAPER] == [
        *("imagenet", "sun397", "aircraft", "dtd", "pets", "flowers", "gtsrb", "mnist", "stl10", "kitti_distance"),
        *("country211", "patch_camelyon", "clevr_counts", "rendered_sst2"),
    ]


# fingerprints


def test_a_fingerprint_says_what_the_data_are_not_where(tmp_path):
    for place in ("here", "there"):
        class_folders(tmp_path / place / "animals" / "test")
    marks = [open_set("animals", tmp_path / place).fingerprint for place in ("here", "there", "here")]
    assert len(set(marks)) == 1 and len(marks[0]) == 12


@pytest.mark.parametrize("change", ["image", "class", "name", "removed"])
def test_a_fingerprint_notices_changes(tmp_path, change):
    root = tmp_path / "animals" / "test"
    class_folders(root)
    before = open_set("animals", tmp_path).fingerprint
    if change == "image":
        put(root / "cat" / "0.png", make_image(COLOURS["cat"]) + b"\0")
    elif change == "class":
        (root / "zebra").mkdir()
    elif change == "name":
        (root / "cat" / "0.png").rename(root / "cat" / "5.png")
    else:
        (root / "cat" / "0.png").unlink()
    assert open_set("animals", tmp_path).fingerprint != before


@pytest.mark.skipif(sys.platform == "darwin", reason="names on macOS are UTF-8")
def test_names_that_are_not_utf8_open(tmp_path):
    root = tmp_path / "pets" / "test"
    class_folders(root)
    before = open_set("pets", tmp_path).fingerprint
    put(root / "cat" / os.fsdecode(b"caf\xe9.png"), make_image(COLOURS["cat"]))
    opened = open_set("pets", tmp_path)
    assert opened.fingerprint != before and os.fsencode(opened.source[2]["key"]) == b"cat/caf\xe9.png"
    found = {readiness.name: readiness.found for readiness in ready(tmp_path)}
    assert found["pets"] == len(opened.source)


def test_reading_leaves_jax_out():
    code = "import sys, detailclip_jax.data.labelled; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
