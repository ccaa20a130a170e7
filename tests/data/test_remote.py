"""Data in buckets: what is read from there, and what says that it cannot be."""

import http.server
import io
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from etils.epath import backend
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data.mixture import open_source
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.sources import MissingData, Records, write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop

ROOT = Path(__file__).parents[2]


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def written(folder: Path, num: int = 7) -> Path:
    examples = ({"image": png(i), "captions": [f"a {i}"], "label": i, "key": f"k{i}"} for i in range(num))
    write_records(folder, examples, shard_size=3)
    return folder


class Bucket:
    """What etils asks of gcsfs, over a folder."""

    def __init__(self, root: Path):
        self.root = root

    def _local(self, path) -> Path:
        return self.root / str(path).removeprefix("gs://")

    def exists(self, path) -> bool:
        return self._local(path).exists()

    def isdir(self, path) -> bool:
        return self._local(path).is_dir()

    def glob(self, path) -> list[str]:
        pattern = str(path).removeprefix("gs://")
        return [file.relative_to(self.root).as_posix() for file in self.root.glob(pattern)]


def handler(root: Path) -> type[http.server.BaseHTTPRequestHandler]:
    """Objects as Google's JSON interface gives them (storage/v1/b/BUCKET/o/NAME?alt=media), ranges included."""

    class Objects(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            bucket, name = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.*)", path).groups()  # type: ignore[union-attr]
            data = (root / bucket / name).read_bytes()
            begin, end = self.span(len(data))
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            self.send_header("Content-Length", str(end - begin))
            self.send_header("x-goog-generation", "1")
            self.end_headers()
            self.wfile.write(data[begin:end])

        def span(self, size: int) -> tuple[int, int]:
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
            first, last = match.groups() if match else ("0", "")
            if not first:
                return max(0, size - int(last)), size
            return int(first), min(size, int(last) + 1) if last else size

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Objects


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder as the bucket gs://pairs, for the list of files and for ArrayRecord's own client."""
    written(tmp_path / "pairs/set")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: Bucket(tmp_path))
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


def test_records_are_read_from_a_bucket_without_a_copy(bucket):
    remote, local = Records("gs://pairs/set", "train"), Records(bucket / "pairs/set", "train")
    assert [remote[index] for index in range(7)] == [local[index] for index in range(7)]


def test_a_mixture_of_a_bucket_and_a_folder(bucket):
    data = default().data
    data.path = f"gs://pairs/set@1,{bucket / 'pairs/set'}@1"
    stream = Stream(open_source(data), {"large": Crop(size=8)}, Tokenizer(8))
    with Pipeline(stream, BatchOptions(28)) as batches:
        assert sorted(next(batches)["label"].tolist()) == sorted([*range(7)] * 4)


def test_a_bucket_without_the_split_says_so(bucket):
    with pytest.raises(
        MissingData, match=r"looked for val-\*.arrayrecord, but 'gs://pairs/set' has only the splits train"
    ):
        Records("gs://pairs/set", "val")
    with pytest.raises(MissingData, match="the folder 'gs://pairs/other' does not exist"):
        Records("gs://pairs/other", "train")


def test_a_bucket_that_cannot_be_listed_says_what_it_needs(monkeypatch):
    def missing(self, name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", missing)
    with pytest.raises(MissingData, match=r"cannot be listed: ImportError: .* pip install gcsfs and credentials"):
        Records("gs://pairs/set", "train")


@pytest.mark.parametrize("path", ["s3://pairs/set", "az://pairs/set", "https://host/set"])
def test_other_stores_are_refused_with_the_way_out(path):
    with pytest.raises(MissingData, match=rf"{path}: .*gs://.*mount the bucket"):
        Records(path, "train")


def test_a_workdir_in_a_bucket_is_refused_before_anything_is_made():
    command = ["-m", "detailclip_jax.main", "--config=tests/configs/smallest.py", "--workdir=gs://pairs/run"]
    run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert run.stderr.startswith("error: --workdir=gs://pairs/run: metrics grow line by line")
    assert not (ROOT / "gs:").exists()
