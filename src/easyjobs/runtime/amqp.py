"""What the manager and producers share of RabbitMQ: how they connect, and how a queue is declared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, MissingExtra
from easyjobs.runtime.broker_url import shown

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

CONFIRM_S: Final = 60.0  # without a confirmation for so long, a message counts as one in doubt
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
    try:
        yield
    except BrokerError:
        raise
    except refusals as error:
        raise BrokerRefused(f"{what}: refused: {_text(error)}") from error
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
            raise BrokerRefused(f"{shown(url)}: this is no URL of a RabbitMQ") from None
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=str(HEARTBEAT_S))
        return await aio_pika.connect(address, timeout=timeout_s)


async def ensure_queue(connection: AbstractConnection, queue: str) -> None:
    """Make sure that a queue is there: one that exists is used as it is, else a durable quorum queue is declared, with `<queue>.dead`.

    Raises: BrokerDown, BrokerRefused.
    """
    import aiormq.exceptions as amqp

    with translated(f"queue {queue}"):
        probe: Any = connection.channel()
        await probe.initialize()
        try:
            await (await probe.get_underlay_channel()).queue_declare(queue, passive=True)
            return
        except amqp.ChannelNotFoundEntity:
            pass  # it has closed the channel, too
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
