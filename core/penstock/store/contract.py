"""What every slot store does. The algorithm and its guarantees are described in core/docs/how-it-works.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from penstock.claim import Claim
from penstock.decision import HeldSlot, Reason
from penstock.rules import Demand, Source
from penstock.store.viewing import Viewing


class ClaimState(StrEnum):
    """WAITING and PARKED hold nothing; GRANTED holds its slots until it is acknowledged, HELD until it is released.

    SKIPPED holds nothing either: a run that did not start because there was no room, remembered for its later ops.
    """

    WAITING = "waiting"
    GRANTED = "granted"
    HELD = "held"
    PARKED = "parked"
    SKIPPED = "skipped"
    ENDED = "ended"


class Result(StrEnum):
    """What a store did with an acquire or a touch."""

    HELD = "held"
    WAITING = "waiting"
    NO_ROOM = "no_room"  # asked not to wait: nothing is left behind
    SKIPPED = "skipped"  # this run was skipped before, and stays so
    BUSY = "busy"  # another live session has this claim of the same holder, and is not joined; it was not queued
    STALE = "stale"  # resolved under an older configuration: read it again, then repeat
    ENDED = "ended"  # released or withdrawn before: this claim id is never granted again
    EXPIRED = "expired"  # ended with the session that it was under, or unknown: claim again, under a new id
    SESSION_LOST = "session_lost"  # the session expired; open a new one


@dataclass(frozen=True, slots=True)
class Outcome:
    """`claim_id` is the live claim's: another's than asked for when the same holder had one already."""

    result: Result
    claim_id: str
    slots: tuple[HeldSlot, ...] = ()
    observed: tuple[str, ...] = ()
    """Limits that had no room for it; only a host that observes is admitted all the same."""
    joined: bool = False
    """It was held before, by a ticket that is adopted now or by other tasks of its run: no new grant."""
    waited_seconds: float = field(default=0.0, compare=False)
    """Of a claim that was there before: how long it has waited by now, or had when it was granted."""


@dataclass(frozen=True, slots=True)
class RunLease:
    """The live claim of a run: what the run holds (limit key → slots, late pools too), and its own limits on ops.

    `expires_at` (µs): the deadline of one without a session, which moves whenever somebody speaks up for it. `attempt`
    and `priority` are those of the first who claimed: others join, whatever theirs are.
    """

    claim_id: str
    state: ClaimState
    held: Mapping[str, int]
    within: Mapping[str, Any] | None
    expires_at: int | None = None
    attempt: int = 1
    priority: int = 0


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
    """The configuration document and its version, 0 and {} in a new store; who put it in force, from where, when (µs).

    `settled`: every limit is in line with it.
    """

    version: int
    document: Mapping[str, Any]
    changed_by: str | None = None
    changed_from: str | None = None
    changed_at: int | None = None
    settled: bool = True


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A limit as the store has it: `held` in slots, `waiting` in claims, the first of them since then (µs)."""

    key: str
    capacity: int | None
    source: Source
    held: int = 0
    waiting: int = 0
    waiting_since: int | None = field(default=None, compare=False)


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
    observed: bool = False
    eligible_at: int = 0
    """Not granted before."""
    version: int = 0
    """The configuration under which its `wants` were resolved."""

    def held_seconds(self, now: int) -> float | None:
        """How long it has held by `now` (µs); None for a waiter."""
        return None if self.granted_at is None else (now - self.granted_at) / 1_000_000


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


@dataclass(frozen=True, slots=True)
class Expired:
    """A claim that a sweep ended; `held_seconds` None for a waiter."""

    claim: Claim
    held_seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did. `settled`: every limit is in line with the configuration in force; else settle them all.

    `sessions`: how many processes there are that can do it.
    """

    settled: bool
    expired: tuple[Expired, ...] = ()
    sessions: int = 1


@dataclass(frozen=True, slots=True)
class Deployment:
    """One installation of a host; `fingerprint` is what tells it from another one of the same name."""

    host: str
    name: str
    fingerprint: str
    registered_at: int | None = None


class Mode(StrEnum):
    """How an acquire meets a lack of room."""

    WAIT = "wait"  # take a place in the queue
    TRY = "try"  # leave nothing
    SKIP = "skip"  # as TRY, and a run remembers that it was skipped
    OBSERVE = "observe"  # be admitted all the same, above the capacity


class Event(StrEnum):
    """What history records."""

    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    PARKED = "parked"
    ADOPTED = "adopted"
    SKIPPED = "skipped"
    OBSERVED = "observed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One event. `slots` maps limit keys to slots, on CHANGED to the new capacities (None: unlimited).

    `wait_seconds` on a grant, `hold_seconds` at its end.
    """

    at: int
    event: Event
    claim_id: str | None
    host: str | None
    deployment: str | None
    label: str | None
    slots: Mapping[str, int | None]
    wait_seconds: float | None
    hold_seconds: float | None
    detail: str | None


class Listener(Protocol):
    """Hears of grants in other processes. A lost one costs no more than a poll: the caller always polls, too."""

    def wait(self, timeout_seconds: float) -> set[str] | None:
        """Claim ids granted meanwhile, empty for "look yourself"; None: nothing was heard. Raises StoreUnavailable."""

    def interrupt(self) -> None:
        """End a wait that another thread is in."""

    def close(self) -> None:
        """Give the connection back."""


class Store(Viewing, Protocol):
    """A slot store. Every method may raise StoreUnavailable; none leaves a claim half done."""

    url: str
    """Where it is, without its password."""
    on_granted: list[Callable[[Collection[str]], None]]
    """Called with the claims that this process has granted to waiters, after the commit."""

    def check_schema(self) -> None:
        """Make sure of the tables, once, before anything else. Raises StoreUnavailable or SchemaMismatch."""

    def configuration(self) -> StoredConfiguration:
        """The configuration in force."""

    def configure(
        self,
        document: Mapping[str, Any],
        *,
        expected_version: int,
        by: str,
        origin: str,
        changed: Mapping[str, int | None] | None = None,
    ) -> int:
        """Write the next version and return its number. Raises ConfigChanged if `expected_version` is not in force.

        `changed` are the limits that it changes (key → capacity), for the history.
        """

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
        Those that a holder could join in that moment stay: they are `joined`.
        """

    def joined(self, session_id: str) -> tuple[Claim, ...]:
        """The claims with a holder, who may join them again, that this session keeps alive; those that wait first.

        A run's lives for as long as one of its sessions does.
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
        mode: Mode = Mode.WAIT,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        """All slots at once (HELD), or what `mode` says: a place in the queue (WAITING), or NO_ROOM, or HELD above it.

        Idempotent by claim id, and by holder: a live claim of the same holder is joined (a run, by another session),
        adopted (a ticket), or reported BUSY: sessions keep what they have until they hand it over or end.
        `eligible_after_seconds`: not granted before, though the place in the queue counts from now.
        """

    def renew(self, claim_ids: Sequence[str], *, ticket_seconds: float) -> set[str]:
        """Give tickets, waiting or held, and probed leases at least that long from now on.

        Those that live, whoever owns them by now.
        """

    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        """Speak up for a claim: acknowledge its grant (HELD), leave parking, adopt a ticket, or keep waiting."""

    def hand_over(
        self, claim_id: str, session_id: str, *, ticket_seconds: float, eligible_after_seconds: float = 0.0
    ) -> bool:
        """Turn a session's claim into a ticket for another process to adopt. False if it was not its alone."""

    def release(self, claim_id: str, session_id: str | None, *, unless_held: bool = False) -> bool:
        """Give a claim up, held or waiting; a run's ends with its last member. False if it was not this session's.

        `unless_held`: one that is held stays; several may wait for a run's, and one of them gives up.
        """

    def end(self, claim_id: str, *, reason: str, expires_at: int | None = None) -> bool:
        """End a claim whoever holds it. False if it had ended before.

        `expires_at`: only while that is its deadline, so not when somebody has spoken up for it since it was looked at.
        """

    def run_lease(self, holder: str) -> RunLease | None:
        """The live claim of that holder (`Claim.holder`), if there is one, held or not."""

    def to_touch(self, claim_ids: Sequence[str]) -> set[str]:
        """Of these waiters, those that should be touched: granted, parked, ended, or resolved under an old version."""

    def register(self, deployment: Deployment) -> None:
        """Note an installation. Raises DeploymentConflict when another one goes by its name."""

    def deployments(self) -> tuple[Deployment, ...]:
        """The installations that were noted, by host and name."""

    def forget(self, host: str, name: str) -> bool:
        """Forget an installation, so that another may take its name. False if none was noted by it."""

    def grant_pass(self) -> int:
        """Try the grant lock; on success grant to waiters in order until nothing is left. How many were granted."""

    def as_upkeep(self) -> AbstractContextManager[None]:
        """What this thread does within does not wait for the connections of those who claim."""

    def sweep(self) -> Swept:
        """Reap what has expired, park what was not acknowledged, drop old tombstones, then grant."""

    def prune(self, *, history_before: int, idle_before: int) -> dict[str, int]:
        """Drop history older than `history_before` (µs) and limits idle since `idle_before`. How many of each."""

    def listen(self, session_id: str | None) -> Listener | None:
        """Grants to that session's waiters and to tickets, as others make them; None where there is only polling."""

    def reasons(self, claim_id: str) -> tuple[Reason, ...]:
        """What bars a waiter now, limit by limit; empty when it does not wait."""

    def reasons_against(self, wants: Mapping[str, int]) -> tuple[Reason, ...]:
        """What bars a claim of these slots that did not stay to wait."""

    def snapshot_time(self) -> int:
        """The store's clock, in µs since 1970."""

    def snapshot(self) -> Snapshot:
        """Everything live."""

    def probed(self) -> tuple[ClaimRow, ...]:
        """The claims that live on for as long as their host says so."""

    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        """Events from `since` (µs) on, oldest first."""

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone and open new ones when needed."""

    def close(self) -> None:
        """Give back connections. The sessions stay until they expire."""
