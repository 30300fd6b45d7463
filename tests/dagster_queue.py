"""Queues of runs: which of them Dagster's daemon starts, which our engine starts, and a model that says why.

The model is Dagster's order of things, each of its defects a switch: with all of them on it must choose as Dagster,
with none as we do. What the two choose differently is explained by the switches that make a difference there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.dagster_run import RunOpConcurrency
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from penstock import changes
from penstock.config import Concurrency
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.hooks import installed_plugins
from penstock.store.memory import MemoryStore
from situations import CALM, Runs

BATCH, BATCHES = 30, 5  # of each granularity
WIDE = 10_000
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository"), "job")
EACH = {"applyLimitPerUniqueValue": True}

FIRST_LOOK = "defect 2: the default limit is not enforced at the first look"
ZERO_IS_NONE = "defect 3: a default limit of 0 is none"
TAGS_USED_UP = "defect 4: runs barred by a pool use up tag limits"
BUFFER_RAISES = "defect 10: the run buffer raises the limit in run granularity"
DEFECTS = frozenset({FIRST_LOOK, ZERO_IS_NONE, TAGS_USED_UP, BUFFER_RAISES})


@dataclass(frozen=True)
class Run:
    """`ops`: the pool of each op with which it begins, None for an op without."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    ops: tuple[str | None, ...] = ()

    @property
    def pools(self) -> frozenset[str]:
        return frozenset(pool for pool in self.ops if pool is not None)


@dataclass(frozen=True)
class Situation:
    """The limits, the runs in progress and those that wait, in the order in which they came."""

    max_runs: int
    rules: tuple[dict[str, Any], ...]
    granularity: str
    default_limit: int | None
    limits: Mapping[str, int]
    buffer: int
    in_progress: tuple[Run, ...]
    queued: tuple[Run, ...]

    @property
    def block(self) -> dict[str, Any]:
        """As in a penstock.yaml."""
        pools: dict[str, Any] = {"granularity": self.granularity, "op_granularity_run_buffer": self.buffer}
        if self.default_limit is not None:
            pools["default_limit"] = self.default_limit
        runs = {"max_concurrent_runs": self.max_runs, "tag_concurrency_limits": list(self.rules)}
        return {"pools": pools | {"limits": dict(self.limits)}, "runs": runs}

    @property
    def waiting_in_order(self) -> list[Run]:
        return sorted(self.queued, key=lambda run: -run.priority)


def generated(seed: int, granularity: str) -> Situation:
    """A situation by chance."""
    choice = random.Random(seed)
    rules = {}
    for _ in range(choice.randrange(4)):
        key, value = choice.choice(["team", "db"]), choice.choice([None, "a", "b", EACH, EACH])
        rule = {"key": key, "limit": choice.choice([0, 1, 1, 2, 3])} | ({} if value is None else {"value": value})
        rules[key, str(value)] = rule
    limits = {name: choice.choice([0, 1, 1, 2, 3]) for name in "pqr" if choice.random() < 0.6}

    def run(name: str) -> Run:
        tags = {key: choice.choice("abc") for key in ("team", "db") if choice.random() < 0.5}
        ops = tuple(choice.choice(["p", "q", "r", "s", None]) for _ in range(choice.choice([0, 1, 1, 2, 3])))
        return Run(name, tags, choice.choice([0, 0, 0, 1, 3, -2]), ops)

    return Situation(
        max_runs=choice.choice([0, 1, 2, 3, 4, 6, 8] if granularity == "op" else [-1, 0, 1, 2, 3, 4, 6, 8]),
        rules=tuple(rules.values()),
        granularity=granularity,
        default_limit=choice.choice([None, None, 0, 1, 1, 2]),
        limits=limits,
        buffer=choice.choice([0, 0, 0, 1, 2]),
        in_progress=tuple(run(f"running {number}") for number in range(choice.randrange(4))),
        queued=tuple(run(f"queued {number}") for number in range(choice.randrange(3, 9))),
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def modelled(
    situation: Situation, defects: Collection[str], running: Collection[Run], queued: Collection[Run], known: set[str]
) -> list[str]:
    """The runs that are started, in order. `known`: pools on the default limit that were seen before."""
    held, tags = Counter[str](), Counter[tuple[int, str]]()
    for run in running:
        _take(situation, run, held, tags)
    started: list[str] = []
    for run in sorted(queued, key=lambda run: -run.priority):
        if situation.max_runs != -1 and len(running) + len(started) >= situation.max_runs:
            break
        if any(tags[place] >= rule["limit"] for rule, place in _matching(situation, run)):
            continue
        if _barred(situation, run, held, defects, known):
            if TAGS_USED_UP in defects:
                tags.update(place for _, place in _matching(situation, run))
            continue
        _take(situation, run, held, tags)
        started.append(run.name)
    return started


def _take(situation: Situation, run: Run, held: Counter[str], tags: Counter[tuple[int, str]]) -> None:
    held.update(run.pools if situation.granularity == "run" else [pool for pool in run.ops if pool is not None])
    tags.update(place for _, place in _matching(situation, run))


def _matching(situation: Situation, run: Run) -> Iterator[tuple[dict[str, Any], tuple[int, str]]]:
    """The rules for a run, and where each counts it."""
    for number, rule in enumerate(situation.rules):
        value = run.tags.get(rule["key"])
        if value is not None and rule.get("value", value) in (value, EACH):
            yield rule, (number, value if rule.get("value") == EACH else "")


def _barred(situation: Situation, run: Run, held: Counter[str], defects: Collection[str], known: set[str]) -> bool:
    def full(pool: str) -> bool:
        limit = situation.limits.get(pool, situation.default_limit)
        if limit is None:
            return False
        if pool not in situation.limits:
            if limit == 0 and ZERO_IS_NONE in defects:
                return False
            if pool not in known and FIRST_LOOK in defects:
                return False
        counts = situation.granularity == "op" or BUFFER_RAISES in defects
        return limit - held[pool] + (situation.buffer if counts else 0) <= 0

    if situation.granularity == "run":
        return any(full(pool) for pool in run.pools)
    return bool(run.ops) and None not in run.ops and all(full(pool) for pool in run.pools)


# -- Dagster -----------------------------------------------------------------------------------------------------------


class Theirs:
    """Dagster's own queue on an instance in memory."""

    def __init__(self, situation: Situation, instance: DagsterInstance) -> None:
        self._situation, self._instance = situation, emptied(instance, situation)
        self._daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
        self.running = {run.name: run for run in situation.in_progress}
        self.queued = {run.name: run for run in situation.queued}
        for name, limit in situation.limits.items():
            instance.event_log_storage.set_concurrency_slots(name, limit)
        for run in situation.in_progress:
            self._put(run, DagsterRunStatus.STARTING)
        for run in situation.queued:
            self._put(run, DagsterRunStatus.QUEUED)

    def _put(self, run: Run, status: DagsterRunStatus) -> None:
        pools = RunOpConcurrency(
            root_key_counts=dict(Counter(pool for pool in run.ops if pool is not None)),
            has_unconstrained_root_nodes=None in run.ops,
            all_pools=set(run.pools),
        )
        tags = {**run.tags, "dagster/priority": str(run.priority)}
        self._instance.run_storage.add_run(
            DagsterRun(
                job_name="job",
                run_id=run.name,
                status=status,
                tags=tags,
                run_op_concurrency=pools if run.pools else None,
                remote_job_origin=ORIGIN,
            )
        )

    @property
    def known(self) -> set[str]:
        """The pools that have a limit in its database."""
        return {limit.name for limit in self._instance.event_log_storage.get_pool_limits()}

    def choose(self) -> list[str]:
        """One look of the daemon: what it would launch, which starts then."""
        config = self._instance.get_concurrency_config()
        chosen = [
            run.run_id for run in self._daemon._get_runs_to_dequeue(self._instance, config, fixed_iteration_time=None)
        ]
        for name in chosen:
            self.end(name)
            self.running[name] = self.queued.pop(name)
            self._put(self.running[name], DagsterRunStatus.STARTING)
        return chosen

    def end(self, name: str) -> None:
        self._instance.run_storage.delete_run(name)
        self.running.pop(name, None)


def emptied(instance: DagsterInstance, situation: Situation) -> DagsterInstance:
    """The instance without runs and limits, under the situation's settings: to make one takes half a second."""
    instance.run_storage.wipe()
    for name in instance.event_log_storage.get_concurrency_keys():
        instance.event_log_storage.delete_concurrency_limit(name)
    for limit in instance.event_log_storage.get_pool_limits():
        instance.event_log_storage.delete_concurrency_limit(limit.name)
    block = {key: value for key, value in situation.block["pools"].items() if key != "limits"}
    instance._settings = {"concurrency": {"pools": block, "runs": situation.block["runs"]}}
    instance._run_coordinator = QueuedRunCoordinator()
    return instance


# -- ours --------------------------------------------------------------------------------------------------------------


class Ours:
    """The engine on the store in memory, in which the same situation stands."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        # Each look at the pools is a fresh one.
        self._engine = Engine(MemoryStore(), plugins=installed_plugins(), settings=replace(CALM, poll_max_seconds=0.0))
        self._runs = Runs(self._engine)
        self.running = {run.name: run for run in situation.in_progress}
        self.queued = {run.name: run for run in situation.queued}
        # Those in progress have started when there was room; then nothing has any until the others wait.
        self._configure(self._wide(len(situation.in_progress)))
        for run in situation.in_progress:
            self._come(run)
            assert self._begin(run)
        if situation.granularity == "run":
            for run in situation.queued:
                self._come(run)
                assert not self._begin(run)

    def _wide(self, runs: int) -> dict[str, Any]:
        rules = [rule | {"limit": WIDE} for rule in self._situation.rules]
        pools = {"granularity": self._situation.granularity, "limits": dict.fromkeys("pqrs", WIDE)}
        return {"pools": pools, "runs": {"max_concurrent_runs": runs, "tag_concurrency_limits": rules}}

    def _configure(self, block: dict[str, Any]) -> None:
        version, _ = self._engine.configuration(fresh=True)
        changes.apply(self._engine, Concurrency.model_validate(block), expected_version=version)

    def _come(self, run: Run) -> None:
        """The run takes its place in the queue."""
        pools = sorted(run.pools) if self._situation.granularity == "run" else []
        claim = self._engine.run_claim(run.name, *pools, tags=run.tags, priority=run.priority)
        if self._situation.granularity == "op" and run.ops and None not in run.ops:
            claim = replace(claim, roots=tuple((str(pool),) for pool in run.ops))
        self._runs.requests[run.name] = self._engine.request(claim)

    def _begin(self, run: Run) -> bool:
        """Whether it has its slots; the ops with which it begins then claim theirs."""
        decision = self._runs.requests[run.name].step()
        if not isinstance(decision, Granted):
            return False
        self._runs.leases[run.name] = decision.lease
        if self._situation.granularity == "op":
            for number, pool in enumerate(run.ops):
                if pool is not None:
                    claim = self._engine.claim(pool, run_id=run.name, op_id=str(number), in_run=True)
                    self._engine.request(claim).step()
        return True

    def choose(self) -> list[str]:
        """Put the limits in force (again), and see who starts."""
        self._configure(self._situation.block)
        waiting = sorted(self.queued.values(), key=lambda run: -run.priority)
        if self._situation.granularity == "op":
            # Each comes when the one before it has begun: who is held back has no place, and so no rank.
            for run in waiting:
                self._come(run)
                self._begin(run)
            started = [run.name for run in waiting if run.name in self._runs.leases]
        else:
            self._runs.look()  # everybody hears of the limits that are new,
            self._runs.look()  # and takes what is granted once all have
            started = [run.name for run in waiting if run.name in self._runs.leases]
        for name in started:
            self.running[name] = self.queued.pop(name)
        return started

    def end(self, name: str) -> None:
        self._runs.end(name)
        del self.running[name]

    def close(self) -> None:
        self._engine._session.close()
