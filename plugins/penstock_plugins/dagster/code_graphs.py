"""Graphs and jobs: which ops the calls in their functions stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from penstock_plugins.dagster.code_report import Definition
from penstock_plugins.dagster.code_scopes import Bound, Function, NotStatic, Scope
from penstock_plugins.dagster.code_sites import Given
from penstock_plugins.dagster.code_tags import CONCURRENCY_KEY, Tags, priority_of, tags_of
from penstock_plugins.dagster.code_values import named

GRAPHS = frozenset({"graph", "graph_asset", "graph_multi_asset"})


@dataclass(frozen=True, slots=True)
class Ops:
    """The ops that a graph calls; those among them that are given tags there; why others could not be read."""

    all: list[Definition] = field(default_factory=list)
    tagged: list[Definition] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def ops_of(function: Function, scope: Scope, by_node: Mapping[int, Definition]) -> Ops:
    """What a graph's or job's function calls; `by_node` has the definitions read so far."""
    scope = scope.inner(function)
    ops = Ops()
    for callee in _callees(node for statement in function.body for node in ast.walk(statement)):
        try:
            found, is_tagged = _invoked(callee, scope, by_node)
        except NotStatic as error:
            if error.why not in ops.unread:
                ops.unread.append(error.why)
            continue
        if found is not None:
            ops.all.append(found)
            if is_tagged:
                ops.tagged.append(found)
    return ops


def _callees(nodes: Iterator[ast.AST]) -> Iterator[ast.expr]:
    for node in nodes:
        if isinstance(node, ast.Call):
            yield node.func
            if isinstance(node.func, ast.Attribute) and node.func.attr == "map":
                yield from node.args[:1]  # `fanned_out().map(op)` calls it for each


def _invoked(callee: ast.expr, scope: Scope, by_node: Mapping[int, Definition]) -> tuple[Definition | None, bool]:
    """The op or graph that is called, None for anything else, and whether under tags. Raises NotStatic."""
    alias, tags = None, None
    while isinstance(callee, ast.Call) and isinstance(callee.func, ast.Attribute):
        call = Given(callee.func.attr, callee.lineno, scope, tuple(callee.args))
        if call.name == "alias":
            alias = call.value("name", 0)
        elif call.name == "tag":
            tags = tags_of(call.value("tags", 0))
        callee = callee.func.value
    if not isinstance(callee, ast.Name | ast.Attribute):
        raise NotStatic("which op one of its calls is for is worked out when the code runs")
    try:
        found = named(callee, scope)
    except NotStatic:
        if isinstance(callee, ast.Name):
            raise
        return None, False  # a method of an op's result
    if not isinstance(found, Bound):
        if found.dotted.startswith(("builtins.", "dagster.")):
            return None, False
        raise NotStatic(f"`{found.dotted}` is not defined below PATH")
    of = by_node.get(id(found.node))
    if of is None:
        raise NotStatic(f"`{ast.unparse(callee)}` is no op or graph that could be read")
    if tags is None or of.kind in GRAPHS:  # a graph's tags do not reach its ops
        return of, False
    return _tagged(of, alias or of.name, tags, scope.source.file, callee.lineno), True


def _tagged(of: Definition, name: str, tags: Tags, file: str, line: int) -> Definition:
    merged = {**of.op_tags, **tags.known}
    by_tag = merged.get(CONCURRENCY_KEY)
    own = of.pools and of.pools[0] != of.op_tags.get(CONCURRENCY_KEY)  # `pool=` comes before the tag
    return replace(
        of,
        kind="invocation",
        name=name,
        file=file,
        line=line,
        pools=(by_tag,) if by_tag and not own else of.pools,
        op_tags=merged,
        priority=priority_of(merged),
        unread=(*of.unread, *(f"op tag {key}" for key in tags.unknown)),
    )
