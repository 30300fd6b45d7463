"""The page on fault runs: every fault is there, and what is written from their figures is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.report import Bar
from faults import __main__ as page
from faults import record
from pages_read import ROOT, rows

ROW = record.Row(
    fault="T3",
    store="sqlite",
    done="5 killed there",
    what="waiter granted after",
    figure=0.52,
    bar=1,
    unit="s",
    most=True,
    long=False,
    at=1795298400.0,
    version="SQLite 3.40.1",
    test="test_a[sqlite]",
    load=2.9,
)


def test_every_fault_is_on_the_page_and_has_its_file() -> None:
    assert [row[0] for row in rows(page.PAGE, "Nothing else should run beside them.")] == list(record.FAULTS)
    files = {path.stem.split("_")[1] for path in (ROOT / "tests" / "faults").glob("test_t*.py")}
    assert files == {fault.lower() for fault in record.FAULTS}


def test_a_row_says_its_figure_and_its_bar() -> None:
    assert ROW.met
    assert ROW.cells()[4:] == ("0.52 s", "≤ 1 s", "yes", "2026-11-21, load 3")
    assert replace(ROW, long=True).cells()[-1] == "2026-11-21, load 3, long form"
    assert Bar(1, "s", most=True).met(ROW.figure)


def test_a_new_run_of_a_fault_replaces_the_one_before(tmp_path: Path) -> None:
    recorder = record.Recorder()
    recorder.rows = [ROW]
    for _ in range(2):
        recorder.keep(tmp_path / "results.json")
    assert record.read(tmp_path / "results.json") == [ROW]


def test_a_run_of_one_test_leaves_the_rows_of_the_others() -> None:
    other, of_another_store = replace(ROW, test="test_b[sqlite]"), replace(ROW, store="mariadb", test="test_a[mariadb]")
    again = replace(ROW, figure=0.4, at=ROW.at + 60)
    assert record.merged([ROW, other, of_another_store], [again]) == [other, of_another_store, again]


def test_table_and_plot_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "faults.md"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", target)
    monkeypatch.setattr(page, "PLOT", target.with_suffix(".svg"))
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(page, "LAST_RUN", tmp_path / "last_run.json")
    stays = replace(ROW, store="mariadb", test="test_a[mariadb]", what="stays from before")
    record.write(page.LAST_RUN, [replace(ROW, what="is replaced"), stays])
    record.write(page.RESULTS, [ROW])
    page.main()
    assert "stays from before" in target.read_text()
    assert "is replaced" not in target.read_text()
    assert "waiter granted after" in target.read_text()
    assert "old" not in target.read_text()
    assert target.read_text().startswith("before\n")
    assert "waiter granted after, sqlite" in target.with_suffix(".svg").read_text()
