"""What the manager and producers share of RabbitMQ: how they connect, how a queue is declared, and how messages are published.

Messages are published below aio-pika's own `publish`, which makes a task, a lock and several objects for each of them: a window of
messages is one write, and its confirmations are the client's own futures (measured: 11,000 instead of 4,600 messages a second).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, MissingExtra, QueueGone
from easyjobs.ports.broker import Outgoing
from easyjobs.runtime.broker_url import shown

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

CONFIRM_S: Final = 60.0  # without a confirmation for so long, a message counts as one in doubt
WINDOW: Final = 250  # messages in one write; the client looks at each one unconfirmed whenever several are confirmed at once
IN_FLIGHT: Final = 2  # windows
HEARTBEAT_S: Final = 10  # a connection that was cut silently is given up after about three of them
DELIVERY_LIMIT: Final = 20  # deliveries of a message that ends our process each time; then it goes to `<queue>.dead`


def require() -> None:
    """Raises: MissingExtra."""
    try:
        import aio_pika  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise MissingExtra("RabbitMQ", "rabbitmq") from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Let what the client raises leave as BrokerDown or BrokerRefused, beginning with `what`."""
    import aiormq.exceptions as amqp

    refusals = (
        amqp.AuthenticationError,
        amqp.ProbableAuthenticationError,
        amqp.ConnectionNotAllowed,
        amqp.ChannelAccessRefused,
        amqp.ChannelLockedResource,
        amqp.ChannelPreconditionFailed,
    )
    closed = (amqp.InvalidFrameError,)  # it closes instead of opening the connection
    try:
        yield
    except BrokerError:
        raise
    except refusals as error:
        raise BrokerRefused(f"{what}: refused: {_text(error)}") from error
    except closed as error:
        raise BrokerRefused(f"{what}: the server does not open the connection: is there such a vhost, and may this user use it?") from error
    except amqp.PublishError as error:
        raise BrokerRefused(f"{what}: no queue takes the message: {_text(error)}") from error
    except amqp.DeliveryError as error:
        raise BrokerDown(f"{what}: the broker did not take the message: {_text(error)}") from error
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError, RuntimeError, TimeoutError) as error:
        raise BrokerDown(f"{what}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()[:500]


async def connect(url: str, timeout_s: float) -> AbstractConnection:
    """Connect. Raises: BrokerDown, BrokerRefused, MissingExtra; no message shows the password."""
    require()
    import aio_pika
    from yarl import URL

    with translated(shown(url)):
        try:
            address = URL(url)
        except ValueError:
            address = URL()
        if address.scheme not in ("amqp", "amqps"):
            raise BrokerRefused(f"{shown(url)}: this is no URL of a RabbitMQ, as amqp://user:password@host:5672/vhost")
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=str(HEARTBEAT_S))
        return await aio_pika.connect(address, timeout=timeout_s)


async def ensure_queue(connection: AbstractConnection, queue: str, *, to_consume: bool = False) -> None:
    """Make sure that a queue is there: one that exists is used as it is, else a durable quorum queue is declared, with `<queue>.dead`.

    One that belongs to another connection is refused only where we want to consume from it.

    Raises: BrokerDown, BrokerRefused, QueueGone.
    """
    import aiormq.exceptions as amqp

    with translated(f"queue {queue}"):
        probe: Any = connection.channel()
        await probe.initialize()
        try:
            await (await probe.get_underlay_channel()).queue_declare(queue, passive=True)
            return
        except amqp.ChannelLockedResource:
            if to_consume:
                raise
            return
        except amqp.ChannelNotFoundEntity as error:  # it has closed the channel, too
            if queue.startswith("amq."):  # such names the broker gives, and nobody else may
                raise QueueGone(f"queue {queue}: it is not there any more") from error
        finally:
            with contextlib.suppress(Exception):
                await probe.close()
        channel: Any = connection.channel()
        await channel.initialize()
        try:
            raw = await channel.get_underlay_channel()
            dead = f"{queue}.dead"
            await raw.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
            arguments = {
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            await raw.queue_declare(queue, durable=True, arguments=arguments)
        finally:
            with contextlib.suppress(Exception):
                await channel.close()


async def outlet(connection: AbstractConnection) -> Any:
    """A channel for `publish`. Raises: BrokerDown, BrokerRefused."""
    with translated("a channel to publish on"):
        channel: Any = connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.initialize()
        return await channel.get_underlay_channel()


async def publish(channel: Any, queue: str, messages: Sequence[Outgoing]) -> None:
    """Send persistent messages by a channel that `outlet` has made; return when the broker has confirmed all of them.

    Raises: BrokerDown: some may be there. BrokerRefused: no queue takes them.
    """
    waiting: list[list[asyncio.Future[Any]]] = []
    with translated(f"queue {queue}"):
        try:
            for at in range(0, len(messages), WINDOW):
                waiting.append(await _write(channel, queue, messages[at : at + WINDOW]))
                if len(waiting) == IN_FLIGHT:
                    await _confirmed(waiting.pop(0))
            while waiting:
                await _confirmed(waiting.pop(0))
        finally:
            for future in [future for window in waiting for future in window]:
                future.cancel()


async def _write(channel: Any, queue: str, messages: Sequence[Outgoing]) -> list[asyncio.Future[Any]]:
    from aiormq.abc import ChannelFrame
    from pamqp.body import ContentBody
    from pamqp.commands import Basic
    from pamqp.header import ContentHeader

    largest = channel.max_content_size
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    confirmations: list[asyncio.Future[Any]] = []
    frames: list[Any] = []
    async with channel.lock:  # raises if it is closed
        for message in messages:
            id = message.id or uuid.uuid4().hex
            channel.delivery_tag += 1
            confirmation = channel.confirmations[channel.delivery_tag] = channel.create_future()
            channel.message_id_delivery_tag[id] = channel.delivery_tag  # by which the client knows what was returned
            confirmation.add_done_callback(functools.partial(_forget, channel.message_id_delivery_tag, id))
            confirmations.append(confirmation)
            properties = Basic.Properties(
                content_type="application/json", delivery_mode=2, message_id=id, correlation_id=message.correlation_id
            )
            body = message.body
            frames += (Basic.Publish(routing_key=queue, mandatory=True), ContentHeader(properties=properties, body_size=len(body)))
            frames += [ContentBody(body[at : at + largest]) for at in range(0, len(body), largest)]
        await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames, written))
    closing = channel.closing
    try:
        await asyncio.wait([written, closing], timeout=CONFIRM_S, return_when=asyncio.FIRST_COMPLETED)
        if not written.done():
            raise BrokerDown(f"queue {queue}: the messages could not be written")
    finally:
        closing.cancel()
        written.cancel()
    return confirmations


def _forget(tags: dict[str, int], id: str, _confirmation: object) -> None:
    tags.pop(id, None)


async def _confirmed(confirmations: Sequence[asyncio.Future[Any]]) -> None:
    import aiormq.exceptions as amqp

    _, late = await asyncio.wait(confirmations, timeout=CONFIRM_S)
    if late:
        raise TimeoutError(f"{len(late)} messages were not confirmed within {CONFIRM_S:.0f} s")
    for confirmation in confirmations:
        if confirmation.cancelled():
            raise ConnectionResetError("the channel was closed before the confirmation")
        error = confirmation.exception()
        if isinstance(error, amqp.AMQPError):
            raise error
        if error is not None:
            raise ConnectionResetError("the channel was closed before the confirmation") from error
