"""Admission where one statement cannot do it: the same steps for SQLite, MariaDB and MySQL, on the driver's cursor.

SQLite has the database to itself from BEGIN IMMEDIATE on. MariaDB and MySQL lock the slots that they pick, and pass
over those that somebody else has locked, so nothing here waits for a holder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from penstock.decision import HeldSlot
from penstock.rules import Demand
from penstock.store.asking import AGED, OVERFLOW, Answer, Ask, held_slots, joins
from penstock.store.contract import ClaimState
from penstock.store.digests import digest
from penstock.store.reading import label_of
from penstock.store.writing import Cursor

FACTS = """
SELECT m.configuration_version, :owner_id IS NULL OR EXISTS (SELECT 1 FROM penstock_session WHERE id = :owner_id),
    {now}, l.digest, l.id, l.capacity,
    EXISTS (SELECT 1 FROM penstock_waiter w WHERE w.limit_id = l.id AND w.`rank` <= {now} - :boost)
    OR EXISTS (SELECT 1 FROM penstock_waiter w WHERE w.limit_id = l.id AND w.enqueued_at < {now} - :aged)
FROM penstock_meta m LEFT JOIN penstock_limit l ON l.digest IN ({ids})
"""
STILL_UNLIMITED = "SELECT id FROM penstock_limit WHERE id = :limit_id AND capacity IS NULL{share}"
PICK = """
SELECT n FROM penstock_slot WHERE limit_id = :limit_id AND claim_id IS NULL AND usable ORDER BY n LIMIT :slots{skip}
"""
CLAIM_COLUMNS = (  # noqa: SIM905  # as a list it would be thirty lines
    "id live_holder kind host deployment run_id op_id attempt in_run pools tags priority url demands version parent_id"
    " within name rank enqueued_at eligible_at state liveness session_id deadline granted_at acknowledged_at"
).split()
CLAIM = (
    f"INSERT INTO penstock_claim ({', '.join(f'`{name}`' for name in CLAIM_COLUMNS)})"
    f" VALUES ({', '.join(f':{name}' for name in CLAIM_COLUMNS)})"
)
GRANTED = """
INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, waited)
VALUES (:enqueued_at, 'granted', :id, :host, :deployment, :label, :demands, 0)
"""
MARK = "UPDATE penstock_slot SET claim_id = :id, epoch = :epoch WHERE limit_id = :limit_id AND n = :n"
OVER = "INSERT INTO penstock_slot (limit_id, n, claim_id, epoch, usable) VALUES (:limit_id, :n, :id, :epoch, 0)"
QUEUE = """
INSERT INTO penstock_waiter (limit_id, `rank`, claim_id, slots, enqueued_at)
VALUES (:limit_id, :rank, :id, :slots, :enqueued_at)
"""
JOIN = "INSERT INTO penstock_member (claim_id, session_id) VALUES (:id, :owner_id)"

ACKNOWLEDGE = """
UPDATE penstock_claim SET state = 'held', acknowledged_at = {now}
WHERE id = :id AND session_id = :session_id AND state = 'granted' AND kind = 'op'
"""
SLOTS = """
SELECT l.`key`, s.n, s.epoch FROM penstock_slot s JOIN penstock_limit l ON l.id = s.limit_id WHERE s.claim_id = :id
"""
HELD = """
SELECT {now}, granted_at, demands, host, deployment, run_id, op_id, name FROM penstock_claim
WHERE id = :id AND session_id = :session_id AND state = 'held' AND kind = 'op'{update}
"""
END = """
UPDATE penstock_claim SET state = 'ended', live_holder = NULL, session_id = NULL, deadline = NULL, ended_at = :now,
    outcome = 'released' WHERE id = :id
"""
FREE = "UPDATE penstock_slot SET claim_id = NULL WHERE claim_id = :id AND usable"
DROP = "DELETE FROM penstock_slot WHERE claim_id = :id"
RELEASED = """
INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, held)
VALUES (:now, 'released', :id, :host, :deployment, :label, :demands, :held)
"""


Settled = list[tuple[Demand, int]]
"""Each demand with the id of its limit."""
Picked = dict[int, list[int]]
"""Limit id → the numbers of its slots that are to be taken; limits without capacity are not in it."""
Write = Callable[[Cursor, Ask, dict[str, Any], Settled, Picked | None], Answer]


def acquire(cursor: Cursor, ask: Ask, write: Write) -> Answer:
    """Admit the claim, queue it, or leave nothing; `write` does so when it has been decided which.

    The caller commits when a state comes back, else rolls back.
    """
    values = ask.parameters() | {"aged": AGED}
    rows = cursor(FACTS, values, [digest(demand.key) for demand in ask.demands]).fetchall()
    version, alive, now = rows[0][:3]
    found = {row[3]: row for row in rows if row[3] is not None}
    limits = [(demand, found.get(digest(demand.key))) for demand in ask.demands]
    settled = [(demand, row[4]) for demand, row in limits if row is not None and row[5] == demand.capacity]
    settled = [(demand, limit_id) for demand, limit_id in settled if _still(cursor, demand, limit_id)]
    answer = Answer(version, bool(alive), len(settled), None)
    if version != ask.version or not alive or len(settled) != len(ask.demands):
        return answer
    queued_ahead = any(row[6] for row in found.values())
    picked = None if queued_ahead or ask.eligible_after else _pick(cursor, settled)
    if picked is None and not ask.wait:
        return answer
    values |= _written_claim(ask, values, int(now), held=picked is not None)
    try:
        return write(cursor, ask, values, settled, picked)
    except Exception as error:
        if cursor.syntax.is_duplicate(error):
            return answer
        raise


def write(cursor: Cursor, ask: Ask, values: dict[str, Any], settled: Settled, picked: Picked | None) -> Answer:
    """Write the claim with the slots that were picked for it, or with its places in the queues."""
    cursor(CLAIM, values)
    if joins(ask.claim.kind, ask.owner):
        cursor(JOIN, values)
    if picked is None:
        for demand, limit_id in settled:
            cursor(QUEUE, values | {"limit_id": limit_id, "slots": demand.slots})
        return Answer(ask.version, True, len(settled), ClaimState.WAITING)
    epoch = int(cursor(GRANTED, values).lastrowid)
    taken = []
    for demand, limit_id in settled:
        numbers = picked.get(limit_id) or [epoch + i * OVERFLOW for i in range(demand.slots)]
        for n in numbers:
            slot = {"id": ask.claim.claim_id, "limit_id": limit_id, "n": n, "epoch": epoch}
            cursor(OVER if demand.capacity is None else MARK, slot)
            taken.append((demand.key, n, epoch))
    return Answer(ask.version, True, len(settled), ClaimState.HELD, held_slots(taken))


def _still(cursor: Cursor, demand: Demand, limit_id: int) -> bool:
    """A limit without capacity is locked against those who give it one; a slot's own row guards the others."""
    if demand.capacity is not None or not cursor.syntax.share:
        return True
    return cursor(STILL_UNLIMITED, {"limit_id": limit_id}).fetchone() is not None


def _pick(cursor: Cursor, settled: Settled) -> Picked | None:
    picked: Picked = {}
    for demand, limit_id in settled:
        if demand.capacity is not None:
            rows = cursor(PICK, {"limit_id": limit_id, "slots": demand.slots}).fetchall()
            if len(rows) < demand.slots:
                return None
            picked[limit_id] = [int(row[0]) for row in rows]
    return picked


def _written_claim(ask: Ask, values: dict[str, Any], now: int, *, held: bool) -> dict[str, Any]:
    kind = "holding" if held else "waiting"
    after = values[f"{kind}_after"]
    return {
        "rank": now - values["boost"],
        "enqueued_at": now,
        "eligible_at": now + ask.eligible_after,
        "state": (ClaimState.HELD if held else ClaimState.WAITING).value,
        "liveness": values[f"{kind}_liveness"],
        "session_id": values[f"{kind}_session"],
        "deadline": None if after is None else now + after,
        "granted_at": now if held else None,
        "acknowledged_at": now if held else None,
    }


def acknowledge(cursor: Cursor, claim_id: str, session_id: str, shift: int) -> tuple[HeldSlot, ...] | None:
    """Hold what an op claim of this session was granted: its slots. None when it is not one: nothing was done then."""
    if cursor(ACKNOWLEDGE, {"id": claim_id, "session_id": session_id, "shift": shift}).rowcount != 1:
        return None
    return held_slots(cursor(SLOTS, {"id": claim_id}).fetchall())


def release(cursor: Cursor, claim_id: str, session_id: str, shift: int) -> bool:
    """Free a held op claim of this session. False when it is not one: nothing was done then."""
    row = cursor(HELD, {"id": claim_id, "session_id": session_id, "shift": shift}).fetchone()
    if row is None:
        return False
    now, granted_at, demands, host, deployment, run_id, op_id, name = row
    label = label_of(host, deployment, run_id, op_id, name)
    values = {"id": claim_id, "now": now, "host": host, "deployment": deployment, "label": label}
    cursor(END, values)
    if cursor(FREE, values).rowcount < sum(json.loads(demands).values()):  # the rest was above a capacity
        cursor(DROP, values)
    cursor(RELEASED, values | {"demands": demands, "held": now - granted_at})
    return True
