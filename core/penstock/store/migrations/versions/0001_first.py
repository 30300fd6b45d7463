"""The first tables."""

import sqlalchemy as sa
from alembic import op
from penstock.store.migrations import steps

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    steps.create_table(
        "penstock_claim",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("live_holder", sa.String(length=64), nullable=True),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("op_id", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("in_run", sa.Boolean(), nullable=False),
        sa.Column("pools", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("demands", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("liveness", sa.String(length=8), nullable=False),
        sa.Column("session_id", sa.String(length=36), nullable=True),
        sa.Column("deadline", sa.BigInteger(), nullable=True),
        sa.Column("enqueued_at", sa.BigInteger(), nullable=False),
        sa.Column("eligible_at", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("live_holder"),
    )
    steps.create_index("penstock_claim_ended", "penstock_claim", ["ended_at"])
    steps.create_index("penstock_claim_session", "penstock_claim", ["session_id"])
    steps.create_index("penstock_claim_state", "penstock_claim", ["state", "liveness"])
    steps.create_table(
        "penstock_configuration",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_from", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    steps.create_table(
        "penstock_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("claim_id", sa.String(length=36), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("slots", sa.JSON(), nullable=False),
        sa.Column("waited", sa.BigInteger(), nullable=True),
        sa.Column("held", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    steps.create_index("penstock_history_at", "penstock_history", ["at"])
    steps.create_table(
        "penstock_limit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    steps.create_table(
        "penstock_member",
        sa.Column("claim_id", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("claim_id", "session_id"),
    )
    steps.create_index("penstock_member_session", "penstock_member", ["session_id"])
    steps.create_table(
        "penstock_meta",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("configuration_version", sa.Integer(), nullable=False),
        sa.Column("settled_version", sa.Integer(), nullable=False),
        sa.Column("last_epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    steps.create_table(
        "penstock_session",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("ttl", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    steps.create_index("penstock_session_expires", "penstock_session", ["expires_at"])
    steps.create_table(
        "penstock_slot",
        sa.Column("limit_id", sa.Integer(), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("claim_id", sa.String(length=36), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("usable", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["limit_id"],
            ["penstock_limit.id"],
        ),
        sa.PrimaryKeyConstraint("limit_id", "n"),
    )
    steps.create_index("penstock_slot_claim", "penstock_slot", ["claim_id"], where="claim_id IS NOT NULL")
    steps.create_index("penstock_slot_free", "penstock_slot", ["limit_id", "n"], where="claim_id IS NULL AND usable")
    steps.create_table(
        "penstock_waiter",
        sa.Column("limit_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("claim_id", sa.String(length=36), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["limit_id"],
            ["penstock_limit.id"],
        ),
        sa.PrimaryKeyConstraint("limit_id", "rank", "claim_id"),
    )
    steps.create_index("penstock_waiter_claim", "penstock_waiter", ["claim_id"])
    meta = sa.table(
        "penstock_meta",
        sa.column("id", sa.Integer),
        sa.column("configuration_version", sa.Integer),
        sa.column("settled_version", sa.Integer),
        sa.column("last_epoch", sa.BigInteger),
    )
    if op.get_bind().scalar(sa.select(meta.c.id)) is None:
        op.bulk_insert(meta, [{"id": 1, "configuration_version": 0, "settled_version": 0, "last_epoch": 0}])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.schema.CreateSequence(sa.Sequence("penstock_epoch", data_type=sa.BigInteger)))
