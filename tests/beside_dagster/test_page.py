"""The page for those who come from Dagster names every difference that these tests allow, and no other."""

from __future__ import annotations

from dagster_files import DIFFERENCES
from dagster_queue import BATCH, BATCHES, DEFECTS
from pages_read import COMING, rows, said


def test_the_differences_of_the_parsers() -> None:
    listed = [row[0] for row in rows(COMING, "have the same values in force.")]
    listed += [row[0] for row in rows(COMING, "what Dagster refuses and Penstock takes:")]
    assert [name for name in listed if not name.startswith("keys that stand twice")] == list(DIFFERENCES)


def test_the_differences_of_the_queues() -> None:
    listed = rows(COMING, "They start the same runs but for these defects of Dagster:")
    assert [row[0] for row in listed] == sorted(DEFECTS, key=lambda name: int(name.split()[1].rstrip(":")))
    assert f"the same queues in our tests, {2 * BATCH * BATCHES} of them" in said(COMING)
