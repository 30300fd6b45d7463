"""Nobody who fits is left waiting for the next poll because a pass was under way when the slot came free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from penstock.claim import Claim, ClaimKind
from penstock.rules import Demand, Source
from penstock.store import granting
from penstock.store.contract import ClaimState, Owner, Result, Session
from penstock.store.sql import SqlStore
from standing import standing_stores


def test_a_release_during_a_pass_that_grants_nothing(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing_stores("postgresql", lambda _: postgresql_url, tmp_path) as stores:
        store = stores.empty()
        other = SqlStore(stores.given_url)
        demands = [Demand(key, 1, 1, Source.EXPLICIT) for key in ("pool:a", "pool:b")]
        for demand in demands:
            assert store.settle(demand.key, 1, Source.EXPLICIT, version=0)
        for number in range(2):
            store.open_session(Session(f"s{number}", "process", "d", 1, "h", 30.0))

        def acquire(name: str, session: str, wants: list[Demand]) -> Result:
            claim = Claim(kind=ClaimKind.OP, host="process", deployment="d", claim_id=name)
            return store.acquire(claim, wants, version=0, owner=Owner(session)).result

        assert acquire("holder", "s0", demands[:1]) is Result.HELD
        grant = granting.grant

        def grant_while_it_is_released(*arguments: Any) -> granting.Batch:
            batch = grant(*arguments)
            monkeypatch.setattr(granting, "grant", grant)
            assert other.release("holder", "s0")  # its own look finds the grant lock taken
            return batch

        monkeypatch.setattr(granting, "grant", grant_while_it_is_released)
        acquire("waiter", "s1", demands)
        states = {row.claim.claim_id: row.state for row in store.snapshot().claims}
        other.close()
        assert states == {"waiter": ClaimState.HELD}  # who asked is told of its own grant
