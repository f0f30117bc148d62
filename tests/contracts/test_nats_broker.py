"""NATS JetStream, held to the contract; and what only NATS has."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from easyjobs.brokers import nats as module
from easyjobs.brokers import open_broker
from easyjobs.brokers.nats import JetStream
from easyjobs.errors import BrokerDown, BrokerRefused, MissingExtra
from easyjobs.ports.broker import Broker, Outgoing
from easyjobs.producers.nats import get_producer_channel
from easyjobs.runtime import jetstream
from easyjobs.runtime.jetstream import name_of, servers_of, subject_of
from tests.contracts.broker_contract import WITHIN_S, BrokerContract, messages, take
from tests.faults.proxy import Proxy
from tests.nats_server import PASSWORD, NatsServer, nats_server
from tests.processes import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
async def client(server: NatsServer) -> AsyncIterator[Any]:
    import nats

    client = await nats.connect(server.url, allow_reconnect=False)
    yield client
    await client.close()


async def another(server: NatsServer) -> JetStream:
    """A broker as another manager has it."""
    broker = JetStream(server.url)
    await broker.connect()
    return broker


class TestNats(BrokerContract):
    @pytest.fixture
    async def broker(self, server: NatsServer) -> AsyncIterator[Broker]:
        broker = open_broker(server.url)
        await broker.connect()
        yield broker
        await broker.close()

    async def test_a_producer_returns_after_the_confirm(self, broker: Broker, server: NatsServer, queue: str) -> None:
        async with await get_producer_channel(server.url, queue) as channel:
            await channel.send_job({"name": "work", "args": [1]})
            await channel.send_jobs([{"job": {"name": "work", "args": [n]}} for n in range(2, 1500)])
        await broker.consume(queue)
        got = await take(broker, queue, 1499)
        assert [each.body for each in got[:2]] == [b'{"name":"work","args":[1]}', b'{"job":{"name":"work","args":[2]}}']
        assert len({each.id for each in got}) == 1499

    async def test_an_acknowledged_batch_is_gone_when_ack_returns(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.publish(queue, messages(*map(str, range(300))))
        await broker.consume(queue)
        await take(broker, queue, 250)
        info = await client.jetstream().consumer_info(queue, f"easyjobs-{queue}")
        assert info.num_ack_pending == 50
        assert (await client.jetstream().stream_info(queue)).state.messages == 50

    async def test_the_same_id_is_one_message(self, broker: Broker, queue: str) -> None:
        await broker.publish(queue, messages("a"))
        await broker.publish(queue, messages("a", "b"))
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 2)] == [b"a", b"b"]

    async def test_what_a_stopped_manager_held_is_there_at_once(self, server: NatsServer, queue: str) -> None:
        first, second = await another(server), await another(server)
        await first.publish(queue, messages("a", "b"))
        await first.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            await first.fetch(queue, 1)
        await first.close()
        await second.consume(queue)
        async with asyncio.timeout(module.ACK_WAIT_S / 2):
            assert [each.body for each in await take(second, queue, 2)] == [b"a", b"b"]
        await second.close()

    async def test_what_a_killed_manager_held_comes_again(self, server: NatsServer, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "ACK_WAIT_S", 1.0)
        first, second = await another(server), await another(server)
        await first.publish(queue, messages("a", "b"))
        await first.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            held = await first.fetch(queue, 1)
        assert first._connection is not None
        await first._connection.close()
        await second.consume(queue)
        again = await take(second, queue, 2)
        assert {each.body for each in again} == {b"a", b"b"}
        assert held[0].id in {each.id for each in again}
        await second.close()

    async def test_what_a_living_manager_holds_does_not_come_again(
        self, server: NatsServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "ACK_WAIT_S", 1.5)
        first = await another(server)
        await first.publish(queue, messages("a"))
        await first.consume(queue)
        assert first.watch_s == 0.5
        async with asyncio.timeout(WITHIN_S):
            held = await first.fetch(queue, 1)
        for _ in range(8):  # four seconds of the server's clock
            await first.check()
            await asyncio.sleep(first.watch_s)
        assert list(first._pulls[queue].held) == [held[0].tag]
        await first.ack(queue, held)
        await first.close()

    async def test_a_stream_that_is_deleted_ends_the_fetch_and_is_made_again(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.consume(queue)
        waiting = asyncio.create_task(broker.fetch(queue, 1))
        await broker.check()
        await client.jetstream().delete_stream(queue)
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(BrokerDown, match=queue):
                await waiting
        with pytest.raises(BrokerDown):
            await broker.check()
        await broker.close()
        await broker.connect()
        await broker.consume(queue)
        await broker.publish(queue, messages("a"))
        assert [each.body for each in await take(broker, queue, 1)] == [b"a"]

    async def test_a_producer_makes_a_stream_again_that_was_deleted(self, client: Any, server: NatsServer, queue: str) -> None:
        async with await get_producer_channel(server.url, queue) as channel:
            await client.jetstream().delete_stream(queue)
            await channel.send_jobs([{"name": "work"}, {"name": "work"}])
        assert (await client.jetstream().stream_info(queue)).state.messages == 2

    async def test_a_message_of_a_stream_that_was_made_again_has_another_id(self, broker: Broker, client: Any, queue: str) -> None:
        ids = []
        for _ in range(2):
            await broker.publish(queue, [Outgoing(b"same")])
            await broker.consume(queue)
            ids += await take(broker, queue, 1)
            await client.jetstream().delete_stream(queue)
            await broker.close()
            await broker.connect()
        assert [each.id.partition("-")[0] for each in ids if each.id] == ["1", "1"]
        assert ids[0].id != ids[1].id

    async def test_a_message_that_came_too_often_is_moved_aside(
        self, server: NatsServer, client: Any, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "DELIVERY_LIMIT", 2)
        broker = await another(server)
        await broker.publish(queue, messages("bad"))
        for _ in range(2):
            await broker.consume(queue)
            async with asyncio.timeout(WITHIN_S):
                assert [each.body for each in await broker.fetch(queue, 1)] == [b"bad"]
            await broker.close()
            await broker.connect()
        await broker.publish(queue, messages("good"))
        await broker.consume(queue)
        assert [each.body for each in await take(broker, queue, 1)] == [b"good"]
        dead = await client.jetstream().get_msg(name_of(f"{queue}.dead"), 1)
        assert dead.data == b"bad"
        assert (await client.jetstream().stream_info(queue)).state.messages == 0
        await broker.close()

    async def test_a_stream_that_takes_the_subject_is_used_as_it_is(
        self, broker: Broker, client: Any, server: NatsServer, queue: str
    ) -> None:
        await client.jetstream().add_stream(name=f"mine-{queue}", subjects=[f"{queue}.>"], storage="memory")
        async with await get_producer_channel(server.url, f"{queue}.mail") as channel:
            await channel.send_job({"name": "work"})
        await client.jetstream().publish(f"{queue}.other", b"not for us")
        await broker.consume(f"{queue}.mail")
        await broker.publish(f"{queue}.mail", messages("a"))
        assert [each.body for each in await take(broker, f"{queue}.mail", 2)] == [b'{"name":"work"}', b"a"]
        assert (await client.jetstream().stream_info(f"mine-{queue}")).state.messages == 3

    @pytest.mark.parametrize(
        ("made", "says"),
        [
            ({"retention": "interest"}, "drops what nobody consumes"),
            ({"no_ack": True}, "no_ack"),
            ({"subjects": ["elsewhere.{queue}"]}, "does not take its subject"),
        ],
    )
    async def test_a_stream_that_would_lose_messages_is_refused_clearly(
        self, broker: Broker, client: Any, server: NatsServer, queue: str, made: dict[str, Any], says: str
    ) -> None:
        await client.jetstream().add_stream(
            **{"name": queue, "subjects": [queue], **made}
            | ({"subjects": [made["subjects"][0].format(queue=queue)]} if "subjects" in made else {})
        )
        with pytest.raises(BrokerRefused, match=f"{queue}.*{says}"):
            await broker.consume(queue)
        with pytest.raises(BrokerRefused, match=says):
            await get_producer_channel(server.url, queue)

    async def test_a_message_has_its_properties_as_headers(self, broker: Broker, client: Any, queue: str) -> None:
        await broker.publish(queue, [Outgoing(b"an end", "id-1", "order-17"), Outgoing(b"bare")])
        first, second = [await client.jetstream().get_msg(queue, number) for number in (1, 2)]
        assert (first.data, first.headers) == (b"an end", {"Nats-Msg-Id": "id-1", "Correlation-Id": "order-17"})
        assert (second.data, second.headers) == (b"bare", None)

    async def test_a_consumer_that_pushes_is_refused_clearly(self, broker: Broker, client: Any, queue: str) -> None:
        js = client.jetstream()
        await js.add_stream(name=queue, subjects=[queue])
        await js.add_consumer(queue, durable_name=f"easyjobs-{queue}", deliver_subject="somewhere", ack_policy="explicit")
        with pytest.raises(BrokerRefused, match="pushes"):
            await broker.consume(queue)

    async def test_any_namespace_has_a_stream(self, broker: Broker, queue: str) -> None:
        for name in (f"{queue} ä*>", f"{queue}.a", f"{queue}=2Ea", f".{queue}"):
            await broker.publish(name, messages(name))
            await broker.consume(name)
            assert [each.body.decode() for each in await take(broker, name, 1)] == [name]

    async def test_a_message_that_the_server_does_not_take_is_refused(self, broker: Broker, queue: str) -> None:
        with pytest.raises(BrokerRefused, match="max_payload"):
            await broker.publish(queue, messages("x" * 5_000_000))

    async def test_a_user_who_may_not_is_told(self, server: NatsServer, queue: str) -> None:
        broker = open_broker(server.url.replace(f"jobs:{PASSWORD}", "guest:guest"))
        await broker.connect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broker._connection.js, "_timeout", 0.5)  # type: ignore[attr-defined]
            with pytest.raises(BrokerRefused, match=r"(?i)permissions violation"):
                await broker.consume(queue)
        await broker.close()

    async def test_the_permissions_of_the_documentation_are_enough(self, server: NatsServer) -> None:
        url = server.url.replace(f"jobs:{PASSWORD}", "limited:limited")
        async with await get_producer_channel(url, "LIMITED") as channel:
            await channel.send_job({"name": "work"})
        broker = open_broker(url)
        await broker.connect()
        await broker.consume("LIMITED")
        assert len(await take(broker, "LIMITED", 1)) == 1
        await broker.check()
        await broker.close()

    async def test_a_producer_connects_again(self, server: NatsServer, client: Any, queue: str) -> None:
        with Proxy(server.port) as proxy:
            async with await get_producer_channel(server.url.replace(str(server.port), str(proxy.port)), queue) as channel:
                await channel.send_job({"name": "work"})
                await asyncio.to_thread(proxy.cut)
                sent = 1
                for _ in range(2):  # the first one may be what finds it out
                    try:
                        await channel.send_job({"name": "work"})
                        sent += 1
                    except BrokerDown:
                        pass
                assert sent >= 2
        assert (await client.jetstream().stream_info(queue)).state.messages >= sent

    async def test_a_server_that_does_not_answer_is_down_before_its_deadline(
        self, server: NatsServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jetstream, "CONFIRM_S", 0.3)
        monkeypatch.setattr(jetstream, "API_S", 0.3)
        broker = await another(server)
        await broker.consume(queue)
        channel = await get_producer_channel(server.url, queue)
        server.send(signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(BrokerDown):
                    await channel.send_job({"name": "work"})
                with pytest.raises(BrokerDown):
                    await broker.check()
                await broker.close()
        finally:
            server.send(signal.SIGCONT)
        await channel.close()

    async def test_a_connection_that_is_cut_ends_the_fetch(self, server: NatsServer, queue: str) -> None:
        with Proxy(server.port) as proxy:
            broker = open_broker(server.url.replace(str(server.port), str(proxy.port)))
            await broker.connect()
            await broker.consume(queue)
            waiting = asyncio.create_task(broker.fetch(queue, 1))
            await broker.check()
            await asyncio.to_thread(proxy.cut)
            async with asyncio.timeout(WITHIN_S):
                with pytest.raises(BrokerDown):
                    await waiting
            await broker.close()
            await broker.connect()
            await broker.check()
            await broker.close()

    async def test_an_end_that_the_client_does_not_tell_is_noticed(self, server: NatsServer, queue: str) -> None:
        channel = await get_producer_channel(server.url, queue)
        broker = await another(server)
        await broker.publish(queue, messages("a"))
        await broker.consume(queue)
        async with asyncio.timeout(WITHIN_S):
            held = await broker.fetch(queue, 1)
        connections = [channel._connection, broker._connection]  # type: ignore[attr-defined]
        server.send(signal.SIGSTOP)
        try:
            calls = [asyncio.create_task(channel.send_job({"name": "work"})), asyncio.create_task(broker.ack(queue, held))]
            await asyncio.sleep(0.1)
            for connection in connections:
                connection.client._closed_cb = None
                await connection.client.close()
            async with asyncio.timeout(5):
                for call in calls:
                    with pytest.raises(BrokerDown):
                        await call
        finally:
            server.send(signal.SIGCONT)
        with pytest.raises(BrokerDown):
            await broker.check()
        await broker.close()
        await channel.close()

    async def test_a_pull_request_that_is_never_answered_is_noticed(self, server: NatsServer, queue: str) -> None:
        broker = await another(server)
        await broker.consume(queue)
        await broker.check()
        broker._pulls[queue].heard_at -= module.SILENT_S
        with pytest.raises(BrokerDown, match="pull request"):
            await broker.check()
        await broker.close()

    @pytest.mark.parametrize("url", ["nats://jobs:not-the-password@127.0.0.1:{port}", "nats://jobs:x@not-the-password@127.0.0.1:port"])
    async def test_wrong_credentials_and_urls_are_refused_and_not_shown(self, server: NatsServer, url: str) -> None:
        url = url.format(port=server.port)
        for opened in (open_broker(url).connect(), get_producer_channel(url, "q")):
            with pytest.raises(BrokerRefused) as refused:
                await opened
            assert "not-the-password" not in str(refused.value)

    async def test_nobody_there_is_down_and_shows_no_password(self) -> None:
        with pytest.raises(BrokerDown) as down:
            await open_broker(f"nats://u:pass-word@127.0.0.1:{free_port()},nats://u:pass-word@127.0.0.1:{free_port()}").connect()
        assert "pass-word" not in str(down.value)
        assert "ConnectionRefused" in str(down.value)

    async def test_a_server_of_the_cluster_is_enough(self, server: NatsServer) -> None:
        broker = open_broker(f"nats://127.0.0.1:{free_port()},{server.url}")
        await broker.connect()
        await broker.check()
        await broker.close()


async def test_a_server_without_jetstream_is_said(tmp_path: Path) -> None:
    with nats_server(tmp_path, jetstream=False) as server, pytest.raises(BrokerDown, match="--jetstream"):
        await open_broker(server.url).connect()


async def test_a_cancel_that_the_client_swallows_counts() -> None:
    async def swallows() -> None:
        with jetstream.translated("a call"), contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.create_task(swallows())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(WITHIN_S):
        await asyncio.wait([task])
    assert task.cancelled()


async def test_tls_needs_an_authority_that_the_machine_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nats_server(tmp_path, tls=True) as server:
        url = server.url.replace("nats://", "tls://")
        with pytest.raises(BrokerDown, match=r"(?i)certificate verify failed"):
            await open_broker(url).connect()
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        async with await get_producer_channel(url, "Q") as channel:
            await channel.send_job({"name": "work"})


def test_no_two_queues_have_the_same_stream_or_subject() -> None:
    queues = ["DEFAULT", "a.b", "a=2Eb", "a b", "a*", ".a", "a.", "ä", "a..b"]
    for names in (list(map(name_of, queues)), list(map(subject_of, queues))):
        assert len(set(names)) == len(queues)
        assert not any(set(name) & set(" *>\t") for name in names)
    assert subject_of("a.b") == "a.b"
    assert servers_of("nats://u:p,w@a:1,nats://b:2") == ["nats://u:p,w@a:1", "nats://b:2"]


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nats", None)
    with pytest.raises(MissingExtra, match=r"easyjobs\[nats\]"):
        open_broker("nats://h/")
