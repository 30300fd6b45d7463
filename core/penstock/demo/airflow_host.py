"""A whole Airflow of its own, for the demo and the tests: scheduler, dag-processor, triggerer and API server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from penstock.demo.processes import HostFailed, Processes, free_port

COMPONENTS = ("api-server", "dag-processor", "scheduler", "triggerer")
FINISHED = frozenset({"success", "failed"})
_PAGE = 100
LOOKS = 3
"""So often a server that hardly runs is asked before what it has failed to say counts."""


class _Overloaded(HostFailed):
    """The server did not get to answer."""


class AirflowHost:
    """One Airflow installation in a folder. Nothing of the caller's own Airflow or Penstock settings reaches it.

    `bin_folder` is that of the Python environment with Airflow and Penstock. `store_url` None leaves Penstock inactive.
    `metadata_url` is a SQLAlchemy URL whose driver can do async as well (postgresql+psycopg can); without it Airflow
    keeps its metadata in an SQLite file in `home`. `users` are names with their roles, an admin first, whose passwords
    are in `passwords`; without any, everybody is an admin and nobody signs in.
    """

    def __init__(
        self,
        bin_folder: Path,
        home: Path,
        dags_folder: Path,
        *,
        store_url: str | None,
        deployment: str = "airflow",
        metadata_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._roles = dict(users or {})
        self.passwords = {name: secrets.token_hex(8) for name in self._roles}
        self.home, self.dags_folder, self.metadata_url = home, dags_folder, metadata_url
        self._bin = bin_folder
        self._own_metadata = home / "airflow.db" if metadata_url is None else None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        settings = self._settings(metadata_url, store_url, deployment)
        self.environment = _clean_environment(bin_folder) | settings | dict(environment or {})
        self.processes = Processes(home / "components", self.environment)
        self.start_seconds: dict[str, float] = {}
        self._token: str | None = None

    def _settings(self, metadata_url: str | None, store_url: str | None, deployment: str) -> dict[str, str]:
        """Airflow's settings. Intervals are short: a demo should show waits for slots, not for the host."""
        options: dict[str, dict[str, object]] = {
            "core": {
                "dags_folder": self.dags_folder,
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": 8,
                "dags_are_paused_at_creation": False,
                "simple_auth_manager_all_admins": not self._roles,
                "simple_auth_manager_users": ",".join(f"{name}:{role}" for name, role in self._roles.items()) or None,
                "simple_auth_manager_passwords_file": self.home / "passwords.json",
                "execution_api_server_url": f"{self.url}/execution/",
            },
            # On SQLite Airflow finds the async driver itself.
            "database": {
                "sql_alchemy_conn": metadata_url or f"sqlite:///{self._own_metadata}",
                "sql_alchemy_conn_async": metadata_url,
            },
            "api": {
                "host": "127.0.0.1",
                "port": self._port,
                "base_url": self.url,
                "workers": 1,
                "secret_key": secrets.token_hex(16),
            },
            "api_auth": {"jwt_secret": secrets.token_hex(32)},
            "logging": {"worker_log_server_port": free_port(), "trigger_log_server_port": free_port()},
            "scheduler": {"scheduler_idle_sleep_time": 0.2, "enable_health_check": False},
            "dag_processor": {"refresh_interval": 5, "min_file_process_interval": 60},
            "usage_data_collection": {"enabled": False},
            "penstock": {"deployment": deployment, "store_url": store_url},
        }
        settings = {"AIRFLOW_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        for section, values in options.items():
            for option, value in values.items():
                if value is not None:
                    settings[f"AIRFLOW__{section.upper()}__{option.upper()}"] = str(value)
        return settings

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self, dag_ids: Collection[str], *, seconds: float = 120.0) -> Self:
        """Create the metadata, start every component, return when these DAGs are parsed and can be triggered.

        Raises HostFailed, also on an import error of a DAG file. `start_seconds` then says how long each part took.
        """
        began = time.monotonic()
        self.processes.folder.mkdir(parents=True, exist_ok=True)
        (self.home / "passwords.json").write_text(json.dumps(self.passwords))
        if self._own_metadata is not None:  # several processes write: readers must not block them
            with sqlite3.connect(self._own_metadata) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        self.command("db", "migrate", seconds=seconds)
        self.start_seconds["metadata"] = time.monotonic() - began
        self._start_components(COMPONENTS, dag_ids, began, seconds=seconds)
        return self

    def restart(self, dag_ids: Collection[str], environment: Mapping[str, str], *, seconds: float = 120.0) -> None:
        """Kill all that has to do with tasks, which is every component but the API server, and start it with
        `environment` added; return when these DAGs are parsed anew.

        Raises HostFailed.
        """
        began, components = time.monotonic(), COMPONENTS[1:]
        for component in components:
            self.processes.kill(component)
        self.environment.update(environment)
        self._start_components(components, dag_ids, began, seconds=seconds)

    def _start_components(
        self, components: Sequence[str], dag_ids: Collection[str], began: float, *, seconds: float
    ) -> None:
        since = datetime.now(UTC)
        for component in components:
            self.start_component(component)
        self.processes.wait_for("the API server answers", self._answers, seconds=seconds)
        self.start_seconds["API server"] = time.monotonic() - began
        self.processes.wait_for("the DAGs are parsed", lambda: self._parsed(dag_ids, since), seconds=seconds)
        self.start_seconds["DAGs"] = time.monotonic() - began
        self.wait_until_healthy(seconds=seconds)
        self.start_seconds["all"] = time.monotonic() - began

    def start_component(self, component: str, environment: Mapping[str, str] | None = None) -> None:
        """Start one of COMPONENTS, after `processes.kill`; `environment` is added to its own."""
        self.processes.start(component, [self._bin / "airflow", component], environment)

    def wait_until_healthy(self, *, seconds: float = 60.0) -> None:
        """Return when every component that reports has done so lately. Raises HostFailed."""
        self.processes.wait_for("the components are healthy", self._healthy, seconds=seconds)

    def stop(self) -> None:
        """End every component and everything it started."""
        self.processes.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self, *arguments: str, seconds: float = 60.0) -> str:
        """The standard output of an `airflow` command in this installation. Raises HostFailed."""
        return self.processes.run(f"airflow {arguments[0]}", [self._bin / "airflow", *arguments], seconds=seconds)

    def _answers(self) -> bool:
        try:
            self._request("GET", "/api/v2/version")
        except HostFailed:
            return False
        return True

    def _parsed(self, dag_ids: Collection[str], since: datetime) -> bool:
        if errors := self._all("/api/v2/importErrors", "import_errors"):
            text = "\n".join(f"{error['filename']}:\n{error['stack_trace']}" for error in errors)
            raise HostFailed(f"Airflow cannot import a DAG file\n{text}")
        dags = self._all("/api/v2/dags", "dags")
        parsed = {dag["dag_id"] for dag in dags if datetime.fromisoformat(dag["last_parsed_time"]) >= since}
        return parsed >= set(dag_ids)

    def health(self) -> dict[str, Any]:
        """What the components that report say of themselves, as the API has it."""
        return self._request("GET", "/api/v2/monitor/health")

    def _healthy(self) -> bool:
        health = self.health()
        return all(health[part]["status"] == "healthy" for part in ("scheduler", "triggerer", "dag_processor"))

    # -- pools and runs ----------------------------------------------------------------------------------------------

    def create_pool(self, name: str, slots: int) -> None:
        """A pool of Airflow's own: without it a task that names it is never scheduled, whatever Penstock says."""
        self._request("POST", "/api/v2/pools", {"name": name, "slots": slots, "include_deferred": False})

    def trigger(
        self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None, *, logical_date: datetime | None = None
    ) -> None:
        """Start a run of a DAG."""
        date = logical_date and logical_date.isoformat()
        body = {"dag_run_id": run_id, "logical_date": date, "conf": dict(conf or {})}
        self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """End a run as a user does by hand: `success` or `failed`."""
        run = urllib.parse.quote(run_id, safe="")
        self._request("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run}", {"state": state})

    def mark_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """End a task instance as a user does by hand: `success` or `failed`."""
        run = urllib.parse.quote(run_id, safe="")
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}"
        self._request("PATCH", path, {"new_state": state})

    def clear_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Have a task instance begin anew, whatever its state."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": [task_id]}
        self._request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def run_states(self, dag_id: str) -> dict[str, str]:
        """Run id → state, of every run of a DAG."""
        runs = self._all(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs")
        return {run["dag_run_id"]: run["state"] for run in runs}

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run: task_id, map_index, state, try_number, start_date, end_date and more."""
        run = urllib.parse.quote(run_id, safe="")
        return self._all(f"/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances", "task_instances")

    def wait_for_runs(
        self, dag_id: str, run_ids: Sequence[str], *, seconds: float, expected: str | None = "success"
    ) -> dict[str, str]:
        """The states of these runs once all are over. Raises HostFailed on time-out, or when a state is not `expected`.

        `expected` None takes any.
        """
        states: dict[str, str] = {}

        def over() -> bool:
            states.update(self.run_states(dag_id))
            return all(states.get(run_id) in FINISHED for run_id in run_ids)

        try:
            self.processes.wait_for(f"the runs of {dag_id} are over", over, seconds=seconds)
        except HostFailed as error:
            raise HostFailed(f"{error}\n{self.logs(dag_id)}") from error
        result = {run_id: states[run_id] for run_id in run_ids}
        if expected is not None and set(result.values()) != {expected}:
            raise HostFailed(f"{dag_id}: {result}, expected {expected}\n{self.logs(dag_id)}")
        return result

    # -- logs --------------------------------------------------------------------------------------------------------

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """All that the log of a task instance says, every attempt, triggers included."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("attempt=*")))

    def logs(self, dag_id: str | None = None, *, lines: int = 60) -> str:
        """The ends of all logs: components, then tasks (of one DAG, or of all)."""
        texts = [self.processes.tail(component, lines=lines) for component in COMPONENTS]
        for path in sorted((self.home / "logs").glob(f"dag_id={dag_id or '*'}/**/attempt=*")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            texts.append(f"--- {path.relative_to(self.home / 'logs')}\n" + "\n".join(tail))
        return "\n".join(texts)

    # -- the REST API ------------------------------------------------------------------------------------------------

    def _all(self, path: str, key: str) -> list[dict[str, Any]]:
        """Every item of a list, page after page."""
        items: list[dict[str, Any]] = []
        while True:
            page = self._request("GET", f"{path}?limit={_PAGE}&offset={len(items)}")
            items += page[key]
            if not page[key] or len(items) >= page["total_entries"]:
                return items

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        for _ in range(LOOKS - 1 if method == "GET" else 0):
            with contextlib.suppress(_Overloaded):
                return self._ask(method, path, body)
            time.sleep(1.0)
        return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  # our own URL on loopback
            self.url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"} | self._authorization(),
        )
        try:
            with _DIRECT.open(request, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            if error.code == 401 and self._token is None:  # Airflow 3.1 wants a token even where all are admins
                self._token = self._signed_in()
                return self._ask(method, path, body)
            kind = _Overloaded if error.code >= 500 else HostFailed
            raise kind(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:1000]}") from error
        except TimeoutError as error:
            raise _Overloaded(f"{method} {path}: {error}\n{self.processes.tail('api-server')}") from error
        except (OSError, http.client.HTTPException) as error:
            raise HostFailed(f"{method} {path}: {error}\n{self.processes.tail('api-server')}") from error

    def _signed_in(self) -> str:
        """A token of the first user's, or of the admin that everybody is."""
        body = None
        if self.passwords:
            name, password = next(iter(self.passwords.items()))
            body = json.dumps({"username": name, "password": password}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/auth/token", data=body, headers=headers)  # noqa: S310  # as above
        with _DIRECT.open(request, timeout=30) as response:
            token: str = json.load(response)["access_token"]
            return token

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


def _clean_environment(bin_folder: Path) -> dict[str, str]:
    ours = ("AIRFLOW", "PENSTOCK", "PYTHON", "VIRTUAL_ENV", "PYTEST")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["PATH"] = os.pathsep.join([str(bin_folder), environment.get("PATH", os.defpath)])
    environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1,localhost"
    return environment
