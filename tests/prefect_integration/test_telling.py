"""What people are told of waits and slots: pure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from penstock.decision import HeldSlot, Reason
from penstock_prefect import telling

REASON = Reason(
    "pool:database", 1, 2, 2, holders=("airflow/prod etl load[1]", "x|y"), waiting_ahead=3, links=("http://af/1", None)
)


def lease(*limits: str) -> Any:
    return SimpleNamespace(slots=[HeldSlot(limit, 1, 7) for limit in limits])


def test_a_wait_is_told_with_holders_and_place() -> None:
    line = telling.line_of_wait([REASON], 1.2, again=False)
    assert line.startswith("Waiting for slots: database: 2 of 2 held by airflow/prod etl load[1], x|y, 3 ahead")
    assert line.endswith("; place 4 in the queue")
    assert telling.line_of_wait([], 61.0, again=True).startswith("Still waiting for slots after 61 s: ")


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (["pool:db", "run_ops:a/b/c"], "Slots granted: db#1, run_ops#1"),
        (["run_op_tag:a/b/c:table=*:x", "run_tag:team=a"], "Slots granted: run_op_tag:table=*:x#1, run_tag:team=a#1"),
        ([], "Slots granted: nothing to wait for"),
    ],
)
def test_a_grant_names_the_limits_but_not_its_own_run(limits: list[str], line: str) -> None:
    assert telling.line_of_grant(lease(*limits), None) == line


def test_the_explanation_is_a_table_with_links() -> None:
    text = telling.explanation("prefect/p nightly/a_b", [REASON], 12.4)
    assert r"**prefect/p nightly/a\_b** has waited 12 s for slots." in text
    assert r"| pool:database | 1 | 2 of 2 | [airflow/prod etl load\[1\]](http://af/1), x\|y |" in text
    assert "Place 4 in the queue" in text
    ended = telling.explanation("x", [REASON], 12.4, ended="got its slots after 12 s.")
    assert "**x** got its slots after 12 s." in ended
    assert "It waited for" in ended
