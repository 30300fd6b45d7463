"""Whether every example DAG that ships with Airflow is either run or excluded with a reason."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from airflow_examples import A_FEW, EXCLUDED, OTHERS, shipped
from pages import ROOT

PINNED = (ROOT / "core/penstock/demo/constraints-airflow.txt").read_text()
of_the_pinned_airflow = pytest.mark.skipif(
    f"apache-airflow=={version('apache-airflow')}\n" not in PINNED, reason="other versions ship others"
)


@of_the_pinned_airflow
def test_each_is_run_or_excluded(tmp_path: Path) -> None:
    known = [*A_FEW, *OTHERS, *EXCLUDED]
    assert len(known) == len(set(known))
    assert set(known) == shipped(tmp_path)
