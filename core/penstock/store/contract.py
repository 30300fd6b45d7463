"""What every slot store does. The algorithm and its guarantees are described in core/docs/how-it-works.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from penstock.claim import Claim
from penstock.decision import HeldSlot
from penstock.rules import Demand, Source


class ClaimState(StrEnum):
    """WAITING and PARKED hold nothing; GRANTED holds its slots until it is acknowledged, HELD until it is released."""

    WAITING = "waiting"
    GRANTED = "granted"
    HELD = "held"
    PARKED = "parked"
    ENDED = "ended"


class Result(StrEnum):
    """What a store did with an acquire or a touch."""

    HELD = "held"
    WAITING = "waiting"
    NO_ROOM = "no_room"  # asked not to wait: nothing is left behind
    BUSY = "busy"  # the same holder has this claim in another live session; it was not queued
    STALE = "stale"  # resolved under an older configuration: read it again, then repeat
    ENDED = "ended"  # released, withdrawn or expired before: this claim id is never granted again
    SESSION_LOST = "session_lost"  # the session expired; open a new one


@dataclass(frozen=True, slots=True)
class Outcome:
    """`claim_id` is the live claim's: another's than asked for when the same holder had one already."""

    result: Result
    claim_id: str
    slots: tuple[HeldSlot, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One process that keeps its claims alive by beating."""

    session_id: str
    host: str
    deployment: str
    pid: int
    hostname: str
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class Owner:
    """Who speaks for a claim: a session, or (None) a ticket with a deadline that each touch moves.

    `ticket_seconds` is the deadline without a session; `probe_seconds`, where given, the longer one of a run lease that
    the host can be asked about.
    """

    session_id: str | None
    ticket_seconds: float = 300.0
    probe_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StoredConfiguration:
    """The configuration document and its version, 0 and {} in a new store."""

    version: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A limit as the store has it: `held` in slots, `waiting` in claims."""

    key: str
    capacity: int | None
    source: Source
    held: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A live claim: a lease when it has slots, else a waiter. Times are µs since 1970, UTC, by the store's clock."""

    claim: Claim
    state: ClaimState
    wants: Mapping[str, int]
    rank: int
    enqueued_at: int
    granted_at: int | None
    expires_at: int | None
    slots: tuple[HeldSlot, ...]
    session_ids: tuple[str, ...]
    probed: bool = False


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session and when it expires, in µs since 1970."""

    session: Session
    expires_at: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything live, read in one transaction."""

    now: int
    limits: tuple[LimitRow, ...]
    claims: tuple[ClaimRow, ...]
    sessions: tuple[SessionRow, ...]


class Event(StrEnum):
    """What history records."""

    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    PARKED = "parked"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One event. `slots` maps limit keys to slots; `wait_seconds` on a grant, `hold_seconds` at its end."""

    at: int
    event: Event
    claim_id: str | None
    host: str | None
    deployment: str | None
    label: str | None
    slots: Mapping[str, int]
    wait_seconds: float | None
    hold_seconds: float | None
    detail: str | None


class Store(Protocol):
    """A slot store. Every method may raise StoreUnavailable; none leaves a claim half done."""

    url: str
    """Where it is, without its password."""

    def configuration(self) -> StoredConfiguration:
        """The configuration in force."""

    def configuration_is_settled(self) -> bool:
        """Whether every limit has been brought in line with the configuration in force."""

    def configure(self, document: Mapping[str, Any], *, expected_version: int, by: str, origin: str) -> int:
        """Write the next version and return its number. Raises ConfigChanged if `expected_version` is not in force."""

    def limit_rows(self) -> tuple[LimitRow, ...]:
        """Every limit that the store knows, by key."""

    def settle(self, key: str, capacity: int | None, source: Source, *, version: int) -> bool:
        """Give one limit this capacity, new or not; holders keep what they hold. False if `version` is out of date."""

    def settled(self, version: int) -> None:
        """Note that every limit has been settled under this version."""

    def open_session(self, session: Session) -> None:
        """Write the session; it expires after its TTL unless it beats."""

    def beat(self, session_id: str, known: Callable[[], Collection[str]]) -> bool:
        """Renew the session; False if it is gone, with all it held. Ends its claims that are not `known`.

        `known` is asked after the claims were read: what the process began to ask for meanwhile is not among them.
        """

    def close_session(self, session_id: str) -> None:
        """End the session and everything it held or waited for."""

    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        wait: bool,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        """All slots at once (HELD), or a place in the queue (WAITING), or with `wait=False` NO_ROOM.

        Idempotent by claim id, and by holder: a live claim of the same holder is joined (a run), adopted (a ticket), or
        reported BUSY. `eligible_after_seconds`: not granted before, though the place in the queue counts from now.
        """

    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        """Speak up for a claim: acknowledge its grant (HELD), leave parking, adopt a ticket, or keep waiting."""

    def hand_over(
        self, claim_id: str, session_id: str, *, ticket_seconds: float, eligible_after_seconds: float = 0.0
    ) -> bool:
        """Turn a session's claim into a ticket for another process to adopt. False if it was not this session's."""

    def release(self, claim_id: str, session_id: str | None) -> bool:
        """Give a claim up, held or waiting; a run's ends with its last member. False if it was not this session's."""

    def end(self, claim_id: str, *, reason: str) -> bool:
        """End a claim whoever holds it. False if it had ended before."""

    def live_claim(self, holder: str) -> str | None:
        """The id of the live claim of that holder (`Claim.holder`), if there is one."""

    def grant_pass(self) -> int:
        """Try the grant lock; on success grant to waiters in order until nothing is left. How many were granted."""

    def sweep(self) -> None:
        """Reap what has expired, park what was not acknowledged, drop old tombstones, then grant."""

    def snapshot(self) -> Snapshot:
        """Everything live."""

    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        """Events from `since` (µs) on, oldest first."""

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone and open new ones when needed."""

    def close(self) -> None:
        """Give back connections. The sessions stay until they expire."""
