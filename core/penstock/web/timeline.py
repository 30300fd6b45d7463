"""How much was held and how many waited over the last day, folded from the history as it comes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from penstock.errors import PenstockError
from penstock.store.contract import Event, Store
from penstock.store.viewing import Movement
from penstock.web.plots import Point

WIDTH = 300_000_000
"""Of a bucket, in µs."""
HOURS = 24
OVERLAP = 10_000_000
"""Lines may be committed out of order: so far back each look begins, in µs. No transaction of a store lasts longer."""
AT_ONCE = 5_000
EVERY_SECONDS = 2.0
UNWATCHED_SECONDS = 120.0


class Bucket:
    """What moved in five minutes of one limit: sums of steps up and down, and of steps times µs since its beginning."""

    __slots__ = ("held", "held_moment", "waiting", "waiting_moment")

    def __init__(self) -> None:
        self.held = self.held_moment = self.waiting = self.waiting_moment = 0


class Timeline:
    """Reads the history in a thread of its own while somebody looks; what it has read it keeps, bucket by bucket."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._limits: dict[str, dict[int, Bucket]] = defaultdict(dict)
        self._seen: dict[int, int] = {}
        self._read_to = 0
        self._complete = False
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Somebody looks: keep reading for a while."""
        self._asked_at = time.monotonic()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._keep_reading, name="penstock-timeline", daemon=True)
                self._thread.start()

    def _keep_reading(self) -> None:
        while time.monotonic() - self._asked_at < UNWATCHED_SECONDS:
            with contextlib.suppress(PenstockError):  # the page itself says so; the next look may find the store again
                self.catch_up()
            time.sleep(EVERY_SECONDS)

    def catch_up(self) -> None:
        """Read what has come since the last look. Raises StoreUnavailable."""
        with self._reading:
            store = self._store()
            now = store.snapshot_time()
            oldest = now - HOURS * 3_600_000_000
            after = (max(self._read_to - OVERLAP, oldest), 0)
            while lines := store.movements(after=after, most=AT_ONCE):
                with self._lock:
                    for line in lines:
                        if line.line not in self._seen:
                            self._seen[line.line] = line.at
                            self._fold(line)
                after = (lines[-1].at, lines[-1].line)
                self._read_to = max(self._read_to, lines[-1].at)
            self._forget(oldest)
            self._complete = True

    def _fold(self, line: Movement) -> None:
        for key, slots in line.slots.items():
            if line.event is Event.GRANTED:
                self._step(key, line.at, held=slots or 0)
                if line.waited:
                    self._step(key, line.at - line.waited, waiting=1)
                    self._step(key, line.at, waiting=-1)
            elif line.event is Event.PARKED or line.held is not None:
                self._step(key, line.at, held=-(slots or 0))

    def _step(self, key: str, at: int, *, held: int = 0, waiting: int = 0) -> None:
        number, within = divmod(at, WIDTH)
        bucket = self._limits[key].setdefault(number, Bucket())
        bucket.held += held
        bucket.held_moment += held * within
        bucket.waiting += waiting
        bucket.waiting_moment += waiting * within

    def _forget(self, oldest: int) -> None:
        with self._lock:
            self._seen = {line: at for line, at in self._seen.items() if at >= self._read_to - 2 * OVERLAP}
            if oldest // WIDTH == getattr(self, "_forgotten_to", None):
                return
            self._forgotten_to = oldest // WIDTH
            for key, buckets in list(self._limits.items()):
                for number in [number for number in buckets if number < self._forgotten_to]:
                    del buckets[number]
                if not buckets:
                    del self._limits[key]

    def points(
        self, key: str, now: int, *, hours: int, held: int, waiting: int, waiting_since: tuple[int, ...] = ()
    ) -> list[Point]:
        """The means of each bucket, oldest first, counted back from what is held and waiting `now` (µs).

        Nothing until the history has been read once. `waiting_since`: of those that wait now, in µs.
        """
        with self._lock:
            if not self._complete:
                return []
            known = dict(self._limits.get(key, {}))
        coming: dict[int, list[int]] = defaultdict(list)
        for since in waiting_since:
            coming[since // WIDTH].append(since % WIDTH)
        points, last = [], now // WIDTH
        for number in range(last, last - hours * 3_600_000_000 // WIDTH, -1):
            span = now - number * WIDTH if number == last else WIDTH
            bucket, came = known.get(number), coming.get(number, ())
            steps_held, moment_held = (bucket.held, bucket.held_moment) if bucket else (0, 0)
            steps_waiting, moment_waiting = (bucket.waiting, bucket.waiting_moment) if bucket else (0, 0)
            steps_waiting, moment_waiting = steps_waiting + len(came), moment_waiting + sum(came)
            # The mean of a step function: what stood at the end, less each step for the time before it.
            mean_held = held - moment_held / span if span else float(held)
            mean_waiting = waiting - moment_waiting / span if span else float(waiting)
            points.append(Point(number * WIDTH + span, max(0.0, mean_held), max(0.0, mean_waiting)))
            held, waiting = max(0, held - steps_held), max(0, waiting - steps_waiting)
        return points[::-1]
