"""A broker inside this process, for tests: it keeps its messages over `close`, and hands over again what was not acknowledged."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence

from easyjobs.errors import BrokerDown
from easyjobs.ports.broker import PREFETCH, Delivery, Outgoing


class MemoryBroker:
    """`ports.broker.Broker` without a server. `is_down`, set by a test, makes everything fail; `close` ends what waits."""

    keep_us = 24 * 3600 * 1_000_000
    watch_s = 30.0

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.is_down = False
        self._ids = 0
        self._waiting: defaultdict[str, deque[tuple[str, bytes]]] = defaultdict(deque)
        self._held: defaultdict[str, deque[tuple[str, bytes]]] = defaultdict(deque)
        self._news = asyncio.Event()
        self._connected = False

    def _up(self) -> None:
        if self.is_down or not self._connected:
            raise BrokerDown(f"{self.name} is down")

    async def connect(self) -> None:
        """See the port."""
        self._connected = not self.is_down
        self._up()

    async def consume(self, queue: str) -> None:
        """See the port."""
        self._up()
        self._waiting[queue]

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """See the port."""
        waiting, held = self._waiting[queue], self._held[queue]
        while True:
            self._up()
            room = min(limit, PREFETCH - len(held), len(waiting))
            if room > 0:
                break
            self._news.clear()
            await self._news.wait()
        some = [waiting.popleft() for _ in range(room)]
        held.extend(some)
        return [Delivery(body, id, id) for id, body in some]

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """See the port."""
        self._up()
        done = {delivery.tag for delivery in deliveries}
        held = self._held[queue]  # the same one: a fetch that waits looks at it
        left = [message for message in held if message[0] not in done]
        held.clear()
        held.extend(left)
        self._news.set()

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """See the port."""
        self._up()
        for message in messages:
            self._ids += 1
            self._waiting[queue].append((message.id or f"m{self._ids}", message.body))
        self._news.set()

    async def check(self) -> None:
        """See the port."""
        self._up()

    async def close(self) -> None:
        """See the port."""
        self._connected = False
        for queue, held in self._held.items():
            self._waiting[queue].extendleft(reversed(held))
            held.clear()
        self._news.set()
