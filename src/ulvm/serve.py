"""The browser page, served to this machine only."""

import contextlib
import hashlib
import importlib.resources
import re
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ulvm.errors import InputError
from ulvm.models import BUNDLED, DEFAULT

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "[::1]")  # what a browser may call this machine; others are a trick
MOST_CONNECTIONS = 64  # at once; a browser holds six
MOST_SECONDS = 15.0  # for one request and its answer, and between two requests
HEADERS = {
    # The same as in index.html, and no other page may frame this one.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self'; connect-src 'self'; img-src 'self'; style-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Both together isolate the page, which browsers ask for before they allow threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".safetensors": "application/octet-stream",
    ".md": "text/plain; charset=utf-8",
}


def is_this_machine(host: str) -> bool:
    """Whether a request's Host header is a name of this machine, with a port or without."""
    return re.sub(r":\d+$", "", host.lower()) in NAMES


def page_files() -> dict[str, Traversable]:
    """Every file of the page, by its address, such as ``/page.js``.

    Raises:
        InputError: The engine's build for browsers is missing from this installation.
    """
    package = importlib.resources.files("ulvm")
    page = package / "web"
    if not (page / "engine.wasm").is_file():
        clone = Path(str(package)).parents[1]
        raise InputError(
            f"the page's engine, {page / 'engine.wasm'}, is missing",
            "",
            f"run `make engine` in {clone}"
            if (clone / "Makefile").is_file()
            else "install ulvm again, with pip install --force-reinstall",
        )
    files = {f"/{file.name}": file for file in page.iterdir() if file.is_file()}
    files["/"] = page / "index.html"
    files["/model.safetensors"] = package / "weights" / BUNDLED[DEFAULT].file
    files["/quality.json"] = package / "weights" / "quality.json"
    files["/MODEL_CARD.md"] = package / "weights" / "skin.md"
    files["/example.jpg"] = package / "examples" / "light-skin.jpg"
    for picture in (package / "examples").iterdir():
        if picture.is_file():
            files[f"/gallery/{picture.name}"] = picture
    return files


def make_server(port: int) -> ThreadingHTTPServer:
    """A server of the page, bound to this machine; ``serve_forever`` runs it.

    Args:
        port: 1..65535; 0 lets the system choose.

    Raises:
        InputError: The port is taken, or the page is incomplete.
    """
    files = page_files()

    class Handler(_Handler):
        pages = files

    try:
        return _Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"port {port} cannot be used ({getattr(error, 'strerror', None) or error})",
            "it must be a free port from 1 to 65535",
            "choose another with --port",
        ) from error


def serve(port: int, *, open_browser: bool) -> None:
    """Serve the page until interrupted, and print its address.

    Args:
        port: As for ``make_server``.
        open_browser: Whether to show the page in the default browser.

    Raises:
        InputError: As ``make_server``.
    """
    with make_server(port) as server:
        address = f"http://{HOST}:{server.server_port}/"
        print(f"{address} (stop with Ctrl+C)", flush=True)
        if open_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class _Server(ThreadingHTTPServer):
    """Few connections, none for long: whoever sends or reads nothing gives way to others."""

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *args: Any) -> None:
        self._ends: dict[socket.socket, float] = {}  # when each connection is closed
        self._lock = threading.Lock()
        super().__init__(*args)

    def renew(self, connection: socket.socket) -> None:
        """Give a connection its full time, as after each answer."""
        with self._lock:
            if connection in self._ends:
                self._ends[connection] = time.monotonic() + MOST_SECONDS

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; where there are too many, the one that waits longest goes."""
        with self._lock:
            if len(self._ends) >= MOST_CONNECTIONS:
                self._hang_up(min(self._ends, key=self._ends.__getitem__))
            self._ends[request] = time.monotonic() + MOST_SECONDS
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hang up on those whose time is over; the server calls it twice a second."""
        now = time.monotonic()
        with self._lock:
            for connection in [each for each, end in self._ends.items() if end < now]:
                self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        """Wake its thread, which then closes it."""
        del self._ends[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._ends.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about a browser that hangs up, as it does when its page is closed early."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers for the listed files and nothing else; there is nothing to send a picture to."""

    pages: Mapping[str, Traversable]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def handle_one_request(self) -> None:
        super().handle_one_request()
        cast(_Server, self.server).renew(self.connection)

    def _answer(self, *, with_body: bool) -> None:
        # Another site's name that leads here would let that site read what is served.
        if not is_this_machine(self.headers.get("Host", "")):
            self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST,
                explain=f"This server answers to http://{HOST} and http://localhost only.",
            )
            return
        address = self.path.partition("?")[0]
        file = self.pages.get(address)
        if file is None:
            self.send_error(404)
            return
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        fresh = self.headers.get("If-None-Match") == tag
        self.send_response(304 if fresh else 200)
        self.send_header("ETag", tag)
        if not fresh:
            self.send_header("Content-Type", _TYPES[PurePosixPath(file.name).suffix])
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body and not fresh:
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the console shows the address only."""
