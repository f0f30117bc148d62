"""Redis and NATS: publishing with confirmations, and from messages to committed jobs, beside what the client alone does in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from easyjobs.brokers import open_broker
from easyjobs.services.consumer import BATCH
from tests.servers import PATH

if TYPE_CHECKING:
    from benchmarks.run import Bench
    from easyjobs.producers.channel import Channel
    from tests.nats_server import NatsServer
    from tests.redis_server import RedisServer

QUEUE = "BENCH"
BARE_QUEUE = "BARE"
ADAPTER_QUEUE = "ADAPTER"
GROUP = "bare"


async def redis(bench: Bench) -> None:
    """Redis Streams with `appendfsync always`: then what is confirmed is on disk, as with the others."""
    if is_missing(bench, "Redis", "redis-server", "redis"):
        return
    from easyjobs.producers.redis import get_producer_channel
    from tests.redis_server import redis_server

    place = bench.directory / "redis"
    place.mkdir()
    with redis_server(place, fsync="always") as server:
        await measure(bench, "Redis", server, get_producer_channel, bare_redis_publish, bare_redis_consume)


async def nats(bench: Bench) -> None:
    """JetStream with files, as the server comes: it writes before it confirms, and syncs every two minutes."""
    if is_missing(bench, "NATS", "nats-server", "nats"):
        return
    from easyjobs.producers.nats import get_producer_channel
    from tests.nats_server import nats_server

    place = bench.directory / "nats"
    place.mkdir()
    with nats_server(place) as server:
        await measure(bench, "NATS", server, get_producer_channel, bare_nats_publish, bare_nats_consume)


def is_missing(bench: Bench, name: str, program: str, extra: str) -> bool:
    """Whether it cannot be measured here; noted."""
    if shutil.which(program, path=PATH) is None:
        bench.note(name, skipped=f"{program} is not installed")
    elif importlib.util.find_spec(extra) is None:
        bench.note(name, skipped=f"needs pip install 'easyjobs[{extra}]'")
    else:
        return False
    return True


async def measure(
    bench: Bench,
    name: str,
    server: RedisServer | NatsServer,
    get_channel: Callable[[str, str], Awaitable[Channel]],
    bare_publish: Callable[[str, int], Awaitable[float]],
    bare_consume: Callable[[str, int], Awaitable[float]],
) -> None:
    """Note all rates of one broker, medians of rounds; each in a queue of its own, which is empty before and after."""
    from benchmarks.brokers import until_taken

    rounds, total = bench.size(3, 1), bench.size(50_000, 20_000)
    found: dict[str, list[float]] = {each: [] for each in ("sent", "bare sent", "bare taken", "adapter", "taken", "cpu")}
    for _ in range(rounds):
        found["bare sent"].append(await bare_publish(server.url, total))
        found["bare taken"].append(await bare_consume(server.url, total))
        for queue in (ADAPTER_QUEUE, QUEUE):
            async with await get_channel(server.url, queue) as channel:
                began = time.perf_counter()
                await channel.send_jobs({"name": "noop", "args": [n]} for n in range(total))
                found["sent"].append(total / (time.perf_counter() - began))
        found["adapter"].append(await through_the_port(server.url, total))
        with bench.manager(BENCH_OWN_TASK="1", EASYJOBS_BROKER_PATH=server.url, EASYJOBS_MANAGER_SLOTS="0") as manager:
            rate, used = await asyncio.to_thread(until_taken, manager, total)
        found["taken"].append(rate)
        found["cpu"].append(used)
    middle = {each: statistics.median(values) for each, values in found.items()}
    bench.note(
        f"{name}, send_jobs", messages_per_s=middle["sent"], client_per_s=middle["bare sent"], all=[round(each) for each in found["sent"]]
    )
    bench.note(
        f"{name}, message to committed job", jobs_per_s=middle["taken"], client_consume_and_ack_per_s=middle["bare taken"],
        ratio=middle["taken"] / middle["bare taken"], adapter_without_a_store_per_s=middle["adapter"],
        manager_us_per_job=round(middle["cpu"] * 1e6, 1), all=[round(each) for each in found["taken"]],
    )  # fmt: skip


async def through_the_port(url: str, total: int) -> float:
    """Messages a second that our adapter fetches and acknowledges, with nothing behind it."""
    broker = open_broker(url)
    await broker.connect()
    await broker.consume(ADAPTER_QUEUE)
    began, seen = time.perf_counter(), 0
    while seen < total:
        deliveries = await broker.fetch(ADAPTER_QUEUE, BATCH)
        await broker.ack(ADAPTER_QUEUE, deliveries)
        seen += len(deliveries)
    took = time.perf_counter() - began
    await broker.close()
    return total / took


def bodies(total: int) -> list[bytes]:
    """What the bare clients send."""
    return [json.dumps({"name": "noop", "args": [n]}).encode() for n in range(total)]


async def bare_redis_publish(url: str, total: int) -> float:
    """What redis-py does by its own pipeline, a thousand at once."""
    from redis.asyncio import Redis

    content = bodies(total)
    async with Redis.from_url(url, protocol=2) as client:
        began = time.perf_counter()
        for at in range(0, total, 1000):
            async with client.pipeline(transaction=False) as pipe:
                for body in content[at : at + 1000]:
                    pipe.xadd(BARE_QUEUE, {"body": body})
                await pipe.execute()
        return total / (time.perf_counter() - began)


async def bare_redis_consume(url: str, total: int) -> float:
    """What redis-py does: read in batches, acknowledge and delete."""
    from redis.asyncio import Redis
    from redis.exceptions import ResponseError

    async with Redis.from_url(url, protocol=2) as client:
        with contextlib.suppress(ResponseError):  # it is there from the round before
            await client.xgroup_create(BARE_QUEUE, GROUP, "0")
        began, seen = time.perf_counter(), 0
        while seen < total:
            answer: Any = await client.xreadgroup(GROUP, "one", {BARE_QUEUE: ">"}, count=BATCH, block=5000)
            ids = [id for id, _ in answer[0][1]]
            async with client.pipeline(transaction=True) as pipe:
                pipe.xack(BARE_QUEUE, GROUP, *ids)
                pipe.xdel(BARE_QUEUE, *ids)
                await pipe.execute()
            seen += len(ids)
        return total / (time.perf_counter() - began)


async def bare_nats_publish(url: str, total: int) -> float:
    """What nats-py does by its own `publish_async`, a thousand at once."""
    import nats
    from nats.js.api import RetentionPolicy

    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name=BARE_QUEUE, subjects=[BARE_QUEUE], retention=RetentionPolicy.WORK_QUEUE)
    content = bodies(total)
    began = time.perf_counter()
    for at in range(0, total, 1000):
        await asyncio.gather(*[await js.publish_async(BARE_QUEUE, body) for body in content[at : at + 1000]])
    took = time.perf_counter() - began
    await client.close()
    return total / took


async def bare_nats_consume(url: str, total: int) -> float:
    """What nats-py does: fetch in batches, acknowledge each, the last one with an answer."""
    import nats

    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe(BARE_QUEUE, durable=GROUP)
    began, seen = time.perf_counter(), 0
    while seen < total:
        messages = await subscription.fetch(min(BATCH, total - seen), timeout=10)
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=10)
        seen += len(messages)
    took = time.perf_counter() - began
    await client.close()
    return total / took
