"""Sources by URL: a server that stalls, cuts, lies and denies gives the same bytes, or a message and a way out."""

import base64
import contextlib
import gzip
import http.server
import importlib.util
import io
import json
import random
import threading
import time

import fsspec
import prepare_trees as trees
import pyarrow
import pytest
from pyarrow import parquet as pyarrow_parquet
from test_prepare import contents

from detailclip_jax.convert import local_engine, remote_files
from detailclip_jax.convert.prepared_set import load
from detailclip_jax.convert.remote_files import RemoteError, RemoteFile, numbered
from detailclip_jax.data.sources import Records
from detailclip_jax.prepare import main

DATA = random.Random(0).randbytes(100_000)


class Store(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults` has the faults of the next answers by path, of HEAD those in HEADS."""

    protocol_version = "HTTP/1.1"
    HEADS = ("503", "403", "longer", "short head", "no length")

    def log_message(self, *args):
        pass

    def do_POST(self):
        self._head(404, {"Content-Length": "0"})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        data, wanted = self.server.files.get(self.path.partition("?")[0]), self.headers.get("Range")
        if self.server.login not in (None, self.headers.get("Authorization")):
            return self._head(401, {"Content-Length": "0"})
        if data is None:
            code = 410 if "gone" in self.path else 404
            return self._head(code, {"Content-Length": "0", "X-Error-Code": "EntryNotFound"})  # of the hub
        if self.path.startswith("/api/"):
            self._head(200, {"Content-Length": str(len(data)), "Content-Type": "application/json"})
            return self.wfile.write(data)
        self.whole = not wanted
        first, last = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, len(data) - 1)
        self.server.requests.append((self.path, "HEAD" if self.command == "HEAD" else "all" if self.whole else first))
        faults = self.server.faults.get(self.path, [])
        fault = faults[0].removeprefix("always ") if faults else ""
        if self.command == "HEAD" and fault not in self.HEADS:
            fault = ""
        elif faults and not faults[0].startswith("always"):
            faults.pop(0)
        getattr(self, "_" + fault.replace(" ", "_"))(data, first, min(last + 1, len(data)))

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _part(self, data, first, end, **headers):
        given = {} if self.whole else {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
        given |= {"Content-Length": str(end - first), "ETag": f'"{hash(data)}"'}
        given |= {"Content-Type": "text/html; charset=utf-8"} if data.startswith(b"<html>") else {}
        self._head(
            200 if self.whole else 206, given | {name.replace("_", "-"): value for name, value in headers.items()}
        )

    def _write(self, data):
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    def _(self, data, first, end):
        self._part(data, first, end)
        self._write(data[first:end])

    def _cut(self, data, first, end):
        self._part(data, first, end)
        self._write(data[first : (first + end + 1) // 2])
        self.close_connection = True

    def _stall(self, data, first, end):
        self._part(data, first, end)
        self._write(data[first : (first + end) // 2])
        self.wfile.flush()
        self.server.stop.wait(20)
        self.close_connection = True

    def _silent(self, data, first, end):
        self.server.stop.wait(20)
        self.close_connection = True

    def _trickle(self, data, first, end):
        self._part(data, first, end)
        with contextlib.suppress(OSError):
            for place in range(first, end):
                self.wfile.write(data[place : place + 1])
                time.sleep(0.02)

    def _longer(self, data, first, end):
        """HEAD claims 100 bytes more than there are."""
        if self.command == "HEAD":
            self._part(data, first, end + 100)
        elif first >= len(data):
            self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(data)}"})
        else:
            self._(data, first, end)

    def _short_head(self, data, first, end):
        """HEAD claims 100 bytes less than there are."""
        self._part(data, first, end - 100)

    def _shorter(self, data, first, end):
        """The answer claims half of the bytes."""
        self._part(data, first, end, Content_Length=str((end - first + 1) // 2))
        self._write(data[first:end])
        self.close_connection = True

    def _endless(self, data, first, end):
        self._part(data, first, end, Content_Length="999999999999")
        self._write(data[first:end])

    def _one_byte(self, data, first, end):
        self._part(data, first, end, Content_Range=f"bytes {first}-{first}/*", Content_Length="1")
        self._write(data[first : first + 1])

    def _packed(self, data, first, end):
        self._part(data, first, end, Content_Encoding="gzip")
        self._write(data[first:end])

    def _elsewhere(self, data, first, end):
        self._part(data, first, end, Content_Range=f"bytes {first + 1}-{end}/{len(data)}")
        self._write(data[first:end])

    def _whole(self, data, first, end):
        self.whole = True
        self._(data, 0, len(data))

    def _no_length(self, data, first, end):
        self._head(200, {"Connection": "close"})
        self.close_connection = True

    def _503(self, data, first, end):
        self._head(503, {"Content-Length": "0"})

    def _403(self, data, first, end):
        self._head(403, {"Content-Length": "0"})


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    login: str | None = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Store)
        self.files, self.faults, self.requests, self.stop = {}, {}, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client may leave before it has everything."""

    def add(self, name, data):
        self.files[f"/{name}"] = data
        return f"{self.url}/{name}"

    def add_folder(self, folder):
        for path in folder.iterdir():
            self.add(path.name, path.read_bytes())


@pytest.fixture(scope="module")
def running():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(remote_files, "PAUSE", 0.001)
    monkeypatch.setattr(remote_files, "TIMEOUT", 0.3)
    running.files.clear()
    running.faults.clear()
    running.requests.clear()
    remote_files.stamp.cache_clear()
    return running


def run(kind, source, out, *more, workers=1):
    return main([kind, str(source), "--out", str(out), "--workers", str(workers), *map(str, more)])


def records(out):
    """The files that do not name their source."""
    return {name: data for name, data in contents(out).items() if name != "dataset.json"}


# A file


@pytest.mark.parametrize("fault", ["", "cut", "shorter", "503"])
@pytest.mark.parametrize("seed", range(3))
def test_reads_and_seeks_give_the_bytes_of_the_file(server, fault, seed):
    draw = random.Random(seed)
    url = server.add("a", DATA)
    server.faults["/a"] = [fault if number % 5 < draw.randrange(5) else "" for number in range(1000)]
    with io.BufferedReader(RemoteFile(url), 1000) as file, io.BytesIO(DATA) as expected:
        for _ in range(50):
            if draw.random() < 0.5:
                place = draw.choice([draw.randrange(len(DATA) + 10), max(0, file.tell() - 500), file.tell() + 300])
                assert file.seek(place) == expected.seek(place)
            size = draw.choice([0, 1, 512, 5000, 50_000])
            assert file.read(size) == expected.read(size)
        assert file.seek(-7, io.SEEK_END) == expected.seek(-7, io.SEEK_END)
        assert file.read() == expected.read()


def test_a_file_is_read_forward_by_blocks_and_compared_at_its_end(server, monkeypatch):
    monkeypatch.setattr(remote_files, "BLOCK", 40_000)
    with io.TextIOWrapper(RemoteFile(server.add("a", DATA)), "latin-1", newline="") as file:
        assert file.read(777) + file.read() == DATA.decode("latin-1")
    assert [first for _, first in server.requests] == ["HEAD", 0, 40_000, 80_000, "HEAD"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("stall", "from byte 0: no complete answer within 0.3 seconds, after 1 tries; repeat the command later"),
        ("silent", "no complete answer within 0.3 seconds, after 1 tries"),
        ("trickle", "no complete answer within 0.3 seconds, after 1 tries"),
        ("cut", "payload is not completed"),
        ("503", "the server answers 503 Service Unavailable, after 1 tries"),
        ("403", "access is denied"),
        ("shorter", "from byte 0: "),
        ("elsewhere", "the server answers with other bytes than 0 to 100,000"),
        ("endless", "the server answers with other bytes than 0 to 100,000"),
        ("one byte", "1 of 100,000 bytes arrive"),
    ],
)
def test_a_fault_is_named(server, monkeypatch, fault, reason):
    monkeypatch.setattr(remote_files, "TRIES", 1)
    url = server.add("a", DATA)
    file = RemoteFile(url)
    server.faults["/a"] = [fault]
    with pytest.raises(RemoteError) as error:
        file.read(len(DATA))
    assert url in str(error.value) and reason in str(error.value)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent", "no complete answer within 0.3 seconds"),
        ("503", "the server answers 503 Service Unavailable, after 1 tries"),
        ("no length", "empty, or not how long it is; download the file"),
    ],
)
def test_a_fault_of_the_size_is_named(server, monkeypatch, fault, reason):
    monkeypatch.setattr(remote_files, "TRIES", 1)
    monkeypatch.setattr(Store, "HEADS", (fault,))
    server.faults["/a"] = [f"always {fault}"]
    with pytest.raises(RemoteError, match=reason):
        RemoteFile(server.add("a", DATA))


def test_a_request_that_fails_is_repeated_for_half_of_the_bytes(server):
    server.faults["/a"] = ["stall", "silent", "503", "cut"]
    with RemoteFile(server.add("a", DATA)) as file:
        assert file.read(len(DATA)) == DATA[: len(DATA) >> 4]
        assert file.read(len(DATA)) == DATA[len(DATA) >> 4 :]
    assert [first for _, first in server.requests] == ["HEAD", 0, 0, 0, 0, 0, len(DATA) >> 4, "HEAD"]


def test_tries_are_limited(server):
    server.faults["/a"] = ["always cut"]
    with RemoteFile(server.add("a", DATA)) as file, pytest.raises(RemoteError, match="after 5 tries"):
        file.read(len(DATA))
    assert len(server.requests) == 1 + 5


def test_a_file_that_is_longer_by_its_server_alone_is_no_file(server):
    server.faults["/a"] = ["always longer"]
    with RemoteFile(server.add("a", DATA)) as file, pytest.raises(RemoteError, match="bytes arrive, after 5 tries"):
        file.readall()


@pytest.mark.parametrize("data", [DATA[::-1], DATA[1:], DATA + b"."])
def test_a_file_that_changes_while_it_is_read_is_refused(server, monkeypatch, data):
    monkeypatch.setattr(remote_files, "BLOCK", 10_000)
    monkeypatch.setattr(remote_files, "TRIES", 1)
    with RemoteFile(server.add("a", DATA)) as file, pytest.raises(RemoteError, match="has changed while it was read"):
        file.read(10)
        server.add("a", data)
        file.readall()


def test_a_file_that_is_longer_than_its_server_says_is_refused(server):
    server.faults["/a"] = ["short head"]
    with RemoteFile(server.add("a", DATA)) as file, pytest.raises(RemoteError, match="or its server is wrong"):
        file.readall()


def test_a_file_that_is_removed_while_it_is_read_is_named(server):
    with RemoteFile(server.add("a", DATA)) as file, pytest.raises(RemoteError, match="/a does not exist any more"):
        server.files.clear()
        file.read(1)


def test_an_answer_is_not_unpacked(server):
    server.faults["/a"] = ["packed"]
    with RemoteFile(server.add("a", gzip.compress(bytes(10_000)))) as file:
        assert gzip.decompress(file.readall()) == bytes(10_000)


def test_a_server_without_parts_is_named(server):
    url, server.faults["/a"] = server.add("a", DATA), ["whole"]
    with RemoteFile(url) as file, pytest.raises(RemoteError, match="does not give parts of files; download the file"):
        file.read(1)


def test_a_long_read_is_one_of_blocks_each_with_its_own_tries(server, monkeypatch):
    monkeypatch.setattr(remote_files, "BLOCK", 10_000)
    monkeypatch.setattr(remote_files, "TRIES", 1)
    with RemoteFile(server.add("a", DATA)) as file:
        assert file.readinto(bytearray(50_000)) == 10_000
        assert io.BufferedReader(file, 1000).read(30_000) + file.readall() == DATA[10_000:]


def test_addresses_of_a_server_that_is_gone_are_not_all_tried(monkeypatch):
    asked = []
    monkeypatch.setattr(remote_files, "AT_ONCE", 1)
    monkeypatch.setattr(remote_files, "TRIES", 1)
    monkeypatch.setattr(remote_files, "_stamp", lambda url: asked.append(url) or time.sleep(0.02) or 1 / 0)
    remote_files.stamp.cache_clear()
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        remote_files.expand("http://127.0.0.1:1/{000..999}.tar", (".tar",))
    assert len(asked) < 500


def test_patterns():
    assert numbered("a{8..10}.tar") == ["a8.tar", "a9.tar", "a10.tar"]
    assert numbered("{0..1}/{08..09}") == ["0/08", "0/09", "1/08", "1/09"]
    assert numbered("a{x}") == ["a{x}"]


# Whole commands


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return trees.webdataset(tmp_path_factory.mktemp("tars"), num_tars=3, per_tar=5)


@pytest.fixture(scope="module")
def expected(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert run("webdataset", tars, out) == 0
    return records(out)


def test_tars_of_a_web_server_become_the_records_of_a_disk(server, tars, expected, tmp_path, capsys):
    server.add_folder(tars)
    server.faults["/00001.tar"] = ["cut", "stall"]
    source = f"{server.url}/{{00000..00002}}.tar"
    assert run("webdataset", source, tmp_path / "out") == 0
    assert records(tmp_path / "out") == expected
    part = load(str(tmp_path / "out"))["splits"]["train"]
    assert part["source"]["paths"] == [source]
    size, version = part["source_files"][f"{server.url}/00000.tar"]
    assert size == (tars / "00000.tar").stat().st_size and version.startswith('"')

    assert run("webdataset", source, tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().out
    server.add("00001.tar", server.files["/00001.tar"] + bytes(512))
    assert run("webdataset", source, tmp_path / "out") == 1
    assert "00001.tar has changed (size or version)" in capsys.readouterr().err
    server.faults["/00001.tar"] = ["always 503"]
    assert run("webdataset", source, tmp_path / "out") == 0
    assert "nothing to do (its source was not compared: " in capsys.readouterr().out


def test_a_shard_that_fails_is_named_and_the_same_command_finishes_it(server, tars, expected, tmp_path, capsys):
    server.add_folder(tars)
    server.faults["/00000.tar"], server.faults["/00002.tar"] = ["always cut"], ["always stall"]
    command = ("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "out")
    assert run(*command) == 1
    message = capsys.readouterr().err
    assert "2 shards not finished" in message and "the same command continues" in message
    assert f"{server.url}/00000.tar from byte 0: ClientPayloadError" in message and "received" in message
    assert f"{server.url}/00002.tar from byte 0: no complete answer" in message
    assert [path.name for path in (tmp_path / "out").glob("*.arrayrecord")] == ["train-00001.arrayrecord"]
    server.faults.clear()
    assert run(*command) == 0
    assert records(tmp_path / "out") == expected


def test_a_page_in_place_of_a_tar_is_refused_before_anything_is_converted(server, tars, tmp_path, capsys):
    server.add_folder(tars)
    server.add("00001.tar", b"<html>please log in</html>" * 100)
    assert run("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "out") == 1
    assert f"{server.url}/00001.tar: the server sends a page (text/html)" in capsys.readouterr().err
    assert not (tmp_path / "out/.prepare-train").exists()


def test_a_file_of_a_server_that_is_no_tar_leaves_the_set_unfinished(server, tars, tmp_path, capsys):
    server.add_folder(tars)
    server.add("00001.tar", b'{"error": "try again"}' * 100)
    for _ in range(2):
        assert run("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "out") == 1
        shown = capsys.readouterr().err
        assert "1 shard not finished: " in shown and f"{server.url}/00001.tar: nothing in it can be read" in shown
        assert "look at what the server sends" in shown and not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize("login", ["user:SECRET@", "SECRET@", ":SECRET@"])
def test_an_address_with_a_login_is_refused_and_not_shown(server, tars, tmp_path, capsys, login):
    server.add_folder(tars)
    url = f"{server.url}/00000.tar".replace("://", f"://{login}")
    assert run("webdataset", url, tmp_path / "out") == 2
    shown = "".join(capsys.readouterr())
    assert "machine 127.0.0.1 login NAME password PASSWORD" in shown and "SECRET" not in shown
    join = ("--captions", url, "--captions-key", "key", "--captions-columns", "long")
    assert run("webdataset", tars, tmp_path / "out", *join) == 2
    assert "SECRET" not in "".join(capsys.readouterr()) and not (tmp_path / "out").exists()


def test_the_login_of_netrc_is_sent(server, tars, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(trees.write(tmp_path / "netrc", "machine 127.0.0.1 login me password SECRET\n")))
    server.add_folder(tars)
    monkeypatch.setattr(server, "login", f"Basic {base64.b64encode(b'me:SECRET').decode()}")
    assert run("webdataset", f"{server.url}/00000.tar", tmp_path / "out") == 0
    assert "SECRET" not in (tmp_path / "out/dataset.json").read_text()


def test_a_server_that_is_gone_ends_the_run_early(server, tars, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local_engine, "MAX_UNREAD", 2)
    server.add_folder(tars)
    server.faults |= {f"/{path.name}": ["always cut"] for path in tars.iterdir()}
    assert run("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "2 shards not finished" in shown and "the others are" not in shown
    assert not [path for path, first in server.requests if path == "/00002.tar" and first != "HEAD"]


def test_a_reason_of_several_shards_is_said_once():
    unread = local_engine.Unread()
    for text in ("http://h/0.tar from byte 0: gone", "http://h/1.tar does not exist any more", "http://h/2.tar: gone"):
        unread.add(RemoteError(text))
    with pytest.raises(RemoteError) as error:
        unread.check()
    shown = (
        "http://h/0.tar from byte 0, http://h/2.tar: gone | http://h/1.tar does not exist any more.  Finished shards"
    )
    assert str(error.value).startswith(f"3 shards not finished: {shown} are kept; the same command continues")


@pytest.mark.check
def test_workers_read_from_a_server(server, tars, expected, tmp_path, capsys):
    server.add_folder(tars)
    assert run("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "out", workers=2) == 0
    assert records(tmp_path / "out") == expected
    server.faults["/00001.tar"] = ["always no length"]
    assert run("webdataset", f"{server.url}/{{00000..00002}}.tar", tmp_path / "again", workers=2) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{url}/none.tar", "/none.tar: the server answers 404 Not Found; check the address"),
        ("{url}/gone.tar", "/gone.tar: the server answers 410 Gone; check the address"),
        ("{url}/{{00000..00003}}.tar", "00003.tar: the server answers 404 Not Found; check"),
        ("{url}/*.tar", "a web server has no list of its files"),
        ("{url}/00000.tar?download=true", "a signed address"),
        ("http://[::1/a.tar", "http://[::1/a.tar: "),
        ("http://127.0.0.1:1/a.tar", "a.tar: no connection to 127.0.0.1:1, after 5 tries"),
        ("nowhere://a.tar", "Protocol not known: nowhere"),
    ],
)
def test_an_address_without_a_file_is_refused(server, tars, tmp_path, capsys, source, message):
    server.add_folder(tars)
    assert run("webdataset", source.format(url=server.url), tmp_path / "out") in (1, 2)
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "out" / ".prepare-train").exists()


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named(tmp_path, capsys):
    assert run("webdataset", "s3://bucket/*.tar", tmp_path / "out") == 2
    assert "error: s3:// needs s3fs: pip install s3fs" in capsys.readouterr().err


def write_parquet(path, **columns):
    path.parent.mkdir(exist_ok=True, parents=True)
    pyarrow_parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_parquets_of_images_and_of_img2dataset(server, tmp_path):
    images = [trees.jpeg(number) for number in range(5)]
    write_parquet(tmp_path / "p/t.parquet", image=images, caption=list("abcde"))
    keys = [f"{number:09d}" for number in range(5)]
    named = {"key": keys, "status": ["success"] * 5, "caption": list("abcde")}
    write_parquet(tmp_path / "i/00000.parquet", **named)
    trees.write_tar(tmp_path / "i/00000.tar", trees.flat(trees.sample(key, n) for n, key in enumerate(keys)))
    write_parquet(tmp_path / "j/00000.parquet", **named, jpg=images)
    for kind, folder, name in (
        ("parquet", "p", "t"),
        ("img2dataset-parquet", "i", "00000"),
        ("img2dataset-parquet", "j", "00000"),
    ):
        server.files.clear()
        server.add_folder(tmp_path / folder)
        server.faults[f"/{name}.parquet"] = ["cut", "503"]
        assert run(kind, tmp_path / folder, tmp_path / "local" / folder) == 0
        assert run(kind, f"{server.url}/{name}.parquet", tmp_path / "remote" / folder) == 0
        assert records(tmp_path / "remote" / folder) == records(tmp_path / "local" / folder)


def test_a_storage_that_denies_missing_files_has_no_tars_beside_its_tables(server, tmp_path, capsys):
    named = {"key": ["000"], "status": ["success"], "caption": ["a"]}
    path = write_parquet(tmp_path / "0.parquet", **named, jpg=[trees.jpeg(0)])
    url = server.add("0.parquet", path.read_bytes())
    server.add("0.tar", b"not shown")
    server.faults["/0.tar"] = ["always 403"]
    assert run("img2dataset-parquet", url, tmp_path / "out") == 0
    server.add("0.parquet", write_parquet(tmp_path / "0.parquet", **named).read_bytes())
    assert run("img2dataset-parquet", url, tmp_path / "more") == 2
    assert f"{url} has no column jpg" in capsys.readouterr().err
    server.faults["/0.parquet"] = ["always 403"]
    assert run("img2dataset-parquet", url, tmp_path / "more") == 1
    assert f"{url}: access is denied" in capsys.readouterr().err


def test_an_error_in_a_parquet_keeps_its_message(server, tmp_path, capsys):
    path = write_parquet(tmp_path / "t.parquet", image=[trees.jpeg(n) for n in range(20)], caption=["a"] * 20)
    url = server.add("t.parquet", path.read_bytes())
    server.faults["/t.parquet"] = ["", "", "always stall"]
    assert run("parquet", url, tmp_path / "out") == 1
    assert f"{url} from byte 0: no complete answer" in capsys.readouterr().err


def test_a_table_needs_its_images_here(server, tmp_path, capsys):
    for number in range(2):
        trees.write(tmp_path / f"images/{number}.jpg", trees.jpeg(number))
    url = server.add("t.csv.gz", gzip.compress(b"image,caption\n0.jpg,zero\n1.jpg,one\n"))
    assert run("csv", url, tmp_path / "out") == 2
    assert "give --images DIR_OR_FILE" in capsys.readouterr().err
    assert run("csv", url, tmp_path / "out", "--images", tmp_path / "images") == 0
    source = Records(str(tmp_path / "out"), "train")
    assert [source[n]["captions"] for n in range(2)] == [("zero",), ("one",)]
    assert run("csv", url, tmp_path / "more", "--images", f"{server.url}/images.zip") == 2
    assert "images.zip: a local or mounted folder is required" in capsys.readouterr().err
    assert run("imagefolder", f"{server.url}/images", tmp_path / "more") == 2
    assert "Only the sources webdataset" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl.gz", "t.parquet"])
def test_captions_of_a_join_come_from_a_server(server, tars, tmp_path, name):
    keys, texts = [f"{tar:05d}{n:04d}" for tar in range(3) for n in range(5)], [f"long {n}" for n in range(15)]
    if name == "t.parquet":
        data = write_parquet(tmp_path / name, key=keys, long=texts).read_bytes()
    elif name == "t.csv":
        data = "\n".join(["key,long", *map(",".join, zip(keys, texts))]).encode()
    else:
        data = gzip.compress("\n".join(json.dumps({"key": k, "long": t}) for k, t in zip(keys, texts)).encode())
    url = server.add(name, data)
    server.faults[f"/{name}"] = ["cut"]
    join = ("--captions", url, "--captions-key", "key", "--captions-columns", "long")
    assert run("webdataset", tars, tmp_path / "out", *join) == 0
    assert load(str(tmp_path / "out"))["splits"]["train"]["joined"]["matched"] == 15
    assert Records(str(tmp_path / "out"), "train")[7]["long"] == "long 7"


def test_captions_that_do_not_arrive_end_the_run(server, tars, tmp_path, capsys):
    url = server.add("t.csv", b"key,long\n" + b"1,a\n" * 100)
    server.faults["/t.csv"] = ["always cut"]
    join = ("--captions", url, "--captions-key", "key", "--captions-columns", "long")
    assert run("webdataset", tars, tmp_path / "out", *join) == 1
    assert f"error: {url} from byte 0: ClientPayloadError" in capsys.readouterr().err


# Limits hold for what comes from a server


@pytest.mark.check
def test_hostile_files_are_refused(server, tmp_path, capsys):
    url = server.add("bomb.csv.gz", gzip.compress(b"image,caption\n" + b"a" * 200 * 2**20))
    trees.write(tmp_path / "images/0.jpg", trees.jpeg(0))
    assert run("csv", url, tmp_path / "out", "--images", tmp_path / "images") in (1, 2)
    assert "bomb.csv.gz" in capsys.readouterr().err
    samples = [*trees.sample("a", 0), *trees.sample("b", 1)]
    good = trees.write_tar(tmp_path / "a.tar", samples).read_bytes().rstrip(b"\0")
    url = server.add("a.tar", good + bytes(-len(good) % 512) + random.Random(0).randbytes(3000))
    assert run("webdataset", url, tmp_path / "out") == 0
    assert "damage in 1 input shard" in capsys.readouterr().out


# Other storage, by fsspec


@pytest.fixture
def memory(tars):
    storage = fsspec.filesystem("memory")
    for path in tars.iterdir():
        storage.pipe(f"/bucket/cc/{path.name}", path.read_bytes())
    remote_files.stamp.cache_clear()
    yield storage
    storage.rm("/bucket", recursive=True)


@pytest.mark.parametrize("source", ["*.tar", "", "{00000..00002}.tar", "0000?.tar"])
def test_storage_that_lists_its_files(memory, expected, tmp_path, source):
    memory.pipe("/bucket/cc/notes.txt", b"no tar")
    assert run("webdataset", f"memory://bucket/cc/{source}", tmp_path / "out") == 0
    assert records(tmp_path / "out") == expected


def test_a_set_of_the_hub(server, tars, expected, tmp_path, monkeypatch):
    """The answers that huggingface_hub asks for, of a set with its tars in a folder."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url})
    files = {f"data/{path.name}": path.read_bytes() for path in sorted(tars.iterdir())}
    listed = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
    server.add("api/datasets/own/cc", json.dumps({"id": "own/cc", "tags": [], "siblings": []}).encode())
    server.add("api/datasets/own/cc/tree/main", b'[{"type": "directory", "path": "data", "oid": "0"}]')
    server.add("api/datasets/own/cc/tree/main/data", json.dumps(listed).encode())
    for name, data in files.items():
        server.add(f"datasets/own/cc/resolve/main/{name}", data)
    server.faults["/datasets/own/cc/resolve/main/data/00001.tar"] = ["cut"]
    assert run("webdataset", "hf://datasets/own/cc/data/*.tar", tmp_path / "out") == 0
    assert records(tmp_path / "out") == expected
    source = load(str(tmp_path / "out"))["splits"]["train"]["source_files"]
    assert source["hf://datasets/own/cc/data/00000.tar"][1] == "data/00000.tar"  # the version of its content
    assert run("webdataset", "hf://datasets/own/cc/data/9.tar", tmp_path / "more") == 2


def test_storage_without_such_files(memory, tmp_path, capsys):
    assert run("parquet", "memory://bucket/cc", tmp_path / "out") == 2
    assert "memory://bucket/cc does not exist, or has no file that ends in .parquet" in capsys.readouterr().err
    assert run("webdataset", "memory://bucket/cc/9.tar", tmp_path / "out") == 2


def test_a_storage_that_fails_is_tried_again(memory, tars, monkeypatch):
    monkeypatch.setattr(remote_files, "PAUSE", 0.001)
    failures = iter([OSError("reset"), RuntimeError("busy"), None])
    opened = type(memory)._open

    def unreliable(*args, **options):
        if error := next(failures, None):
            raise error
        return opened(*args, **options)

    monkeypatch.setattr(type(memory), "_open", unreliable)
    with RemoteFile("memory://bucket/cc/00000.tar") as file:
        assert file.readall() == (tars / "00000.tar").read_bytes()
