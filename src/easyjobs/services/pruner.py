"""What is forgotten after its time: jobs, results, keys; and that live tasks are still offered is written down."""

from __future__ import annotations

from typing import Final

from easyjobs.ports.store import Kept, Store
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import Catalogue

PULLED_S: Final = 600  # a pulled result can be pulled again for so long: a lost reply loses nothing
KEYS_S: Final = 24 * 3600
TICK_S: Final = 30.0
PAUSE_S: Final = 0.05  # between batches, so that others use the writer
HURRY_S: Final = 0.01  # the same while there is much to delete: jobs may come as fast as that
SWEEPS: Final = 10  # ticks from one look at all old jobs to the next; fewer, where jobs are kept for less time than that
BATCH: Final = 500
SETTLE_TICKS: Final = 20  # from the start, with brokers: a message that was not acknowledged comes again first, however old its key is


class Pruner(Service):
    """Small batches, so that the writer is never held for long."""

    name = "pruner"

    def __init__(self, store: Store, catalogue: Catalogue, kept: Kept, *, settle_ticks: int = 0) -> None:
        super().__init__()
        self._settle_ticks = settle_ticks
        self._store, self._catalogue, self._kept = store, catalogue, kept
        self._at: int | None = 0  # where the sweep over old jobs goes on; None: it is over
        self._ticks = self._deleted = 0
        self._sweeps = max(1, min(SWEEPS, round(kept.shortest_us / 1_000_000 / TICK_S)))

    async def run_once(self) -> float:
        """Prune one batch of each."""
        if self._at is not None:
            deleted, self._at = await self._store.retain(self._kept, self._at, BATCH)
            self._deleted += deleted
            if deleted == BATCH:
                return HURRY_S
        touched = 0
        if self._ticks >= self._settle_ticks:
            touched = await self._store.prune(PULLED_S * 1_000_000, KEYS_S * 1_000_000, BATCH)
        if touched >= BATCH or self._at is not None:
            return PAUSE_S
        await self._catalogue.touch()
        self._ticks += 1
        if self._deleted >= BATCH or self._ticks % self._sweeps == 0:  # where so many were old, others have become so meanwhile
            self._at, self._deleted = 0, 0
        return TICK_S
