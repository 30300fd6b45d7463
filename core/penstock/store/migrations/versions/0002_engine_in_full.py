"""Epochs from the history's ids; parents, names and observed claims; the age of waiters; deployments."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.add_column("penstock_limit", sa.Column("settled_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(
        "penstock_limit_draining",
        "penstock_limit",
        ["draining"],
        sqlite_where=sa.text("draining"),
        postgresql_where=sa.text("draining"),
    )
    op.add_column("penstock_claim", sa.Column("parent_id", sa.String(length=36), nullable=True))
    op.add_column("penstock_claim", sa.Column("within", sa.JSON(), nullable=True))
    op.add_column("penstock_claim", sa.Column("name", sa.Text(), nullable=True))
    op.add_column("penstock_claim", sa.Column("observed", sa.Boolean(), nullable=True))
    for name in ("session", "state", "ended"):
        op.drop_index(f"penstock_claim_{name}", "penstock_claim")
    _partial_index("session", ["session_id"], "session_id IS NOT NULL")
    _partial_index("deadline", ["deadline"], "deadline IS NOT NULL")
    _partial_index("parent", ["parent_id"], "parent_id IS NOT NULL")
    _partial_index("ended", ["ended_at"], "ended_at IS NOT NULL")
    _partial_index("pending", ["state", "rank"], "state = 'waiting' OR state = 'granted'")
    op.add_column("penstock_waiter", sa.Column("enqueued_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE penstock_waiter SET enqueued_at = (SELECT enqueued_at FROM penstock_claim WHERE id = claim_id)")
    op.create_index("penstock_waiter_age", "penstock_waiter", ["limit_id", "enqueued_at"])
    op.create_table(
        "penstock_deployment",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        **MYSQL,
    )
    _epochs_from_history()


def _partial_index(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        f"penstock_claim_{name}",
        "penstock_claim",
        columns,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


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
    op.drop_column("penstock_meta", "last_epoch")
