"""What one comes to the page for, done in a real browser while real processes claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from page_process import Run, ui
from page_visitor import Visitor
from penstock.engine import Engine
from penstock.store.contract import Event
from proxy import TcpProxy
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from playwright.sync_api import Browser

on_both = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)


def until(condition: Callable[[], object]) -> None:
    """Wait for a state that no page shows."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the state did not come"
        time.sleep(0.05)


def limits(engine: Engine) -> dict[str, int | None]:
    """The limits of pools that somebody has set."""
    return {name: pool.limit for name, pool in engine.configuration(fresh=True)[1].pools.limits.items()}


def ended(engine: Engine, run_id: str) -> set[str]:
    """What the history says of how the claims of a run ended, without the machine's name."""
    lines = [line for line in engine.store.history() if run_id in (line.label or "") and line.detail]
    return {line.detail.partition(" on ")[0] for line in lines if line.event is Event.RELEASED and line.detail}


@on_both
def test_limits_are_set_watched_and_freed(browser: Browser, address: str, engine: Engine, run: Run) -> None:
    with Visitor(browser, address) as ann:
        ann.sign_in()
        ann.sees("There is no limit yet.")

        ann.follow("Add a limit")
        ann.page.get_by_label("Limit", exact=True).fill("pool:warehouse")
        ann.page.get_by_label("Capacity").fill("1")
        ann.press("See what setting it does")
        ann.sees("What will happen")
        assert limits(engine) == {}
        ann.press("Set the limit")
        ann.sees("The limit is set.")
        assert limits(engine) == {"warehouse": 1}

        # From here on the page changes by itself.
        ann.open_limit("pool:warehouse")
        ann.page.evaluate("window.loaded_once = true")
        holder = run("--pool", "warehouse", "--run-id", "nightly", "--op-id", "load")
        ann.sees_in("Holders", "nightly")
        waiter = run("--pool", "warehouse", "--run-id", "hourly", "--op-id", "refresh")
        ann.sees_in("Queue", "hourly")
        ann.sees_in("Queue", "1 of 1 held, 1 needed")
        assert ann.page.evaluate("window.loaded_once")

        ann.follow("Change this limit")
        ann.page.get_by_label("Capacity").fill("2")
        ann.press("See what setting it does")
        ann.sees("1 waiter may start")
        ann.press("Set the limit")
        ann.sees_in("Holders", "hourly")
        ann.sees_in("Changes", "by ann")
        assert limits(engine) == {"warehouse": 2}

        row = ann.page.get_by_role("region", name="Holders").get_by_role("row").filter(has_text="nightly")
        row.get_by_role("link", name="Free").click()
        ann.sees("What holds is not stopped by this")
        assert holder.poll() is None
        ann.press("Free it")
        ann.sees("Freed.")
        ann.open_limit("pool:warehouse")
        ann.lacks_in("Holders", "nightly")
        assert holder.poll() is None  # as was said
        assert ended(engine, "nightly") == {"freed by ann"}

        ann.page.get_by_role("searchbox", name="Search").fill("hourly")
        ann.press("Search")
        ann.follow("whole run")
        ann.press("Free it")
        ann.sees("Freed.")
        assert waiter.poll() is None
        assert ended(engine, "hourly") == {"freed by ann"}

        ann.open_limit("pool:warehouse")
        ann.sees("Nobody waits.")
        ann.follow("Change this limit")
        ann.press("See what deleting it does")
        ann.sees("What will happen")
        ann.press("Delete the limit")
        ann.sees("The limit is deleted.")
        assert limits(engine) == {}


def test_what_cannot_be_is_refused_with_a_reason(browser: Browser, address: str, engine: Engine) -> None:
    with Visitor(browser, address, statuses=(400, 404)) as ann:
        ann.sign_in()
        for key, capacity, reason in (
            ("pool:warehouse", "10001", "a limit is a whole number from 0 to 10000"),
            ("pool:warehouse", "", "the capacity is a whole number"),
            ("warehouse", "3", "warehouse"),
        ):
            ann.page.goto("/change")
            ann.page.get_by_label("Limit", exact=True).fill(key)
            ann.page.get_by_label("Capacity").fill(capacity)
            ann.press("See what setting it does")
            assert reason.casefold() in ann.page.get_by_role("alert").inner_text().casefold()
            assert ann.page.get_by_label("Limit", exact=True).input_value() == key  # nothing has to be typed again
            assert ann.page.get_by_label("Capacity").input_value() == capacity
        ann.page.goto("/limit?key=pool:nowhere")
        ann.sees("there is no such limit")
    assert limits(engine) == {}


def test_a_wrong_token_lets_nobody_in(browser: Browser, address: str) -> None:
    with Visitor(browser, address, statuses=(403,)) as stranger:
        stranger.page.goto("/sign-in")
        stranger.page.get_by_label("Token").fill("not the token of anybody")
        stranger.press("Sign in")
        stranger.sees("No such token.")
        stranger.page.goto("/change")
        stranger.sees("You may look, but not change")


@pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)
def test_the_page_says_that_the_store_is_away_and_comes_back(
    browser: Browser, store_url: str, engine: Engine, run: Run
) -> None:
    url = make_url(store_url)
    run("--pool", "warehouse", "--run-id", "nightly", "--op-id", "load")
    with TcpProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        behind = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with ui(behind) as address, Visitor(browser, address, statuses=(503,)) as somebody:
            somebody.page.goto("/search")
            somebody.sees("nightly")
            proxy.cut()
            somebody.sees("The store is away. What is shown is how it was.")
            somebody.sees("nightly")
            somebody.page.goto("/")
            somebody.page.get_by_role("heading", name="The store is away").wait_for()
            proxy.mend()
            somebody.page.get_by_role("heading", name="Limits").wait_for()  # by itself
            somebody.sees("pool:warehouse")
