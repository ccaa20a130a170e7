"""What a mistake in a source, a table or a flag of `prepare` is answered with: the thing and the way out."""

import contextlib
import gzip
import io
import pickle
import shlex
import sqlite3

import numpy as np
import prepare_trees as trees
import pyarrow
import pytest
from pyarrow import parquet
from test_prepare import prepared

from detailclip_jax.convert import to_tfds
from detailclip_jax.convert.examples import Raw, Rejected, pack
from detailclip_jax.convert.prepared_set import load
from detailclip_jax.convert.remote_files import numbered
from detailclip_jax.prepare import main


def of(kind, content, name="", ids=b"", **options):
    """Prepares a file of this content, t.KIND without a name."""

    def call(root):
        table = trees.write(root / (name or f"t.{kind}"), content)
        lists = (str(trees.write(root / "ids.npy", ids)),) if ids else ()
        prepared(table, root / "out", kind=kind, images=str(root), ids=lists, **options)

    return call


def tables_of_one_name(root):
    for name, data in (("t.csv", TABLE), ("t.csv.gz", gzip.compress(TABLE))):
        trees.write(root / name, data)
    prepared(root, root / "out", kind="csv")


def table_of(**columns) -> bytes:
    parquet.write_table(pyarrow.table(columns), file := io.BytesIO())
    return file.getvalue()


def database_of(table, columns) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE {table} ({columns})")
        return database.serialize()


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array, allow_pickle=True)
    return file.getvalue()


def npy_of_another_shape() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)})
    return file.getvalue() + bytes(80)


TABLE = b"image,caption\na.jpg,one\n"
SLIP, SQLITE, IMG2DATASET = "slip-yfcc15m", "yfcc-sqlite", "img2dataset-parquet"
PHOTO = "\t".join(map(str, range(23))) + "\n"
MISTAKES = {  # the mistake: a call with a folder, words of the message, the error if it is not ValueError
    # tables
    "no images": (of("csv", "url,caption\nx,y\n"), "none of the columns image, jpg, .*; its columns are url, caption"),
    "no column of captions": (
        of("csv", "image,text\nx,y\n", caption_columns=("caption",)),
        "no column caption; its columns are image, text",
    ),
    "no column of keys": (of("csv", "image,text\nx,y\n", key_column="id"), "no column id; its columns are image, text"),
    "semicolons": (of("csv", "image;caption\nx;y\n"), "separated by semicolons, not by commas.*save it with commas"),
    "tabs in a csv": (of("csv", "image\tcaption\nx;y\n"), "separated by tabs, not by commas.*prepare tsv"),
    "commas in a tsv": (of("tsv", "image,caption\nx;y\n"), "separated by commas, not by tabs.*prepare csv"),
    "quote without end": (of("csv", 'image,caption\na.jpg,one\nb.jpg,"open\n'), r"t\.csv, line \d: unexpected end"),
    "tables of one name": (tables_of_one_name, r"t\.csv, .*t\.csv\.gz.*rename"),
    "parquet without images": (
        of("parquet", table_of(url=["x"], text=["y"])),
        r"t\.parquet has none of the columns image, .*; its columns are url, text",
    ),
    "no parquet": (of("parquet", b"PAR1 is no parquet PAR1"), "not readable as parquet"),
    "neither tar nor images": (
        of(IMG2DATASET, table_of(key=["0"], caption=["a"], status=["success"])),
        "has no column jpg; its columns are key, caption, status.*unless a tar",
    ),
    **{
        f"{kind} of {text[:15]}": (of(kind, text, "captions.json"), r"captions\.json")
        for kind in ("coco", "flickr30k")
        for text in ("no json", "[]", "{}", '{"images": 3}', '{"images": [{"id": 1}]}', "[" * 100_000)
    },
    # YFCC100M
    "YFCC of three columns": (of("yfcc-tsv", "1\t2\t3\n", "t.tsv"), r"t\.tsv, line 1: 3 columns"),
    "photo id that is no number": (of("yfcc-tsv", f"x{PHOTO}", "t.tsv"), r"t\.tsv, line 1"),
    "ids are objects": (of("yfcc-tsv", PHOTO, ids=npy(np.array([{}], object))), "Python objects"),
    "ids of two axes": (of("yfcc-tsv", PHOTO, ids=npy(np.zeros((2, 2)))), "expected a list of line numbers"),
    "ids of another shape": (of("yfcc-tsv", PHOTO, ids=npy_of_another_shape()), r"ids\.npy is not readable"),
    "ids that are no array": (of("yfcc-tsv", PHOTO, ids=b"empty"), r"ids\.npy is not readable"),
    "SQLite without descriptions": (
        of(SQLITE, database_of("yfcc100m_dataset", "photoid INTEGER, title TEXT")),
        "has no column description; its columns are photoid, title",
    ),
    "SQLite without the table": (of(SQLITE, database_of("other", "x")), "no table yfcc100m_dataset"),
    "no SQLite": (of(SQLITE, b"no database" * 99), "not readable as SQLite"),
    "SQLite nowhere": (
        lambda root: prepared(root / "nowhere.sql", root / "out", kind=SQLITE, images="."),
        *("nowhere", FileNotFoundError),
    ),
    **{
        f"pickle of {value!r}": (of(SLIP, pickle.dumps(value)), f"contains a {type(value).__name__}; expected a list")
        for value in ({}, "text", (1, "a", "b"), None, 3, b"bytes")
    },
    # addresses, names, labels
    "pattern that falls": (lambda _: numbered("{3..2}"), "the first number is larger"),
    "pattern of too many files": (
        lambda _: numbered("http://host/{0..99999999999}.tar"),
        "stands for 100,000,000,000 files, more than 1,000,000; correct the last",
    ),
    "two patterns of too many files": (lambda _: numbered("{0..2000}-{0..2000}.tar"), "stands for 4,004,001 files"),
    **{
        f"TFDS name {name!r}": (lambda root, name=name: to_tfds.write(str(root), name), "letters, digits")
        for name in ("", "a/b", "ü", "a b")
    },
    **{
        f"dataset.json of {text}": (
            lambda root, text=text: load(str(trees.write(root / "dataset.json", text).parent)),
            "does not have the format",
        )
        for text in ('{"format": "of someone else"}', '{"format": ')
    },
    **{f"label {n}": (lambda _, n=n: pack(Raw("k", b"", label=n)), "bad label", Rejected) for n in (-2, 2**31, 10**30)},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(tmp_path, mistake):
    call, words, *error = MISTAKES[mistake]
    with pytest.raises(*error or [ValueError], match=words):
        call(tmp_path)


JOIN = "--captions t.csv --captions-key"
COMMANDS = {  # the mistake: the command, words of its message
    "unknown source": ("webdatasets x", "unknown source 'webdatasets'; did you mean 'webdataset'? Known: webdataset,"),
    "no path": ("webdataset", "webdataset needs a PATH"),
    "no file": ("webdataset nowhere.tar", "nowhere.tar' does not exist\n"),
    "misspelt file": ("csv captoins.csv", "captoins.csv' does not exist; did you mean "),
    "no images": ("coco x.json", "coco needs --images"),
    "images nowhere": ("coco c.json --images /nowhere", "--images /nowhere: this folder or zip does not exist"),
    "unknown set": ("csv x.csv --dataset cc4m", "unknown known set 'cc4m'; did you mean"),
    "captions nowhere": (f"coco nowhere.json --images {__file__}", "nowhere.json"),
    "TFDS without a name": ("tfds: --subset train", "data.path is empty"),
    "template without a place": (
        "imagefolder in --caption-template 'a photo'",
        "--caption-template: 'a photo' has no {} in place of the class name",
    ),
    "template without classes": (
        "webdataset in --caption-template 'a {}'",
        "--caption-template: only the classes of an imagefolder have names",
    ),
    "join without a key": ("webdataset a.tar --captions t.csv", "--captions-key and --captions-columns missing"),
    "join without a table": ("webdataset a.tar --captions-key url", "--captions and --captions-columns missing"),
    "join under a taken name": (f"webdataset a.tar {JOIN} url --captions-columns captions", "the name 'captions'"),
    "join without a side": (f"webdataset a.tar {JOIN} =url --captions-columns a", "the side of the images"),
    "join with no file": (f"webdataset a.tar {JOIN} url --captions-columns a", "t.csv' does not exist"),
    "join of images without URL": (
        f"imagefolder in {JOIN} url --captions-columns text",
        "imagefolder has only key, path, file",
    ),
    "share above 1": ("webdataset a.tar --captions-min-matched 2", "a number from 0 to 1"),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_in_a_command_ends_in_a_message(tmp_path, monkeypatch, capsys, mistake):
    for name in ("captions.csv", "a.tar", "in/0.jpg"):
        trees.write(tmp_path / name, b"")
    monkeypatch.chdir(tmp_path)
    command, words = COMMANDS[mistake]
    assert main([*shlex.split(command), "--out", f"{tmp_path}-out"]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
