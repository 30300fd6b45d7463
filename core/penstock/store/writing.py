"""Statements written once, for the driver's own cursor: the hot path cannot afford to build them anew each time.

They are text with `:name` for parameters, `{now}` for the clock, `{queued}` for a common table, `{ids}` for a list, and
`{share}`, `{update}` and `{skip}` for locks. The backticks around `rank`, `key` and the like are for MySQL, where these
words are reserved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol


class Syntax(Protocol):
    """What differs: parameters, quotes, the clock, locks, and what a duplicate looks like."""

    quote: str
    now: str
    share: str
    update: str
    skip: str
    queued: str
    """The limits that have waiters, as a common table."""
    returns_ids: bool
    """Whether INSERT can return what it wrote; else there is `lastrowid`."""

    def parameter(self, name: str) -> str:
        """A named parameter."""

    def is_duplicate(self, error: Exception) -> bool:
        """Whether an INSERT failed because its key is there."""

    def __hash__(self) -> int:
        """One object for each syntax."""


@dataclass(frozen=True)
class Cursor:
    """The driver's cursor, with statements written in one syntax."""

    raw: Any
    syntax: Syntax

    def __call__(self, statement: str, values: Mapping[str, Any], ids: Sequence[object] = ()) -> Any:
        """Execute; `ids` are the values of the statement's list. The driver's cursor, to fetch from."""
        count = 1 << (len(ids) - 1).bit_length() if ids else 0  # few texts, so that the server knows them all
        listed = {f"id_{i}": ids[min(i, len(ids) - 1)] for i in range(count)}
        self.raw.execute(_written(statement, self.syntax, count), {**values, **listed})
        return self.raw

    def many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute once for each row."""
        if rows:
            self.raw.executemany(_written(statement, self.syntax, 0), rows)


@cache
def _written(statement: str, syntax: Syntax, ids: int) -> str:
    marks = ", ".join(f":id_{i}" for i in range(ids)) or "''"
    locks = {"share": syntax.share, "update": syntax.update, "skip": syntax.skip}
    text = statement.format(now=syntax.now, queued=syntax.queued, ids=marks, **locks).replace("`", syntax.quote)
    return re.sub(r"(?<!:):([a-z]\w*)", lambda match: syntax.parameter(match[1]), text)
