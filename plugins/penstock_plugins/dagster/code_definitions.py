"""Assets, ops, checks and graphs: their pools and op tags, as Dagster takes them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from penstock_plugins.dagster.code_graphs import GRAPHS, ops_of
from penstock_plugins.dagster.code_report import Definition, Finding, FindingKind
from penstock_plugins.dagster.code_scopes import Bound, Function, NotStatic, Scope
from penstock_plugins.dagster.code_sites import Given, Site
from penstock_plugins.dagster.code_tags import CONCURRENCY_KEY, priority_of, tags_of
from penstock_plugins.dagster.code_values import named

# What makes an op -> the argument with the op's tags.
OP_TAGS = {
    "op": "tags",
    "asset": "op_tags",
    "multi_asset": "op_tags",
    "asset_check": "op_tags",
    "multi_asset_check": "op_tags",
    "observable_source_asset": "op_tags",
    "multi_observable_source_asset": "op_tags",
    "OpDefinition": "tags",
}
WITHOUT_POOL = GRAPHS | {"observable_source_asset", "job", "define_asset_job", ".to_job"}
_KEYED = frozenset({"asset", "graph_asset", "observable_source_asset"})
_FROM_NODES = {
    "AssetsDefinition.from_op": "op_def",
    "AssetsDefinition.from_graph": "graph_def",
    "AssetsDefinition": "node_def",
}
_TAGGED_BY_ASSET = frozenset(
    {"AssetSpec", "AssetOut", "SourceAsset", "asset", "graph_asset", "observable_source_asset"}
)
_POOL_NAME = re.compile(r"\S+")


class Definitions:
    """Reads the definitions of all files; graphs last, since theirs are the pools of their ops."""

    def __init__(self) -> None:
        self.rows: list[Definition] = []
        self.findings: list[Finding] = []
        self._by_node: dict[int, Definition] = {}
        self._composed: list[tuple[Site, Function]] = []
        self._taken: list[tuple[str, Site]] = []
        self.asset_tags: list[tuple[str, Site]] = []

    def add(self, site: Site) -> None:
        """Take up one use of a name of Dagster's; those that define nothing are passed over."""
        name = site.given.name
        if name in _TAGGED_BY_ASSET:
            self._asset_tags(site)
        if name in WITHOUT_POOL and site.given.has("pool"):
            self._find("refused", site, f"`pool=` of {name.lstrip('.')}", "it takes none; name it on the ops")
        if name in _FROM_NODES or name == ".configured":
            self._taken.append((name, site))
        if name.endswith("_assets") and site.decorated is not None:  # of dagster_dbt, dagster_dlt and others
            name = "multi_asset"
        if site.decorated is not None and (name == "job" or name in GRAPHS):
            self._composed.append((site, site.decorated))
        elif name in GRAPHS and site.given.positional:
            self._find("unread", site, name, "it is called, not used as a decorator")
        elif name in OP_TAGS and (site.decorated is not None or name == "OpDefinition" or site.given.positional):
            self._own_op(name, site)

    def finish(self) -> None:
        """Read what is made of others: first other definitions' ops under new names, then graphs."""
        pending = self._composed
        while True:  # a graph of graphs has to wait for these
            self._taken = [(name, site) for name, site in self._taken if not self._from_node(name, site)]
            left = [each for each in pending if not self._composition(*each, last=False)]
            if len(left) == len(pending):
                break
            pending = left
        for each in pending:
            self._composition(*each, last=True)
        for name, site in self._taken:
            if name != ".configured":  # an executor's, most often
                self._find("unread", site, name, "its op is none that could be read")

    # -- one op of its own ---------------------------------------------------------------------------------------------

    def _own_op(self, name: str, site: Site) -> None:
        facts = _Facts(self, name, site)
        op_tags = facts.tags(OP_TAGS[name])
        pool = facts.read("pool", lambda: site.given.value("pool"))
        slots = facts.read("slots", lambda: site.given.value("pool_slots"))  # newer than Dagster 1.13
        named_pool = pool if isinstance(pool, str) and pool else None
        by_tag = op_tags.get(CONCURRENCY_KEY) or None
        if named_pool and not _POOL_NAME.fullmatch(named_pool):
            self._find("refused", site, f"pool {named_pool!r}", "a pool's name has no white space")
        if named_pool and by_tag and named_pool != by_tag:
            self._find("refused", site, f"pool {named_pool!r}", f"the tag {CONCURRENCY_KEY} says {by_tag!r}")
        if pool is not None and not isinstance(pool, str):
            self._find("refused", site, f"pool {pool!r}", "a pool is named by a text")
        effective = named_pool or by_tag
        if effective is None and CONCURRENCY_KEY in facts.unknown_tags:
            facts.unread.append("pool")
        self._put(
            site,
            Definition(
                kind="op" if name == "OpDefinition" else name,
                name=facts.name(),
                file=site.given.file,
                line=site.line,
                pools=(effective,) if effective else (),
                slots=slots if type(slots) is int else 1,
                op_tags=op_tags,
                priority=priority_of(op_tags),
                unread=tuple(facts.unread),
            ),
        )

    def _put(self, site: Site, row: Definition) -> None:
        """A row if it surely is defined once and has a name; else a finding that says what is known of it."""
        self._by_node[id(site.node)] = row
        for above in site.below:
            self._find("unread", site, f"{row.kind} {row.name}", f"what `@{above}` above it makes of it")
        if site.unsure is None and row.name:
            self.rows.append(row)
            return
        told = f"pool {', '.join(row.pools)}" if row.pools else "no pool that can be read" if row.unread else "no pool"
        reason = site.unsure or "its name is worked out when the code runs"
        self._find("unread", site, f"{row.kind} {row.name or '?'} ({told})", reason)

    def _asset_tags(self, site: Site) -> None:
        try:
            tags = tags_of(site.given.value("tags"))
        except NotStatic:
            return  # tags of an asset limit nothing, whatever they are
        self.asset_tags += [(key, site) for key in tags.known]
        if CONCURRENCY_KEY in tags.known or CONCURRENCY_KEY in tags.unknown:
            reason = "these are the asset's tags, not its op's: write `pool=`"
            self._find("ignored", site, f"`{CONCURRENCY_KEY}` in `tags=` of {site.given.name}", reason)

    # -- made of other definitions -------------------------------------------------------------------------------------

    def _from_node(self, name: str, site: Site) -> bool:
        """`AssetsDefinition.from_op(op)`, `op.configured(…)`: the same op under another name. False: not read yet."""
        expression = (site.given.of, site.given.scope)
        if name != ".configured":
            expression = site.given.expression(_FROM_NODES[name], 0) or (None, site.given.scope)
        of = self._definition(*expression)
        if of is None:
            return False
        kind = of.kind if name == ".configured" else "graph_asset" if of.kind in GRAPHS else "asset"
        facts = _Facts(self, kind, site)
        own = facts.read("name", lambda: _name_of_made(name, site, of))
        self._put(
            site,
            Definition(
                kind=kind,
                name=own if isinstance(own, str) else "",
                file=site.given.file,
                line=site.line,
                pools=of.pools,
                slots=of.slots,
                op_tags=of.op_tags,
                priority=of.priority,
                unread=tuple(dict.fromkeys((*of.unread, *facts.unread))),
            ),
        )
        return True

    def _composition(self, site: Site, function: Function, *, last: bool) -> bool:
        """A graph's pools are its ops'. False if one of them has not been read yet and this is not the last time."""
        ops = ops_of(function, site.scope, self._by_node)
        if ops.unread and not last:
            return False
        kind = site.given.name
        facts = _Facts(self, kind, site)
        name = facts.name()
        for why in ops.unread:
            self._find("unread", site, f"the ops of {kind} {name or '?'}", why)
        if name and site.unsure is None:
            self.rows += [replace(each, kind="op", name=f"{name}.{each.name}") for each in ops.tagged]
        if kind != "job":
            pools = tuple(sorted({pool for each in ops.all for pool in each.pools}))
            lacking = ops.unread or any("pool" in each.unread for each in ops.all)
            unread = (*facts.unread, *(("pool",) if lacking else ()))
            self._put(
                site,
                Definition(kind=kind, name=name, file=site.given.file, line=site.line, pools=pools, unread=unread),
            )
        return True

    def _definition(self, node: ast.expr | None, scope: Scope) -> Definition | None:
        try:
            found = named(node, scope) if node is not None else None
        except NotStatic:
            return None
        return self._by_node.get(id(found.node)) if isinstance(found, Bound) else None

    def _find(self, kind: FindingKind, site: Site, subject: str, reason: str) -> None:
        self.findings.append(Finding(kind, site.given.file, site.line, subject, reason))


class _Facts:
    """Reads what one definition is given, and keeps what could not be read."""

    def __init__(self, reader: Definitions, kind: str, site: Site) -> None:
        self._reader, self._kind, self._site = reader, kind, site
        self.unread: list[str] = []
        self.unknown_tags: dict[str, str] = {}

    def read(self, what: str, how: Callable[[], Any]) -> Any:
        try:
            return how()
        except NotStatic as error:
            self._cannot(what, error.why)
            return None

    def _cannot(self, what: str, why: str) -> None:
        self.unread.append(what)
        if self._site.unsure is None:
            self._reader.findings.append(
                Finding("unread", self._site.given.file, self._site.line, f"{what} of {self._label()}", why)
            )

    def _label(self) -> str:
        function = self._site.decorated
        return f"{self._kind} {function.name}" if function is not None else self._kind

    def tags(self, argument: str) -> dict[str, str]:
        tags = self.read("op tags", lambda: tags_of(self._site.given.value(argument)))
        if tags is None:
            self.unknown_tags[CONCURRENCY_KEY] = "the tags cannot be read"
            return {}
        self.unknown_tags = tags.unknown
        for key, why in tags.unknown.items():
            self._cannot(f"op tag {key}", why)
        return dict(tags.known)

    def name(self) -> str:
        """The key of an asset, else the op's name; "" if it cannot be read."""
        try:
            return _name_of(self._kind, self._site.given, self._site.decorated)
        except NotStatic as error:
            self._cannot("name", error.why)
            return ""


def _name_of(kind: str, given_: Given, decorated: Function | None) -> str:
    if kind in _KEYED and (key := given_.value("key")) is not None:
        return _slashed(key)
    # `name` may be the value of a spread that is not known; then value() says so.
    own = given_.value("name", 1 if kind == "OpDefinition" else None)
    if own is None:
        own = decorated.name if decorated is not None else _function_name(given_)
    prefix = given_.value("key_prefix") if kind in _KEYED else None
    return _slashed([*([prefix] if isinstance(prefix, str) else prefix or []), own])


def _function_name(given_: Given) -> str:
    if given_.positional:
        found = named(given_.positional[0], given_.scope)
        if isinstance(found, Bound) and isinstance(found.node, Function):
            return found.node.name
    raise NotStatic("its function is not defined below PATH")


def _name_of_made(name: str, site: Site, of: Definition) -> str:
    given_ = site.given
    if name == ".configured":
        own = given_.value("name", 1)
        return own if isinstance(own, str) else site.decorated.name if site.decorated is not None else of.name
    keys = given_.value("keys_by_output_name")
    if isinstance(keys, dict) and len(keys) == 1:
        return _slashed(next(iter(keys.values())))
    prefix = given_.value("key_prefix")
    return _slashed([*([prefix] if isinstance(prefix, str) else prefix or []), of.name])


def _slashed(key: Any) -> str:
    parts = [key] if isinstance(key, str) else key
    if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
        return "/".join(parts)
    raise NotStatic("it is no text")
