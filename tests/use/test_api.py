"""The server for programs: answers, limits, its queue; and 500 requests of which none is lost."""

import asyncio
import contextlib
import io
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ulvm
from ulvm.cli import main
from ulvm.image import read_mask
from ulvm.synthetic import draw_lesion

httpx: Any = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("python_multipart", reason="the extra api is not installed")
served: Any = pytest.importorskip("ulvm.use.api", reason="the extra api is not installed")
Api, Limits = served.Api, served.Limits

PICTURE = Path(ulvm.__file__).parent / "examples" / "light-skin.jpg"
CONTENT = PICTURE.read_bytes()


def ask(api: Api, *requests: dict[str, Any]) -> list[httpx.Response]:
    """The answers to requests sent at the same time; by default the example to /segment."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            sent = [{"method": "POST", "url": "/segment", **each} for each in requests]
            return await asyncio.gather(*(client.request(**each) for each in sent))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def segmenter() -> ulvm.Segmenter:
    return ulvm.load()


@pytest.fixture(scope="module")
def api(segmenter: ulvm.Segmenter) -> Api:
    return Api(segmenter, Limits(workers=2))


def test_figures_and_polygons_are_those_of_python(api: Api, segmenter: ulvm.Segmenter) -> None:
    (answer,) = ask(api, {"content": CONTENT})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found, expected = answer.json(), segmenter(ulvm.read_image(PICTURE)).to_dict()
    assert len(found["polygons"][0]) >= 8
    assert "diagnosis" in found["notice"]
    assert {key: found[key] for key in expected if key != "latency_ms"} == {
        key: value for key, value in expected.items() if key != "latency_ms"
    }


@pytest.mark.parametrize(
    "request_",
    [
        {"content": CONTENT, "headers": {"Accept": "image/png"}},
        {"content": CONTENT, "url": "/segment?format=png"},
        {"files": {"picture": ("photo.jpg", CONTENT)}, "url": "/segment?format=png"},
    ],
    ids=["accept", "query", "form"],
)
def test_a_mask_comes_back_as_png(
    api: Api, segmenter: ulvm.Segmenter, request_: dict[str, Any]
) -> None:
    (answer,) = ask(api, request_)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    expected = segmenter(ulvm.read_image(PICTURE)).mask
    assert (read_mask(answer.content) == np.where(expected, 255, 0)).all()


def test_an_overlay_and_another_threshold(api: Api) -> None:
    overlay, low, high = ask(
        api,
        {"content": CONTENT, "url": "/segment?format=overlay"},
        {"content": CONTENT, "url": "/segment?threshold=0.1"},
        {"content": CONTENT, "url": "/segment?threshold=0.9"},
    )
    assert Image.open(io.BytesIO(overlay.content)).size == (1024, 768)
    assert low.json()["area_pixels"] > high.json()["area_pixels"] > 0


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b""}, 400, "is empty"),
        ({"content": b"no picture"}, 400, "not a picture"),
        ({"content": CONTENT[:5000]}, 400, "truncated"),
        ({"content": CONTENT, "url": "/segment?format=bmp"}, 400, "Choose from json"),
        ({"content": CONTENT, "url": "/segment?treshold=0.3"}, 400, "from format, threshold"),
        ({"content": CONTENT, "url": "/segment?threshold=2"}, 400, "between 0 and 1"),
        ({"content": CONTENT, "url": "/segment?threshold=x"}, 400, "no threshold"),
        ({"data": {"note": "x"}, "files": {}}, 400, "not a picture"),
        ({"files": {"note": (None, "x")}}, 400, "holds no whole file"),
        ({"content": CONTENT, "headers": {"Content-Type": "multipart/form-data"}}, 400, ""),
        (
            {"files": [("one", ("a.jpg", CONTENT)), ("two", ("b.jpg", CONTENT))]},
            400,
            "The form cannot be read. Too many files",
        ),
        ({"method": "GET"}, 405, "POST pictures to /segment"),
        ({"url": "/other"}, 404, "Send pictures to /segment"),
        ({"content": CONTENT, "headers": {"Host": "evil.example"}}, 400, "answers to http://"),
        ({"content": CONTENT, "headers": {"Host": "[::2]:80"}}, 400, "answers to http://"),
    ],
)
def test_what_is_wrong_is_said(api: Api, request_: dict[str, Any], status: int, words: str) -> None:
    (answer,) = ask(api, request_)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert api._taken == 0


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "[::1]:8765"])
def test_names_of_this_machine_are_answered(api: Api, host: str) -> None:
    (answer,) = ask(api, {"method": "GET", "url": "/health", "headers": {"Host": host}})
    assert answer.status_code == 200


def test_a_failure_of_its_own_is_a_sentence_too(
    segmenter: ulvm.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(served, "read_picture", fail)
    app = Api(segmenter, Limits(workers=1)).app

    async def run() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/segment", content=CONTENT)

    answer = asyncio.run(run())
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server failed at this request. Its log says why."}


def test_a_large_form_stays_in_memory(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any) -> None:
        raise AssertionError("the picture is written to the disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", write)
    padded = CONTENT + bytes(3_000_000)
    (answer,) = ask(api, {"files": {"picture": ("photo.jpg", padded)}})
    assert answer.status_code == 200, answer.text


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server with few places and little patience, whose answer to anything is 20 MB."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000)})

    monkeypatch.setattr(served, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(served, "MOST_CONNECTIONS", 4)
    server = served.make_server(types.SimpleNamespace(app=app, limits=Limits(seconds=0.2)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        running.join()


def read_all(connection: socket.socket) -> int:
    connection.settimeout(5)
    received = 0
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(2**20):
            received += len(piece)
    return received


def test_connections_that_send_nothing_give_way_and_end(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    for each in held:
        each.send(b"GET / HTTP/1.1\r\nHost:")
    assert len(httpx.get(f"http://127.0.0.1:{port}/", timeout=5).content) == 20_000_000
    for each in held:
        assert read_all(each) == 0
        each.close()


def test_who_does_not_read_is_hung_up_on(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as lazy:
        lazy.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1)
        assert 0 < read_all(lazy) < 20_000_000


def test_limits_of_bytes_and_pixels(segmenter: ulvm.Segmenter) -> None:
    small = Api(segmenter, Limits(bytes=1000, workers=1))

    async def in_pieces() -> Any:  # its length is not stated
        for _ in range(10):
            yield b"x" * 300

    (stated,), (streamed,) = ask(small, {"content": CONTENT}), ask(small, {"content": in_pieces()})
    assert stated.status_code == streamed.status_code == 413
    few = Api(segmenter, Limits(pixels=1024 * 768 - 1, workers=1))
    (answer,) = ask(few, {"content": CONTENT})
    assert answer.status_code == 413
    assert "786,432 pixels" in answer.json()["error"]
    just = Api(segmenter, Limits(pixels=1024 * 768, workers=1))
    assert ask(just, {"content": CONTENT})[0].status_code == 200


class Held:
    """A model that works until it is let go."""

    def __init__(self, segmenter: ulvm.Segmenter) -> None:
        self.segmenter, self.go = segmenter, threading.Event()

    def __call__(self, *args: Any, **options: Any) -> Any:
        assert self.go.wait(30)
        return self.segmenter(*args, **options)

    def check_threshold(self, threshold: float | None) -> float | None:
        return self.segmenter.check_threshold(threshold)


def test_a_full_queue_turns_away_and_says_when_to_return(segmenter: ulvm.Segmenter) -> None:
    held: Any = Held(segmenter)
    api = Api(held, Limits(workers=1, queue=2))
    threading.Timer(0.5, held.go.set).start()
    answers = ask(api, *[{"content": CONTENT}] * 5)
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 503, 503]
    for each in answers:
        if each.status_code == 503:
            assert each.headers["retry-after"] == "1"
    assert api._taken == 0
    assert ask(api, {"content": CONTENT})[0].status_code == 200


def test_what_takes_too_long_is_answered_and_keeps_its_place_until_it_ends(
    segmenter: ulvm.Segmenter,
) -> None:
    held: Any = Held(segmenter)
    api = Api(held, Limits(workers=1, queue=0, seconds=0.2))

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            late = await client.post("/segment", content=CONTENT)
            turned_away = await client.post("/segment", content=CONTENT)
            held.go.set()
            while api._taken:
                await asyncio.sleep(0.01)
            return [late, turned_away, await client.post("/segment", content=CONTENT)]

    assert [each.status_code for each in asyncio.run(run())] == [504, 503, 200]


def send_by_hand(api: Any, receive: Any) -> list[Any]:
    """What is answered to a request whose body comes from a function: httpx sends all at once."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/segment",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(api.app(scope, receive, send))
    return sent


def test_a_slow_upload_is_ended(segmenter: ulvm.Segmenter) -> None:
    api = Api(segmenter, Limits(workers=1, seconds=0.2))

    async def receive() -> Any:
        await asyncio.sleep(0.15)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert send_by_hand(api, receive)[0]["status"] == 408
    assert api._taken == 0


def test_an_upload_that_breaks_off_is_no_error_of_the_server(api: Any) -> None:
    pieces = iter(
        [
            {"type": "http.request", "body": CONTENT[:100], "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(pieces)

    assert send_by_hand(api, receive)[0]["status"] == 400
    assert api._taken == 0


def test_a_picture_that_does_not_fit_into_memory_is_refused(
    segmenter: ulvm.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(served, "read_picture", fail)
    (answer,) = ask(Api(segmenter, Limits(workers=1)), {"content": CONTENT})
    assert answer.status_code == 413


def test_the_document_is_openapi_and_names_what_is_answered(api: Api) -> None:
    document, page, home, health = ask(
        api,
        *({"method": "GET", "url": url} for url in ("/openapi.json", "/docs", "/", "/health")),
    )
    assert "<script" not in page.text
    assert "POST /segment" in page.text
    assert "curl --form picture=@photo.jpg http://localhost/segment" in page.text
    assert home.headers["location"] == "docs"
    assert health.json()["busy"] == 0
    schemas = document.json()["components"]["schemas"]
    (answer,) = ask(api, {"content": CONTENT})
    assert set(schemas["Result"]["properties"]) == set(answer.json())
    assert set(schemas["Health"]["properties"]) == set(health.json())
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="openapi-spec-validator is not installed"
    )
    validator.validate(document.json())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server in a process of its own."""
    command = [sys.executable, "-m", "ulvm", "serve", "--api", "--port", "0", "--queue", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().partition("/docs")[0]
        process.terminate()


def test_500_requests_none_lost(address: str) -> None:
    """Twenty at a time, of five pictures; each answer is that of its own picture."""
    contents, expected = [], []
    for seed in range(5):
        file = io.BytesIO()
        image_rgb = draw_lesion(seed, (120 + seed, 160)).image_rgb
        Image.fromarray(image_rgb).save(file, "PNG")
        contents.append(file.getvalue())
        expected.append(int(ulvm.load()(image_rgb).area_pixels))

    async def run() -> list[tuple[int, httpx.Response]]:
        gate = asyncio.Semaphore(20)
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:

            async def one(number: int) -> tuple[int, httpx.Response]:
                async with gate:
                    return number, await client.post("/segment", content=contents[number % 5])

            return await asyncio.gather(*(one(number) for number in range(500)))

    answers = asyncio.run(run())
    assert [each.status_code for _, each in answers] == [200] * 500
    for number, each in answers:
        assert each.json()["area_pixels"] == expected[number % 5]
        assert each.json()["size_hw"] == [120 + number % 5, 160]


def test_a_client_that_hangs_up_costs_no_place(address: str) -> None:
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/segment", content=CONTENT, timeout=httpx.Timeout(5, read=0.001))
    until = time.monotonic() + 20
    while httpx.get(f"{address}/health").json()["busy"] and time.monotonic() < until:
        time.sleep(0.05)
    assert httpx.get(f"{address}/health").json()["busy"] == 0


def test_options_of_the_api_need_it() -> None:
    done = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "need --api" in done.output


def test_a_taken_port_is_one_sentence(address: str) -> None:
    port = address.rpartition(":")[2]
    done = CliRunner().invoke(main, ["serve", "--api", "--port", port])
    assert done.exit_code == 1
    assert f"port {port} cannot be used" in done.output


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ulvm.use.api", None)
    done = CliRunner().invoke(main, ["serve", "--api"])
    assert done.exit_code == 1
    assert "'.[api]'" in done.output
