"""Ending leases and withdrawing waiters from outside: what an operator does when a holder will not."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from penstock.changes import who
from penstock.claim import Claim, ClaimKind
from penstock.errors import Ambiguous
from penstock.explain import find, run_name
from penstock.forecast import may_start
from penstock.report import lasting, listed, named
from penstock.rules import Demand
from penstock.store.contract import ClaimRow, ClaimState, Snapshot

if TYPE_CHECKING:
    from penstock.engine import Engine


MOST_NAMED = 10


def chosen(snapshot: Snapshot, identifier: str | None, run: str | None) -> list[ClaimRow]:
    """All that an id names, in the order in which it is to end; with `run`, within that run alone.

    Empty when nothing matches. Raises Ambiguous where a run id, or an op's, is in use in several runs.
    """
    rows = list(snapshot.claims)
    if run is not None:
        rows = _one_run([row for row in rows if run in (row.claim.run_id, run_name(row))], run)
    if identifier is not None:
        named = {row.claim.claim_id for row in find(snapshot, identifier)[1]}
        rows = _one_run([row for row in rows if row.claim.claim_id in named], identifier)
    return sorted(rows, key=_order)


def starting_then(snapshot: Snapshot, gone: Collection[ClaimRow]) -> list[ClaimRow]:
    """The waiters that have room when those are gone."""
    limits = {row.key: row for row in snapshot.limits}
    wants = {row.claim.claim_id: row.wants for row in snapshot.claims}

    def resolve(claim: Claim) -> list[Demand]:
        mine = wants[claim.claim_id].items()
        return [Demand(key, slots, limits[key].capacity, limits[key].source) for key, slots in mine if key in limits]

    return may_start(snapshot, resolve, without={row.claim.claim_id for row in gone})


def foretold(rows: Sequence[ClaimRow], starting: Sequence[ClaimRow], now: int) -> list[str]:
    """What freeing these does, line by line; `starting` have room then. `now` in µs."""
    lines = [f"{named(row.claim)}: {_does(row, now)}" for row in rows[:MOST_NAMED]]
    if len(rows) > MOST_NAMED:
        lines.append(f"and {len(rows) - MOST_NAMED} more")
    if any(row.slots for row in rows):
        lines.append("What holds is not stopped by this: it goes on without its slots, so end it first.")
    if starting:
        lines.append(f"may start then: {listed([named(row.claim) for row in starting])}")
    return lines


def _does(row: ClaimRow, now: int) -> str:
    if (held := row.held_seconds(now)) is None:
        return f"{row.state.value} for {lasting((now - row.enqueued_at) / 1_000_000)}"
    counts = Counter(slot.limit for slot in row.slots)
    slots = ", ".join(key if count == 1 else f"{count} of {key}" for key, count in sorted(counts.items()))
    return f"holds {slots or 'no limit'} for {lasting(held)}"


def free(engine: Engine, rows: Sequence[ClaimRow], *, by: str | None = None) -> list[ClaimRow]:
    """End these claims, whoever holds them; those that had not ended by themselves.

    The history says who did it: `by`, else the user of this process.
    """
    reason = f"freed by {who() if by is None else by} on {socket.gethostname()}"
    return [row for row in rows if engine.store.end(row.claim.claim_id, reason=reason)]


def _one_run(rows: list[ClaimRow], name: str) -> list[ClaimRow]:
    exact = [row for row in rows if name == run_name(row)]
    rows = exact or rows
    runs = sorted({run_name(row) for row in rows})
    if len(runs) > 1:
        some = ", ".join(runs[:MOST_NAMED]) + (" …" if len(runs) > MOST_NAMED else "")
        raise Ambiguous(f"{name!r} is in use in {len(runs)} runs: {some}; name one with --run, or give a claim's id")
    return rows


def _order(row: ClaimRow) -> tuple[bool, bool, int, str]:
    """Waiters first, so that none is granted what the others give back; a run after its ops."""
    holds = row.state in (ClaimState.GRANTED, ClaimState.HELD)
    return holds, row.claim.kind is not ClaimKind.OP, row.enqueued_at, row.claim.claim_id
