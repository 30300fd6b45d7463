"""src/<project_name>/defs/assets.py: assets and ops in pools."""

import dagster as dg


@dg.asset(pool="database")
def orders() -> None: ...


@dg.asset(pool="database", deps=[orders])
def order_totals() -> None: ...


@dg.op(pool="api")
def call_the_api():
    return 1


@dg.job
def calling():
    call_the_api()
