"""The store, read again and again beside what goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from penstock.engine import Engine
from penstock.errors import StoreUnavailable


@contextmanager
def sampled(engine: Engine, *, pause_seconds: float = 0.05) -> Iterator[dict[str, int]]:
    """Meanwhile, read the store again and again while it is there: limit → the most that it ever showed as held."""
    most, over = dict[str, int](), threading.Event()

    def sample() -> None:
        while not over.wait(pause_seconds):
            with suppress(StoreUnavailable):
                for row in engine.store.limit_rows():
                    most[row.key] = max(most.get(row.key, 0), row.held)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield most
    finally:
        over.set()
        sampler.join()
