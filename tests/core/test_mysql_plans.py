"""By which index MariaDB looks up what it changes: that is what it locks on its way."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.engine import Engine
from penstock.store import mysql
from penstock.store.writing import Cursor
from situations import Configure


@pytest.mark.parametrize("store_kind", ["mariadb"], indirect=True)
def test_a_claim_is_looked_up_by_its_id_alone(store: Any, engine: Engine, configure: Configure) -> None:
    """By another index the server locks claims of others, too, and breaks one of two off as a deadlock."""
    configure(pools={"limits": {"a": 1}})
    statements = [
        part for part in f"{mysql.ACKNOWLEDGE};{mysql.RELEASE}".split(";") if "FORCE" in part or "SET" in part
    ]
    on_claims = [one for one in statements if "penstock_claim" in one]
    with engine.hold("a") as lease, store.cursor() as raw:
        values = {"id": lease.claim_id, "session_id": lease.session_id, "shift": 0}
        plans = [Cursor(raw, mysql.SYNTAX)(f"EXPLAIN {one}", values).fetchall() for one in on_claims]
        raw.connection.rollback()
    assert [(row[2], row[5]) for plan in plans for row in plan] == [("penstock_claim", "PRIMARY")] * 3
