"""The page in a real Chromium, served by `ulvm serve`'s own server."""

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ulvm.errors import InputError
from ulvm.serve import make_server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from browser import ARGUMENTS

    playwright.expect.set_options(timeout=30_000)  # for a busy machine
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[[], Any]]:
    """A function that starts a server of its own; all are stopped at the end."""
    servers = []

    def start() -> Any:
        try:
            server = make_server(0)
        except InputError as error:
            pytest.skip(str(error))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def address(start_server: Callable[[], Any]) -> str:
    return f"http://127.0.0.1:{start_server().server_port}/"


@pytest.fixture(scope="session")
def open_page(browser: Any) -> Callable[[str], Any]:
    """A function that opens an address in a new profile and waits until the page is ready."""

    def open_ready(address: str) -> Any:
        page = browser.new_context().new_page()
        page.set_default_timeout(30_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(error))
        page.goto(address)
        page.wait_for_selector("html[data-state=ready]")
        return page

    return open_ready


@pytest.fixture(scope="session")
def page(open_page: Callable[[str], Any], address: str) -> Iterator[Any]:
    """One ready page for all tests that leave it usable."""
    page = open_page(address)
    yield page
    assert page.errors == []
