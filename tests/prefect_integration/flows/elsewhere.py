"""A worker of one's own that runs flows where no worker sees them: `python elsewhere.py WORK_POOL`."""

import asyncio
import os
import sys

import anyio
from penstock_prefect.worker import LimitedRuns
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult


class DetachedWorker(BaseWorker):
    """Starts `prefect flow-run execute` in a session of its own, as a cluster would, and watches it."""

    type = "detached"
    job_configuration = BaseJobConfiguration
    job_configuration_variables = BaseVariables

    async def run(self, flow_run, configuration, task_status=None):
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *configuration.command.split(),
            env={**os.environ, **configuration.env},
            start_new_session=True,
        )
        (task_status or anyio.TASK_STATUS_IGNORED).started(child.pid)
        return BaseWorkerResult(identifier=str(child.pid), status_code=await child.wait())


class LimitedDetachedWorker(LimitedRuns, DetachedWorker):
    type = "penstock-detached"
    runs_join = False


if __name__ == "__main__":
    asyncio.run(LimitedDetachedWorker(sys.argv[1], name="elsewhere").start())
