"""Which versions may work with the tables, said in the store; an index of the claims of runs."""

import sqlalchemy as sa
from alembic import op
from penstock.store.migrations import steps

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WORKS_FROM = "0002"
"""What is new here bars nobody who knew the tables before."""


def upgrade() -> None:
    schema = sa.table("penstock_schema", sa.column("revision", sa.String), sa.column("works_from", sa.String))
    steps.create_table(
        "penstock_schema",
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("works_from", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("revision"),
    )
    op.execute(sa.delete(schema).where(schema.c.revision == revision))
    op.bulk_insert(schema, [{"revision": revision, "works_from": WORKS_FROM}])
    if steps.knows_partial_indexes():  # a whole one would be paid for by every claim of an op
        steps.create_index(
            "penstock_claim_run", "penstock_claim", ["kind"], where="live_holder IS NOT NULL AND kind != 'op'"
        )
