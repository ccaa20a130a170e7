"""Archives and tables that are damaged or larger than the limits: a message."""

import bz2
import gzip
import lzma
import zipfile

import numpy as np
import prepare_trees as trees
import pytest

from detailclip_jax.convert import files, parquet, text_tables, yfcc
from detailclip_jax.convert.job import Request
from detailclip_jax.data.labelled import labelled_tars
from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.inference import embeddings

# Tars


PACKERS = {".gz": lambda data: gzip.compress(data, 9), ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("left", [0, 300, 700, 1536, 2048])  # of the headers, the members and the end
def test_a_truncated_tar_of_a_labelled_set_is_named(tmp_path, left):
    path = trees.write_tar(tmp_path / "test/0.tar", [("a.jpg", bytes(512)), ("a.cls", b"0")])
    trees.write(tmp_path / "classnames.txt", "cat\n")
    assert len(labelled_tars.read(tmp_path, "test").source) == 1
    trees.write(path, path.read_bytes()[:left])
    with pytest.raises(MissingData, match=rf"{path}: not readable as an uncompressed tar .*download it again"):
        labelled_tars.read(tmp_path, "test")


def test_a_member_of_a_labelled_tar_beyond_the_limit_is_a_bad_record(tmp_path, monkeypatch):
    trees.write_tar(tmp_path / "test/0.tar", [("a.jpg", trees.jpeg(1)), ("a.cls", b"0")])
    trees.write(tmp_path / "classnames.txt", "cat\n")
    contents = labelled_tars.read(tmp_path, "test")
    assert contents is not None and contents.source[0]["label"] == 0
    monkeypatch.setattr(labelled_tars, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(BadRecord, match=r"0\.tar:a: .* bytes, more than 100"):
        contents.source[0]


@pytest.mark.parametrize("text", [b"9" * 5000, b"2147483648", b"-1", b"1e3", b""])
def test_a_label_of_a_labelled_tar_that_is_none_is_a_bad_record(text):
    with pytest.raises(BadRecord, match="k: label"):
        labelled_tars.parse_label(text, "k")


@pytest.mark.parametrize("text", ["9" * 5000, "10000000000"])
def test_a_number_of_tars_that_nobody_has_is_refused(tmp_path, text):
    trees.write(tmp_path / "nshards.txt", text)
    with pytest.raises(MissingData, match=r"nshards\.txt contains"):
        labelled_tars.shards_of(tmp_path)


# Compressed tables


def test_a_damaged_stream_is_a_message_whatever_the_library_raises(tmp_path):
    packed = bytearray(bz2.compress(b"image,caption\n" + bytes(range(256)) * 400))
    messages = []
    for place in range(0, len(packed), 5):
        damaged = bytes([*packed[:place], packed[place] ^ 0xFF, *packed[place + 1 :]])
        path = trees.write(tmp_path / "t.csv.bz2", damaged)
        with (
            pytest.raises(ValueError, match=r"t\.csv\.bz2 is truncated or damaged") as error,
            files.open_text(path) as file,
        ):
            file.read()
        messages.append(str(error.value))
    assert any("Invalid data stream" in message for message in messages)


def test_what_a_table_ordinarily_unpacks_to_is_read(tmp_path):
    rows = "".join(f'{{"image": "{n}.jpg", "caption": "the same caption"}}\n' for n in range(20_000))
    path = trees.write(tmp_path / "t.jsonl.xz", lzma.compress(rows.encode()))
    assert sum(1 for _ in text_tables.jsonl_rows(Request("jsonl", (str(path),), str(tmp_path)))) == 20_000


# Lines


def test_a_line_of_jsonl_that_is_too_long_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    good = '{"image": "a.jpg", "caption": "b"}'
    path = trees.write(tmp_path / "t.jsonl", f'{good}\n{{"caption": "{"x" * 5000}"}}\r\n{good}')
    first, long, last = text_tables.jsonl_rows(Request("jsonl", (str(path),), str(tmp_path)))
    assert (first.key, long.key, last.key) == ("t#1", "t#2", "t#3")
    assert long.refused.startswith("too large: ") and not first.refused and not last.refused


@pytest.mark.parametrize("end", ["", "\n", "\n" + "a" * 2000])
def test_a_line_of_exactly_the_limit_is_read(tmp_path, monkeypatch, end):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    path = trees.write(tmp_path / "t.txt", "x" * 9 + "\n" + "y" * 10 + end)
    with files.open_text(path) as file:
        found = list(files.lines(file))
    assert found[0] == "x" * 9 + "\n"
    assert found[1:] == {"": ["y" * 10], "\n": [None]}.get(end, [None, None])


@pytest.mark.parametrize(
    "text", ['image,caption\n"' + "x\n" * 600, '"' + "x\n" * 600, "image,caption\n" + '"a\n",' * 100]
)
def test_a_row_over_many_lines_is_bounded(tmp_path, monkeypatch, text):
    monkeypatch.setattr(text_tables, "MAX_ROW", 300)
    path = trees.write(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=r"t\.csv .*300 characters.*quote"):
        list(text_tables.separated_rows(text_tables.CSV, Request("csv", (str(path),), str(tmp_path))))


def test_a_photo_id_beyond_64_bits_is_in_no_list():
    assert yfcc.Lines(np.arange(3)).find(10**30, 0) is None
    assert yfcc.Photos(np.arange(3), np.arange(3), np.zeros((3, 32), np.uint8)).find(0, 10**30) is None


# Embeddings and parquet


def table(num=3):
    rows = {embeddings.Key("image", f"{n}.jpg", n): np.full(4, n, np.float32) for n in range(num)}
    return embeddings.Table(embeddings.Origin("run", 1, "ema", "x"), rows)


def test_an_npz_that_is_a_bomb_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", bytes(30_000_000))
    with pytest.raises(ValueError, match=r"x\.npz is not a file of embeddings.* has 30,000,000 bytes unpacked"):
        embeddings.read(path)


def test_a_parquet_of_embeddings_that_is_a_bomb_is_refused(tmp_path):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(np.zeros(2**22, np.float32)), 64)
    writer.write_table(arrow.table({"embedding": lists}), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(ValueError, match=r"x\.parquet is not a file of embeddings.* bytes unpacked"):
        embeddings.read(tmp_path / "x.parquet")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("num", [0, 1, 3000])
def test_embeddings_that_were_written_are_read(tmp_path, suffix, num):
    embeddings.write(tmp_path / f"x{suffix}", table(num))
    assert len(embeddings.read(tmp_path / f"x{suffix}").rows) == num


def parquet_set(folder, values, **options):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"jpg": values, "caption": ["x"] * len(values)}), folder / "x.parquet", **options)
    return str(folder / "x.parquet")


def test_a_value_that_a_dictionary_repeats_is_not_held_many_times(tmp_path, monkeypatch):
    path = parquet_set(tmp_path, [np.random.default_rng(0).bytes(100_000)] * 20, use_dictionary=True)
    monkeypatch.setattr(parquet, "MAX_BYTES", 250_000)
    sizes, original = [], pytest.importorskip("pyarrow.parquet").ParquetFile.iter_batches
    monkeypatch.setattr(
        "pyarrow.parquet.ParquetFile.iter_batches",
        lambda self, batch_size, **options: (sizes.append(batch_size), original(self, batch_size, **options))[1],
    )
    assert len(list(parquet.rows(path, ("jpg",)))) == 20
    assert sizes == [2]


@pytest.mark.parametrize("name, value", [("a.jpg", np.nan), ("a.jpg", -np.inf), ("a.jpg", 3e38), ("\udcff.jpg", 1)])
def test_embeddings_that_no_search_can_answer_are_refused(tmp_path, name, value):
    rows = {**table().rows, embeddings.Key("image", name): np.array([0, 1, value, 0], np.float32)}
    embeddings.write(tmp_path / "x.npz", table()._replace(rows=rows))
    reason = "the embedding of a.jpg is not finite" if name == "a.jpg" else "surrogates not allowed"
    with pytest.raises(ValueError, match=rf"x\.npz is not a file of embeddings.*{reason}"):
        embeddings.read(tmp_path / "x.npz")
