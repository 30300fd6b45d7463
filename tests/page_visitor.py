"""Somebody before the page: a window of a real browser, and all that happens in it which must not."""

from __future__ import annotations

import re
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from page_served import TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request

PATIENCE_MS = 120_000
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 375, "height": 800}
ANSWERED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")


class Visitor:
    """A window of its own, with cookies of its own. At the end of the block nothing may have gone wrong in it.

    Wrong is: a request to anywhere but `address`, a breach of the policy on content, an error in the console or of a
    script, a dialog. `statuses`: answers which a test asks for on purpose. `asked`: methods and paths, as requested.
    """

    def __init__(self, browser: Browser, address: str, *, statuses: tuple[int, ...] = (), **options: Any) -> None:
        self.address, self._statuses = address, statuses
        options.setdefault("viewport", WIDE)
        self._context = browser.new_context(base_url=address, **options)
        self._context.set_default_timeout(PATIENCE_MS)
        self.asked: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._context.on("request", self._requested)
        self._context.on("console", self._told)
        self._context.on("weberror", lambda error: self.faults.append(f"script: {error.error}"))
        self._context.on("dialog", self._interrupted)
        self.page: Page = self._context.new_page()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._context.close()
        assert kind is not None or not self.faults, self.faults

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        self.asked.append((request.method, parts.path))
        if f"{parts.scheme}://{parts.netloc}" != self.address:
            self.faults.append(f"leaves the page: {request.url}")

    def _told(self, message: ConsoleMessage) -> None:
        answered = ANSWERED.match(message.text)
        if message.type in ("error", "warning") and not (answered and int(answered[1]) in self._statuses):
            self.faults.append(f"console: {message.text}")

    def _interrupted(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    # -- what one does ---------------------------------------------------------------------------------------------

    def sign_in(self) -> None:
        """With Ann's token, by the link on the page."""
        self.page.goto("/")
        self.follow("Sign in")
        self.page.get_by_label("Token").fill(TOKEN)
        self.press("Sign in")
        self.sees("You are signed in.")

    def follow(self, name: str) -> None:
        """Click a link."""
        self.page.get_by_role("link", name=name).first.click()

    def press(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def sees(self, text: str) -> Locator:
        """Wait until the text is there."""
        found = self.page.get_by_text(text).first
        found.wait_for()
        return found

    def sees_in(self, section: str, text: str) -> None:
        """Wait until the text stands in a part of the page, by its heading."""
        self.page.get_by_role("region", name=section).get_by_text(text).first.wait_for()

    def lacks_in(self, section: str, text: str) -> None:
        """Wait until the text does not stand there any more."""
        self.page.get_by_role("region", name=section).get_by_text(text).first.wait_for(state="detached")

    def open_limit(self, key: str) -> None:
        """The page of a limit, from the overview."""
        self.page.goto("/")
        self.follow(key)
        self.page.get_by_role("heading", name=key, level=1).wait_for()

    def shows_all_in_its_width(self) -> bool:
        """Whether nothing makes the page wider than the window, once its style is there: text comes first."""
        self.page.wait_for_load_state("load")
        fits: bool = self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        return fits
