"""The worker type `penstock-process`: flows as processes on the worker's machine, each when it has its slots."""

from __future__ import annotations

from prefect.workers.process import ProcessVariables, ProcessWorker
from pydantic import Field

from penstock_prefect.declared import Declared
from penstock_prefect.worker import LimitedRuns


class PenstockProcessVariables(ProcessVariables):  # type: ignore[misc]  # Prefect is not installed where types are checked
    """Those of the process worker, and what a run asks for before it starts."""

    penstock: Declared | None = Field(
        default=None, title="Limits", description="What a run holds from before its start to its end."
    )


class PenstockProcessWorker(LimitedRuns, ProcessWorker):  # type: ignore[misc]  # as above
    """Runs flows as processes on the worker's machine, each when it has its slots."""

    type = "penstock-process"
    runs_here = True
    job_configuration_variables = PenstockProcessVariables
    _display_name = "Process under limits"
    _description = "Execute flow runs as subprocesses, each when Penstock has granted its slots."
    _documentation_url = ""
