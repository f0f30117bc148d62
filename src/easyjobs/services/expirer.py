"""Jobs whose time is over: not started before they expired, or born for a task that nobody offers."""

from __future__ import annotations

from typing import Final

from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import GRACE_S, Catalogue

TICK_S: Final = 15.0


class Expirer(Service):
    """Sleeps until the next job expires, at most `TICK_S`."""

    name = "expirer"

    def __init__(self, store: Store, catalogue: Catalogue, clock: Clock) -> None:
        super().__init__()
        self._store, self._catalogue, self._clock = store, catalogue, clock

    async def run_once(self) -> float:
        """Expire one batch; fail successors whose task nobody has offered for the whole grace."""
        next_at = await self._store.expire()
        unoffered = self._catalogue.unoffered()
        if unoffered:
            await self._store.fail_unoffered(unoffered, GRACE_S * 1_000_000)
        return TICK_S if next_at is None else min(TICK_S, max(0.0, (next_at - self._clock.now()) / 1_000_000))
