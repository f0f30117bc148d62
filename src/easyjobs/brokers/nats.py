"""NATS JetStream: a durable pull consumer for each queue, one open pull request that reads ahead.

The client's own `fetch` makes a task for each message; here a callback takes them as they come. Acknowledgements of a batch go out in one
go, and only the last one asks for an answer: the server works on a consumer's acknowledgements in the order of their coming, so this
answer says that all are done. Were one lost nevertheless, its message would come again, and its key would be known.

The server's `max_deliver` is not used: it would leave a message in the stream, delivered to nobody and told to nobody. Deliveries are
counted here, and what came too often goes to `<queue>.dead`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from easyjobs.brokers.inlet import Inlet
from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused
from easyjobs.ports.broker import PREFETCH, Delivery, Outgoing
from easyjobs.runtime.jetstream import API_S, MSG_ID, Connection, name_of, translated
from easyjobs.runtime.log import ERROR, event

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger("easyjobs.nats")

CONNECT_S: Final = 10.0
PULL_S: Final = 10.0  # how long a pull request stays open; the server ends it with a message, which is the sign that it lives
SILENT_S: Final = PULL_S + 10.0
ACK_WAIT_S: Final = 30.0  # after so long without a sign from us the server hands a message over again
WATCH_S: Final = 10.0
DELIVERY_LIMIT: Final = 20  # deliveries of a message that ends our process each time; then it goes to `<queue>.dead`
MAX_ACK_PENDING: Final = 20 * PREFETCH  # of a consumer, which all managers share
MAX_ID: Final = 255  # characters of a message's id; a longer one does not count

_ASK_AGAIN: Final = ("404", "408")  # nothing there, or the request's time is over
_PROGRESS: Final = b"+WPI"
_NAK: Final = b"-NAK"


class _Pull(Inlet):
    """What the pull requests of one consumer have brought."""

    def __init__(self, queue: str, stream: str, consumer: str) -> None:
        super().__init__()
        self.queue, self.stream, self.consumer = queue, stream, consumer
        self.inbox = ""
        self.subscription: Any = None
        self.asked = 0  # what the open request may still bring
        self.heard_at = 0.0
        self.seen: set[bytes | str] = set()  # held at the last `check`


class JetStream:
    """`ports.broker.Broker` on a NATS server with JetStream, of version 2.9 or newer."""

    keep_us = 24 * 3600 * 1_000_000

    def __init__(self, url: str, name: str = "nats") -> None:
        self.name, self._url = name, url
        self.watch_s = WATCH_S
        Connection(url)  # raises what is missing
        self._connection: Connection | None = None
        self._pulls: dict[str, _Pull] = {}

    def _up(self) -> Connection:
        if self._connection is None or not self._connection.is_up:
            raise BrokerDown(f"{self._connection.shown if self._connection else self.name}: not connected")
        return self._connection

    def _pull(self, queue: str) -> _Pull:
        self._up()
        return self._pulls[queue]

    async def connect(self) -> None:
        """See the port."""
        connection = Connection(self._url, self._lost)
        await connection.open(CONNECT_S)
        self._connection, self.watch_s = connection, WATCH_S

    def _lost(self, why: str) -> None:
        for pull in self._pulls.values():
            pull.end(BrokerDown(why))

    async def consume(self, queue: str) -> None:
        """See the port. A consumer that exists is used as it is, if messages are pulled from it and acknowledged one by one."""
        connection = self._up()
        stream, subject = await connection.ensure_stream(queue)
        consumer = await self._ensure_consumer(connection, queue, stream, subject)
        pull = _Pull(queue, stream, consumer)
        with translated(f"queue {queue}"):
            pull.inbox = connection.client.new_inbox()

            async def arrived(message: Msg) -> None:
                await self._arrived(connection, pull, message)

            self._pulls[queue] = pull
            pull.subscription = await connection.client.subscribe(pull.inbox, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0)
            await self._ask(connection, pull)

    async def _ensure_consumer(self, connection: Connection, queue: str, stream: str, subject: str) -> str:
        from nats.js import api
        from nats.js.errors import NotFoundError

        name = f"easyjobs-{name_of(queue)}"
        with translated(f"queue {queue}"):
            try:
                config = (await connection.js.consumer_info(stream, name)).config
            except NotFoundError:
                ours = api.ConsumerConfig(
                    durable_name=name,
                    ack_policy=api.AckPolicy.EXPLICIT,
                    ack_wait=ACK_WAIT_S,
                    max_deliver=-1,
                    max_ack_pending=MAX_ACK_PENDING,
                    filter_subject=subject,
                )
                config = (await connection.js.add_consumer(stream, ours)).config
        if config.deliver_subject or config.ack_policy != api.AckPolicy.EXPLICIT:
            raise BrokerRefused(
                f"queue {queue}: the consumer {name} of the stream {stream} pushes, or does not want each message acknowledged: delete it"
            )
        if config.ack_wait:
            self.watch_s = min(self.watch_s, config.ack_wait / 3)
        return name

    async def _ask(self, connection: Connection, pull: _Pull) -> None:
        """Open a pull request for all there is room for, unless there is one."""
        if pull.asked > 0 or pull.room <= 0 or pull.lost is not None:
            return
        pull.asked = pull.room
        pull.heard_at = asyncio.get_running_loop().time()
        request = json.dumps({"batch": pull.asked, "expires": int(PULL_S * 1e9)}).encode()
        await connection.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{pull.stream}.{pull.consumer}", request, pull.inbox)

    async def _arrived(self, connection: Connection, pull: _Pull, message: Msg) -> None:
        try:
            with translated(f"queue {pull.queue}"):
                pull.heard_at = asyncio.get_running_loop().time()
                if message.reply:
                    pull.asked -= 1
                    await self._take(connection, pull, message)
                else:
                    self._heed(pull, message)
                await self._ask(connection, pull)
        except BrokerError as why:
            pull.end(why)
        except Exception as error:  # noqa: BLE001 (the client would swallow it; so whoever fetches hears of it)
            pull.end(BrokerDown(f"queue {pull.queue}: {type(error).__name__} {error}"))

    @staticmethod
    def _heed(pull: _Pull, message: Msg) -> None:
        """A message about the pull request."""
        headers = message.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if status not in _ASK_AGAIN and text != "Leadership Change":
            raise BrokerDown(f"queue {pull.queue}: the stream {pull.stream} hands nothing over: {status} {text}".rstrip())
        pull.asked = 0

    async def _take(self, connection: Connection, pull: _Pull, message: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<stored at>.<pending>, or with two more before
        words = message.reply.split(".")
        delivered, sequence, _, stored_at = words[4:8] if len(words) == 9 else words[6:10]
        if int(delivered) > DELIVERY_LIMIT:
            await self._bury(connection, pull, message, int(delivered))
            return
        id = message.headers.get(MSG_ID) if message.headers else None
        if not id or len(id) > MAX_ID:
            id = f"{sequence}-{stored_at}"  # the instant, as a stream that was deleted and made again counts from 1
        pull.put([Delivery(message.data, id, message.reply)])

    async def _bury(self, connection: Connection, pull: _Pull, message: Msg, delivered: int) -> None:
        dead = f"{pull.queue}.dead"
        _, subject = await connection.ensure_stream(dead)
        await connection.send(dead, subject, [(message.data, (message.headers or {}).get(MSG_ID), None)])
        await connection.request(message.reply)
        event(log, ERROR, "message.buried", broker=self.name, queue=pull.queue, to=dead, id=message.reply, deliveries=delivered)

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """See the port."""
        return await self._pull(queue).fetch(limit)

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """See the port."""
        pull, connection = self._pull(queue), self._up()
        with translated(f"queue {queue}"):
            for delivery in deliveries[:-1]:
                await connection.client.publish(delivery.tag)
            await connection.request(deliveries[-1].tag)
            pull.forget(deliveries)
            await self._ask(connection, pull)

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """See the port."""
        connection = self._up()
        _, subject = await connection.ensure_stream(queue)
        await connection.send(queue, subject, [(message.body, message.id, message.correlation_id) for message in messages])

    async def check(self) -> None:
        """See the port. Says of what is held that it is being worked on, and asks for each consumer."""
        connection = self._up()
        now = asyncio.get_running_loop().time()
        with translated("a look at the queues"):
            for pull in list(self._pulls.values()):
                if pull.lost is not None:
                    raise pull.lost
                if pull.asked > 0 and now - pull.heard_at > SILENT_S:
                    raise BrokerDown(f"queue {pull.queue}: the server has not answered a pull request")
                for tag in pull.seen & pull.held.keys():
                    await connection.client.publish(str(tag), _PROGRESS)
                pull.seen = set(pull.held)
                await connection.js.consumer_info(pull.stream, pull.consumer)
            await connection.client.flush(int(API_S))

    async def close(self) -> None:
        """See the port. What is held is given back at once; else it would come again after `ACK_WAIT_S`."""
        connection, self._connection = self._connection, None
        pulls, self._pulls = self._pulls, {}
        for pull in pulls.values():
            pull.end(BrokerDown(f"{self.name}: it was closed"))
        if connection is None:
            return
        if connection.is_up:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await asyncio.gather(*[self._give_back(connection, pull) for pull in pulls.values() if pull.held])
                    await connection.client.flush(2)
        await connection.close()

    @staticmethod
    async def _give_back(connection: Connection, pull: _Pull) -> None:
        """Let what is held come again at once, to whoever asks.

        The pull request has to be gone before that: it would get all of it. Nobody listens to it any more after `drain`, but servers up to
        2.9 at least only see that when they look at the consumer, and until then lose the place of the first message that they would have
        sent there (it comes again after `ack_wait`, and the next one twice).
        """
        if pull.subscription is not None:
            await pull.subscription.drain()
        await connection.js.consumer_info(pull.stream, pull.consumer)
        for tag in pull.held:
            await connection.client.publish(str(tag), _NAK)
