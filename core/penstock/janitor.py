"""The upkeep that any engine does now and then, and `penstock janitor` steadily: reap, ask, grant, prune."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engine import Engine
    from penstock.store.contract import ClaimRow, Swept

SWEEPERS = 4
"""Among more processes than these, each sweeps the more seldom, so that together they do as often as so many."""

PROBE_SECONDS = 5.0
"""So long hosts are asked about runs in one round; the next round goes on with the others."""


class Janitor:
    """That of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._sweep_at = 0.0
        self._sweep_pause = engine.settings.sweep_seconds
        self._probe_at = 0.0
        self._upkeep_at = time.monotonic() + engine.settings.upkeep_seconds

    def sweep_if_due(self) -> None:
        """Reap and grant, at most once in `sweep_seconds` in this process; ask now and then after probed runs.

        Many processes share the work: each does it the more seldom, the more there are.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._sweep_at:
                return
            self._sweep_at = now + self._sweep_pause
            probe = now >= self._probe_at
            if probe:
                self._probe_at = now + 20 * self._sweep_pause
        if probe:
            self.probe()
        swept = self._sweep()
        share, settings = max(1.0, swept.sessions / SWEEPERS), self._engine.settings
        self._sweep_pause = max(settings.sweep_seconds, min(share * settings.sweep_seconds, settings.beat_seconds))
        if now >= self._upkeep_at:
            self._upkeep_at = now + self._engine.settings.upkeep_seconds
            self.prune()

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
        if not swept.settled:
            from penstock.changes import settle_all  # noqa: PLC0415  # upkeep after a crash, off the usual path

            settle_all(self._engine)
        return swept

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
        return {"expired": len(swept.expired), "runs_ended": ended, **self.prune()}

    def probe(self, is_alive: Callable[[ClaimRow], bool | None] | None = None) -> int:
        """Ask the hosts about runs that no process stands behind; end the leases of those that are over. How many.

        `is_alive` answers instead of the plugins: True, False, or None for what it cannot tell.
        """
        if is_alive is None:
            if not self._engine.hook.penstock_holder_alive.get_hookimpls():
                return 0
            is_alive = self._plugins_say
        ended, alive, rows = 0, list[str](), self._engine.store.probed()
        began = time.monotonic()
        for row in rows:
            if time.monotonic() - began > PROBE_SECONDS:
                break  # who waits for this thread does not wait for a host that is slow to answer
            answer = is_alive(row)
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

    def _plugins_say(self, row: ClaimRow) -> bool | None:
        answer: bool | None = self._engine.hook.penstock_holder_alive(claim=row)
        return answer
