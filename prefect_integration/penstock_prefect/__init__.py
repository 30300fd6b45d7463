"""Penstock in Prefect: `@limited` on tasks and flows, `limit_all` over modules, `slots`, `aslots` around blocks.

`released`, `areleased`: a flow gives its run's slots back for the length of a block.
"""

from __future__ import annotations

from penstock_prefect.blocks import PenstockStore
from penstock_prefect.limited import aslots, limit_all, limited, slots
from penstock_prefect.released import areleased, released

__all__ = ["PenstockStore", "areleased", "aslots", "limit_all", "limited", "released", "slots"]
