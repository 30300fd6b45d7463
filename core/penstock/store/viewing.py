"""What those who look ask a store for: a part of what is live at a time, never all of it. Part of the contract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Reason
    from penstock.store.contract import ClaimRow, Event, HistoryRow, LimitRow, SessionRow


@dataclass(frozen=True, slots=True)
class Part:
    """Some claims of `count` in all, read in one transaction; `now` in µs by the store's clock.

    `reasons` says what bars each waiter among them, by claim id; `sessions` are those behind them.
    """

    now: int
    count: int
    claims: tuple[ClaimRow, ...]
    sessions: tuple[SessionRow, ...] = ()
    reasons: Mapping[str, tuple[Reason, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Movement:
    """A line of the history as far as it moves what is held and waiting. `at`, `waited` and `held` are µs.

    `waited` on a grant, `held` where a lease ends. `line` only grows, though lines may come to be seen out of order.
    """

    at: int
    line: int
    event: Event
    slots: Mapping[str, int | None]
    waited: int | None
    held: int | None


class Viewing(Protocol):
    """A store's part for those who look. Each may raise StoreUnavailable."""

    def mark(self) -> str:
        """Another text whenever a claim came, was granted or ended, or a limit changed; cheap to ask for."""

    def limit_row(self, key: str) -> LimitRow | None:
        """One limit; None where the store does not know it."""

    def holders(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        """Those that hold slots of a limit, oldest first."""

    def queue(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        """Those that wait for a limit, in order, with what bars each. Parked ones are in no queue."""

    def search(self, text: str, *, offset: int = 0, most: int = 50) -> Part:
        """Live claims, in order of their rank, whose id is `text`, or whose run, op, name or tags contain it.

        A tag is found by a part of its key or value, and as `key=value` if that is the whole of it. Upper and lower
        case are one, at least in ASCII. An empty text finds all.
        """

    def movements(self, *, after: tuple[int, int], most: int) -> Sequence[Movement]:
        """The next lines of the history after one (`at` in µs, `line`), oldest first."""

    def changes(self, *, most: int) -> tuple[HistoryRow, ...]:
        """The last changes of the configuration, newest first."""

    def waiting_since(self, key: str) -> Sequence[int]:
        """Since when each waiter of a limit waits, in µs, in no order."""


def parts_of_tags(text: str) -> list[str]:
    """What tags, written as JSON, hold of a text that is looked for."""
    parts = [json.dumps(text)[1:-1]]
    key, equals, value = text.partition("=")
    if equals:
        parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return parts


def matches(claim: Claim, text: str) -> bool:
    """Whether a search for the text finds the claim."""
    names = [name.lower() for name in (claim.run_id, claim.op_id, claim.name) if name]
    tags = json.dumps(dict(claim.tags)).lower()
    wanted = text.lower()
    return (
        not text
        or claim.claim_id == text
        or any(wanted in name for name in names)
        or any(part.lower() in tags for part in parts_of_tags(text))
    )
