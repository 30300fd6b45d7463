"""Who may look at the page, and who may change something. A host that mounts the page brings an Access of its own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

COOKIE = "penstock_session"
SESSION_SECONDS = 12 * 3600
SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks. `name` goes on record with whatever they do; None: nobody in particular, who may only look.

    `session` is what the tokens of forms are bound to. `ambient`: the browser proves who they are by itself, with a
    cookie or through a proxy; then each change must bring the token of a form, too.
    """

    name: str | None = None
    acts: bool = False
    session: str = ""
    ambient: bool = True


class Access(Protocol):
    """The rules of one installation. Safe to call from several threads."""

    secret: bytes
    """Signs the tokens of forms: the same in all processes that serve one page."""
    signs_in: bool
    """Whether one signs in with a token, on a page of its own."""
    remedy: str
    """What one who may only look can do about it."""

    def visitor(self, request: Request) -> Visitor | None:
        """Who this is; None: one who may not even look."""


class LookOnly:
    """Everybody looks, nobody acts."""

    signs_in = False
    remedy = "start the page with a token (PENSTOCK_UI_TOKEN)"

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)

    def visitor(self, request: Request) -> Visitor | None:
        return Visitor()


class Tokens:
    """Who knows a token acts, under its name: in the header `Authorization: Bearer`, or signed in with it.

    `tokens` maps names to tokens. `all_look`: who has none may look all the same.
    """

    signs_in = True
    remedy = "sign in with a token"

    def __init__(self, tokens: Mapping[str, str], *, all_look: bool) -> None:
        self._tokens, self._all_look = dict(tokens), all_look
        known = "\n".join(f"{name}:{token}" for name, token in sorted(tokens.items()))
        self.secret = hashlib.sha256(b"penstock ui\n" + known.encode()).digest()

    def visitor(self, request: Request) -> Visitor | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            name = self.name_of(token.strip())
            return Visitor(name, acts=True, ambient=False) if name is not None else None
        session = request.cookies.get(COOKIE, "")
        name = self._signed_in(session)
        if name is not None:
            return Visitor(name, acts=True, session=session)
        return Visitor() if self._all_look else None

    def name_of(self, token: str) -> str | None:
        """Whose token it is. Every token is compared, in constant time."""
        found = None
        for name, known in self._tokens.items():
            if hmac.compare_digest(_digest(token), _digest(known)):
                found = name
        return found

    def session(self, name: str) -> str:
        """What the cookie of one who has just signed in holds: name, end and a random number, signed."""
        stated = f"{int(time.time()) + SESSION_SECONDS}:{secrets.token_urlsafe(16)}:{name}".encode()
        text = base64.urlsafe_b64encode(stated).decode().rstrip("=")
        return f"{text}.{signature(self.secret, 'session', text)}"

    def _signed_in(self, session: str) -> str | None:
        text, _, signed = session.partition(".")
        if not hmac.compare_digest(_digest(signed), _digest(signature(self.secret, "session", text))):
            return None
        try:
            until, _, name = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().split(":", 2)
        except (ValueError, binascii.Error):
            return None
        return name if time.time() < int(until) and name in self._tokens else None


class ProxyUser:
    """Who comes through a reverse proxy that has asked who they are acts under the name that it gives in a header.

    The header counts from `proxies` (addresses) alone. `actors`: only these act, the others look; empty: all act.
    Who comes otherwise has what `others` gives.
    """

    def __init__(self, header: str, *, proxies: Collection[str], actors: Collection[str], others: Access) -> None:
        self._header, self._proxies, self._actors = header, frozenset(proxies), frozenset(actors)
        self._others = others
        self.signs_in, self.secret = others.signs_in, others.secret
        self.remedy = others.remedy

    def visitor(self, request: Request) -> Visitor | None:
        user = request.headers.get(self._header, "").strip()
        if user and request.client is not None and request.client.host in self._proxies:
            return Visitor(user, acts=not self._actors or user in self._actors, session=f"proxy:{user}")
        return self._others.visitor(request)


class Nobody:
    """Nobody looks: what is left for those who come past the proxy."""

    signs_in = False
    remedy = "ask for the right to act"

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)

    def visitor(self, request: Request) -> Visitor | None:
        return None


def signature(secret: bytes, purpose: str, text: str) -> str:
    """A text signed for one purpose, in hex."""
    return hmac.new(secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def form_token(access: Access, visitor: Visitor) -> str:
    """What every form of this visitor carries."""
    return signature(access.secret, "form", visitor.session)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
