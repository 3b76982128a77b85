"""A hub on this machine: the calls of the public hub that an upload makes, by git LFS's basic transfer."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secretsecretsecret"
INITIAL = {".gitattributes": b"*.safetensors filter=lfs"}
CREATE = r"/api/repos/create"
PREUPLOAD = r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main"
BATCH = r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch"
COMMIT = r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main"
TREE = r"/api/(models|datasets)/([^/]+/[^/]+)/tree/main"
INFO = r"/api/(models|datasets)/([^/]+/[^/]+)"


class Hub(ThreadingHTTPServer):
    """The state of the hub.

    Attributes:
        repositories: "models/owner/name" -> its files.
        private: names of the private ones.
        objects: large files by their SHA-256.
        uploads: digests in the order in which they arrived.
        failing: numbers of uploads that are answered with 410, counted from 0.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Calls)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.failing: set[int] = set()
        self.attempts = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Calls(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Nothing on the terminal."""

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif re.fullmatch(CREATE, path):
            self._create(json.loads(body))
        elif match := re.fullmatch(PREUPLOAD, path):
            files = json.loads(body)["files"]
            self._answer(200, {"files": [self._mode(file["path"]) for file in files]})
        elif match := re.fullmatch(BATCH, path):
            self._answer(200, {"transfer": "basic", "objects": list(map(self._action, json.loads(body)["objects"]))})
        elif match := re.fullmatch(COMMIT, path):
            self._commit(f"{match[1]}/{match[2]}", [json.loads(line) for line in body.splitlines()])
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": f"no such call: {path}"})

    def do_PUT(self) -> None:
        """A large file, to a signed address: no token."""
        body, digest = self._body(), self.path.rpartition("/")[2]
        with self.server.lock:
            number, self.server.attempts = self.server.attempts, self.server.attempts + 1
        if number in self.server.failing:
            self._answer(410, {"error": "the address has expired"})
            return
        assert hashlib.sha256(body).hexdigest() == digest and "Authorization" not in self.headers
        self.server.objects[digest] = body
        self.server.uploads.append(digest)
        self._answer(200, {})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(TREE, path):
            files = self.server.repositories[f"{match[1]}/{match[2]}"]
            self._answer(200, [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files])
        elif match := re.fullmatch(INFO, path):
            private = f"{match[1]}/{match[2]}" in self.server.private
            self._answer(
                200, {"id": match[2], "private": private, "siblings": [], "tags": [], "downloads": 0, "likes": 0}
            )
        else:
            self._answer(404, {"error": f"no such call: {path}"})

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            self._answer(409, {"error": "You already created this repo"})
            return
        self.server.repositories[name] = dict(INITIAL)
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(name)
        self._answer(200, {"url": f"{self.server.url}/{name.removeprefix('models/')}"})

    def _mode(self, name: str) -> dict:
        return {
            "path": name,
            "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }

    def _action(self, item: dict) -> dict:
        known = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] in self.server.objects:
            return known
        return known | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}

    def _commit(self, name: str, lines: list[dict]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self.server.repositories[name] |= files
        address = f"{self.server.url}/{name.removeprefix('models/')}/commit/{'1' * 40}"
        self._answer(200, {"success": True, "commitUrl": address, "commitOid": "1" * 40})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers as long as the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join(30)
