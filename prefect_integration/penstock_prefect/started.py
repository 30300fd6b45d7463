"""What a worker has started for a run, while it may still be at work."""

from __future__ import annotations

import asyncio
import os
from typing import Any

PROCESS_SECONDS = 0.5
"""How often is looked whether the process of a run is gone."""


class Started:
    """Hears what the worker tells of the infrastructure that it has started, and passes it on.

    `gone`: its process has ended, and what the run held is given back.
    """

    def __init__(self, task_status: Any) -> None:
        self.gone = False
        self._task_status = task_status
        self._identifier: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def started(self, value: Any = None) -> None:
        """As anyio's TaskStatus."""
        self._identifier.set_result(value)
        if self._task_status is not None:
            self._task_status.started(value)

    @property
    def told(self) -> bool:
        """Whether there is anything that may be at work."""
        return self._identifier.done()

    async def process_is_gone(self) -> None:
        """Until that is so, where what was started is a process on this machine."""
        pid = int(await self._identifier)
        while _lives(pid):
            await asyncio.sleep(PROCESS_SECONDS)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
