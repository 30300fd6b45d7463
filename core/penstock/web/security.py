"""What a browser is told with every answer, and which requests are refused before anything else looks at them."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.web.access import Access, Visitor, form_token

LARGEST_BODY = 65_536
FORM_TOKEN = "form_token"  # noqa: S105  # the name of a field
TOKEN_HEADER = "x-penstock-form-token"  # noqa: S105  # the name of a header


class Refused(Exception):
    """A request that is not to be served, with the reason in words, and an HTTP status."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


def headers(frame_ancestors: str) -> dict[str, str]:
    """The headers of every answer. Nothing is loaded from elsewhere; no script or style stands in the page itself."""
    policy = {
        "default-src": "'none'",
        "style-src": "'self'",
        "script-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": frame_ancestors,
        "base-uri": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",  # with none a form would not say where it comes from
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        **({"X-Frame-Options": "DENY"} if frame_ancestors == "'none'" else {}),
    }


class Guard:
    """Around the whole application: headers on every answer, the names it is reached by, the size of what is sent.

    `hosts`: names without ports; None: the server around it looks after that.
    """

    def __init__(self, app: ASGIApp, *, frame_ancestors: str, hosts: Collection[str] | None) -> None:
        self._app, self._headers, self._hosts = app, headers(frame_ancestors), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    answer[name] = value
                if "cache-control" not in answer:
                    answer["Cache-Control"] = "no-store"
            await send(message)

        if (refused := self._refused(Headers(scope=scope))) is not None:
            text = f"penstock: {refused}"
            answer: Response = JSONResponse({"detail": text}, refused.status)
            if not is_api(scope):
                answer = PlainTextResponse(f"{text}\n", refused.status)
            await answer(scope, receive, send_with_headers)
            return
        await self._app(scope, _bounded(receive), send_with_headers)

    def _refused(self, given: Headers) -> Refused | None:
        host = host_name(given.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return Refused(f"this page goes by {known}; add another name with --allow-host", 421)
        length = given.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return Refused(f"at most {LARGEST_BODY} bytes are taken", 413)
        return None


def is_api(scope: Scope) -> bool:
    """Whether a program asks, that wants its answers as JSON."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).startswith("/api/")


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _bounded(receive: Receive) -> Receive:
    """What is sent without saying how much it is ends at the bound, too."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > LARGEST_BODY:
            raise Refused(f"at most {LARGEST_BODY} bytes are taken", 413)
        return message

    return bounded


def check_change(request: Request, access: Access, visitor: Visitor, token: str | None) -> None:
    """Whether this visitor may change something by this request. Raises Refused."""
    if not visitor.acts:
        raise Refused(f"this page is read-only for you: {access.remedy}")
    if visitor.ambient:
        check_origin(request)
        if not hmac.compare_digest((token or "").encode(), form_token(access, visitor).encode()):
            raise Refused("the form is too old, or not from this page: load the page again, then repeat")


def check_origin(request: Request) -> None:
    """That a browser sends this from the page itself, never from another site's. Raises Refused."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise Refused("the request comes from another site")
    elif origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Refused("the request comes from another site")
