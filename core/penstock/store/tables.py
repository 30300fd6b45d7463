"""The tables. Times are µs since 1970 by the store's clock; the migrations make what stands here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    and_,
    literal_column,
    or_,
    text,
)

REVISION = "0003"
"""The Alembic revision that `penstock db upgrade` of this version brings."""
OLDEST = "0002"
"""The oldest tables that this version works with, too: so it can be everywhere before anybody upgrades the store."""
VERSION_TABLE = "penstock_schema_version"

StoredRow = Any
"""A row of one of the tables; the type parameters of SQLAlchemy's own Row differ between 2.0 and 2.1."""

# Names are told apart by every character: the usual collations of MariaDB and MySQL take A for a, and é for e.
MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

metadata = MetaData()
Id = String(36)
Digest = String(64)  # SHA-256 in hex: keys and holders may be longer than any index allows


def _table(name: str, *columns: Column[Any], **options: Any) -> Table:
    table: Table = Table(f"penstock_{name}", metadata, *columns, **options, **MYSQL)
    return table


def _partial_index(name: str, *columns: Column[Any], where: ColumnElement[bool] | TextClause) -> None:
    """An index of the rows that somebody looks for in it; whole where the database knows no partial ones."""
    Index(f"penstock_{name}", *columns, sqlite_where=where, postgresql_where=where)


meta = _table(
    "meta",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("configuration_version", Integer, nullable=False),
    Column("settled_version", Integer, nullable=False),
)

schema = _table(
    "schema",
    Column("revision", String(32), primary_key=True),
    # The oldest version of Penstock, by the revision that it brings, that works with these tables.
    Column("works_from", String(32), nullable=False),
)

configuration = _table(
    "configuration",
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("document", JSON, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_from", Text, nullable=False),
)

limit = _table(
    "limit",
    Column("id", Integer, primary_key=True),
    Column("digest", Digest, nullable=False, unique=True),
    Column("key", Text, nullable=False),
    Column("capacity", Integer),  # null: unlimited
    Column("source", String(16), nullable=False),
    # More is held than the capacity allows: every slot is closed until that has drained.
    Column("draining", Boolean, nullable=False),
    Column("settled_at", BigInteger, nullable=False),
)
DRAINING = text("draining")
"""In the words of the index: `draining = 1`, as SQLAlchemy says it to SQLite, is not seen to be the same."""
_partial_index("limit_draining", limit.c.draining, where=DRAINING)

slot = _table(
    "slot",
    Column("limit_id", ForeignKey(limit.c.id), primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("claim_id", Id),  # null: free
    # The id of the history row of the grant: it only grows, over all limits and over deletes.
    Column("epoch", BigInteger, nullable=False),
    # On the row itself, so that whoever locks the row sees the truth. An unusable slot goes when it is released.
    Column("usable", Boolean, nullable=False),
)
_partial_index("slot_free", slot.c.limit_id, slot.c.n, where=and_(slot.c.claim_id.is_(None), slot.c.usable))
_partial_index("slot_claim", slot.c.claim_id, where=slot.c.claim_id.is_not(None))

claim = _table(
    "claim",
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
    Column("parent_id", Id),  # the lease under which it was made
    Column("within", JSON(none_as_null=True)),  # a run's own limits on its ops
    Column("name", Text),
    Column("observed", Boolean),  # admitted above a capacity by a host that only observes
)
# A held claim with a session, the usual one, stands in as few indexes as possible.
_partial_index("claim_session", claim.c.session_id, where=claim.c.session_id.is_not(None))
_partial_index("claim_deadline", claim.c.deadline, where=claim.c.deadline.is_not(None))
_partial_index("claim_parent", claim.c.parent_id, where=claim.c.parent_id.is_not(None))
_partial_index("claim_ended", claim.c.ended_at, where=claim.c.ended_at.is_not(None))
_partial_index(
    "claim_pending",
    claim.c.state,
    claim.c.rank,
    where=or_(claim.c.state == literal_column("'waiting'"), claim.c.state == literal_column("'granted'")),
)

OF_A_RUN = and_(claim.c.live_holder.is_not(None), claim.c.kind != literal_column("'op'"))
"""Live claims of runs and of their late pools: few beside those of ops."""
# A whole one would be paid for by every op's claim.
Index("penstock_claim_run", claim.c.kind, sqlite_where=OF_A_RUN, postgresql_where=OF_A_RUN).ddl_if(
    callable_=lambda *_args, dialect, **_kwargs: dialect.name in ("sqlite", "postgresql")
)

waiter = _table(
    "waiter",
    Column("limit_id", ForeignKey(limit.c.id), primary_key=True),
    Column("rank", BigInteger, primary_key=True, autoincrement=False),
    Column("claim_id", Id, primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("enqueued_at", BigInteger, nullable=False),
)
Index("penstock_waiter_claim", waiter.c.claim_id)
Index("penstock_waiter_age", waiter.c.limit_id, waiter.c.enqueued_at)

session = _table(
    "session",
    Column("id", Id, primary_key=True),
    Column("host", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("ttl", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
Index("penstock_session_expires", session.c.expires_at)

member = _table(
    "member",
    Column("claim_id", Id, primary_key=True),
    Column("session_id", Id, primary_key=True),
)
Index("penstock_member_session", member.c.session_id)

deployment = _table(
    "deployment",
    Column("id", Digest, primary_key=True),  # of host and name
    Column("host", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
)

history = _table(
    "history",
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
    sqlite_autoincrement=True,  # an id is an epoch, so none is given twice
)
Index("penstock_history_at", history.c.at)
