"""The course in a real browser: notebook 07 in JupyterLab and as a Voila page, played with by keyboard and mouse.

It needs Chromium (Debian: `apt install chromium`). Without one these tests are skipped, unless the environment
variable DISTILL_NEEDS_BROWSER is set, as it is in continuous integration: then they fail.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from browsers import chromium, errors_of
from playwright.sync_api import Browser, Locator, Page, expect

from distill.data.folders import make_default_sample
from studies.run_notebooks import NOTEBOOKS, PROJECT

NOTEBOOK = "07_visualize.ipynb"
PATIENCE = 240_000  # milliseconds, for whatever a page does at last, on a busy machine too


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", autouse=True)
def sample() -> None:
    """Made beforehand, so that no notebook shows the progress of making it."""
    make_default_sample()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a server as a subprocess, in a folder of its own with the notebooks, and gives its address."""
    processes = []

    def start(*command: str) -> str:
        folder = tmp_path / "notebooks"
        shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        _clear_outputs(folder / NOTEBOOK)
        port = _free_port()
        # Settings of the person who runs the tests must not decide them, nor be changed by them.
        names = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
        own = {name: str(tmp_path / name) for name in names} | {"JUPYTER_PATH": str(PROJECT / "studies")}
        _draw_all_cells(tmp_path / "JUPYTERLAB_SETTINGS_DIR")
        log = (tmp_path / "server.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in command)],
            cwd=folder,
            env=os.environ | own,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, process, tmp_path / "server.log")
        return address

    yield start
    for process in processes:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _clear_outputs(path: Path) -> None:
    """Nothing that an earlier run left can then be mistaken for this one's."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def _draw_all_cells(settings: Path) -> None:
    """Tell JupyterLab to draw all cells of a notebook, not only those near the window."""
    path = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    path.parent.mkdir(parents=True)
    path.write_text('{"windowingMode": "none"}')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(480):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api/status" if "lab" in str(process.args) else address, timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page(browser: Browser, served: Callable[..., str]) -> Iterator[Page]:
    """A page of its own for each test, closed before its server stops (so `served` is asked for here).

    A page that outlives its server asks it in vain, and the next test would hear it complain.
    """
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield page
    context.close()


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the browser's console says in red, and what the page throws, from here on."""
    return errors_of(page)


def test_explorer_in_jupyterlab(page: Page, served: Callable[..., str], complaints: list[str]) -> None:
    flags = ("--no-browser", "--allow-root", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True")
    address = served("jupyter", "lab", "--port={port}", *flags)
    page.goto(f"{address}/lab/tree/{NOTEBOOK}?reset")
    notebook = page.locator(".jp-Notebook")
    expect(notebook.locator(".jp-Cell").first).to_be_visible()
    _run_all(page, notebook.get_by_text("not yet: inherited_errors"))
    _play(page, notebook)
    expect(notebook.locator(".distill-picture")).to_have_count(2)
    assert "Error displaying widget" not in notebook.inner_text()
    expect(notebook.locator('[data-mime-type="application/vnd.jupyter.stderr"]')).to_have_count(0)
    expect(notebook.locator('[data-mime-type="application/vnd.jupyter.error"]')).to_have_count(0)
    assert complaints == []


def _run_all(page: Page, last: Locator) -> None:
    """Choose Run All Cells by its command, once the kernel has answered, until the last cell's output is there.

    JupyterLab calls its kernel idle before it is connected to it, and on a busy machine cells that are run in between
    come back without having run. A request can also get lost on its way; then they are run once more.
    """
    for _ in range(3):
        page.evaluate(
            """async () => {
                const lab = window.jupyterapp;
                await lab.restored;
                const context = lab.shell.currentWidget.sessionContext;
                await context.ready;
                await context.session.kernel.info;
                lab.commands.execute('notebook:run-all-cells');
            }"""
        )
        try:
            return expect(last).to_be_visible(timeout=PATIENCE / 2)
        except AssertionError:
            page.evaluate("window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    expect(last).to_be_visible()


def test_explorer_as_a_voila_page(page: Page, served: Callable[..., str], complaints: list[str]) -> None:
    address = served("voila", NOTEBOOK, "--template=offline", "--no-browser", "--port={port}")
    page.goto(address)
    body = page.locator("body")
    try:
        expect(body.locator(".distill-picture").first).to_be_visible(timeout=PATIENCE / 2)
    except AssertionError:  # an answer of the kernel got lost: load it again, as a reader would
        complaints.clear()
        page.goto(address)
        expect(body.locator(".distill-picture").first).to_be_visible()
    _play(page, body)
    expect(body.locator(".distill-picture")).to_have_count(2)
    assert "Error displaying widget" not in body.inner_text()
    assert "Traceback" not in body.inner_text()
    assert complaints == []


def _play(page: Page, where: Locator) -> None:
    """Every control of the first explorer changes the picture or the text that it should change."""
    picture = where.locator(".distill-picture").first
    image, status = picture.locator("img"), where.locator('[role="status"]').first

    def changes(get: Callable[[], str | None], act: Callable[[], object], what: str) -> None:
        before = get()
        act()
        for _ in range(600):
            if get() != before:
                return
            page.wait_for_timeout(100)
        pytest.fail(f"{what} changed nothing")

    def source() -> str | None:
        return image.get_attribute("src")

    def slider(name: str) -> Locator:
        return where.locator(".widget-hslider", has_text=re.compile(f"^{re.escape(name)}")).first.get_by_role("slider")

    def press(name: str, key: str) -> Callable[[], None]:
        return lambda: (slider(name).focus(), page.keyboard.press(key))

    changes(source, press("wipe, %", "ArrowRight"), "the wipe slider")
    changes(source, press("wipe, %", "Home"), "the wipe slider")
    changes(source, press("opacity, %", "ArrowLeft"), "the opacity slider")
    changes(status.inner_text, press("T", "ArrowRight"), "the temperature slider")
    assert "at T = 1.5" in status.inner_text()
    changes(status.inner_text, press("pixel x", "ArrowLeft"), "the pixel slider")
    click = {"position": {"x": 20, "y": 30}, "force": True}  # without waiting for the page to be still
    changes(status.inner_text, lambda: picture.click(**click), "a click into the picture")
    size = image.bounding_box()
    expected = int(20 / size["width"] * 64), int(30 / size["height"] * 64)
    assert f"pixel ({expected[0]}, {expected[1]})" in status.inner_text()
    changes(status.inner_text, lambda: page.keyboard.press("ArrowRight"), "an arrow key on the picture")
    assert f"pixel ({expected[0] + 1}, {expected[1]})" in status.inner_text()
    chooser = where.locator(".widget-dropdown", has_text=re.compile("^image")).first.get_by_role("combobox")
    changes(source, lambda: (chooser.focus(), page.keyboard.press("Home")), "the choice of the image")
    page.screenshot(path=os.environ.get("DISTILL_SCREENSHOT")) if "DISTILL_SCREENSHOT" in os.environ else None


def test_the_notebook_tried_is_there() -> None:
    assert (PROJECT / "notebooks" / NOTEBOOK).is_file()
