"""Putting a configuration in force, for tests that need one."""

from __future__ import annotations

from typing import Any

from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine


def configure(engine: Engine, **block: Any) -> None:
    """Put a `concurrency:` block in force."""
    version, _ = engine.configuration(fresh=True)
    changes.apply(engine, Concurrency.model_validate(block), expected_version=version)
