"""Anything in any order: the oracle and each SQL store, step by step, under one clock (see `twins`).

`PENSTOCK_TEST_EXAMPLES=1000 pytest tests/core/test_state_machine.py` runs so many on each database, others each time;
without it they are few and always the same.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from penstock.claim import Claim, ClaimKind
from penstock.rules import Demand, Source
from penstock.store.contract import ClaimState, Mode, Owner, Result, Session
from standing import StandingStores, standing_stores
from twins import Twins

EXAMPLES = int(os.environ.get("PENSTOCK_TEST_EXAMPLES", "0"))
STEPS = 45
SECOND = 1_000_000
POOLS = ["pool:a", "pool:b", "pool:c"]
RULES = ["runs", "run_tag:k", "run_ops:r"]
# Past the time to acknowledge, past TTL and grace, past a step of priority, in and out of a reservation, past ageing,
# past the tombstones.
LEAPS = [2_100_000, 301 * SECOND, 34 * SECOND, 60 * SECOND, 61 * SECOND, 10 * SECOND, 700 * SECOND, 700_000, 1]
RARE = ["restart", "forget", "prune", "end", "release before acquire"]

picks = st.integers(0, 15)
capacities = st.one_of(st.none(), st.integers(0, 3))
# Most ask for a slot of the first pool, so that there is something to wait for.
pool_sets = [["pool:a"], ["pool:a"], ["pool:b"], ["pool:a", "pool:b"], ["pool:c"], POOLS]
wanted_pools = st.sampled_from(pool_sets).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.sampled_from([1, 1, 1, 2, 3]) for key in keys})
)
wanted_rules = st.sampled_from([{}, {}, {"runs": 1}, {"run_tag:k": 1}, {"runs": 1, "run_ops:r": 1}])
wanted = st.builds(lambda pools, rules: {**pools, **rules}, wanted_pools, wanted_rules)
begun = st.fixed_dictionaries(
    {"pool:a": st.integers(1, 3)},
    optional={"pool:b": st.integers(0, 3), "runs": st.integers(1, 3), "run_tag:k": st.integers(0, 2)},
)
modes = st.sampled_from([Mode.WAIT, Mode.WAIT, Mode.WAIT, Mode.TRY, Mode.SKIP, Mode.OBSERVE])
priorities = st.sampled_from([0, 0, 0, 1, -1, 5, 100])
eligibles = st.sampled_from([0.0, 0.0, 0.0, 30.0])


@dataclass(frozen=True)
class Asked:
    """A claim that was made, and for what."""

    claim: Claim
    wants: dict[str, int]
    owner: Owner


class StoreMachine(RuleBasedStateMachine):
    """One example: some processes, their claims, and somebody who changes limits."""

    stores: StandingStores
    steps = examples = 0

    def __init__(self) -> None:
        super().__init__()
        self.twins = Twins(self.stores.empty())
        self.version = 0
        self.explicit: dict[str, int | None] = {}
        self.default: int | None = None
        self.asked: dict[str, Asked] = {}
        self.sessions: list[str] = []
        self.count = 0
        self.observing = False
        type(self).examples += 1

    # -- what is drawn -----------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        self.count += 1
        return str(uuid.uuid5(uuid.NAMESPACE_OID, str(self.count)))

    def demands(self, wants: dict[str, int]) -> list[Demand]:
        return [Demand(key, slots, *self.resolved(key)) for key, slots in wants.items()]

    def resolved(self, key: str) -> tuple[int | None, Source]:
        if key in self.explicit:
            return self.explicit[key], Source.EXPLICIT if key in POOLS else Source.RULE
        if key in POOLS and self.default is not None:
            return self.default, Source.DEFAULT
        return None, Source.NONE

    def session(self, pick: int) -> str:
        return self.sessions[pick % len(self.sessions)]

    def one(self, pick: int) -> Asked | None:
        """One of those that live, or of the last that were made."""
        live = [row.claim.claim_id for row in self.twins.oracle.snapshot().claims]
        known = [*live, *list(self.asked)[-3:]]
        return self.asked.get(known[pick % len(known)]) if known else None

    @invariant()
    def alike(self) -> None:
        """After each step."""
        type(self).steps += 1
        self.twins.compare(observing=self.observing)
        self.observing = False

    @rule(what=st.sampled_from(RARE), pick=picks, by=picks, wants=wanted)
    def rarely(self, what: str, pick: int, by: int, wants: dict[str, int]) -> None:
        """What would be too much of it, were it as frequent as the rest."""
        match what:
            case "restart":
                self.restart(pick)
            case "forget":
                self.forget(pick, by)
            case "prune":
                self.prune(LEAPS[pick % len(LEAPS)], LEAPS[by % len(LEAPS)])
            case "end":
                self.end(pick)
            case "release before acquire":
                self.release_before_acquire(wants, pick)

    # -- processes ---------------------------------------------------------------------------------------------------

    @initialize(limits=begun, default=st.one_of(st.none(), st.integers(0, 2)), crowd=st.lists(wanted, max_size=6))
    def begin(self, limits: dict[str, int | None], default: int | None, crowd: list[dict[str, int]]) -> None:
        for _ in range(3):
            self.open_session()
        self.put(limits, default)
        for number, wants in enumerate(crowd):
            claim = Claim(kind=ClaimKind.OP, host="process", deployment="d", claim_id=self.new_id())
            self.acquire(Asked(claim, wants, Owner(self.session(number))), Mode.WAIT)

    def open_session(self) -> None:
        session = Session(self.new_id(), "process", "d", 1, "h", 30.0)
        self.twins.both(lambda store: store.open_session(session))
        self.sessions.append(session.session_id)

    def restart(self, pick: int) -> None:
        """A process closes its session, or was dead before, and another one comes; now and then it knows the old id."""
        session_id = self.session(pick)
        self.twins.both(lambda store: store.close_session(session_id))
        if pick < 12:
            self.sessions.remove(session_id)
            self.open_session()

    def forget(self, pick: int, forgotten: int) -> None:
        """A beat of a process that does not know a claim of its session any more."""
        session_id, asked = self.session(pick), self.one(forgotten)
        known = self.asked.keys() - ({asked.claim.claim_id} if asked is not None else set())
        self.twins.both(lambda store: store.beat(session_id, lambda: known))

    @rule(leap=st.sampled_from(LEAPS), dies=st.integers(0, 9), sweeping=st.integers(0, 3).map(bool))
    def time_passes(self, leap: int, dies: int, sweeping: bool) -> None:
        """All beat at the end of it, but one that may have died."""
        self.twins.shift(leap)
        for number, session_id in enumerate(self.sessions):
            if number != dies:
                self.twins.both(methodcaller("beat", session_id, self.asked.keys))
        if sweeping:
            self.sweep()

    def sweep(self) -> None:
        def reaped(store: Any) -> Any:
            swept = store.sweep()
            return swept.settled, sorted(
                (one.claim.claim_id, one.claim.kind, one.held_seconds) for one in swept.expired
            )

        settled, _ = self.twins.both(reaped)
        if not settled:  # who changed the limits did not come to the end
            self.settle(POOLS + RULES)

    def prune(self, history: int, idle: int) -> None:
        now = self.twins.oracle.snapshot_time()
        self.twins.prune(now - history, now - idle)

    # -- claims ------------------------------------------------------------------------------------------------------

    def acquire(self, asked: Asked, mode: Mode, *, eligible: float = 0.0, late: bool = False) -> None:
        self.asked[asked.claim.claim_id] = asked
        self.twins.shift(1)  # no two come at the same microsecond: who is first then is anybody's guess
        demands, version = self.demands(asked.wants), self.version - late
        outcome = self.twins.both(
            lambda store: store.acquire(
                asked.claim, demands, version=version, owner=asked.owner, mode=mode, eligible_after_seconds=eligible
            )
        )
        self.observing = mode is Mode.OBSERVE
        if outcome.result is Result.WAITING:
            self.twins.compare_reasons(outcome.claim_id)
        if outcome.result is Result.NO_ROOM:
            self.twins.both(lambda store: list(map(str, store.reasons_against(asked.wants))))

    @rule(wants=wanted, mode=modes, priority=priorities, pick=picks, under=picks, ticket=st.booleans(), late=picks)
    def claim(
        self, wants: dict[str, int], mode: Mode, priority: int, pick: int, under: int, ticket: bool, late: int
    ) -> None:
        """A block of slots that nobody else can name, now and then within another."""
        parent = self.one(under) if under % 3 == 0 else None
        claim = Claim(
            kind=ClaimKind.OP,
            host="process",
            deployment="d",
            priority=priority,
            parent_id=parent.claim.claim_id if parent is not None else None,
            claim_id=self.new_id(),
        )
        owner = Owner(None, ticket_seconds=90.0) if ticket and pick % 2 else Owner(self.session(pick))
        self.acquire(Asked(claim, wants, owner), mode, late=late == 7 and self.version > 0)

    @rule(wants=wanted, mode=modes, op=st.integers(1, 2), attempt=st.integers(1, 2), pick=picks, eligible=eligibles)
    def claim_step(self, wants: dict[str, int], mode: Mode, op: int, attempt: int, pick: int, eligible: float) -> None:
        """A step of a run: another process may come with the same one."""
        claim = Claim(
            kind=ClaimKind.OP,
            host="airflow",
            deployment="d",
            run_id="r",
            op_id=f"op{op}",
            attempt=attempt,
            claim_id=self.new_id(),
        )
        owner = Owner(None, ticket_seconds=40.0) if pick % 4 == 0 else Owner(self.session(pick))
        self.acquire(Asked(claim, wants, owner), mode, eligible=eligible if mode is Mode.WAIT else 0.0)

    @rule(wants=wanted, mode=modes, run=st.integers(1, 3), priority=priorities, pick=picks, probed=st.booleans())
    def claim_run(self, wants: dict[str, int], mode: Mode, run: int, priority: int, pick: int, probed: bool) -> None:
        """A run, which several processes share, or for which the host answers."""
        claim = Claim(
            kind=ClaimKind.RUN,
            host="process",
            deployment="d",
            run_id=f"r{run}",
            priority=priority,
            claim_id=self.new_id(),
        )
        owner = Owner(self.session(pick), probe_seconds=600.0 if probed and run == 3 else None)
        self.acquire(Asked(claim, wants, owner), mode)

    @rule(pool=st.sampled_from(POOLS), slots=st.integers(1, 2), mode=modes, run=st.integers(1, 3), pick=picks)
    def claim_late_pool(self, pool: str, slots: int, mode: Mode, run: int, pick: int) -> None:
        """A run takes a pool when one of its steps names it."""
        lease = self.twins.both(lambda store: store.run_lease(f"run:process/d/r{run}"))
        if lease is None:
            return
        claim = Claim(
            kind=ClaimKind.RUN_POOL,
            host="process",
            deployment="d",
            run_id=f"r{run}",
            pools={pool.removeprefix("pool:"): slots},
            parent_id=lease.claim_id,
            claim_id=self.new_id(),
        )
        mode = Mode.TRY if mode is Mode.SKIP else mode
        self.acquire(Asked(claim, {pool: slots}, Owner(self.session(pick))), mode)

    @rule(pick=picks, mode=modes)
    def acquire_again(self, pick: int, mode: Mode) -> None:
        """The answer was lost: the same once more, whatever became of it."""
        if asked := self.one(pick):
            self.acquire(asked, mode)

    @rule(pick=picks, by=picks, late=picks)
    def touch(self, pick: int, by: int, late: int) -> None:
        """Its own process speaks up for it, or another, or one that only leaves a ticket."""
        if (asked := self.one(pick)) is None:
            return
        owner = asked.owner
        if by % 4 == 1:
            owner = replace(owner, session_id=self.session(by))
        elif by % 4 == 2:
            owner = Owner(None, ticket_seconds=50.0, probe_seconds=500.0 if by == 6 else None)
        demands, version = self.demands(asked.wants), self.version - (late == 7 and self.version > 0)
        claim_id = asked.claim.claim_id
        self.twins.both(lambda store: store.touch(claim_id, demands, version=version, owner=owner))

    @rule()
    def touch_all(self) -> None:
        """What every waiting process does: it asks for which of its waiters it has to speak up, and does."""
        ids = [row.claim.claim_id for row in self.twins.oracle.snapshot().claims]
        due = self.twins.both(lambda store: store.to_touch(ids)) if ids else set()
        for claim_id in sorted(due):
            asked = self.asked[claim_id]
            demands = self.demands(asked.wants)
            self.twins.both(lambda store: store.touch(claim_id, demands, version=self.version, owner=asked.owner))  # noqa: B023

    @rule()
    def release_oldest(self) -> None:
        """Who has held for longest is ready."""
        held = [row for row in self.twins.oracle.snapshot().claims if row.state is ClaimState.HELD]
        if held and (asked := self.asked.get(min(held, key=lambda row: row.granted_at or 0).claim.claim_id)):
            self.twins.both(methodcaller("release", asked.claim.claim_id, asked.owner.session_id))

    @rule(pick=picks, by=picks)
    def release(self, pick: int, by: int) -> None:
        """By its own process, or by another one."""
        if (asked := self.one(pick)) is None:
            return
        session_id = asked.owner.session_id if by % 4 else self.session(by)
        self.twins.both(lambda store: store.release(asked.claim.claim_id, session_id))

    def release_before_acquire(self, wants: dict[str, int], pick: int) -> None:
        """The release overtakes the acquire: that must never be granted."""
        claim = Claim(kind=ClaimKind.OP, host="process", deployment="d", claim_id=self.new_id())
        asked = Asked(claim, wants, Owner(self.session(pick)))
        self.twins.both(lambda store: store.release(claim.claim_id, asked.owner.session_id))
        self.acquire(asked, Mode.WAIT)

    @rule(pick=picks, by=picks, eligible=eligibles)
    def hand_over(self, pick: int, by: int, eligible: float) -> None:
        if (asked := self.one(pick)) is None:
            return
        session_id = asked.owner.session_id if by % 4 else None
        session_id = session_id or self.session(by)
        self.twins.both(
            lambda store: store.hand_over(
                asked.claim.claim_id, session_id, ticket_seconds=45.0, eligible_after_seconds=eligible
            )
        )

    def end(self, pick: int) -> None:
        if asked := self.one(pick):
            self.twins.both(lambda store: store.end(asked.claim.claim_id, reason="by force"))

    # -- limits ------------------------------------------------------------------------------------------------------

    def put(self, explicit: dict[str, int | None], default: int | None, *, settling: bool = True) -> None:
        before = {key: self.resolved(key) for key in POOLS + RULES}
        self.explicit, self.default = dict(explicit), default
        self.version = self.twins.both(
            lambda store: store.configure({}, expected_version=self.version, by="me", origin="here")
        )
        if settling:
            self.settle([key for key, was in before.items() if self.resolved(key) != was])

    @rule(key=st.sampled_from([*POOLS, *RULES, "default"]), capacity=capacities, settling=picks)
    def set_limit(self, key: str, capacity: int | None, settling: int) -> None:
        """Grow, shrink, delete, create again; now and then who does it dies before the limits are settled."""
        if key == "default":
            return self.put(self.explicit, capacity)
        explicit = {**self.explicit, key: capacity}
        if capacity is None:
            del explicit[key]
        return self.put(explicit, self.default, settling=settling != 7)

    def settle(self, keys: list[str]) -> None:
        for key in keys:
            capacity, source = self.resolved(key)
            self.twins.both(lambda store: store.settle(key, capacity, source, version=self.version))  # noqa: B023
        self.twins.both(lambda store: store.settled(self.version))

    def teardown(self) -> None:
        self.twins.finish()


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingStores]:
    """Of one kind after the other."""

    def server_url(kind: str) -> str:
        url: str = request.getfixturevalue("postgresql_url" if kind == "postgresql" else "mysql_url")
        return url

    with standing_stores(request.param, server_url, tmp_path_factory.mktemp(request.param)) as stores:
        yield stores


@pytest.mark.timeout(0 if EXAMPLES else 900)
@pytest.mark.parametrize("stores", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_the_oracle_and_the_store_agree(
    stores: StandingStores, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    class Machine(StoreMachine):
        pass

    Machine.stores = stores
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 120,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        print(f"\n{request.node.name}: {Machine.examples} examples, {Machine.steps} steps")
