"""Dagster's run-queue daemon and our rules choose the same runs, but where a listed defect of Dagster explains it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from dagster import DagsterInstance
from dagster_queue import BATCH, BATCHES, DEFECTS, Ours, Situation, Theirs, generated, modelled

ROUNDS = 4


@pytest.fixture(scope="module")
def instance() -> Iterator[DagsterInstance]:
    """Dagster with its runs and limits in memory."""
    with DagsterInstance.ephemeral() as made:
        yield made


def _compared(
    instance: DagsterInstance, situation: Situation, rounds: int, choice: random.Random
) -> tuple[bool, set[str]]:
    """Whether all rounds were alike, and the defects that explain where they were not."""
    explained: set[str] = set()
    alike = True
    they = Theirs(situation, instance)
    with closing(Ours(situation)) as we:
        for _ in range(rounds):
            known, running, queued = they.known, list(they.running.values()), list(they.queued.values())
            chosen = they.choose()
            assert chosen == modelled(situation, DEFECTS, running, queued, known), "the model of Dagster is wrong"
            expected = modelled(situation, (), list(we.running.values()), list(we.queued.values()), set())
            started = we.choose()
            assert started == expected, (situation, chosen)
            if set(chosen) != set(started):
                found = {
                    defect
                    for defect in DEFECTS
                    if modelled(situation, DEFECTS - {defect}, running, queued, known) != chosen
                    or modelled(situation, {defect}, running, queued, known)
                    != modelled(situation, (), running, queued, known)
                }
                assert found or not alike, (situation, chosen, started)
                explained |= found
                alike = False
            both = sorted(they.running.keys() & we.running.keys())
            # One: who fits is granted at once here, while Dagster looks at all that ended meanwhile.
            for name in choice.sample(both, min(len(both), 1)):
                they.end(name)
                we.end(name)
    return alike, explained


@pytest.mark.parametrize("batch", range(BATCHES))
def test_pools_of_run_granularity_tags_priorities_and_the_run_total(instance: DagsterInstance, batch: int) -> None:
    """Four looks at each queue; between them a run in progress ends."""
    _judge(instance, "run", batch, ROUNDS)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_pools_of_op_granularity_hold_runs_back(instance: DagsterInstance, batch: int) -> None:
    _judge(instance, "op", batch, 1)


def _judge(instance: DagsterInstance, granularity: str, batch: int, rounds: int) -> None:
    reasons: Counter[str] = Counter()
    same = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        alike, explained = _compared(instance, generated(seed, granularity), rounds, random.Random(seed))
        same += alike
        reasons.update(explained)
    print(f"{granularity} granularity: {same} of {BATCH} alike, else {dict(reasons)}")
    assert same >= BATCH // 3, "so many differences leave nothing to compare"
    assert reasons, "so few leave the explanations untried"
