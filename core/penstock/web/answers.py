"""What the page shows and its JSON API answers: plain values with a description of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field

from penstock.decision import Reason
from penstock.report import rfc3339
from penstock.store.contract import ClaimRow, ClaimState, HistoryRow, Session
from penstock.store.viewing import Part
from penstock.web.plots import Point

ALLOWED_IN_URLS = "%:/?#[]@!$&'()*+,;="
WAITS = (ClaimState.WAITING, ClaimState.PARKED)


class Limit(BaseModel):
    """A limit: `held` counts slots, `waiting` claims."""

    key: str
    kind: str
    capacity: int | None = Field(description="null: unlimited")
    held: int
    waiting: int
    waiting_since: str | None = Field(description="since when the first of the waiters waits")
    longest_wait_seconds: float | None
    granularity: str | None
    source: str = Field(description="where the capacity comes from: explicit, default, rule, none")
    description: str | None


class Limits(BaseModel):
    """A page of limits, of `count` that match."""

    count: int
    offset: int
    held: int = Field(description="slots held of all that match")
    waiting: int = Field(description="waiters of all that match; who waits for two limits counts twice")
    limits: list[Limit]


class Named(BaseModel):
    """A holder by its label, with the link to its host's own page."""

    label: str
    url: str | None


class Bar(BaseModel):
    """A limit that bars a waiter, the holders' names oldest first, at most ten."""

    limit: str
    capacity: int | None
    held: int
    needed: int
    ahead: int = Field(description="waiters before it in the queue of this limit")
    holders: list[Named]


class Claim(BaseModel):
    """A live claim: a lease, or a waiter."""

    claim_id: str
    kind: str
    state: str
    label: str
    name: str | None
    host: str
    deployment: str
    run_id: str | None
    op_id: str | None
    attempt: int
    priority: int
    tags: dict[str, str]
    url: str | None = Field(description="its host's own page")
    since: str | None = Field(description="held since, or waiting since")
    seconds: float = Field(description="how long it has held or waited")
    expires_at: str | None
    slots: dict[str, int] = Field(description="limit key to slots: held, or wanted by a waiter")
    place: int | None = Field(description="in the queue that was asked for, from 1")
    barred_by: list[Bar]
    processes: list[str] = Field(description="host names and process ids of those behind it")
    observed: bool = Field(description="admitted above the limit: its installation only observes")


class Claims(BaseModel):
    """A page of claims, of `count` in all."""

    count: int
    offset: int
    claims: list[Claim]


class Moment(BaseModel):
    """The means over the five minutes that end at `at`."""

    at: str
    held: float
    waiting: float


class Past(BaseModel):
    """What was held and waiting, oldest first. `complete`: the history has been read; else ask again in a moment."""

    complete: bool
    moments: list[Moment]


class Change(BaseModel):
    """A change of a limit; `detail` says which version, by whom, and from where."""

    at: str
    capacity: int | None = Field(description="the new capacity; null: unlimited")
    detail: str


class Changes(BaseModel):
    """Changes of a limit, newest first."""

    changes: list[Change]


class Effect(BaseModel):
    """What a change would do, or has done, in words."""

    done: bool
    lines: list[str]


class Fault(BaseModel):
    """What went wrong, with the remedy."""

    detail: str


def limit_of(values: Mapping[str, Any], waited: int | None, now: int) -> Limit:
    """A limit as `penstock limits list --json` has it, with how long its first waiter has waited by `now` (µs)."""
    longest = None if waited is None else max(0.0, waited / 1_000_000)
    since = None if waited is None else rfc3339(now - waited)
    return Limit.model_validate({**values, "waiting_since": since, "longest_wait_seconds": longest})


def claims_of(part: Part, *, offset: int, limit: str | None = None) -> Claims:
    """A part of what is live; `limit`: the one whose queue it is, which tells the places."""
    sessions = {row.session.session_id: row.session for row in part.sessions}
    claims = []
    for number, row in enumerate(part.claims, start=offset + 1):
        place = number if limit is not None and row.state is ClaimState.WAITING else None
        claims.append(_claim(row, part, sessions, place))
    return Claims(count=part.count, offset=offset, claims=claims)


def _claim(row: ClaimRow, part: Part, sessions: Mapping[str, Session], place: int | None) -> Claim:
    claim, waits = row.claim, row.state in WAITS
    since = row.enqueued_at if row.granted_at is None else row.granted_at
    behind = (sessions[session_id] for session_id in row.session_ids if session_id in sessions)
    return Claim(
        claim_id=claim.claim_id,
        kind=claim.kind.value,
        state=row.state.value,
        label=claim.label,
        name=claim.name,
        host=claim.host,
        deployment=claim.deployment,
        run_id=claim.run_id,
        op_id=claim.op_id,
        attempt=claim.attempt,
        priority=claim.priority,
        tags=dict(claim.tags),
        url=safe_url(claim.url),
        since=rfc3339(since),
        seconds=max(0.0, (part.now - since) / 1_000_000),
        expires_at=rfc3339(row.expires_at),
        slots=dict(row.wants) if waits else dict(Counter(held.limit for held in row.slots)),
        place=place,
        barred_by=[_bar(reason) for reason in (part.reasons or {}).get(claim.claim_id, ())],
        processes=[f"{session.hostname} {session.pid}" for session in behind],
        observed=row.observed,
    )


def _bar(reason: Reason) -> Bar:
    links = (*reason.links, *[None] * (len(reason.holders) - len(reason.links)))
    return Bar(
        limit=reason.limit,
        capacity=reason.capacity,
        held=reason.held,
        needed=reason.needed,
        ahead=reason.waiting_ahead,
        holders=[Named(label=label, url=safe_url(url)) for label, url in zip(reason.holders, links, strict=False)],
    )


def safe_url(url: str | None) -> str | None:
    """A link that a browser may follow: to a web page, and nothing that runs."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if not url.lower().startswith(("http://", "https://")) or not parts.hostname:
        return None
    return quote(url, safe=ALLOWED_IN_URLS)  # as a browser would, so that no character acts on who reads it


def past_of(points: list[Point]) -> Past:
    """The points of a plot."""
    moments = [Moment(at=rfc3339(p.at) or "", held=round(p.held, 3), waiting=round(p.waiting, 3)) for p in points]
    return Past(complete=bool(points), moments=moments)


def changes_of(rows: list[HistoryRow], key: str) -> Changes:
    """Those that changed this limit."""
    return Changes(
        changes=[
            Change(at=rfc3339(row.at) or "", capacity=row.slots[key], detail=row.detail or "")
            for row in rows
            if key in row.slots
        ]
    )
