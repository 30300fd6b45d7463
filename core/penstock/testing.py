"""For users' own tests: limits enforced in memory, claims recorded. Load it by `pytest_plugins = ["penstock.testing"]`.

While it is loaded, every engine of this process works on one store in memory, whatever URL is configured: those of
`penstock.connect()` and those of the hosts' gates. Nothing is limited but by what a test configures.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

import pytest

from penstock import connection
from penstock.claim import Claim
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.rules import Demand, configured_keys, resolve_limit
from penstock.store.contract import ClaimState, Event, Mode, Outcome, Owner, Result
from penstock.store.memory import MemoryStore

URL_VARIABLE = "PENSTOCK_STORE_URL"
_SIGNS = {Event.GRANTED: 1, Event.RELEASED: -1, Event.EXPIRED: -1, Event.PARKED: -1}


class RecordingStore(MemoryStore):
    """A store in memory that remembers who asked and who had to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Claim] = {}
        self.waited: dict[str, Claim] = {}

    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        mode: Mode = Mode.WAIT,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        """As every store's; one claim may come several times before it is decided."""
        outcome = super().acquire(
            claim,
            demands,
            version=version,
            owner=owner,
            mode=mode,
            eligible_after_seconds=eligible_after_seconds,
        )
        self.asked.setdefault(claim.claim_id, claim)
        if outcome.result is Result.WAITING:
            self.waited.setdefault(claim.claim_id, claim)
        return outcome

    def clean(self) -> None:
        """As new: no limits, nobody who holds or waits, nothing recorded. Versions and epochs go on."""
        for row in self.snapshot().claims:
            for engine in list(_engines):  # a host keeps its engine from test to test
                if (lease := engine.leases.find(row.claim.claim_id)) is not None:
                    lease.holds = 1
                    lease.release()
            self.end(row.claim.claim_id, reason="the test is over")
        self.put(Concurrency())
        self.clock_shift = 0
        self._limits.clear()
        self._history.clear()
        self.asked.clear()
        self.waited.clear()

    def put(self, concurrency: Concurrency) -> None:
        """Put a configuration in force."""
        version = self.configuration().version
        version = self.configure(concurrency.document(), expected_version=version, by="a test", origin="memory")
        for key in sorted({*configured_keys(concurrency), *(row.key for row in self.limit_rows())}):
            self.settle(key, *resolve_limit(key, concurrency), version=version)
        self.settled(version)
        self.grant_pass()


class Limits:
    """What a test sets, and what it sees: claims in the order in which they came, slots by limit key (`pool:NAME`)."""

    def __init__(self, store: RecordingStore) -> None:
        self._store = store

    def configure(self, **block: Any) -> None:
        """Put the inside of a `concurrency:` block in force: `configure(pools={"limits": {"db": 2}})`.

        It replaces the one before. Raises pydantic's ValidationError, a ValueError, on what is none.
        """
        self._store.put(Concurrency.model_validate(block))

    @property
    def claims(self) -> list[Claim]:
        """Everything that was asked for, of runs and ops, whatever became of it; but for what no limit could admit."""
        return list(self._store.asked.values())

    @property
    def waited(self) -> list[Claim]:
        """Those that had to wait."""
        return list(self._store.waited.values())

    @property
    def granted(self) -> list[Claim]:
        """Those that were let in, in that order."""
        ids = [row.claim_id for row in self._store.history() if row.event is Event.GRANTED]
        return [self._store.asked[claim_id] for claim_id in dict.fromkeys(ids) if claim_id in self._store.asked]

    @property
    def holding(self) -> list[Claim]:
        """Those that hold slots now; empty at the end of a test that gave everything back."""
        return [
            row.claim for row in self._store.snapshot().claims if row.state in (ClaimState.GRANTED, ClaimState.HELD)
        ]

    def held(self, key: str) -> int:
        """How many slots of a limit are held now."""
        return {row.key: row.held for row in self._store.limit_rows()}.get(key, 0)

    def most_at_once(self, key: str) -> int:
        """The most slots of a limit that were ever held together."""
        now, most = Counter[str](), 0
        for row in self._store.history():
            now[key] += _SIGNS.get(row.event, 0) * (row.slots.get(key) or 0)
            most = max(most, now[key])
        return most


_store = RecordingStore()
_engines = WeakSet[Engine]()
_before = pytest.StashKey[tuple[Any, Any, str | None]]()


def pytest_configure(config: pytest.Config) -> None:
    """From now on the store is the one in memory; hosts without a URL would be inactive, so they get one."""
    connect = connection.connect
    config.stash[_before] = (connection.open_store, connect, os.environ.get(URL_VARIABLE))

    def connect_noted(*arguments: Any, **named: Any) -> Engine:
        engine = connect(*arguments, **named)
        _engines.add(engine)
        return engine

    connection.open_store, connection.connect = (lambda url, *, create: _store), connect_noted
    os.environ[URL_VARIABLE] = MemoryStore.url


def pytest_unconfigure(config: pytest.Config) -> None:
    """As it was before."""
    connection.open_store, connection.connect, url = config.stash[_before]
    os.environ.pop(URL_VARIABLE)
    if url is not None:
        os.environ[URL_VARIABLE] = url


@pytest.fixture
def penstock_limits() -> Iterator[Limits]:
    """The limits of this test, and the claims made in it. What it leaves behind is ended after it."""
    _store.clean()
    yield Limits(_store)
    _store.clean()
