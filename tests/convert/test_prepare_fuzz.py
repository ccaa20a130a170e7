"""What archives, tables and pickles may try: nothing leaves its place, runs, or takes more memory than it is given."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import pickle
import sqlite3
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import prepare_trees as trees
import pytest
from test_prepare import keys, prepared

from detailclip_jax.convert import files, image_root, slip_pickle, webdataset
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.files import is_inside
from detailclip_jax.convert.job import Options, Request
from detailclip_jax.convert.planning import begin
from detailclip_jax.convert.prepared_set import NothingAccepted
from detailclip_jax.convert.readers import DAMAGE
from detailclip_jax.prepare import main


def info(name, **fields):
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def reasons(part):
    return part["rejected"]


def refused(*arguments, **options):
    """The reasons of a source of which nothing is accepted."""
    with pytest.raises(NothingAccepted) as error:
        prepared(*arguments, **options)
    return error.value.rejected


# Tars


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "../up.jpg", "a/../../up.jpg", "..\\up.jpg", "/../x.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    trees.write_tar(tmp_path / "in/x.tar", [(name, trees.jpeg(1)), *trees.sample("good", 2)])
    part = prepared(tmp_path / "in", tmp_path / "out")
    assert reasons(part) == {"unsafe path": 1}
    assert keys(tmp_path / "out") == ["x/good"]
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "good.jpg"),
        (tarfile.LNKTYPE, "good.jpg"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(tmp_path, kind, target):
    members = [*trees.sample("good", 2), info("x.jpg", type=kind, linkname=target), *trees.sample("more", 3)]
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out", 1)
    assert reasons(part) == {"not a file": 1}
    assert keys(tmp_path / "out") == ["x/good", "x/more"]


def test_images_and_texts_beyond_the_limit_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_BYTES", 2000)
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 100)
    members = [("big.jpg", bytes(2001)), ("text.jpg", trees.jpeg(1)), ("text.txt", b"x" * 101), *trees.sample("ok", 2)]
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out", 1)
    assert reasons(part) == {"too large": 2}
    assert keys(tmp_path / "out") == ["x/ok"]


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 513, 1500])
def test_a_truncated_tar_gives_what_is_whole_and_says_so(tmp_path, cut):
    path = trees.write_tar(tmp_path / "x.tar", trees.flat(trees.sample(f"{n}", n) for n in range(3)))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size
    trees.write(path, path.read_bytes()[: end - cut])
    part = prepared(path, tmp_path / "out", 1)
    assert reasons(part)["damaged shard"] == 1
    assert keys(tmp_path / "out")[:2] == ["x/0", "x/1"]


def test_a_compressed_tar_that_was_cut_before_it_was_packed_says_so(tmp_path):
    path = trees.write_tar(tmp_path / "x.tar", [*trees.sample("a", 1), *trees.sample("b", 2)])
    trees.write(tmp_path / "y.tar.gz", gzip.compress(path.read_bytes().rstrip(b"\0")))
    path.unlink()
    part = prepared(tmp_path / "y.tar.gz", tmp_path / "out")
    assert (keys(tmp_path / "out"), reasons(part)) == (["y.tar/a"], {"damaged shard": 1})


def test_a_tar_without_its_end_says_so_and_drops_what_may_not_be_whole(tmp_path):
    path = trees.write_tar(tmp_path / "x.tar", [("a.jpg", trees.jpeg(1)), ("b.jpg", trees.jpeg(2))])
    trees.write(path, path.read_bytes()[: sum(512 + 512 * -(-len(trees.jpeg(n)) // 512) for n in (1, 2))])
    part = prepared(path, tmp_path / "out")
    assert (keys(tmp_path / "out"), reasons(part)) == (["x/a"], {"damaged shard": 1})


NO_TARS = {
    "empty": b"",
    "text": b"no tar",
    "zeros": bytes(100),
    "ones": b"\xff" * 2000,
    "noise": np.random.default_rng(0).bytes(3000),
    "cut gzip": gzip.compress(b"no tar", mtime=0)[:-4],
}


@pytest.mark.parametrize("data", NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_is_a_reject(tmp_path, data):
    trees.write(tmp_path / "x.tar", data)
    trees.write(tmp_path / "y.tar.gz", data)
    trees.write_tar(tmp_path / "z.tar", trees.sample("good", 1))
    part = prepared(tmp_path, tmp_path / "out")
    assert reasons(part) == {"damaged shard": 2}
    assert part["num_examples"] == 1


def test_random_damage_to_a_tar_never_raises_anything_else(tmp_path):
    path = trees.write_tar(tmp_path / "x.tar", trees.flat(trees.sample(f"{n}", n) for n in range(2)))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    used = len(whole.rstrip(b"\0"))
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, used, rng.integers(1, 6)):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert all(isinstance(sample, webdataset.Sample) for sample in webdataset.samples(str(path)))
        except DAMAGE as error:
            assert not (isinstance(error, OSError) and error.errno)


@pytest.mark.parametrize("text", [b"{", b"[1]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"a":1e999}'])
def test_bad_json_members_are_rejects(tmp_path, text):
    members = [("a.jpg", trees.jpeg(1)), ("a.json", text), *trees.sample("good", 2)]
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out")
    assert set(reasons(part)) <= {"bad json"}
    assert part["num_examples"] >= 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b'{"caption": "\\ud800", "label": 1e300}', "bad label"), (b'{"caption": {"a": []}, "label": null}', "bad text")],
)
def test_odd_json_values_are_rejects_or_texts(tmp_path, text, reason):
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", trees.jpeg(1)), ("a.json", text), *trees.sample("b\udcff", 2)])
    part = prepared(tmp_path / "x.tar", tmp_path / "out", 1)
    assert reasons(part) == {reason: 1}
    assert keys(tmp_path / "out") == ["x/b\\udcff"]


# Zips


def slip_set(folder, archive):
    trees.write(folder / "12/345.zip", archive)
    return trees.write(folder / "p.pkl", pickle.dumps([(12345678, "t", "d")]))


def zip_bytes(data, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("678.jpg", data)
    return file.getvalue()


def claim_size(archive, size):
    """The same zip, whose directory and header claim another size of the member."""
    data = bytearray(archive)
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    struct.pack_into("<I", data, data.index(b"PK\x03\x04") + 22, size)
    return bytes(data)


def encrypt_flag(archive):
    data = bytearray(archive)
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[data.index(b"PK\x03\x04") + 6] |= 1
    return bytes(data)


GOOD_ZIP = zip_bytes(b"x" * 5000)


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"no zip", "damaged zip"),
        (GOOD_ZIP[:-30], "damaged zip"),
        (claim_size(GOOD_ZIP, 10), "damaged zip"),  # lies: less than there is
        (claim_size(GOOD_ZIP, 2**32 - 2), "too large"),
        (encrypt_flag(GOOD_ZIP), "damaged zip"),
        (GOOD_ZIP.replace(b"x" * 5, b"y" * 5), "not an image"),
        (zip_bytes(b""), "empty"),
    ],
)
def test_damaged_zips_are_rejects(tmp_path, archive, reason):
    metadata = slip_set(tmp_path, archive)
    assert refused(metadata, tmp_path / "out", kind="slip-yfcc15m", images=str(tmp_path)) == {reason: 1}


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """20 MB of zeros in 20 kB: refused by the size in the directory; a smaller one there is what is unpacked."""
    monkeypatch.setattr(image_root, "MAX_BYTES", 10**6)
    bomb, size = zip_bytes(bytes(20_000_000)), (20_000_000).to_bytes(4, "little")
    assert len(bomb) < 30_000
    trees.write(tmp_path / "z.zip", bomb)
    trees.write(tmp_path / "lies.zip", bomb.replace(size, (1000).to_bytes(4, "little")))
    with image_root.ImageRoot(str(tmp_path)) as root:
        with pytest.raises(Rejected, match="too large"):
            root.read([("z.zip", "678.jpg")])
        with pytest.raises(Rejected, match="damaged zip"):
            root.read([("lies.zip", "678.jpg")])


def test_random_damage_to_a_zip_never_raises_anything_else(tmp_path):
    whole, rng = zip_bytes(trees.jpeg(1)), np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        trees.write(tmp_path / "z.zip", bytes(data))
        with image_root.ImageRoot(str(tmp_path)) as root:
            try:
                root.read([("z.zip", "678.jpg")])
            except Rejected as refusal:
                assert str(refusal).partition(":")[0] in {"damaged zip", "missing file", "too large"}


# Images


def png_of_size(width, height):
    """A PNG whose header claims a size and which holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (10_000, 12_000)])
def test_an_image_that_claims_to_be_huge_is_refused(tmp_path, size):
    members = [("a.png", png_of_size(*size)), *trees.sample("good", 1)]
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out")
    assert part["num_rejected"] == part["num_examples"] == 1


def test_random_damage_to_an_image_is_a_reject_or_an_image(tmp_path):
    rng, members = np.random.default_rng(0), []
    for number in range(60):
        data = bytearray((trees.jpeg, trees.png)[number % 2](number))
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        members.append((f"{number}.jpg", bytes(data)))
    trees.write_tar(tmp_path / "x.tar", members)
    part = prepared(tmp_path / "x.tar", tmp_path / "out")
    assert part["num_examples"] + part["num_rejected"] == 60
    assert set(reasons(part)) <= {"not an image", "truncated or damaged", "too large"}
    assert part["num_rejected"] > 5


# Files that tables name


def test_a_table_may_name_what_is_no_image_file(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    names = ["folder.jpg", "/dev/zero", "/dev/stdin", "a" * 300 + ".jpg", "good.jpg/x.jpg"]
    trees.write(tmp_path / "good.jpg", trees.jpeg(1))
    path = trees.write(tmp_path / "t.csv", "image,caption\n" + "".join(f"{name},x\n" for name in [*names, "good.jpg"]))
    part = prepared(path, tmp_path / "out", kind="csv")
    assert part["num_examples"] == 1
    assert set(reasons(part)) == {"missing file", "unsafe path"}


def test_a_path_with_a_null_byte_is_a_reject(tmp_path):
    trees.write(tmp_path / "good.jpg", trees.jpeg(1))
    lines = [f'{{"image": "{name}", "caption": "x"}}\n' for name in ("a\\u0000b.jpg", "", "good.jpg")]
    part = prepared(trees.write(tmp_path / "t.jsonl", "".join(lines)), tmp_path / "out", kind="jsonl")
    assert (part["num_examples"], reasons(part)) == (1, {"bad row": 1, "unsafe path": 1})


def test_a_field_without_end_is_an_error_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("detailclip_jax.convert.text_tables.MAX_FIELD", 1000)
    path = trees.write(tmp_path / "t.csv", 'image,caption\n"' + "x" * 2000)
    with pytest.raises(ValueError, match=r"t\.csv, line"):
        prepared(path, tmp_path / "out", kind="csv")


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "./a.jpg", "a..b.jpg", "..a/b"])
def test_ordinary_paths_are_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", "/a", "..", "a/..", "../a", "a\\..\\b", "a\0b"])
def test_others_are_not(name):
    assert not is_inside(name)


@pytest.mark.parametrize("damage", [b"x" * 500, b"BZh9" + b"x" * 500])
def test_a_damaged_compressed_table_is_a_message(tmp_path, damage, capsys):
    trees.write(tmp_path / "yfcc100m_dataset-0.bz2", damage)
    command = ["yfcc-tsv", str(tmp_path), "--images", ".", "--out", str(tmp_path / "out")]
    assert main(command) in (1, 2)
    assert "error:" in capsys.readouterr().err


LINES = "".join("\t".join(str(n + k) for k in range(23)) + "\n" for n in range(3000)).encode()
CUT = {
    "yfcc-tsv": ("yfcc100m_dataset-0.bz2", bz2.compress(LINES)),
    "tsv": ("table.tsv.xz", lzma.compress(b"image\tcaption\n" + LINES)),
    "jsonl": ("table.jsonl.gz", gzip.compress(b'{"image": "a.jpg", "caption": "b"}\n' * 3000)),
    "coco": ("captions.json.gz", gzip.compress(b'{"images": [], "annotations": []}')),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_table_whose_download_was_cut_is_named(tmp_path, kind, capsys):
    name, data = CUT[kind]
    path = trees.write(tmp_path / name, data[: len(data) // 2])
    assert main([kind, str(path), "--images", str(tmp_path), "--out", f"{tmp_path}-out"]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and "truncated or damaged" in said


def test_a_damaged_gzip_stream_is_named(tmp_path):
    data = bytearray(CUT["jsonl"][1])
    data[40:60] = bytes(20)
    path = trees.write(tmp_path / "t.gz", bytes(data))
    with pytest.raises(ValueError, match=r"t\.gz is truncated or damaged"), files.open_text(path) as file:
        file.read()


ODD = {
    "coco": ("c.json", b'{"images": [1], "annotations": []}'),
    "flickr30k": ("k.json", b'{"images": [{"split": "train", "sentences": [1], "filename": "a"}]}'),
    "csv": ("t.csv", b'"ima"ge,caption\na,b\n'),
}


@pytest.mark.parametrize("kind", ODD)
def test_tables_of_another_form_are_a_message(tmp_path, kind, capsys):
    name, content = ODD[kind]
    path = trees.write(tmp_path / name, content)
    assert main([kind, str(path), "--images", str(tmp_path), "--out", f"{tmp_path}-out"]) == 2
    assert f"error: {path}" in capsys.readouterr().err


@pytest.mark.parametrize("photo", ["NULL", "'x'", "x'ff'"])
def test_photo_ids_that_are_no_numbers_are_a_message(tmp_path, photo, capsys):
    path = tmp_path / "yfcc.sql"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE yfcc100m_dataset (photoid, title, description)")
        database.execute(f"INSERT INTO yfcc100m_dataset VALUES ({photo}, 't', 'd')")
        database.commit()
    assert main(["yfcc-sqlite", str(path), "--images", str(tmp_path), "--out", f"{tmp_path}-out"]) == 2
    assert f"error: {path} is damaged, or not a YFCC100M table" in capsys.readouterr().err


def test_a_limit_on_a_tar_that_is_cut_counts_what_is_known_to_be_whole(tmp_path):
    trees.write_tar(tmp_path / "whole.tar", [(f"{n}.jpg", bytes(3000)) for n in range(5)])
    path = trees.write(tmp_path / "cut.tar", (tmp_path / "whole.tar").read_bytes()[:8000])
    request = Request("webdataset", (str(path),), str(tmp_path / "out"), options=Options(limit=100))
    assert [shard.stop for shard in begin(request).shards] == [1]  # more of the second might follow


# Pickles


class Calls:
    """What a pickle of this calls when it is loaded."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def marker(path):
    """A function's call that would leave a file."""
    return Calls(os.mkdir, str(path))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "make",
    [
        lambda path: marker(path),
        lambda path: [(1, "a", marker(path))],
        lambda path: [(1, "a", Calls(eval, f"__import__('os').mkdir({str(path)!r})"))],
        lambda path: [(1, "a", Calls(codecs.decode, b"x", "utf-8"))],
        lambda path: [(1, "a", Calls(getattr, "", "join"))],
        lambda path: [(np.int64(1), "a", "b")],
        lambda path: [(1, "a", Ellipsis)],
        lambda path: [(1, "a", range(3))],
    ],
)
def test_pickles_that_call_or_import_are_refused(tmp_path, protocol, make):
    target = tmp_path / "was-called"
    path = trees.write(tmp_path / "p.pkl", pickle.dumps(make(target), protocol))
    with pytest.raises(ValueError, match="is not a pickle of plain data"):
        begin(Request("slip-yfcc15m", (str(path),), str(tmp_path / "out")))
    assert not target.exists()


HAND_WRITTEN = {
    "global": b"cos\nmkdir\n(S'was-called'\ntR.",
    "inst": b"(S'was-called'\nios\nmkdir\n.",
    "obj": b"(cos\nmkdir\nS'was-called'\no.",
    "newobj": b"\x80\x02cos\nmkdir\nU\nwas-called\x85\x81.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\nwas-called\x85R.",
    "ext": b"\x80\x02\x82\x01)R.",
    "persistent": b"P1\n.",
    "binary persistent": b"K\x01Q.",
    "build": b"]}U\x01ak\x00sb.",
    "reduce a text": b"U\x01a)R.",
    "next buffer": b"\x80\x05\x97.",
    "empty": b"",
    "stop alone": b".",
    "long that claims": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "text that claims": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "frame that claims": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
    "memo": b"h\x05.",
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_hand_written_pickles_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = trees.write(tmp_path / "p.pkl", HAND_WRITTEN[name])
    with pytest.raises(ValueError, match=r"p\.pkl is (refused|not a pickle of plain data)|expected a list"):
        slip_pickle.load(str(path))
    assert not (tmp_path / "was-called").exists()


def test_random_damage_to_a_pickle_is_refused_or_gives_a_list(tmp_path):
    whole, rng = pickle.dumps([(n, "title", "description") for n in range(5)], 2), np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        path = trees.write(tmp_path / "p.pkl", bytes(data))
        try:
            assert isinstance(slip_pickle.load(str(path)), list)
        except ValueError as error:
            assert "p.pkl" in str(error)


def test_a_row_of_any_depth_becomes_a_reject(tmp_path):
    path = trees.write(tmp_path / "p.pkl", b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".")
    (row,) = slip_pickle.rows_of(Request("slip-yfcc15m", (str(path),), str(tmp_path)))
    assert row.refused.startswith("bad row: [[[")
