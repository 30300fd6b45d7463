"""Every page for everybody: axe-core finds nothing that matters, in light and dark, wide and narrow; and pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_day import a_day
from page_process import ui
from page_visitor import NARROW, WIDE, Visitor
from pages_read import ROOT
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PICTURES = ROOT / "core" / "docs" / "web"
LARGEST_PICTURE = 150_000  # bytes
LIMIT = "/limit?key=pool:warehouse"
PAGES = {
    "/": "6 limits",
    "/?q=nowhere": "No limit has",
    LIMIT: "as means over five minutes",
    "/limit?key=run_tag:team%3Danalytics": "and nobody waits",
    "/search?q=shop": "shop_orders",
    "/search?q=nowhere": "Nothing that holds or waits",
    "/change": "Add a limit",
    "/change?key=pool:warehouse": "See what deleting it does",
    "/free?run=airflow/prod/shop_orders/57": "What will happen",
    "/free?id=nowhere": "It holds nothing",
    "/sign-in": "Token",
    "/limit?key=pool:nowhere": "there is no such limit",
}
"""Each page, in each state that looks otherwise, with what shows that it is in it."""
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page over a store in the middle of a day's work."""
    url = f"sqlite:///{tmp_path_factory.mktemp('day') / 'penstock.db'}"
    with a_day(url), ui(url) as address:
        yield address


def found_by_axe(visitor: Visitor, *, rules: list[str] | None = None) -> list[str]:
    """What axe-core finds serious or critical on the page as it is, with where."""
    only = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    found = Axe().run(visitor.page, options={"resultTypes": ["violations"], **only}).response
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]} {node['any'][:1] and node['any'][0]['message']}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_serious_on_any_page(browser: Browser, day: str, size: dict[str, int]) -> None:
    # axe is a script from outside of the page, which its policy forbids: for this test alone it is set aside.
    with Visitor(browser, day, statuses=(400, 404), viewport=size, bypass_csp=True) as ann:
        ann.sign_in()
        found: dict[tuple[str, str], list[str]] = {}

        def look(where: str, text: str) -> None:
            ann.sees(text)
            assert ann.shows_all_in_its_width(), where
            ann.page.emulate_media(color_scheme="light")
            found[where, "light"] = found_by_axe(ann)
            ann.page.emulate_media(color_scheme="dark")
            found[where, "dark"] = found_by_axe(ann, rules=["color-contrast", "link-in-text-block"])

        for path, text in PAGES.items():
            ann.page.goto(path)
            look(path, text)
        for capacity, text in (("many", "the capacity is a whole number"), ("9", "What will happen")):
            ann.page.goto("/change?key=pool:warehouse")
            ann.page.get_by_label("Capacity").evaluate("(field, text) => { field.value = text; }", capacity)
            ann.page.locator("main form").evaluate("form => { form.noValidate = true; }")
            ann.press("See what setting it does")
            look(f"a change to {capacity}", text)
        assert {page: faults for page, faults in found.items() if faults} == {}


def test_axe_does_find_what_is_wrong(browser: Browser, day: str) -> None:
    with Visitor(browser, day, bypass_csp=True) as somebody:
        somebody.page.goto("/sign-in")  # no script of ours puts it right there
        wrong = '<p style="color: #ccc">Hardly to be seen</p><input>'
        somebody.page.evaluate("wrong => { document.querySelector('main').innerHTML = wrong; }", wrong)
        assert {text.partition(" ")[0] for text in found_by_axe(somebody)} == {"color-contrast", "label"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pictures(browser: Browser, day: str, size: dict[str, int], scheme: str, tmp_path: Path) -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the pictures of the page on the web page are taken anew."""
    folder = PICTURES if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES") else tmp_path
    folder.mkdir(exist_ok=True)
    width = "wide" if size == WIDE else "narrow"
    with Visitor(browser, day, viewport=size, color_scheme=scheme, reduced_motion="reduce") as ann:
        ann.sign_in()
        for name, path in (("overview", "/"), ("limit", LIMIT)):
            ann.page.goto(path)
            ann.page.locator("svg").first.wait_for()
            picture = f"{name}-{width}-{scheme}.png"
            taken = Image.open(io.BytesIO(ann.page.screenshot(full_page=True)))
            taken.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(folder / picture, optimize=True)
            assert ann.shows_all_in_its_width()
            assert (folder / picture).stat().st_size <= LARGEST_PICTURE
            assert (PICTURES / picture).exists()
            assert (PICTURES / picture).stat().st_size <= LARGEST_PICTURE
