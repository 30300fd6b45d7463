"""The waiters of one process, and the one thread that watches the store for all of them."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from penstock.errors import StoreUnavailable

if TYPE_CHECKING:
    from penstock.settings import Settings
    from penstock.store.contract import Listener, Store

log = logging.getLogger("penstock.wakeups")
IDLE_SECONDS = 10.0
"""How long the thread, and the connection on which it hears, outlive the last waiter."""
LISTEN_AGAIN_POLLS = 10
"""Who had no connection to hear on tries again after so many of the longest pauses between polls."""
HEARD_KEPT = 1000
"""So many claims that were told of before their waiter came are remembered; about others it learns by the next poll."""


class Wakeups:
    """Wakes each waiter when it should speak up: granted, parked, ended, or to be resolved anew.

    The thread hears of grants where the store can tell, and polls in any case: where it cannot hear often at first and
    after news, and no less than once in `poll_max_seconds`, since a lost wake-up must cost no more. `on_round` is
    called with each poll. The tickets among the waiters, and those that are kept here while they hold, are renewed all
    at once.
    """

    def __init__(
        self, store: Store, settings: Settings, session_id: Callable[[], str | None], on_round: Callable[[], None]
    ) -> None:
        self._store, self._settings, self._session_id, self._on_round = store, settings, session_id, on_round
        self._lock = threading.Lock()
        self._waiters: dict[str, list[Callable[[], None]]] = {}  # several may wait for the lease of one run
        self._tickets: set[str] = set()  # those waiters that no session keeps alive
        self._kept: dict[str, Callable[[], None]] = {}  # tickets that hold, and whom to call when they are gone
        self._renew_at = 0.0
        self._fresh: set[str] = set()  # to be looked at soon: what was told of them before is not heard again
        self._heard: dict[str, None] = {}  # told of before their waiter came, the latest last
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None
        self._listens_for: str | None = None
        self._listens_since = 0.0
        self._listen_again_at = math.inf
        self._news = threading.Event()
        self._pause = settings.poll_min_seconds
        self._news_before: set[str] = set()

    def add(self, claim_id: str, wake: Callable[[], None], *, asked_at: float, ticket: bool = False) -> None:
        """Have `wake` called, from another thread, when the claim should speak up.

        `asked_at` (monotonic) is when the store was last asked about it: what came later is known where it was heard.
        A `ticket` is renewed meanwhile.
        """
        with self._lock:
            self._waiters.setdefault(claim_id, []).append(wake)
            if ticket:
                self._tickets.add(claim_id)
            heard = claim_id in self._heard
            self._heard.pop(claim_id, None)
            if self.wake not in self._store.on_granted:
                self._store.on_granted.append(self.wake)
            if self._listener is None or self._listens_since >= asked_at:
                self._fresh.add(claim_id)
                self._pause = self._settings.poll_min_seconds
                self._stir()
            self._begin()
        if heard:
            wake()

    def remove(self, claim_id: str, wake: Callable[[], None]) -> None:
        """No longer have this called for this claim."""
        with self._lock:
            others = [other for other in self._waiters.pop(claim_id, []) if other is not wake]
            if others:
                self._waiters[claim_id] = others
            else:
                self._tickets.discard(claim_id)
                self._fresh.discard(claim_id)

    def keep(self, claim_id: str, gone: Callable[[], None]) -> None:
        """Renew a ticket that holds its slots until `drop`; `gone` is called, once, when it had ended all the same."""
        with self._lock:
            self._kept[claim_id] = gone
            self._begin()
            self._renew_at = 0.0  # who handed it over may have done so long ago

    def drop(self, claim_id: str) -> None:
        """No longer renew this ticket."""
        with self._lock:
            self._kept.pop(claim_id, None)

    def _begin(self) -> None:
        if self._thread is None:
            self._renew_at = time.monotonic() + self._settings.ticket_seconds / 3
            self._thread = threading.Thread(target=self._watch, name="penstock-wakeups", daemon=True)
            self._thread.start()

    def wake(self, claim_ids: Collection[str]) -> None:
        """Wake those of these claims that wait here."""
        with self._lock:
            calls = [call for claim_id in claim_ids for call in self._waiters.get(claim_id, ())]
        for call in calls:
            call()

    def _remember(self, claim_ids: Collection[str]) -> None:
        with self._lock:
            self._heard |= dict.fromkeys(claim_id for claim_id in claim_ids if claim_id not in self._waiters)
            while len(self._heard) > HEARD_KEPT:
                del self._heard[next(iter(self._heard))]

    def close(self) -> None:
        """Let the thread end now rather than some seconds later. Nobody waits any more."""
        with self._lock:
            thread, self._waiters, self._tickets, self._kept = self._thread, {}, set(), {}
            self._thread = None
            if self.wake in self._store.on_granted:
                self._store.on_granted.remove(self.wake)
            self._stir()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)

    def _stir(self) -> None:
        self._news.set()
        if self._listener is not None:
            self._listener.interrupt()

    def _watch(self) -> None:
        with self._store.as_upkeep():
            self._watch_until_idle()

    def _watch_until_idle(self) -> None:
        idle_since = time.monotonic()
        self._open_listener()
        while True:
            with self._lock:
                ours = self._thread is threading.current_thread()
                if ours and (self._waiters or self._kept):
                    idle_since = time.monotonic()
                elif not ours or time.monotonic() - idle_since > IDLE_SECONDS:
                    # Both at once, for the next waiter starts another thread, with a listener of its own.
                    self._thread = None if ours else self._thread
                    listener, self._listener = self._listener, None
                    break
            moved = self._listener is not None and self._listens_for != self._session_id()
            if moved or (self._listener is None and time.monotonic() >= self._listen_again_at):
                self._close_listener()
                self._open_listener()
                self._renew()
            try:
                self._round()
            except Exception as error:
                if isinstance(error, StoreUnavailable):
                    log.warning("the store did not answer a poll, trying again: %s", error)
                else:
                    log.exception("a poll met an error, trying again")
                self._close_listener()
                time.sleep(self._settings.poll_max_seconds)
                self._open_listener()
        self._close(listener)

    def _round(self) -> None:
        """Until the next poll is due, wake whom the news concern; then look after everybody."""
        pause = self._next_pause()
        deadline = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        while (left := deadline - time.monotonic()) > 0:
            heard = self._listener.wait(left) if self._listener is not None else None
            if self._listener is None:
                self._news.wait(left)
            if self._news.is_set():
                self._news.clear()
                with self._lock:
                    fresh, self._fresh = self._fresh, set()
                    if self._thread is not threading.current_thread():
                        return
                if fresh:
                    self.wake(self._store.to_touch(list(fresh)))
                    if self._listener is None:
                        break  # the pause has become short again
            if heard:
                self._remember(heard)
                self.wake(heard)
            elif heard is not None:
                break  # somebody was granted, too many to be named
        self._look()

    def _next_pause(self) -> float:
        with self._lock:
            if self._listener is not None or not self._waiters:
                return self._settings.poll_max_seconds
            pause, self._pause = self._pause, min(self._pause * 1.5, self._settings.poll_max_seconds)
            return pause

    def _look(self) -> None:
        with self._lock:
            waiting = list(self._waiters)
            tickets, kept = set(self._tickets), dict(self._kept)
        if time.monotonic() >= self._renew_at and (tickets or kept):
            self._renew_tickets(tickets, kept)
        if waiting:
            news = self._store.to_touch(waiting)
            if news - self._news_before:  # they come in bunches; who does not react to them is none
                self._pause = self._settings.poll_min_seconds
            self._news_before = news
            self.wake(news)
            # A wake-up that got lost left a grantable waiter behind: whoever looks next grants it.
            self._store.grant_pass()
        if waiting or kept:
            self._on_round()

    def _renew_tickets(self, tickets: Collection[str], kept: Mapping[str, Callable[[], None]]) -> None:
        seconds = self._settings.ticket_seconds
        alive = self._store.renew([*tickets, *kept], ticket_seconds=seconds)
        self._renew_at = time.monotonic() + seconds / 3
        for claim_id in kept.keys() - alive:
            self.drop(claim_id)
            kept[claim_id]()

    def _open_listener(self) -> None:
        session_id, again_at = self._session_id(), math.inf
        try:
            listener = self._store.listen(session_id)
        except Exception as error:  # the thread must not end: all waiters of the process rely on it
            if isinstance(error, StoreUnavailable):
                log.warning("no connection to hear of grants, polling instead: %s", error)
            else:
                log.exception("no connection to hear of grants, polling instead")
            listener, again_at = None, time.monotonic() + LISTEN_AGAIN_POLLS * self._settings.poll_max_seconds
        with self._lock:
            self._listener, self._listens_for, self._listens_since = listener, session_id, time.monotonic()
            self._listen_again_at = again_at

    def _renew(self) -> None:
        """Look at everybody soon: what was told while nobody listened is not heard again."""
        with self._lock:
            self._fresh.update(self._waiters)
        self._news.set()

    def _close_listener(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
        self._close(listener)

    def _close(self, listener: Listener | None) -> None:
        try:
            if listener is not None:
                listener.close()
        except Exception:
            log.exception("the connection to hear of grants could not be closed")
