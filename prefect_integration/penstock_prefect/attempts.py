"""An attempt that passed the gate, and what the code that runs inside of it stands under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from penstock_prefect.claims import NOWHERE, Standing

Kind = Literal["task", "flow", "subflow", "block"]

_standing: ContextVar[Standing] = ContextVar("penstock_standing", default=NOWHERE)


def standing_here() -> Standing:
    """What the code that runs here stands under, as attempts in this process know it."""
    return _standing.get()


def stand_under(standing: Standing) -> None:
    """From now on the code that runs here does, until the attempt around it ends."""
    _standing.set(standing)


@dataclass(frozen=True)
class Attempt:
    """One attempt that passed the gate, or (`skipped`, the state to end in) one that was turned away there.

    `standing.lease` is the innermost lease held here; None when Penstock is inactive or nothing is limited.
    """

    standing: Standing
    kind: Kind
    skipped: Any = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, claims made here know what is held around them."""
        token = _standing.set(self.standing)
        try:
            yield
        except Exception:
            raise
        except BaseException:
            # SIGTERM or a cancellation passes here before Prefect waits for the flow's threads: end their waits.
            if self.standing.ended is not None and self.kind in ("flow", "subflow"):
                self.standing.ended.set()
            raise
        finally:
            _standing.reset(token)
