"""What a message broker does for a manager: it hands over messages, keeps them until they are acknowledged, and takes others.

A `Broker` is one connection to one broker, and does not supervise itself: whatever fails raises, and the consumer service closes it,
waits and connects again. So an adapter only translates.

Messages come from one queue for each namespace. What was fetched and not acknowledged is handed over again after the connection has
ended; whoever fetches makes sure that this does no harm. `ack` comes after our commit, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

MAX_MESSAGE: Final = 1024 * 1024  # bytes of a body that may become a job
PREFETCH: Final = 500  # messages of a queue that were handed over and not acknowledged: what bounds memory


class Delivery(msgspec.Struct, frozen=True):
    """A message as it was handed over. `id` stays the same in each redelivery (None: there is none). `tag` is the adapter's own."""

    body: bytes
    id: str | None
    tag: Any


class Outgoing(msgspec.Struct, frozen=True):
    """A message to be sent. `id`: where a broker can recognise a repeat by it, it does. `correlation_id`: what a result answers to."""

    body: bytes
    id: str | None = None
    correlation_id: str | None = None


class Broker(Protocol):
    """See the module's docstring. Every method but `close` raises BrokerDown or BrokerRefused.

    `name` goes into keys, logs and the quarantine, and is the same after a restart. `keep_us` is for how long the broker may hand over
    again what was committed but not acknowledged. `watch_s`: how often `check` is called.
    """

    name: str
    keep_us: int
    watch_s: float

    async def connect(self) -> None:
        """Connect. Can be called again after `close`. A refusal (credentials) is BrokerRefused; its text shows no password."""
        ...

    async def consume(self, queue: str) -> None:
        """Begin to take messages of a queue, which is made, durable, where it is missing."""
        ...

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """Up to `limit` messages, in the order of the broker; waits until there is one. At most `PREFETCH` are held unacknowledged."""
        ...

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """These are stored: the broker may forget them. They are all those of one `fetch`, the oldest that are not acknowledged."""
        ...

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """Send; returns when the broker has confirmed all of them. The queue is made where it is missing."""
        ...

    async def check(self) -> None:
        """Prove that the connection lives, and that each queue still hands over what it has."""
        ...

    async def close(self) -> None:
        """Let go; never raises. What is not acknowledged goes back."""
        ...
