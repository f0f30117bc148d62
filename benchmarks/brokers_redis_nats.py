"""How fast do messages of Redis and NATS become jobs here, beside the client's own bare consume-and-acknowledge?

    python -m benchmarks.brokers_redis_nats [redis] [nats] [--count 20000]

Per broker, in one run, with a server of its own that is started here, and in batches of the same size: `publish` is `send_jobs`, confirmed;
`bare` is the client library alone, used as its documentation does; `adapter` is ours without a store behind it; `jobs` is a manager process, from the first to the last committed job.
Redis runs with `appendfsync everysec` for both, unless `--fsync always` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.run import APPS, counts, run, show
from easyjobs.brokers import open_broker
from easyjobs.producers import nats as nats_producer
from easyjobs.producers import redis as redis_producer
from easyjobs.services.consumer import BATCH
from tests.nats_server import nats_server
from tests.processes import Processes, processes
from tests.redis_server import redis_server

QUEUE = "BENCH"
KINDS = ("redis", "nats")


@contextlib.contextmanager
def serving(kind: str, directory: Path, fsync: str = "everysec") -> Iterator[str]:
    """A server; its URL."""
    directory.mkdir()
    with redis_server(directory, fsync) if kind == "redis" else nats_server(directory) as server:
        yield server.url


async def publish(kind: str, url: str, queue: str, count: int) -> float:
    """Confirmed messages a second."""
    get = redis_producer.get_producer_channel if kind == "redis" else nats_producer.get_producer_channel
    async with await get(url, queue) as channel:
        began = time.monotonic()
        await channel.send_jobs([{"name": "noop", "args": [number]} for number in range(count)])
        return count / (time.monotonic() - began)


async def bare_redis(url: str, queue: str, count: int) -> float:
    """Messages a second, read in batches and acknowledged and deleted, by redis-py alone."""
    from redis.asyncio import Redis

    async with Redis.from_url(url, protocol=2) as client:
        await client.xgroup_create(queue, "bare", "0", mkstream=True)
        began, seen = time.monotonic(), 0
        while seen < count:
            answer: Any = await client.xreadgroup("bare", "one", {queue: ">"}, count=BATCH, block=5000)
            ids = [id for id, _ in answer[0][1]]
            async with client.pipeline(transaction=True) as pipe:
                pipe.xack(queue, "bare", *ids)
                pipe.xdel(queue, *ids)
                await pipe.execute()
            seen += len(ids)
        return count / (time.monotonic() - began)


async def bare_nats(url: str, queue: str, count: int) -> float:
    """Messages a second, fetched in batches, each acknowledged, the last one with an answer, by nats-py alone."""
    import nats

    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe(queue, durable="bare")
    began, seen = time.monotonic(), 0
    while seen < count:
        messages = await subscription.fetch(min(BATCH, count - seen), timeout=10)
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=10)
        seen += len(messages)
    took = time.monotonic() - began
    await client.close()
    return count / took


async def adapter(url: str, queue: str, count: int) -> float:
    """Messages a second, fetched and acknowledged through the broker port, which stores nothing."""
    broker = open_broker(url)
    await broker.connect()
    await broker.consume(queue)
    began, seen = time.monotonic(), 0
    while seen < count:
        deliveries = await broker.fetch(queue, BATCH)
        await broker.ack(queue, deliveries)
        seen += len(deliveries)
    took = time.monotonic() - began
    await broker.close()
    return count / took


def committed(group: Processes, directory: Path, url: str, count: int) -> float:
    """Jobs a second that a manager has stored of `count` messages that wait, between the first and the last look that saw it work."""
    environment = {"BENCH_SECRET": secrets.token_urlsafe(32), "BENCH_BROKER": url, "DB_PATH": str(directory)}
    options = ("--log-level", "warning", "--no-access-log")
    manager = group.uvicorn("broker_manager:server", *options, directory=APPS, name="manager", env=environment).until_ready()
    looks: list[tuple[float, int]] = []
    end = time.monotonic() + 120
    while not looks or looks[-1][1] < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{looks[-1][1]} of {count} messages are jobs after two minutes")
        queued = counts(manager).get("queued", 0)
        if queued:
            looks.append((time.monotonic(), queued))
        time.sleep(0.05)
    manager.close()
    (first_at, first), (last_at, last) = looks[0], looks[-1]
    return (last - first) / (last_at - first_at)


def measure(kind: str, group: Processes, directory: Path, count: int = 20_000, fsync: str = "everysec") -> dict[str, float]:
    """The rates of one broker, and the share of the bare one that is left.

    Args:
        kind: "redis" or "nats".
        group: its processes end with it.
        directory: an empty one.
        count: messages; each rate has so many of its own.
        fsync: Redis's `appendfsync`.
    """
    found: dict[str, float] = {}
    bare = bare_redis if kind == "redis" else bare_nats
    with serving(kind, directory / "broker", fsync) as url:
        run(publish(kind, url, "BARE", count))
        found["bare"] = run(bare(url, "BARE", count))
        run(publish(kind, url, "ADAPTER", count))
        found["adapter"] = run(adapter(url, "ADAPTER", count))
        found["publish"] = run(publish(kind, url, QUEUE, count))
        found["jobs"] = committed(group, directory / "manager", url, count)
    found["share"] = found["jobs"] / found["bare"]
    return found


def main() -> None:
    """Measure, print a line for each, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--fsync", choices=["always", "everysec", "no"], default="everysec")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": describe(Path(tempfile.gettempdir()))}
    for kind in options.kinds or KINDS:
        with tempfile.TemporaryDirectory() as directory, processes() as group:
            found[kind] = measure(kind, group, Path(directory), options.count, options.fsync)
            print(f"{kind}: " + ", ".join(f"{name} {show(value)}" for name, value in found[kind].items()), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
