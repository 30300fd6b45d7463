"""Since when a task waits, and for how long it still may: over all workers and triggers that it waits in."""

from __future__ import annotations

import math
import time

from penstock_airflow.ways import Way


class Clock:
    """That of one task in a worker. `began_at` (monotonic): when its wait began, before an earlier deferral perhaps.

    `since`, if it comes back from one, is the same in seconds since 1970. `timeout_seconds` None: it waits for ever.
    """

    def __init__(self, *, since: float | None, short_block_seconds: float, timeout_seconds: float | None) -> None:
        now = time.monotonic()
        self.began_at = now if since is None else now - max(0.0, time.time() - since)
        self.has_waited = since is not None
        self._leaves_worker_at = now + short_block_seconds
        self._timeout_seconds = math.inf if timeout_seconds is None else timeout_seconds

    def began_before(self, at: float) -> None:
        """The store remembers when the wait began (monotonic); a task that was rescheduled does not."""
        if at < self.began_at:
            self.began_at, self.has_waited = at, True

    @property
    def since(self) -> float:
        """When the wait began, in seconds since 1970: what another process understands."""
        return time.time() - self.waited_seconds

    @property
    def waited_seconds(self) -> float:
        """How long it has waited by now."""
        return time.monotonic() - self.began_at

    @property
    def seconds_left(self) -> float:
        """For how long the task may still wait, whatever it waits for."""
        return max(0.0, self._timeout_seconds - self.waited_seconds)

    def seconds_left_in_worker(self, way: Way) -> float:
        """For how long it still waits here before it leaves, or gives up."""
        in_worker = math.inf if way == "block" else self._leaves_worker_at - time.monotonic()
        return max(0.0, min(in_worker, self.seconds_left))
