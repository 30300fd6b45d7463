"""The session of this process: a thread that beats, and the holder's own knowledge of when it must stop."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from penstock.errors import StoreUnavailable
from penstock.store.contract import Session

if TYPE_CHECKING:
    from penstock.settings import Settings
    from penstock.store.contract import Store

log = logging.getLogger("penstock.session")
WATCH_SECONDS = 0.5
"""How long a process that went on after a stop may go on unaware that its leases are lost."""


def steady_seconds() -> float:
    """A clock that nobody sets and that runs on through suspend, where the system has one (Linux)."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boottime) if boottime is not None else time.monotonic()


class ProcessSession:
    """Opened at first use in each process; a fork gets its own. A lost session is replaced by a new one, never revived.

    `known` tells which claims this process still answers for; `on_lost(session_id)` is called as soon as what the
    session held can no longer be trusted, `on_beat(session_id)` after each beat, `on_idle` about twice a second. One
    thread beats, and another one only watches the clock: a beat may hang for minutes where a network swallows it.
    """

    def __init__(
        self,
        store: Store,
        host: str,
        deployment: str,
        settings: Settings,
        *,
        known: Callable[[], Collection[str]],
        on_lost: Callable[[str], None],
        on_beat: Callable[[str], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._store, self._host, self._deployment, self._settings = store, host, deployment, settings
        self._known, self._on_lost, self._on_beat, self._on_idle = known, on_lost, on_beat, on_idle
        self._lock = threading.Lock()
        self._session_id: str | None = None
        self._good_at = 0.0
        self._stop = threading.Event()
        self._early = threading.Event()

    def open(self) -> str:
        """The id of the live session, opened now if there is none."""
        with self._lock:
            if self._session_id is None:
                session_id, sent_at = str(uuid.uuid4()), steady_seconds()
                ttl = self._settings.session_ttl_seconds
                self._store.open_session(
                    Session(session_id, self._host, self._deployment, os.getpid(), socket.gethostname(), ttl)
                )
                self._session_id, self._good_at = session_id, sent_at
                self._stop = threading.Event()
                for name, work in (("penstock-heartbeat", self._beat_on), ("penstock-fence", self._watch)):
                    threading.Thread(target=work, args=(session_id, self._stop), name=name, daemon=True).start()
            return self._session_id

    @property
    def current(self) -> str | None:
        """The id of the live session, if there is one."""
        return self._session_id

    def trusted(self, session_id: str) -> bool:
        """Whether what this session holds is still surely its own. Counted from when the last good beat was sent."""
        return session_id == self._session_id and steady_seconds() < self._fence_at()

    def lose(self, session_id: str) -> None:
        """The store says that the session is gone."""
        with self._lock:
            if self._session_id != session_id:
                return
            self._session_id = None
            self._stop.set()
        self._on_lost(session_id)

    def beat_soon(self) -> None:
        """Do not wait for the next beat's time: there is something that a beat puts right."""
        self._early.set()

    def close(self) -> None:
        """End the session in the store, with whatever it still holds."""
        with self._lock:
            session_id, self._session_id = self._session_id, None
            self._stop.set()
        if session_id is not None:
            self._store.close_session(session_id)

    def _fence_at(self) -> float:
        return self._good_at + self._settings.session_ttl_seconds - self._settings.margin_seconds

    def _watch(self, session_id: str, stop: threading.Event) -> None:
        while not stop.wait(min(max(self._fence_at() - steady_seconds(), 0.01), WATCH_SECONDS)):
            if steady_seconds() >= self._fence_at():
                log.error("no beat reached the store for too long: what this process holds is lost")
                self.lose(session_id)

    def _beat_on(self, session_id: str, stop: threading.Event) -> None:
        with self._store.as_upkeep():
            self._beat_until(session_id, stop)

    def _beat_until(self, session_id: str, stop: threading.Event) -> None:
        beat_seconds = self._settings.beat_seconds
        beat_at = self._good_at + beat_seconds
        while True:
            pause = beat_at - steady_seconds()
            if stop.wait(min(max(pause, 0.01), self._settings.sweep_seconds)):
                return None
            try:
                if self._early.is_set() or steady_seconds() >= beat_at:
                    self._early.clear()
                    sent_at = steady_seconds()
                    beat_at = sent_at + beat_seconds
                    if not self._store.beat(session_id, self._known):
                        log.error("the store has ended this session: what this process holds is lost")
                        return self.lose(session_id)
                    with self._lock:
                        if self._session_id == session_id:  # else it came too late
                            self._good_at = sent_at
                    self._on_beat(session_id)
                self._on_idle()
            except StoreUnavailable as error:
                beat_at = steady_seconds() + min(1.0, beat_seconds)
                log.warning("the store did not answer a beat, trying again: %s", error)
            except Exception:
                log.exception("the heartbeat met an error, trying again")
