"""Redis and NATS as the tests of real managers see them: a server, a producer, and how a queue is deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyjobs.errors import BrokerError
from easyjobs.producers import nats as nats_producer
from easyjobs.producers import redis as redis_producer
from easyjobs.producers.channel import Channel
from tests.nats_server import NatsServer, nats_server
from tests.processes import Served, until
from tests.redis_server import RedisServer, redis_server


@dataclass
class Under:
    """A broker under test."""

    kind: str
    server: RedisServer | NatsServer
    open: Callable[[str, str], Awaitable[Channel]]

    @property
    def url(self) -> str:
        return self.server.url

    async def delete(self, queue: str) -> None:
        """The queue and all that it has."""
        if isinstance(self.server, RedisServer):
            self.server.command("DEL", queue)
        else:
            import nats

            client = await nats.connect(self.url, allow_reconnect=False)
            await client.jetstream().delete_stream(queue)
            await client.close()


@contextlib.contextmanager
def under(kind: str, directory: Path) -> Iterator[Under]:
    """A running server of `kind`."""
    directory.mkdir()
    if kind == "redis":
        with redis_server(directory) as redis:
            yield Under(kind, redis, redis_producer.get_producer_channel)
    else:
        with nats_server(directory) as nats:
            yield Under(kind, nats, nats_producer.get_producer_channel)


async def produce(broker: Under, numbers: range, confirmed: set[int], *, by: int = 100, url: str | None = None) -> None:
    """Send jobs with these numbers; those that are in doubt are left so. `confirmed` grows meanwhile."""
    channel: Channel | None = None
    for at in range(numbers.start, numbers.stop, by):
        some = range(at, min(at + by, numbers.stop))
        try:
            if channel is None:
                channel = await broker.open(url or broker.url, "DEFAULT")
            await channel.send_jobs([{"name": "basic_job", "args": [n, 0, 0]} for n in some])
            confirmed.update(some)
        except BrokerError:
            if channel is not None:
                await channel.close()
            channel = None
    if channel is not None:
        await channel.close()


def jobs(manager: Served) -> list[dict[str, Any]]:
    """All that the manager has."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = manager.get(f"/jobs/api/v1/jobs?limit=500{cursor}")
        found += page["items"]
        if not page.get("next_cursor"):
            return found
        cursor = f"&cursor={page['next_cursor']}"


def assert_each_is_one_job(manager: Served, confirmed: set[int], within_s: float = 60) -> None:
    """Every confirmed number has a job, and none has two."""
    until("every confirmed message is a job", lambda: confirmed <= {job["args"][0] for job in jobs(manager)}, within_s, 0.5)
    numbers = [job["args"][0] for job in jobs(manager)]
    assert len(numbers) == len(set(numbers))
