"""Flow processes of a test, and what they leave in the store."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine

SERVER_SECRET = "sesame-7f3a91"
"""What the server on PostgreSQL asks of all, behind a user's name."""
Configure = Callable[..., None]
Run = Callable[..., "subprocess.Popen[bytes]"]


def succeed(host: PrefectHost, *children: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Wait for flow processes, all of which must end well."""
    codes = host.wait_for_flows(*children, seconds=seconds)
    assert set(codes) == {0}, host.logs()


def held(engine: Engine) -> dict[str, int]:
    """Slots held now, by limit."""
    return {row.key: row.held for row in engine.store.limit_rows() if row.held}
