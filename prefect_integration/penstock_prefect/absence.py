"""When a run has given its slots back for a while, such as while it is paused: its tasks wait for its return."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.lease import Lease


class Absence:
    """That of one run, in its flow's process. `past`: how often it came back; `taken` are the leases it took then."""

    def __init__(self) -> None:
        self.past = 0
        self.taken: list[Lease] = []
        self._back = threading.Event()
        self._back.set()

    @property
    def is_over(self) -> bool:
        """Whether the run has its slots."""
        return self._back.is_set()

    def begin(self) -> None:
        """Before the slots are given back: whoever finds them gone is to see why."""
        self._back.clear()

    def end(self, lease: Lease | None) -> None:
        """The run has this lease now; None: it is not to have one any more."""
        if lease is not None:
            self.taken.append(lease)
        self.past += 1
        self._back.set()
