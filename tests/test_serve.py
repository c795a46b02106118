"""The server of the page: what it answers, to whom, and with which headers."""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ulvm import serve as serve_module
from ulvm.cli import main
from ulvm.errors import InputError
from ulvm.serve import HEADERS, HOST, MOST_CONNECTIONS, make_server, page_files

PAGE = Path(serve_module.__file__).parent / "web"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Traversable]:
    """A page of two files, which needs no engine."""
    found: dict[str, Traversable] = {"/": PAGE / "index.html", "/page.js": PAGE / "page.js"}
    monkeypatch.setattr(serve_module, "page_files", lambda: found)
    return found


@pytest.fixture
def connection(files: dict[str, Traversable]) -> Iterator[http.client.HTTPConnection]:
    with make_server(0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        connection = http.client.HTTPConnection(HOST, server.server_port, timeout=5)
        yield connection
        connection.close()
        server.shutdown()


def test_answers_with_file_type_and_security_headers(
    connection: http.client.HTTPConnection,
) -> None:
    connection.request("GET", "/page.js?again")
    response = connection.getresponse()
    assert response.status == 200
    assert response.read() == (PAGE / "page.js").read_bytes()
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    for name, value in HEADERS.items():
        assert response.headers[name] == value
    connection.request("GET", "/page.js", headers={"If-None-Match": response.headers["ETag"]})
    again = connection.getresponse()
    assert (again.status, again.read()) == (304, b"")


@pytest.mark.parametrize("path", ["/../serve.py", "/%2e%2e/serve.py", "/web", "/nothing"])
def test_knows_the_files_of_the_page_only(
    connection: http.client.HTTPConnection, path: str
) -> None:
    connection.request("GET", path)
    assert connection.getresponse().status == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:8765", 200),
        ("[::1]:80", 200),
        ("rebound.example", 421),
        ("rebound.example:8765", 421),
        ("127.0.0.1.rebound.example", 421),
        ("localhost:evil", 421),
        ("", 421),
    ],
)
def test_answers_to_this_machines_names_only(
    connection: http.client.HTTPConnection, host: str, status: int
) -> None:
    """A site whose name is made to lead here, so that its scripts may read, gets nothing."""
    connection.putrequest("GET", "/page.js", skip_host=True)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    content = response.read()
    assert response.status == status
    assert (content == (PAGE / "page.js").read_bytes()) == (status == 200)


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=20)


def test_half_open_connections_give_way_to_a_visitor(
    connection: http.client.HTTPConnection,
) -> None:
    threads = threading.active_count()
    held = [connect(connection.port) for _ in range(3 * MOST_CONNECTIONS)]
    for each in held:
        with contextlib.suppress(ConnectionError):
            each.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")  # and never the last line
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    assert threading.active_count() - threads <= MOST_CONNECTIONS + 8  # some are just ending
    for each in held:
        each.close()


def test_who_sends_nothing_or_dribbles_is_dropped(
    connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "MOST_SECONDS", 0.5)
    began = time.monotonic()
    silent, dribbler = connect(connection.port), connect(connection.port)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < began + 10:
            dribbler.sendall(b"G")  # a limit of the pause would allow it
            time.sleep(0.05)
    assert silent.recv(1) == b""
    assert time.monotonic() - began < 5
    silent.close()
    dribbler.close()


def test_readers_that_do_not_read_are_dropped(
    tmp_path: Path, files: dict[str, Traversable], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.wasm"  # does not fit into what the system keeps for a connection
    large.write_bytes(bytes(50_000_000))
    files["/large.wasm"] = large
    monkeypatch.setattr(serve_module, "MOST_SECONDS", 0.5)
    with make_server(0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        threads = threading.active_count()
        held = [connect(server.server_port) for _ in range(4)]
        for each in held:
            each.sendall(b"GET /large.wasm HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        time.sleep(0.3)
        assert threading.active_count() > threads
        while threading.active_count() > threads and time.monotonic() < began + 10:
            time.sleep(0.05)
        assert threading.active_count() == threads
        for each in held:
            each.close()
        server.shutdown()


def test_a_patient_browser_keeps_its_connection(
    connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "MOST_SECONDS", 1.0)
    connection.request("GET", "/")
    connection.getresponse().read()
    own = connection.sock
    for _ in range(5):
        time.sleep(0.4)
        connection.request("GET", "/")
        assert connection.getresponse().read()
        assert connection.sock is own


def test_takes_nothing(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/", body=b"a picture")
    assert connection.getresponse().status == 501


def test_is_quiet_about_a_browser_that_hangs_up(
    connection: http.client.HTTPConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    connection.connect()
    # A reset instead of a farewell: close with unsent data thrown away.
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sock.close()
    connection.close()
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    assert capsys.readouterr().err == ""


def test_is_bound_to_this_machine(files: dict[str, Traversable]) -> None:
    with make_server(0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_page_and_server_state_one_policy() -> None:
    stated = re.search(r'Policy" content="([^"]+)"', (PAGE / "index.html").read_text())
    assert stated
    assert HEADERS["Content-Security-Policy"] == f"{stated[1]}; frame-ancestors 'none'"


def test_service_worker_keeps_all_files_of_the_page() -> None:
    text = (PAGE / "service-worker.js").read_text()
    kept = set(re.findall(r'"([^"]+)"', text.partition("FILES = [")[2].partition("]")[0]))
    served = {address.removeprefix("/") for address in page_files()}
    engines = {name for name in served if name.endswith(".wasm")}  # one of them, named elsewhere
    assert len(engines) == 2
    asked = {name for name in served if name.startswith(("gallery/", "icon-"))}  # kept then
    assert len(asked) == 6 + 3
    passed_over = {"", "index.html", "service-worker.js", "example.jpg", *engines, *asked}
    assert kept - {"./"} == served - passed_over


def test_a_taken_port_is_one_sentence(files: dict[str, Traversable]) -> None:
    with make_server(0) as server:
        result = CliRunner().invoke(main, ["serve", "--no-open", "--port", str(server.server_port)])
    assert result.exit_code == 1
    assert f"Port {server.server_port} cannot be used" in result.output
    assert "Choose another with --port" in result.output


def test_missing_engine_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone, make it; elsewhere there is nothing to make it from."""
    package = tmp_path / "src" / "ulvm"
    (package / "web").mkdir(parents=True)
    monkeypatch.setattr(serve_module.importlib.resources, "files", lambda name: package)
    with pytest.raises(InputError, match=r"engine\.wasm, is missing\. Install ulvm again"):
        page_files()
    (tmp_path / "Makefile").touch()
    with pytest.raises(InputError, match=f"Run `make engine` in {tmp_path}"):
        page_files()


def test_every_file_of_the_page_has_a_type() -> None:
    for address, file in page_files().items():
        assert file.is_file(), address
        assert serve_module._TYPES[Path(file.name).suffix], address


def test_command_opens_the_address(
    files: dict[str, Traversable], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(serve_module.webbrowser, "open", opened.append)
    monkeypatch.setattr(
        serve_module.ThreadingHTTPServer, "serve_forever", lambda server: _interrupt()
    )
    result = CliRunner().invoke(main, ["serve", "--port", "0"])
    assert result.exit_code == 0, result.output
    assert opened == [result.output.split()[0]]


def _interrupt() -> None:
    raise KeyboardInterrupt
