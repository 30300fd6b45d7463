"""A real Prefect of one's own: a server with its SQLite database in a folder, and processes that run flows on it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from penstock.demo.processes import HostFailed, Processes, free_port

PAGE_ROWS = 200
BUSY_SECONDS = 30.0
"""So long a server may say that its database is locked, as one on SQLite does now and then."""
STARTED = "started!"
"""What a worker writes when it begins to ask for work."""
FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


class PrefectHost:
    """A Prefect server and its flow processes; `stop` leaves nothing running.

    `bin_folder` is that of a Python environment with Prefect and Penstock; `home` becomes PREFECT_HOME.
    `store_url` None leaves Penstock inactive; `settings` are further environment variables. `database_url` is where the
    server keeps its data, else a SQLite file in `home`. `auth`, `user:password`, is what the server then asks of all.
    Times are in seconds.
    """

    def __init__(
        self,
        bin_folder: Path,
        home: Path,
        store_url: str | None,
        deployment: str,
        *,
        settings: Mapping[str, str] | None = None,
        database_url: str | None = None,
        auth: str | None = None,
    ) -> None:
        self.bin_folder, self.home, self.store_url = Path(bin_folder), Path(home), store_url
        self.port = free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        self._headers = {"Content-Type": "application/json"}
        secrets = {}
        if auth is not None:
            self._headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
            secrets = {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PENSTOCK_"))}
        environment = {
            **inherited,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url or f"sqlite+aiosqlite:///{self.home / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_CLI_COLORS": "false",
            # Nothing here is scheduled, late or automated: these services only load the machine.
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
            "DO_NOT_TRACK": "1",
            # Their logs are read while they run.
            "PYTHONUNBUFFERED": "1",
            "PREFECT_INTEGRATIONS_PENSTOCK_DEPLOYMENT": deployment,
            **({"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": store_url} if store_url is not None else {}),
            **secrets,
            **(settings or {}),
        }
        self._server = Processes(self.home / "server", environment)
        self._flows = Processes(self.home / "flows", environment)
        self._workers = Processes(self.home / "workers", environment)
        self._flow_names: list[str] = []
        self._worker_names: list[str] = []

    def start(self, *, seconds: float = 90.0) -> float:
        """Start the server and wait until it answers; how long that took. Raises HostFailed with its log."""
        started_at = time.monotonic()
        self.home.mkdir(parents=True, exist_ok=True)
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._server.start("prefect-server", [self.bin_folder / "prefect", "server", "start", "--no-ui", *where])
        self._server.wait_for("the Prefect server answers", self._answers, seconds=seconds)
        return time.monotonic() - started_at

    def restart_server(self, *, kill: bool = False, seconds: float = 90.0) -> None:
        """Stop the server and start it again on its database; `kill`: by SIGKILL."""
        if kill:
            self._server.kill("prefect-server")
        self._server.stop()
        self.start(seconds=seconds)

    def start_worker(self, name: str, pool: str, *options: str, seconds: float = 90.0) -> None:
        """Start a worker of a work pool and wait until it polls; `options` are those of `prefect worker start`."""
        prefect: list[str | Path] = [self.bin_folder / "prefect", "worker", "start", "--pool", pool, "--name", name]
        self._start_worker(name, [*prefect, *options], seconds)

    def start_python_worker(self, name: str, script: Path, *arguments: str, seconds: float = 90.0) -> None:
        """As `start_worker`, where the worker is started by a Python script."""
        self._start_worker(name, [self.bin_folder / "python", script, *arguments], seconds)

    def _start_worker(self, name: str, command: Sequence[str | Path], seconds: float) -> None:
        before = self.worker_log(name).count(STARTED) if name in self._worker_names else 0
        self._worker_names.append(name)
        self._workers.start(name, command)
        self._workers.wait_for(
            f"the worker {name} has started", lambda: self.worker_log(name).count(STARTED) > before, seconds=seconds
        )

    def kill_worker(self, name: str) -> int:
        """SIGKILL to a worker; what it started lives on until `stop`. Its process id."""
        pid = self._workers.pid(name)
        self._workers.kill(name, alone=True)
        return pid

    def worker_log(self, name: str) -> str:
        """Everything that a worker wrote."""
        return self._workers.log_file(name).read_text(errors="replace")

    def create_work_pool(self, name: str, worker_type: str) -> None:
        """A work pool for workers of that type; the first of them gives it its job template."""
        self._ask("POST", "/work_pools/", {"name": name, "type": worker_type})

    def deploy(self, name: str, entrypoint: str, pool: str, **options: Any) -> str:
        """A deployment of a flow, `FILE:FUNCTION`, on a work pool; its id. `options` are those of the API."""
        flow = self._ask("POST", "/flows/", {"name": entrypoint.rpartition(":")[2].replace("_", "-")})
        body = {
            "name": name,
            "flow_id": flow["id"],
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "path": str(self.home),
            "enforce_parameter_schema": False,
            **options,
        }
        return str(self._ask("POST", "/deployments/", body)["id"])

    def run_deployment(self, deployment_id: str, **options: Any) -> str:
        """Schedule a run of a deployment for now; its id. `options` are those of the API."""
        body = {"state": {"type": "SCHEDULED"}, **options}
        return str(self._ask("POST", f"/deployments/{deployment_id}/create_flow_run", body)["id"])

    def set_state(self, flow_run_id: str, state_type: str, **options: Any) -> None:
        """Propose a state for a flow run, as a user does in the UI."""
        body = {"state": {"type": state_type, **options}}
        self._ask("POST", f"/flow_runs/{flow_run_id}/set_state", body)

    def resume(self, flow_run_id: str) -> None:
        """Resume a paused or suspended flow run, as a user does in the UI."""
        self._ask("POST", f"/flow_runs/{flow_run_id}/resume", {})

    def run_flow(
        self, name: str, script: Path, *arguments: str, settings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a Python process that runs a flow of `script`; its output is under `name` in `logs`.

        `settings` are further environment variables of this process.
        """
        command: list[str | Path] = [self.bin_folder / "python", script, *arguments]
        if settings:
            command = ["env", *(f"{key}={value}" for key, value in settings.items()), *command]
        self._flow_names.append(name)
        return self._flows.start(name, command)

    def wait_for_flows(self, *flows: subprocess.Popen[bytes], seconds: float = 120.0) -> list[int]:
        """The exit codes of flow processes. Raises HostFailed, with the logs, when they are not done in time."""
        deadline = time.monotonic() + seconds
        codes = []
        for flow in flows:
            try:
                codes.append(flow.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired as error:
                raise HostFailed(f"flows not done within {seconds:g} s\n{self.logs()}") from error
        return codes

    def run_python(self, *arguments: str, seconds: float = 60.0) -> str:
        """The output of a Python process in the host's environment. Raises HostFailed."""
        return self._flows.run("python", [self.bin_folder / "python", *arguments], seconds=seconds)

    def run_prefect(self, *arguments: str, seconds: float = 60.0) -> str:
        """The output of a command of Prefect's. Raises HostFailed."""
        return self._flows.run("prefect", [self.bin_folder / "prefect", *arguments], seconds=seconds)

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until the condition holds. Raises HostFailed when the server has ended or `seconds` are over."""
        self._server.wait_for(what, condition, seconds=seconds)

    # -- what the server knows ---------------------------------------------------------------------------------------

    def flow_runs(self, name: str | None = None) -> list[dict[str, Any]]:
        """Flow runs (of this run name, if given), oldest first, as the API has them (`state_name`, `run_count` …)."""
        given: dict[str, Any] = {"flow_runs": {"name": {"any_": [name]}}} if name is not None else {}
        return self._rows("flow_runs", {**given, "sort": "START_TIME_ASC"})

    def deployments(self, name: str) -> list[dict[str, Any]]:
        """The deployments of that name, whatever their flow."""
        return self._rows("deployments", {"deployments": {"name": {"any_": [name]}}})

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        """One flow run as the API has it."""
        run: dict[str, Any] = self._ask("GET", f"/flow_runs/{flow_run_id}")
        return run

    def states(self, flow_run_id: str) -> list[dict[str, Any]]:
        """The states that a flow run went through, oldest first, as the API has them (`name`, `message` …)."""
        states: list[dict[str, Any]] = self._ask("GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
        return sorted(states, key=lambda state: str(state["timestamp"]))

    def task_runs(self, flow_run_ids: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Task runs (of these flow runs, if given), as the API has them. Their states arrive late, as events."""
        given = {"flow_runs": {"id": {"any_": list(flow_run_ids)}}} if flow_run_ids is not None else {}
        return self._rows("task_runs", given)

    def run_logs(self, flow_run_id: str) -> list[str]:
        """The log lines that the server keeps of a flow run and its task runs, oldest first."""
        wanted = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC"}
        return [row["message"] for row in self._rows("logs", wanted)]

    def wait_until_final(self, flow_run_id: str, *, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The task runs of a flow run once the server has the end of each. Raises HostFailed."""
        runs: list[dict[str, Any]] = []

        def final() -> bool:
            runs[:] = self.task_runs([flow_run_id])
            return all(run["state_type"] in FINAL_STATES for run in runs)

        self.wait_for(f"the task runs of {flow_run_id} end", final, seconds=seconds)
        return runs

    def logs(self) -> str:
        """The ends of all logs, for the report of a failure."""
        tails = [self._server.tail("prefect-server"), *map(self._flows.tail, self._flow_names)]
        return "\n".join([*tails, *map(self._workers.tail, self._worker_names)])

    def flow_log(self, name: str) -> str:
        """Everything that one flow process wrote."""
        return self._flows.log_file(name).read_text(errors="replace")

    def stop(self) -> None:
        """End the flows and workers, then the server."""
        self._flows.stop()
        self._workers.stop()
        self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- REST --------------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2.0) as answer:  # noqa: S310  # our http URL
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _rows(self, kind: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = self._ask("POST", f"/{kind}/filter", {**wanted, "limit": PAGE_ROWS, "offset": len(rows)})
            rows += page
            if len(page) < PAGE_ROWS:
                return rows

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  # our own http URL
            self.api_url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers=self._headers,
            method=method,
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30.0) as answer:  # noqa: S310  # our own http URL
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")
                if error.code != 503 or time.monotonic() > deadline:
                    raise HostFailed(f"the Prefect server refused {path}: {error}: {said}") from error
                time.sleep(0.2)
            except (urllib.error.URLError, OSError) as error:
                raise HostFailed(f"the Prefect server did not answer {path}: {error}\n{self.logs()}") from error
