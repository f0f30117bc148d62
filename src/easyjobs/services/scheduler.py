"""When scheduled jobs become due: they are queued, and their lanes are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime.service import Service
from easyjobs.services.dispatcher import Dispatcher

MAX_PAUSE_S: Final = 60.0  # look again at least so often: the system's clock may have been set


class Scheduler(Service):
    """Queues what is due, then sleeps until the next job is."""

    name = "scheduler"

    def __init__(self, store: Store, dispatcher: Dispatcher, clock: Clock, on_due: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._on_due = on_due
        self._store, self._dispatcher, self._clock = store, dispatcher, clock

    async def run_once(self) -> float:
        """Queue one batch of due jobs."""
        due = await self._store.due()
        self._dispatcher.mark_all(due.lanes)
        if due.lanes:
            self._on_due()
        if due.next_at is None:
            return MAX_PAUSE_S
        return min(MAX_PAUSE_S, max(0.0, (due.next_at - self._clock.now()) / 1_000_000))
