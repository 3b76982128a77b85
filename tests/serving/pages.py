"""A served page in tests: the server in a thread of this process."""

import contextlib
import http.client
import json
import threading
import time

from diffgan.serving.app import build_app
from diffgan.serving.drawing import load_models
from diffgan.serving.server import address_of, listen, server


def load(student, teacher=None, steps=4):
    """The models of a page."""
    return load_models(str(student), teacher and str(teacher), steps, 3.0, "cpu")


@contextlib.contextmanager
def served(models, host="127.0.0.1"):
    """The address of a page at a free port, as long as the block runs."""
    listening = listen(host, 0)
    running = server(build_app(models, host))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield address_of(listening)
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()


def call(address, method="POST", path="/draw", body=None, headers=None, seconds=60):
    """(status, answer, headers) of a request; the answer is parsed if it is JSON."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=seconds)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "Content-Length": str(len(content or b""))} | (headers or {})
    connection.request(method, path, content, sent)
    response = connection.getresponse()
    text = response.read().decode()
    kind = response.headers.get("content-type", "")
    connection.close()
    return response.status, json.loads(text) if "json" in kind else text, response.headers


def ask(prompts, seed=0, noises=1):
    return {"prompts": prompts, "seed": seed, "noises": noises}
