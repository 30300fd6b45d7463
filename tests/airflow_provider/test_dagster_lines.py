"""The lines for Airflow that `penstock migrate dagster --code` writes are what `limited` takes."""

from __future__ import annotations

import os
from pathlib import Path

from penstock_airflow import limited
from penstock_plugins.dagster.code import read

DAGSTER = Path(__file__).parents[1] / "plugins" / "dagster"


def test_limited_takes_every_line() -> None:
    report = read(DAGSTER)
    lines = {row.airflow for row in (*report.definitions, *report.runs) if row.airflow and row.airflow[0] == "@"}
    assert len(lines) > 20
    for line in lines:
        assert callable(eval(line[1:], {"limited": limited, "os": os}))
