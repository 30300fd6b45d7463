"""Workers of one's own that run flows where no worker sees them: `python elsewhere.py WORK_POOL`, and `… FILE` where
Penstock is there too, and its processes begin when that file is there.
"""

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
    first = ()

    async def run(self, flow_run, configuration, task_status=None):
        child = await asyncio.create_subprocess_exec(
            *self.first,
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


class LimitedSlowWorker(LimitedRuns, DetachedWorker):
    type = "penstock-slow"
    first = ("sh", "-c", f'until [ -e "{sys.argv[-1]}" ]; do sleep 0.1; done; exec "$@"', "sh")


if __name__ == "__main__":
    asyncio.run((LimitedDetachedWorker, LimitedSlowWorker)[len(sys.argv) - 2](sys.argv[1], name="elsewhere").start())
