"""What only the running code knows: each of these is to be listed, none to be guessed."""

import os
import random

import dagster as dg

from .names import TABLES


def make(table: str) -> dg.AssetsDefinition:
    @dg.asset(name=f"copy_of_{table}", pool=f"table_{table}")
    def _copy():
        pass

    return _copy


copies = [make(table) for table in TABLES]

for number in range(2):

    @dg.asset(name=f"loop_{number}", pool="in_loop")
    def in_loop():
        pass


if random.random() < 2:

    @dg.asset(pool="under_if")
    def under_if():
        pass


@dg.asset(pool=os.getenv("SHOP_POOL", "from_environment"))
def pool_from_environment():
    pass


@dg.asset(pool="known", op_tags={"database": os.environ.get("SHOP_DATABASE", "x"), "team": "ml"})
def tag_from_environment():
    pass


@dg.asset(**dict.fromkeys(("pool",), "spread"))
def pool_from_spread():
    pass


@dg.asset(name="_".join(["joined", random.choice(["x"])]), pool="known")
def name_from_chance():
    pass


@dg.op
def base():
    return 1


ops = {name: dg.op(name=name, pool=f"pool_{name}")(lambda: 1) for name in ("one", "two")}


@dg.graph
def of_dictionary():
    return ops["one"]()


def uppercase(definition):
    """An outer decorator that leaves it as it is."""
    return definition


@uppercase
@dg.asset(pool="below")
def decorated_above():
    pass
