"""What every broker must do. The classes in `test_brokers.py` only provide the broker."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from easyjobs.errors import BrokerDown
from easyjobs.ports.broker import PREFETCH, Broker, Delivery, Outgoing

WITHIN_S = 20.0


async def take(broker: Broker, queue: str, count: int) -> list[Delivery]:
    """So many messages; they are acknowledged."""
    got: list[Delivery] = []
    async with asyncio.timeout(WITHIN_S):
        while len(got) < count:
            some = await broker.fetch(queue, count - len(got))
            await broker.ack(queue, some)
            got += some
    return got


def messages(*bodies: str) -> list[Outgoing]:
    return [Outgoing(body.encode(), f"id-{body}") for body in bodies]


class BrokerContract:
    bodies: tuple[bytes, ...] = (b"", bytes(range(256)), b"x" * 2_000_000)  # what it carries: a broker of text has others
    keeps_order = True

    def in_order(self, bodies: list[bytes]) -> list[bytes]:
        """As they came, or by number where the broker promises no order."""
        return bodies if self.keeps_order else sorted(bodies, key=int)

    @pytest.fixture
    def queue(self) -> str:
        return f"q{uuid.uuid4().hex[:12]}"

    async def test_what_is_published_is_fetched_in_order_with_its_id(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, messages(*map(str, range(50))))
        await broker.consume(queue)
        got = await take(broker, queue, 50)
        assert self.in_order([each.body for each in got]) == [b"%d" % n for n in range(50)]
        assert all(each.id == f"id-{each.body.decode()}" for each in got)

    async def test_bytes_of_any_kind_come_through(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, [Outgoing(body) for body in self.bodies])
        await broker.consume(queue)
        got = [each.body for each in await take(broker, queue, len(self.bodies))]
        assert got == [*self.bodies] if self.keeps_order else sorted(got) == sorted(self.bodies)

    async def test_fetch_waits_for_a_message(self, broker: Broker, queue: str) -> None:
        await broker.consume(queue)
        waiting = asyncio.create_task(broker.fetch(queue, 10))
        await broker.check()
        assert not waiting.done()
        await broker.publish(queue, messages("a"))
        async with asyncio.timeout(WITHIN_S):
            assert [each.body for each in await waiting] == [b"a"]

    async def test_what_was_not_acknowledged_comes_again_with_the_same_id(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, [Outgoing(b"%d" % n) for n in range(3)])
        await broker.consume(queue)
        [acked] = await take(broker, queue, 1)
        async with asyncio.timeout(WITHIN_S):
            held = await broker.fetch(queue, 1)
        await broker.close()
        await broker.connect()
        await broker.consume(queue)
        again = await take(broker, queue, 2)
        assert acked.id not in {each.id for each in again}
        assert {each.body: each.id for each in again}[held[0].body] == held[0].id is not None
        assert self.in_order([acked.body, *[each.body for each in again]]) == [b"0", b"1", b"2"]

    async def test_no_more_is_handed_over_than_the_prefetch(self, broker: Broker, queue: str) -> None:
        count = PREFETCH + 100
        await broker.publish(queue, [Outgoing(b"%d" % n) for n in range(count)])
        await broker.consume(queue)
        held: list[Delivery] = []
        async with asyncio.timeout(WITHIN_S):
            while len(held) < PREFETCH:
                held += await broker.fetch(queue, count)
        more = asyncio.create_task(broker.fetch(queue, count))
        await asyncio.sleep(0)  # it waits by now
        await broker.check()
        assert len(held) == PREFETCH
        assert not more.done()
        await broker.ack(queue, held)
        async with asyncio.timeout(WITHIN_S):
            rest = await more
            while len(rest) < 100:
                rest += await broker.fetch(queue, count)
        assert self.in_order([each.body for each in [*held, *rest]]) == [b"%d" % n for n in range(count)]

    async def test_queues_do_not_mix(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, messages("a"))
        await broker.publish(f"{queue}-2", messages("b"))
        for name in (queue, f"{queue}-2"):
            await broker.consume(name)
        assert [each.body for each in await take(broker, f"{queue}-2", 1)] == [b"b"]
        assert [each.body for each in await take(broker, queue, 1)] == [b"a"]

    async def test_a_fetch_that_waits_ends_when_the_broker_is_closed(self, broker: Broker, queue: str) -> None:
        await broker.consume(queue)
        waiting = asyncio.create_task(broker.fetch(queue, 1))
        await asyncio.sleep(0)
        await broker.close()
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(BrokerDown):
                await waiting
        with pytest.raises(BrokerDown):
            await broker.check()
