"""The upkeep that any engine does now and then, and `penstock janitor` steadily: reap, ask, grant, prune."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.errors import StoreUnavailable

if TYPE_CHECKING:
    from penstock.engine import Engine
    from penstock.store.contract import ClaimRow, Swept

log = logging.getLogger("penstock.janitor")

SWEEPERS = 4
"""Among more processes than these, each sweeps the more seldom, so that together they do as often as so many."""

PROBE_SECONDS = 5.0
"""So long hosts are asked about runs in one round; the next round goes on with the others."""

UNSETTLED_SECONDS = 5.0
"""So long, and up to twice as long, whoever changes the configuration has before others finish it in his stead."""

CLOSE_SECONDS = 1.0
"""So long the end of an engine waits for upkeep that is under way."""


class Janitor:
    """That of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._sweep_at = 0.0
        self._sweep_pause = engine.settings.sweep_seconds
        self._probe_at = 0.0
        self._prune_at = time.monotonic() + engine.settings.upkeep_seconds
        self._settle_at: float | None = None
        self._asked = set[str]()
        self._due = list[Callable[[], object]]()
        self._beside: threading.Thread | None = None
        self._over = threading.Event()

    def sweep_if_due(self) -> None:
        """Reap and grant, at most once in `sweep_seconds` in this process; have what else is due done beside.

        Many processes share the work: each does it the more seldom, the more there are.
        """
        now, settings = time.monotonic(), self._engine.settings
        due = list[Callable[[], object]]()
        with self._lock:
            if now < self._sweep_at:
                return
            self._sweep_at = now + self._sweep_pause
            if now >= self._probe_at:
                self._probe_at = now + 20 * self._sweep_pause
                due += [self.probe] if self._has_hosts() else []
            if now >= self._prune_at:
                self._prune_at = now + settings.upkeep_seconds
                due.append(self.prune)
        swept = self._sweep()
        share = max(1.0, swept.sessions / SWEEPERS)
        self._sweep_pause = max(settings.sweep_seconds, min(share * settings.sweep_seconds, settings.beat_seconds))
        if swept.settled:
            self._settle_at = None
        elif self._settle_at is None:
            self._settle_at = now + random.uniform(1, 2) * UNSETTLED_SECONDS  # noqa: S311  # jitter, not a secret
        elif now >= self._settle_at:
            due.append(self._settle)
        self._do_beside(due)

    def _do_beside(self, works: list[Callable[[], object]]) -> None:
        """In a thread of its own: no beat and no waiter stands behind a slow host, a long history, many limits."""
        with self._lock:
            self._due += [work for work in works if work not in self._due]
            if not self._due or (self._beside is not None and self._beside.is_alive()):
                return
            self._beside = threading.Thread(target=self._work, args=(self._over,), name="penstock-upkeep", daemon=True)
            self._beside.start()

    def _work(self, over: threading.Event) -> None:
        while True:
            with self._lock:
                if not self._due or over.is_set():
                    return
                work = self._due.pop(0)
            try:
                work()
            except StoreUnavailable as error:
                log.warning("the store did not answer, upkeep is done later: %s", error)
            except Exception:
                log.exception("upkeep met an error, it is done later")

    def close(self) -> None:
        """Drop what is due, and wait a moment for what is under way. An engine that is used again begins anew."""
        with self._lock:
            beside, over, self._over = self._beside, self._over, threading.Event()
            self._due.clear()
        over.set()
        if beside is not None and beside is not threading.current_thread():
            beside.join(CLOSE_SECONDS)

    def sweep_first(self) -> None:
        """Once in a process, before a claim that does not wait: its slots may be those of one who died unseen."""
        with self._lock:
            if self._sweep_at > 0.0:
                return
            self._sweep_at = time.monotonic() + self._engine.settings.sweep_seconds
        self._sweep()

    def _sweep(self) -> Swept:
        swept = self._engine.store.sweep()
        for gone in swept.expired:
            self._engine.hook.penstock_expired(claim=gone.claim, held_seconds=gone.held_seconds, reason=gone.reason)
        return swept

    def _settle(self) -> None:
        from penstock.changes import settle_all  # noqa: PLC0415  # upkeep after a crash, off the usual path

        settle_all(self._engine)

    def prune(self) -> dict[str, int]:
        """Drop old history and idle limits; how many of each."""
        now, settings = self._engine.store.snapshot_time(), self._engine.settings
        return self._engine.store.prune(
            history_before=now - int(settings.history_days * 86_400_000_000),
            idle_before=now - int(settings.idle_limit_seconds * 1_000_000),
        )

    def upkeep(self) -> dict[str, int]:
        """All that a janitor does, now: reap, ask after probed runs, grant, prune. How much of what."""
        ended, swept = self.probe(), self._sweep()
        if not swept.settled:
            self._settle()
        return {"expired": len(swept.expired), "runs_ended": ended, **self.prune()}

    def probe(self, is_alive: Callable[[ClaimRow], bool | None] | None = None) -> int:
        """Ask the hosts about runs that no process stands behind; end the leases of those that are over. How many.

        `is_alive` answers instead of the plugins: True, False, or None for what it cannot tell.
        """
        if is_alive is None:
            if not self._has_hosts():
                return 0
            is_alive = self._plugins_say
        ended, alive, over, rows = 0, list[str](), self._over, self._to_probe()
        began = time.monotonic()
        for row in rows:
            if time.monotonic() - began > PROBE_SECONDS:
                break  # who waits for this thread does not wait for a host that is slow to answer
            self._asked.add(row.claim.claim_id)
            answer = is_alive(row)
            if over.is_set():
                break
            if answer:
                alive.append(row.claim.claim_id)
            elif answer is False:
                reason = "the host says that the run is over"
                # Not one that came to life again while the host was thinking.
                if self._engine.store.end(row.claim.claim_id, reason=reason, expires_at=row.expires_at):
                    ended += 1
                    held_seconds = row.held_seconds(self._engine.store.snapshot_time())
                    self._engine.hook.penstock_expired(claim=row.claim, held_seconds=held_seconds, reason=reason)
        if alive:
            self._engine.store.renew(alive, ticket_seconds=self._engine.settings.run_probe_seconds)
        return ended

    def _to_probe(self) -> list[ClaimRow]:
        """Those first about whom nobody was asked since all have been."""
        rows = self._engine.store.probed()
        if all(row.claim.claim_id in self._asked for row in rows):
            self._asked.clear()
        return sorted(rows, key=lambda row: row.claim.claim_id in self._asked)

    def _has_hosts(self) -> bool:
        return bool(self._engine.hook.penstock_holder_alive.get_hookimpls())

    def _plugins_say(self, row: ClaimRow) -> bool | None:
        answer: bool | None = self._engine.hook.penstock_holder_alive(claim=row)
        return answer
