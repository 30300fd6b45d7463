"""A real Prefect of one's own: a server with its SQLite database in a folder, and processes that run flows on it."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from penstock.demo.processes import HostFailed, Processes, free_port

PAGE_ROWS = 200
FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


class PrefectHost:
    """A Prefect server and its flow processes; `stop` leaves nothing running.

    `bin_folder` is that of a Python environment with Prefect and Penstock; `home` becomes PREFECT_HOME.
    `store_url` None leaves Penstock inactive; `settings` are further environment variables. Times are in seconds.
    """

    def __init__(
        self,
        bin_folder: Path,
        home: Path,
        store_url: str | None,
        deployment: str,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.bin_folder, self.home, self.store_url = Path(bin_folder), Path(home), store_url
        self.port = free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PENSTOCK_"))}
        environment = {
            **inherited,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.home / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_CLI_COLORS": "false",
            # Nothing here is scheduled, late or automated: these services only load the machine.
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
            "DO_NOT_TRACK": "1",
            "PREFECT_INTEGRATIONS_PENSTOCK_DEPLOYMENT": deployment,
            **({"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": store_url} if store_url is not None else {}),
            **(settings or {}),
        }
        self._server = Processes(self.home / "server", environment)
        self._flows = Processes(self.home / "flows", environment)
        self._flow_names: list[str] = []

    def start(self, *, seconds: float = 90.0) -> float:
        """Start the server and wait until it answers; how long that took. Raises HostFailed with its log."""
        started_at = time.monotonic()
        self.home.mkdir(parents=True, exist_ok=True)
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._server.start("prefect-server", [self.bin_folder / "prefect", "server", "start", "--no-ui", *where])
        self._server.wait_for("the Prefect server answers", self._answers, seconds=seconds)
        return time.monotonic() - started_at

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

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until the condition holds. Raises HostFailed when the server has ended or `seconds` are over."""
        self._server.wait_for(what, condition, seconds=seconds)

    # -- what the server knows ---------------------------------------------------------------------------------------

    def flow_runs(self, name: str | None = None) -> list[dict[str, Any]]:
        """Flow runs (of this run name, if given), oldest first, as the API has them (`state_name`, `run_count` …)."""
        given: dict[str, Any] = {"flow_runs": {"name": {"any_": [name]}}} if name is not None else {}
        return self._rows("flow_runs", {**given, "sort": "START_TIME_ASC"})

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
        return "\n".join([self._server.tail("prefect-server"), *map(self._flows.tail, self._flow_names)])

    def flow_log(self, name: str) -> str:
        """Everything that one flow process wrote."""
        return self._flows.log_file(name).read_text(errors="replace")

    def stop(self) -> None:
        """End the flows, then the server."""
        self._flows.stop()
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
            page = self._post(f"/{kind}/filter", {**wanted, "limit": PAGE_ROWS, "offset": len(rows)})
            rows += page
            if len(page) < PAGE_ROWS:
                return rows

    def _post(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        request = urllib.request.Request(  # noqa: S310  # our own http URL
            self.api_url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30.0) as answer:  # noqa: S310  # our own http URL
                return cast("list[dict[str, Any]]", json.load(answer))
        except (urllib.error.URLError, OSError) as error:
            raise HostFailed(f"the Prefect server did not answer {path}: {error}\n{self.logs()}") from error
