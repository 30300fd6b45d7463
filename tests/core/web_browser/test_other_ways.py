"""The page by keyboard alone, and without script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from page_process import Run
from page_served import TOKEN
from page_visitor import Visitor
from penstock.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOCUSED = """() => {
  const it = document.activeElement, style = getComputedStyle(it), box = it.getBoundingClientRect();
  const label = it.labels && it.labels[0] ? it.labels[0].textContent : "";
  return {
    name: (it.getAttribute("aria-label") || label || it.textContent || "").trim(),
    body: it === document.body,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    inside: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight,
  };
}"""


def tab_to(visitor: Visitor, name: str) -> None:
    """By the Tab key alone; whatever it comes to on the way shows that it has the focus."""
    for _ in range(80):
        visitor.page.keyboard.press("Tab")
        found = visitor.page.evaluate(FOCUSED)
        if not found["body"]:
            assert found["ring"], found
            assert found["inside"], found
        if found["name"].startswith(name):
            return
    raise AssertionError(f"the Tab key never comes to {name}")


def enter(visitor: Visitor, name: str) -> None:
    """Go there and press Enter; the next page has come."""
    tab_to(visitor, name)
    with visitor.page.expect_navigation():
        visitor.page.keyboard.press("Enter")


def test_by_keyboard_alone(browser: Browser, address: str, engine: Engine, run: Run) -> None:
    keys = "keyboard"
    with Visitor(browser, address) as ann:
        board = ann.page.keyboard
        ann.page.goto("/")
        board.press("Tab")
        assert ann.page.evaluate(FOCUSED)["name"] == "Skip to the content"
        assert ann.page.evaluate(FOCUSED)["inside"]
        board.press("Enter")
        assert ann.page.evaluate("document.activeElement.id") == "main"
        ann.page.goto("/")
        enter(ann, "Sign in")
        tab_to(ann, "Token")
        board.type(TOKEN)
        with ann.page.expect_navigation():
            board.press("Enter")
        ann.sees("You are signed in.")

        enter(ann, "Add a limit")
        tab_to(ann, "Limit")
        board.type(f"pool:{keys}")
        tab_to(ann, "Capacity")
        board.type("1")
        enter(ann, "See what setting it does")
        enter(ann, "Set the limit")
        ann.sees("The limit is set.")

        holder = run("--pool", keys, "--op-id", "load")
        ann.sees_in("Holders", "load")
        # The part of the page that is replaced keeps the focus where it was.
        tab_to(ann, "Free")
        waiter = run("--pool", keys, "--op-id", "later")
        ann.sees_in("Queue", "later")
        assert ann.page.evaluate(FOCUSED)["name"].startswith("Free")
        with ann.page.expect_navigation():
            board.press("Enter")
        enter(ann, "Free it")
        ann.sees("Freed.")
        enter(ann, f"pool:{keys}")
        ann.sees_in("Holders", "later")
        assert holder.poll() is None  # what held is not stopped
        assert waiter.poll() is None
        enter(ann, "Change this limit")
        enter(ann, "See what deleting it does")
        enter(ann, "Delete the limit")
        ann.sees("The limit is deleted.")
    assert engine.configuration(fresh=True)[1].pools.limits == {}


def test_without_script(browser: Browser, address: str, engine: Engine, run: Run) -> None:
    with Visitor(browser, address, java_script_enabled=False) as ann:
        ann.sign_in()
        ann.follow("Add a limit")
        ann.page.get_by_label("Limit", exact=True).fill("pool:warehouse")
        ann.page.get_by_label("Capacity").fill("1")
        ann.press("See what setting it does")
        ann.press("Set the limit")
        ann.sees("The limit is set.")
        holder = run("--pool", "warehouse", "--op-id", "load")
        for op, section in (("load", "Holders"), ("later", "Queue")):
            if op == "later":
                run("--pool", "warehouse", "--op-id", "later")
            part = ann.page.get_by_role("region", name=section)
            while not part.get_by_text(op, exact=True).count():
                assert holder.poll() is None
                ann.page.reload()
        ann.page.get_by_role("region", name="Queue").get_by_text("by whom").first.click()
        ann.sees_in("Queue", "process/process load")
        ann.page.get_by_role("region", name="Holders").get_by_role("link", name="Free").click()
        ann.press("Free it")
        ann.sees("Freed.")
        ann.press("Sign out")
        ann.sees("You are signed out.")
        assert ("GET", "/live") not in ann.asked
    assert [claim["op_id"] for claim in engine.status()["leases"]] in ([], ["later"])  # as soon as it is let in
