"""What goes wrong with a RabbitMQ while a manager takes messages from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from easyjobs.brokers import open_broker
from easyjobs.brokers import rabbitmq as adapter
from easyjobs.domain.job import JobQuery
from easyjobs.domain.quarantine import QuarantineQuery
from easyjobs.ports.broker import Broker, Outgoing
from easyjobs.producers.rabbitmq import get_producer_channel
from easyjobs.runtime.amqp import DELIVERY_LIMIT
from easyjobs.services import consumer as module
from easyjobs.services.consumer import Consumer
from tests.contracts.broker_contract import take
from tests.faults.proxy import Proxy
from tests.rabbit import Rabbit, rabbit
from tests.services.conftest import Parts

pytestmark = pytest.mark.slow
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    with rabbit(tmp_path_factory.mktemp("rabbit")) as running:
        yield running


class Manager:
    """The part of a manager that takes messages."""

    def __init__(self, parts: Parts, broker: Broker) -> None:
        self.parts, self.broker = parts, broker
        self.consumer = Consumer(
            broker, store=parts.store, inbox=parts.inbox, catalogue=parts.catalogue, clock=parts.clock, has_room=lambda: True, backlog=10**9
        )

    async def until_up(self, is_up: bool = True) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.consumer.is_up != is_up:
                await asyncio.wait([self.consumer._supervisor], timeout=0.01)  # type: ignore[list-item]

    async def until_jobs(self, count: int) -> list[Any]:
        async with asyncio.timeout(WITHIN_S):
            while len(jobs := await self.parts.store.page(JobQuery(limit=100_000))) < count:
                await asyncio.wait([self.consumer._supervisor], timeout=0.01)  # type: ignore[list-item]
        return jobs


@pytest.fixture
async def made(parts: Parts) -> AsyncIterator[Any]:
    managers: list[Manager] = []

    async def make(url: str, watch_s: float = 20.0) -> Manager:
        broker = open_broker(url)
        broker.watch_s = watch_s
        manager = Manager(parts, broker)
        managers.append(manager)
        await manager.consumer.start()
        await manager.until_up()
        return manager

    yield make
    for manager in managers:
        await manager.consumer.stop()


async def send(server: Rabbit, queue: str, *numbers: int) -> None:
    async with await get_producer_channel(server.url, queue) as channel:
        await channel.send_jobs([{"name": "work", "args": [n]} for n in numbers])


async def delete_queue(server: Rabbit, queue: str) -> None:
    import aio_pika

    async with await aio_pika.connect(server.url) as connection:
        await (await connection.channel()).queue_delete(queue)  # type: ignore[attr-defined]


async def test_a_message_that_ends_the_process_each_time_goes_to_the_dead_queue(server: Rabbit) -> None:
    queue = "deadly"
    await send(server, queue, 1)
    broker = open_broker(server.url)
    for _ in range(DELIVERY_LIMIT + 1):
        await broker.connect()
        await broker.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            assert len(await broker.fetch(queue, 1)) == 1
        await broker.close()  # and no ack
    await broker.connect()
    await broker.consume(f"{queue}.dead")
    [dead] = await take(broker, f"{queue}.dead", 1)
    assert json.loads(dead.body) == {"name": "work", "args": [1]}
    await broker.close()


async def test_a_queue_that_is_deleted_is_made_and_consumed_again(server: Rabbit, made: Any, parts: Parts) -> None:
    await parts.task(queue="deleted")
    manager = await made(server.url)
    await send(server, "deleted", 1)
    await manager.until_jobs(1)
    await delete_queue(server, "deleted")
    await manager.until_up(False)
    await send(server, "deleted", 2)
    assert len(await manager.until_jobs(2)) == 2


async def test_a_connection_that_was_cut_silently_is_given_up(
    server: Rabbit,
    made: Any,
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "CHECK_S", 0.5)
    monkeypatch.setattr(module, "CONNECT_S", 2.0)
    await parts.task(queue="silent")
    with Proxy(server.port) as proxy:
        manager = await made(server.url.replace(str(server.port), str(proxy.port)), watch_s=0.2)
        await send(server, "silent", 1)
        await manager.until_jobs(1)
        proxy.to_manager.clear()
        proxy.to_worker.clear()
        await send(server, "silent", 2)
        await manager.until_up(False)
        proxy.cut()
        proxy.to_manager.set()
        proxy.to_worker.set()
        assert len(await manager.until_jobs(2)) == 2


@pytest.mark.parametrize("fault", ["cancelled", "handed to nobody"])
async def test_a_queue_of_which_nothing_comes_is_consumed_from_anew(server: Rabbit, fault: str) -> None:
    """The second is what a channel may come to whose queue was deleted and declared again at once: it has a consumer, and hears nothing."""
    queue = f"deaf-{fault[:6]}"
    broker: Any = open_broker(server.url)
    await broker.connect()
    await broker.consume(queue)
    await broker.check()
    raw = broker._inlets[queue].raw
    raw.on_consumer_cancel_callbacks.clear()
    for tag in list(raw.consumers):
        if fault == "cancelled":
            await raw.basic_cancel(tag)
        else:
            raw.consumers[tag] = _forget
    await broker.publish(queue, [Outgoing(b"{}")])
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.fetch(queue, 1), 0.5)
        await broker.check()
        (delivery,) = await broker.fetch(queue, 1)
    inlet = broker._inlets[queue]
    await broker.check()
    assert inlet.raw is not raw
    raw = inlet.raw
    await broker.check()
    assert inlet.raw is raw, "a channel was changed while its message was not acknowledged"
    await broker.ack(queue, [delivery])
    await broker.publish(queue, [Outgoing(b"[]")])
    await broker.check()
    assert (await take(broker, queue, 1))[0].body == b"[]"
    await broker.close()


async def _forget(_message: object) -> None:
    pass


async def test_a_manager_that_ends_between_commit_and_ack_makes_no_second_job(
    server: Rabbit,
    made: Any,
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await parts.task(queue="between")
    first = await made(server.url)
    reached = asyncio.Event()

    async def no_ack(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(first.broker, "ack", no_ack)
    await send(server, "between", *range(300))
    async with asyncio.timeout(WITHIN_S):
        await reached.wait()
    stored = len(await parts.store.page(JobQuery(limit=1000)))
    assert stored > 0
    await first.consumer.stop()
    second = await made(server.url)
    await send(server, "between", 300)
    jobs = await second.until_jobs(301)
    assert sorted(json.loads(job.args)[0][0] for job in jobs) == list(range(301))


async def test_ten_thousand_bad_messages_among_good_ones(server: Rabbit, made: Any, parts: Parts) -> None:
    bad = [b"{", b"\xff\xfe", b'{"name":"work","args":["text"]}', b'{"nobody":1}', b"[" * 5000, b'{"name":"work","args":[NaN]}']
    good = b'{"name":"work","args":[%d]}'
    messages = [Outgoing(good % n if n % 11 == 0 else bad[n % len(bad)], f"m{n}") for n in range(11_000)]
    broker = open_broker(server.url)
    await broker.connect()
    await broker.publish("poisoned", messages)
    await broker.close()
    await parts.task(queue="poisoned")
    manager = await made(server.url)
    jobs = await manager.until_jobs(1000)
    assert sorted(json.loads(job.args)[0][0] for job in jobs) == list(range(0, 11_000, 11))
    async with asyncio.timeout(WITHIN_S):
        while len(rows := await parts.store.quarantined(QuarantineQuery(limit=20_000))) < 10_000:
            await asyncio.wait([manager.consumer._supervisor], timeout=0.05)  # type: ignore[list-item]
    assert {row.reason for row in rows} == {"bad_json", "bad_format", "invalid_arguments"}
    assert len({row.key for row in rows}) == 10_000
