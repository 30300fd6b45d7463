"""What the databases do differently, said once for each."""

from __future__ import annotations

import time
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.store import tables as t
from penstock.store.admission import tombstone
from penstock.store.asking import Ask
from penstock.store.contract import ClaimState, Mode, Owner, Result
from situations import Configure, granted, held, refused

pytestmark = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


def test_whether_a_row_was_written_is_told(store: Any) -> None:
    """On PostgreSQL with SQLAlchemy 2.1 an INSERT has no row count: what was written counted as not written."""
    with store.transaction() as tx:
        first = store.dialect.insert_if_absent(tx.connection, t.claim, tombstone("x", tx.now))
        again = store.dialect.insert_if_absent(tx.connection, t.claim, tombstone("x", tx.now))
        member = {"claim_id": "a", "session_id": "b"}
        assert (first, again) == (True, False)
        assert store.dialect.insert_if_absent(tx.connection, t.member, member)
        assert not store.dialect.insert_if_absent(tx.connection, t.member, member)


def test_a_claim_decided_under_the_grant_lock_has_its_slots(store: Any, engine: Engine, configure: Configure) -> None:
    """It was granted and held nothing, whenever the first statement had passed over a row that was locked just then."""
    configure(pools={"limits": {"a": 1}})
    version, concurrency = engine.configuration()
    claim, owner = engine.claim("a"), Owner(engine.session_id())
    ask = Ask(claim, engine.demands(claim, concurrency), version, owner, wait=False, eligible_after=0, clock_shift=0)
    decided = store._decide(ask, Mode.TRY)
    assert decided.result is Result.HELD
    assert [slot.limit for slot in decided.slots] == ["pool:a"]
    assert held(engine, "pool:a") == 1
    assert refused(engine.try_acquire(engine.claim("a")))


def test_a_run_skipped_under_the_grant_lock_is_remembered_and_holds_nothing(
    store: Any, engine: Engine, configure: Configure
) -> None:
    configure(runs={"max_concurrent_runs": 1})
    lease = engine.acquire(engine.run_claim("1"))
    assert refused(engine.request(engine.run_claim("2")).try_step(skip=True))
    assert [row.state for row in store.snapshot().claims if row.claim.run_id == "2"] == [ClaimState.SKIPPED]
    lease.release()
    assert refused(engine.try_acquire(engine.run_claim("2"))).skipped


def test_the_clock_does_not_follow_the_servers_local_time(store: Any, store_kind: str) -> None:
    """In the night in which summer ends, an hour of local time comes twice: MariaDB's clock would jump back."""
    assert abs(store.snapshot_time() - time.time_ns() // 1000) < 600_000_000
    if store_kind == "mariadb":
        with store.transaction() as tx:
            assert tx.connection.exec_driver_sql("SELECT @@session.time_zone").scalar() == "+00:00"


def test_after_a_rollback_a_release_and_a_grant_go_on(store: Any, engine: Engine, configure: Configure) -> None:
    """On PostgreSQL psycopg lets all prepared statements of a connection go with a rollback, once it has some."""
    configure(pools={"limits": {"a": 1}})

    def hand_over() -> None:
        lease = engine.acquire(engine.claim("a"))
        waiter = engine.request(engine.claim("a"))
        waiter.step()
        lease.release()
        granted(waiter.step()).release()

    for _ in range(8):
        hand_over()
    with pytest.raises(ZeroDivisionError), store.transaction():
        1 / 0  # noqa: B018
    hand_over()
