"""The web application: addresses → answers, and who may ask."""

import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import CocosegError
from ..printable import redacted
from .answers import Answer, Answers
from .sources import Sources

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_DECODERS = min(8, (os.cpu_count() or 1) + 1)
"""Answers that are made at a time: each may hold a decoded image."""
_HEADERS = {
    # The page loads nothing from elsewhere. A notebook of this machine may show it in a frame.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self' http://localhost:* http://127.0.0.1:* vscode-webview:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(sources: Sources, token: str | None = None) -> Starlette:
    """Return the server's application.

    Parameters
    ----------
    token
        That every request must bring, as ``?token=`` once and as a cookie from then on; None
        asks for none: then the server answers under the names of this machine alone.
    """
    answers = Answers(sources)
    decoding = (answers.pictures, answers.left_out_image, answers.run_picture)
    answered: dict[str, Answer] = {
        "/api/overview": answers.overview,
        "/api/classes": answers.classes,
        "/api/samples": answers.samples,
        "/api/samples/{position:int}": answers.sample,
        "/api/facts": answers.facts,
        "/api/list": answers.listed,
        "/api/evaluations/{number:int}": answers.evaluation,
        "/api/labels/{number:int}": answers.labels,
        "/api/comparison": answers.comparison,
        "/api/left-out": answers.left_out,
        "/api/runs/{number:int}": answers.run,
        "/api/runs/{number:int}/pictures": answers.run_pictures,
        "/pictures/{position:int}": answers.pictures,
        "/left-out/{number:int}": answers.left_out_image,
        "/run-picture/{number:int}": answers.run_picture,
        "/plotly.js": _plotly,
        "/": _static,
        "/{name}": _static,
    }
    decoders = anyio.CapacityLimiter(_DECODERS)
    routes = [
        Route(path, _safely(answer, decoders if answer in decoding else None))
        for path, answer in answered.items()
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, token=token)])


class _Guard:
    """Adds headers, and refuses requests that other sites make, or that lack the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        shown = request.query_params.get("token")
        problem = self._problem(request, shown)
        if problem is not None:
            return await JSONResponse({"error": problem}, 403)(scope, receive, send)
        begun = False

        async def answer(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                for name, value in _HEADERS.items():
                    message["headers"].append((name.encode(), value.encode()))
                if shown and self._token is not None:
                    cookie = f"{_cookie(request)}={shown}; HttpOnly; SameSite=Strict; Path=/"
                    message["headers"].append((b"set-cookie", cookie.encode()))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:  # a bug: the page says so
            log.exception("%s", request.url.path[:200])
            if not begun:
                problem = f"{type(error).__name__}: see what 'cocoseg view' printed"
                await JSONResponse({"error": problem}, 500)(scope, receive, answer)

    def _problem(self, request: Request, shown: str | None) -> str | None:
        host = request.headers.get("host", "")
        if self._token is None:
            # A name that another site has pointed to this machine ("DNS rebinding").
            if _host_name(f"//{host}") not in LOOPBACK:
                return f"this server answers to {', '.join(LOOPBACK)} alone"
        else:
            given = shown or request.cookies.get(_cookie(request), "")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return "open the address that 'cocoseg view' printed"
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "other sites may not ask this server"
        return None


def _cookie(request: Request) -> str:
    return f"cocoseg-token-{request.url.port}"  # browsers send those of other ports, too


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _safely(
    answer: Answer, limiter: anyio.CapacityLimiter | None
) -> Callable[[Request], Awaitable[Response]]:
    """Answer in a thread; what a user can fix becomes a message."""

    async def run(request: Request) -> Response:
        try:
            return await anyio.to_thread.run_sync(partial(answer, request), limiter=limiter)
        except CocosegError as error:
            return JSONResponse({"error": redacted(str(error))}, 400)
        except MemoryError:
            return JSONResponse({"error": "not enough memory for this image"}, 400)

    return run


def _static(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    suffix = f".{name.rpartition('.')[2]}"
    files = {file.name: file for file in (resources.files(__package__ or "") / "static").iterdir()}
    if suffix not in _TYPES or name not in files:
        return PlainTextResponse("no such page", 404)
    return Response(files[name].read_bytes(), media_type=_TYPES[suffix])


def _plotly(request: Request) -> Response:
    content = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    headers = {"Cache-Control": "max-age=86400"}
    return Response(content, media_type="text/javascript", headers=headers)
