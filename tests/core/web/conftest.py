"""The page over a store of each kind, served by uvicorn, and clients of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

if "CI" not in os.environ:  # there it must be installed
    pytest.importorskip("fastapi", reason="the extra `web` is not installed")

import httpx
from page_served import AUTHORIZED, TOKEN, served
from penstock.engine import Engine
from penstock.web.access import Access, Tokens
from penstock.web.app import web_app

NAMES = ("127.0.0.1",)


@pytest.fixture
def tokens() -> Tokens:
    """Ann acts, everybody looks."""
    return Tokens({"ann": TOKEN}, all_look=True)


@pytest.fixture
def serve(engine: Engine, tokens: Tokens) -> Iterator[Callable[..., httpx.Client]]:
    """Serves the page and gives a client of it; other rules of access, and what `web_app` takes, may be given."""
    with ExitStack() as stack:

        def serving(access: Access | None = None, root_path: str = "", **options: Any) -> httpx.Client:
            app = web_app(engine, access or tokens, tokens=tokens, hosts=NAMES, **options)
            app.state.looking.timeline.catch_up()
            client: httpx.Client = stack.enter_context(
                httpx.Client(base_url=stack.enter_context(served(app, root_path)), timeout=60)
            )
            return client

        yield serving


@pytest.fixture
def client(serve: Callable[..., httpx.Client]) -> httpx.Client:
    """A browser without a session: it looks."""
    return serve()


@pytest.fixture
def signed_in(client: httpx.Client) -> httpx.Client:
    """A browser that has signed in with Ann's token."""
    assert client.post("/sign-in", data={"token": TOKEN}).status_code == 303
    return client


@pytest.fixture
def authorized() -> dict[str, str]:
    """The headers by which Ann acts through the API."""
    return AUTHORIZED
