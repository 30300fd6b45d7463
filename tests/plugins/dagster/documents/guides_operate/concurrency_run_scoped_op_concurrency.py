"""Limit concurrent op execution for a single run."""

import dagster as dg


@dg.asset
def first_asset():
    pass


@dg.asset
def second_asset():
    pass


@dg.asset
def third_asset():
    pass


at_most_two = dg.define_asset_job(
    name="at_most_two",
    selection=[first_asset, second_asset, third_asset],
    config={"execution": {"config": {"multiprocess": {"max_concurrent": 2}}}},
)

defs = dg.Definitions(assets=[first_asset, second_asset, third_asset], jobs=[at_most_two])
