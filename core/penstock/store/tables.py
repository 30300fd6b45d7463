"""The tables. Times are µs since 1970 by the store's clock; the migrations make what stands here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    Text,
    and_,
)

REVISION = "0001"
"""The Alembic revision that this version works with."""
VERSION_TABLE = "penstock_schema_version"

StoredRow = Any
"""A row of one of the tables; the type parameters of SQLAlchemy's own Row differ between 2.0 and 2.1."""

metadata = MetaData()
Id = String(36)
Digest = String(64)  # SHA-256 in hex: keys and holders may be longer than any index allows

meta = Table(
    "penstock_meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("configuration_version", Integer, nullable=False),
    Column("settled_version", Integer, nullable=False),
    # The source of epochs where the database has no sequences.
    Column("last_epoch", BigInteger, nullable=False),
)
epoch_sequence = Sequence("penstock_epoch", data_type=BigInteger)

configuration = Table(
    "penstock_configuration",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("document", JSON, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_from", Text, nullable=False),
)

limit = Table(
    "penstock_limit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Digest, nullable=False, unique=True),
    Column("key", Text, nullable=False),
    Column("capacity", Integer),  # null: unlimited
    Column("source", String(16), nullable=False),
    # More is held than the capacity allows: every slot is closed until that has drained.
    Column("draining", Boolean, nullable=False),
)

slot = Table(
    "penstock_slot",
    metadata,
    Column("limit_id", ForeignKey(limit.c.id), primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("claim_id", Id),  # null: free
    Column("epoch", BigInteger, nullable=False),
    # On the row itself, so that whoever locks the row sees the truth. An unusable slot goes when it is released.
    Column("usable", Boolean, nullable=False),
)
Index(
    "penstock_slot_free",
    slot.c.limit_id,
    slot.c.n,
    sqlite_where=and_(slot.c.claim_id.is_(None), slot.c.usable),
    postgresql_where=and_(slot.c.claim_id.is_(None), slot.c.usable),
)
Index(
    "penstock_slot_claim",
    slot.c.claim_id,
    sqlite_where=slot.c.claim_id.is_not(None),
    postgresql_where=slot.c.claim_id.is_not(None),
)

claim = Table(
    "penstock_claim",
    metadata,
    Column("id", Id, primary_key=True),
    Column("live_holder", Digest, unique=True),  # of the holder while the claim lives: one live claim for each
    Column("kind", String(8), nullable=False),
    Column("host", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("run_id", Text),
    Column("op_id", Text),
    Column("attempt", Integer, nullable=False),
    Column("in_run", Boolean, nullable=False),
    Column("pools", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("url", Text),
    Column("demands", JSON, nullable=False),  # limit key → slots, as resolved under `version`
    Column("version", Integer, nullable=False),
    Column("rank", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("liveness", String(8), nullable=False),
    Column("session_id", Id),
    Column("deadline", BigInteger),
    Column("enqueued_at", BigInteger, nullable=False),
    Column("eligible_at", BigInteger, nullable=False),
    Column("granted_at", BigInteger),
    Column("acknowledged_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("outcome", String(16)),
)
Index("penstock_claim_session", claim.c.session_id)
Index("penstock_claim_state", claim.c.state, claim.c.liveness)
Index("penstock_claim_ended", claim.c.ended_at)

waiter = Table(
    "penstock_waiter",
    metadata,
    Column("limit_id", ForeignKey(limit.c.id), primary_key=True),
    Column("rank", BigInteger, primary_key=True, autoincrement=False),
    Column("claim_id", Id, primary_key=True),
    Column("slots", Integer, nullable=False),
)
Index("penstock_waiter_claim", waiter.c.claim_id)

session = Table(
    "penstock_session",
    metadata,
    Column("id", Id, primary_key=True),
    Column("host", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("ttl", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
Index("penstock_session_expires", session.c.expires_at)

member = Table(
    "penstock_member",
    metadata,
    Column("claim_id", Id, primary_key=True),
    Column("session_id", Id, primary_key=True),
)
Index("penstock_member_session", member.c.session_id)

history = Table(
    "penstock_history",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("event", String(16), nullable=False),
    Column("claim_id", Id),
    Column("host", Text),
    Column("deployment", Text),
    Column("label", Text),
    Column("slots", JSON, nullable=False),
    Column("waited", BigInteger),
    Column("held", BigInteger),
    Column("detail", Text),
)
Index("penstock_history_at", history.c.at)
