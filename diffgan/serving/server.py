"""The page at an address of this machine, by uvicorn."""

import socket

import uvicorn
from starlette.applications import Starlette

from diffgan.errors import UserError, reason

MAX_PORT = 65535
MAX_CONNECTIONS = 64
KEEP_ALIVE_SECONDS, SHUTDOWN_SECONDS = 10, 5


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is any free one.

    Raises:
        UserError: there is no such port, or the address is not this machine's, or taken.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port: {port} is not between 0 and {MAX_PORT}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {reason(error)}; choose another") from error


def server(app: Starlette) -> uvicorn.Server:
    """A server without access log; `run(sockets=[...])` serves until it is told to end."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )


def address_of(listening: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
