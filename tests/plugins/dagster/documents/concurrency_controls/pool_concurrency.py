"""Solution 1: concurrency pools, across runs."""

import dagster as dg


@dg.asset(pool="database")
def customers() -> None: ...


@dg.asset(pool="database")
def invoices() -> None: ...


@dg.asset(pool="api")
def exchange_rates() -> None: ...


@dg.asset
def unlimited() -> None: ...


defs = dg.Definitions(assets=[customers, invoices, exchange_rates, unlimited])
