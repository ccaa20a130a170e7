"""Every source from a small tree in its real layout, the broken parts included."""

import gzip
import json
import os
import pickle
import sqlite3
import tarfile

import numpy as np
import prepare_trees as trees
import pytest
from test_prepare import keys, prepared
from tiny import check_names

from detailclip_jax import prepare
from detailclip_jax.convert import coco_captions, rows, webdataset, yfcc
from detailclip_jax.convert.examples import Reject
from detailclip_jax.convert.job import Options, Request, Shard
from detailclip_jax.convert.planning import AlreadyThere, begin
from detailclip_jax.convert.prepared_set import NothingAccepted, load
from detailclip_jax.convert.readers import SOURCES
from detailclip_jax.convert.set_report import summary
from detailclip_jax.data import tar_archive
from detailclip_jax.data.caption_selection import captions_of
from detailclip_jax.data.sources import Records
from detailclip_jax.runtime.errors import RunError


def examples(folder, split="train"):
    """key -> example."""
    source = Records(folder, split)
    return {source[index]["key"]: source[index] for index in range(len(source))}


def rejected(folder, split="train"):
    """(key, reason) of the rejected list."""
    lines = (folder / f"{split}-rejected.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[:2]) for line in lines]


def dataset_of(*command):
    return prepare.request_of(prepare.parser().parse_intermixed_args([*command, "--out", "x"])).dataset


# webdataset


def test_webdataset_members_are_grouped_by_their_name_up_to_the_first_dot(tmp_path):
    members = [
        ("./a/one.jpg", trees.jpeg(1)),
        ("./a/one.seg.png", trees.png(1)),  # another suffix: not the image
        ("./a/one.JSON", b'{"caption": "from json", "label": 5}'),
        ("b/one.png", trees.png(2)),  # the same name in another folder
        ("b/one.cls", b"3"),
        ("b/one.txt", "Straße".encode()),
        ("two.webp", trees.png(3)),
        ("notes.md", b"no part of an example"),
    ]
    trees.write_tar(tmp_path / "x.tar", members)
    prepared(tmp_path / "x.tar", tmp_path / "out")
    found = examples(tmp_path / "out")
    assert list(found) == ["x/a/one", "x/b/one", "x/two"]
    assert [example["captions"] for example in found.values()] == [("from json",), ("Straße",), ()]
    assert [example["label"] for example in found.values()] == [5, 3, -1]


def test_of_adjacent_webdataset_examples_with_one_key_the_first_is_kept_and_the_others_are_counted(tmp_path):
    members = [*trees.sample("a", 1, "first"), *trees.sample("a", 3, "second")]
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out")
    (example,) = examples(tmp_path / "out").values()
    assert (example["captions"], example["image"]) == (("first",), trees.jpeg(1))
    assert part["rejected"] == {"duplicate key": 1}


def test_a_second_image_of_a_webdataset_key_takes_no_caption_of_the_first(tmp_path):
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", b"dog"), ("a.txt", b"a dog"), ("a.JPG", b"cat")])
    found = [(sample.key, dict(sample.files)) for sample in webdataset.samples(str(tmp_path / "x.tar"))]
    assert found == [("a", {"jpg": b"dog", "txt": b"a dog"}), ("a", {"jpg": b"cat"})]


def test_webdataset_images_whose_keys_have_dots_are_counted(tmp_path):
    dotted = [member for key in ("v1.2_cat", "v1.2_dog") for member in trees.sample(key, 1)]
    hidden = [("./._a.jpg", b"of macOS")]
    trees.write_tar(tmp_path / "x.tar", [*dotted, *hidden, *trees.sample("a", 2)])
    part = prepared(tmp_path / "x.tar", tmp_path / "out")
    assert keys(tmp_path / "out") == ["x/a"]
    assert part["num_rejected"] == 2
    assert rejected(tmp_path / "out") == [("x/v1.2_cat.jpg", "no image"), ("x/v1.2_dog.jpg", "no image")]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_webdataset_reads_compressed_tars(tmp_path, suffix, mode):
    trees.write_tar(tmp_path / f"x{suffix}", trees.sample("a", 1), mode)
    assert prepared(tmp_path, tmp_path / "out")["num_examples"] == 1


def test_webdataset_keeps_fields_that_are_asked_for_under_their_names(tmp_path):
    trees.write_tar(tmp_path / "x.tar", trees.sample("a", 1, title="one", description=None))
    prepared(tmp_path, tmp_path / "out", caption_columns=("title", "description"))
    example = Records(tmp_path / "out", "train")[0]
    assert (example["title"], example["description"], example["captions"]) == ("one", "", ("one", ""))


def test_webdataset_keeps_the_sources_of_captions_apart(tmp_path):
    members = trees.sample("a", 1, "raw text", short=["s1", None], long="l1. l2")
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path, tmp_path / "out", caption_columns=("txt", "short", "long"), context_length=3)
    example = Records(tmp_path / "out", "train")[0]
    assert (example["txt"], example["short"], example["long"]) == ("raw text", ["s1", ""], "l1. l2")
    assert example["captions"] == ("raw text", "s1", "", "l1. l2")
    counted = part["statistics"]["captions"]
    assert {name: (counts["count"], counts["empty"]) for name, counts in counted.items()} == {
        "txt": (1, 0),
        "short": (2, 1),
        "long": (1, 0),
    }


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"caption": "a dog"}, ("a dog",)),
        ({"caption": ["a dog", "a cat"]}, ("a dog", "a cat")),
        ({"captions": ["a dog", {"raw": "a cat"}]}, ("a dog", "a cat")),
        ({"title": "Rex", "description": "a dog", "caption": "third"}, ("Rex", "a dog")),
        ({"title": "IMG_1", "caption": "a dog"}, ("a dog",)),
        ({"title": "a dog", "width": 3}, ("a dog",)),
        ({"sentence": "a dog", "width": 3}, ("a dog",)),
        ({"width": 3}, ()),
    ],
)
def test_webdataset_json_fields_are_chosen_as_columns_of_tables_are(tmp_path, fields, captions):
    members = [("a.jpg", trees.jpeg(1)), ("a.json", json.dumps(fields).encode())]
    trees.write_tar(tmp_path / "x.tar", members)
    prepared(tmp_path / "x.tar", tmp_path / "out")
    (example,) = examples(tmp_path / "out").values()
    assert example["captions"] == captions
    assert example.get("description") == fields.get("description")  # named, as data.caption=field:description wants it


def test_webdataset_tars_of_several_folders_keep_apart(tmp_path):
    for folder in ("a", "b"):
        trees.write_tar(tmp_path / folder / "00000.tar", trees.sample("000000000", 1, folder))
    part = prepared(tmp_path, tmp_path / "out", 1)
    assert part["num_examples"] == 2
    assert keys(tmp_path / "out") == ["a/00000/000000000", "b/00000/000000000"]


def test_numbers_of_a_pattern_of_local_files(tmp_path):
    for number in range(4):
        trees.write_tar(tmp_path / f"0000{number}.tar", trees.sample(f"k{number}", number))
    prepared(tmp_path / "{00001..00002}.tar", tmp_path / "out")
    assert sorted(examples(tmp_path / "out")) == ["00001/k1", "00002/k2"]
    with pytest.raises(FileNotFoundError, match=r"00004\.tar' does not exist"):
        prepared(tmp_path / "{00003..00004}.tar", tmp_path / "other")


def test_webdataset_patterns(tmp_path):
    trees.webdataset(tmp_path)
    for hidden in ("._00000.tar", ".ipynb_checkpoints/00000-checkpoint.tar"):
        trees.write(tmp_path / hidden, (tmp_path / "00000.tar").read_bytes())
    (tmp_path.parent / "more").mkdir()
    trees.write(tmp_path.parent / "more/9.tar", b"")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "more")
    found = sorted(map(str, [*tmp_path.glob("0*.tar"), tmp_path / "linked/9.tar"]))
    assert webdataset.files(Request("webdataset", (str(tmp_path),), "")) == found
    assert prepared(tmp_path / "0000[02].tar", tmp_path / "out")["num_examples"] == 14


def test_a_folder_of_tars_that_cannot_be_read_whole_is_refused(tmp_path, monkeypatch):
    (tmp_path / "0.tar").touch()
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(folder):
        if folder == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr("detailclip_jax.runtime.folders.os.scandir", scandir)
    with pytest.raises(ValueError, match=r"cannot be read whole: .*closed.*name the files"):
        webdataset.files(Request("webdataset", (str(tmp_path),), ""))


# img2dataset


def write_img2dataset(folder, rows, images=None):
    """A shard as img2dataset's writer leaves it: rows of (key, caption, status, error)."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ("key", "caption", "status", "error_message")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    columns["url"] = [f"http://x.org/{row[0]}" for row in rows]
    if images is not None:
        columns["jpg"] = images
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), folder / "00000.parquet")


IMG2DATASET = [
    ("000000000", "first", "success", None),
    ("000000001", "gone", "failed_to_download", "HTTP Error 404"),
    ("000000002", "third", "success", None),
    ("000000003", "lost", "success", None),
    ("000000004", "small", "failed_to_resize", "image decoding error"),
]


def test_img2dataset_takes_captions_and_dead_links_from_the_parquet(tmp_path):
    write_img2dataset(tmp_path, IMG2DATASET)
    trees.write_tar(tmp_path / "00000.tar", [*trees.sample("000000000", 0, "x"), *trees.sample("000000002", 2, "y")])
    part = prepared(tmp_path, tmp_path / "out", kind="img2dataset-parquet")
    found = examples(tmp_path / "out")
    assert {key: example["captions"] for key, example in found.items()} == {
        "00000/000000000": ("first",),
        "00000/000000002": ("third",),
    }
    assert part["rejected"] == {"failed to download": 1, "failed to resize": 1, "missing in tar": 1}
    assert ("00000/000000001", "failed to download") in rejected(tmp_path / "out")


def test_the_tar_beside_a_parquet_of_img2dataset_is_compared_and_another_one_is_not(tmp_path):
    folder = tmp_path / "set"
    write_img2dataset(folder, IMG2DATASET)
    tar = trees.write_tar(folder / "00000.tar", trees.sample("000000000", 0, "x"))
    prepared(folder, tmp_path / "out", kind="img2dataset-parquet")
    request = Request("img2dataset-parquet", (str(folder),), str(tmp_path / "out"))
    trees.write(folder / "another.tar", "x")
    with pytest.raises(AlreadyThere):
        begin(request)
    os.utime(tar, ns=(1, 1))
    with pytest.raises(RunError, match="have changed"):
        begin(request)


def test_img2dataset_keeps_several_columns_apart(tmp_path):
    write_img2dataset(tmp_path, IMG2DATASET, [trees.jpeg(0), None, trees.jpeg(2), None, None])
    options = {"caption_columns": ("caption", "url"), "kind": "img2dataset-parquet"}
    prepared(tmp_path, tmp_path / "out", **options)
    example = examples(tmp_path / "out")["00000/000000000"]
    assert (example["caption"], example["url"]) == ("first", "http://x.org/000000000")
    assert example["captions"] == ("first", "http://x.org/000000000")


def test_a_nested_caption_of_img2dataset_rejects_its_row(tmp_path):
    rows = [("000000000", [["a"], ["b"]], "success", None), ("000000001", [["c"]], "failed", "gone")]
    write_img2dataset(tmp_path, rows, [trees.jpeg(0), None])
    assert [*SOURCES["img2dataset-parquet"].read(Shard("s", str(tmp_path / "00000.parquet")), Options())] == [
        Reject("s/000000000", "bad text", "['a'] is a list; a text is required"),
        Reject("s/000000001", "failed", "gone"),
    ]


def test_img2dataset_parquets_with_the_images_in_them(tmp_path):
    write_img2dataset(tmp_path, IMG2DATASET, [trees.jpeg(0), None, trees.jpeg(2), None, None])
    part = prepared(tmp_path, tmp_path / "out", kind="img2dataset-parquet")
    assert keys(tmp_path / "out") == ["00000/000000000", "00000/000000002"]
    assert part["num_rejected"] == 3


# YFCC100M


SLIP = [
    (12345678, "a title", "a description"),
    (12345679, "", "only a description"),
    (301, "in a folder", ""),
    (5, "no image", "at all"),
    (99, "four", "fields", "of some tools"),
]


def write_slip(folder):
    """SLIP's layout: images/12/345.zip with 678.jpg; one archive unpacked to a folder."""
    trees.write_zip(folder / "images/12/345.zip", [("678.jpg", trees.jpeg(1)), ("679.jpg", trees.jpeg(2))])
    trees.write(folder / "images/00/000/301.jpg", trees.jpeg(3))
    trees.write(folder / "images/00/000/099.jpg", trees.jpeg(4))
    return trees.write(folder / "yfcc15m.pkl", pickle.dumps(SLIP))


@pytest.mark.parametrize("root", ["", "images"])
def test_slip_pickle_with_zips_and_folders(tmp_path, root):
    metadata = write_slip(tmp_path)
    part = prepared(metadata, tmp_path / "out", kind="slip-yfcc15m", images=str(tmp_path / root))
    found = examples(tmp_path / "out")
    assert found["12345678"]["image"] == trees.jpeg(1)
    assert (found["12345678"]["title"], found["12345678"]["description"]) == SLIP[0][1:]
    assert found["12345679"]["captions"] == ("", "only a description")
    assert found["301"]["image"] == trees.jpeg(3)
    assert found["99"]["title"] == "four"
    assert part["rejected"] == {"missing file": 1}
    assert part["statistics"]["captions"]["title"]["empty"] == 1


@pytest.mark.parametrize("protocol", range(6))
def test_slip_pickles_of_every_protocol_are_read(tmp_path, protocol):
    write_slip(tmp_path)
    path = trees.write(tmp_path / "p.pkl", pickle.dumps(SLIP, protocol))
    assert prepared(path, tmp_path / "out", kind="slip-yfcc15m", images=str(tmp_path))["num_examples"] == 4


def test_slip_rows_of_another_form_are_rejected(tmp_path):
    rows = [(1, 2, 3), ("1", "a", "b"), (-1, "a", "b"), (True, "a", "b"), (1,), "abc", None, (1, "a", None)]
    path = trees.write(tmp_path / "p.pkl", pickle.dumps(rows))
    trees.write(tmp_path / "00/000/001.jpg", trees.jpeg(1))
    part = prepared(path, tmp_path / "out", kind="slip-yfcc15m", images=str(tmp_path))
    assert part["rejected"] == {"bad row": 7}
    assert examples(tmp_path / "out")["1"]["captions"] == ("a", "")


def metadata_line(line, photo, title, description, marker="0", with_line=True):
    """A line of yfcc100m_dataset: 23 columns of the parts, 25 with line number and hash."""
    cells = [str(photo), "uid", "nick", "2010", "1280", "camera", title, description, *["x"] * 14, marker]
    return "\t".join([str(line), cells[0], hash_of(photo), *cells[1:]] if with_line else cells) + "\n"


def hash_of(photo):
    return f"{photo:032x}"


PHOTOS = [(0, 700, "One+two", "%3Cb%3Ethree%3C%2Fb%3E"), (1, 600, "not+listed", ""), (2, 500, "", "www.x.org+four")]


def write_ids(folder):
    """OpenAI's list of (line, photo id, hash), and SLIP's array of downloaded line numbers."""
    listed = "".join(f"{line}\t{photo}\t{hash_of(photo)}\n" for line, photo, *_ in PHOTOS if photo != 600)
    np.save(folder / "flickr_unique_ids.npy", np.array([7, 2, 1]))
    return str(trees.write(folder / "yfcc100m_subset_data.tsv", listed)), str(folder / "flickr_unique_ids.npy")


@pytest.mark.parametrize("with_line", [True, False])
@pytest.mark.parametrize("num_lists", [1, 2])
def test_yfcc_tables_are_filtered_and_cleaned(tmp_path, with_line, num_lists):
    import bz2

    ids = write_ids(tmp_path)[:num_lists]
    lines = [metadata_line(*photo, with_line=with_line) for photo in PHOTOS]
    lines.append(metadata_line(3, 400, "video", "", marker="1", with_line=with_line))
    trees.write(tmp_path / "yfcc100m_dataset-0.bz2", bz2.compress("".join(lines).encode()))
    trees.write_zip(tmp_path / "00/000.zip", [(f"{line:03d}.jpg", trees.jpeg(line)) for line in range(4)])
    part = prepared(tmp_path, tmp_path / "out", kind="yfcc-tsv", images=str(tmp_path), ids=ids, clean="slip")
    found = examples(tmp_path / "out")
    expected = {"700": ("One two", "three"), "500": ("", " four")}
    assert {key: example["captions"] for key, example in found.items()} == {
        key: captions for key, captions in expected.items() if key == "500" or num_lists == 1
    }
    assert found["500"]["image"] == trees.jpeg(2)
    assert part["num_rejected"] == 0


def write_sqlite(path, columns="photoid INTEGER, title TEXT, description TEXT, marker INTEGER"):
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE yfcc100m_dataset ({columns})")
        if columns.count(",") == 3:
            rows = [(photo, title, text, 0) for _, photo, title, text in PHOTOS] + [(400, "video", None, 1)]
            database.executemany("INSERT INTO yfcc100m_dataset VALUES (?, ?, ?, ?)", rows)
    database.close()
    return path


@pytest.mark.parametrize("layout", ["hash", "photo id", "line"])
def test_yfcc_sqlite_finds_images_by_hash_photo_id_and_line(tmp_path, layout):
    ids = write_ids(tmp_path)[:1]
    place = {"hash": f"{hash_of(500)[:3]}/{hash_of(500)[3:6]}/{hash_of(500)}.jpg", "photo id": "500.jpg"}
    trees.write(tmp_path / "images" / place.get(layout, "00/000/002.jpg"), trees.jpeg(9))
    database = write_sqlite(tmp_path / "yfcc100m_dataset.sql")
    part = prepared(
        database, tmp_path / "out", kind="yfcc-sqlite", images=str(tmp_path / "images"), ids=ids, clean="slip"
    )
    assert {key: example["captions"] for key, example in examples(tmp_path / "out").items()} == {"500": ("", " four")}
    assert part["rejected"] == {"missing file": 1}


def test_yfcc_lists_in_every_form(tmp_path):
    three, numpy_list = write_ids(tmp_path)
    one = str(trees.write(tmp_path / "lines.txt", "2\n0\n"))
    assert yfcc.Ids.load([numpy_list, three]).find(-1, 500) == (2, hash_of(500))  # the list with photo ids first
    assert yfcc.Ids.load([one, three]).find(-1, 700) == (0, hash_of(700))
    assert yfcc.Ids.load([numpy_list, three]).find(0, 700) is None
    assert yfcc.Ids.load([]).find(-1, 3) == (-1, "")
    with pytest.raises(ValueError, match="give first the list of"):
        yfcc.Ids.load([one]).find(-1, 700)


@pytest.mark.parametrize(
    "text", ["1\t2\n", "x\n", "1\t2\tshort\n", f"1\t2\t{'é' * 32}\n", "99999999999999999999\n", "1\n1\t2\t" + "a" * 32]
)
def test_yfcc_lists_of_another_form_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"ids\.tsv"):
        yfcc.Ids.load([str(trees.write(tmp_path / "ids.tsv", text))])


def test_yfcc_places_are_slips():
    """Golden: SLIP's README, "image 12345678 is stored as 678.jpg within 12/345.zip"."""
    assert ("12/345.zip", "678.jpg") in yfcc.line_places(12345678)
    assert ("00/000.zip", "007.jpg") in yfcc.line_places(7)


def test_the_variant_of_yfcc15m_is_recorded():
    slip = dataset_of("slip-yfcc15m", "p.pkl", "--images", "tests")
    assert slip == "yfcc15m-slip"
    table = ("yfcc-tsv", "p.tsv", "--images", "tests")
    assert dataset_of(*table, "--ids", "a") == "yfcc15m-openai"
    assert dataset_of(*table, "--ids", "a", "--ids", "b") == "yfcc15m-slip"
    assert dataset_of(*table) == ""
    assert dataset_of("jsonl", "yfcc15m_clean_open_data.json", "--dataset", "yfcc15m-declip") == "yfcc15m-declip"


# COCO and Flickr30K


def write_coco(folder):
    """captions_val2017.json with its folder; image 3 is missing, image 4 has no caption."""
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (9, 3, 4)]
    annotations = [{"image_id": n, "id": k, "caption": f"{n} {k}"} for k, n in enumerate((3, 9, 9, 3, 9))]
    trees.write(folder / "val2017/000000000009.jpg", trees.jpeg(9))
    trees.write(folder / "val2017/000000000004.jpg", trees.jpeg(4))
    content = {"images": images, "annotations": annotations}
    return trees.write_json(folder / "annotations/captions_val2017.json", content)


def test_coco_captions_of_an_image_come_together(tmp_path):
    part = prepared(write_coco(tmp_path), tmp_path / "out", kind="coco", split="val", images=str(tmp_path))
    found = examples(tmp_path / "out", "val")
    assert {key: example["captions"] for key, example in found.items()} == {"9": ("9 1", "9 2", "9 4"), "4": ()}
    assert found["9"]["image"] == trees.jpeg(9)
    assert part["rejected"] == {"missing file": 1}


@pytest.mark.parametrize("root", ["val2017", "zips", "zips/val2017.zip"])
def test_coco_images_in_their_folder_or_zip(tmp_path, root):
    metadata = write_coco(tmp_path)
    members = [(f"val2017/{n:012d}.jpg", trees.jpeg(n)) for n in (4, 9)]
    trees.write_zip(tmp_path / "zips/val2017.zip", members)
    assert prepared(metadata, tmp_path / "out", kind="coco", images=str(tmp_path / root))["num_examples"] == 2


def karpathy(*images):
    return {
        "dataset": "coco",
        "images": [
            {**fields, "sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
            for fields, texts in images
        ],
    }


KARPATHY_COCO = karpathy(
    ({"cocoid": 1, "split": "train", "filepath": "train2014", "filename": "COCO_train2014_1.jpg"}, ["one", "two"]),
    ({"cocoid": 2, "split": "restval", "filepath": "val2014", "filename": "COCO_val2014_2.jpg"}, ["three"]),
    ({"cocoid": 3, "split": "test", "filepath": "val2014", "filename": "COCO_val2014_3.jpg"}, ["four"]),
)


@pytest.mark.parametrize(
    ("split", "subset", "expected"),
    [("train", "", ["1", "2"]), ("test", "", ["3"]), ("train", "restval", ["2"]), ("val", "restval+test", ["2", "3"])],
)
def test_coco_karpathy_splits(tmp_path, split, subset, expected):
    for image in KARPATHY_COCO["images"]:
        trees.write(tmp_path / image["filepath"] / image["filename"], trees.jpeg(image["cocoid"]))
    metadata = trees.write_json(tmp_path / "dataset_coco.json", KARPATHY_COCO)
    prepared(metadata, tmp_path / "out", 1, kind="coco", split=split, images=str(tmp_path), subset=subset)
    assert keys(tmp_path / "out", split) == expected


def test_flickr30k_karpathy_file(tmp_path):
    content = karpathy(
        ({"imgid": 0, "split": "test", "filename": "100.jpg"}, ["a", "b", "c", "d", "e"]),
        ({"imgid": 1, "split": "train", "filename": "200.jpg"}, ["f"]),
    )
    trees.write(tmp_path / "flickr30k-images/100.jpg", trees.jpeg(1))
    metadata = trees.write_json(tmp_path / "dataset_flickr30k.json", content)
    prepared(metadata, tmp_path / "out", kind="flickr30k", split="test", images=str(tmp_path))
    assert examples(tmp_path / "out", "test")["100.jpg"]["captions"] == ("a", "b", "c", "d", "e")


def test_an_image_of_flickr30k_is_read_from_the_folder_of_its_release_first(tmp_path):
    content = karpathy(({"imgid": 0, "split": "train", "filename": "100.jpg"}, ["a"]))
    trees.write(tmp_path / "images/100.jpg", b"another file")
    trees.write(tmp_path / "flickr30k-images/100.jpg", trees.jpeg(1))
    metadata = trees.write_json(tmp_path / "dataset_flickr30k.json", content)
    assert prepared(metadata, tmp_path / "out", kind="flickr30k", images=str(tmp_path))["num_examples"] == 1


@pytest.mark.parametrize("form", ["captions", "karpathy"])
def test_a_null_caption_of_coco_is_empty_and_another_one_that_is_no_text_rejects_its_image(tmp_path, form):
    texts = {1: "one", 2: None, 3: ["three"]}
    for number in texts:
        trees.write(tmp_path / f"{number}.jpg", trees.jpeg(number))
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in texts]
    annotations = [{"image_id": n, "caption": text} for n, text in texts.items()]
    split = [
        {"cocoid": n, "split": "train", "filename": f"{n}.jpg", "sentences": [{"raw": text}]}
        for n, text in texts.items()
    ]
    content = {"images": images, "annotations": annotations} if form == "captions" else {"images": split}
    path = trees.write_json(tmp_path / "x.json", content)
    part = prepared(path, tmp_path / "out", kind="coco", images=str(tmp_path))
    found = {key: example["captions"] for key, example in examples(tmp_path / "out").items()}
    assert found == {"1": ("one",), "2": ("",)} and part["rejected"] == {"bad text": 1}


def test_coco_sets_are_known_by_their_files():
    request = Request("coco", ("x/captions_train2017.json",), "out")
    assert coco_captions.dataset_of(request) == "coco-train2017"
    assert coco_captions.dataset_of(Request("coco", ("x/dataset_coco.json",), "out", "val")) == "coco-karpathy-val"
    assert (
        coco_captions.dataset_of(Request("coco", ("x/captions_train2014.json", "x/captions_val2014.json"), "out")) == ""
    )
    assert coco_captions.dataset_of(Request("flickr30k", ("x.json",), "out", "test")) == "flickr30k-test"


def test_annotations_cannot_leave_the_images_folder(tmp_path):
    outside = trees.write(tmp_path / "secret.jpg", trees.jpeg(1))
    names = ["../secret.jpg", str(outside), "a/../../secret.jpg", "..\\secret.jpg"]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    metadata = trees.write_json(tmp_path / "images/captions.json", {"images": images, "annotations": []})
    with pytest.raises(NothingAccepted) as error:
        prepared(metadata, tmp_path / "out", kind="coco", images=str(tmp_path / "images"))
    assert error.value.rejected == {"unsafe path": 4}


# Tables


def write_images(folder, *names):
    for number, name in enumerate(names):
        trees.write(folder / name, trees.jpeg(number))


def test_csv_with_quotes_and_relative_paths(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    text = 'filepath,title,label\na.jpg,"one, ""two""\nthree",7\nb.jpg,,\nmissing.jpg,four,1\nb.jpg\n'
    part = prepared(trees.write(tmp_path / "t.csv", text), tmp_path / "out", kind="csv")
    found = list(examples(tmp_path / "out").values())
    assert [(example["captions"], example["label"]) for example in found] == [(('one, "two"\nthree',), 7), (("",), -1)]
    assert part["rejected"] == {"bad row": 1, "missing file": 1}


@pytest.mark.parametrize(
    ("kind", "comma", "cause"), [("csv", ",", ("comma", "needs quotes")), ("tsv", "\t", ("tab", "replace"))]
)
def test_a_row_with_more_cells_than_columns_is_rejected_with_the_cause(tmp_path, kind, comma, cause):
    write_images(tmp_path, "a.jpg", "b.jpg")
    text = "image,caption\na.jpg,a red, old house\nb.jpg,a dog\n".replace(",", comma)
    part = prepared(trees.write(tmp_path / f"t.{kind}", text), tmp_path / "out", kind=kind)
    assert [example["captions"] for example in examples(tmp_path / "out").values()] == [("a dog",)]
    assert part["rejected"] == {"bad row": 1}
    *place, detail = json.loads((tmp_path / "out/train-rejected.jsonl").read_text())
    assert place == ["t#2", "bad row"]
    check_names(detail, "3 cells, 2 columns", *cause)
    check_names("\n".join(summary(part)), *cause)


@pytest.mark.parametrize(("kind", "comma"), [("csv", ","), ("tsv", "\t")])
def test_separators_at_the_end_of_a_row_lose_nothing(tmp_path, kind, comma):
    write_images(tmp_path, "a.jpg", "b.jpg")
    text = "image,caption\na.jpg,one,\nb.jpg,two,, \n".replace(",", comma)
    part = prepared(trees.write(tmp_path / f"t.{kind}", text), tmp_path / "out", kind=kind)
    assert part["rejected"] == {}
    assert [example["captions"] for example in examples(tmp_path / "out").values()] == [("one",), ("two",)]


@pytest.mark.parametrize(("column", "options"), [("id", {}), ("n", {"key_column": "n"})])
def test_tables_of_one_name_are_read_if_a_column_holds_the_keys(tmp_path, column, options):
    write_images(tmp_path, "a.jpg", "b.jpg")
    trees.write(tmp_path / "t.csv", f"{column},image,caption\nk1,a.jpg,one\n")
    trees.write(tmp_path / "t.csv.gz", gzip.compress(f"{column},image,caption\nk2,b.jpg,two\n".encode()))
    prepared(tmp_path, tmp_path / "out", kind="csv", **options)
    assert {key: example["captions"] for key, example in examples(tmp_path / "out").items()} == {
        "k1": ("one",),
        "k2": ("two",),
    }


def test_tsv_has_no_quotes(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    text = 'id\timage\tcaption\n7\ta.jpg\t"unclosed\n8\tb.jpg\tplain "word"\n'
    prepared(trees.write(tmp_path / "t.tsv", text), tmp_path / "out", kind="tsv")
    captions = {key: example["captions"] for key, example in examples(tmp_path / "out").items()}
    assert captions == {"7": ('"unclosed',), "8": ('plain "word"',)}


def test_jsonl_with_lists_and_bad_lines(tmp_path):
    write_images(tmp_path / "images", "a.jpg", "b.jpg")
    lines = ['{"image": "a.jpg", "caption": ["one", {"raw": "two"}]}', "{", "[]", '{"image": "b.jpg"}', "", "3"]
    path = trees.write(tmp_path / "t.jsonl", "\n".join(lines))
    part = prepared(path, tmp_path / "out", kind="jsonl", images=str(tmp_path / "images"))
    assert [example["captions"] for example in examples(tmp_path / "out").values()] == [("one", "two"), ("",)]
    assert part["rejected"] == {"bad json": 3}  # a blank line is none, and an object may lack its caption


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [("jsonl", "x\n" * 60, "t#51: bad json"), ("csv", "image,caption\n" + "x\n" * 60, "t#52: bad row")],
)
def test_a_table_of_another_format_ends_early(tmp_path, monkeypatch, kind, text, why):
    monkeypatch.setattr(rows, "MAX_REFUSED", 50)
    with pytest.raises(ValueError, match=rf"51 of the first 51 rows of .* {why}.* format that `prepare {kind}` reads"):
        prepared(trees.write(tmp_path / f"t.{kind}", text), tmp_path / "out", kind=kind)


def test_a_table_with_fewer_bad_rows_than_good_ones_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_REFUSED", 3)
    write_images(tmp_path, "a.jpg")
    lines = ['{"image": "a.jpg", "caption": "one"}'] * 8 + ["x"] * 7
    part = prepared(trees.write(tmp_path / "t.jsonl", "\n".join(lines)), tmp_path / "out", kind="jsonl")
    assert part["rejected"]["bad json"] == 7


CAPTIONS = [  # of one example, and what becomes of them: the texts, or None for a reject
    (float("nan"), ("",)),
    (["a dog", float("nan"), None], ("a dog", "", "")),
    ([["a dog", "a pup"], ["grass"]], None),
    ([{"raw": "a dog"}, {"text": None}], ("a dog", "")),
    ([{"raw": ["a dog"]}], None),
    ({"en": "a dog"}, None),
    (7, ("7",)),
]


@pytest.mark.parametrize(("caption", "texts"), CAPTIONS)
def test_missing_captions_are_empty_and_nested_ones_are_rejected(tmp_path, caption, texts):
    write_images(tmp_path, "a.jpg")
    rows = [{"image": "a.jpg", "caption": value} for value in ("good", caption)]
    path = trees.write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    part = prepared(path, tmp_path / "out", kind="jsonl")
    found = {key: example["captions"] for key, example in examples(tmp_path / "out").items()}
    assert found == {"t#1": ("good",)} | ({"t#2": texts} if texts else {})
    assert part["rejected"] == ({} if texts else {"bad text": 1})


def test_a_folder_in_place_of_an_image_s_text_is_rejected(tmp_path):
    write_images(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / "images/a.txt").mkdir()
    trees.write(tmp_path / "images/b.txt", "a dog")
    part = prepared(tmp_path / "images", tmp_path / "out", kind="imagefolder")
    assert part["rejected"] == {"bad text": 1} and len(keys(tmp_path / "out")) == 1


@pytest.mark.parametrize("size", [-4096, 2**63 - 2048])
def test_a_tar_whose_header_has_a_size_of_no_file_is_damaged(tmp_path, size):
    words = "damaged header at byte|invalid offset"  # the latter: tarfile's own words since Python 3.13.4
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80  # base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(header + bytes(1024))
    with open(tmp_path / "x.tar", "rb") as file, pytest.raises(tarfile.ReadError, match=words):
        list(tar_archive.members(file))


def test_a_missing_key_is_the_line_and_a_nested_one_is_rejected(tmp_path):
    write_images(tmp_path, "a.jpg")
    rows = [{"image": "a.jpg", "caption": "one", "key": key} for key in (float("nan"), None, ["k"])]
    part = prepared(trees.write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows))), tmp_path / "out", kind="jsonl")
    assert sorted(keys(tmp_path / "out")) == ["t#1", "t#2"] and rejected(tmp_path / "out") == [("t#3", "bad text")]
    assert part["num_rejected"] == 1


def test_columns_can_be_named_and_captions_keep_their_names(tmp_path):
    write_images(tmp_path, "a.jpg")
    path = trees.write(tmp_path / "t.csv", "p,alt,long,n,c\na.jpg,short,long text,key7,4\n")
    options = {"image_column": "p", "caption_columns": ("alt", "long"), "key_column": "n", "label_column": "c"}
    prepared(path, tmp_path / "out", kind="csv", **options)
    example = Records(tmp_path / "out", "train")[0]
    assert (example["alt"], example["long"], example["captions"]) == ("short", "long text", ("short", "long text"))
    assert (example["key"], example["label"]) == ("key7", 4)


def test_jsonl_keeps_several_columns_apart_also_of_lists(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"image": "a.jpg", "raw": "web text", "synthetic": ["l1. l2", "<b>l3"], "sentences": [{"raw": "s"}]},
        {"image": "b.jpg", "raw": None, "synthetic": [], "sentences": ["t", None]},
    ]
    path = trees.write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    columns = ("raw", "synthetic", "sentences")
    part = prepared(path, tmp_path / "out", kind="jsonl", caption_columns=columns, clean="slip")
    first, second = examples(tmp_path / "out").values()
    assert [first[name] for name in columns] == ["web text", ["l1. l2", "l3"], ["s"]]
    assert [second[name] for name in columns] == ["", [], ["t", ""]]
    assert (first["captions"], second["captions"]) == (("web text", "l1. l2", "l3", "s"), ("", "t", ""))
    assert part["statistics"]["captions"]["synthetic"]["count"] == 2
    drawn = captions_of(first, "sources:raw,synthetic/sentences", np.random.default_rng(0))
    assert drawn[0] == "web text" and drawn[1] in ("l1. l2", "l3", "s")


def test_a_single_column_with_a_list_has_no_name(tmp_path):
    write_images(tmp_path, "a.jpg")
    path = trees.write(tmp_path / "t.jsonl", json.dumps({"image": "a.jpg", "raw": ["one", "two"]}))
    prepared(path, tmp_path / "out", kind="jsonl", caption_columns=("raw",))
    example = Records(tmp_path / "out", "train")[0]
    assert example["captions"] == ("one", "two") and "raw" not in example


@pytest.mark.parametrize(("kind", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_column_that_is_read_is_there_once(tmp_path, kind, comma):
    path = trees.write(tmp_path / "t.table", "image,caption,caption,x,x\na.jpg,one,two,,\n".replace(",", comma))
    with pytest.raises(ValueError, match=r"column caption more than once.* rename them caption1, .*--caption-column"):
        prepared(path, tmp_path / "out", kind=kind)
    write_images(tmp_path, "a.jpg")
    trees.write(path, "image,caption,x,x\na.jpg,one,,\n".replace(",", comma))  # of other columns nothing is read
    assert prepared(path, tmp_path / "out", kind=kind)["num_examples"] == 1


def test_tables_may_be_compressed_and_many(tmp_path):
    import gzip

    write_images(tmp_path, "a.jpg", "b.jpg")
    trees.write(tmp_path / "one.csv.gz", gzip.compress(b"image,caption\na.jpg,one\n"))
    trees.write(tmp_path / "two.csv", b"image,caption\nb.jpg,two\n")
    assert prepared(tmp_path, tmp_path / "out", kind="csv")["num_examples"] == 2


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("names", [("part.1", "part.2"), ("x/part", "y/part")])
def test_rows_of_tables_with_similar_names_have_keys_of_their_own(tmp_path, kind, names):
    row = {"csv": "image,caption\na.jpg,one\n", "jsonl": '{"image": "a.jpg", "caption": "one"}\n'}[kind]
    for name in names:
        write_images((tmp_path / f"tables/{name}").parent, "a.jpg")
        trees.write(tmp_path / f"tables/{name}.{kind}", row)
    part = prepared(tmp_path / "tables", tmp_path / "out", kind=kind)
    line = {"csv": 2, "jsonl": 1}[kind]
    assert keys(tmp_path / "out") == [f"{name}#{line}" for name in names] and not part["num_rejected"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("csv", "image,caption\na.jpg,a dog\na.jpg,zwei H\u00fcte\n"),
        ("tsv", "image\tcaption\na.jpg\ta dog\na.jpg\tzwei H\u00fcte\n"),
        ("jsonl", '\n\n{"image": "a.jpg", "caption": "zwei H\u00fcte"}\n'),
    ],
)
def test_a_table_that_is_not_utf8_is_refused_with_the_line(tmp_path, kind, text):
    write_images(tmp_path, "a.jpg")
    path = trees.write(tmp_path / f"t.{kind}", text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3: the byte 0xFC .*save the table as UTF-8"):
        prepared(path, tmp_path / "out", kind=kind)
    trees.write(path, text.replace("H", "H\ufffd").encode())  # the character itself is valid
    prepared(path, tmp_path / "out", kind=kind)
    assert ("zwei H\ufffd\u00fcte",) in [each["captions"] for each in examples(tmp_path / "out").values()]


@pytest.mark.parametrize("form", ["path", "bytes", "struct"])
def test_parquet_with_paths_bytes_or_both(tmp_path, form):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_images(tmp_path, "a.jpg", "b.jpg")
    data = [trees.jpeg(0), trees.jpeg(1), None]
    cells = {
        "path": ["a.jpg", "b.jpg", None],
        "bytes": data,
        "struct": [{"bytes": data[0], "path": None}, {"bytes": None, "path": "b.jpg"}, None],
    }
    columns = {"image": cells[form], "caption": [["one", "two"], [], ["three"]], "label": [1, None, 2]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    part = prepared(tmp_path / "t.parquet", tmp_path / "out", kind="parquet")
    found = list(examples(tmp_path / "out").values())
    assert [example["image"] for example in found] == data[:2]
    assert [(example["captions"], example["label"]) for example in found] == [(("one", "two"), 1), ((), -1)]
    assert part["rejected"] == {"no image": 1}


# Folders and TFDS


def test_a_text_file_of_an_imagefolder_that_is_not_utf8_rejects_its_image(tmp_path):
    write_images(tmp_path / "in", "a.jpg", "b.jpg")
    trees.write(tmp_path / "in/a.txt", "H\u00fcte".encode("latin-1"))
    trees.write(tmp_path / "in/b.txt", "H\u00fcte".encode("utf-8-sig"))
    assert prepared(tmp_path / "in", tmp_path / "out", 1, kind="imagefolder")["rejected"] == {"bad text": 1}
    assert [each["captions"] for each in examples(tmp_path / "out").values()] == [("H\u00fcte",)]


def test_imagefolder_labels_are_the_folders_by_name(tmp_path):
    write_images(tmp_path / "in", "n02/b.jfif", "n02/a.jpg", "n01/deep/c.png", "top.jpg", "n01/readme.md")
    trees.write(tmp_path / "in/n02/a.txt", "a caption")
    trees.write(tmp_path / "in/n01/d.heic", b"\0\0\0\x18ftypheic")
    assert prepared(tmp_path / "in", tmp_path / "out", 1, kind="imagefolder")["rejected"] == {"not an image": 1}
    assert load(str(tmp_path / "out"))["splits"]["train"]["classes"] == ["n01", "n02"]
    found = examples(tmp_path / "out")
    assert {key: example["label"] for key, example in found.items()} == {
        "top.jpg": -1,
        "n01/deep/c.png": 0,
        "n02/a.jpg": 1,
        "n02/b.jfif": 1,
    }
    assert found["n02/a.jpg"]["captions"] == ("a caption",)
    assert keys(tmp_path / "out") == ["top.jpg", "n01/deep/c.png", "n02/a.jpg", "n02/b.jfif"]


def test_every_source_is_in_the_help_and_says_what_it_takes():
    text = prepare.parser().format_help()
    for name, source in SOURCES.items():
        assert name in text
        assert source.what in text


def test_long_tables_are_cut_into_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("detailclip_jax.convert.rows.PER_SHARD", 3)
    write_images(tmp_path, *(f"{n}.jpg" for n in range(7)))
    rows = "".join(f"{n}.jpg,caption {n}\n" for n in range(7))
    path = trees.write(tmp_path / "t.csv", "image,caption\n" + rows)
    job = begin(Request("csv", (str(path),), str(tmp_path / "a")))
    assert [shard.weight for shard in job.shards] == [3, 3, 1]
    prepared(path, tmp_path / "out", 1, kind="csv")
    assert keys(tmp_path / "out") == [f"t#{n}" for n in range(2, 9)]


def test_the_options_reach_the_reader():
    shard = webdataset.Sample("k", {"jpg": b"x", "json": b'{"other": 4}'})
    assert webdataset.sample_label(shard.files, {"other": 4}, Options(label_column="other")) == 4
    assert webdataset.sample_label({}, {"label": None}, Options()) == -1
