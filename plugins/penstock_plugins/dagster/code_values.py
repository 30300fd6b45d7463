"""What expressions are worth: constants, names of constants, f-strings, sums, plain containers. Nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from penstock_plugins.dagster.code_report import Unknown
from penstock_plugins.dagster.code_scopes import MAX_DEPTH, Bound, Defined, Imported, NotStatic, Scope

MAX_STEPS = 10_000
MAX_CHARACTERS = 10_000
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
}


def named(node: ast.expr, scope: Scope, depth: int = 0) -> Imported | Bound:
    """What a name, dotted or not, stands for in the end, whatever names it went by. Raises NotStatic."""
    if depth > MAX_DEPTH:
        raise NotStatic("the names lead in a circle")
    match node:
        case ast.Name(id=name):
            found = scope.find(name)
        case ast.Attribute(value=value, attr=attribute):
            found = _attribute(named(value, scope, depth + 1), attribute, scope)
        case _:
            return Bound(node, scope)
    if isinstance(found, Bound) and isinstance(found.node, ast.Name | ast.Attribute):
        return named(found.node, found.scope, depth + 1)
    return found


def _attribute(of: Imported | Bound, attribute: str, scope: Scope) -> Imported | Bound:
    if isinstance(of, Imported):
        if scope.project.scope_of(of.dotted, scope.source) is None:
            return Imported(f"{of.dotted}.{attribute}")
        return scope.project.imported(of.dotted, attribute, scope.source, 0)
    if isinstance(of.node, ast.ClassDef):
        inner = of.scope.inner(of.node)
        if attribute in inner.names:
            return inner.find(attribute)
    raise NotStatic(f"`.{attribute}` of what is no module and no class with constants")


def dagster_name(node: ast.expr, scope: Scope) -> str | None:
    """`asset` for what stands for `dagster.asset`, `dbt_assets` for `dagster_dbt.dbt_assets`; "" for a package."""
    try:
        found = named(node, scope)
    except NotStatic:
        return None
    if isinstance(found, Imported):
        top, _, rest = found.dotted.partition(".")
        if top == "dagster" or top.startswith("dagster_"):
            path, _, last = rest.rpartition(".")
            of = path.rpartition(".")[2]
            return f"{of}.{last}" if of[:1].isupper() else last  # a method of a class keeps its class
    return None


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression; values within a dict that only the running code knows are Unknown.

    Raises NotStatic, with the reason.
    """
    return _Evaluation().value(node, scope, 0)


def known(value: Any) -> Any:
    """The value itself. Raises NotStatic where it, or anything in it, is Unknown."""
    stack = [value]
    while stack:
        match stack.pop():
            case Unknown(why=why):
                raise NotStatic(why)
            case dict() as entries:
                stack.extend(entries.values())
            case list() as items:
                stack.extend(items)
    return value


def keywords(call: ast.Call, scope: Scope) -> tuple[dict[str, tuple[ast.expr, Scope] | Any], str | None]:
    """The keyword arguments, each an expression with its scope, or a value out of `**`; and why some are unknown."""
    found: dict[str, tuple[ast.expr, Scope] | Any] = {}
    why = None
    for keyword in call.keywords:
        if keyword.arg is not None:
            found[keyword.arg] = (keyword.value, scope)
            continue
        try:
            spread = evaluate(keyword.value, scope)
            if not isinstance(spread, dict):
                raise NotStatic("`**` of what is no dict")
            found |= spread
        except NotStatic as error:
            why = f"`**`: {error.why}"
    return found, why


class _Evaluation:
    """One expression's evaluation, bounded in steps: names that stand for names may unfold without end."""

    def __init__(self) -> None:
        self._steps = 0

    def value(self, node: ast.expr, scope: Scope, depth: int) -> Any:
        self._steps += 1
        if self._steps > MAX_STEPS or depth > MAX_DEPTH:
            raise NotStatic("it is too large, or nested too deeply")
        depth += 1
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name() | ast.Attribute():
                return self._name(node, scope, depth)
            case ast.JoinedStr(values=parts):
                return _bounded("".join([self._part(part, scope, depth) for part in parts]))
            case ast.Dict():
                return dict(self._entries(node, scope, depth))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return list(self._items(items, scope, depth))
            case ast.BinOp(left=left, op=op, right=right):
                return _combined(op, self.value(left, scope, depth), self.value(right, scope, depth))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
                return -number
            case ast.Subscript(value=value, slice=index):
                return self._item(self.value(value, scope, depth), self.value(index, scope, depth))
            case ast.Call():
                return self._call(node, scope, depth)
        raise NotStatic(f"{_KINDS.get(type(node), 'it')} is worked out when the code runs")

    def _name(self, node: ast.Name | ast.Attribute, scope: Scope, depth: int) -> Any:
        if isinstance(node, ast.Attribute) and node.attr == "value":  # of a member of an enumeration
            member = named(node.value, scope)
            if isinstance(member, Bound) and not isinstance(member.node, Defined):
                return self.value(member.node, member.scope, depth)
        found = named(node, scope)
        if isinstance(found, Imported):
            environment = found.dotted == "os.environ"
            raise NotStatic(
                "the environment gives it" if environment else f"`{found.dotted}` is not defined below PATH"
            )
        if isinstance(found.node, Defined):
            raise NotStatic(f"`{found.node.name}` is no constant")
        if isinstance(node, ast.Attribute) and _is_enumeration(named(node.value, scope)):
            raise NotStatic(f"`{node.attr}` is a member of an enumeration, not its value")
        return self.value(found.node, found.scope, depth)

    def _part(self, part: ast.expr, scope: Scope, depth: int) -> str:
        if isinstance(part, ast.FormattedValue):
            value = self.value(part.value, scope, depth)
            if part.conversion != -1 or part.format_spec is not None or not isinstance(value, str | int):
                raise NotStatic("an f-string formats something")
            return str(value)
        return str(self.value(part, scope, depth))

    def _entries(self, node: ast.Dict, scope: Scope, depth: int) -> Iterator[tuple[Any, Any]]:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                spread = self.value(value, scope, depth)
                if not isinstance(spread, dict):
                    raise NotStatic("`**` of what is no dict")
                yield from spread.items()
                continue
            name = self.value(key, scope, depth)
            if not isinstance(name, str | int):
                raise NotStatic("a key of the dict is no text")
            try:
                yield name, self.value(value, scope, depth)
            except NotStatic as error:
                yield name, Unknown(error.why, value.lineno)

    def _items(self, items: list[ast.expr], scope: Scope, depth: int) -> Iterator[Any]:
        for item in items:
            if isinstance(item, ast.Starred):
                spread = self.value(item.value, scope, depth)
                if not isinstance(spread, list):
                    raise NotStatic("`*` of what is no list")
                yield from spread
            else:
                yield self.value(item, scope, depth)

    def _item(self, container: Any, index: Any) -> Any:
        try:
            found = container[index]
        except (TypeError, KeyError, IndexError):
            raise NotStatic(f"nothing is at [{index!r}]") from None
        return found if not isinstance(found, Unknown) else known(found)

    def _call(self, node: ast.Call, scope: Scope, depth: int) -> Any:
        arguments = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        if len(arguments) == len(node.args):
            match node.func:
                case ast.Attribute(value=text, attr="join") if len(arguments) == 1:
                    parts = known(self.value(arguments[0], scope, depth))
                    separator = self.value(text, scope, depth)
                    if isinstance(separator, str) and all(isinstance(part, str) for part in parts):
                        return _bounded(separator.join(parts))
                case ast.Name(id="dict") if not arguments and named(node.func, scope) == Imported("builtins.dict"):
                    keys: list[ast.expr | None] = [
                        (each.arg and ast.Constant(each.arg)) or None for each in node.keywords
                    ]
                    values = [each.value for each in node.keywords]
                    return dict(self._entries(ast.Dict(keys, values), scope, depth))
            match dagster_name(node.func, scope):
                case "AssetKey" if len(arguments) == 1:
                    return self.value(arguments[0], scope, depth)
                case "AssetKey.from_user_string" if len(arguments) == 1:
                    text = self.value(arguments[0], scope, depth)
                    if isinstance(text, str):
                        return text.split("/")
        try:
            called = named(node.func, scope)
        except NotStatic as error:
            raise NotStatic(error.why) from None
        if isinstance(called, Imported):
            name = called.dotted.removeprefix("builtins.")
            where = "the environment gives it" if name in _ENVIRONMENT else "it is worked out when the code runs"
            raise NotStatic(f"`{name}()`: {where}")
        name = called.node.name if isinstance(called.node, Defined) else "…"
        raise NotStatic(f"`{name}()` works it out when the code runs")


_ENVIRONMENT = frozenset({"os.getenv", "os.environ.get", "dagster.EnvVar"})
_KINDS: Mapping[type[ast.AST], str] = {
    ast.IfExp: "a choice (`if`)",
    ast.BoolOp: "a choice (`or`, `and`)",
    ast.ListComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.Lambda: "a lambda",
}


def _combined(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.BitOr) and isinstance(left, dict) and isinstance(right, dict):
        return left | right
    if isinstance(op, ast.Add) and type(left) is type(right) and isinstance(left, str | list):
        return _bounded(left + right)
    if type(left) is type(right) is int and max(abs(left), abs(right)) < 2**31 and type(op) in _ARITHMETIC:
        return _ARITHMETIC[type(op)](left, right)
    raise NotStatic("it is worked out when the code runs")


def _bounded(value: Any) -> Any:
    if len(value) > MAX_CHARACTERS:
        raise NotStatic("it is too long")
    return value


def _is_enumeration(of: Imported | Bound) -> bool:
    """Whether a class's members are not their own values: an Enum that is no str."""
    if not isinstance(of, Bound) or not isinstance(of.node, ast.ClassDef):
        return False
    bases = {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in of.node.bases}
    return "Enum" in bases and "str" not in bases
