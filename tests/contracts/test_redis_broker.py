"""Redis Streams, held to the contract; and what only Redis has."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from easyjobs.brokers import open_broker
from easyjobs.brokers import redis as module
from easyjobs.brokers.redis import GROUP, RedisStreams
from easyjobs.errors import BrokerDown, BrokerRefused, MissingExtra
from easyjobs.ports.broker import PREFETCH, Broker, Outgoing
from easyjobs.producers.redis import get_producer_channel
from easyjobs.runtime import redis_streams as streams
from tests.contracts.broker_contract import WITHIN_S, BrokerContract, messages, take
from tests.faults.proxy import Proxy
from tests.processes import free_port
from tests.redis_server import PASSWORD, RedisServer, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), fsync="no", tls=True) as running:
        yield running


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """As an administrator."""
    from redis.asyncio import Redis

    async with Redis.from_url(f"redis://127.0.0.1:{server.port}", protocol=2) as client:
        yield client


async def another(server: RedisServer) -> RedisStreams:
    """A broker as another manager has it."""
    broker = RedisStreams(server.url)
    await broker.connect()
    return broker


async def vanish(broker: RedisStreams) -> None:
    """The manager of this broker is killed: nothing is given back."""
    for pump in broker._pumps.values():
        pump.cancel()
    await asyncio.gather(*broker._pumps.values(), return_exceptions=True)
    assert broker._client is not None
    await broker._client.aclose()
    broker._client = None


class TestRedis(BrokerContract):
    @pytest.fixture
    async def broker(self, server: RedisServer) -> AsyncIterator[Broker]:
        broker = open_broker(server.url)
        await broker.connect()
        yield broker
        await broker.close()

    async def test_a_producer_returns_after_the_answer(self, broker: Broker, server: RedisServer, queue: str) -> None:
        async with await get_producer_channel(server.url, queue) as channel:
            await channel.send_job({"name": "work", "args": [1]})
            await channel.send_jobs([{"job": {"name": "work", "args": [n]}} for n in range(2, 1500)])
        await broker.consume(queue)
        got = await take(broker, queue, 1499)
        assert [each.body for each in got[:2]] == [b'{"name":"work","args":[1]}', b'{"job":{"name":"work","args":[2]}}']
        assert len({each.id for each in got}) == 1499

    async def test_a_unix_socket_does_too(self, server: RedisServer, queue: str) -> None:
        url = f"unix://jobs:{PASSWORD}@{server.socket}?db=0"
        async with await get_producer_channel(url, queue) as channel:
            await channel.send_job({"name": "work"})
        broker = open_broker(url)
        await broker.connect()
        await broker.consume(queue)
        assert len(await take(broker, queue, 1)) == 1
        await broker.close()

    async def test_tls_with_an_authority_in_the_url_does_too_and_without_it_not(self, server: RedisServer, queue: str) -> None:
        url = f"rediss://jobs:{PASSWORD}@127.0.0.1:{server.tls_port}/0"
        async with await get_producer_channel(f"{url}?ssl_ca_certs={server.certificate}", queue) as channel:
            await channel.send_job({"name": "work"})
        with pytest.raises(BrokerDown, match=r"(?i)certificate verify failed"):
            await open_broker(url).connect()

    async def test_what_is_acknowledged_is_gone_from_the_stream(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.publish(queue, messages("a", "b", "c"))
        await broker.consume(queue)
        await take(broker, queue, 2)
        assert await client.xlen(queue) == 1
        async with asyncio.timeout(WITHIN_S):
            await broker.fetch(queue, 1)
        assert (await client.xpending(queue, GROUP))["pending"] == 1

    async def test_what_a_killed_manager_held_is_claimed_in_order(
        self, server: RedisServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "CLAIM_IDLE_S", 0.5)
        monkeypatch.setattr(module, "CLAIM_EVERY_S", 0.1)
        monkeypatch.setattr(module, "BLOCK_S", 0.1)
        first, second = await another(server), await another(server)
        await first.publish(queue, [Outgoing(b"%d" % n) for n in range(PREFETCH + 10)])
        await first.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            held = await first.fetch(queue, 3)
        await vanish(first)
        await second.consume(queue)
        got = await take(second, queue, PREFETCH + 10)
        assert {each.body for each in got} == {b"%d" % n for n in range(PREFETCH + 10)}
        assert held[0].id in {each.id for each in got}
        await second.close()

    async def test_what_a_stopped_manager_held_is_there_at_once(self, server: RedisServer, queue: str) -> None:
        first, second = await another(server), await another(server)
        await first.publish(queue, messages("a", "b"))
        await first.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            await first.fetch(queue, 2)
        await first.close()
        await second.consume(queue)
        async with asyncio.timeout(module.CLAIM_IDLE_S / 2):
            assert [each.body for each in await take(second, queue, 2)] == [b"a", b"b"]
        await second.close()

    async def test_what_a_living_manager_holds_is_not_claimed(
        self, server: RedisServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = await another(server), await another(server)
        await first.publish(queue, messages("a"))
        await first.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            await first.fetch(queue, 1)
        await second.consume(queue)
        client = second._client
        assert client is not None
        monkeypatch.setattr(module, "CLAIM_IDLE_S", 1.0)
        for _ in range(4):  # two seconds, in which it is touched each half of one
            await first.check()
            await second._claim(client, queue, second._inlets[queue])
            assert not second._inlets[queue].held
            await asyncio.sleep(0.5)
        await second.close()
        await first.close()

    async def test_consumers_that_are_gone_are_forgotten_but_not_what_they_held(
        self, server: RedisServer, client: Any, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "GONE_S", 0.05)
        idle, holding = await another(server), await another(server)
        await idle.publish(queue, messages("a"))
        await holding.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            await holding.fetch(queue, 1)
        await vanish(holding)
        await client.xgroup_createconsumer(queue, GROUP, "somebody")
        await asyncio.sleep(0.1)  # Redis's own clock
        await idle.consume(queue)
        names = {each["name"].decode() for each in await client.xinfo_consumers(queue, GROUP)}
        assert "somebody" not in names
        assert holding._consumer in names
        await idle.close()

    async def test_a_stream_that_is_deleted_ends_the_fetch_and_is_made_again(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.consume(queue)
        waiting = asyncio.create_task(broker.fetch(queue, 1))
        await asyncio.sleep(0.1)
        await client.delete(queue)
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(BrokerDown, match=queue):
                await waiting
        await broker.close()
        await broker.connect()
        await broker.publish(queue, messages("a"))
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 1)] == [b"a"]

    async def test_entries_that_somebody_deleted_while_they_were_held_do_not_come_again(
        self, server: RedisServer, client: Any, queue: str
    ) -> None:
        broker = await another(server)
        await broker.publish(queue, messages("a", "b"))
        await broker.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            first, *_ = await broker.fetch(queue, 1)
        await client.xdel(queue, first.tag)
        await vanish(broker)
        await broker.connect()
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 1)] == [b"b"]
        assert (await client.xpending(queue, GROUP))["pending"] == 0
        await broker.close()

    async def test_a_message_that_came_too_often_is_moved_aside(self, server: RedisServer, client: Any, queue: str) -> None:
        broker = await another(server)
        await broker.publish(queue, messages("bad", "good"))
        await broker.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            held = await broker.fetch(queue, 1)
        await vanish(broker)
        await client.execute_command("XCLAIM", queue, GROUP, broker._consumer, 0, held[0].tag, "RETRYCOUNT", module.DELIVERY_LIMIT)
        await broker.connect()
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 1)] == [b"good"]
        [[_, fields]] = await client.xrange(f"{queue}.dead")
        assert fields == {b"body": b"bad", b"id": b"id-bad"}
        assert await client.xlen(queue) == 0
        await broker.close()

    async def test_an_entry_of_a_flushed_and_filled_stream_has_another_id(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.consume(queue)
        ids = []
        for body in (b"first", b"second"):
            await client.xadd(queue, {"body": body}, id="1-1")
            ids += await take(broker, queue, 1)
            await broker.close()
            await client.delete(queue)
            await broker.connect()
            await broker.consume(queue)
        assert ids[0].id != ids[1].id

    async def test_an_entry_without_a_body_is_shown_as_its_fields(self, broker: Broker, client: Any, queue: str) -> None:
        await client.xadd(queue, {"order": "17", "raw": b"\xff"})
        await client.xadd(queue, {"body": b"{}", "id": "x" * 1000})
        await broker.consume(queue)
        odd, long = await take(broker, queue, 2)
        assert odd.body == '{"order":"17","raw":"\ufffd"}'.encode()
        assert long.id is not None
        assert len(long.id) < 100

    async def test_a_message_is_an_entry_with_its_properties(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.publish(queue, [Outgoing(b"an end", "id-1", "order-17"), Outgoing(b"bare")])
        entries = [fields for _, fields in await client.xrange(queue)]
        assert entries == [{b"body": b"an end", b"id": b"id-1", b"correlation_id": b"order-17"}, {b"body": b"bare"}]

    async def test_a_key_of_another_kind_is_refused_clearly(self, broker: Broker, client: Any, server: RedisServer, queue: str) -> None:
        await client.set(queue, "a string")
        with pytest.raises(BrokerRefused, match=f"{queue}.*WRONGTYPE"):
            await broker.consume(queue)
        async with await get_producer_channel(server.url, queue) as channel:
            with pytest.raises(BrokerRefused, match="WRONGTYPE"):
                await channel.send_jobs([{"name": "work"}, {"name": "work"}])

    async def test_a_producer_connects_again(self, server: RedisServer, client: Any, queue: str) -> None:
        async with await get_producer_channel(server.url, queue) as channel:
            await channel.send_job({"name": "work"})
            await client.client_kill_filter(_type="normal", skipme=True)
            await channel.send_job({"name": "work"})
        assert await client.xlen(queue) == 2

    async def test_a_server_that_does_not_answer_is_down_before_its_deadline(
        self, server: RedisServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "CONFIRM_S", 0.3)
        monkeypatch.setattr(module, "CHECK_S", 0.3)
        broker = await another(server)
        await broker.consume(queue)
        channel = await get_producer_channel(server.url, queue)
        server.send(signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(BrokerDown):
                    await channel.send_job({"name": "work"})
                with pytest.raises(BrokerDown):
                    await broker.check()
                await broker.close()
        finally:
            server.send(signal.SIGCONT)
        await channel.close()

    async def test_a_connection_that_is_cut_ends_the_fetch(self, server: RedisServer, queue: str) -> None:
        with Proxy(server.port) as proxy:
            broker = open_broker(server.url.replace(str(server.port), str(proxy.port)))
            await broker.connect()
            await broker.consume(queue)
            waiting = asyncio.create_task(broker.fetch(queue, 1))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(proxy.cut)
            async with asyncio.timeout(WITHIN_S):
                with pytest.raises(BrokerDown):
                    await waiting
            await broker.close()
            await broker.connect()
            await broker.check()
            await broker.close()

    @pytest.mark.parametrize(
        "url",
        [
            "redis://jobs:not-the-password@127.0.0.1:{port}/0",
            "redis://nobody:not-the-password@127.0.0.1:{port}/0",
            "redis://jobs:x@not-the-password@127.0.0.1:port/0",
            "redis://jobs:{password}@127.0.0.1:{port}/no-number",
            "redis://jobs:{password}@127.0.0.1:{port}/99999",
            "redis://jobs:{password}@127.0.0.1:{port}/0?not-the-password=1",
        ],
    )
    async def test_wrong_credentials_and_urls_are_refused_and_not_shown(self, server: RedisServer, url: str) -> None:
        url = url.format(port=server.port, password=PASSWORD)
        for opened in (open_broker(url, "redis").connect(), get_producer_channel(url, "q")):
            with pytest.raises(BrokerRefused) as refused:
                await opened
            assert "not-the-password" not in str(refused.value)
            assert PASSWORD not in str(refused.value)

    async def test_nobody_there_is_down_and_shows_no_password(self, tmp_path: Path) -> None:
        for url in (f"redis://u:pass-word@127.0.0.1:{free_port()}/0", f"unix://u:pass-word@{tmp_path}/none"):
            with pytest.raises(BrokerDown) as down:
                await open_broker(url).connect()
            assert "pass-word" not in str(down.value)


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio", None)
    with pytest.raises(MissingExtra, match=r"easyjobs\[redis\]"):
        open_broker("redis://h/")
