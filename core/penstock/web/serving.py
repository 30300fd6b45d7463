"""How the page is served when it stands alone."""

from __future__ import annotations

from typing import Any

import uvicorn

LARGEST_HEAD = 262_144
"""Bytes of a request without its body: an address may hold a name of `api.LONGEST` characters, each in 12 bytes."""


def configuration(app: Any, *, host: str, port: int, root_path: str = "") -> uvicorn.Config:
    """One process, one port; `root_path`: the prefix that a proxy before it takes away."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        root_path=root_path,
        http="h11",
        h11_max_incomplete_event_size=LARGEST_HEAD,
        log_level="warning",
        proxy_headers=False,  # who asks is the one who is connected: `access` says which header is trusted, and whose
        server_header=False,
        timeout_graceful_shutdown=2,  # open pages never end their streams by themselves
    )
