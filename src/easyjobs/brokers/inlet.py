"""What came from one queue of a broker and is not acknowledged: the bound of memory, for adapters that read ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from easyjobs.errors import BrokerError
from easyjobs.ports.broker import PREFETCH, Delivery


class Inlet:
    """Filled by an adapter, emptied by `fetch`. Each delivery's `tag` is held from `put` to `forget`, in the order of their coming."""

    def __init__(self) -> None:
        self.held: dict[bytes | str, None] = {}
        self._waiting: deque[Delivery] = deque()
        self._news, self._freed = asyncio.Event(), asyncio.Event()
        self.lost: BrokerError | None = None

    @property
    def room(self) -> int:
        """So many more may come."""
        return PREFETCH - len(self.held)

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """They came."""
        self.held.update(dict.fromkeys([delivery.tag for delivery in deliveries]))
        self._waiting.extend(deliveries)
        if deliveries:
            self._news.set()

    def end(self, why: BrokerError) -> None:
        """Nothing comes any more, and what waits counts as not delivered."""
        self.lost = self.lost or why
        self._news.set()
        self._freed.set()

    async def fetch(self, limit: int) -> list[Delivery]:
        """Up to `limit`; waits until there is one. Raises: what `end` was told."""
        while self.lost is not None or not self._waiting:
            if self.lost is not None:
                raise self.lost
            self._news.clear()
            await self._news.wait()
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def forget(self, deliveries: Sequence[Delivery]) -> None:
        """They are acknowledged."""
        for delivery in deliveries:
            self.held.pop(delivery.tag, None)
        self._freed.set()

    async def until_room(self) -> int:
        """Wait until there is room; how much. Raises: what `end` was told."""
        while self.lost is not None or self.room <= 0:
            if self.lost is not None:
                raise self.lost
            self._freed.clear()
            await self._freed.wait()
        return self.room
