"""T12: replies dropped, calls made twice and replayed. Bar: asking again takes once, nothing is left over.

Between the store and its database a proxy closes connections instead of handing over a reply, so that nobody knows what
was done; SQLite has no replies to drop, there calls are only doubled and replayed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import penstock
import pytest
from configuring import configure
from penstock.decision import HeldSlot
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from penstock.store.contract import Mode, Outcome, Owner, Result
from proxy import TcpProxy
from situations import Gauge, in_threads
from sqlalchemy.engine import make_url

from faults.record import LONG, Record

CLAIMS, THREADS, CAPACITY = (2500, 4, 3) if LONG else (100, 4, 3)
"""Claims in all; each is four calls or more."""
DROP_EVERY = 15


class Caller:
    """One thread's claims: each acquired and released, now and then twice, now and then again long after."""

    def __init__(self, engine: Engine, seed: int, inside: Gauge, drop: Callable[[], None] | None) -> None:
        self._engine, self._store, self._inside, self._drop = engine, engine.store, inside, drop
        self._rng = random.Random(seed)
        self._ended: list[penstock.Claim] = []
        self.calls = 0
        self.wrong: list[str] = []

    def run(self, count: int) -> None:
        for _ in range(count):
            claim = self._engine.claim("a")
            slots = self._acquire(claim)
            if self._rng.random() < 0.3 and (again := self._acquire(claim)) != slots:
                self.wrong.append(f"asked twice: {slots}, then {again}")
            with self._inside:
                time.sleep(self._rng.uniform(0, 0.002))
            for _ in range(self._rng.choice((1, 1, 2))):
                self._call(lambda claim=claim: self._store.release(claim.claim_id, self._session))
            self._ended.append(claim)
            if self._rng.random() < 0.3:
                self._replay(self._rng.choice(self._ended))
            if self._engine.session_id() != self._session:
                self.wrong.append("the session was lost")

    @property
    def _session(self) -> str:
        return self._engine.session_id()

    def _acquire(self, claim: penstock.Claim) -> tuple[HeldSlot, ...]:
        while True:
            outcome = self._ask(claim)
            if outcome.result is Result.HELD:
                return outcome.slots
            assert outcome.result is Result.NO_ROOM, outcome
            time.sleep(0.002)

    def _ask(self, claim: penstock.Claim) -> Outcome:
        version, concurrency = self._engine.configuration()
        demands, owner = self._engine.demands(claim, concurrency), Owner(self._session)
        outcome: Outcome = self._call(
            lambda: self._store.acquire(claim, demands, version=version, owner=owner, mode=Mode.TRY)
        )
        return outcome

    def _replay(self, claim: penstock.Claim) -> None:
        if (result := self._ask(claim).result) is not Result.ENDED:
            self.wrong.append(f"a claim that had been released was {result} when it was asked for again")
        # Where a reply was dropped nobody can tell which of several calls it was that released it.
        if self._call(lambda: self._store.release(claim.claim_id, self._session)) and self._drop is None:
            self.wrong.append("a claim was released again long after")

    def _call(self, call: Callable[[], Any]) -> Any:
        """Made until it is answered: whoever knows nothing asks again."""
        self.calls += 1
        if self._drop is not None and self._rng.random() < 1 / DROP_EVERY:
            self._drop()
        while True:
            try:
                return call()
            except StoreUnavailable:
                continue


@pytest.mark.timeout(120 + CLAIMS // 5)
def test_asking_again_takes_once_and_leaves_nothing(store_kind: str, store_url: str, record: Record) -> None:
    url, inside, drops = make_url(store_url), Gauge(), list[None]()
    proxy = nullcontext() if store_kind == "sqlite" else TcpProxy(url.host or "", url.port or 0)
    with penstock.connect(store_url) as direct, proxy as between:
        configure(direct, pools={"limits": {"a": CAPACITY}})
        through = store_url
        if between is not None:
            through = url.set(host="127.0.0.1", port=between.port).render_as_string(hide_password=False)

        def drop() -> None:
            assert between is not None
            between.drop_reply()
            drops.append(None)

        # The claims are made by hand here: a beat would end them all, as claims that their process does not know.
        engine = penstock.connect(through, settings=Settings(session_ttl_seconds=10**6))
        callers = [Caller(engine, seed, inside, drop if between is not None else None) for seed in range(THREADS)]
        engine.session_id()
        in_threads(THREADS, lambda number: callers[number].run(CLAIMS // THREADS))
        left = [*direct.snapshot().claims, *(row for row in direct.store.limit_rows() if row.held)]
        with direct.hold(f"a:{CAPACITY}", wait_timeout_seconds=10):
            pass
        engine.store.close()
    wrong = [words for caller in callers for words in caller.wrong]
    done = f"{sum(caller.calls for caller in callers)} calls of {THREADS} threads, {len(drops)} replies dropped"
    over = max(0, inside.most - CAPACITY)
    record(done=done, what="calls that took or freed twice", figure=len(wrong) + over, bar=0)
    record(done=done, what="claims and slots left over", figure=len(left), bar=0)
    assert wrong == []
    assert left == []
    assert over == 0
