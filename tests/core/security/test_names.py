"""Names, tags and ids that mean something to databases, formats or templates: kept as they are, or refused."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hostile import ALIKE, TEXTS, UNSTORABLE, acts, usable
from penstock import changes
from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency
from penstock.config_file import read
from penstock.errors import ClaimError, ConfigError, PenstockError
from penstock.rules import KEY_MAX_BYTES
from penstock.store.contract import Deployment
from penstock.store.sql import SqlStore
from sqlalchemy.engine import make_url

on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@on_sql
@pytest.mark.parametrize("hostile", TEXTS.values(), ids=TEXTS)
def test_what_is_taken_comes_back_as_it_was(hostile: str, store: SqlStore, new_engine: Callable[..., Any]) -> None:
    pool = usable(hostile)
    rules = [
        {"key": hostile, "value": {"applyLimitPerUniqueValue": True}, "limit": 3},
        {"key": "k", "value": hostile, "limit": 2},
    ]
    block = {
        "pools": {"limits": {pool: {"limit": 2, "description": hostile}}},
        "runs": {"tag_concurrency_limits": rules},
        "ops": {"max_concurrent": 5, "tag_concurrency_limits": rules},
    }
    engine = new_engine(host="process", deployment=hostile[:3000])
    changes.apply(engine, Concurrency.model_validate(block), expected_version=0)
    assert store.configuration().document["pools"]["limits"][pool]["description"] == hostile
    tags = {hostile: hostile, "k": hostile} if len(hostile) < 9000 else {"k": hostile}
    with contextlib.ExitStack() as held:
        run = engine.acquire(engine.run_claim(hostile[:3000], tags=tags))
        held.callback(run.release)
        op = replace(
            engine.claim(pool, tags=tags, run_id=hostile[:3000], op_id=hostile, in_run=True), url=hostile, name=hostile
        )
        held.callback(engine.acquire(op).release)
        waiting = engine.request(engine.claim({pool: 2}, op_id="waits", tags=tags))
        waiting.step()
        held.callback(waiting.withdraw)
        there = {row.claim.op_id: row.claim for row in store.snapshot().claims}
        assert there[hostile] == op
        assert dict(there[None].tags) == tags
        assert there[None].run_id == hostile[:3000]
        json.dumps(engine.status())
        assert engine.explain(hostile)["matches"]
    labels = [row.label for row in store.history() if row.event.value == "released"]
    assert sorted(labels) == sorted([run.claim.label, op.label])
    assert not store.snapshot().claims


@on_sqlite
@pytest.mark.parametrize("hostile", TEXTS.values(), ids=TEXTS)
def test_what_a_log_is_told_of_it_is_one_line_that_acts_on_nothing(
    hostile: str, configure: Callable[..., None], new_engine: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A run id with a line feed wrote lines of its own choice into the logs of whoever waited for it."""
    pool = usable(hostile)
    rule = {"key": "k", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    configure(pools={"limits": {pool: 1}}, runs={"tag_concurrency_limits": [rule]})
    caplog.set_level(logging.INFO)
    engine, errors = new_engine(deployment=hostile[:3000]), list[PenstockError]()

    def claims() -> list[Claim]:
        run = engine.run_claim(hostile[:3000], tags={"k": hostile[:3000]})
        return [run, engine.claim({pool: 1}, run_id=hostile[:3000], op_id=hostile), engine.claim("a", op_id=hostile)]

    held = [engine.acquire(claim) for claim in claims()]
    for claim in claims():
        other = replace(claim, run_id=f"{claim.run_id}2", name=hostile)
        for how in ({"wait_timeout_seconds": 0.6}, {"on_blocked": "fail"}):
            with contextlib.suppress(PenstockError):
                engine.acquire(other, **how).release()
        try:
            engine.acquire(other, wait_timeout_seconds=0.0).release()
        except PenstockError as error:
            errors.append(error)
    engine.session_is_gone(engine.session_id())
    said = [record.getMessage() for record in caplog.records] + list(map(str, errors)) + list(map(repr, held))
    assert len(said) > 10
    assert [text for text in said if "\n" in text or acts(text)] == []


@on_sql
@pytest.mark.parametrize("hostile", UNSTORABLE.values(), ids=UNSTORABLE)
def test_what_no_database_keeps_is_refused_at_the_door(
    hostile: str, store: SqlStore, new_engine: Callable[..., Any]
) -> None:
    """Half a surrogate pair ended in a UnicodeEncodeError, and a text of 70 kB in a DataError of MariaDB's."""
    engine = new_engine()
    for arguments in (
        {"op_id": hostile},
        {"run_id": hostile},
        {"tags": {hostile: "v"}},
        {"tags": {"k": hostile}},
        {"pools": {hostile: 1}},
    ):
        with pytest.raises(ClaimError):
            engine.claim(arguments.pop("pools", "a"), **arguments)
    for field in ("host", "deployment", "claim_id", "parent_id", "step", "name", "url"):
        with pytest.raises(ClaimError, match=field):
            Claim(**{"kind": ClaimKind.OP, "host": "h", "deployment": "d", field: hostile})
    assert not store.snapshot().claims


@on_sql
def test_names_that_look_alike_never_share_a_limit(engine: Any, configure: Callable[..., None]) -> None:
    configure(runs={"tag_concurrency_limits": [{"key": "k", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]})
    leases = [engine.acquire(engine.run_claim(f"run {value}", tags={"k": value}), on_blocked="fail") for value in ALIKE]
    assert len({slot.limit for lease in leases for slot in lease.slots if slot.limit.startswith("run_tag")}) == len(
        ALIKE
    )
    pools = [name for name in ALIKE if not any(map(str.isspace, name))]
    changes.apply(
        engine,
        Concurrency.model_validate({"pools": {"limits": dict.fromkeys(pools, 1)}}),
        expected_version=engine.configuration(fresh=True)[0],
    )
    assert len([engine.acquire(engine.claim(name), on_blocked="fail") for name in pools]) == len(pools)


@on_sql
def test_runs_and_deployments_that_look_alike_are_not_each_other(
    store: SqlStore, new_engine: Callable[..., Any]
) -> None:
    """MariaDB's `utf8mb4_bin` takes `a` for `a ` where two texts are compared."""
    for name in ALIKE:
        store.register(Deployment("h", name, f"of {name!r}"))
    assert sorted(row.name for row in store.deployments()) == sorted(ALIKE)
    engine = new_engine()
    leases = [engine.acquire(engine.run_claim(name)) for name in ALIKE]
    assert len({lease.claim_id for lease in leases}) == len(ALIKE)
    for name in ALIKE:
        found = store.run_lease(engine.run_claim(name).holder or "")
        assert found is not None
        assert found.claim_id == leases[ALIKE.index(name)].claim_id
    store.forget("h", "a ")
    assert {row.name for row in store.deployments()} == {*ALIKE} - {"a "}


@pytest.mark.parametrize("store_kind", ["mariadb"], indirect=True)
def test_a_lax_mariadb_cuts_nothing(store_url: str, store: SqlStore) -> None:
    """Where the server's sql_mode is not strict, it cut a text that is too long for its column."""
    lax = make_url(store_url).update_query_dict({"init_command": "SET sql_mode = 'ANSI_QUOTES'", "charset": "latin1"})
    other = SqlStore(lax.render_as_string(hide_password=False))
    with pytest.raises(PenstockError, match="too long"):
        other.register(Deployment("h", "long", "x" * 70_000))
    other.register(Deployment("h", "👧", "👧"))
    assert [row.name for row in store.deployments()] == ["👧"]
    other.close()


@on_sqlite
def test_a_limit_whose_name_would_not_fit_is_refused(engine: Any, configure: Callable[..., None]) -> None:
    configure(
        runs={"tag_concurrency_limits": [{"key": "=" * 9000, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]}
    )
    with pytest.raises(ClaimError, match=f"at most {KEY_MAX_BYTES} fit"):
        engine.acquire(engine.run_claim("r", tags={"=" * 9000: "=" * 15_000}))
    engine.acquire(engine.run_claim("r", tags={"=" * 9000: "=" * 9_000 + "👧" * 200}), on_blocked="fail")


# -- through files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", TEXTS.values(), ids=TEXTS)
def test_a_file_may_say_it(hostile: str) -> None:
    block = {
        "pools": {"limits": {usable(hostile): {"limit": 1, "description": hostile}}},
        "runs": {"tag_concurrency_limits": [{"key": hostile, "value": hostile, "limit": 1}]},
    }
    found = read(yaml.safe_dump({"concurrency": block})).concurrency
    assert found.runs.tag_concurrency_limits[0].value == hostile
    assert found.pools.limits[usable(hostile)].description == hostile


@pytest.mark.parametrize("hostile", UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_file_may_not_say_it(hostile: str) -> None:
    """A NUL in a tag's name stood in the store's configuration, and no run could claim any more."""
    for block in (
        {"pools": {"limits": {hostile: 1}}},
        {"pools": {"limits": {"a": {"limit": 1, "description": hostile}}}},
        {"runs": {"tag_concurrency_limits": [{"key": hostile, "limit": 1}]}},
        {"ops": {"tag_concurrency_limits": [{"key": "k", "value": hostile, "limit": 1}]}},
    ):
        with pytest.raises(ConfigError) as refused:
            read(json.dumps({"concurrency": block}))
        assert len(refused.value.faults) == 1
        assert refused.value.faults[0].line == 1
