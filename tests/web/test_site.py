"""The folder of `make site` under a path of a plain host: installable, offline, its gallery."""

import functools
import http.server
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

ROOT = Path(__file__).resolve().parents[2]


def write_site(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("site_script", ROOT / "web" / "site.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_site(folder)


class Plain(http.server.SimpleHTTPRequestHandler):
    """A static host that sends no headers of ours."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's files: two copies of the site."""
    root = tmp_path_factory.mktemp("host")
    for folder in ("a/b", "c"):
        write_site(root / folder)
    return root


@pytest.fixture
def host(root: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    Plain.asked.clear()
    handler = functools.partial(Plain, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def open_site(browser: Any, host: http.server.ThreadingHTTPServer, path: str) -> Any:
    page = browser.new_context().new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(error))
    page.goto(f"http://127.0.0.1:{host.server_port}/{path}")
    page.wait_for_selector("html[data-state=ready]")
    return page


def test_no_address_in_the_files_leaves_their_folder(root: Path) -> None:
    folder = root / "a" / "b"
    for path in [*folder.glob("*.html"), *folder.glob("*.webmanifest"), *folder.glob("*.css")]:
        text = path.read_text()
        named = re.findall(r"""(?:href|src|"src"|"start_url"|"scope"|"id")[=:]\s*"([^"]+)""", text)
        assert path.suffix == ".css" or named
        for address in named:
            if not address.startswith(("https://", "#")):
                assert not address.startswith("/"), f"{path.name}: {address}"
                assert (folder / address.partition("#")[0]).exists(), f"{path.name}: {address}"
    for path in folder.glob("*.js"):
        assert not re.findall(r"""(?:fetch|import|URL|register)\(?\s*["'`]/""", path.read_text())


def test_icons_are_as_the_manifest_says(root: Path) -> None:
    folder = root / "a" / "b"
    manifest = json.loads((folder / "manifest.webmanifest").read_text())
    assert manifest["display"] == "standalone"
    for icon in manifest["icons"]:
        if icon["type"] == "image/png":
            picture = Image.open(folder / icon["src"])
            assert "{}x{}".format(*picture.size) == icon["sizes"]
            has_rim = picture.convert("RGBA").getpixel((0, 0))[3] == 255
            assert has_rim == (icon.get("purpose") == "maskable")


def test_chromium_would_install_it(browser: Any, host: http.server.ThreadingHTTPServer) -> None:
    page = open_site(browser, host, "a/b/")
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    scope = page.evaluate("navigator.serviceWorker.ready.then(({ scope }) => scope)")
    assert scope == f"http://127.0.0.1:{host.server_port}/a/b/"
    session = page.context.new_cdp_session(page)
    found = session.send("Page.getAppManifest")
    assert found["errors"] == []
    assert found["url"].endswith("/a/b/manifest.webmanifest")
    errors = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
    # A profile of a test is a private window, which never installs.
    assert [each["errorId"] for each in errors if each["errorId"] != "in-incognito"] == []
    assert page.errors == []
    page.context.close()


def test_the_gallery_outlines_and_opens_its_pictures(
    browser: Any, host: http.server.ThreadingHTTPServer
) -> None:
    page = open_site(browser, host, "a/b/gallery.html")
    assert page.locator("#gallery canvas").count() == page.locator("#gallery li").count() == 6
    assert (
        page.locator("#gallery span").all_inner_texts()[0].startswith("Very light skin: outlined")
    )
    page.click("#gallery a >> nth=2")
    expect(page.locator("#status")).to_contain_text("hair-and-ruler.jpg: 800 × 600")
    assert page.url.endswith("/a/b/")
    page.evaluate("location.hash = '#example=../../secret.jpg'")
    page.wait_for_timeout(200)
    assert not [path for path in Plain.asked if "secret" in path]
    assert page.errors == []
    page.context.close()


def test_copies_under_two_paths_each_work_offline(browser: Any, root: Path) -> None:
    handler = functools.partial(Plain, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = open_site(browser, server, "a/b/")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        page.goto(f"http://127.0.0.1:{server.server_port}/c/")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        page.goto(f"http://127.0.0.1:{server.server_port}/c/gallery.html")
        page.wait_for_selector("html[data-state=ready]")
        server.shutdown()
    for path in ("a/b/", "c/", "c/gallery.html"):
        page.goto(f"http://127.0.0.1:{server.server_port}/{path}")
        page.wait_for_selector("html[data-state=ready]")
    assert page.locator("#gallery canvas").count() == 6
    page.context.close()


def test_a_link_that_adds_to_the_address_works_offline(page: Any, address: str) -> None:
    visitor = page.context.new_page()
    visitor.goto(address)
    visitor.evaluate("navigator.serviceWorker.ready.then(() => null)")
    visitor.reload()  # now the service worker keeps what is asked for
    visitor.wait_for_selector("html[data-state=ready]")
    visitor.context.set_offline(True)
    for added in ("?from=a-mail", "index.html", "#example=grey.png"):
        visitor.goto("about:blank")
        visitor.goto(f"{address}{added}")
        visitor.wait_for_selector("html[data-state=ready]")
    visitor.context.set_offline(False)
    visitor.close()


def test_a_full_disk_keeps_nobody_from_a_file(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.reload()
    full = {"origin": address.rstrip("/"), "quotaSize": 1}
    page.context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", full)
    page.click("#example")
    page.get_by_text("example.jpg: 1024 × 768").wait_for()
    page.context.close()
