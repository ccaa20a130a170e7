"""Hostile inputs by kind, and the entry that each is fed to; see hostile.py.

`make` writes an input of a kind, from a generator of its own, into an empty folder.  `feed` hands it to the package,
and says how many examples came out where it can.  A kind lists the types of exceptions that end as a message.
"""

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import sqlite3
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np
import prepare_trees as trees
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

Rng = np.random.Generator
MESSAGES = (ValueError, FileNotFoundError, ImportError)  # what the commands turn into "error: ..."


class Kind(NamedTuple):
    """One row of the table."""

    make: Callable[[Rng, Path], None]
    feed: Callable[[Path], object]
    refusals: Callable[[], tuple[type[BaseException], ...]]


# Damage


def flipped(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), rng.integers(1, 9)) if data else ():
        changed[place] = rng.integers(256)
    return bytes(changed)


def cut(rng: Rng, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def gap(rng: Rng, data: bytes) -> bytes:
    first, second = sorted(rng.integers(0, len(data) + 1, 2))
    return data[:first] + data[second:]


def repeated(rng: Rng, data: bytes) -> bytes:
    first, second = sorted(rng.integers(0, len(data) + 1, 2))
    return data[:second] + data[first:second] * int(rng.integers(1, 50)) + data[second:]


def noise(rng: Rng, data: bytes) -> bytes:
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 200))) + data[place:]


def extreme(rng: Rng, data: bytes) -> bytes:
    """A number somewhere in the file becomes a very large or negative one."""
    number = struct.pack(*[("<I", 2**32 - 1), ("<Q", 2**63), (">I", 2**31), ("<i", -1), (">H", 65535)][rng.integers(5)])
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + number + data[place + len(number) :]


def nothing(rng: Rng, data: bytes) -> bytes:
    del rng, data
    return b""


def as_it_is(rng: Rng, data: bytes) -> bytes:
    del rng
    return data


DAMAGES = (flipped, flipped, flipped, cut, gap, repeated, noise, extreme, extreme, nothing, as_it_is)


def damaged(rng: Rng, data: bytes) -> bytes:
    return DAMAGES[rng.integers(len(DAMAGES))](rng, data)


def one_of(rng: Rng, values):
    return values[int(rng.integers(len(values)))]


# Texts and values

UNITS = (
    "a",
    "ab",
    "&amp;",
    "&#",
    "<a",
    "</",
    "%3C",
    "http",
    "é",
    "\u4e2d",
    "😀",
    "Ã©",
    "\n",
    "\r\n",
    " ",
    "\0",
    "\x1b[0m",
)
UNITS += (
    "\u202e",
    "\ufeff",
    "!",
    "9",
    "&lt;&amp;",
    "<|endoftext|>",
    "'s",
    "\ud800",
    "+",
    '"',
    "\\",
    "[",
    "{",
    "e\u0301",
)


def text(rng: Rng) -> str:
    units = [one_of(rng, UNITS) for _ in range(rng.integers(1, 5))]
    return "".join(units) * int(one_of(rng, (1, 3, 20, 300, 5000, 30_000)))


def value(rng: Rng):
    """Of any type that JSON and msgpack have."""
    odd = (
        None,
        True,
        -1,
        2**31,
        2**63 - 1,
        9 * 10**18,
        -(2**63),
        1e308,
        float("inf"),
        float("nan"),
        0.5,
        [],
        {},
        [[]],
        {"a": {}},
        "",
    )
    return text(rng)[:5000] if rng.random() < 0.3 else one_of(rng, odd)


def nested(rng: Rng, depth: int = 3):
    if depth == 0 or rng.random() < 0.4:
        return value(rng)
    if rng.random() < 0.5:
        return [nested(rng, depth - 1) for _ in range(rng.integers(0, 4))]
    return {text(rng)[:8]: nested(rng, depth - 1) for _ in range(rng.integers(0, 4))}


def changed_json(rng: Rng, content) -> bytes:
    """JSON in which fields are missing, or of another type or value; or JSON that is damaged as bytes."""
    content = json.loads(json.dumps(content))
    places = list(_places(content))
    for _ in range(rng.integers(0, 4)):
        holder, key = one_of(rng, places)
        if rng.random() < 0.2 and isinstance(holder, dict):
            holder.pop(key, None)
        elif isinstance(holder, dict) or key < len(holder):
            holder[key] = nested(rng)
    data = json.dumps(content).encode("utf-8", "surrogatepass")
    deep = b"[" * 20_000, b'{"a":' * 20_000, b"1" * 10_000, b"1e999", b'"\\ud800"'
    return one_of(rng, deep) if rng.random() < 0.05 else damaged(rng, data) if rng.random() < 0.5 else data


def _places(content):
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, held in items:
        yield content, key
        if isinstance(held, dict | list):
            yield from _places(held)


# Images

FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"%PDF-1.7\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
)
FOREIGN += (
    b"8BPS\0\1" + bytes(30),
    b"\0\0\1\0\1\0" + bytes(30),
    b"SIMPLE  =                    T",
    b"\x0a\x05\1\x08" + bytes(128),
)
FOREIGN += (
    b"<!DOCTYPE html><html>404</html>",
    b"\xd7\xcd\xc6\x9a" + bytes(40),
    b"\1\0\0\0" + bytes(100),
    b"icns\0\0\0\x20",
)


FORMS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
]
FORMS += [("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("PNG", {"optimize": True})]


def encoded_image(rng: Rng) -> bytes:
    form, options = one_of(
        rng,
        FORMS,
    )
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "RGBA", "P", "1", "I;16", "LA"),
        "GIF": ("P",),
        "WEBP": ("RGB", "RGBA"),
    }
    size = tuple(int(side) for side in rng.integers(1, 60, 2))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mode = one_of(rng, modes.get(form, ("RGB", "L")))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_image(rng: Rng, folder: Path) -> None:
    data = one_of(rng, FOREIGN) + rng.bytes(50) if rng.random() < 0.1 else damaged(rng, encoded_image(rng))
    if rng.random() < 0.1:
        width, height = one_of(rng, [(2**31 - 1, 1), (100_000, 100_000), (0, 5), (13_000, 13_000)])
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + rng.bytes(40)
    (folder / "x.jpg").write_bytes(data)


def feed_image(folder: Path) -> object:
    from detailclip_jax.data.decoding import decode

    pixels = decode((folder / "x.jpg").read_bytes())
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels.shape


def image_refusals():
    from detailclip_jax.data.decoding import BadImage

    return (BadImage,)


# Tars

TYPES = [tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
TYPES += [
    tarfile.GNUTYPE_SPARSE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    b"\xff",
]
NAMES = (
    "a.jpg",
    "a.txt",
    "a.json",
    "a.cls",
    "../a.jpg",
    "/etc/x.jpg",
    "b.png",
    ".x.jpg",
    "a/b.jpg",
    "a" * 90 + ".jpg",
    "x",
)


def tar_member(rng: Rng) -> bytes:
    info = tarfile.TarInfo(one_of(rng, NAMES))
    info.type = one_of(rng, TYPES)
    bodies = (
        encoded_image(rng),
        text(rng)[:3000].encode("utf-8", "replace"),
        changed_json(rng, {"caption": "x", "label": 3}),
        b"7",
    )
    body = one_of(rng, bodies)
    info.size = len(body) if rng.random() < 0.8 else int(one_of(rng, (0, 1, 2**20, 2**33, len(body) + 1)))
    if rng.random() < 0.2:
        keys = ("size", "path", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "mtime", "hdrcharset", "uid")
        info.pax_headers = {
            one_of(rng, keys): str(one_of(rng, (0, -5, 2**60, "x", "1,2,3", "\0", 1e999))) for _ in range(3)
        }
        info.pax_headers |= {"GNU.sparse.minor": "0"} if rng.random() < 0.5 else {}
    header = info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT)
    return header + body + bytes(-len(body) % 512)


def make_tar(rng: Rng, folder: Path) -> None:
    members = [tar_member(rng) for _ in range(rng.integers(1, 8))]
    data = b"".join(members * int(one_of(rng, (1, 1, 1, 1, 40)))) + bytes(1024)
    data = damaged(rng, data) if rng.random() < 0.5 else data
    packed = rng.random() < 0.25
    trees.write(folder / f"0.tar{'.gz' if packed else ''}", damaged(rng, gzip.compress(data, 1)) if packed else data)
    trees.write(folder / "test/0.tar", data)
    trees.write(folder / "classnames.txt", "cat\ndog\n")
    if rng.random() < 0.1:
        trees.write(
            folder / "test/nshards.txt", text(rng).encode("utf-8", "replace") if rng.random() < 0.5 else "9" * 50
        )


def feed_tar(folder: Path) -> object:
    path = next(folder.glob("0.tar*"))
    taken = taken_by_prepare("webdataset", path, folder / "out")
    return taken, read_all(folder)


def read_all(folder: Path) -> int:
    """The images of a labelled set of tars; bad records are left out, as in evaluation."""
    from detailclip_jax.data.labelled import labelled_tars
    from detailclip_jax.data.sources import BadRecord

    contents, num = labelled_tars.read(folder, "test"), 0
    for index in range(len(contents.source) if contents else 0):
        try:
            num += len(contents.source[index]["image"])
        except BadRecord as error:
            assert str(error)
    return num


def taken_by_prepare(kind: str, path: Path, out: Path, **options) -> int:
    """How many examples of a source `prepare` takes, in this process."""
    from detailclip_jax.convert import output_shard
    from detailclip_jax.convert.job import Options, Request
    from detailclip_jax.convert.planning import begin
    from detailclip_jax.convert.prepared_set import NothingAccepted, finish

    job = begin(Request(kind, (str(path),), str(out), options=Options(**options)), 1)
    output_shard.convert(job, 0)
    try:
        return finish(job)["num_examples"]
    except NothingAccepted as error:
        assert error.rejected or "has none" in str(error), "nothing was taken, and no reason is given"
        return 0


def prepare_refusals():
    from detailclip_jax.data.sources import MissingData

    return (*MESSAGES, MissingData)


# Tables

PACKERS = ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress))
ROW = {"image": "a.jpg", "caption": "a cat", "label": 1, "key": "k", "title": "t"}
COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
SENTENCES = [{"raw": "a cat"}, {"raw": "two"}]
KARPATHY = {"images": [{"filename": "a.jpg", "split": "train", "sentences": SENTENCES, "cocoid": 3, "filepath": "."}]}


def cell(rng: Rng) -> str:
    return one_of(
        rng, ("a.jpg", "../a.jpg", "/etc/passwd", "1", "inf", "1e400", "9" * 5000, '"', "'", text(rng)[:20_000])
    )


def separated(rng: Rng, mark: str) -> bytes:
    columns = [one_of(rng, ("image", "caption", "label", "key", "title", "description", "x", "")) for _ in range(4)]
    rows = [["image", "caption", *columns], *([cell(rng) for _ in range(rng.integers(0, 8))] for _ in range(6))]
    return "\n".join(mark.join(row) for row in rows).encode("utf-8", "surrogatepass")


def json_lines(rng: Rng) -> bytes:
    rows = [json.dumps(ROW).encode(), *(changed_json(rng, ROW) for _ in range(rng.integers(1, 6)))]
    return b"\n".join(rows)


def yfcc_lines(rng: Rng) -> bytes:
    rows = ["\t".join([str(n), str(n), *(cell(rng).replace("\t", " ") for _ in range(20)), "0"]) for n in range(3)]
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def make_table(rng: Rng, folder: Path) -> None:
    kind = one_of(rng, ("csv", "tsv", "jsonl", "coco", "flickr30k", "yfcc-tsv", "parquet"))
    (folder / "kind").write_text(kind)
    (folder / "a.jpg").write_bytes(trees.jpeg(1))
    if kind == "parquet":
        return make_parquet(rng, folder)
    made = {
        "csv": lambda: separated(rng, ","),
        "tsv": lambda: separated(rng, "\t"),
        "jsonl": lambda: json_lines(rng),
        "coco": lambda: changed_json(rng, COCO),
        "flickr30k": lambda: changed_json(rng, KARPATHY),
        "yfcc-tsv": lambda: yfcc_lines(rng),
    }[kind]()
    made = damaged(rng, made) if rng.random() < 0.4 else made
    made = one_of(rng, (b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + made if rng.random() < 0.05 else made
    suffix, pack = one_of(rng, PACKERS) if rng.random() < 0.2 else ("", bytes)
    packed = pack(made)
    (folder / f"table.{kind}{suffix}").write_bytes(damaged(rng, packed) if suffix and rng.random() < 0.3 else packed)


def make_parquet(rng: Rng, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    images = [encoded_image(rng), b"", None, rng.bytes(20)] if rng.random() < 0.5 else ["a.jpg", "../a.jpg", None, ""]
    labels = one_of(rng, ([0, 1, None, -5], [2**62, 0, 1, 2], [0.5, float("inf"), 1.0, 2.0], ["1", "x", "", None]))
    columns = {"image": images, "caption": ["x", None, text(rng)[:5000].encode("utf-8", "replace").decode(), ""]}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns | {"label": labels}), file)
    (folder / "table.parquet").write_bytes(damaged(rng, file.getvalue()))


def feed_table(folder: Path) -> object:
    kind = (folder / "kind").read_text()
    images = str(folder) if kind not in ("parquet",) else ""
    return taken_by_prepare(kind, next(folder.glob("table.*")), folder / "out", images=images, clean="slip")


# Records


def make_record(rng: Rng, folder: Path) -> None:
    writer = ArrayRecordWriter(str(folder / "train-00000.arrayrecord"), "group_size:1")
    for _ in range(4):
        fields = {"image": encoded_image(rng), "captions": ["a cat", "x"], "label": 3, "key": "k", "title": "t"}
        for name in list(fields):
            if rng.random() < 0.15:
                fields[name] = nested(rng)
        data = pickle_safe(fields)
        writer.write(damaged(rng, data) if rng.random() < 0.3 else data)
    writer.close()
    if rng.random() < 0.3:
        path = folder / "train-00000.arrayrecord"
        path.write_bytes(damaged(rng, path.read_bytes()))
    if rng.random() < 0.3:
        described = {
            "splits": {"train": {"classes": ["a", "b", "c", "d"]}},
            "format": "detailclip_jax image-text records 1",
        }
        (folder / "dataset.json").write_bytes(changed_json(rng, described))


def pickle_safe(fields) -> bytes:
    return msgpack.packb(fields, unicode_errors="surrogatepass", strict_types=False) or b""


def feed_record(folder: Path) -> object:
    from detailclip_jax.data.labelled import prepared_records
    from detailclip_jax.data.pipeline import Stream
    from detailclip_jax.data.preprocessing import Transform
    from detailclip_jax.data.sources import Records
    from detailclip_jax.data.tokenizer import Tokenizer
    from detailclip_jax.data.views import Crop
    from detailclip_jax.evaluation.image_batches import ImageBatches

    source = Records(folder, "train")
    prepared_records.read(folder, "train")
    stream = Stream(source, {"large": Crop(size=8)}, Tokenizer(16))
    labels = [int(stream[position]["label"]) for position in range(4)]
    batches = list(ImageBatches(source, Transform(8, 8), (4,)))
    return labels, len(batches)


def record_refusals():
    from detailclip_jax.data.pipeline import TooManyBadRecords
    from detailclip_jax.data.sources import MissingData

    return (MissingData, TooManyBadRecords)


# Captions


def make_caption(rng: Rng, folder: Path) -> None:
    (folder / "x.txt").write_bytes(text(rng).encode("utf-8", "surrogatepass") * int(one_of(rng, (1, 1, 1, 10))))


def feed_caption(folder: Path) -> object:
    from detailclip_jax.convert.cleaning import slip
    from detailclip_jax.convert.examples import valid_text
    from detailclip_jax.data.tokenizer import EOT, SOT, Tokenizer

    caption = (folder / "x.txt").read_bytes().decode("utf-8", "surrogatepass")
    row, _ = Tokenizer().row(caption)
    assert row[0] == SOT and EOT in row
    return len(valid_text(slip(caption)))


# Torch files, safetensors


def make_torch(rng: Rng, folder: Path) -> None:
    import torch

    held = {"a.weight": torch.zeros(3, 4), "b": torch.arange(5), "epoch": 3, "args": {"lr": 0.1}}
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    data = file.getvalue()
    if rng.random() < 0.5 and zipfile.is_zipfile(file):
        data = repacked(rng, data)
    (folder / "w.pt").write_bytes(damaged(rng, data))


def repacked(rng: Rng, data: bytes) -> bytes:
    """The same archive with members damaged, renamed, missing, compressed or as of TorchScript."""
    made, is_script = io.BytesIO(), rng.random() < 0.2  # whose operations nobody counts: its pickle stays whole
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", one_of(rng, (0, 0, 8))) as new:
        for info in old.infolist():
            name = (
                info.filename if rng.random() < 0.9 else one_of(rng, ("../x", "archive/code/x.py", "archive/data.pkl"))
            )
            content = old.read(info)
            if rng.random() < 0.9:
                changed = rng.random() < 0.3 and not (is_script and name.endswith(".pkl"))
                new.writestr(name, damaged(rng, content) if changed else content)
        if is_script:
            new.writestr("archive/constants.pkl", b"\x80\x02).")
    return made.getvalue()


def feed_weights(folder: Path) -> object:
    from detailclip_jax.interop import tensor_files

    return len(tensor_files.arrays(tensor_files.read(next(folder.glob("w.*")))))


def make_safetensors(rng: Rng, folder: Path) -> None:
    entries = {
        "__metadata__": {"a": "b"},
        "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "y": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    header = changed_json(rng, entries)
    length = len(header) if rng.random() < 0.9 else int(one_of(rng, (0, 2**63, 2**40, len(header) + 9)))
    data = struct.pack("<Q", length) + header + bytes(32)
    (folder / "w.safetensors").write_bytes(damaged(rng, data) if rng.random() < 0.5 else data)


def feed_safetensors(folder: Path) -> object:
    from detailclip_jax.interop import tensor_files

    return tensor_files.metadata(folder / "w.safetensors"), feed_weights(folder)


def weight_refusals():
    return MESSAGES


# Files of a workdir


def make_config(rng: Rng, folder: Path) -> None:
    """The config of a run of any kind; mostly with one or two values of other types."""
    from detailclip_jax.config import default, detection_fields, run_config, segmentation_fields

    made = one_of(rng, (default, default, segmentation_fields.segmentation, detection_fields.detection))()
    (folder / "config.json").write_bytes(changed_json(rng, json.loads(run_config.to_json(made))))
    (folder / "checkpoints/3").mkdir(parents=True)
    line = {"step": 3, "loss": 0.5}
    (folder / "metrics.jsonl").write_bytes(b"\n".join(changed_json(rng, line) for _ in range(3)))


def feed_config(folder: Path) -> object:
    """Every command that reads the config of a run: it resumes, starts from it, compares it or draws with it."""
    from detailclip_jax import compare
    from detailclip_jax.config import default, run_config
    from detailclip_jax.dense import prediction_figures, runs
    from detailclip_jax.pretraining import validate
    from detailclip_jax.runtime import metric_files
    from detailclip_jax.training import adopted_config

    started = default()
    started.init = str(folder)
    read = 0
    for command in (
        lambda: metric_files.read_lines(folder / "metrics.jsonl"),
        lambda: run_config.check_workdir(folder, default()),
        lambda: validate(adopted_config.adopt(started)),
        lambda: validate(adopted_config.adopt(started, (), folder)),
        lambda: compare.check_same_run(default(), folder),
        lambda: runs.config_in(folder),
        lambda: prediction_figures.task_of({"run": folder}),
    ):
        try:
            command()
            read += 1
        except MESSAGES as error:
            assert str(error)
    return read


def make_checkpoint(rng: Rng, folder: Path) -> None:
    """The description of a run in a step's folder; the arrays are not there."""
    from detailclip_jax.config import default, run_config

    run = {"config": run_config.to_json(default()), "step": 7, "data": {"position": 3}}
    (folder / "checkpoints/7/run").mkdir(parents=True)
    (folder / "checkpoints/7/run/metadata").write_bytes(changed_json(rng, run))
    (
        folder / "checkpoints" / text(rng)[:9].replace("/", "").replace("\0", "").encode("utf-8", "replace").decode()
    ).mkdir(exist_ok=True)


def feed_checkpoint(folder: Path) -> object:
    from detailclip_jax.training import checkpoint

    return checkpoint.load(folder, 7)[2]


def checkpoint_refusals():
    from detailclip_jax.training.checkpoint import CheckpointError

    return (CheckpointError, FileNotFoundError)


def make_embeddings(rng: Rng, folder: Path) -> None:
    from detailclip_jax.inference import embeddings

    rows = {embeddings.Key("image", f"{n}.jpg", n): np.full(4, n, np.float32) for n in range(3)}
    path = folder / f"e{one_of(rng, ('.npz', '.parquet'))}"
    embeddings.write(path, embeddings.Table(embeddings.Origin("run", 1, "ema", "x"), rows))
    data = path.read_bytes()
    if path.suffix == ".npz" and rng.random() < 0.5:
        data = repacked(rng, data)
    path.write_bytes(damaged(rng, data))


def feed_embeddings(folder: Path) -> object:
    from detailclip_jax.inference import embeddings

    table = embeddings.read(next(folder.glob("e.*")))
    return table.of(embeddings.IMAGE)[1].shape


# Folders, zips, lists, settings


ODD_NAMES = (
    *(
        "a.jpg",
        "b.PNG",
        ".hidden.jpg",
        "-rf.jpg",
        "a b.jpg",
        "%s.jpg",
        "\u202egpj.jpg",
        "\x1b[31m.jpg",
        "é\u0301.jpg",
        "CON",
    ),
    *(
        "\u4e2d\u6587.webp",
        "😀.gif",
        "x" * 251 + ".jpg",
        "a\nb.jpg",
        "a.jpg.txt",
        "a.txt",
        "b.txt",
        "train",
        "test",
        "val",
        "1",
    ),
)
TEXT_FORMS = ("utf-8", "utf-8-sig", "utf-16", "utf-32-be", "latin-1")


def encoded(rng: Rng) -> bytes:
    """A text in some encoding, with or without a byte order mark, or with zero bytes."""
    data = text(rng)[:3000].encode(one_of(rng, TEXT_FORMS), "replace")
    return data.replace(b" ", b"\0") if rng.random() < 0.2 else data


def make_folder(rng: Rng, folder: Path) -> None:
    """A tree with odd names, bytes that are no UTF-8, links in circles and files that are no images."""
    root = folder / "set"
    root.mkdir()
    places = [root]
    for _ in range(rng.integers(1, 14)):
        where, name = one_of(rng, places), one_of(rng, ODD_NAMES)
        path = where / name
        if path.exists() or path.is_symlink():
            continue
        form = rng.random()
        if form < 0.35:
            path = path.with_suffix("") if path.with_suffix("") != where else path
            if not path.exists() and not path.is_symlink():
                path.mkdir()
                places.append(path)
        elif form < 0.5:
            path.symlink_to(one_of(rng, (root, where, Path(".."), Path("nowhere"), Path(name), folder)))
        elif form < 0.6:
            (where / os.fsdecode(b"\xff\xfe" + bytes([rng.integers(97, 123)]) + b".jpg")).write_bytes(
                encoded_image(rng)
            )
        elif name.endswith(".txt"):
            path.write_bytes(encoded(rng))
        else:
            path.write_bytes(damaged(rng, encoded_image(rng)))
    if rng.random() < 0.3:
        (root / "classnames.txt").write_bytes(encoded(rng))


def feed_folder(folder: Path) -> object:
    from detailclip_jax.data.labelled import folders
    from detailclip_jax.data.sources import BadRecord, MissingData

    taken, num = taken_by_prepare("imagefolder", folder / "set", folder / "out"), 0
    for split in ("train", "test"):
        try:
            contents = folders.read(folder / "set", split)
        except MissingData as error:
            assert str(error)
            continue
        for index in range(len(contents.source) if contents else 0):
            try:
                num += len(contents.source[index]["image"])
            except BadRecord as error:
                assert str(error)
    return taken, num


def make_zip(rng: Rng, folder: Path) -> None:
    """A table and a zip with its images: damaged, nested, with odd sizes, names and methods, or a bomb."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(made, "w", one_of(rng, (0, 8, 8, 12, 14))) as archive:
            for _ in range(rng.integers(0, 6)):
                bodies = (
                    encoded_image(rng),
                    made.getvalue(),
                    bytes(30_000_000) if rng.random() < 0.05 else b"",
                    rng.bytes(50),
                )
                archive.writestr(
                    one_of(rng, ("a.jpg", "b.png", "../a.jpg", "/a.jpg", "a/", "x" * 300)), one_of(rng, bodies)
                )
    data = made.getvalue()
    (folder / "images.zip").write_bytes(damaged(rng, data) if rng.random() < 0.6 else data)
    names = ["a.jpg", "b.png", "../a.jpg", "/a.jpg", "", "a/"]
    (folder / "table.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names))


def feed_zip(folder: Path) -> object:
    return taken_by_prepare("csv", folder / "table.csv", folder / "out", images=str(folder / "images.zip"))


OPEN_CLIP = {
    "model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 8}, "text_cfg": {"layers": 1, "width": 8}},
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [1, 1, 1],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
TIMM = {"architecture": "vit", "pretrained_cfg": {"mean": [0.5] * 3, "std": [1] * 3, "crop_pct": 0.9}, "model_args": {}}
CLIP_MODEL = {"model_type": "clip", "vision_config": {"hidden_size": 8, "hidden_act": "gelu"}, "text_config": {}}
PROCESSOR = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8}, "image_mean": [0.5] * 3, "resample": 3}


def make_hub(rng: Rng, folder: Path) -> None:
    """Configs beside weights."""
    (folder / "model.safetensors").write_bytes(b"")
    kinds = {"open_clip_config.json": OPEN_CLIP, "config.json": TIMM, "preprocessor_config.json": PROCESSOR}
    for name, content in (kinds | {"config.json": one_of(rng, (TIMM, CLIP_MODEL))}).items():
        if name != "open_clip_config.json" or rng.random() < 0.4:
            (folder / name).write_bytes(changed_json(rng, content))


def feed_hub(folder: Path) -> object:
    from detailclip_jax.config import default
    from detailclip_jax.data import preprocessing
    from detailclip_jax.interop import hub_configs, layouts, state_dicts

    options = hub_configs.sidecar_options(folder / "model.safetensors")
    options = {name: value for name, value in options.items() if value is not None}
    preprocessing.changed(default(), state_dicts.preprocess_of(layouts.LAYOUTS[0], options))
    return len(options)


RESULT = {"task": "zero_shot", "dataset": "pets", "metric": "top1", "weights": "student", "value": 0.5, "n": 3}


def make_results(rng: Rng, folder: Path) -> None:
    """What an evaluation left, and split files of captions."""
    (folder / "results.jsonl").write_bytes(b"\n".join(changed_json(rng, RESULT) for _ in range(rng.integers(1, 4))))
    (folder / "dataset_coco.json").write_bytes(changed_json(rng, KARPATHY))


def feed_results(folder: Path) -> object:
    from detailclip_jax.data.labelled import karpathy
    from detailclip_jax.data.sources import MissingData
    from detailclip_jax.evaluation import results

    try:
        karpathy.rows_of(folder / "dataset_coco.json")
    except MissingData as error:
        assert str(error)
    return len(results.read(folder / "results.jsonl"))


def make_ids(rng: Rng, folder: Path) -> None:
    """Lists of ids as text, packed text and .npy, and a table in SQLite."""
    rows = [one_of(rng, ("1", "2 3 " + "a" * 32, "x", "9" * 30, "-1", "", "1 2", "\0", "\uff11")) for _ in range(6)]
    data = "\n".join(rows if rng.random() < 0.5 else ["1", "2", "5"]).encode(one_of(rng, TEXT_FORMS), "replace")
    suffix, pack = one_of(rng, [("", bytes), *PACKERS])
    (folder / f"ids.txt{suffix}").write_bytes(damaged(rng, pack(data)))
    stream = io.BytesIO()
    np.save(stream, one_of(rng, (np.arange(5), np.zeros((2, 2)), np.array(["a"]), np.array([2**63], np.uint64))))
    (folder / "ids.npy").write_bytes(damaged(rng, stream.getvalue()))
    database = folder / "yfcc.db"
    connection = sqlite3.connect(database)
    connection.execute("create table yfcc100m_dataset (photoid, title, description, marker)")
    cells = (1, "x", None, 2.5, b"\xff", "9" * 400, -(2**63), "")
    for _ in range(4):
        row = [one_of(rng, cells) for _ in range(4)]
        connection.execute("insert into yfcc100m_dataset values (?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    if rng.random() < 0.5:
        database.write_bytes(damaged(rng, database.read_bytes()))


def feed_ids(folder: Path) -> object:
    from detailclip_jax.convert.yfcc import Ids

    for path in (next(folder.glob("ids.txt*")), folder / "ids.npy"):
        try:
            Ids.load([str(path)])
        except MESSAGES as error:
            assert str(error)
    return taken_by_prepare("yfcc-sqlite", folder / "yfcc.db", folder / "out", images=str(folder))


SETTINGS = ("seed", "masking.ratio", "model.size", "views.crops", "evaluators", "data.path", "optimizer", "nothing", "")


def segmentation(rng: Rng, height: int, width: int):
    """A mask: polygons, or run lengths as numbers or text, of which some state or reach much more than there is."""
    most = int(one_of(rng, (width, width, width, 10**5, 10**9, 2**31, 2**62)))
    points = rng.integers(0, most, int(one_of(rng, (6, 8, 7, 1000)))).tolist()
    runs = rng.multinomial(height * width, [0.1] * 10).tolist() if height * width < 2**31 else [height * width]
    counts = one_of(
        rng, (runs, [height * width], [2**62] * 4, [-1, height * width + 1], "0" * 99, "PP`0", text(rng)[:99])
    )
    sizes = [height, width], [width, height], [2**31, 2**31], None
    forms = {"size": sizes[min(int(rng.integers(9)), 3) % 4 if rng.random() < 0.3 else 0], "counts": counts}
    return one_of(rng, ([points], [points, points], forms, forms, forms, None, [[1.5, float("nan")] * 3]))


def make_detection(rng: Rng, folder: Path) -> None:
    """A set in COCO's format whose images may be far smaller than it states."""
    height, width = (int(side) for side in rng.integers(5, 60, 2))
    (folder / "a.png").write_bytes(encoded_as(rng, height, width))
    if rng.random() < 0.3:
        height, width = one_of(rng, [(13_000, 13_700), (10**9 - 1, 10**9 - 1), (1, 10**9 - 1), (8_000, 8_000)])
    masks = [segmentation(rng, height, width) for _ in range(rng.integers(1, 3))]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, int(one_of(rng, (3, 30, 10**8))), 3],
            "iscrowd": int(rng.random() < 0.1),
            "segmentation": one_of(rng, masks),
        }
        for number in range(int(one_of(rng, (1, 2, 60))))
    ]
    images = [{"id": 1, "file_name": "a.png", "height": height, "width": width}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "set.json").write_bytes(
        changed_json(rng, content) if rng.random() < 0.4 else json.dumps(content).encode()
    )


def encoded_as(rng: Rng, height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def feed_detection(folder: Path) -> object:
    from detailclip_jax.data.bad_records import TooManyBadRecords
    from detailclip_jax.dense.detection import coco_sets
    from detailclip_jax.dense.detection.coco_scores import score
    from detailclip_jax.dense.detection.detection_task import examples
    from detailclip_jax.dense.detection.instance_augment import Recipe
    from detailclip_jax.dense.detection.instance_batches import DetectionStream

    train, found = (coco_sets.open_format(folder / "set.json", folder, training=training) for training in (True, False))
    try:
        assert DetectionStream(train.source, Recipe((32,), 64), ((64, 64),), 1)[0]["image"].shape == (64, 64, 3)
    except TooManyBadRecords as error:
        assert str(error)
    num = sum(len(example["shapes"]) for example, _ in examples(found.source))
    return num, score(found, [])[0]["segm_AP"]


def detection_refusals():
    from detailclip_jax.data.sources import BadRecord, MissingData

    return (MissingData, BadRecord)


STEPS = [{"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "StripAccents", "ByteLevel", "Nmt")]
STEPS += [
    {"type": "Replace", "pattern": {kind: pattern}, "content": content}
    for kind in ("String", "Regex")
    for pattern in ("a", " ", "b+", "(?=a)", "(a|a)*$", ".", "")
    for content in ("", "aa", "\u2581")
]
STEPS += [{"type": "Prepend", "prepend": "a"}]
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
BEFORE = (None, {"type": "Whitespace"}, BYTES)
WORDS = {"a": 0, "</s>": 1, "aa": 2}
PIECES = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
MODELS = (
    {"type": "WordLevel", "vocab": WORDS, "unk_token": "</s>"},
    {"type": "BPE", "vocab": WORDS, "merges": [["a", "a"]], "dropout": None},
    {"type": "WordPiece", "vocab": WORDS | {"##a": 3}, "unk_token": "</s>"} | PIECES,
)


def make_tokenizer(rng: Rng, folder: Path) -> None:
    """A vocabulary of few words with any steps."""
    steps = [one_of(rng, STEPS) for _ in range(rng.integers(0, 4))]
    around = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": one_of(rng, BEFORE),
        "post_processor": around
        | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * one_of(rng, (1, 1, 2, 10**5))},
        "decoder": {"type": "Sequence", "decoders": [one_of(rng, STEPS[6:-1])]},
        "model": one_of(rng, MODELS),
    }
    data = json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(changed_json(rng, content) if rng.random() < 0.3 else data)
    beside = {"pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_bytes(
        changed_json(rng, beside) if rng.random() < 0.2 else json.dumps(beside).encode()
    )


def feed_tokenizer(folder: Path) -> object:
    from detailclip_jax.data.vocabularies import FileTokenizer

    ours = FileTokenizer(str(folder / "tokenizer.json"), 16, 1000, "last")
    return len(ours.decode(ours(["a cat, \u00e9 \u4e2d \ufdfa\taaa" * 9])[0]))


def make_settings(rng: Rng, folder: Path) -> None:
    """What a user may write behind --set, --tasks and --texts."""
    values = (
        "(" * 5000,
        "[" * 300 + "]" * 300,
        "9" * 6000,
        "1e999",
        "-1",
        "None",
        "{}",
        "'",
        "a@b@c",
        "tfds:",
        "\0",
        "1 if",
    )
    lines = [f"{one_of(rng, SETTINGS)}={one_of(rng, values)}" for _ in range(3)] + [text(rng)[:2000]]
    (folder / "settings").write_bytes("\0\0".join(lines).encode("utf-8", "surrogatepass"))
    kinds = ("zero_shot", "knn", "paper", "stickers", "all", "folder", text(rng)[:20])
    marks = (":", ";", ",", "::", "")
    tasks = "".join(one_of(rng, kinds) + one_of(rng, marks) for _ in range(rng.integers(1, 6)))
    (folder / "tasks").write_bytes(tasks.encode("utf-8", "surrogatepass"))
    (folder / "texts").write_bytes(encoded(rng))


def feed_settings(folder: Path) -> object:
    from detailclip_jax.config import default, settings
    from detailclip_jax.evaluation import tasks
    from detailclip_jax.evaluation.evaluation_sets import Sets
    from detailclip_jax.inference import embed_folder
    from detailclip_jax.pretraining import validate

    num = 0
    for line in (folder / "settings").read_bytes().decode("utf-8", "surrogatepass").split("\0\0", 3):
        config = default()
        try:
            settings.set_fields(dict([settings.parse_setting(line)]))(config)
            validate(config)
            num += 1
        except (*MESSAGES, OSError) as error:
            assert str(error)
    try:
        embed_folder.read_texts(folder / "texts")
    except MESSAGES as error:
        assert str(error)
    return num, len(
        tasks.parse((folder / "tasks").read_bytes().decode("utf-8", "surrogatepass"), Sets(str(folder), 32))
    )


def make_choices(rng: Rng, folder: Path) -> None:
    """A table of ARO, whose rows may repeat one text and one image, and a csv of MMVP-VLM with cells of any length."""
    import pyarrow as pa
    from pyarrow import parquet

    num = int(one_of(rng, (1, 3, 1000)))

    def repeated_cell(value, kind):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array([value], kind))

    texts = [text(rng)[:50].encode("utf-8", "replace").decode(), "a" * 1000, " "]
    columns = {
        name: repeated_cell(one_of(rng, texts), pa.string())
        for name in ("correct_caption", *(f"hard_text_{n}" for n in "1234"))
        if rng.random() < 0.98
    }
    image = one_of(rng, (trees.png(1), bytes(10**5), b""))
    columns["images"] = pa.StructArray.from_arrays([repeated_cell(image, pa.binary())], ["bytes"])
    (folder / "aro_coco_order").mkdir()
    file = folder / "aro_coco_order/a.parquet"
    parquet.write_table(pa.table(columns), file, compression="zstd", store_schema=False)
    if rng.random() < 0.3:
        file.write_bytes(damaged(rng, file.read_bytes()))
    cells = [text(rng)[:50].replace("\n", " "), "x" * 200_000, '"', "7"]
    rows = [",".join(one_of(rng, cells) for _ in range(3)) for _ in range(rng.integers(0, 5))]
    (folder / "mmvp_vlm").mkdir()
    (folder / "mmvp_vlm/Questions.csv").write_bytes(
        damaged(rng, "\n".join(["Question ID,Type,Statement", *rows]).encode("utf-8", "surrogatepass"))
    )


def feed_choices(folder: Path) -> object:
    from detailclip_jax.data.labelled import open_choices
    from detailclip_jax.data.pipeline import read
    from detailclip_jax.data.sources import BadRecord, MissingData

    num = 0
    for name in ("aro_coco_order", "mmvp_vlm"):
        try:
            found = open_choices(name, folder)
            num += len(found.choices)
            assert read(found.data.source, 0)[1].size
        except (MissingData, BadRecord) as error:
            assert str(error)
    return num


def make_addresses(rng: Rng, folder: Path) -> None:
    """Addresses of `prepare`, with patterns and logins."""
    hosts = ("127.0.0.1:1", "user:SECRET@127.0.0.1:1", ":SECRET@127.0.0.1:1", "[::1", "")
    names = (
        "a",
        "{0..2}",
        "{0..99999999999}",
        "{2..0}",
        "{0..9999}-{0..9999}",
        f"{{0..{'9' * 5000}}}",
        "*",
        text(rng)[:9],
    )
    schemes = ("http://", "https://", "ftp://", "nowhere://")
    urls = [f"{one_of(rng, schemes)}{one_of(rng, hosts)}/{one_of(rng, names)}.tar" for _ in range(3)]
    (folder / "urls").write_bytes("\0\0".join(urls).encode("utf-8", "surrogatepass"))


def feed_addresses(folder: Path) -> object:
    from detailclip_jax.convert import remote_files

    num = 0
    for url in (folder / "urls").read_bytes().decode("utf-8", "surrogatepass").split("\0\0"):
        try:
            remote_files.check_login(url)
            assert "SECRET" not in url
            num += len(remote_files.numbered(url))
        except ValueError as error:
            assert str(error) and "SECRET" not in str(error)
    return num


RUNS = {"loop": str(Path(__file__).parent / "configs/smallest.py"), "transfer": "transfer/stickers_linear"}
NUMBERS = (0, 1, 3, -1, 2**31, 2**63, -(2**63), 10**30)


def is_whole(config, name: str) -> bool:
    """Whether a field is a whole number or a tuple of them, with or without a value."""
    *groups, last = name.split(".")
    group = functools.reduce(lambda group, part: group[part], groups, config)
    first, *_ = group[last] if isinstance(group[last], tuple) and group[last] else [group[last]]
    return type(first) is int or group.get_type(last) is int


def make_fields(rng: Rng, folder: Path) -> None:
    """A whole number that a user may write behind --config.NAME=."""
    from detailclip_jax.config import run_config

    run = one_of(rng, list(RUNS))
    config = run_config.load(RUNS[run])
    names = [name for name in run_config.flatten(config) if is_whole(config, name)]
    (folder / "field").write_text(json.dumps([run, one_of(rng, names), one_of(rng, NUMBERS)]))


def feed_fields(folder: Path) -> object:
    from detailclip_jax import pretraining
    from detailclip_jax.config import run_config, settings
    from detailclip_jax.dense import runs

    run, name, number = json.loads((folder / "field").read_text())
    config = run_config.load(RUNS[run])
    is_tuple = isinstance(run_config.flatten(config)[name], tuple)
    settings.set_fields({name: (number,) * len(run_config.flatten(config)[name]) if is_tuple else number})(config)
    task = runs if run == "transfer" else pretraining
    return task.prepare(config, folder / "run", [name]).workdir


def make_classes(rng: Rng, folder: Path) -> None:
    """A folder of images and masks with a class list of any length, and the sparse file of one."""
    for kind in ("images", "masks"):
        (folder / kind / "train").mkdir(parents=True)
        Image.fromarray(np.full((4, 4), rng.integers(2**15), np.uint16)).save(folder / kind / "train/a.png")
    num = int(one_of(rng, (1, 2, 255, 256, 2**15, 2**15 + 1, 2**16, 2**16 + 1, 10**6)))
    names = "\n".join(map(str, range(num))) if rng.random() < 0.5 else one_of(rng, ("\n", "a\n", "\r\n")) * num
    (folder / "classes.txt").write_bytes(damaged(rng, names.encode(one_of(rng, TEXT_FORMS), "replace")))
    if rng.random() < 0.2:
        os.truncate(folder / "classes.txt", 40 * 2**30)


def feed_classes(folder: Path) -> object:
    from detailclip_jax.data.sources import BadRecord
    from detailclip_jax.dense.segmentation.segmentation_sets import open_set

    found = open_set("folders", str(folder), "train")
    try:
        return found.source[0]["mask"].max()
    except BadRecord as error:
        assert str(error)
        return len(found.classes)


KINDS = {
    "image": Kind(make_image, feed_image, image_refusals),
    "tar": Kind(make_tar, feed_tar, prepare_refusals),
    "table": Kind(make_table, feed_table, prepare_refusals),
    "record": Kind(make_record, feed_record, record_refusals),
    "caption": Kind(make_caption, feed_caption, tuple),
    "torch": Kind(make_torch, feed_weights, weight_refusals),
    "safetensors": Kind(make_safetensors, feed_safetensors, weight_refusals),
    "embeddings": Kind(make_embeddings, feed_embeddings, weight_refusals),
    "config": Kind(make_config, feed_config, weight_refusals),
    "folder": Kind(make_folder, feed_folder, prepare_refusals),
    "zip": Kind(make_zip, feed_zip, prepare_refusals),
    "hub": Kind(make_hub, feed_hub, weight_refusals),
    "results": Kind(make_results, feed_results, weight_refusals),
    "ids": Kind(make_ids, feed_ids, prepare_refusals),
    "detection": Kind(make_detection, feed_detection, detection_refusals),
    "tokenizer": Kind(make_tokenizer, feed_tokenizer, weight_refusals),
    "choices": Kind(make_choices, feed_choices, weight_refusals),
    "addresses": Kind(make_addresses, feed_addresses, weight_refusals),
    "settings": Kind(make_settings, feed_settings, weight_refusals),
    "fields": Kind(make_fields, feed_fields, weight_refusals),
    "classes": Kind(make_classes, feed_classes, weight_refusals),
    "checkpoint": Kind(make_checkpoint, feed_checkpoint, checkpoint_refusals),
}
