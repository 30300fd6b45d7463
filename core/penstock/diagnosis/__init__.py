"""What `penstock doctor` finds: every part, whether it is really active, and what to do where it is not sound."""

from __future__ import annotations

from penstock.diagnosis.part import Part, State

__all__ = ["Part", "State"]
