"""A real browser before a real `penstock ui`, on a store where real processes claim."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import penstock
import pytest
from browser import chromium
from penstock.engine import Engine

if "CI" not in os.environ:  # there it must be installed
    pytest.importorskip("fastapi", reason="the extra `web` is not installed")

from page_process import Run, runs, ui

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module: its event loop must not stand in the way of other modules' own."""
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    """To most of what a browser does the store makes no difference."""
    kind: str = request.param
    return kind


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    """Looks at the store, past the page."""
    with penstock.connect(store_url) as engine:
        yield engine


@pytest.fixture
def address(store_url: str, engine: Engine) -> Iterator[str]:
    """Where the page is served."""
    with ui(store_url) as address:
        yield address


@pytest.fixture
def run(store_url: str, engine: Engine) -> Iterator[Run]:
    """Starts `penstock run` with options, around a command without an end."""
    with runs(store_url) as run:
        yield run
