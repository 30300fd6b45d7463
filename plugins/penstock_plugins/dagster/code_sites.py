"""Where Dagster's names are used: decorated functions and calls, what they are given, and whether that is run once."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock_plugins.dagster.code_report import Unknown
from penstock_plugins.dagster.code_scopes import Bound, Defined, Function, Imported, NotStatic, Scope, statements
from penstock_plugins.dagster.code_values import dagster_name, evaluate, keywords, known, named

METHODS = frozenset({"configured", "to_job"})  # of ops, graphs and executors, whatever their names
RUN_ONCE = frozenset({"definitions", "repository"})


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments of one of Dagster's names, or methods of what is `of`.

    `name` is Dagster's own for it, `.to_job` for a method; `spread` says why not all of them are known.
    """

    name: str
    line: int
    scope: Scope
    positional: tuple[ast.expr, ...] = ()
    entries: Mapping[str, Any] = field(default_factory=dict)
    spread: str | None = None
    of: ast.expr | None = None

    @property
    def file(self) -> str:
        return self.scope.source.file

    def has(self, *names: str) -> bool:
        return any(name in self.entries for name in names)

    def expression(self, name: str, position: int | None = None) -> tuple[ast.expr, Scope] | None:
        """The expression given as `name`, or at that position."""
        if isinstance(entry := self.entries.get(name), tuple) and len(entry) == 2 and isinstance(entry[1], Scope):
            return entry
        if position is not None and position < len(self.positional):
            return self.positional[position], self.scope
        return None

    def value(self, name: str, position: int | None = None) -> Any:
        """The value given as `name`, None if it is not given. Raises NotStatic."""
        expression = self.expression(name, position)
        if expression is not None:
            return evaluate(*expression)
        if name not in self.entries and self.spread is not None:
            raise NotStatic(self.spread)
        entry = self.entries.get(name)
        return known(entry) if isinstance(entry, Unknown) else entry


@dataclass(frozen=True, slots=True)
class Site:
    """A use of one of Dagster's names: over a function (`decorated`), or as a call."""

    given: Given
    scope: Scope
    unsure: str | None
    node: Function | ast.Call
    below: tuple[str, ...] = ()  # decorators above it that are none of Dagster's

    @property
    def decorated(self) -> Function | None:
        return None if isinstance(self.node, ast.Call) else self.node

    @property
    def line(self) -> int:
        return self.node.lineno


def given(node: ast.expr, scope: Scope, depth: int = 0) -> Given | None:
    """What `node` calls, or decorates with, if that is Dagster's; partials and names for such calls are followed."""
    if depth > 20:
        return None
    if isinstance(node, ast.Call):
        inner = given(node.func, scope, depth + 1)
        if inner is None:
            return None
        entries, spread = keywords(node, scope)
        arguments = tuple(argument for argument in node.args if not isinstance(argument, ast.Starred))
        if inner.name == "configured" and arguments:  # `configured(op, …)(config)` is `op.configured(config, …)`
            return Given(".configured", node.lineno, scope, (), entries, spread, arguments[0])
        return Given(
            inner.name,
            node.lineno,
            scope,
            arguments or inner.positional,
            {**inner.entries, **entries},
            inner.spread or spread,
            inner.of,
        )
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    name = dagster_name(node, scope)
    if isinstance(node, ast.Attribute) and node.attr in METHODS and dagster_name(node.value, scope) != "":
        return Given(f".{node.attr}", node.lineno, scope, of=node.value)
    if name:
        return Given(name, node.lineno, scope)
    try:
        found = named(node, scope)
        if isinstance(found, Bound) and isinstance(found.node, ast.Call):
            call = found.node
            if call.args and named(call.func, found.scope) == Imported("functools.partial"):
                entries, spread = keywords(call, found.scope)
                inner = given(call.args[0], found.scope, depth + 1)
                return inner and Given(inner.name, node.lineno, found.scope, (), {**inner.entries, **entries}, spread)
            inner = given(call, found.scope, depth + 1)
            if inner is not None and inner.name[0].islower() and not call.args:
                return inner  # a decorator that has a name: `database_op = op(pool="database")`
    except NotStatic:
        pass
    return None


def sites(module: Scope) -> Iterator[Site]:
    """All uses of Dagster's names in a file."""
    stack: list[tuple[Scope, list[ast.stmt], str | None]] = [(module, module.source.tree.body, None)]
    while stack:
        scope, body, around = stack.pop()
        for statement, condition in statements(body):
            unsure = condition or around
            if isinstance(statement, Defined):
                found = list(_decorators(statement, scope, unsure)) if not isinstance(statement, ast.ClassDef) else []
                yield from found
                once = any(site.given.name in RUN_ONCE for site in found)
                inner = unsure if once else f"it is in {statement.name}, which may be run never or more than once"
                stack.append((scope.inner(statement), statement.body, inner))
            else:
                yield from _calls(statement, scope, unsure)


def _decorators(function: Function, scope: Scope, unsure: str | None) -> Iterator[Site]:
    above: list[str] = []
    for decorator in function.decorator_list:
        found = given(decorator, scope)
        if found is not None:
            yield Site(found, scope, unsure, function, tuple(above))
        else:
            above.append(_shown(decorator))
        if isinstance(decorator, ast.Call):
            for argument in (*decorator.args, *(keyword.value for keyword in decorator.keywords)):
                yield from _calls(argument, scope, unsure)


def _calls(node: ast.AST, scope: Scope, unsure: str | None) -> Iterator[Site]:
    stack: list[tuple[ast.AST, str | None, bool]] = [(node, unsure, False)]
    while stack:
        node, unsure, is_called = stack.pop()
        if isinstance(node, ast.Call) and not is_called and (found := given(node, scope)):
            yield Site(found, scope, unsure, node)
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            unsure = unsure or f"it is in the {_KINDS.get(type(node), 'comprehension')} on line {node.lineno}"
        stack.extend(
            (child, unsure, isinstance(node, ast.Call) and child is node.func)
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
        )


_KINDS: Mapping[type[ast.AST], str] = {ast.Lambda: "lambda"}


def _shown(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return ".".join(reversed(parts)) or "a decorator"
