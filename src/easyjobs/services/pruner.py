"""What is forgotten after its time: pulled results, idempotency keys; and that live tasks are still offered is written down."""

from __future__ import annotations

from typing import Final

from easyjobs.ports.store import Store
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import Catalogue

PULLED_S: Final = 600  # a pulled result can be pulled again for so long: a lost reply loses nothing
KEYS_S: Final = 24 * 3600
TICK_S: Final = 30.0
BATCH: Final = 500


class Pruner(Service):
    """Small batches, so that the writer is never held for long."""

    name = "pruner"

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        super().__init__()
        self._store, self._catalogue = store, catalogue

    async def run_once(self) -> float:
        """Prune one batch."""
        touched = await self._store.prune(PULLED_S * 1_000_000, KEYS_S * 1_000_000, BATCH)
        if touched >= BATCH:
            return 0.05
        await self._catalogue.touch()
        return TICK_S
