"""RabbitMQ: one connection, a channel for each queue, messages acknowledged by ranges.

aio-pika's `connect` is used, not its `connect_robust`: the consumer service supervises, so that there is one that does. Channels are
used below aio-pika's own objects: one ack for a whole batch, and no task and no object of ours for each message.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easyjobs.errors import BrokerDown, BrokerRefused
from easyjobs.ports.broker import PREFETCH, Delivery, Outgoing
from easyjobs.runtime import amqp
from easyjobs.runtime.broker_url import shown

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

CONNECT_S = 10.0
CHECK_S = 10.0


class _Inlet:
    """What came from one queue and was not fetched yet. What another channel than `raw` hands over is left to the broker, which has it back."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.raw: Any = None
        self.waiting: deque[Delivery] = deque()
        self.unacked = 0
        self.came = False  # anything, since the last look
        self.news = asyncio.Event()
        self.lost: str | None = None

    @property
    def holds_none(self) -> bool:
        return not self.waiting and not self.unacked

    async def put(self, raw: Any, message: Any) -> None:
        if raw is self.raw:
            self.waiting.append(Delivery(message.body, message.header.properties.message_id, message.delivery.delivery_tag))
            self.came = True
            self.news.set()

    def end(self, raw: Any, why: str) -> None:
        if raw is self.raw:
            self.lost = self.lost or why
            self.news.set()


class RabbitMQ:
    """`ports.broker.Broker` on a RabbitMQ of version 3.10 or newer."""

    keep_us = 24 * 3600 * 1_000_000
    watch_s = 10.0  # what is not handed over any more comes again after two of them at most

    def __init__(self, url: str, name: str = "rabbitmq") -> None:
        amqp.require()
        self.name, self._url = name, url
        self._connection: AbstractConnection | None = None
        self._inlets: dict[str, _Inlet] = {}
        self._outlet: Any = None
        self._ensured: set[str] = set()  # queues that are there

    def _up(self) -> AbstractConnection:
        if self._connection is None or self._connection.is_closed:
            raise BrokerDown(f"{shown(self._url)}: the connection was lost")
        return self._connection

    async def connect(self) -> None:
        """See the port."""
        self._connection = connection = await amqp.connect(self._url, CONNECT_S)
        connection.close_callbacks.add(self._lost)

    def _lost(self, _connection: Any, why: BaseException | None = None) -> None:
        for inlet in self._inlets.values():
            inlet.end(inlet.raw, f"the connection was lost: {why}")

    async def consume(self, queue: str) -> None:
        """See the port. A queue that exists is used as it is declared; one that cannot be consumed from is BrokerRefused."""
        await amqp.ensure_queue(self._up(), queue, to_consume=True)
        await self._subscribe(queue, _Inlet())

    async def _subscribe(self, queue: str, inlet: _Inlet) -> None:
        """Have it handed over by a new channel. The one before is closed: unless it holds messages, with which it is kept."""
        with amqp.translated(f"queue {queue}"):
            channel: Any = self._up().channel(publisher_confirms=False)
            await channel.initialize()
            raw = await channel.get_underlay_channel()
            if not inlet.holds_none:
                await channel.close()
                return
            before, inlet.channel, inlet.raw = inlet.channel, channel, raw
            self._inlets[queue] = inlet
            raw.on_consumer_cancel_callbacks.add(lambda *_: inlet.end(raw, "the queue was deleted, or moved"))
            channel.close_callbacks.add(lambda *_: inlet.end(raw, "its channel was closed"))
            await raw.basic_qos(prefetch_count=PREFETCH)
            if before is not None:
                await before.close()
            await raw.basic_consume(queue, functools.partial(inlet.put, raw))

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """See the port."""
        inlet = self._inlets[queue]
        while not inlet.waiting or inlet.lost:
            if inlet.lost:
                raise BrokerDown(f"queue {queue}: {inlet.lost}")
            inlet.news.clear()
            await inlet.news.wait()
        some = [inlet.waiting.popleft() for _ in range(min(limit, len(inlet.waiting)))]
        inlet.unacked += len(some)
        return some

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """See the port. One frame says it of all."""
        inlet = self._inlets[queue]
        with amqp.translated(f"queue {queue}"):
            await inlet.raw.basic_ack(deliveries[-1].tag, multiple=True)
        inlet.unacked -= len(deliveries)

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """See the port."""
        connection = self._up()
        if self._outlet is None or self._outlet.is_closed:
            self._outlet = await amqp.outlet(connection)
        if queue not in self._ensured:
            await amqp.ensure_queue(connection, queue)
            self._ensured.add(queue)
        try:
            await amqp.publish(self._outlet, queue, messages)
        except BrokerRefused:
            self._ensured.discard(queue)  # it may have been deleted: the next try makes it again
            raise

    async def check(self) -> None:
        """See the port. Asks for each queue: one that is gone is BrokerDown. One of which nothing came is consumed from anew.

        The reason for that (seen in RabbitMQ 3.10): the channel of a queue that was deleted, and declared again at once, may be told
        nothing of it. What the new queue then hands over to its consumer never comes, and neither side says so.
        """
        connection = self._up()
        with amqp.translated("a look at the queues"):
            async with asyncio.timeout(CHECK_S):
                probe: Any = connection.channel()
                await probe.initialize()
                try:
                    raw = await probe.get_underlay_channel()
                    for queue, inlet in list(self._inlets.items()):
                        await raw.queue_declare(queue, passive=True)
                        if not inlet.came and inlet.holds_none:
                            await self._subscribe(queue, inlet)
                        inlet.came = False
                finally:
                    with contextlib.suppress(Exception):
                        await probe.close()

    async def close(self) -> None:
        """See the port."""
        connection, self._connection = self._connection, None
        inlets, self._inlets, self._outlet = self._inlets, {}, None
        self._ensured.clear()
        for inlet in inlets.values():
            inlet.end(inlet.raw, "it was closed")
        if connection is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    await connection.close()
