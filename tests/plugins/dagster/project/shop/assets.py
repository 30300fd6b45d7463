"""Assets, with and without parentheses, under names and aliases."""

import dagster as dg
from dagster import AssetKey, AssetSpec, asset, multi_asset
from dagster import asset as a

from . import names
from .names import BOTH, CHANGED, DATABASE, HEAVY, KEY, LAKE, Kinds, Pools, Sizes


@asset
def plain():
    pass


@a(pool="foo")
def aliased():
    pass


@dg.asset(pool=DATABASE)
def by_constant():
    pass


@dg.asset(pool=names.WAREHOUSE, key_prefix=["raw", "shop"])
def by_f_string():
    pass


@asset(pool=LAKE, key=["my_group", "my_asset"])
def keyed_by_list():
    pass


@asset(pool=Pools.API, key=AssetKey(["deep", "er"]))
def keyed_by_asset_key():
    pass


@asset(pool=Pools.MAIL, name="renamed", key_prefix="outbox")
def some_function():
    pass


@asset(pool=Kinds.FAST)
def by_text_member():
    pass


@asset(pool=Sizes.LARGE.value)
def by_member_value():
    pass


@asset(op_tags={"dagster/concurrency_key": "by_tag"})
def by_op_tag():
    pass


@asset(op_tags={KEY: DATABASE, "dagster/priority": 5, "numbers": [1, 2]})
def by_named_op_tag():
    pass


@asset(pool="same", op_tags={KEY: "same"})
def by_both():
    pass


@asset(pool="", op_tags={KEY: "after_empty"})
def by_empty_pool():
    pass


@asset(tags={"dagster/concurrency_key": "nothing"})
def by_asset_tag():
    pass


@asset(op_tags=HEAVY)
def heavy():
    pass


@asset(op_tags=BOTH | {"tier": "gold"}, pool=" ".join(["a"]) + "_b")
def merged():
    pass


@asset(op_tags=CHANGED)
def by_changed_constant():
    pass


@asset(op_tags=dict(database="lake"))  # noqa: C408
def by_dict_call():
    pass


COMMON = {"pool": "common", "op_tags": {"database": "common"}}


@asset(**COMMON)
def by_spread():
    pass


@multi_asset(specs=[AssetSpec("m_one"), AssetSpec("m_two", tags={"dagster/concurrency_key": "x"})], pool="multi")
def several():
    pass


@multi_asset(
    name="several_named",
    outs={"n_one": dg.AssetOut(), "n_two": dg.AssetOut()},
    op_tags={"dagster/concurrency_key": "multi_tag"},
)
def several_others():
    return 1, 2


@dg.asset_check(asset=plain, pool="checks")
def plain_is_right():
    return dg.AssetCheckResult(passed=True)


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec("one", asset="plain")], pool="more_checks", op_tags={"database": "checks"}
)
def several_checks():
    yield dg.AssetCheckResult(passed=True, check_name="one", asset_key="plain")


@dg.observable_source_asset(op_tags={"dagster/concurrency_key": "observed"}, key_prefix="outside")
def observed():
    return dg.DataVersion("1")
