"""The concurrency page behind Airflow's login and permissions. Loads in the API server, with the first who looks at it.

Who may see pools in Airflow looks, who may edit them acts: a limit is to Penstock what a pool's slots are to Airflow,
and whoever may edit those can hold up or let go every task as well.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from fastapi import Request
from penstock.errors import PenstockError
from penstock.web.access import Visitor
from penstock.web.app import web_app
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, RedirectResponse

from penstock_airflow import compatibility, installation

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

FRAME = "'self'"
"""Airflow shows the page in a frame of its own UI; no other site may."""
STREAM_SECONDS = 20.0
"""An API server that is to stop waits two minutes for requests under way."""


class AirflowAccess:
    """Airflow's users, as the entrance has found them."""

    signs_in = False
    remedy = "ask for a role in Airflow that may edit its pools"

    def __init__(self) -> None:
        # The same in every API server, and in all their processes.
        self.secret = compatibility.derived_secret("penstock page")

    def visitor(self, request: Request) -> Visitor | None:
        """Who this is; None: one whom Airflow does not let see its pools, or does not know."""
        found: Visitor | None = getattr(request.state, "penstock_visitor", None)
        return found


class Entrance:
    """Before the page: who is not signed in to Airflow is sent to its login."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._page: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        user = await compatibility.signed_in(request)
        if user is None and _is_navigation(request):
            await RedirectResponse(compatibility.login_url(str(request.url)), 303)(scope, receive, send)
            return
        if user is not None:
            request.state.penstock_visitor = await run_in_threadpool(_visitor, user)
        try:
            page = await run_in_threadpool(self._made)
        except PenstockError as error:
            told = str(error) if user is not None else "not signed in"
            await PlainTextResponse(f"penstock: {told}\n", 503)(scope, receive, send)
            return
        await page(scope, receive, send)

    def _made(self) -> ASGIApp:
        """Over the store of this installation. Raises ConfigError, StoreUnavailable."""
        with self._lock:
            if self._page is None:
                self._page = web_app(
                    installation.engine(), AirflowAccess(), frame_ancestors=FRAME, stream_seconds=STREAM_SECONDS
                )
            return self._page


def _is_navigation(request: Request) -> bool:
    """Whether a person opens a page, rather than a page or program fetching something."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def _visitor(user: Any) -> Visitor | None:
    """What Airflow lets them do. Every change brings the token of a form, even with a token of Airflow's: that may be
    one that Airflow adds by itself, where all are admins.
    """
    if not compatibility.may_see_pools(user):
        return None
    name, of_airflow = str(user.get_name()), str(user.get_id())
    return Visitor(name, acts=compatibility.may_edit_pools(user), session=f"airflow:{of_airflow}")


entrance = Entrance()
