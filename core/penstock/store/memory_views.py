"""What those who look ask a store in memory for."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.queue import Queue, leases
from penstock.store.contract import ClaimRow, ClaimState, Event, HistoryRow, LimitRow
from penstock.store.memory_rows import Rows, us
from penstock.store.viewing import Movement, Part, matches


class Views(Rows):
    """Its part of `penstock.store.contract.Store`."""

    def mark(self) -> str:
        with self._lock:
            waiting = sum(entry.state is ClaimState.WAITING for entry in self._claims.values())
            return f"{len(self._documents)}.{self._settled}.{len(self._history)}.{waiting}"

    def limit_row(self, key: str) -> LimitRow | None:
        return next((row for row in self.limit_rows() if row.key == key), None)

    def holders(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        rows = [row for row in leases(self.snapshot()) if any(held.limit == key for held in row.slots)]
        return self._part(rows, offset, most)

    def queue(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        rows = [row for row in self.snapshot().claims if key in row.wants and row.state is ClaimState.WAITING]
        return self._part(rows, offset, most)

    def search(self, text: str, *, offset: int = 0, most: int = 50) -> Part:
        return self._part([row for row in self.snapshot().claims if matches(row.claim, text)], offset, most)

    def _part(self, rows: Sequence[ClaimRow], offset: int, most: int) -> Part:
        snapshot, shown = self.snapshot(), tuple(rows[offset : offset + most])
        behind = {session_id for row in shown for session_id in row.session_ids}
        sessions = tuple(row for row in snapshot.sessions if row.session.session_id in behind)
        queue, waits = Queue(snapshot), (ClaimState.WAITING, ClaimState.PARKED)
        reasons = {row.claim.claim_id: queue.barring(row) for row in shown if row.state in waits}
        return Part(snapshot.now, len(rows), shown, sessions, reasons)

    def movements(self, *, after: tuple[int, int], most: int) -> Sequence[Movement]:
        with self._lock:
            found = [
                Movement(row.at, line, row.event, row.slots, _us(row.wait_seconds), _us(row.hold_seconds))
                for line, row in enumerate(self._history, start=1)
                if (row.at, line) > after and row.at >= self._pruned_before
            ]
            return found[:most]

    def changes(self, *, most: int) -> tuple[HistoryRow, ...]:
        return tuple(row for row in reversed(self.history()) if row.event is Event.CHANGED)[:most]

    def waiting_since(self, key: str) -> Sequence[int]:
        return [row.enqueued_at for row in self.queue(key, most=len(self._claims)).claims]


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else us(seconds)
