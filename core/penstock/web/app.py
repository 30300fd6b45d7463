"""The application: to be served alone by `penstock ui`, or mounted into a host's own web server under any prefix."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import penstock
from penstock.engine import Engine
from penstock.errors import Ambiguous, ClaimError, ConfigError, LimitNotSettable, PenstockError
from penstock.text import shown
from penstock.web import api, pages
from penstock.web.access import Access, Tokens
from penstock.web.live import Live
from penstock.web.looking import Looking
from penstock.web.security import Guard, Refused, headers, is_api

STATUS: dict[type[PenstockError], int] = {Ambiguous: 409, ClaimError: 400, ConfigError: 400, LimitNotSettable: 400}
"""What one who asks has got wrong; every other error of Penstock means that the store is away."""


def web_app(
    engine: Engine,
    access: Access,
    *,
    tokens: Tokens | None = None,
    hosts: Collection[str] | None = None,
    frame_ancestors: str = "'none'",
    stream_seconds: float | None = None,
) -> FastAPI:
    """The page over this engine's store. The engine claims nothing; whoever made it closes it.

    `access` says who looks and who acts, `tokens` whom the sign-in page lets in. `hosts`: the names that the page goes
    by, without ports; None: whoever mounts it looks after that. `frame_ancestors`: who may show it in a frame, as in a
    Content-Security-Policy. `stream_seconds`: see Live.
    """
    app = FastAPI(
        title="Penstock",
        version=penstock.__version__,
        description="Who holds which limit, who waits, and the means to change that.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.access, app.state.tokens = access, tokens
    app.state.looking = looking = Looking(engine)
    app.state.live = Live(lambda: looking.store, stream_seconds=stream_seconds)
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_middleware(Guard, frame_ancestors=frame_ancestors, hosts=hosts)

    def said(request: Request, text: str, status: int) -> Response:
        """The fault as JSON under the API, else as a page."""
        if is_api(request.scope):
            return JSONResponse({"detail": text}, status)
        return pages.fault(request, text, status)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)  # noqa: S101  # registered for no other
        return said(request, str(error), error.status)

    async def failed(request: Request, error: Exception) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 503)
        return said(request, shown(str(error), keep_lines=True), status)

    async def not_served(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  # registered for no other
        text = "there is no such page" if error.status_code == 404 else str(error.detail)
        answer = said(request, text, error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for no other
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return said(request, shown(wrong)[:1000], 422)

    async def broken(request: Request, error: Exception) -> Response:
        # Beyond every middleware: the headers have to be put on here.
        given = headers(frame_ancestors) | {"Cache-Control": "no-store"}
        return JSONResponse({"detail": "penstock: an error of its own; its log says more"}, 500, headers=given)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(PenstockError, failed)
    app.add_exception_handler(HTTPException, not_served)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, broken)
    return app
