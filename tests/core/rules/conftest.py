"""The rules are tested on an engine that does nothing by itself, so that time can be shifted under it."""

from __future__ import annotations

import pytest
from penstock.engine import Engine
from situations import CALM, NewEngine


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One calm engine."""
    return new_engine(settings=CALM)
