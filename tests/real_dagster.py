"""What real Dagster makes of a module: pools, op tags, executors and run tags, in the words of our report."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.multiprocess import MultiprocessExecutor
from dagster._core.system_config.objects import ResolvedRunConfig

KEY = "dagster/concurrency_key"


@dataclass(frozen=True)
class Real:
    """A definition as Dagster has it."""

    name: str
    pools: tuple[str, ...]
    op_tags: dict[str, str] | None  # None: a graph's, which has no op of its own


def definitions(module: ModuleType) -> Iterator[Real]:
    """The assets, ops, checks and graphs among a module's names, and the ops that its jobs call under tags."""
    seen: set[int] = set()
    for value in vars(module).values():
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dg.AssetChecksDefinition):
            names = {key.name for key in value.check_keys}
            own = (
                names.pop()
                if len(names) == 1 and value.node_def.name.endswith(f"_{max(names)}")
                else value.node_def.name
            )
            yield _of_node(value.node_def, own)
        elif isinstance(value, dg.AssetsDefinition):
            keys = list(value.keys)
            graph = isinstance(value.node_def, dg.GraphDefinition)
            own = "/".join(keys[0].path) if len(keys) == 1 else value.node_def.name
            yield _of_node(value.node_def, own) if not graph else Real(own, _pools(value.node_def), None)
        elif isinstance(value, dg.SourceAsset) and value.node_def is not None:
            yield _of_node(value.node_def, "/".join(value.key.path))
        elif isinstance(value, dg.OpDefinition | dg.GraphDefinition):
            yield _of_node(value, value.name)
        elif isinstance(value, dg.JobDefinition):
            yield from _invocations(value)


def _of_node(node: Any, name: str) -> Real:
    if isinstance(node, dg.GraphDefinition):
        return Real(name, _pools(node), None)
    pool = node.pool or node.tags.get(KEY)
    return Real(name, (pool,) if pool else (), dict(node.tags))


def _pools(graph: Any) -> tuple[str, ...]:
    found: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.definition, dg.GraphDefinition):
            found.update(_pools(node.definition))
        elif pool := node.definition.pool or node.tags.get(KEY):
            found.add(pool)
    return tuple(sorted(found))


def _invocations(job: dg.JobDefinition) -> Iterator[Real]:
    for node in job.graph.nodes:
        if isinstance(node.definition, dg.OpDefinition) and dict(node.tags) != dict(node.definition.tags):
            pool = node.definition.pool or node.tags.get(KEY)
            yield Real(f"{job.name}.{node.name}", (pool,) if pool else (), dict(node.tags))


@dataclass(frozen=True)
class RealRuns:
    """A job as Dagster runs it: `max_concurrent` 1 is the executor in one process."""

    name: str
    max_concurrent: int
    tag_concurrency_limits: list[Any]
    run_tags: dict[str, str]


def runs_of(job: dg.JobDefinition, run_config: Any = None) -> RealRuns:
    """What bounds the runs of a job."""
    config = run_config or job.run_config or {}
    resolved = ResolvedRunConfig.build(job, config)
    create = job.executor_def.executor_creation_fn
    assert create is not None
    executor = create(
        InitExecutorContext(
            job=InMemoryJob(job),
            executor_def=job.executor_def,
            executor_config=resolved.execution.execution_engine_config,
            instance=_instance(),
        )
    )
    if isinstance(executor, MultiprocessExecutor):
        limits = executor._tag_concurrency_limits or []
        return RealRuns(job.name, executor._max_concurrent, list(limits), dict(job.run_tags))
    return RealRuns(job.name, 1, [], dict(job.run_tags))


@functools.cache
def _instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def jobs(modules: list[ModuleType], repository: Any) -> dict[str, dg.JobDefinition]:
    """All jobs by name: those of the code location as it has them, others as their module has them."""
    found: dict[str, dg.JobDefinition] = {}
    for module in modules:
        found |= {each.name: each for each in vars(module).values() if isinstance(each, dg.JobDefinition)}
    located = {job.name: job for job in repository.get_all_jobs() if not job.name.startswith("__")}
    return found | located


def quiet() -> None:
    """Dagster warns of what is beta and of odd tags."""
    warnings.simplefilter("ignore")
