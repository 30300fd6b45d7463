"""News by server-sent events, also of a store that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Queue
from typing import Any

import httpx
import pytest
from penstock.engine import Engine
from penstock.errors import StoreUnavailable

pytestmark = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


class Watching:
    """The events of one open page."""

    def __init__(self, client: httpx.Client) -> None:
        self._events: Queue[tuple[str, str]] = Queue()
        self._response: Any = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(client,), daemon=True)
        self._thread.start()
        assert self._opened.wait(30)

    def _read(self, client: httpx.Client) -> None:
        with suppress(httpx.HTTPError), client.stream("GET", "/live", timeout=60) as response:
            self._response = response
            assert response.headers["content-type"].startswith("text/event-stream")
            self._opened.set()
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self._events.put((name, line.removeprefix("data: ")))

    def next(self) -> tuple[str, str]:
        """The next event, as soon as it comes."""
        return self._events.get(timeout=60)


@pytest.fixture
def watching(client: httpx.Client) -> Callable[[], Watching]:
    """Opens a page."""
    return lambda: Watching(client)


def test_every_open_page_hears_of_a_change(watching: Callable[[], Watching], engine: Engine) -> None:
    pages = [watching(), watching()]
    before = [page.next() for page in pages]
    assert {name for name, _ in before} == {"mark"}
    engine.acquire(engine.claim("a"))
    after = [page.next() for page in pages]
    assert after[0] == after[1]
    assert after[0] not in before


def test_many_open_pages_look_once(
    watching: Callable[[], Watching], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    mark = engine.store.mark
    monkeypatch.setattr("penstock.web.live.EVERY_SECONDS", 0.3)
    monkeypatch.setattr(engine.store, "mark", lambda: looks.append(threading.get_ident()) or mark())
    pages = [watching() for _ in range(5)]
    for page in pages:
        page.next()
    first = len(looks)
    engine.acquire(engine.claim("a"))
    for page in pages:
        page.next()
    assert len(looks) - first <= 10


def test_a_store_that_is_away_is_said_and_its_return_too(
    watching: Callable[[], Watching], client: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = watching()
    before = page.next()
    mark, limit_rows = engine.store.mark, engine.store.limit_rows

    def away() -> Any:
        raise StoreUnavailable("postgresql://there: connection refused")

    monkeypatch.setattr(engine.store, "mark", away)
    monkeypatch.setattr(engine.store, "limit_rows", away)
    assert page.next() == ("away", "the store is away")
    answer = client.get("/")
    assert answer.status_code == 503
    assert "postgresql://there: connection refused" in answer.text
    assert "penstock doctor" in answer.text
    assert "live.js" in answer.text
    assert client.get("/api/limits").json() == {"detail": "postgresql://there: connection refused"}
    monkeypatch.setattr(engine.store, "mark", mark)
    monkeypatch.setattr(engine.store, "limit_rows", limit_rows)
    assert page.next() == before
    assert client.get("/").status_code == 200
