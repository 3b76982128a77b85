"""The verb `serve`: a page on this machine that draws with a student beside its teacher."""

import importlib.util

from diffgan.errors import UserError

PACKAGES = ("starlette", "uvicorn")  # the extra `web`


def serve(
    *,
    student: str,
    teacher: str | None = None,
    steps: int = 50,
    guidance: float = 3.0,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
) -> None:
    """Serve a page that draws with a student and its teacher on the same noise. It needs no network.

    Args:
        student: pipeline directory of an export.
        teacher: pipeline directory, hub id or "glyphs" of its teacher; omitted: the student alone.
        steps: network calls of the teacher for an image.
        guidance: scale of the teacher's classifier-free guidance; 1 is none.
        host: address to listen at. Another than 127.0.0.1 lets other machines draw on this one.
        port: of the address; 0 is any free one.
        device: e.g. "cuda".

    Raises:
        UserError: the extra `web` is not installed, a pipeline cannot be loaded, or the address is taken.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serve: the package {package} is not installed: pip install 'diffgan[web]'")
    from diffgan.serving.app import build_app
    from diffgan.serving.drawing import load_models
    from diffgan.serving.server import address_of, listen, server

    with listen(host, port) as listening:
        models = load_models(student, teacher, steps, guidance, device)
        print(f"{address_of(listening)} (Ctrl-C ends)", flush=True)
        server(build_app(models, host)).run(sockets=[listening])
