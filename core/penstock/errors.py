"""Every error that Penstock raises on purpose; each says what to do next. "No slot" is a value, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.decision import Reason


class PenstockError(Exception):
    """The root of all errors of Penstock."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a configuration: where it stands, what was found, what is expected."""

    message: str
    line: int | None = None
    path: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path + ': ' if self.path else ''}{self.message}"


class ConfigError(PenstockError):
    """A configuration is wrong. `faults` holds everything that is, not only the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ConfigChanged(PenstockError):
    """Somebody else changed the configuration in between; nothing was written. Look again, then repeat."""


class LimitNotSettable(PenstockError):
    """A key under which no limit can be set: none of its kind exists, or it follows from a rule, which is named."""


class Ambiguous(PenstockError):
    """A name stands for several runs; the message names them in full. Say which one is meant."""


class ClaimError(PenstockError):
    """A claim contradicts itself or the rules: an unusable pool name, fewer than one slot, a tag that is no text."""


class PluginError(PenstockError):
    """A plugin cannot be loaded, or failed where a claim depends on it. Mend it, or leave it out by name."""


class StoreUnavailable(PenstockError):
    """The store cannot be reached, or did not answer in time."""


class MissingRight(StoreUnavailable):
    """The store is there, but its database does not let this user do what is to be done; the text names the GRANT.

    Unlike a store that is away it is not waited for.
    """


class SchemaMismatch(PenstockError):
    """The store's tables are older or newer than this Penstock. `penstock db upgrade` mends the first."""


class DeploymentConflict(PenstockError):
    """Two installations of a host go by one name in the store: their runs would be taken for each other's."""


class WaitTimeout(PenstockError):
    """The wait ended at its time-out without a slot; the claim was withdrawn."""


class LeaseLost(PenstockError):
    """The lease can no longer be trusted: its slots may belong to somebody else by now."""


class _Barred(PenstockError):
    """A claim was not admitted, for `reasons`."""

    def __init__(self, message: str, reasons: Sequence[Reason] = ()) -> None:
        self.reasons = tuple(reasons)
        super().__init__(message)


class Blocked(_Barred):
    """There was no room, and the claim asked not to wait (`on_blocked="fail"`)."""


class Skipped(_Barred):
    """There was no room, and the claim asked to be skipped then (`on_blocked="skip"`)."""


class ImpossibleClaim(_Barred):
    """The claim asks for more slots than the limit has: it could never be admitted."""
