"""Penstock in Prefect: `@limited` on tasks and flows, `slots` and `aslots` around any block."""

from __future__ import annotations

from penstock_prefect.limited import aslots, limited, slots

__all__ = ["aslots", "limited", "slots"]
