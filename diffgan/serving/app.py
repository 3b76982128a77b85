"""The page as a web application: the page, its style and script, and one call that draws. It reads no other file."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from diffgan.errors import UserError
from diffgan.serving.drawing import Model, draw_row
from diffgan.serving.request import MAX_BYTES, MAX_CHARACTERS, MAX_IMAGES, DrawRequest, parse

TEMPLATES = Path(__file__).parent / "templates"
MAX_WAITING = 8  # requests, beside the one that is drawn
BODY_SECONDS = 10  # for a request to arrive
LOCAL = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
CLIENT_GONE = 499

logger = logging.getLogger(__name__)


class Queue:
    """One request is drawn at a time; few may wait."""

    def __init__(self, max_waiting: int):
        self._lock, self._present, self._most = asyncio.Lock(), 0, max_waiting + 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn; raises OverflowError at once if too many wait."""
        if self._present >= self._most:
            raise OverflowError
        self._present += 1
        try:
            async with self._lock:
                yield
        finally:
            self._present -= 1


def build_app(models: list[Model], host: str) -> Starlette:
    """The application.

    Args:
        models: the student and, if there is one, the teacher.
        host: address that it is bound to. At this machine's own, requests that name another host are refused, which
            keeps pages of other sites from reaching it by a name of theirs.
    """
    texts = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    page = _render(models)
    queue = Queue(MAX_WAITING)

    async def draw(request: Request) -> Response:
        return await _draw(request, models, queue)

    routes = [
        Route("/", _fixed(page, "text/html")),
        Route("/page.css", _fixed(texts["page.css"], "text/css")),
        Route("/page.js", _fixed(texts["page.js"], "text/javascript")),
        Route("/draw", draw, methods=["POST"]),
    ]
    allowed = LOCAL if host in LOCAL else ("*",)
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed)])


def _render(models: list[Model]) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(
        models=models, max_characters=MAX_CHARACTERS, max_images=MAX_IMAGES
    )


def _fixed(text: str, kind: str) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        return Response(text, media_type=kind, headers=HEADERS)

    return answer


async def _draw(request: Request, models: list[Model], queue: Queue) -> Response:
    """Rows of images, or an error as one line."""
    try:
        asked = await _read(request)
        for model in models:
            model.check(asked.prompts)
        async with queue.turn():
            if await request.is_disconnected():
                return Response(status_code=CLIENT_GONE)
            rows = await run_in_threadpool(lambda: [asdict(draw_row(model, asked)) for model in models])
    except UserError as error:
        return _error(400, str(error))
    except OverflowError:
        return _error(503, f"{MAX_WAITING} requests are waiting; try again in a moment")
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except Exception:
        logger.exception("a request failed")
        return _error(500, "the server failed; its terminal shows why")
    columns = [{"prompt": prompt, "seed": seed} for prompt, seed in asked.columns]
    return JSONResponse({"columns": columns, "rows": rows}, headers=HEADERS)


async def _read(request: Request) -> DrawRequest:
    """The request, read no further than its largest size. Raises: UserError."""
    if request.headers.get("content-type") != "application/json":  # pages of other sites cannot send it unasked
        raise UserError("the request is no JSON with prompts, seed and noises")
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise UserError(f"the request has more than {MAX_BYTES} bytes; shorten the prompts")
    except TimeoutError as error:
        raise UserError("the request did not arrive in time") from error
    return parse(body)


def _error(status: int, line: str) -> JSONResponse:
    return JSONResponse({"error": line.replace("\n", " ")}, status_code=status, headers=HEADERS)
