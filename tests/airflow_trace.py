"""Every state that task instances and runs of an Airflow on PostgreSQL take, as its database saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import create_engine, text

_SETUP = """
CREATE TABLE traced (
    id bigserial PRIMARY KEY, at double precision, dag_id text, run_id text, task_id text, map_index int,
    try_number int, state text);
CREATE FUNCTION trace_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state OR NEW.try_number IS DISTINCT FROM OLD.try_number THEN
        INSERT INTO traced (at, dag_id, run_id, task_id, map_index, try_number, state) VALUES (
            extract(epoch FROM clock_timestamp()), NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.try_number,
            NEW.state);
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION trace_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state THEN
        INSERT INTO traced (at, dag_id, run_id, state)
        VALUES (extract(epoch FROM clock_timestamp()), NEW.dag_id, NEW.run_id, NEW.state);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER trace_task AFTER INSERT OR UPDATE ON task_instance FOR EACH ROW EXECUTE FUNCTION trace_task();
CREATE TRIGGER trace_run AFTER INSERT OR UPDATE ON dag_run FOR EACH ROW EXECUTE FUNCTION trace_run();
"""


@dataclass(frozen=True, slots=True)
class State:
    """`at` is in seconds since 1970; `task_id` None is the run itself; `state` None is a task not scheduled yet."""

    at: float
    dag_id: str
    run_id: str
    task_id: str | None
    map_index: int
    try_number: int
    state: str | None


class Trace:
    """Database triggers in Airflow's metadata that write down each change: nothing is missed, and nobody polls."""

    def __init__(self, metadata_url: str) -> None:
        self._engine = create_engine(metadata_url, isolation_level="AUTOCOMMIT")
        with self._engine.connect() as connection:
            connection.exec_driver_sql(_SETUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def states(self, dag_id: str, *, since: float = 0.0) -> list[State]:
        """Of all runs of a DAG and their tasks, in order of time."""
        rows = self._rows(
            "SELECT at, dag_id, run_id, task_id, coalesce(map_index, -1), coalesce(try_number, 0), state FROM traced "
            "WHERE dag_id = :dag_id AND at >= :since ORDER BY id",
            dag_id=dag_id,
            since=since,
        )
        return [State(*row) for row in rows]

    def run_states(self, run_id: str) -> dict[str, str]:
        """DAG id → state now, of all runs of that id."""
        return {row[0]: row[1] for row in self._rows("SELECT dag_id, state FROM dag_run WHERE run_id = :id", id=run_id)}

    def forget_job(self, job_type: str) -> None:
        """As if a minute had passed since a killed `SchedulerJob` or `TriggererJob` was heard of last.

        What it forked may live on and still have its connections: PostgreSQL then does not learn of its death, and the
        transaction in which it died would keep its locks.
        """
        with self._engine.connect() as connection:
            statement = (
                "UPDATE job SET latest_heartbeat = latest_heartbeat - interval '1 minute' WHERE job_type = :kind"
            )
            connection.execute(text(statement), {"kind": job_type})
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND state LIKE 'idle in transaction%%' AND state_change < clock_timestamp() - interval '1 second'"
            )

    def _rows(self, statement: str, **values: Any) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(text(statement), values).all()


def worded(states: Sequence[State], task_id: str) -> str:
    """The states of one task in a line, attempts apart: `scheduled queued running up_for_retry | … success`."""
    line: list[str] = []
    attempt = 0
    for one in states:
        if one.task_id == task_id and one.state is not None:
            if line and one.try_number != attempt:
                line.append("|")
            attempt = one.try_number
            if line[-1:] != [one.state]:
                line.append(one.state)
    return " ".join(line)
