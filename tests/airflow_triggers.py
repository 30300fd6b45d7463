"""A trigger that does as it is told, for what wraps triggers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent


class ScriptedTrigger(BaseTrigger):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """For each of `events`: "wait" waits for `go_on`, "end" ends the task as done, any other fires that text."""

    def __init__(self, events: list[str], note: str = "") -> None:
        super().__init__()
        self.events, self.note = events, note
        self.go_on = asyncio.Event()
        self.killed = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "airflow_triggers.ScriptedTrigger", {"events": self.events, "note": self.note}

    async def run(self) -> AsyncIterator[Any]:
        for event in self.events:
            if event == "wait":
                await self.go_on.wait()
            elif event == "end":
                yield TaskSuccessEvent()
            else:
                yield TriggerEvent({"event": event, "trigger_id": self.trigger_id})

    async def on_kill(self) -> None:
        self.killed = True
