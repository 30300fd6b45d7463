"""Epochs from the history's ids; parents, names and observed claims; the age of waiters; deployments."""

import sqlalchemy as sa
from alembic import op
from penstock.store.migrations import steps

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # One after the other, as they are changed, somebody who has one and wants the next would bar us each time.
        # First what everybody begins with: who has that already comes to his end.
        op.execute("LOCK TABLE penstock_meta, penstock_configuration, penstock_session, penstock_claim, penstock_limit")
        op.execute("LOCK TABLE penstock_slot, penstock_waiter, penstock_member, penstock_history")
    steps.add_column("penstock_limit", sa.Column("settled_at", sa.BigInteger(), nullable=False, server_default="0"))
    steps.create_index("penstock_limit_draining", "penstock_limit", ["draining"], where="draining")
    steps.add_column("penstock_claim", sa.Column("parent_id", sa.String(length=36), nullable=True))
    steps.add_column("penstock_claim", sa.Column("within", sa.JSON(), nullable=True))
    steps.add_column("penstock_claim", sa.Column("name", sa.Text(), nullable=True))
    steps.add_column("penstock_claim", sa.Column("observed", sa.Boolean(), nullable=True))
    if steps.knows_partial_indexes():  # elsewhere these two are as they were
        for name in ("session", "ended"):
            steps.drop_index(f"penstock_claim_{name}", "penstock_claim")
    steps.drop_index("penstock_claim_state", "penstock_claim")
    _partial_index("session", ["session_id"], "session_id IS NOT NULL")
    _partial_index("deadline", ["deadline"], "deadline IS NOT NULL")
    _partial_index("parent", ["parent_id"], "parent_id IS NOT NULL")
    _partial_index("ended", ["ended_at"], "ended_at IS NOT NULL")
    _partial_index("pending", ["state", "rank"], "state = 'waiting' OR state = 'granted'")
    steps.add_column("penstock_waiter", sa.Column("enqueued_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE penstock_waiter SET enqueued_at = (SELECT enqueued_at FROM penstock_claim WHERE id = claim_id)")
    steps.create_index("penstock_waiter_age", "penstock_waiter", ["limit_id", "enqueued_at"])
    steps.create_table(
        "penstock_deployment",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _epochs_from_history()


def _partial_index(name: str, columns: list[str], where: str) -> None:
    steps.create_index(f"penstock_claim_{name}", "penstock_claim", columns, where=where)


def _epochs_from_history() -> None:
    """History ids go on above every epoch given so far, and SQLite never gives one twice from now on."""
    connection = op.get_bind()
    match connection.dialect.name:
        case "sqlite":
            last = connection.scalar(sa.text("SELECT last_epoch FROM penstock_meta"))
            with op.batch_alter_table(
                "penstock_history", recreate="always", table_kwargs={"sqlite_autoincrement": True}
            ):
                pass
            newest = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM penstock_history"))
            connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'penstock_history'"))
            connection.execute(
                sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('penstock_history', :seq)"),
                {"seq": max(last, newest)},
            )
        case "postgresql":
            connection.execute(
                sa.text(
                    "SELECT setval(pg_get_serial_sequence('penstock_history', 'id'),"
                    " greatest((SELECT last_value FROM penstock_epoch),"
                    " (SELECT coalesce(max(id), 0) FROM penstock_history)) + 1)"
                )
            )
            connection.execute(sa.text("DROP SEQUENCE penstock_epoch"))
    steps.drop_column("penstock_meta", "last_epoch")
