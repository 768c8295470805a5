"""The site that `make docs` builds: built offline, every link followed, and tried in a browser.

The browser is that of `browsers.py`.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsers import chromium
from playwright.sync_api import ConsoleMessage, Page, expect

from distill.files import PROJECT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    build = [sys.executable, "-m", "sphinx", "--quiet", "-c", "docs", "-d", folder / "doctrees", ".", folder / "site"]
    done = subprocess.run(build, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


class _Links(HTMLParser):
    """What a page refers to, and the places in it that others may refer to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.places |= {named["id"] or ""} if "id" in named else set()
        self.targets += [value for key, value in attributes if key in ("href", "src") and value]
        self.images += [named] if tag == "img" else []


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Links]:
    return {page: _Links(page) for page in sorted(site.rglob("*.html")) if "_static" not in page.parts}


def test_every_page_of_the_clone_is_in_the_site(pages: dict[Path, _Links], site: Path) -> None:
    there = {str(page.relative_to(site).with_suffix("")) for page in pages}
    notebooks = [f"notebooks/{path.stem}" for path in (PROJECT / "notebooks").glob("*.ipynb")]
    written = [f"docs/{path.stem}" for path in (PROJECT / "docs").glob("*.md")]
    assert {*notebooks, *written, "README", "results/README", "search", "index"} <= there


def test_every_link_leads_somewhere(pages: dict[Path, _Links]) -> None:
    lost = []
    for page, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (page.parent / unquote(url.path)).resolve() if url.path else page
            place = unquote(url.fragment)
            known = place in pages[file].places if place and file in pages else file.exists()
            lost += [] if known else [f"{page.name}: {target}"]
    assert lost == []


def test_every_figure_has_alternative_text(pages: dict[Path, _Links]) -> None:
    images = [(page.name, image) for page, links in pages.items() for image in links.images]
    assert len(images) > 30 and [image for image in images if not image[1].get("alt")] == []


def test_the_reference_has_what_a_script_imports(pages: dict[Path, _Links], site: Path) -> None:
    import distill

    places = pages[site / "docs" / "reference.html"].places
    public = {f"distill.{name}" for name in distill.__all__ if callable(getattr(distill, name))}
    assert public <= places


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """A page that may ask nobody but this machine, and must not complain."""
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        complaints.extend([f"{message.text} {message.location}"] if message.type in ("error", "warning") else [])

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.extend([] if r.url.startswith((address, "data:")) else [r.url]))
        yield page
    assert complaints == []


def test_a_reader_searches_follows_a_link_and_sees_figures_and_formulas(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_url("**/README.html")
    page.get_by_role("textbox", name="Search").fill("transformer attention")
    page.keyboard.press("Enter")
    page.locator("ul.search a", has_text="SAKD").first.click()
    page.wait_for_url("**/04b_self_attention.html*")
    expect(page.locator("mjx-container").first).to_be_visible(timeout=20_000)
    assert "\\softmax" not in page.locator("article").inner_text()
    unseen = "images => images.filter(i => !(i.complete && i.naturalWidth > 100)).length"
    images = page.locator("article img")
    assert images.count() >= 3 and images.evaluate_all(unseen) == 0
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    page.set_viewport_size({"width": 390, "height": 800})
    assert not page.evaluate(wide), "a phone would have to scroll sideways"


def test_light_and_dark_follow_the_system_and_the_switch(page: Page, address: str) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/README.html")

    def contrast() -> float:
        """The brightness of the page less that of its letters, 0 to 255 each."""
        return page.evaluate(
            """() => {
                const brightness = colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + part / 3, 0);
                const style = what => getComputedStyle(document.querySelector(what));
                return brightness(style('body').backgroundColor) - brightness(style('article p').color);
            }"""
        )

    assert contrast() > 150
    page.emulate_media(color_scheme="dark")
    assert contrast() < -100
    switch = page.get_by_role("button", name="Toggle Light / Dark / Auto color theme").locator("visible=true")
    for _ in range(2):  # from auto by way of the other to light
        switch.click()
        if page.evaluate("document.body.dataset.theme") == "light":
            break
    assert page.evaluate("document.body.dataset.theme") == "light" and contrast() > 150
