"""One part of an installation, as it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """INACTIVE does nothing here, which may be meant; WARNING works, but should be looked at; FAULT does not work."""

    OK = "ok"
    INACTIVE = "inactive"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Part:
    """`remedy` is what to do; `facts` are plain JSON values."""

    name: str
    state: State
    detail: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As in `penstock doctor --json`."""
        return {
            "part": self.name,
            "state": self.state.value,
            "detail": self.detail,
            "remedy": self.remedy,
            "facts": dict(self.facts),
        }
