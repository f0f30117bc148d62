"""Message brokers: publishing with confirmations, and from messages to committed jobs, beside what the client alone does in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.machine import cpu_s, rss_mib
from easyjobs.producers.rabbitmq import get_producer_channel
from tests.processes import free_port, http_call, until

if TYPE_CHECKING:
    from benchmarks.run import Bench
    from tests.processes import Served

APPS = Path(__file__).resolve().parent / "apps"
QUEUE = "BENCH"
BARE_QUEUE = "BARE"
PREFETCH = 500


async def brokers(bench: Bench) -> None:
    """Each broker that is installed, on this machine, with its own default durability."""
    from benchmarks.brokers_redis_nats import nats, redis

    await rabbitmq(bench)
    await redis(bench)
    await nats(bench)
    await sqs(bench)


async def rabbitmq(bench: Bench) -> None:
    """RabbitMQ with quorum queues, persistent messages and publisher confirms."""
    if shutil.which("rabbitmq-server", path=f"{os.environ['PATH']}:/usr/sbin:/usr/lib/rabbitmq/bin") is None:
        bench.note("RabbitMQ", skipped="rabbitmq-server is not installed")
        return
    if importlib.util.find_spec("aio_pika") is None:
        bench.note("RabbitMQ", skipped="needs pip install 'easyjobs[rabbitmq]'")
        return
    from tests.rabbit import rabbit

    rounds, total = bench.size(3, 1), bench.size(50_000, 20_000)
    sent: list[float] = []
    bare_sent: list[float] = []
    taken: list[float] = []
    bare_taken: list[float] = []
    batched: list[float] = []
    cpu: list[float] = []
    manager_mib = 0.0
    place = bench.directory / "rabbitmq"
    place.mkdir()
    with rabbit(place) as server:
        for _ in range(rounds):
            bare_sent.append(await bare_publish(server.url, total // 5))
            bare_taken.append(await bare_consume(server.url, total // 5, 1))
            await bare_publish(server.url, total // 5)
            batched.append(await bare_consume(server.url, total // 5, 250))
            async with await get_producer_channel(server.url, QUEUE) as channel:
                began = time.perf_counter()
                await channel.send_jobs({"name": "noop", "args": [n]} for n in range(total))
                sent.append(total / (time.perf_counter() - began))
            with bench.manager(BENCH_OWN_TASK="1", EASYJOBS_BROKER_PATH=server.url, EASYJOBS_MANAGER_SLOTS="0") as manager:
                rate, used = await asyncio.to_thread(until_taken, manager, total)
                manager_mib = max(manager_mib, rss_mib(manager.pid, peak=True))
            taken.append(rate)
            cpu.append(used)
    bench.note(
        "RabbitMQ, send_jobs", messages_per_s=statistics.median(sent), aio_pika_per_s=statistics.median(bare_sent),
        all=[round(each) for each in sent],
    )  # fmt: skip
    bench.note(
        "RabbitMQ, message to committed job", jobs_per_s=statistics.median(taken), aio_pika_consume_and_ack_per_s=statistics.median(bare_taken),
        ratio=statistics.median(taken) / statistics.median(bare_taken), aio_pika_ack_of_250_per_s=statistics.median(batched), manager_us_per_job=round(statistics.median(cpu) * 1e6, 1),
        manager_mib=round(manager_mib, 1), all=[round(each) for each in taken],
    )  # fmt: skip


async def sqs(bench: Bench) -> None:
    """Amazon SQS: a stub that answers at once shows what the client allows; moto, a server for tests, is slower than that by far."""
    if any(importlib.util.find_spec(name) is None for name in ("aiobotocore", "moto", "flask_cors")):
        bench.note("SQS", skipped="needs pip install 'easyjobs[sqs]' moto flask flask-cors")
        return
    from easyjobs.producers.sqs import get_producer_channel as channel_to
    from tests.moto import AWS, moto

    async def measure(name: str, url: str, total: int, *, is_stub: bool) -> None:
        jobs = [{"name": "noop", "args": [n]} for n in range(total)]
        if not is_stub:
            async with await channel_to(url, BARE_QUEUE) as channel:
                await channel.send_jobs(jobs)
        bare = await bare_receive(url, total)
        async with await channel_to(url, QUEUE) as channel:
            began = time.perf_counter()
            await channel.send_jobs(jobs)
            sent = total / (time.perf_counter() - began)
        with bench.manager(BENCH_OWN_TASK="1", EASYJOBS_BROKER_PATH=url, EASYJOBS_MANAGER_SLOTS="0") as manager:
            taken, used = await asyncio.to_thread(until_taken, manager, total)
        bench.note(
            f"SQS ({name}), message to committed job", jobs_per_s=taken, aiobotocore_receive_and_delete_per_s=bare, ratio=taken / bare,
            manager_us_per_job=round(used * 1e6, 1), send_jobs_per_s=sent,
        )  # fmt: skip

    place = bench.directory / "sqs"
    place.mkdir()
    with mock.patch.dict(os.environ, AWS):
        port, total = free_port(), bench.size(20_000, 5_000)
        stub = bench.group.program([sys.executable, str(APPS / "sqs_stub.py"), str(port), str(total)], name="sqs_stub")
        try:
            until("the stub listens", lambda: http_call("POST", f"http://127.0.0.1:{port}/", {}, headers={"X-Amz-Target": "a.b"}).status)
            await measure("a stub", f"sqs+http://127.0.0.1:{port}?wait=1", total, is_stub=True)
        finally:
            stub.close()
        with moto(place) as server:  # its cost grows with the square of what is in a queue
            await measure("moto", server.url(), bench.size(300, 100), is_stub=False)


async def bare_receive(url: str, total: int) -> float:
    """What aiobotocore does with receive and delete, ten messages each, by as many loops as a manager has polls at most."""
    from easyjobs.brokers.sqs import RECEIVERS
    from easyjobs.runtime import sqs as shared

    async with contextlib.AsyncExitStack() as stack:
        client = await shared.open_client(shared.parse(url), stack)
        queue = (await client.get_queue_url(QueueName=BARE_QUEUE))["QueueUrl"]
        seen: set[str] = set()

        async def loop() -> None:
            while len(seen) < total:
                answer = await client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=60)
                messages = answer.get("Messages", ())
                seen.update(message["MessageId"] for message in messages)
                entries = [{"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)]
                if entries:
                    await client.delete_message_batch(QueueUrl=queue, Entries=entries)

        began = time.perf_counter()
        async with asyncio.timeout(120):
            await asyncio.gather(*[loop() for _ in range(RECEIVERS)])
        return total / (time.perf_counter() - began)


def until_taken(manager: Served, total: int) -> tuple[float, float]:
    """Jobs per second from the first that is seen to the last, and the manager's processor time for each."""
    from benchmarks.run import counts

    began, first, used = 0.0, 0, 0.0
    end = time.perf_counter() + 120
    while (stored := counts(manager).get("queued", 0)) < total:
        now = time.perf_counter()
        if now > end:
            raise TimeoutError(f"{total} messages were not taken in 120 s: {stored} were")
        if stored and not first:
            began, first, used = now, stored, cpu_s(manager.pid)
        time.sleep(0.02)
    if not first:
        raise RuntimeError("all messages were taken before the first look: take more of them")
    return (total - first) / (time.perf_counter() - began), (cpu_s(manager.pid) - used) / (total - first)


async def bare_publish(url: str, total: int) -> float:
    """What aio-pika does by its own `publish`, a thousand at once, to the same kind of queue."""
    import aio_pika

    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(BARE_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        bodies = [json.dumps({"name": "noop", "args": [n]}).encode() for n in range(total)]
        began = time.perf_counter()
        for at in range(0, total, 1000):
            await asyncio.gather(
                *[
                    channel.default_exchange.publish(
                        aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), routing_key=BARE_QUEUE, mandatory=True
                    )
                    for body in bodies[at : at + 1000]
                ]
            )
        return total / (time.perf_counter() - began)


async def bare_consume(url: str, total: int, ack_every: int) -> float:
    """What aio-pika does by its own `consume`, with an ack for so many messages and nothing else."""
    import aio_pika

    connection = await aio_pika.connect(url)
    async with connection:
        channel: Any = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.declare_queue(BARE_QUEUE, passive=True)
        numbers, done = itertools.count(1), asyncio.Event()

        async def take(message: Any) -> None:
            n = next(numbers)
            if n % ack_every == 0 or n == total:
                await message.ack(multiple=ack_every > 1)
            if n == total:
                done.set()

        began = time.perf_counter()
        await queue.consume(take)
        async with asyncio.timeout(120):
            await done.wait()
        return total / (time.perf_counter() - began)
