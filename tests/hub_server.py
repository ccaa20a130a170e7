"""A server on this machine that speaks the part of the Hugging Face hub's protocol which a download uses."""

import contextlib
import hashlib
import http.server
import json
import threading

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories, and what goes wrong: `gated` names, `wrong` checksums, connections that end after `cut` bytes.

    `main` is the commit of the branch; the first request for the branch answers `earlier`, if it is set.
    """

    def __init__(self):
        self.files = {}  # repository -> file -> bytes
        self.licences, self.gated, self.wrong, self.cut = {}, set(), set(), {}
        self.requests, self.address = [], ""
        self.main, self.earlier = REVISION, None

    def add(self, repository, files, licence="mit"):
        self.files[repository], self.licences[repository] = files, licence

    def is_large(self, file):
        return file.endswith((".safetensors", ".bin", ".pt", ".npz"))

    def commit(self, revision):
        if revision != "main":
            return revision
        commit, self.earlier = self.earlier or self.main, None
        return commit

    def information(self, repository, revision):
        siblings = []
        for name, content in self.files[repository].items():
            entry = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if self.is_large(name):
                digest = "0" * 64 if name in self.wrong else hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        card = {"license": self.licences[repository]} if self.licences[repository] else {}
        return {
            "id": repository,
            "sha": self.commit(revision),
            "cardData": card,
            "siblings": siblings,
            "private": False,
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        hub, path = self.hub, self.path.partition("?")[0].strip("/")
        hub.requests.append((self.command, path))
        if path.startswith("api/models/"):
            repository, _, rest = path.removeprefix("api/models/").partition("/revision/")
            repository, _, tree = repository.partition("/tree/")
            return self.of_repository(repository, (rest or tree or "main").split("/")[0], bool(tree), with_body)
        repository, _, rest = path.partition("/resolve/")
        commit, _, file = rest.partition("/")
        if repository not in hub.files:
            return self.fail(404, "RepoNotFound")
        if repository in hub.gated:
            return self.fail(403, "GatedRepo")
        if file not in hub.files[repository]:
            return self.fail(404, "EntryNotFound")
        return self.of_file(hub.files[repository][file], file, commit, with_body)

    def of_repository(self, repository, revision, tree, with_body):
        if repository not in self.hub.files:
            return self.fail(401, "RepoNotFound")
        if repository in self.hub.gated:
            return self.fail(403, "GatedRepo")
        if revision not in ("main", REVISION, self.hub.main):
            return self.fail(404, "RevisionNotFound")
        content = self.hub.information(repository, revision)
        if tree:
            content = [
                {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
                | ({"lfs": entry["lfs"] | {"oid": entry["lfs"]["sha256"]}} if "lfs" in entry else {})
                for entry in content["siblings"]
            ]
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, with_body)

    def of_file(self, content, file, commit, with_body):
        digest = hashlib.sha256 if self.hub.is_large(file) else hashlib.sha1
        headers = {"ETag": f'"{digest(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(start) : int(end) + 1 if end else None]
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        self.send(part, headers, with_body, 206 if "Range" in self.headers else 200, self.hub.cut.pop(file, None))

    def send(self, content, headers, with_body, status=200, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content if cut is None else content[:cut])
        if with_body and cut is not None:
            self.wfile.flush()
            self.connection.shutdown(2)

    def fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def serving():
    """Yields a Hub that answers at its `address`."""
    hub = Hub()
    handler = type("OfHub", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
    finally:
        server.shutdown()
        server.server_close()
