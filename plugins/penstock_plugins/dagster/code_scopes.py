"""Names: what each stands for, in its scope, over the files of a project, without running any of them."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from penstock_plugins.dagster.code_files import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
Defined = Function | ast.ClassDef
MAX_DEPTH = 100
_MUTATORS = frozenset(
    {"append", "extend", "insert", "update", "setdefault", "pop", "popitem", "clear", "remove", "add"}
)


class NotStatic(Exception):
    """Only the running code knows; `why` reads after "cannot be read: "."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class Imported:
    """Something of another package, `dagster.asset`, or a module."""

    dotted: str


@dataclass(frozen=True, slots=True)
class Bound:
    """What a name is bound to: an expression, function or class, and the scope in which it is to be read."""

    node: ast.expr | Defined
    scope: Scope


@dataclass(slots=True)
class _Binding:
    line: int
    node: ast.expr | Defined | None = None
    module: str | None = None
    attribute: str | None = None
    why: str | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """The names of a module, function or class."""

    project: Project
    source: Source
    names: Mapping[str, list[_Binding]]
    parent: Scope | None = None
    stars: list[str] = field(default_factory=list)
    changed: frozenset[str] = frozenset()

    def inner(self, node: Defined) -> Scope:
        """The scope within a function or class."""
        names = _bindings(node.body, self.source)
        if not isinstance(node, ast.ClassDef):
            a = node.args
            for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
                why = f"`{argument.arg}` is a parameter of {node.name}()"
                names[argument.arg] = [_Binding(node.lineno, why=why)]
        return Scope(self.project, self.source, names, self, changed=self.changed)

    def find(self, name: str, depth: int = 0) -> Imported | Bound:
        """What the name stands for. Raises NotStatic."""
        if depth > MAX_DEPTH:
            raise NotStatic(f"`{name}` leads in a circle")
        scope: Scope | None = self
        while scope is not None:
            if bindings := scope.names.get(name):
                return scope._followed(name, bindings, depth)
            if found := scope._in_stars(name, depth):
                return found
            scope = scope.parent
        return Imported(f"builtins.{name}")

    def _followed(self, name: str, bindings: list[_Binding], depth: int) -> Imported | Bound:
        binding = bindings[0]
        if len(bindings) > 1:
            lines = sorted({each.line for each in bindings})
            raise NotStatic(f"`{name}` is bound more than once (lines {', '.join(map(str, lines))})")
        if binding.why is not None:
            raise NotStatic(binding.why)
        if binding.module is not None:
            return self.project.imported(binding.module, binding.attribute, self.source, depth + 1)
        if binding.node is None or (name in self.changed and not isinstance(binding.node, Defined)):
            raise NotStatic(f"`{name}` is changed after it was bound on line {binding.line}")
        return Bound(binding.node, self)

    def _in_stars(self, name: str, depth: int) -> Imported | Bound | None:
        for module in self.stars:
            scope = self.project.scope_of(module, self.source)
            if scope is not None and name in scope.names:
                return scope.find(name, depth + 1)
            if scope is None and module == "dagster" and not hasattr(builtins, name):
                return Imported(f"dagster.{name}")
        return None


class Project:
    """The modules below a path, found by the names by which they import each other."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = list(sources)
        self._by_last: dict[str, list[Source]] = defaultdict(list)
        for source in self._sources:
            self._by_last[source.dotted.rpartition(".")[2]].append(source)
        self._scopes: dict[str, Scope] = {}

    def concerned(self) -> list[Scope]:
        """The modules that name Dagster, or import from one that does: no other can define anything of it."""
        concerned = {source.file for source in self._sources if source.names_dagster}
        pending = [source for source in self._sources if not source.names_dagster]
        while True:
            more = {each.file for each in pending if any(from_.file in concerned for from_ in self._imported_by(each))}
            if not more:
                return [self._scope(source) for source in self._sources if source.file in concerned]
            concerned |= more
            pending = [source for source in pending if source.file not in more]

    def _imported_by(self, source: Source) -> Iterator[Source]:
        for node in source.tree.body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = _absolute(node.module, node.level, source)
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            for name in names:
                if found := self._source_of(name, source):
                    yield found

    def _scope(self, source: Source) -> Scope:
        if source.file not in self._scopes:
            stars = [
                _absolute(node.module, node.level, source)
                for node in source.tree.body
                if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            ]
            names = _bindings(source.tree.body, source)
            self._scopes[source.file] = Scope(self, source, names, None, stars, _changed(source.tree))
        return self._scopes[source.file]

    def scope_of(self, dotted: str, importer: Source) -> Scope | None:
        """The module of that name, the nearest to who imports it where there are several; None: another package's."""
        found = self._source_of(dotted, importer)
        return self._scope(found) if found is not None else None

    def _source_of(self, dotted: str, importer: Source) -> Source | None:
        if dotted.partition(".")[0] == "dagster":
            return None
        fitting = [
            source
            for source in self._by_last.get(dotted.rpartition(".")[2], ())
            if f".{source.dotted}".endswith(f".{dotted}")
        ]
        return max(fitting, key=lambda source: _shared(source.dotted, importer.dotted), default=None)

    def imported(self, module: str, attribute: str | None, importer: Source, depth: int) -> Imported | Bound:
        """What `from module import attribute` or `import module` brings. Raises NotStatic."""
        if attribute is None:
            return Imported(module)
        scope = self.scope_of(module, importer)
        dotted = f"{module}.{attribute}"
        if scope is None:
            return Imported(dotted)
        own = scope.names.get(attribute)
        if self.scope_of(dotted, importer) is not None and (own is None or own[0].module == scope.source.dotted):
            return Imported(dotted)  # a module in that package, which may import it itself
        found = scope.find(attribute, depth)
        return Imported(dotted) if found == Imported(f"builtins.{attribute}") else found


def _absolute(module: str | None, level: int, source: Source) -> str:
    if not level:
        return module or ""
    parts = source.dotted.split(".")
    parts = parts[: len(parts) - level + source.is_package]
    return ".".join([*parts, module] if module else parts)


def _shared(one: str, other: str) -> int:
    count = 0
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def statements(body: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, str | None]]:
    """The statements of one scope, inner ones too, and what makes it unsure that each is run exactly once."""
    stack: list[tuple[ast.stmt, str | None]] = [(statement, None) for statement in reversed([*body])]
    while stack:
        statement, unsure = stack.pop()
        yield statement, unsure
        for inner, why in _inner_bodies(statement, unsure):
            stack.extend((each, why) for each in reversed(inner))


def _inner_bodies(statement: ast.stmt, unsure: str | None) -> Iterator[tuple[list[ast.stmt], str | None]]:
    line = statement.lineno
    match statement:
        case ast.If(test=test, body=body, orelse=orelse):
            for_types = any(_last(node) == "TYPE_CHECKING" for node in ast.walk(test))
            yield orelse, f"it is under the `else` of line {line}"
            yield body, unsure if for_types else f"it is under the `if` on line {line}"
        case ast.For(body=body, orelse=orelse) | ast.AsyncFor(body=body, orelse=orelse):
            yield [*body, *orelse], f"it is in the loop on line {line}"
        case ast.While(body=body, orelse=orelse):
            yield [*body, *orelse], f"it is in the loop on line {line}"
        case ast.Try() | ast.TryStar():
            handled = [each for handler in statement.handlers for each in handler.body]
            yield (
                [*statement.body, *handled, *statement.orelse, *statement.finalbody],
                f"it is in the `try` on line {line}",
            )
        case ast.With(body=body) | ast.AsyncWith(body=body):
            yield body, unsure
        case ast.Match(cases=cases):
            yield [each for case in cases for each in case.body], f"it is under the `match` on line {line}"


def _last(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _bindings(body: Iterable[ast.stmt], source: Source) -> dict[str, list[_Binding]]:
    names: dict[str, list[_Binding]] = defaultdict(list)
    for statement, condition in statements(body):
        for name, binding in _bound_by(statement, source):
            if condition and binding.module is None:
                binding.why = binding.why or f"`{name}` is bound on line {binding.line}, and {condition}"
            # An import tried in two ways is one thing under one name; the first is what the author wants.
            if binding.module is None or not names[name]:
                names[name].append(binding)
    return {name: bindings for name, bindings in names.items() if bindings}


def _imports(statement: ast.Import | ast.ImportFrom, source: Source) -> Iterator[tuple[str, _Binding]]:
    line = statement.lineno
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            top = alias.name.partition(".")[0]
            yield alias.asname or top, _Binding(line, module=alias.name if alias.asname else top)
        elif alias.name != "*":
            module = _absolute(statement.module, statement.level, source)
            yield alias.asname or alias.name, _Binding(line, module=module, attribute=alias.name)


def _bound_by(statement: ast.stmt, source: Source) -> Iterator[tuple[str, _Binding]]:
    line = statement.lineno
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name, _Binding(line, statement)
        case ast.Import() | ast.ImportFrom():
            yield from _imports(statement, source)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            yield name, _Binding(line, value)
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            if value is not None:
                yield name, _Binding(line, value)
        case ast.AugAssign(target=ast.Name(id=name)):
            yield name, _Binding(line, why=f"`{name}` is changed on line {line}")
        case _:
            for name in _other_targets(statement):
                yield name, _Binding(line, why=f"`{name}` is bound on line {line} by more than a plain assignment")
    for node in _own_expressions(statement):
        if isinstance(node, ast.NamedExpr):
            yield node.target.id, _Binding(line, why=f"`{node.target.id}` is bound within an expression on line {line}")


def _other_targets(statement: ast.stmt) -> Iterator[str]:
    targets: list[ast.expr] = []
    match statement:
        case ast.Assign():
            targets = statement.targets
        case ast.For() | ast.AsyncFor():
            targets = [statement.target]
        case ast.With() | ast.AsyncWith():
            targets = [item.optional_vars for item in statement.items if item.optional_vars is not None]
        case ast.Delete():
            targets = statement.targets
        case ast.Global() | ast.Nonlocal():
            yield from statement.names
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                yield node.id


def _own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield from ast.walk(child)


def _changed(tree: ast.Module) -> frozenset[str]:
    """Names whose value is changed in place somewhere, or that a function binds anew by `global`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in _MUTATORS:
                found.add(name)
            case ast.Global(names=names):
                found.update(names)
            case ast.AugAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)
