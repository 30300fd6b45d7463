"""Where Prefect is missing, the tests on it are not even collected: this one says so."""

from __future__ import annotations

import importlib.util

from servers import missing


def test_prefect_is_installed() -> None:
    if importlib.util.find_spec("prefect") is None:
        missing("Prefect is not installed in this environment: its tests were left out")
