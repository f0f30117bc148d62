"""Jobs into Amazon SQS, ten in one request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from easyjobs.errors import BrokerDown, ConfigurationError
from easyjobs.producers.channel import Channel, namespace
from easyjobs.runtime import sqs


async def get_producer_channel(sqs_path: str, queue: str, *, group: str | Callable[[Mapping[str, Any]], str] = sqs.GROUP) -> SqsChannel:
    """Connect to Amazon SQS and return a channel to `queue`, which is a namespace of the manager's.

    Args:
        sqs_path: `sqs://eu-west-1`, or an endpoint such as `http://127.0.0.1:4566`; the options of `runtime.sqs.parse`. Credentials come
            from AWS's own environment variables, a profile or a role.
        queue: made where it is missing, with `<queue>-dead` beside it, else used as it is. A FIFO queue ends in `.fifo`.
        group: of each job in a FIFO queue, whose jobs keep their order: 1 to 128 characters, or a function of the job.

    Raises:
        ConfigurationError, MissingExtra: the URL is wrong; `easyjobs[sqs]` is not installed.
        BrokerDown, BrokerRefused: it cannot be reached, or refuses.
    """
    channel = SqsChannel(sqs_path, namespace(queue), group)
    try:
        await channel._open()
    except BaseException:
        await channel.close()
        raise
    return channel


class SqsChannel(Channel):
    """Made by `get_producer_channel`. Where some of many jobs were not confirmed, the error's `failed` has their numbers."""

    in_flight = sys.maxsize  # batches are limited where they are sent, and so an error counts all jobs

    def __init__(self, url: str, queue: str, group: str | Callable[[Mapping[str, Any]], str]) -> None:
        self._address, self._name, self._group = sqs.parse(url), queue, group
        self._client: Any = None
        self._queue: sqs.Queue | None = None
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()

    async def _open(self) -> sqs.Queue:
        async with self._lock:
            if self._client is None:
                self._client = await sqs.open_client(self._address, self._stack)
            if self._queue is None:
                self._queue = await sqs.ensure_queue(self._client, self._address, self._name)
                self.max_bytes = self._queue.max_bytes - sqs.overhead({sqs.ID: sqs.new_id()})
            return self._queue

    def _group_of(self, body: bytes) -> str:
        if isinstance(self._group, str):
            return self._group
        group = self._group(json.loads(body))
        if not isinstance(group, str) or not 0 < len(group) <= 128:
            raise ConfigurationError(f"the group of a job is {group!r:.200}: a text of 1 to 128 characters is needed")
        return group

    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        queue = await self._open()
        parcels = [sqs.Parcel(id, body, self._group_of(body) if queue.is_fifo else sqs.GROUP) for id, body in bodies]
        try:
            await sqs.send(self._client, queue, parcels)
        except BrokerDown:
            self._queue = None  # it may have been deleted: the next call looks, and makes it again
            raise

    async def close(self) -> None:
        """See `Channel`."""
        stack, self._stack, self._client, self._queue = self._stack, AsyncExitStack(), None, None
        with contextlib.suppress(Exception):
            await stack.aclose()
