"""``ulvm serve --api``: pictures in, figures and masks out, over HTTP.

A picture is held in memory while it is worked on, and nowhere written, logged or kept.
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ulvm.errors import InputError
from ulvm.image import draw_overlay, encode_png
from ulvm.outline import flatten, polygons
from ulvm.picture import read_picture
from ulvm.segmenter import Segmenter
from ulvm.serve import NAMES, is_this_machine
from ulvm.use import NOTICE
from ulvm.use.api_document import describe, write_page
from ulvm.use.coco import TOLERANCE
from ulvm.version import __version__

LOCAL = (*NAMES, "::1")  # what it may be asked to listen at, for this machine alone
OPTIONS = ("format", "threshold")
FORMATS = ("json", "png", "overlay")
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
BACKLOG = 512  # connections that the system holds until they are accepted
RETRY_S = 1  # what a client that is turned away is told to wait
KEEP_ALIVE_S = 5  # between two requests of one connection
MOST_CONNECTIONS = 512  # at once; processes may have 1024 files open
_FAILURES = {
    404: "There is nothing at this address. Send pictures to /segment; /docs says how.",
    405: "This address does not answer that method. POST pictures to /segment; /docs says how.",
}


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Args:
        bytes: Of one request.
        pixels: Of one picture, from its header, before it is decoded.
        seconds: From the first byte of a request to its answer.
        workers: Pictures worked on at the same time, a thread each.
        queue: Requests that may wait for those; a further one is turned away.
    """

    bytes: int = 32_000_000
    pixels: int = 64_000_000
    seconds: float = 30.0
    workers: int = os.cpu_count() or 1
    queue: int = 32


class PixelLimitError(InputError):
    """A picture is larger than this server reads."""


class Api:
    """The routes, and the queue behind them.

    Args:
        segmenter: The model.
        limits: What one server takes on.
        local: Whether a request must call this server by a name of this machine. Others are
            refused, so that no web page can reach it under a name of its own.
    """

    def __init__(
        self, segmenter: Segmenter, limits: Limits | None = None, *, local: bool = True
    ) -> None:
        self.segmenter = segmenter
        self.limits = limits or Limits()
        self._pool = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="ulvm-api")
        self._taken = 0  # requests that wait or are worked on
        self.app = Starlette(
            routes=[
                Route("/", lambda request: RedirectResponse("docs")),
                Route("/segment", self.segment, methods=["POST"]),
                Route("/health", self.health),
                Route("/openapi.json", lambda request: JSONResponse(self.document)),
                Route(
                    "/docs",
                    lambda request: HTMLResponse(write_page(self.document, request.base_url)),
                ),
            ],
            middleware=[Middleware(_ThisMachine)] if local else [],
            exception_handlers={HTTPException: _refuse, Exception: _fail},
        )

    @cached_property
    def document(self) -> dict[str, Any]:
        """The description of the routes, OpenAPI 3.1."""
        return describe(
            bytes_at_most=self.limits.bytes,
            pixels_at_most=self.limits.pixels,
            seconds_at_most=self.limits.seconds,
        )

    async def health(self, request: Request) -> Response:
        """Whether it runs, and how busy it is."""
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "busy": self._taken,
                "capacity": self.limits.workers + self.limits.queue,
            }
        )

    async def segment(self, request: Request) -> Response:
        """One picture."""
        kind, threshold = self._options(request)
        if self._taken >= self.limits.workers + self.limits.queue:
            raise HTTPException(
                503,
                f"{self._taken} pictures are waiting already. Try again in {RETRY_S} s.",
                headers={"Retry-After": str(RETRY_S), "Connection": "close"},
            )
        self._taken += 1
        working = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                content = await self._receive(request)
                loop = asyncio.get_running_loop()
                working = loop.run_in_executor(self._pool, self._answer, content, kind, threshold)
                # Shielded: a thread cannot be stopped, and its place is free when it is done.
                return await asyncio.shield(working)
        except TimeoutError:
            if working is None:
                raise HTTPException(
                    408, f"The picture took more than {self.limits.seconds:g} s to arrive."
                ) from None
            raise HTTPException(
                504,
                f"The result took more than {self.limits.seconds:g} s. "
                "Try again later, or send a smaller picture.",
            ) from None
        except InputError as error:
            status = 413 if isinstance(error, PixelLimitError) else 400
            raise HTTPException(status, str(error)) from None
        except MemoryError:
            raise HTTPException(413, "The picture does not fit into memory.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The picture did not arrive whole.") from None
        finally:
            if working is None or working.done():
                self._taken -= 1
            else:
                working.add_done_callback(self._release)

    def _release(self, working: asyncio.Future[Any]) -> None:
        self._taken -= 1
        if not working.cancelled():
            working.exception()  # nobody waits for it any more

    def _options(self, request: Request) -> tuple[str, float | None]:
        """What is asked for: one of FORMATS, and the threshold."""
        for name in request.query_params:
            if name not in OPTIONS:
                raise HTTPException(
                    400, f"Unknown option {name!r}. Choose from {', '.join(OPTIONS)}."
                )
        accepted = request.headers.get("accept", "")
        wants_png = accepted.partition(",")[0].partition(";")[0].strip() == "image/png"
        kind = request.query_params.get("format", "png" if wants_png else "json")
        if kind not in FORMATS:
            raise HTTPException(400, f"Unknown format {kind!r}. Choose from {', '.join(FORMATS)}.")
        given = request.query_params.get("threshold")
        try:
            threshold = None if given is None else float(given)
            self.segmenter.check_threshold(threshold)
        except ValueError as error:  # an InputError is one
            sentence = (
                str(error)
                if isinstance(error, InputError)
                else f"{given!r} is no threshold. Give a number between 0 and 1."
            )
            raise HTTPException(400, sentence) from None
        return kind, threshold

    async def _receive(self, request: Request) -> bytes:
        """The picture's file: the body, or the first file of a form."""
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > self.limits.bytes:
            raise self._too_large()
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.limits.bytes:
                raise self._too_large()
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "multipart/form-data":
            return bytes(body)
        return await _first_file(request, bytes(body))

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"The request is larger than {self.limits.bytes:,} bytes. Scale the picture down.",
            headers={"Connection": "close"},
        )

    def _answer(self, content: bytes, kind: str, threshold: float | None) -> Response:
        """In a thread: read, segment, encode."""
        picture = read_picture(content, self._refuse_large)
        found = self.segmenter(picture, threshold=threshold)
        if kind == "png":
            values = found.mask if found.labels is None else found.labels
            return Response(encode_png(values), headers=_PRIVATE, media_type="image/png")
        if kind == "overlay":
            drawn = draw_overlay(np.asarray(picture), found.mask)
            return Response(encode_png(drawn), headers=_PRIVATE, media_type="image/png")
        outlines = [flatten(each) for each in polygons(found.mask, tolerance=TOLERANCE)]
        answer = {**found.to_dict(), "polygons": outlines, "notice": NOTICE}
        return JSONResponse(answer, headers=_PRIVATE)

    def _refuse_large(self, pixels: int) -> None:
        if pixels > self.limits.pixels:
            raise PixelLimitError(
                f"the picture has {pixels:,} pixels",
                f"up to {self.limits.pixels:,} are read",
                "scale it down or cut out the lesion",
            )


class _InMemory(MultiPartParser):
    """Of a form; Starlette's own would write a file over 1 MB to the disk."""

    spool_max_size = max_file_size = 0  # any size; the second name is that of versions before 0.45


async def _first_file(request: Request, body: bytes) -> bytes:
    """The first file of a form that was received already."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(request.headers, pieces(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read. {error.message}") from None
    try:
        for value in form.values():
            if not isinstance(value, str):
                return bytes(await value.read())
    finally:
        await form.close()
    raise HTTPException(
        400, "The form holds no whole file. Send the picture as a field with a file."
    )


async def _refuse(request: Request, error: Exception) -> Response:
    """A sentence, as JSON."""
    assert isinstance(error, HTTPException)
    sentence = _FAILURES.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server failed at this request. Its log says why."}, 500)


class _ThisMachine:
    """Refuses requests that call the server by a name that is not this machine's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.app
        if not is_this_machine(Request(scope).headers.get("host", "")):
            sentence = "This server answers to http://127.0.0.1 and http://localhost only."
            answer = JSONResponse({"error": sentence}, 400)
        await answer(scope, receive, send)


class _Connection(H11Protocol):
    """Ends when a request and its answer take too long, or others need the place."""

    seconds: float  # from one answer to the end of the next
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._renew()
        held = [each for each in self.connections if not each.transport.is_closing()]
        if len(held) > MOST_CONNECTIONS:
            waiting = [each for each in held if not each.cycle or each.cycle.response_complete]
            min(waiting or held, key=lambda each: each._end.when()).transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._renew()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end:
            self._end.cancel()
        super().connection_lost(exc)

    def _renew(self) -> None:
        if self._end:
            self._end.cancel()
        self._end = self.loop.call_later(self.seconds, self.transport.abort)


def make_server(api: Api) -> uvicorn.Server:
    """A server of the routes; its ``run`` takes the sockets to listen at."""
    seconds_each = KEEP_ALIVE_S + 2 * api.limits.seconds  # to arrive, then to be answered

    class Connection(_Connection):
        seconds = seconds_each

    configuration = uvicorn.Config(
        api.app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(configuration)


def serve_api(
    segmenter: Segmenter,
    host: str,
    port: int,
    limits: Limits,
    *,
    started: Callable[[int], None],
) -> None:
    """Serve until interrupted.

    Args:
        segmenter: The model.
        host: Address to listen at; anything but this machine's own is open to its network.
        port: 1..65535; 0 lets the system choose.
        limits: What one server takes on.
        started: Called with the port once it listens.

    Raises:
        InputError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(BACKLOG)  # now, so that who reads the address can connect
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"{host} port {port} cannot be used ({getattr(error, 'strerror', None) or error})",
            "it must be an address of this machine and a free port from 1 to 65535",
            "choose others with --host and --port",
        ) from error
    started(listening.getsockname()[1])
    make_server(Api(segmenter, limits, local=host in LOCAL)).run(sockets=[listening])
