"""What every producer does: turns a job into a message, gives it an id, and waits until the broker has it."""

from __future__ import annotations

import hashlib
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from easyjobs.domain.job import QUEUE_NAME
from easyjobs.errors import InvalidArguments

MAX_BYTES: Final = 1024 * 1024  # of a message, as the manager takes it
IN_FLIGHT: Final = 1000  # messages sent at once by `send_jobs`


class Channel(ABC):
    """An open way to one queue of a broker. Use it in `async with`, or close it.

    A job is a mapping in the job format: `{"name": …, "args": […], "kwargs": {…}}`, with `namespace`, `key`, `id`, `delay` (seconds), `at`
    and `priority` where they are wanted, bare or as `{"job": {…}}`. Without a `namespace` it goes to the queue's own.
    """

    in_flight: ClassVar[int] = IN_FLIGHT
    max_bytes: int = MAX_BYTES  # less where the broker carries less

    async def send_job(self, job: Mapping[str, Any]) -> None:
        """Send a job; return when the broker has confirmed it.

        Raises:
            InvalidArguments: it is no job, or no JSON; nothing was sent.
            BrokerDown: it may or may not be there; sent again with the same `key` it makes one job.
            BrokerRefused: the broker does not take it.
        """
        await self._publish([_encode(job, self.max_bytes)])

    async def send_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Send many jobs, in order; return when the broker has confirmed all of them. Raises: as `send_job`, which some may have escaped."""
        if isinstance(jobs, Mapping):
            raise _wrong("send_jobs takes several jobs: pass a list of them, or this one to send_job")
        bodies = [_encode(job, self.max_bytes) for job in jobs]
        for at in range(0, len(bodies), self.in_flight):
            await self._publish(bodies[at : at + self.in_flight])

    @abstractmethod
    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        """Send (id, body) and wait for the confirmation of all."""

    @abstractmethod
    async def close(self) -> None:
        """Let go. Can be called again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def namespace(queue: str) -> str:
    """The same, if a manager can have a namespace of this name. Raises: InvalidArguments; else messages would lie there unread."""
    if not QUEUE_NAME.fullmatch(queue):
        raise _wrong(f"{queue!r} is no namespace: letters, digits, '_', '.' and '-' (64 at most)")
    return queue


def _encode(job: Mapping[str, Any], max_bytes: int) -> tuple[str, bytes]:
    inner = job.get("job", job) if isinstance(job, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise _wrong("a job is a mapping with a 'name', as {'name': 'work', 'args': [1], 'kwargs': {}}")
    try:
        body = json.dumps(job, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise _wrong(f"the job {inner['name']!r} is no JSON: {error}") from error
    if len(body) > max_bytes:
        raise _wrong(f"the job {inner['name']!r} has {len(body):,} bytes, the limit is {max_bytes:,}: send a reference to its data")
    has_key = "key" in inner or "id" in inner  # then a repeat has the same id, for brokers that know one by it
    return hashlib.blake2b(body, digest_size=16).hexdigest() if has_key else uuid.uuid4().hex, body


def _wrong(message: str) -> InvalidArguments:
    return InvalidArguments("job", [{"type": "value_error", "loc": ("body",), "msg": message, "input": None}])
