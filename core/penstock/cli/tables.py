"""Tables for people: rich in a terminal, plain and uncut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.cli.text import shown

UNCUT = 10_000


def console() -> Console:
    """Standard output; a pipe gets lines as long as they are."""
    return Console(width=None if sys.stdout.isatty() else UNCUT, highlight=False)


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
