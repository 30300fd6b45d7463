"""The JSON API under the page. Changes need `Authorization: Bearer TOKEN`, or what the page's host takes for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from penstock.claim import CAPACITY_MAX
from penstock.web import actions, answers
from penstock.web.access import Visitor
from penstock.web.looking import Looking
from penstock.web.security import TOKEN_HEADER, Refused, check_change
from penstock.web.timeline import HOURS

MOST = 200
LONGEST = 20_000
"""Characters of a name that can be asked for."""
Key = Annotated[str, Query(min_length=1, max_length=LONGEST, description="as in `penstock limits list`")]
Text = Annotated[str, Query(max_length=LONGEST, description="what is looked for")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="how many to leave out at the beginning")]
Most = Annotated[int, Query(ge=1, le=MOST, description="how many at most")]
Order = Annotated[str, Query(pattern="^(busy|wait|held|key)$", description="busiest first, or by name")]
Hours = Annotated[int, Query(ge=1, le=HOURS, description="how far back")]


def looking(request: Request) -> Looking:
    """What this application reads its store through."""
    found: Looking = request.app.state.looking
    return found


def visitor(request: Request) -> Visitor:
    """Who asks. Raises Refused."""
    found: Visitor | None = request.app.state.access.visitor(request)
    if found is None:
        raise Refused("say who you are: a token in the header Authorization: Bearer", 401)
    return found


def actor(request: Request, who: Annotated[Visitor, Depends(visitor)]) -> Visitor:
    """Who asks for a change, and may. Raises Refused."""
    check_change(request, request.app.state.access, who, request.headers.get(TOKEN_HEADER))
    return who


FAULTS = {
    401: "who asks is not known",
    403: "who asks may not do that",
    413: "it is too much",
    503: "the store is away",
}
REFUSALS = {
    400: "that cannot be set",
    404: "there is nothing of that name",
    409: "the name stands for several",
    422: "the question is not well formed",
}
Read = Annotated[Looking, Depends(looking)]
Actor = Annotated[Visitor, Depends(actor)]
router = APIRouter(
    prefix="/api",
    dependencies=[Depends(visitor)],
    responses={status: {"model": answers.Fault, "description": text} for status, text in (FAULTS | REFUSALS).items()},
)


@router.get("/limits", tags=["look"])
def limits(read: Read, q: Text = "", order: Order = "busy", offset: Offset = 0, most: Most = 100) -> answers.Limits:
    """Every limit, or those whose key or description contains `q`."""
    return read.limits(q, order=order, offset=offset, most=most)


@router.get("/limit", tags=["look"])
def limit(read: Read, key: Key) -> answers.Limit:
    """One limit."""
    found = read.limit(key)
    if found is None:
        raise Refused(f"no limit {key[:200]!r}; `penstock limits list` shows those there are", 404)
    return found


@router.get("/limit/holders", tags=["look"])
def holders(read: Read, key: Key, offset: Offset = 0, most: Most = 50) -> answers.Claims:
    """Who holds a limit, oldest first."""
    return read.holders(key, offset=offset, most=most)


@router.get("/limit/queue", tags=["look"])
def queue(read: Read, key: Key, offset: Offset = 0, most: Most = 50) -> answers.Claims:
    """Who waits for a limit, in order, each with what bars it."""
    return read.queue(key, offset=offset, most=most)


@router.get("/limit/past", tags=["look"])
def past(read: Read, key: Key, hours: Hours = HOURS) -> answers.Past:
    """What was held of a limit and waiting for it, as means over five minutes each."""
    return answers.past_of(read.past(limit(read, key), hours=hours))


@router.get("/limit/changes", tags=["look"])
def changes(read: Read, key: Key) -> answers.Changes:
    """Who changed a limit when, newest first."""
    return read.changes(key)


@router.get("/claims", tags=["look"])
def claims(read: Read, q: Text = "", offset: Offset = 0, most: Most = 50) -> answers.Claims:
    """Leases and waiters by id, run, op, name or tag (`key=value`), in the order of the queue."""
    return read.search(q, offset=offset, most=most)


class LimitChange(BaseModel):
    """A limit to set, or (null) to delete."""

    key: str = Field(min_length=1, max_length=LONGEST, description="settable as by `penstock limits set`")
    limit: int | None = Field(ge=0, le=CAPACITY_MAX)


class Freeing(BaseModel):
    """What is to be freed: a claim, a run or an op of one run; with `run`, within that run, or all of it."""

    id: str | None = Field(default=None, min_length=1, max_length=LONGEST)
    run: str | None = Field(default=None, min_length=1, max_length=LONGEST, description="[HOST/DEPLOYMENT/]RUN_ID")


@router.post("/limit/plan", tags=["act"])
def plan_limit(read: Read, change: LimitChange) -> answers.Effect:
    """What a change would do, and whom it would touch; changes nothing."""
    plan = actions.plan_limit(read.engine, change.key, change.limit)
    return answers.Effect(done=False, lines=list(plan.lines()))


@router.put("/limit", tags=["act"])
def set_limit(read: Read, who: Actor, change: LimitChange) -> answers.Effect:
    """Set or delete a limit, as `penstock limits set` and `penstock limits delete`."""
    key = actions.set_limit(read.engine, change.key, change.limit, by=who.name)
    return answers.Effect(done=True, lines=[f"{key}: {'deleted' if change.limit is None else change.limit}"])


@router.post("/free/plan", tags=["act"])
def plan_free(read: Read, freeing: Freeing) -> answers.Effect:
    """What freeing would end, and who may start then; changes nothing."""
    return answers.Effect(done=False, lines=list(_planned(read, freeing).lines))


@router.post("/free", tags=["act"])
def free(read: Read, who: Actor, freeing: Freeing) -> answers.Effect:
    """End leases and withdraw waiters, as `penstock free`."""
    freed, ended = actions.free_claims(read.engine, _planned(read, freeing), by=who.name)
    return answers.Effect(done=True, lines=[f"freed {freed}" + (f", {ended} had ended meanwhile" if ended else "")])


def _planned(read: Looking, freeing: Freeing) -> actions.Freeing:
    if not freeing.id and not freeing.run:
        raise Refused("name what is to be freed: id, run, or both", 400)
    planned = actions.plan_free(read.engine, freeing.id, freeing.run)
    if not planned.rows:
        raise Refused("nothing of that name holds or waits; /api/claims has what does", 404)
    return planned
