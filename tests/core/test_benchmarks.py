"""The benchmark still measures what it says it does. How fast anything is, is no matter for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.timeout(240)
def test_a_quick_run_fills_the_table(postgresql_url: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS),
        "--quick",
        "--turns",
        "1",
        "--seconds",
        "0.1",
        "--output",
        str(tmp_path),
    ]
    command += ["--stores", "postgresql,sqlite", "--postgresql", postgresql_url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert {case for case, row in rows.items() if row["skipped"]} == set(), done.stderr
    assert [*rows] == [
        "postgresql, one limit, 1 client",
        "postgresql, one limit, 8 clients",
        "postgresql, 3 limits, 8 clients",
        "postgresql, limit 10, 16 clients, hold 0",
        "postgresql, hand-over",
        "sqlite, one limit, 8 processes",
        "growth: 10 → 100 limits",
        "growth: 10 → 100 waiters on another limit",
        "growth: 10 → 100 waiters on the same limit",
        "import penstock",
    ]
    assert not [case for case, row in rows.items() if row["violations"]]
    for case, row in rows.items():
        assert row["ours"], case
        assert row["bar"], case
        assert case in done.stdout
        assert case in (tmp_path / "results.md").read_text()
    for case in ("postgresql, one limit, 8 clients", "sqlite, one limit, 8 processes"):
        assert rows[case]["raw"] > 0 < rows[case]["sqlalchemy"]
        assert len(rows[case]["figures"]["ours"]) == 1
