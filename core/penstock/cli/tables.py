"""Tables for people: rich in a terminal, plain and uncut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.text import shown

UNCUT = 10_000


def console(*, on_stderr: bool = False) -> Console:
    """Standard output, or error; a pipe gets lines as long as they are."""
    stream = sys.stderr if on_stderr else sys.stdout
    return Console(stderr=on_stderr, width=None if stream.isatty() else UNCUT, highlight=False)


def show_tables(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[object]]]], *, on_stderr: bool) -> None:
    """Each with its title, columns and rows, and a line between two."""
    out = console(on_stderr=on_stderr)
    for number, (title, columns, rows) in enumerate(tables):
        if number:
            out.print()
        out.print(table(title, columns, rows))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A quiet table; None is shown as a dash."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        result.add_column(name, overflow="fold")
    for row in rows:
        # Text, not str: a pool named `a[/b]` is no markup.
        result.add_row(*(Text("-" if value is None else shown(str(value))) for value in row))
    return result


def limit_table(limits: Sequence[dict[str, object]]) -> Table:
    """Limits, as `penstock limits list` shows them."""
    rows = [
        (
            row["key"],
            "unlimited" if row["capacity"] is None else row["capacity"],
            row["held"],
            row["waiting"],
            row["granularity"],
            row["source"],
            row["description"] or "",
        )
        for row in limits
    ]
    return table("", ("limit", "capacity", "held", "waiting", "granularity", "source", "description"), rows)
