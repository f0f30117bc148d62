"""Jobs into RabbitMQ, with publisher confirms."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from easyjobs.errors import BrokerRefused
from easyjobs.ports.broker import Outgoing
from easyjobs.producers.channel import Channel, namespace
from easyjobs.runtime import amqp

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


async def get_producer_channel(rabbit_mq_path: str, queue: str) -> RabbitChannel:
    """Connect to a RabbitMQ and return a channel to `queue`, which is a namespace of the manager's.

    Args:
        rabbit_mq_path: `amqp://user:password@host:5672/vhost`.
        queue: made as a durable quorum queue where it is missing, else used as it is.

    Raises:
        InvalidArguments: no manager can have a namespace of this name.
        MissingExtra: `easyjobs[rabbitmq]` is not installed.
        BrokerDown, BrokerRefused: it cannot be reached, or refuses.
    """
    channel = RabbitChannel(rabbit_mq_path, namespace(queue))
    await channel._open()
    return channel


class RabbitChannel(Channel):
    """Made by `get_producer_channel`. It connects again when it is used after the connection was lost."""

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        self._connection: AbstractConnection | None = None
        self._channel: Any = None
        self._lock = asyncio.Lock()

    async def _open(self) -> Any:
        async with self._lock:
            is_open = self._connection is not None and not self._connection.is_closed
            if not is_open or self._channel is None or self._channel.is_closed:
                await self.close()
                self._connection = await amqp.connect(self._url, 10.0)
                await amqp.ensure_queue(self._connection, self._queue)
                self._channel = await amqp.outlet(self._connection)
            return self._channel

    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        channel = await self._open()
        try:
            await amqp.publish(channel, self._queue, [Outgoing(body, id) for id, body in bodies])
        except BrokerRefused:
            await self.close()  # the queue may have been deleted: the next send makes it again
            raise

    async def close(self) -> None:
        """See `Channel`."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()
