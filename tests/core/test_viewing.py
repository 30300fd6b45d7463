"""What those who look ask a store for, on every store: pages of holders and queues, searches, marks, the history."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from penstock import changes
from penstock.engine import Engine
from penstock.queue import Queue
from penstock.request import Request
from penstock.store.contract import ClaimState, Event
from penstock.store.viewing import Movement, Part

Configure = Callable[..., None]
SECOND = 1_000_000


def ids(part: Part) -> list[str | None]:
    return [row.claim.run_id for row in part.claims]


def asked(engine: Engine, *pools: str, **claim: object) -> Request:
    request = engine.request(engine.claim(*pools, **claim))  # type: ignore[arg-type]
    request.step()
    return request


@pytest.fixture
def crowd(engine: Engine, configure: Configure) -> list[Request]:
    """Two hold `a`, one of them all of `b`; five wait for `a`, two of them for `b`, too."""
    configure(pools={"limits": {"a": 2, "b": 1}})
    return [
        asked(engine, "a", run_id="holds-a"),
        asked(engine, "a", "b", run_id="holds-both"),
        asked(engine, "a", run_id="first"),
        asked(engine, "a", "b", run_id="second"),
        asked(engine, "a", run_id="early", priority=5),
        asked(engine, "b", "a", run_id="third"),
        asked(engine, "a:2", run_id="wide", op_id="op"),
    ]


@pytest.mark.usefixtures("crowd")
def test_holders_come_oldest_first_with_their_sessions(engine: Engine) -> None:
    part = engine.store.holders("pool:a")
    assert (ids(part), part.count) == (["holds-a", "holds-both"], 2)
    assert {row.session.session_id for row in part.sessions} == {engine.session_id()}
    assert all(row.expires_at == part.sessions[0].expires_at for row in part.claims)
    assert ids(engine.store.holders("pool:b")) == ["holds-both"]
    second = engine.store.holders("pool:a", offset=1, most=1)
    assert (ids(second), second.count) == (["holds-both"], 2)
    assert engine.store.holders("pool:none").count == 0


def test_who_holds_several_slots_is_one_holder(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 3}})
    asked(engine, "a:3", run_id="wide")
    part = engine.store.holders("pool:a")
    assert (ids(part), part.count) == (["wide"], 1)
    assert len(part.claims[0].slots) == 3


@pytest.mark.usefixtures("crowd")
def test_a_queue_comes_in_order_page_by_page_with_what_bars_each(engine: Engine) -> None:
    in_order = ["early", "first", "second", "third", "wide"]
    whole = engine.store.queue("pool:a")
    assert (ids(whole), whole.count) == (in_order, 5)
    pages = [engine.store.queue("pool:a", offset=offset, most=2) for offset in (0, 2, 4, 6)]
    assert [run for page in pages for run in ids(page)] == in_order
    assert {page.count for page in pages} == {5}
    snapshot = engine.snapshot()
    queue = Queue(snapshot)
    expected = {row.claim.claim_id: queue.barring(row) for row in queue.waiters}
    assert {claim_id: reasons for page in pages for claim_id, reasons in (page.reasons or {}).items()} == expected
    assert [(reason.limit, reason.waiting_ahead) for reason in expected[whole.claims[3].claim.claim_id]] == [
        ("pool:a", 3),
        ("pool:b", 1),
    ]


def test_a_parked_waiter_is_in_no_queue_but_is_found_with_what_bars_it(
    engine: Engine, new_engine: Callable[..., Engine], configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    store = engine.store
    held = engine.acquire(engine.claim("a", run_id="first"))
    silent = new_engine()
    asked(silent, "a", run_id="silent", op_id="x")
    asked(silent, "a", run_id="next", op_id="x")
    held.release()
    store.clock_shift += 4 * SECOND  # type: ignore[attr-defined]
    store.sweep()
    (row,) = store.search("silent").claims
    assert row.state is ClaimState.PARKED
    assert "silent" not in ids(store.queue("pool:a"))
    found = store.search("silent")
    queue = Queue(engine.snapshot())
    assert (found.reasons or {})[row.claim.claim_id] == queue.barring(row)


SEARCHED = [
    ("", {"nightly-1", "Nightly-2", "backfill"}),
    ("nightly", {"nightly-1", "Nightly-2"}),
    ("NIGHTLY-1", {"nightly-1"}),
    ("load", {"nightly-1"}),
    ("pretty name", {"backfill"}),
    ("team=analytics", {"nightly-1", "backfill"}),
    ("team=anal", set()),
    ("analyt", {"nightly-1", "backfill"}),
    ("100%", {"Nightly-2"}),
    ("100_", set()),
    ("a\"b\\c'=<d>", {"Nightly-2"}),
    ("schlüssel=wert ✓", {"backfill"}),
    ("nothing of the kind", set()),
]


@pytest.mark.parametrize(("text", "found"), SEARCHED, ids=[text or "all" for text, _ in SEARCHED])
def test_claims_are_found_by_run_op_name_and_tag(
    engine: Engine, configure: Configure, text: str, found: set[str]
) -> None:
    configure(pools={"limits": {"a": 1}})
    asked(engine, "a", run_id="nightly-1", op_id="load", tags={"team": "analytics", "note": "team"})
    asked(engine, "a", run_id="Nightly-2", op_id="x[3]", tags={"a\"b\\c'": "<d>", "share": "100%"})
    tags = {"Schlüssel": "Wert ✓", "schlüssel": "wert ✓", "team": "analytics"}
    asked(engine, "a", run_id="backfill", op_id="extract", name="a pretty name", tags=tags)
    part = engine.store.search(text)
    assert (set(ids(part)), part.count) == (found, len(found))


def test_a_claim_is_found_by_its_id_alone(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    one, _ = asked(engine, "a", run_id="x"), asked(engine, "a", run_id="y")
    assert ids(engine.store.search(one.claim.claim_id)) == ["x"]
    assert engine.store.search(one.claim.claim_id[:8]).count == 0


def test_what_has_ended_is_not_found(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a", run_id="gone")).release()
    assert engine.store.search("gone").count == engine.store.holders("pool:a").count == 0


def test_one_limit_is_what_all_limits_say_of_it(engine: Engine, crowd: list[Request]) -> None:
    rows = {row.key: row for row in engine.store.limit_rows()}
    for key in ("pool:a", "pool:b"):
        one = engine.store.limit_row(key)
        assert one == rows[key]
        assert one is not None
        assert one.waiting_since == rows[key].waiting_since
    first = min(row.enqueued_at for row in engine.snapshot().claims if "pool:b" in row.wants and not row.slots)
    assert rows["pool:b"].waiting_since == first
    assert engine.store.limit_row("pool:none") is None
    assert sorted(engine.store.waiting_since("pool:a")) == sorted(
        row.enqueued_at for row in engine.snapshot().claims if not row.slots
    )


def test_the_mark_is_another_one_after_each_thing_that_is_seen(engine: Engine, configure: Configure) -> None:
    seen = {engine.store.mark()}

    def fresh() -> bool:
        before = len(seen)
        seen.add(engine.store.mark())
        return len(seen) > before

    assert not fresh()
    configure(pools={"limits": {"a": 1}})
    assert fresh()
    held = engine.acquire(engine.claim("a"))
    assert fresh()
    waiting = asked(engine, "a")
    assert fresh()
    engine.store.beat(engine.session_id(), lambda: [held.claim.claim_id, waiting.claim.claim_id])
    assert not fresh()
    waiting.withdraw()
    assert fresh()
    held.release()
    assert fresh()


def test_the_history_is_read_line_by_line_and_once(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    for _ in range(3):
        with engine.hold("a"):
            pass
    whole = engine.store.movements(after=(0, 0), most=100)
    assert [line.event for line in whole] == [Event.CHANGED, *[Event.GRANTED, Event.RELEASED] * 3]
    assert whole[1].slots == {"pool:a": 1}
    assert whole[1].waited is not None
    assert whole[2].held is not None
    read: list[Movement] = []
    after = (0, 0)
    while lines := engine.store.movements(after=after, most=2):
        assert len(lines) <= 2
        read += lines
        after = (lines[-1].at, lines[-1].line)
    assert read == list(whole)


def test_changes_come_newest_first(engine: Engine, configure: Configure) -> None:
    for limit in (1, 2, 3):
        configure(pools={"limits": {"a": limit}})
    with engine.hold("a"):
        pass
    assert [row.slots for row in engine.store.changes(most=2)] == [{"pool:a": 3}, {"pool:a": 2}]


def test_a_change_is_recorded_under_the_name_that_is_given(engine: Engine) -> None:
    changes.edit(engine, lambda concurrency: concurrency.with_pool("a", None), by="Ann <ann@example.org>")
    assert "by Ann <ann@example.org> from" in (engine.store.changes(most=1)[0].detail or "")
