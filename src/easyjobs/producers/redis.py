"""Jobs into Redis Streams; sent when Redis has answered."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from easyjobs.producers.channel import Channel, namespace
from easyjobs.runtime import redis_streams as streams


async def get_producer_channel(redis_path: str, queue: str) -> RedisChannel:
    """Connect to a Redis and return a channel to `queue`, which is a namespace of the manager's.

    What an answer of Redis is worth depends on its `appendfsync`: see `docs/redis.md`.

    Args:
        redis_path: `redis://user:password@host:6379/0`, `rediss://…` or `unix:///path/to.sock`.
        queue: the stream, which is made where it is missing.

    Raises:
        InvalidArguments: no manager can have a namespace of this name.
        MissingExtra: `easyjobs[redis]` is not installed.
        BrokerDown, BrokerRefused: it cannot be reached, or refuses.
    """
    channel = RedisChannel(redis_path, namespace(queue))
    await channel._open()
    return channel


class RedisChannel(Channel):
    """Made by `get_producer_channel`. It connects again when it is used after the connection was lost."""

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        self._client: Any = None
        self._lock = asyncio.Lock()

    async def _open(self) -> Any:
        async with self._lock:
            if self._client is None:
                self._client = await streams.connect(self._url, 10.0)
            return self._client

    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        client = await self._open()
        await streams.add(client, self._queue, [streams.entry(body, id) for id, body in bodies])

    async def close(self) -> None:
        """See `Channel`."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.aclose()
