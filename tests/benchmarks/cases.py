"""The cases that many clients measure together: room, several limits, contention, hand-over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median

from intervals import most_at_once

from benchmarks import floors, ours
from benchmarks.crew import Crew, Turn
from benchmarks.databases import Databases
from benchmarks.report import Bar, Row, percentile, ratio_of_turns

ROOM = 64
CONTENDED = 10


@dataclass(slots=True)
class Run:
    """What all cases share: how long to measure, where, and what the plots will show."""

    databases: Databases
    turns: int
    seconds: float
    growth_sizes: Sequence[int]
    growth_cycles: int
    most_clients: int
    peer_pythons: Mapping[str, str] = field(default_factory=dict)
    """Peer → the Python of its environment."""
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    """Clients, raw floor, SQLAlchemy floor, ours, in cycles a second."""
    hand_over_seconds: list[float] = field(default_factory=list)
    growth: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Case → how many there were, and the median time in seconds."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Neighbouring turns of the floors and of ours."""

    raw: list[Turn]
    sqlalchemy: list[Turn]
    ours: list[Turn]

    def rates(self, turns: Iterable[Turn]) -> list[float]:
        return [turn.rate for turn in turns]

    def row(self, case: str, bar: Bar | None, reach_for: Bar | None, *, note: str = "", violations: int = 0) -> Row:
        """The table's row: medians, and the medians of the ratios of neighbouring turns."""
        raw, sqlalchemy, mine = (self.rates(turns) for turns in (self.raw, self.sqlalchemy, self.ours))
        ratios = {"SA": ratio_of_turns(mine, sqlalchemy), "raw": ratio_of_turns(mine, raw)}
        return Row(
            case=case,
            raw=median(raw),
            sqlalchemy=median(sqlalchemy),
            ours=f"{median(mine):.0f}/s",
            ratio=", ".join(f"{ratio:.2f} {name}" for name, ratio in ratios.items()),
            bar=str(bar or ""),
            reach_for=str(reach_for or ""),
            met=None if bar is None else bar.met(ratios[bar.of]) and not violations,
            reached=None if reach_for is None else reach_for.met(ratios[reach_for.of]) and not violations,
            note=note,
            violations=violations,
            errors=tuple(error for turn in self.ours for error in turn.errors),
            figures={"ours": mine, "raw": raw, "sqlalchemy": sqlalchemy},
        )


def take_turns(run: Run, crew: Crew, url: str, mine: Callable[[], Turn]) -> Turns:
    """Raw floor, SQLAlchemy floor, ours, and again."""
    turns = Turns([], [], [])
    for _ in range(run.turns):
        turns.raw.append(crew.turn(floors.raw, run.seconds, url=url))
        turns.sqlalchemy.append(crew.turn(floors.sqlalchemy, run.seconds, url=url))
        turns.ours.append(mine())
    return turns


def room(store: str, clients: int, bar: Bar | None, reach_for: Bar | None, *, pools: int = 1) -> Callable[[Run], Row]:
    """Limits with more slots than clients: nobody ever waits."""
    names = [f"pool-{number}" for number in range(pools)]
    case = f"{store}, {'one limit' if pools == 1 else f'{pools} limits'}, {clients} client{'s' * (clients > 1)}"

    def measure(run: Run) -> Row:
        with run.databases.store(store, dict.fromkeys(names, ROOM)) as url, Crew(clients, preload=ours.PRELOAD) as crew:
            turns = take_turns(run, crew, url, lambda: crew.turn(ours.cycles, run.seconds, url=url, pools=names))
        row = turns.row(case, bar, reach_for)
        if store == "postgresql" and pools == 1:
            rates = row.figures
            run.curve.append((clients, *(median(rates[kind]) for kind in ("raw", "sqlalchemy", "ours"))))
        return row

    return measure


def sqlite_processes(clients: int, bar: Bar, reach_for: Bar) -> Callable[[Run], Row]:
    """Processes on one file, and whether any of them starves."""
    share = Bar(0.25, "of the mean")

    def measure(run: Run) -> Row:
        limits = {"pool": ROOM}
        with run.databases.store("sqlite", limits) as url, Crew(clients, preload=ours.PRELOAD) as crew:
            turns = take_turns(run, crew, url, lambda: crew.turn(ours.cycles, run.seconds, url=url, pools=["pool"]))
        slowest = median(min(turn.rates) / mean(turn.rates) for turn in turns.ours)
        floor = median(min(turn.rates) / mean(turn.rates) for turn in turns.raw)
        row = turns.row(f"sqlite, one limit, {clients} processes", bar, reach_for)
        note = f"slowest process {slowest:.0%} of the mean (raw floor {floor:.0%}), bar {share}"
        return replace(row, note=note, met=bool(row.met) and share.met(slowest))

    return measure


def contended(most_clients: int, bar: Bar, reach_for: Bar) -> Callable[[Run], Row]:
    """More clients than slots, each letting go at once; then a turn that holds a little, to see the limit kept."""

    def measure(run: Run) -> Row:
        clients, limits = min(most_clients, run.most_clients), {"pool": CONTENDED}
        with run.databases.store("postgresql", limits) as url, Crew(clients, preload=ours.PRELOAD) as crew:
            turns = take_turns(
                run, crew, url, lambda: crew.turn(ours.cycles, run.seconds, warm_up=1, url=url, pools=["pool"])
            )
            held = crew.turn(ours.holds, 2 * run.seconds, warm_up=1, url=url, pool="pool", hold_seconds=0.005)
        holds = [*itertools.chain.from_iterable(held.notes)]
        most = most_at_once((inside, left) for _, inside, left in holds)
        note = f"in {len(holds)} holds of 5 ms {most} at once at most"
        case = f"postgresql, limit {CONTENDED}, {clients} clients, hold 0"
        return turns.row(case, bar, reach_for, note=note, violations=max(0, most - CONTENDED))

    return measure


def hand_over(run: Run) -> Row:
    """From a holder's call of `release` to the first line of the next waiter's code."""
    clients, hold_seconds = 4, 0.02
    half, tail, reach_for = Bar(10, "ms p50", most=True), Bar(100, "ms p99", most=True), Bar(3, "ms p50", most=True)
    delays: list[float] = []
    errors: list[str] = []
    violations = 0
    with run.databases.store("postgresql", {"pool": 1}) as url, Crew(clients, preload=ours.PRELOAD) as crew:
        for _ in range(run.turns):
            turn = crew.turn(ours.holds, 2 * run.seconds, warm_up=1, url=url, pool="pool", hold_seconds=hold_seconds)
            errors += turn.errors
            holds = sorted(itertools.chain.from_iterable(turn.notes), key=lambda hold: hold[1])
            violations += most_at_once((inside, left) for _, inside, left in holds) > 1
            # Only where the next one had been waiting for a while: else its own way into the queue would count.
            delays += [
                after[1] - before[2] for before, after in itertools.pairwise(holds) if after[0] < before[2] - 0.01
            ]
    if not delays:
        return Row(case="postgresql, hand-over", note="no hand-over in the time given", errors=tuple(errors))
    run.hand_over_seconds += delays
    middle, p99 = (percentile(delays, percent) * 1000 for percent in (50, 99))
    return Row(
        case="postgresql, hand-over",
        ours=f"p50 {middle:.1f} ms, p99 {p99:.1f} ms",
        bar=f"{half}, {tail}",
        reach_for=str(reach_for),
        met=half.met(middle) and tail.met(p99) and not violations,
        reached=reach_for.met(middle) and not violations,
        note=f"{len(delays)} hand-overs among {clients} clients on a limit of 1",
        violations=violations,
        errors=tuple(errors),
        figures={"p50_ms": middle, "p99_ms": p99},
    )
