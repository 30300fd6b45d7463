"""What becomes of a claim: Granted, Waiting or Refused, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.text import shown

if TYPE_CHECKING:
    from penstock.lease import Lease


@dataclass(frozen=True, slots=True)
class Reason:
    """One limit that bars a claim: how much of it is held, and by whom (labels, oldest first, at most 10).

    `links` are the holders' URLs in the same order, None where there is none.
    """

    limit: str
    needed: int
    capacity: int | None
    held: int
    holders: tuple[str, ...] = ()
    waiting_ahead: int = 0
    links: tuple[str | None, ...] = ()

    def __str__(self) -> str:
        kind, _, name = self.limit.partition(":")
        name = name if kind == "pool" else self.limit
        if self.capacity == 0:
            return shown(f"{name}: closed (limit 0)")
        text = f"{name}: {self.held} of {self.capacity if self.capacity is not None else 'unlimited'} held"
        if self.holders:
            text += " by " + ", ".join(self.holders[:3]) + (" …" if len(self.holders) > 3 else "")
        if self.waiting_ahead:
            text += f", {self.waiting_ahead} ahead in the queue"
        return shown(text)


@dataclass(frozen=True, slots=True)
class Granted:
    """The claim holds its slots; `lease` says which."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Waiting:
    """The claim is in the queue and holds nothing."""

    claim_id: str
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The claim was not admitted and left nothing behind. `skipped`: its run was skipped before, and stays so."""

    reasons: tuple[Reason, ...] = ()
    impossible: bool = False
    skipped: bool = False


Decision = Granted | Waiting | Refused

Fences = Mapping[str, Mapping[int, int]]
"""Limit key → {slot: epoch}. Epochs only grow: a resource that remembers the highest can turn old holders away."""


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """One slot in hand."""

    limit: str
    slot: int
    epoch: int


def fences_of(slots: tuple[HeldSlot, ...]) -> dict[str, dict[int, int]]:
    """The fencing tokens of some slots, by limit."""
    fences: dict[str, dict[int, int]] = {}
    for held in slots:
        fences.setdefault(held.limit, {})[held.slot] = held.epoch
    return fences


__all__ = ["Decision", "Fences", "Granted", "HeldSlot", "Reason", "Refused", "Waiting", "fences_of"]
