"""What people are told of a wait and of slots: lines of the run's log, the text that explains a wait. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penstock.report import describe
from penstock.rules import LimitKind
from penstock.text import shown

if TYPE_CHECKING:
    from penstock.decision import Reason
    from penstock.lease import Lease

HOLDERS_TOLD = 10


def line_of_wait(reasons: Sequence[Reason], waited_seconds: float, *, again: bool) -> str:
    """For which limits, who holds them, the place in the queue."""
    begun = f"Still waiting for slots after {waited_seconds:.0f} s" if again else "Waiting for slots"
    place = f"; place {_place(reasons)} in the queue" if reasons else ""
    return f"{begun}: {describe(reasons)}{place}"


def line_of_grant(lease: Lease, waited_seconds: float | None) -> str:
    """What a lease holds, such as `database#3`; `waited_seconds` None: it was not told of a wait."""
    begun = "Slots granted" if waited_seconds is None else f"Slots granted after waiting {waited_seconds:.1f} s"
    slots = ", ".join(f"{_short(held.limit)}#{held.slot}" for held in lease.slots)
    return f"{begun}: {shown(slots) or 'nothing to wait for'}"


def explanation(label: str, reasons: Sequence[Reason], waited_seconds: float, ended: str | None = None) -> str:
    """Markdown for the run's artifact. `ended` says how the wait ended, where it has."""
    lines = [f"**{_plain(label)}** " + (ended or f"has waited {waited_seconds:.0f} s for slots.")]
    if reasons:
        waits = "It waited for" if ended else f"Place {_place(reasons)} in the queue. It waits for"
        lines += ["", f"{waits}:", "", *_rows(reasons)]
    return "\n".join(lines)


def payload(reasons: Sequence[Reason]) -> list[dict[str, Any]]:
    """The reasons as an event tells them."""
    return [
        {
            "limit": reason.limit,
            "needed": reason.needed,
            "capacity": reason.capacity,
            "held": reason.held,
            "holders": list(reason.holders[:HOLDERS_TOLD]),
            "waiting_ahead": reason.waiting_ahead,
        }
        for reason in reasons
    ]


def _short(limit: str) -> str:
    """The limit's key without what a run's log need not say of its own run: `database`, `run_ops`, `run_op_tag:db`."""
    kind, _, rest = limit.partition(":")
    if kind == LimitKind.POOL:
        return rest
    return ":".join([kind, *rest.split(":")[1:]]) if kind in (LimitKind.RUN_OPS, LimitKind.RUN_OP_TAG) else limit


def _place(reasons: Sequence[Reason]) -> int:
    return 1 + max(reason.waiting_ahead for reason in reasons)


def _rows(reasons: Sequence[Reason]) -> Iterator[str]:
    yield "| limit | needed | held | by |"
    yield "|---|---|---|---|"
    for reason in reasons:
        capacity = "unlimited" if reason.capacity is None else reason.capacity
        holders = zip(reason.holders, [*reason.links, *[None] * len(reason.holders)], strict=False)
        by = [f"[{_plain(holder)}]({link})" if link else _plain(holder) for holder, link in holders]
        told = ", ".join(by[:HOLDERS_TOLD]) + (" …" if len(by) > HOLDERS_TOLD else "")
        yield f"| {_plain(reason.limit)} | {reason.needed} | {reason.held} of {capacity} | {told} |"


def _plain(text: str) -> str:
    """Text in a table of Markdown, without what would mean something there."""
    return "".join(f"\\{sign}" if sign in r"\`*_[]|<>" else sign for sign in shown(text))
