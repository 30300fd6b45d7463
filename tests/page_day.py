"""A store in the middle of a day's work, for pictures: six hours of three hosts, played within seconds.

The store's clock is shifted; everything else is as it is: claims, waits, grants and changes of limits.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from penstock import changes
from penstock.claim import Claim
from penstock.config import Concurrency
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.lease import Lease
from penstock.request import Request
from penstock.settings import Settings
from penstock.store.sql import SqlStore
from penstock.web.actions import set_limit

MINUTE = 60_000_000
LENGTH = 6 * 60 * MINUTE
LIMITS = {
    "pools": {
        "limits": {
            "warehouse": {"limit": 6, "description": "Queries at once, agreed with the data platform"},
            "api": {"limit": 2, "description": "The shop's rate limit"},
            "licence": {"limit": 1, "description": "One seat"},
            "mail": 4,
        }
    },
    "runs": {"max_concurrent_runs": 15, "tag_concurrency_limits": [{"key": "team", "value": "analytics", "limit": 2}]},
}
# Host, run, op, pools, tags, minutes from one to the next, minutes of work.
WORK: list[tuple[str, str, str, dict[str, int], dict[str, str], float, float]] = [
    ("airflow", "shop_orders", "load", {"warehouse": 1}, {}, 6.5, 17.0),
    ("airflow", "finance_close", "aggregate", {"warehouse": 2}, {"team": "finance"}, 19.0, 14.0),
    ("prefect", "stock-levels", "refresh", {"warehouse": 1}, {}, 11.0, 14.0),
    ("prefect", "stock-levels", "fetch_prices", {"api": 1}, {}, 7.0, 8.0),
    ("airflow", "shop_orders", "push_status", {"api": 1}, {}, 14.0, 9.0),
    ("process", "route-planner", "solve", {"licence": 1}, {"region": "north"}, 21.0, 16.0),
    ("airflow", "newsletter", "send", {"mail": 1}, {}, 30.0, 8.0),
]
PLACES = {"airflow": ("prod", "airflow-worker-2"), "prefect": ("flows", "flows-7c9d"), "process": ("cron", "batch-1")}


@dataclass
class Day:
    """What is under way at a moment of the day."""

    store: SqlStore
    engines: dict[str, Engine]
    events: list[tuple[int, int, Any]] = field(default_factory=list)
    pending: list[tuple[Request, int]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    chance: random.Random = field(default_factory=lambda: random.Random(20))

    def at(self, moment: int, what: Any) -> None:
        """Do it then."""
        heapq.heappush(self.events, (moment, next(self.numbers), what))

    def play(self) -> None:
        """Everything up to now."""
        while self.events and self.events[0][0] < LENGTH:
            moment, _, what = heapq.heappop(self.events)
            self.store.clock_shift = moment - LENGTH
            what(moment)
        self.store.clock_shift = 0

    def arrive(self, claim: Claim, minutes: float, moment: int) -> None:
        """A claim of an op that has so much to do."""
        request = self.engines[claim.host].request(claim)
        self.pending.append((request, int(minutes * MINUTE)))
        self.grant(moment, claim)

    def grant(self, moment: int, cause: Claim) -> None:
        """Let those begin that have been let in. Only those that want what the cause wants can have been."""
        still = []
        for request, length in self.pending:
            decision = request.step() if request.claim.pools.keys() & cause.pools.keys() else None
            if isinstance(decision, Granted):
                self.at(moment + length, lambda then, lease=decision.lease: self.end(lease, then))
            else:
                still.append((request, length))
        self.pending = still

    def end(self, lease: Lease, moment: int) -> None:
        """It has done its work."""
        self.engines[lease.claim.host].release(lease)
        self.grant(moment, lease.claim)


@contextmanager
def a_day(url: str) -> Iterator[None]:
    """The store at `url` is in the middle of a day's work while the block runs."""
    store = SqlStore(url)
    store.check_schema()
    settings = Settings(session_ttl_seconds=10 * 86400.0, sweep_seconds=3600.0)  # nothing is done but what is planned
    with ExitStack() as stack:
        engines = {}
        for host, (deployment, machine) in PLACES.items():
            engines[host] = Engine(store, host=host, deployment=deployment, settings=settings)
            with mock.patch("socket.gethostname", return_value=machine):
                engines[host].session_id()
        stack.callback(store.close)
        for engine in engines.values():
            stack.callback(engine.close)
        day = Day(store, engines)
        plan(day)
        with mock.patch("socket.gethostname", return_value="admin"):
            day.play()
        yield


def plan(day: Day) -> None:
    """Who comes when, and the limits that somebody changes meanwhile."""
    anyone = day.engines["process"]
    configured = Concurrency.model_validate(LIMITS)

    day.at(0, lambda _: changes.apply(anyone, configured, expected_version=0, by="deploy"))
    day.at(105 * MINUTE, lambda _: set_limit(anyone, "pool:warehouse", 8, by="ann"))
    day.at(LENGTH - 4 * MINUTE, lambda _: set_limit(anyone, "pool:warehouse", 6, by="ben"))
    for host, run, op, pools, tags, every, work in WORK:
        moment = day.chance.uniform(0, every)
        for number in itertools.count(1):
            moment += every * day.chance.uniform(0.4, 1.6)
            if moment * MINUTE >= LENGTH:
                break
            claim = day.engines[host].claim(
                pools,
                run_id=f"{run}/{number}",
                op_id=op,
                tags=tags,
                priority=1 if run == "finance_close" else 0,
                url=None if host == "process" else f"https://{host}.example/{run}/{number}/{op}",
            )
            # More is to be done in the middle of the day than at its begin.
            minutes = work * day.chance.uniform(0.5, 1.5) * (0.6 + 0.6 * moment * MINUTE / LENGTH)
            day.at(int(moment * MINUTE), lambda then, c=claim, m=minutes: day.arrive(c, m, then))
