"""The parts of Dagster's settings that limit, as Dagster 1.13 checks them. Keys of other parts are not looked into.

Types are strict: Dagster takes neither "5" nor 5.0 for a number, nor null for a number or a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from penstock.config_file import shown
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictBool, StrictInt, StrictStr, ValidationError

MAX_POOL_LIMIT = 1000
MAX_POOL_LIMIT_VARIABLE = "DAGSTER_MAX_GLOBAL_OP_CONCURRENCY_LIMIT"


class Env(BaseModel):
    """`{env: NAME}`: the value is in an environment variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    env: StrictStr


def _int_source(value: Any) -> int | Env:
    if isinstance(value, Mapping):
        try:
            return Env.model_validate(value)
        except ValidationError:
            raise ValueError(f"{shown(value)} found; a whole number, or {{env: NAME}}, is expected") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} found; a whole number, or {{env: NAME}}, is expected")
    return value


def _rule_value(value: Any) -> str | bool:
    """A value; True: each value for itself; False: any value together."""
    if isinstance(value, Mapping) and value.keys() == {"applyLimitPerUniqueValue"}:
        value = value["applyLimitPerUniqueValue"]
        if isinstance(value, bool):
            return value
    elif isinstance(value, str):
        return value
    raise ValueError(f"{shown(value)} found; text, or {{applyLimitPerUniqueValue: true}}, is expected")


IntSource = Annotated[Any, PlainValidator(_int_source)]
# An absent key has the default, which is not checked; null is no number.
NOT_SET: Any = Field(default=None)


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TagRule(_Block):
    """One of `tag_concurrency_limits`."""

    key: StrictStr
    value: Annotated[Any, PlainValidator(_rule_value)] = False
    limit: StrictInt


Rules = list[TagRule] | None


class Pools(_Block):
    """`concurrency.pools`."""

    default_limit: StrictInt = NOT_SET
    granularity: Literal["op", "run", ""] = NOT_SET
    op_granularity_run_buffer: StrictInt = NOT_SET


class Runs(_Block):
    """`concurrency.runs`."""

    max_concurrent_runs: StrictInt = NOT_SET
    tag_concurrency_limits: Rules = None


class Concurrency(_Block):
    """`concurrency`."""

    pools: Pools | None = None
    runs: Runs | None = None
    default_op_concurrency_limit: StrictInt = NOT_SET


class Blocking(_Block):
    """`block_op_concurrency_limited_runs` of a queue."""

    enabled: StrictBool = NOT_SET
    op_concurrency_slot_buffer: StrictInt = NOT_SET


class Queue(_Block):
    """`run_queue`, and the `config` of QueuedRunCoordinator."""

    max_concurrent_runs: IntSource = NOT_SET
    tag_concurrency_limits: Rules = None
    dequeue_interval_seconds: IntSource = NOT_SET
    dequeue_use_threads: StrictBool = NOT_SET
    dequeue_num_workers: IntSource = NOT_SET
    max_user_code_failure_retries: IntSource = NOT_SET
    user_code_failure_retry_delay: IntSource = NOT_SET
    block_op_concurrency_limited_runs: Blocking = NOT_SET


class Coordinator(_Block):
    """`run_coordinator`; what its `config` may hold is the business of the class."""

    module: StrictStr
    class_: StrictStr = Field(alias="class")
    config: dict[str, Any] = NOT_SET


class RunMonitoring(_Block):
    """`run_monitoring`."""

    enabled: StrictBool = NOT_SET
    start_timeout_seconds: StrictInt = NOT_SET
    cancel_timeout_seconds: StrictInt = NOT_SET
    max_runtime_seconds: StrictInt = NOT_SET
    max_resume_run_attempts: StrictInt = NOT_SET
    poll_interval_seconds: StrictInt = NOT_SET
    cancellation_thread_poll_interval_seconds: StrictInt = NOT_SET
    free_slots_after_run_end_seconds: StrictInt = NOT_SET


class Settings(_Block):
    """The blocks that are read, each None where it is absent."""

    concurrency: Concurrency | None = None
    run_queue: Queue | None = None
    run_coordinator: Coordinator | None = None
    run_monitoring: RunMonitoring | None = None
