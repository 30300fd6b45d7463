"""Penstock in Prefect: `@limited` on tasks and flows, `limit_all` over modules, `slots`, `aslots` around blocks."""

from __future__ import annotations

from penstock_prefect.blocks import PenstockStore
from penstock_prefect.limited import aslots, limit_all, limited, slots

__all__ = ["PenstockStore", "aslots", "limit_all", "limited", "slots"]
