"""Where jobs come from besides HTTP: one adapter of `ports.broker` a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from easyjobs.errors import ConfigurationError

if TYPE_CHECKING:
    from easyjobs.ports.broker import Broker

TYPES: Final = {
    "amqp": "rabbitmq", "amqps": "rabbitmq",
    "memory": "memory",
    "nats": "nats", "tls": "nats",
    "redis": "redis", "rediss": "redis", "unix": "redis",
    "sqs": "sqs", "sqs+http": "sqs", "sqs+https": "sqs",
}  # fmt: skip
ALSO: Final = {("http", "sqs"), ("https", "sqs")}  # schemes that go with a type where it is given
EMBEDDED: Final = "easyjobs"  # no broker at all: the manager's own queue


def type_of(url: str, type: str | None = None) -> str:
    """Which broker is meant: `type`, or what the URL's scheme says. Raises: ConfigurationError; its message shows no password."""
    scheme = urlsplit(url).scheme
    meant = type or TYPES.get(scheme)
    if meant is None:
        raise ConfigurationError(
            f"no broker is known by {scheme or 'a URL without a scheme'}: give amqp://…, redis://…, nats://… or sqs://…"
        )
    if meant not in TYPES.values():
        raise ConfigurationError(
            f"broker_type={meant!r} is unknown: use 'rabbitmq', 'redis', 'nats' or 'sqs', or 'easyjobs' for the embedded queue"
        )
    if TYPES.get(scheme) != meant and (scheme, meant) not in ALSO:
        raise ConfigurationError(f"broker_type={meant!r} does not go with a broker_path that begins with {scheme or 'no scheme'}:")
    return meant


def open_broker(url: str, type: str | None = None, *, number: int = 1) -> Broker:
    """Choose the broker for `url`; it is not connected yet.

    Args:
        url: `amqp://user:password@host:5672/vhost`, `redis://…`, `nats://…`, `sqs://eu-west-1`, or `memory://` (for tests).
        type: "rabbitmq", "redis", "nats", "sqs"; None: as the URL's scheme says.
        number: 1 for the first of its type, 2 for the second: its name is "rabbitmq", "rabbitmq-2".

    Raises:
        ConfigurationError: no broker is meant by this.
        MissingExtra: its client is not installed.
    """
    meant = type_of(url, type)
    name = meant if number == 1 else f"{meant}-{number}"
    if meant == "rabbitmq":
        from easyjobs.brokers.rabbitmq import RabbitMQ

        return RabbitMQ(url, name)
    if meant == "sqs":
        from easyjobs.brokers.sqs import SQS

        return SQS(url, name)
    if meant == "redis":
        from easyjobs.brokers.redis import RedisStreams

        return RedisStreams(url, name)
    if meant == "nats":
        from easyjobs.brokers.nats import JetStream

        return JetStream(url, name)
    from easyjobs.brokers.memory import MemoryBroker

    return MemoryBroker(name)
