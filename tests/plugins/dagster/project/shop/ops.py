"""Ops, graphs and jobs."""

import functools

import dagster as dg
from dagster import op

from .names import HEAVY

database_op = op(pool="database")
mail_op = functools.partial(dg.op, pool="mail")


@op
def fetch():
    return 1


@op(name="load_all", pool="bar", tags={"database": "lake", "dagster/priority": "3"})
def load(fetched):
    return fetched


@database_op
def query():
    return 1


@mail_op(tags=HEAVY)
def send(sent):
    return sent


@op
def first_of(items):
    return items[0]


@op(out=dg.DynamicOut())
def fan_out():
    yield dg.DynamicOutput(1, mapping_key="one")


@op(pool="each")
def each_one(item):
    return item


def _compute(context, inputs):
    yield dg.Output(1)


made = dg.OpDefinition(compute_fn=_compute, name="made_by_hand", outs={"result": dg.Out()}, pool="by_hand", tags=HEAVY)
later = dg.op(pool="called")(_compute)
configured_load = load.configured({}, name="load_configured")
configured_query = dg.configured(query, name="query_configured")({})


@dg.graph
def inner():
    return send(query())


@dg.graph(tags={"dagster/concurrency_key": "not_for_ops", "owner": "graphs"})
def outer():
    return load(inner())


@dg.graph_asset
def from_graph_asset():
    return load(fetch())


@dg.graph_asset(key_prefix="fanned", name="fanned_out", tags={"dagster/concurrency_key": "nope"})
def fanned():
    return each_one(first_of(fan_out().map(each_one).collect()))


@dg.graph_multi_asset(outs={"gone": dg.AssetOut(), "came": dg.AssetOut()})
def graph_of_two():
    return {"gone": query(), "came": made()}


from_op = dg.AssetsDefinition.from_op(query)
from_op_keyed = dg.AssetsDefinition.from_op(made, keys_by_output_name={"result": dg.AssetKey(["up", "loaded"])})
from_a_graph = dg.AssetsDefinition.from_graph(inner, key_prefix="g")
