"""What the state machine found, each as the shortest example of it; asked of the store itself."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from penstock.claim import Claim, ClaimKind, run_pool_claim
from penstock.rules import Demand, Source
from penstock.store.contract import Event, Mode, Outcome, Owner, Result, Session


def open_session(store: Any, session_id: str = "s", ttl_seconds: float = 30.0) -> Owner:
    """A process, and itself as the owner of what it claims."""
    store.open_session(Session(session_id, "process", "d", 1, "h", ttl_seconds))
    return Owner(session_id)


def pool(capacity: int | None, slots: int = 1, name: str = "a") -> Demand:
    """A pool with that capacity, and how much is asked of it."""
    return Demand(f"pool:{name}", slots, capacity, Source.EXPLICIT if capacity is not None else Source.NONE)


def acquire(
    store: Any, owner: Owner, *demands: Demand, run: str | None = None, under: str | None = None, **options: Any
) -> Outcome:
    """An op that nobody else can name, or a run."""
    kind = ClaimKind.OP if run is None else ClaimKind.RUN
    claim = Claim(kind=kind, host="process", deployment="d", run_id=run, parent_id=under)
    outcome: Outcome = store.acquire(claim, demands, version=0, owner=owner, **options)
    return outcome


def events(store: Any, claim_id: str) -> list[Event]:
    """What befell a claim."""
    return [row.event for row in store.history() if row.claim_id == claim_id]


def test_a_run_that_ends_with_its_last_session_is_released_not_expired(store: Any) -> None:
    run = acquire(store, open_session(store), pool(1), run="r")
    store.close_session("s")
    assert events(store, run.claim_id) == [Event.GRANTED, Event.RELEASED]


def test_a_session_that_closes_is_not_granted_what_it_leaves(store: Any) -> None:
    owner = open_session(store)
    acquire(store, owner, pool(1))
    waiting = [acquire(store, owner, pool(1)).claim_id for _ in range(4)]
    store.close_session("s")
    assert [events(store, claim_id) for claim_id in waiting] == [[Event.WITHDRAWN]] * 4


def test_who_closes_its_session_leaves_those_of_others_to_the_sweep(store: Any) -> None:
    open_session(store, "other", ttl_seconds=-10.0)
    open_session(store)
    store.close_session("s")
    assert [row.session.session_id for row in store.snapshot().sessions] == ["other"]


@pytest.mark.parametrize("joining", [(), (pool(1, name="b"),)], ids=["for nothing", "for another pool"])
def test_who_joins_a_waiting_run_does_not_change_what_it_waits_for(store: Any, joining: tuple[Demand, ...]) -> None:
    acquire(store, open_session(store), pool(1))
    waiting = acquire(store, open_session(store, "first"), pool(1), run="r")
    assert waiting.result is Result.WAITING
    joined = acquire(store, open_session(store, "second"), *joining, run="r")
    assert (joined.claim_id, joined.result) == (waiting.claim_id, Result.WAITING)
    (row,) = [row for row in store.snapshot().claims if row.claim.claim_id == waiting.claim_id]
    assert (dict(row.wants), row.session_ids) == ({"pool:a": 1}, ("first", "second"))


def test_a_skipped_run_stays_skipped_though_its_process_ends(store: Any) -> None:
    skipped = acquire(store, open_session(store), pool(0), run="r", mode=Mode.SKIP)
    assert skipped.result is Result.NO_ROOM
    store.close_session("s")
    store.sweep()
    assert acquire(store, open_session(store, "later"), pool(0), run="r").result is Result.SKIPPED


@pytest.mark.parametrize("first", ["run", "late pool"])
def test_a_late_pool_that_expires_with_its_run_ends_once(store: Any, first: str) -> None:
    """Whichever of the two the sweep comes upon first."""
    owner = open_session(store, ttl_seconds=-10.0)
    ids = sorted(str(uuid.uuid4()) for _ in range(2))
    run_id, late_id = ids if first == "run" else reversed(ids)
    run = Claim(kind=ClaimKind.RUN, host="process", deployment="d", run_id="r", claim_id=run_id)
    store.acquire(run, [], version=0, owner=owner)
    late = replace(run_pool_claim(run, run_id, "a", 1), claim_id=late_id)
    assert store.acquire(late, [pool(0)], version=0, owner=owner).result is Result.WAITING
    assert [one.claim.claim_id for one in store.sweep().expired] == [run_id]
    assert events(store, late_id) == [Event.EXPIRED]


def test_history_says_that_who_is_barred_no_more_took_nothing(store: Any) -> None:
    owner = open_session(store)
    waiting = acquire(store, owner, pool(0))
    store.configure({}, expected_version=0, by="me", origin="here")
    assert store.touch(waiting.claim_id, [], version=1, owner=owner).result is Result.HELD
    assert [(row.event, row.slots) for row in store.history() if row.claim_id] == [(Event.GRANTED, {})]


def reserving(store: Any, owner: Owner, *, free: int) -> Outcome:
    """Who holds what the first aged waiter is barred by; that waiter reserves a slot of the pool `b`."""
    around = acquire(store, owner, pool(1))
    assert acquire(store, owner, pool(1), pool(free, name="b")).result is Result.WAITING
    store.clock_shift += 301_000_000
    return around


def test_whom_a_reservation_does_not_bar_is_granted_behind_those_whom_it_does(store: Any) -> None:
    owner = open_session(store, ttl_seconds=10_000.0)
    around = reserving(store, owner, free=1)
    assert acquire(store, owner, pool(1, name="b")).result is Result.WAITING
    assert acquire(store, owner, pool(1, name="b"), under=around.claim_id).result is Result.HELD


def test_a_reservation_leaves_what_it_does_not_need(store: Any) -> None:
    owner = open_session(store, ttl_seconds=10_000.0)
    reserving(store, owner, free=2)
    assert acquire(store, owner, pool(2, name="b")).result is Result.HELD
    assert acquire(store, owner, pool(2, name="b")).result is Result.WAITING


def test_a_process_that_is_given_up_does_not_speak_for_a_run_that_others_keep(store: Any) -> None:
    run = acquire(store, open_session(store, "other"), pool(1), run="r")
    lost = open_session(store, "lost", ttl_seconds=-10.0)
    acquire(store, lost, pool(1), run="r")
    store.sweep()
    assert store.touch(run.claim_id, [pool(1)], version=0, owner=lost).result is Result.SESSION_LOST
    assert [row.session_ids for row in store.snapshot().claims] == [("other",)]


def test_what_was_pruned_is_not_counted_again(store: Any) -> None:
    store.release(acquire(store, open_session(store), pool(1)).claim_id, "s")
    later = store.snapshot_time() + 1
    assert store.prune(history_before=later, idle_before=0)["history"] == 2
    assert store.prune(history_before=later, idle_before=0)["history"] == 0
