"""The pages themselves: HTML that works without script. Every form is answered by saying first what will happen."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

import anyio
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from penstock.errors import ConfigChanged
from penstock.plan import Plan
from penstock.report import lasting, rfc3339
from penstock.text import shown
from penstock.web import actions, plots
from penstock.web.access import COOKIE, SESSION_SECONDS, Access, Tokens, Visitor, form_token
from penstock.web.api import LONGEST, Hours, Key, Offset, Order, Read, Text
from penstock.web.looking import Looking
from penstock.web.security import FORM_TOKEN, Refused, check_change, check_origin

LIMITS_AT_ONCE, CLAIMS_AT_ONCE = 100, 50
SHORT = 160
templates = Environment(
    loader=PackageLoader("penstock.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
DONE = {
    "set": "The limit is set.",
    "deleted": "The limit is deleted.",
    "freed": "Freed.",
    "none": "It had ended meanwhile; nothing was freed.",
    "in": "You are signed in.",
    "out": "You are signed out.",
}
"""What a page says after something was done, by the word that its address carries."""


def _short(text: object) -> str:
    """Names for people: what acts on the reader escaped, the rest of a very long one left out."""
    plain = shown(str(text))
    return plain if len(plain) <= SHORT else f"{plain[:SHORT]}…"


templates.filters.update(shown=lambda text: shown(str(text)), short=_short, lasting=lasting, time=rfc3339)
templates.globals.update(spark=plots.sparkline, plot=plots.plot, query=lambda **values: urlencode(values))


def looker(request: Request) -> Visitor:
    """Who looks; who may not is shown the way in. Raises Refused."""
    access: Access = request.app.state.access
    found = access.visitor(request)
    if found is None:
        raise Refused("sign in to look" if access.signs_in else "this page is not open to you", 401)
    return found


Name = Annotated[str, Query(max_length=LONGEST)]
Looker = Annotated[Visitor, Depends(looker)]
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def page(
    request: Request, template: str, *, status: int = 200, visitor: Visitor | None = None, **values: Any
) -> Response:
    """A page of ours. Links begin with where the application is mounted."""
    access: Access = request.app.state.access
    text = templates.get_template(template).render(
        root=root_of(request),
        visitor=visitor,
        signs_in=access.signs_in,
        remedy=access.remedy,
        form_token=form_token(access, visitor) if visitor is not None and visitor.acts else "",
        form_token_field=FORM_TOKEN,
        done=DONE.get(request.query_params.get("done", "")),
        **values,
    )
    return HTMLResponse(text, status)


def root_of(request: Request) -> str:
    """Where the application is mounted, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def to(request: Request, path: str, **values: str) -> Response:
    """On to another page after a form."""
    query = f"?{urlencode(values)}" if values else ""
    return RedirectResponse(f"{root_of(request)}{path}{query}", 303)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form, the first of each name; what is not UTF-8 is refused. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused("a form is expected", 415)
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise Refused("the form cannot be read", 400) from None
    return {name: values[0] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(form_of)]


def acting(request: Request, visitor: Looker, form: Form) -> Visitor:
    """Who sends a form, and may. Raises Refused."""
    check_change(request, request.app.state.access, visitor, form.get(FORM_TOKEN))
    return visitor


Acting = Annotated[Visitor, Depends(acting)]


@router.get("/")
def overview(
    request: Request, visitor: Looker, read: Read, q: Text = "", order: Order = "busy", offset: Offset = 0
) -> Response:
    """Every limit."""
    limits = read.limits(q, order=order, offset=offset, most=LIMITS_AT_ONCE)
    now = read.store.snapshot_time()
    sparks = {limit.key: read.spark(limit, now) for limit in limits.limits}
    values: dict[str, Any] = {"limits": limits, "sparks": sparks, "q": q, "order": order, "most": LIMITS_AT_ONCE}
    return page(request, "overview.html", visitor=visitor, **values)


@router.get("/limit")
def limit(
    request: Request, visitor: Looker, read: Read, key: Key, offset: Offset = 0, held_from: Offset = 0, hours: Hours = 6
) -> Response:
    """One limit: who holds it, who waits, how it was, who changed it."""
    found = read.limit(key)
    if found is None:
        raise Refused("there is no such limit: it may have been deleted, or nothing names it any more", 404)
    points = read.past(found, hours=hours)
    return page(
        request,
        "limit.html",
        visitor=visitor,
        limit=found,
        settable=actions.is_settable(key),
        holders=read.holders(key, offset=held_from, most=CLAIMS_AT_ONCE),
        queue=read.queue(key, offset=offset, most=CLAIMS_AT_ONCE),
        points=points,
        changes=read.changes(key).changes,
        hours=hours,
        offset=offset,
        held_from=held_from,
        most=CLAIMS_AT_ONCE,
    )


@router.get("/search")
def search(request: Request, visitor: Looker, read: Read, q: Text = "", offset: Offset = 0) -> Response:
    """Claims by run, op, tag."""
    claims = read.search(q, offset=offset, most=CLAIMS_AT_ONCE)
    return page(request, "search.html", visitor=visitor, q=q, claims=claims, offset=offset, most=CLAIMS_AT_ONCE)


@router.get("/change")
def change_form(request: Request, visitor: Looker, read: Read, key: Name = "") -> Response:
    """The form to add, edit or delete a limit."""
    known = read.limit(key) if key else None
    limit = "" if known is None or known.capacity is None else str(known.capacity)
    return _change_page(request, visitor, read, {"key": key, "limit": limit})


def _change_page(
    request: Request,
    visitor: Visitor,
    read: Looking,
    form: dict[str, str],
    *,
    plan: Plan | None = None,
    fault: str | None = None,
    status: int = 200,
) -> Response:
    key = form.get("key", "")
    return page(
        request,
        "change.html",
        status=status,
        visitor=visitor,
        key=key,
        limit=form.get("limit", ""),
        deletes=form.get("do") == "delete",
        deletable=bool(key) and actions.is_set(read.engine, key),
        plan=plan,
        fault=fault,
    )


@router.post("/change")
def change(request: Request, who: Acting, form: Form, read: Read) -> Response:
    """Says what a change does; changes it when that was confirmed, and is still what it does."""
    key, deletes, version = form.get("key", "").strip(), form.get("do") == "delete", form.get("version", "")
    try:
        limit = None if deletes else _number(form.get("limit", ""))
        try:
            if version.isdecimal():
                key = actions.set_limit(read.engine, key, limit, by=who.name, version=int(version))
                done = "deleted" if deletes else "set"
                return (
                    to(request, "/", done=done)
                    if read.limit(key) is None
                    else to(request, "/limit", key=key, done=done)
                )
            fault = None
        except ConfigChanged:
            fault = "Somebody else has changed the limits meanwhile. This is what would happen now:"
        plan = actions.plan_limit(read.engine, key, limit)
    except (*actions.NotPossible, ValueError) as error:
        return _change_page(request, who, read, form, fault=str(error), status=400)
    return _change_page(request, who, read, form, plan=plan, fault=fault, status=409 if fault else 200)


def _number(text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ValueError("The capacity is a whole number; 0 closes the limit.")
    return int(text)


@router.get("/free")
def free_form(request: Request, visitor: Looker, read: Read, id: Name = "", run: Name = "") -> Response:  # noqa: A002
    """Says what freeing does."""
    return _free_page(request, visitor, read, id, run)


def _free_page(
    request: Request, visitor: Visitor, read: Looking, identifier: str, run: str, *, fault: str | None = None
) -> Response:
    status = 200 if fault is None else 409
    try:
        plan = actions.plan_free(read.engine, identifier or None, run or None)
    except actions.NotPossible as error:
        plan, fault, status = None, str(error), 409
    return page(request, "free.html", status=status, visitor=visitor, id=identifier, run=run, plan=plan, fault=fault)


@router.post("/free")
def free(request: Request, who: Acting, form: Form, read: Read) -> Response:
    """Frees what was shown."""
    identifier, run = form.get("id", ""), form.get("run", "")
    try:
        plan = actions.plan_free(read.engine, identifier or None, run or None)
    except actions.NotPossible:
        return _free_page(request, who, read, identifier, run)
    if plan.seal != form.get("seal"):
        changed = "What goes by that name is not the same any more. This is what would happen now:"
        return _free_page(request, who, read, identifier, run, fault=changed)
    freed, _ = actions.free_claims(read.engine, plan, by=who.name)
    return to(request, "/", done="freed" if freed else "none")


@router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """Where one signs in with a token."""
    access: Access = request.app.state.access
    if not access.signs_in:
        raise Refused("there is nothing to sign in with here", 404)
    return page(request, "sign_in.html", visitor=access.visitor(request), fault=None)


@router.post("/sign-in")
async def sign_in(request: Request, form: Form) -> Response:
    """The token in exchange for a session of some hours."""
    access: Access = request.app.state.access
    check_origin(request)
    tokens = request.app.state.tokens
    if not isinstance(tokens, Tokens):
        raise Refused("there is nothing to sign in with here", 404)
    name = tokens.name_of(form.get("token", ""))
    if name is None:
        await anyio.sleep(0.5)  # as a brake on guessing
        return page(request, "sign_in.html", status=403, visitor=access.visitor(request), fault="No such token.")
    answer = to(request, "/", done="in")
    _set_cookie(request, answer, tokens.session(name), SESSION_SECONDS)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, who: Acting) -> Response:
    """The browser forgets the session."""
    answer = to(request, "/", done="out")
    _set_cookie(request, answer, "", 0)
    return answer


def _set_cookie(request: Request, answer: Response, value: str, seconds: int) -> None:
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    path = root_of(request) or "/"
    answer.set_cookie(COOKIE, value, max_age=seconds, path=path, secure=secure, httponly=True, samesite="strict")


@router.get("/live")
async def live(request: Request, visitor: Looker) -> Response:
    """News by server-sent events: another mark whenever a page is out of date."""
    news = request.app.state.live
    if news.full:
        raise Refused("too many watch already; the page works all the same, load it anew now and then", 503)
    return StreamingResponse(news.news(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def fault(request: Request, text: str, status: int) -> Response:
    """The page that says what went wrong, and what to do."""
    access: Access = request.app.state.access
    return page(request, "fault.html", status=status, visitor=access.visitor(request), text=text, code=status)
