"""A real browser for the tests: the machine's own Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from servers import missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; each visitor is a context of it, with cookies of their own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright: install the dependency group `test`")
        raise
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing("no Chromium: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
