"""Amazon SQS, held to the contract; moto plays the service. What moto does not do is answered by a stub in tests/brokers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import pytest

from easyjobs.brokers import sqs as adapter
from easyjobs.brokers.sqs import SQS
from easyjobs.errors import BrokerDown, BrokerRefused, InvalidArguments
from easyjobs.ports.broker import Broker, Delivery, Outgoing
from easyjobs.producers.sqs import get_producer_channel
from easyjobs.runtime import sqs
from tests.contracts import broker_contract
from tests.contracts.broker_contract import WITHIN_S, BrokerContract, messages, take
from tests.moto import AWS, Moto, moto

PREFETCH = 110  # moto's cost grows with the square of what is in a queue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sqs, "SETTLE_S", 0.0)
    monkeypatch.setattr(adapter, "PREFETCH", PREFETCH)
    monkeypatch.setattr(broker_contract, "PREFETCH", PREFETCH)


@pytest.fixture
async def client(server: Moto) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        yield await sqs.open_client(sqs.parse(server.url()), stack)


class SqsContract(BrokerContract):
    bodies = (b"x", "ü\x7f\u2028😀".encode(), b"x" * 1_000_000)
    options: ClassVar[dict[str, str]] = {}

    @pytest.fixture
    async def broker(self, server: Moto) -> AsyncIterator[Broker]:
        broker = SQS(server.url(**self.options))
        broker.receivers = 1  # so that the order is that of the server
        await broker.connect()
        yield broker
        await broker.close()

    @pytest.mark.parametrize("body", [b"", b"\x00", b"\xff", b"x" * 1024 * 1024])
    async def test_what_sqs_does_not_carry_is_refused(self, broker: Broker, queue: str, body: bytes) -> None:
        with pytest.raises(BrokerRefused) as refused:
            await broker.publish(queue, [Outgoing(body)])
        assert queue in str(refused.value)


class TestStandardQueue(SqsContract):
    keeps_order = False

    async def test_many_receivers_bring_all_and_all_are_deleted(self, server: Moto, queue: str, client: Any) -> None:
        broker = SQS(server.url())
        await broker.connect()
        await broker.publish(queue, [Outgoing(b"%d" % n, f"id-{n}") for n in range(300)])
        await broker.consume(queue)
        seen: set[bytes] = set()
        async with asyncio.timeout(90):
            while len(seen) < 300 or await counted(client, queue) != (0, 0):
                with contextlib.suppress(TimeoutError):  # moto, like SQS, may hand over one twice, and deletes it by the last handle only
                    async with asyncio.timeout(1):
                        some = await broker.fetch(queue, 250)
                        await broker.ack(queue, some)
                        seen |= {each.body for each in some}
        await broker.close()
        assert seen == {b"%d" % n for n in range(300)}

    async def test_a_message_without_an_attribute_has_the_id_of_sqs(self, broker: Broker, queue: str, client: Any) -> None:
        await broker.consume(queue)
        url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
        sent = await client.send_message(QueueUrl=url, MessageBody="a")
        [got] = await take(broker, queue, 1)
        assert got.id == sent["MessageId"]

    async def test_what_is_held_for_long_is_not_handed_to_others(self, server: Moto, queue: str) -> None:
        first, second = SQS(server.url(visibility=2)), SQS(server.url(visibility=2))
        for broker in (first, second):
            await broker.connect()
        await first.publish(queue, messages(*map(str, range(25))))
        await first.consume(queue)
        held: list[Delivery] = []
        async with asyncio.timeout(WITHIN_S):
            while len(held) < 25:
                held += await first.fetch(queue, 25)
        await second.consume(queue)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):  # longer than the visibility timeout, twice
                await second.fetch(queue, 1)
        await first.close()
        assert len(await take(second, queue, 25)) == 25
        await second.close()

    async def test_a_queue_that_is_made_has_its_attributes_and_a_queue_for_dead_letters(
        self, broker: Broker, queue: str, client: Any
    ) -> None:
        await broker.consume(queue)
        url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
        attributes = (await client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
        assert attributes["MessageRetentionPeriod"] == str(4 * 86400)
        assert attributes["VisibilityTimeout"] == "5"
        assert f"{queue}-dead" in attributes["RedrivePolicy"]
        assert (await client.get_queue_url(QueueName=f"{queue}-dead"))["QueueUrl"]

    async def test_an_existing_queue_is_used_as_it_is_and_keys_are_kept_as_long_as_it_keeps_messages(
        self, server: Moto, queue: str, client: Any
    ) -> None:
        made = await client.create_queue(QueueName=queue, Attributes={"MessageRetentionPeriod": "7200", "MaximumMessageSize": "2048"})
        broker = SQS(server.url())
        await broker.connect()
        await broker.consume(queue)
        assert broker.keep_us == (7200 + 3600) * 1_000_000
        await client.set_queue_attributes(QueueUrl=made["QueueUrl"], Attributes={"MessageRetentionPeriod": "86400"})
        await broker.check()
        assert broker.keep_us == (86400 + 3600) * 1_000_000
        await broker.close()
        listed = (await client.list_queues(QueueNamePrefix=queue))["QueueUrls"]
        assert len(listed) == 1
        async with await get_producer_channel(server.url(), queue) as channel:
            with pytest.raises(InvalidArguments, match="the limit is"):
                await channel.send_job({"name": "work", "args": ["x" * 2000]})

    async def test_a_queue_that_is_deleted_ends_the_fetch_and_is_made_again(self, broker: Broker, queue: str, client: Any) -> None:
        await broker.consume(queue)
        url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
        await client.delete_queue(QueueUrl=url)
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(BrokerDown, match="deleted"):
                await broker.fetch(queue, 1)
        with pytest.raises(BrokerDown, match="deleted"):
            await broker.check()
        await broker.close()
        await broker.connect()
        await broker.consume(queue)
        await broker.publish(queue, messages("a"))
        assert len(await take(broker, queue, 1)) == 1

    async def test_queues_have_the_prefix(self, server: Moto, queue: str, client: Any) -> None:
        async with await get_producer_channel(server.url(prefix="shop-"), queue) as channel:
            await channel.send_job({"name": "work"})
        assert (await client.get_queue_url(QueueName=f"shop-{queue}"))["QueueUrl"]

    @pytest.mark.parametrize("name", ["a.b", "a b", "x" * 81])
    async def test_a_namespace_that_is_no_name_of_a_queue_is_refused_clearly(self, broker: Broker, name: str) -> None:
        with pytest.raises(BrokerRefused, match="letters, digits"):
            await broker.consume(name)


class TestFifoQueue(SqsContract):
    options: ClassVar[dict[str, str]] = {"fifo": "true"}

    async def test_no_more_is_handed_over_than_the_prefetch(self, broker: Broker, queue: str, server: Moto) -> None:
        """A group waits until what was handed over of it is deleted: so there are as many groups here as messages."""
        async with await get_producer_channel(server.url(**self.options), queue, group=lambda job: f"g{job['args'][0]}") as channel:
            await channel.send_jobs([{"name": "work", "args": [n]} for n in range(PREFETCH + 20)])
        await broker.consume(queue)
        held: list[Delivery] = []
        async with asyncio.timeout(60):
            while len(held) < PREFETCH:
                held += await broker.fetch(queue, 1000)
        more = asyncio.create_task(broker.fetch(queue, 1000))
        await broker.check()
        assert len(held) == PREFETCH
        assert not more.done()
        await broker.ack(queue, held)
        async with asyncio.timeout(WITHIN_S):
            rest = await more
            while len(rest) < 20:
                rest += await broker.fetch(queue, 1000)
        assert len(rest) == 20


async def counted(client: Any, name: str) -> tuple[int, int]:
    """Messages that are visible, and that are handed over."""
    url = (await client.get_queue_url(QueueName=name))["QueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    got = (await client.get_queue_attributes(QueueUrl=url, AttributeNames=names))["Attributes"]
    return int(got[names[0]]), int(got[names[1]])
