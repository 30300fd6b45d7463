"""What the task's log says of a wait: for which limits, who holds them, the place in the queue. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.report import describe
from penstock.text import shown

if TYPE_CHECKING:
    from penstock.decision import Reason
    from penstock.lease import Lease

HOLDERS_TOLD = 3


def lines_of_wait(label: str, reasons: Sequence[Reason], *, held_back: bool = False) -> Iterator[str]:
    """A line with the limits and their holders, one with the place in the queue, one for each link to a holder.

    A run that is held back has no place in a queue yet.
    """
    yield f"{label} waits: {describe(reasons)}"
    if held_back:
        yield "the run does not begin before there is room in one of the pools that it begins with"
    elif reasons:
        yield f"place {1 + max(reason.waiting_ahead for reason in reasons)} in the queue"
    told = set[str]()
    for reason in reasons:
        for holder, link in zip(reason.holders[:HOLDERS_TOLD], reason.links, strict=False):
            if link is not None and holder not in told:
                told.add(holder)
                yield shown(f"held by {holder}: {link}")


def slots_of(lease: Lease) -> str:
    """What a lease holds, such as `pool:database#3`."""
    return shown(", ".join(f"{held.limit}#{held.slot}" for held in lease.slots)) or "nothing to wait for"
