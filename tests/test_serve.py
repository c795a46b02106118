"""The server of the page: what it answers, to whom, and with which headers."""

import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ulvm import serve as serve_module
from ulvm.cli import main
from ulvm.errors import InputError
from ulvm.serve import HEADERS, HOST, make_server, page_files

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
    (tmp_path / "web").mkdir()
    monkeypatch.setattr(serve_module.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match="run `make engine` in the clone"):
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
