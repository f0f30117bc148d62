"""The brokers, held to the contract."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from easyjobs.brokers import open_broker
from easyjobs.errors import BrokerDown, BrokerRefused, ConfigurationError, MissingExtra, QueueGone
from easyjobs.ports.broker import Broker, Outgoing
from easyjobs.producers.rabbitmq import get_producer_channel
from tests.contracts.broker_contract import BrokerContract, take
from tests.processes import free_port
from tests.rabbit import Rabbit, rabbit


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    async def broker(self) -> AsyncIterator[Broker]:
        broker = open_broker("memory://")
        await broker.connect()
        yield broker
        await broker.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    with rabbit(tmp_path_factory.mktemp("rabbit")) as running:
        yield running


class TestRabbitMQ(BrokerContract):
    @pytest.fixture
    async def broker(self, server: Rabbit) -> AsyncIterator[Broker]:
        broker = open_broker(server.url)
        await broker.connect()
        yield broker
        await broker.close()

    async def test_a_producer_returns_after_the_confirm(self, broker: Broker, server: Rabbit, queue: str) -> None:
        async with await get_producer_channel(server.url, queue) as channel:
            await channel.send_job({"name": "work", "args": [1]})
            await channel.send_jobs([{"job": {"name": "work", "args": [n]}} for n in range(2, 1500)])
        await broker.consume(queue)
        got = await take(broker, queue, 1499)
        assert got[0].body == b'{"name":"work","args":[1]}'
        assert len({each.id for each in got}) == 1499

    async def test_an_existing_queue_is_used_as_it_is_declared(self, broker: Broker, server: Rabbit, queue: str) -> None:
        import aio_pika

        connection = await aio_pika.connect(server.url)
        async with connection:
            await (await connection.channel()).declare_queue(queue, durable=False, auto_delete=True)
            async with await get_producer_channel(server.url, queue) as channel:
                await channel.send_job({"name": "work"})
            await broker.consume(queue)
            assert len(await take(broker, queue, 1)) == 1

    async def test_a_queue_that_belongs_to_another_connection_is_refused_clearly(self, broker: Broker, server: Rabbit, queue: str) -> None:
        import aio_pika

        connection = await aio_pika.connect(server.url)
        async with connection:
            await (await connection.channel()).declare_queue(queue, exclusive=True)
            with pytest.raises(BrokerRefused, match=queue):
                await broker.consume(queue)

    async def test_a_result_goes_to_a_queue_that_belongs_to_its_reader(self, broker: Broker, server: Rabbit, queue: str) -> None:
        import aio_pika

        connection = await aio_pika.connect(server.url)
        async with connection:
            mine = await (await connection.channel()).declare_queue(queue, exclusive=True)
            await broker.publish(queue, [Outgoing(b"1", "id-1", "order-1")])
            message = await mine.get(timeout=20)
            assert (message.body, message.message_id, message.correlation_id) == (b"1", "id-1", "order-1")
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT

    async def test_a_queue_that_the_broker_has_named_is_not_made_again(self, broker: Broker, server: Rabbit) -> None:
        import aio_pika

        connection = await aio_pika.connect(server.url)
        async with connection:
            mine = await (await connection.channel()).declare_queue("", exclusive=True)
            await broker.publish(mine.name, [Outgoing(b"1")])
            assert (await mine.get(timeout=20)).body == b"1"
        await broker.close()
        await broker.connect()
        with pytest.raises(QueueGone, match=mine.name):
            await broker.publish(mine.name, [Outgoing(b"2")])

    async def test_a_queue_that_is_deleted_between_two_sends_is_made_again(self, broker: Broker, server: Rabbit, queue: str) -> None:
        import aio_pika

        await broker.publish(queue, [Outgoing(b"1")])
        connection = await aio_pika.connect(server.url)
        async with connection:
            await (await connection.channel()).queue_delete(queue)  # type: ignore[attr-defined]
        with pytest.raises(BrokerRefused, match="no queue takes the message"):
            await broker.publish(queue, [Outgoing(b"2")])
        await broker.publish(queue, [Outgoing(b"3")])
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 1)] == [b"3"]

    async def test_many_messages_are_confirmed_and_in_order(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, [Outgoing(b"%d" % n) for n in range(5001)])
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 5001)] == [b"%d" % n for n in range(5001)]

    async def test_a_connection_that_is_lost_while_publishing_is_down(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, [Outgoing(b"1")])
        publishing = asyncio.create_task(broker.publish(queue, [Outgoing(b"x" * 1000)] * 50_000))
        await asyncio.sleep(0)
        await broker.close()
        with pytest.raises(BrokerDown):
            await asyncio.wait_for(publishing, 30)

    async def test_a_queue_that_is_deleted_ends_the_fetch(self, broker: Broker, server: Rabbit, queue: str) -> None:
        import aio_pika

        await broker.consume(queue)
        connection = await aio_pika.connect(server.url)
        async with connection:
            await (await connection.channel()).queue_delete(queue)  # type: ignore[attr-defined]
            with pytest.raises(BrokerDown, match="deleted"):
                await take(broker, queue, 1)

    async def test_wrong_credentials_are_refused_and_not_shown(self, server: Rabbit) -> None:
        broker = open_broker(server.url.replace("guest:guest", "guest:not-the-password"))
        with pytest.raises(BrokerRefused) as refused:
            await broker.connect()
        assert "not-the-password" not in str(refused.value)
        await broker.close()

    async def test_nobody_there_is_down_and_shows_no_password(self) -> None:
        with pytest.raises(BrokerDown) as down:
            await open_broker(f"amqp://u:pass-word@127.0.0.1:{free_port()}/").connect()
        assert "pass-word" not in str(down.value)


@pytest.mark.parametrize(
    ("url", "type"),
    [
        ("http://u:pass-word@h/", None),
        ("amqp://u:pass-word@h/", "kafka"),
        ("redis://u:pass-word@h/", "nats"),
        ("http://u:pass-word@h", "rabbitmq"),
    ],
)
def test_a_broker_that_is_not_known_is_said_without_the_password(url: str, type: str | None) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_broker(url, type)
    assert "pass-word" not in str(wrong.value)


async def test_a_client_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(MissingExtra, match=r"easyjobs\[rabbitmq\]"):
        open_broker("amqp://127.0.0.1/")
    with pytest.raises(MissingExtra, match=r"easyjobs\[rabbitmq\]"):
        await get_producer_channel("amqp://127.0.0.1/", "DEFAULT")
