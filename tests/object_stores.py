"""A real S3-compatible server, and a proxy in front of it that can fail requests."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP = ("connection", "transfer-encoding", "content-length", "server", "date", "expect", "host")
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # only diffgan retries
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Context manager: the URL of a server with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)
    try:
        yield endpoint
    finally:
        server.stop()


class Gate(ThreadingHTTPServer):
    """A proxy that answers the next `failures` requests of `method` with 503 SlowDown and forwards all others.

    Attributes:
        requests: "GET /bucket/name", ..., including the failed ones.
    """

    def __init__(self, behind: str):
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.behind, self.failures, self.method, self.requests = behind, 0, "GET", []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def lets_pass(self, method: str, path: str) -> bool:
        with self.lock:
            self.requests.append(f"{method} {path}")
            fails = self.failures > 0 and method == self.method
            self.failures -= fails
        return not fails

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # clients send `Expect: 100-continue` before a body

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.server.lets_pass(self.command, self.path):
            self._send(503, {}, SLOW_DOWN)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        headers = {"Content-Type": "binary/octet-stream"} | headers
        request = urllib.request.Request(self.server.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                self._send(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            self._send(error.code, error.headers, error.read())

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

    def _send(self, status: int, headers, body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", headers.get("Content-Length") or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def use(monkeypatch, endpoint: str) -> None:
    """Send S3 requests to this endpoint."""
    for name, value in (ACCOUNT | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setitem(os.environ, name, value)
