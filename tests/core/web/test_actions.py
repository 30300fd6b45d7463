"""What is done from the page: it says first what will happen, it is what the command does, and it is on record."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from page_served import form_token
from penstock import changes
from penstock.engine import Engine
from penstock.store.contract import Event

Configure = Callable[..., None]


def hidden(page: str) -> dict[str, str]:
    """The fields that a form carries unseen."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.partition("<main")[2]))


def capacity(engine: Engine, pool: str) -> int | None:
    own = engine.configuration(fresh=True)[1].pools.limits.get(pool)
    return own.limit if own is not None else None


def test_a_limit_is_set_after_saying_what_that_does(
    signed_in: httpx.Client, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"database": 1}})
    fields = {"form_token": form_token(signed_in), "key": "pool:database", "limit": "5", "do": "set"}
    asked = signed_in.post("/change", data=fields)
    assert "1 -&gt; 5" in asked.text
    assert capacity(engine, "database") == 1
    done = signed_in.post("/change", data=hidden(asked.text))
    assert (done.status_code, done.headers["location"]) == (303, "/limit?key=pool%3Adatabase&done=set")
    assert capacity(engine, "database") == 5
    assert "The limit is set." in signed_in.get(done.headers["location"]).text
    assert "by ann from" in signed_in.get("/limit", params={"key": "pool:database"}).text


@pytest.mark.parametrize("key", ["pool:new", "runs", "run_tag:team=analytics", "run_tag:user=*", "pools.default_limit"])
def test_every_limit_that_the_command_sets_is_set_and_deleted(
    signed_in: httpx.Client, engine: Engine, key: str
) -> None:
    fields = {"form_token": form_token(signed_in), "key": key, "limit": "3", "do": "set"}
    asked = signed_in.post("/change", data=fields)
    assert signed_in.post("/change", data=hidden(asked.text)).status_code == 303
    changed = engine.store.changes(most=1)[0]
    assert changed.detail is not None
    assert "by ann" in changed.detail
    form = signed_in.get("/change", params={"key": key}).text
    assert "See what deleting it does" in form
    asked = signed_in.post("/change", data=fields | {"do": "delete"})
    assert "What will happen" in asked.text
    assert signed_in.post("/change", data=hidden(asked.text)).status_code == 303
    assert engine.configuration(fresh=True)[1].document() == type(engine.configuration()[1])().document()


@pytest.mark.parametrize(
    ("key", "limit", "said"),
    [
        ("zzz", "1", "no limit that can be set"),
        ("pool:a", "", "whole number"),
        ("pool:a", "-1", "whole number"),
        ("pool:a", "10001", "from 0 to 10000"),
        ("pool:a b", "1", "whitespace"),
        ("", "1", "no limit that can be set"),
        ("run_ops:x", "1", "ops.max_concurrent"),
        ("pool:" + "x" * 10_000, "1", "at most 255"),
        ("pool:\ud800", "1", "cannot be read"),
    ],
)
def test_what_cannot_be_set_is_said(signed_in: httpx.Client, engine: Engine, key: str, limit: str, said: str) -> None:
    form = urlencode({"form_token": form_token(signed_in), "key": key, "limit": limit}, errors="surrogatepass")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = signed_in.post("/change", content=form, headers=headers)
    assert answer.status_code == 400
    assert said in answer.text
    assert engine.configuration(fresh=True)[0] == 0


def test_what_was_shown_is_what_is_done_or_it_is_shown_anew(
    signed_in: httpx.Client, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    fields = {"form_token": form_token(signed_in), "key": "pool:a", "limit": "5", "do": "set"}
    asked = signed_in.post("/change", data=fields)
    changes.edit(engine, lambda concurrency: concurrency.with_pool("b", concurrency.pools.limits["a"]))
    again = signed_in.post("/change", data=hidden(asked.text))
    assert again.status_code == 409
    assert "changed the limits meanwhile" in again.text
    assert capacity(engine, "a") == 1
    assert signed_in.post("/change", data=hidden(again.text)).status_code == 303
    assert capacity(engine, "a") == 5


def test_a_lease_is_freed_after_saying_who_may_start_then(
    signed_in: httpx.Client, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    held = engine.acquire(engine.claim("a", run_id="stuck", op_id="load"))
    engine.request(engine.claim("a", run_id="next", op_id="load")).step()
    asked = signed_in.get("/free", params={"id": held.claim_id}).text
    assert "stuck load: holds pool:a for" in asked
    assert "may start then: process/process next load" in asked
    assert signed_in.post("/free", data=hidden(asked)).headers["location"] == "/?done=freed"
    freed = [row for row in engine.store.history() if row.event is Event.RELEASED]
    assert [row.claim_id for row in freed] == [held.claim_id]
    assert (freed[0].detail or "").startswith("freed by ann on ")
    assert "holds nothing and waits for nothing" in signed_in.get("/free", params={"id": held.claim_id}).text


def test_a_run_is_freed_whole_or_shown_anew_when_it_has_grown(
    signed_in: httpx.Client, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 3}})
    for op in ("one", "two"):
        engine.acquire(engine.claim("a", run_id="stuck", op_id=op))
    asked = signed_in.get("/free", params={"run": "process/process/stuck"}).text
    engine.acquire(engine.claim("a", run_id="stuck", op_id="three"))
    again = signed_in.post("/free", data=hidden(asked))
    assert again.status_code == 409
    assert "stuck three" in again.text
    assert engine.store.holders("pool:a").count == 3
    assert signed_in.post("/free", data=hidden(again.text)).status_code == 303
    assert engine.store.holders("pool:a").count == 0


def test_a_name_of_several_runs_is_said_with_all_of_them(
    signed_in: httpx.Client, new_engine: Callable[..., Engine], configure: Configure
) -> None:
    configure(pools={"limits": {"a": 3}})
    for deployment in ("here", "there"):
        engine = new_engine(deployment=deployment)
        engine.acquire(engine.claim("a", run_id="same"))
    answer = signed_in.get("/free", params={"run": "same"})
    assert answer.status_code == 409
    assert "process/here/same, process/there/same" in answer.text


def test_the_api_does_what_the_page_does(client: httpx.Client, engine: Engine, authorized: dict[str, str]) -> None:
    wanted: dict[str, Any] = {"key": "pool:a", "limit": 2}
    plan = client.post("/api/limit/plan", json=wanted).json()
    assert plan["done"] is False
    assert "+ concurrency.pools.limits.a.limit: 2" in plan["lines"]
    assert capacity(engine, "a") is None
    done = client.put("/api/limit", json=wanted, headers=authorized)
    assert done.json() == {"done": True, "lines": ["pool:a: 2"]}
    assert capacity(engine, "a") == 2
    engine.acquire(engine.claim("a", run_id="stuck"))
    assert client.post("/api/free/plan", json={"run": "stuck"}).status_code == 200
    freed = client.post("/api/free", json={"run": "stuck"}, headers=authorized)
    assert freed.json() == {"done": True, "lines": ["freed 1"]}
    assert client.post("/api/free", json={"run": "stuck"}, headers=authorized).status_code == 404
    assert client.put("/api/limit", json=wanted | {"limit": None}, headers=authorized).status_code == 200
    assert client.put("/api/limit", json=wanted | {"limit": None}, headers=authorized).status_code == 400
