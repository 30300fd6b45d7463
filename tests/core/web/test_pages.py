"""What the pages show of a store."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import httpx
from page_served import TOKEN
from penstock.engine import Engine


def test_an_empty_store_says_what_to_do(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "There is no limit yet" in page.text
    assert "penstock pools set" in page.text
    assert "penstock run --pool" in client.get("/search").text


def test_a_limit_shows_its_holders_and_its_queue_in_order(
    client: httpx.Client, engine: Engine, configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"database": 1}})
    engine.request(engine.claim("database", run_id="nightly", op_id="load", url="https://host.example/x")).try_step()
    for run in ("first", "second"):
        engine.request(engine.claim("database", run_id=run, op_id="load")).step()
    assert "pool:database" in client.get("/").text
    page = client.get("/limit", params={"key": "pool:database"}).text
    holders, _, queue = page.partition('id="queue-title"')
    assert 'href="https://host.example/x"' in holders
    assert "nightly" in holders
    assert queue.index("first") < queue.index("second")
    assert "1 of 1 held, 1 needed" in queue
    assert "1 ahead" in queue
    found = client.get("/search", params={"q": "second"}).text
    assert "second" in found
    assert "first" not in found


def test_a_limit_that_nobody_holds_says_so(client: httpx.Client, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"free": 1, "closed": 0}})
    assert "Nobody holds it, and nobody waits." in client.get("/limit", params={"key": "pool:free"}).text
    assert "Nobody holds it: it is closed." in client.get("/limit", params={"key": "pool:closed"}).text


def test_limits_are_filtered_and_ordered(client: httpx.Client, engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"b": 1, "a": 1, "z": {"limit": 1, "description": "The partner's API"}}})
    for _ in range(2):
        engine.request(engine.claim("b")).step()
    rows = re.compile(r'<th scope="row"><a href="[^"]*"><bdi>([^<]*)')
    assert rows.findall(client.get("/").text) == ["pool:b", "pool:a", "pool:z"]
    assert rows.findall(client.get("/?order=key").text) == ["pool:a", "pool:b", "pool:z"]
    assert rows.findall(client.get("/?q=PARTNER").text) == ["pool:z"]
    nothing = client.get("/", params={"q": "no such"}).text
    assert "No limit has" in nothing


def test_a_long_queue_comes_in_pages(client: httpx.Client, engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 1}})
    for number in range(53):
        engine.request(engine.claim("a", run_id=f"run-{number:02d}")).step()
    first = client.get("/limit", params={"key": "pool:a"}).text
    assert "1\u201350 of 52" in first
    assert "run-50" in first
    assert "run-51" not in first
    (following,) = re.findall(r'rel="next" href="([^"]*)"', first)
    second = client.get(html.unescape(following)).text
    assert "51\u201352 of 52" in second
    assert '<td class="number" data-name="Place">52</td>' in second
    assert "run-52" in second


def test_the_page_works_under_a_prefix(serve: Callable[..., httpx.Client], configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 1}})
    client = serve(root_path="/limits/here")  # a proxy before it takes this away
    page = client.get("/").text
    links = set(re.findall(r'(?:href|src|action|data-root)="([^"]*)"', page))
    assert links
    links -= {"#main"}
    assert {link for link in links if not link.startswith("/limits/here")} == set()
    for link in links - {"/limits/here"}:
        assert client.get(html.unescape(link).removeprefix("/limits/here")).status_code == 200, link
    signed = client.post("/sign-in", data={"token": TOKEN})
    assert signed.headers["location"].startswith("/limits/here/")
    assert "Path=/limits/here;" in signed.headers["set-cookie"]
