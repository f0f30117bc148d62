"""Jobs into NATS JetStream; sent when the server has stored them."""

from __future__ import annotations

import asyncio

from easyjobs.producers.channel import Channel, namespace
from easyjobs.runtime.jetstream import Connection


async def get_producer_channel(nats_path: str, queue: str) -> NatsChannel:
    """Connect to NATS and return a channel to `queue`, which is a namespace of the manager's.

    Args:
        nats_path: `nats://user:password@host:4222` or `tls://…`; several servers of a cluster with commas between them.
        queue: its stream is made where none takes its subject; see `docs/nats.md`.

    Raises:
        InvalidArguments: no manager can have a namespace of this name.
        MissingExtra: `easyjobs[nats]` is not installed.
        BrokerDown, BrokerRefused: it cannot be reached, or refuses.
    """
    channel = NatsChannel(nats_path, namespace(queue))
    await channel._open()
    return channel


class NatsChannel(Channel):
    """Made by `get_producer_channel`. It connects again when it is used after the connection was lost."""

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        self._connection: Connection | None = None
        self._subject = ""
        self._lock = asyncio.Lock()

    async def _open(self) -> Connection:
        async with self._lock:
            if self._connection is None or not self._connection.is_up:
                await self.close()
                connection = Connection(self._url)
                await connection.open(10.0)
                try:
                    _, self._subject = await connection.ensure_stream(self._queue)
                except BaseException:
                    await connection.close()
                    raise
                self._connection = connection
            return self._connection

    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        connection = await self._open()
        await connection.send(self._queue, self._subject, [(body, id, None) for id, body in bodies])

    async def close(self) -> None:
        """See `Channel`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
