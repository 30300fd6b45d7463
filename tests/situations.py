"""Situations that many tests begin from: who asks, who was let in, how much is held, and time that passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from penstock.decision import Decision, Granted, Refused, Waiting
from penstock.engine import Engine
from penstock.lease import Lease
from penstock.queue import reasons_for
from penstock.report import status
from penstock.request import Request
from penstock.settings import Settings

SECOND = 1_000_000
Configure = Callable[..., None]
NewEngine = Callable[..., Engine]

CALM = Settings(
    store_retry_seconds=0,
    session_ttl_seconds=10**6,
    ticket_seconds=10**6,
    run_probe_seconds=10**6,
    sweep_seconds=10**6,
    upkeep_seconds=10**6,
)
"""Of an engine that outlives any shift of the clock and does nothing by itself: what happens, the test has done."""


def held(engine: Engine, key: str) -> int:
    """How many slots of a limit are held, as the store sees it."""
    return {row.key: row.held for row in engine.store.limit_rows()}.get(key, 0)


def waiting(engine: Engine, key: str) -> int:
    """How many claims are in a limit's queue."""
    return {row.key: row.waiting for row in engine.store.limit_rows()}.get(key, 0)


def granted(decision: Decision) -> Lease:
    """The lease of a claim that must have been let in."""
    assert isinstance(decision, Granted), decision
    return decision.lease


def refused(decision: Decision) -> Refused:
    """The refusal of a claim that must not have been let in."""
    assert isinstance(decision, Refused), decision
    return decision


def waits(request: Request) -> bool:
    """Whether a claim still waits when it speaks up now."""
    return isinstance(request.step(), Waiting)


def queued(engine: Engine, *pools: Any, **claim: Any) -> Request:
    """An op claim that has taken its place in the queue."""
    request = engine.request(engine.claim(*pools, **claim))
    assert isinstance(request.step(), Waiting)
    return request


def barred_by(engine: Engine, request: Request) -> set[str]:
    """The limits that bar a waiter."""
    return {reason.limit for reason in reasons_for(engine.store.snapshot(), request.claim_id)}


def waiter_states(engine: Engine) -> dict[str, str]:
    """Claim id → state of every waiter, as `penstock status` shows it."""
    rows: list[dict[str, Any]] = status(engine.store.snapshot(), engine.configuration(fresh=True)[1])["waiters"]
    return {row["claim_id"]: row["state"] for row in rows}


def pass_time(store: Any, seconds: float) -> None:
    """Let the store's clock run on; nobody sleeps."""
    store.clock_shift += int(seconds * SECOND)


def reap(store: Any) -> None:
    """Sweep, and do not take the time that was let pass for a database clock that was set."""
    if hasattr(store, "_jumps"):
        store._jumps = type(store._jumps)()
    store.sweep()


def until(state: Callable[[], Any], seconds: float = 30.0) -> None:
    """Come back when the state is reached; an error if it is not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline, "the state was never reached"
        time.sleep(0.01)


class Runs:
    """Runs that come to an engine, start when they are let in, and end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: dict[str, Request] = {}
        self.leases: dict[str, Lease] = {}

    def come(self, run_id: str, *pools: Any, tags: Mapping[str, str] | None = None, priority: int = 0) -> None:
        """A run asks to start."""
        claim = self.engine.run_claim(run_id, *pools, tags=tags, priority=priority)
        self.requests[run_id] = self.engine.request(claim)
        self.look()

    def look(self) -> None:
        """Every run that waits speaks up once."""
        for run_id, request in self.requests.items():
            if run_id not in self.leases and isinstance(decision := request.step(), Granted):
                self.leases[run_id] = decision.lease

    @property
    def started(self) -> list[str]:
        """The runs that are in progress, in the order in which they started."""
        self.look()
        return list(self.leases)

    def end(self, run_id: str) -> None:
        """A run is over."""
        del self.requests[run_id]
        self.leases.pop(run_id).release()


def room(engine: Engine) -> dict[str, int]:
    """What `rules.root_pools_full` asks for: pool → free slots less those that waiters want."""
    return {
        row.key.removeprefix("pool:"): row.capacity - row.held - row.waiting
        for row in engine.store.limit_rows()
        if row.key.startswith("pool:") and row.capacity is not None
    }


class Gauge:
    """How many are inside, and the most that ever were; judged by those inside themselves, not by the store."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.inside = self.most = self.entered = 0

    def __enter__(self) -> Gauge:
        with self._changed:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)
            self._changed.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self.inside -= 1
            self._changed.notify_all()

    def wait_for(self, most: int, seconds: float = 20.0) -> bool:
        """Stay until so many have been inside together; False if that never happened."""
        with self._changed:
            return self._changed.wait_for(lambda: self.most >= most, seconds)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Do the work with each number below `count` in a thread of its own, all at once; the results in order."""
    begin = threading.Barrier(count)

    def one(number: int) -> Any:
        begin.wait(60)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))
