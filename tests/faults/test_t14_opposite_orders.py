"""T14: sixty-four clients ask for several pools, each in an order of its own. Bar: no deadlock error."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import penstock
import pytest
from configuring import configure
from penstock.errors import PenstockError
from penstock.settings import Settings
from situations import in_threads
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from faults.children import Children, Tell
from faults.record import LONG, Record

PROCESSES, THREADS = 8, 8
SECONDS = 120.0 if LONG else 8.0
POOLS = {f"p{number}": 3 for number in range(6)}
DEADLOCKS = {
    "postgresql": "SELECT deadlocks FROM pg_stat_database WHERE datname = '{database}'",
    "mariadb": "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'INNODB_DEADLOCKS'",
}


@pytest.mark.timeout(180 + 2 * SECONDS)
def test_no_client_meets_a_deadlock(
    store_kind: str,
    request: pytest.FixtureRequest,
    record_on: Callable[[str, str], Record],
    children: Children,
) -> None:
    url: str = request.getfixturevalue("store_url" if store_kind == "sqlite" else "own_url")
    record = record_on(store_kind, url)
    with penstock.connect(url) as engine:
        configure(engine, pools={"limits": POOLS})
        broken = _broken(store_kind, url)
        clients = [children.bear(lambda tell, seed=seed: _ask(url, seed, tell)) for seed in range(PROCESSES)]
        for child in clients:
            child.join(SECONDS + 120)
        broken = _broken(store_kind, url) - broken
        assert not engine.snapshot().claims
        with engine.hold(POOLS):
            pass
    said = [event for child in clients for event in child.events]
    errors = [event["error"] for event in said if event["event"] == "error"]
    leases = sum(event.get("leases", 0) for event in said)
    done = f"{PROCESSES * THREADS} clients, 2 to 4 of 6 pools each, {leases} leases in {SECONDS:g} s"
    record(done=done, what="deadlocks and other errors met", figure=len(errors), bar=0)
    if store_kind in DEADLOCKS:
        record(done=done, what="deadlocks that the server broke", figure=broken, bar=0)
    assert errors == []
    assert leases > 0


def _broken(store_kind: str, url: str) -> int:
    """How many deadlocks the server has broken so far. Those that Penstock asks for again nobody else meets."""
    if store_kind not in DEADLOCKS:
        return 0
    engine = create_engine(url)
    with engine.connect() as connection:
        count = connection.execute(text(DEADLOCKS[store_kind].format(database=make_url(url).database))).scalar_one()
    engine.dispose()
    return int(count)


def _ask(url: str, seed: int, tell: Tell) -> None:
    over = time.monotonic() + SECONDS
    with penstock.connect(url, settings=Settings(poll_max_seconds=0.2, store_retry_seconds=60)) as engine:

        def client(number: int) -> int:
            rng, count = random.Random(f"{seed}/{number}"), 0
            while time.monotonic() < over:
                wants = {name: rng.randint(1, 2) for name in rng.sample(list(POOLS), rng.randint(2, 4))}
                try:
                    with engine.hold(wants):
                        time.sleep(rng.uniform(0, 0.01))
                    count += 1
                except PenstockError as error:
                    tell("error", error=str(error))
            return count

        tell("done", leases=sum(in_threads(THREADS, client)))
