"""Addresses → answers: the page, JSON of samples and evaluations, pictures."""

import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, TypeAlias

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import __version__
from ..errors import CocosegError, ConfigError
from ..printable import redacted
from ..report.classes import class_tag
from ..shards.decode import decode_mask
from .pictures import jpeg, label_png
from .samples import ORDERS, Query, SampleTable
from .sources import Sources

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_LONGEST = 4096  # pixels; of a side that may be asked for
_HEADERS = {
    # The page loads nothing from elsewhere, and no other page may show it in a frame.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Answer: TypeAlias = Callable[[Request], Response]


class Viewer:
    """Answers from opened sources; every method may be called by several threads."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._table = SampleTable(sources.shards, sources.evaluations)

    def overview(self, request: Request) -> Response:
        """Describe what is shown: classes, evaluations, predictions, orders."""
        shards = self._sources.shards
        pixels = np.sum([one.class_pixels for one in shards.manifests], axis=0).tolist()
        images = self._table.images_by_class()
        taxonomy = shards.taxonomy
        return JSONResponse(
            {
                "version": __version__,
                "samples": len(self._table),
                "shards": [redacted(folder) for folder in shards.folders],
                "ignore_index": taxonomy.ignore_index,
                "bits": taxonomy.bits,
                "classes": [
                    {
                        "name": name,
                        "color": class_tag(taxonomy, i).color,
                        "pixels": pixels[i],
                        "images": images[i],
                    }
                    for i, name in enumerate(taxonomy.names)
                ],
                "orders": ORDERS,
                "evaluations": [
                    {"name": one.name, "mIoU": one.metrics.get("mIoU")}
                    for one in self._sources.evaluations
                ],
                "predictions": [one.name for one in self._sources.predictions],
            }
        )

    def samples(self, request: Request) -> Response:
        """Return the positions of the samples that the address asks for."""
        positions = self._table.select(Query.from_parameters(request.query_params))
        return JSONResponse({"positions": positions.tolist()})

    def sample(self, request: Request) -> Response:
        """Return what is known of one sample."""
        position = self._position(request)
        facts = self._table.facts(position)
        facts["meta"] = self._sources.shards.read_meta(position)
        facts["regions"] = [
            [row for row in one.labels if row["key"] == facts["key"]]
            for one in self._sources.evaluations
        ]
        return JSONResponse(facts)

    def image(self, request: Request) -> Response:
        """Return the image of a sample as JPEG."""
        image = self._sources.shards.read_image(self._position(request))
        return _kept(jpeg(image, _side(request)), "image/jpeg")

    def mask(self, request: Request) -> Response:
        """Return the mask of a sample; see `label_png`."""
        sample = self._sources.shards.read(self._position(request))
        return _kept(label_png(sample.mask, _side(request)), "image/png")

    def prediction(self, request: Request) -> Response:
        """Return the predicted mask of a sample; see `label_png`."""
        number = int(request.path_params["number"])
        if number >= len(self._sources.predictions):
            raise ConfigError("no such predictions")
        key = self._table.keys[self._position(request)]
        content = self._sources.predictions[number].mask(key)
        mask = decode_mask(content, f"{key}.png")
        if self._sources.shards.taxonomy.bits == 16:
            mask = mask.astype("uint16")
        return _kept(label_png(mask, _side(request)), "image/png")

    def _position(self, request: Request) -> int:
        position = int(request.path_params["position"])
        if position >= len(self._table):
            raise ConfigError(f"there are {len(self._table):,} samples")
        return position


def make_app(sources: Sources, token: str | None = None) -> Starlette:
    """Return the server's application.

    Parameters
    ----------
    token
        That every request must bring, as ``?token=`` once and as a cookie from then on; None
        asks for none, for servers that only this machine reaches.
    """
    viewer = Viewer(sources)
    routes = [
        Route("/api/overview", _safely(viewer.overview)),
        Route("/api/samples", _safely(viewer.samples)),
        Route("/api/samples/{position:int}", _safely(viewer.sample)),
        Route("/image/{position:int}", _safely(viewer.image)),
        Route("/mask/{position:int}", _safely(viewer.mask)),
        Route("/prediction/{number:int}/{position:int}", _safely(viewer.prediction)),
        Route("/", _safely(_static)),
        Route("/{name}", _safely(_static)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, token=token)])


class _Guard:
    """Adds headers, and refuses requests without the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        shown = request.query_params.get("token")
        given = shown or request.cookies.get("cocoseg-token", "")
        if self._token is not None and not secrets.compare_digest(given, self._token):
            refused = PlainTextResponse("open the address that 'cocoseg view' printed", 403)
            return await refused(scope, receive, send)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                for name, value in _HEADERS.items():
                    message["headers"].append((name.encode(), value.encode()))
                if shown and self._token is not None:
                    cookie = f"cocoseg-token={shown}; HttpOnly; SameSite=Strict; Path=/"
                    message["headers"].append((b"set-cookie", cookie.encode()))
            await send(message)

        await self._app(scope, receive, answer)


def _safely(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """Answer in a thread; what a user can fix becomes a message."""

    async def run(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except CocosegError as error:
            return JSONResponse({"error": redacted(str(error))}, 400)

    return run


def _static(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    file = resources.files(__package__ or "") / "static" / name
    suffix = f".{name.rpartition('.')[2]}"
    if "/" in name or suffix not in _TYPES or not file.is_file():
        return PlainTextResponse("no such page", 404)
    return Response(file.read_bytes(), media_type=_TYPES[suffix])


def _side(request: Request) -> int | None:
    try:
        side = int(request.query_params["side"])
    except (KeyError, ValueError):
        return None
    return min(max(side, 16), _LONGEST)


def _kept(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=3600"})
