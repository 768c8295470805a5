"""A real browser for the tests, and what it complains of.

It needs Chromium (Debian: `apt install chromium`). Without one these tests are skipped, unless the environment
variable DISTILL_NEEDS_BROWSER is set, as it is in continuous integration: then they fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """The machine's own Chromium, without a window."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        message = "no Chromium found; install it (Debian: apt install chromium) to run the tests in a browser"
        pytest.fail(message) if os.environ.get("DISTILL_NEEDS_BROWSER") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


def errors_of(page: Page) -> list[str]:
    """What the browser's console says in red, and what the page throws, from here on."""
    found: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"{message.text} ({message.location.get('url', '')})")

    page.on("console", listen)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found
