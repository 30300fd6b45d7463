"""The concurrency page in a real Airflow: with a viewer and an admin, by HTTP and in a real browser."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from browser import chromium
from fastapi.routing import APIRoute
from pages import ROOT
from penstock.decision import Waiting
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.contract import Event
from penstock.web import api, pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, FrameLocator, Page

# Which store it is makes no difference to the page's place in Airflow.
pytestmark = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
LIMITS = {"pools": {"limits": {"shared": 1}}}
PICTURE = ROOT / "airflow_provider" / "page.png"
PATIENCE_MS = 60_000
HTML = {"Accept": "text/html"}
_runs = itertools.count(1)


def asks(host: AirflowHost, **given: Any) -> httpx.Client:
    """Who asks Airflow without being signed in, unless that is `given`."""
    return httpx.Client(base_url=host.url, timeout=60, trust_env=False, **given)


def visits(host: AirflowHost, user: str) -> httpx.Client:
    """What a browser of this user's sends: Airflow's cookie, and that it comes from the page itself."""
    form = {"username": user, "password": host.passwords[user]}
    token = asks(host).post("/auth/token", json=form).json()["access_token"]
    return asks(host, cookies={"_token": token}, headers={"Sec-Fetch-Site": "same-origin"})


def form_token(client: httpx.Client) -> str:
    """The token that the forms of this visitor carry; empty where there is no form."""
    found = re.search(
        r'name="form_token" value="([^"]+)"', client.get("/penstock/change", params={"key": "pool:shared"}).text
    )
    return found[1] if found else ""


@pytest.fixture
def held(engine: Engine, host: AirflowHost) -> Iterator[Any]:
    """A lease of somebody beside Airflow."""
    lease = engine.acquire(engine.claim("shared", op_id="beside"), on_blocked="fail")
    yield lease
    engine.release(lease)


def actions(engine: Engine, held: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and content of every request that changes something. A new one belongs here, or the test fails."""
    known: dict[tuple[str, str], dict[str, Any]] = {
        ("POST", "/change"): {"data": {"key": "pool:shared", "limit": "7", "do": "set", "confirmed": "yes"}},
        ("POST", "/free"): {"data": {"id": held.claim.claim_id}},
        ("PUT", "/api/limit"): {"json": {"key": "pool:shared", "limit": 7}},
        ("POST", "/api/free"): {"json": {"id": held.claim.claim_id}},
        ("POST", "/sign-in"): {"data": {"token": "a guess"}},
        ("POST", "/sign-out"): {"data": {}},
    }
    only_tell = {"/api/limit/plan", "/api/free/plan"}
    routes = [route for route in (*api.router.routes, *pages.router.routes) if isinstance(route, APIRoute)]
    there = {(method, route.path) for route in routes for method in route.methods - {"GET", "HEAD"}}
    assert {one for one in there if one[1] not in only_tell} == known.keys()
    return [(method, path, content) for (method, path), content in known.items()]


def test_nobody_acts_but_an_admin_from_the_page_itself(host: AirflowHost, engine: Engine, held: Any) -> None:
    before = engine.configuration(fresh=True)
    vera, ada = visits(host, "vera"), visits(host, "ada")
    assert form_token(vera) == ""
    good = form_token(ada)
    refused: list[tuple[str, httpx.Client, dict[str, str], str, set[int]]] = [
        ("who is not signed in", asks(host), {}, good, {401, 404}),
        ("a viewer", vera, {}, good, {403, 404}),
        ("an admin without the form's token", ada, {}, "", {403, 404}),
        ("an admin's browser, sent by another site", ada, {"Sec-Fetch-Site": "cross-site"}, good, {403}),
        ("an admin's older browser, sent by another site", ada, {"Origin": "https://evil.example"}, good, {403}),
    ]
    for who, client, headers, token, statuses in refused:
        if "Origin" in headers:
            del client.headers["Sec-Fetch-Site"]
        for method, path, content in actions(engine, held):
            given = {**content, "data": {**content["data"], "form_token": token}} if "data" in content else content
            told = {**headers, "X-Penstock-Form-Token": token}
            answer = client.request(method, f"/penstock{path}", headers=told, **given)
            assert answer.status_code in statuses, (who, method, path, answer.text)
    assert engine.configuration(fresh=True) == before
    assert [lease["claim_id"] for lease in engine.status()["leases"]] == [held.claim.claim_id]


def test_who_is_not_signed_in_comes_back_by_airflows_login(host: AirflowHost) -> None:
    answer = asks(host).get("/penstock/limit?key=runs", headers=HTML)
    assert answer.status_code == 303
    onward = asks(host).get(answer.headers["location"])
    assert onward.status_code == 307
    assert onward.headers["location"].startswith("/auth/login?next=")
    assert "%2Fpenstock%2Flimit" in onward.headers["location"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def working(host: AirflowHost, engine: Engine, tmp_path: Path) -> Iterator[str]:
    """A task at work on the only slot, and one beside Airflow that waits for it. The id of the task's run."""
    the_end = tmp_path / "the end"
    run_id = f"monday_{next(_runs)}"
    host.trigger("shared", run_id, {"name": "shown", "seconds": 3600, "until": str(the_end)})

    def holds() -> bool:
        return any(lease["op_id"] == "work" for lease in engine.status()["leases"])

    host.processes.wait_for("the task holds its slot", holds, seconds=90)
    waiting = engine.request(engine.claim("shared", op_id="beside"), ticket=True)
    assert isinstance(waiting.step(), Waiting)
    try:
        yield run_id
    finally:
        waiting.undo()
        the_end.touch()
        host.wait_for_runs("shared", [run_id], seconds=90)


def signed_in(browser: Browser, host: AirflowHost, user: str) -> Page:
    """Airflow's home page, reached by its login page."""
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(host.url)
    page.locator("input[name=username]").fill(user)
    page.locator("input[name=password]").fill(host.passwords[user])
    page.keyboard.press("Enter")
    return page


def opened(page: Page) -> FrameLocator:
    """The page, by Airflow's menu."""
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Concurrency").click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="pool:shared").wait_for()
    return frame


def test_a_viewer_sees_who_holds_and_goes_to_its_task(
    host: AirflowHost, engine: Engine, browser: Browser, working: str, tmp_path: Path
) -> None:
    page = signed_in(browser, host, "vera")
    frame = opened(page)
    row = frame.get_by_role("row").filter(has_text="pool:shared")
    assert row.locator("td").all_inner_texts()[:3] == ["1", "1", "1"]  # held, capacity, waiting
    frame.get_by_role("link", name="pool:shared").click()
    holders = frame.get_by_role("region", name="Holders")
    holders.get_by_text("work").first.wait_for()
    assert f"shared/{working}" in holders.inner_text()
    assert "beside" in frame.get_by_role("region", name="Queue").inner_text()
    offered = frame.get_by_role("link").all_inner_texts() + frame.get_by_role("button").all_inner_texts()
    assert not [text for text in offered if re.match("Free|Withdraw|Change|Add|Set|Delete", text)]
    picture = PICTURE if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES") else tmp_path / PICTURE.name
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    link = holders.get_by_role("link", name="open")
    assert f"/dags/shared/runs/{working}/tasks/work" in (link.get_attribute("href") or "")
    link.click()
    page.wait_for_url(f"{host.url}/dags/shared/runs/{working}/tasks/work**")  # not in the frame, in Airflow itself
    page.context.close()


def test_an_admin_edits_the_limit_and_frees_a_lease_under_their_name(
    host: AirflowHost, engine: Engine, browser: Browser, working: str
) -> None:
    page = signed_in(browser, host, "ada")
    frame = opened(page)
    frame.get_by_role("link", name="pool:shared").click()
    frame.get_by_role("link", name="Change this limit").click()
    frame.get_by_label("Capacity").fill("3")
    frame.get_by_role("button", name="See what setting it does").click()
    frame.get_by_role("button", name="Set the limit").click()
    frame.get_by_text("The limit is set.").wait_for()
    assert engine.configuration(fresh=True)[1].pools.limits["shared"].limit == 3
    frame.get_by_role("region", name="Changes").get_by_text("by ada").first.wait_for()
    row = frame.get_by_role("region", name="Holders").get_by_role("row").filter(has_text=working)
    row.get_by_role("link", name="Free").click()
    frame.get_by_role("button", name="Free it").click()
    frame.get_by_text("Freed.").wait_for()
    history = engine.store.history()
    assert [row.detail for row in history if row.event is Event.CHANGED][-1].split(" from ")[0].endswith("by ada")
    freed = [row for row in history if row.event is Event.RELEASED and f"shared/{working}" in (row.label or "")]
    assert [row.detail.partition(" on ")[0] for row in freed if row.detail] == ["freed by ada"]
    page.context.close()
