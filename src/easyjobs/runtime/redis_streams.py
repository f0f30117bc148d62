"""What the manager and producers share of Redis Streams: how they connect, what an error means, how messages are added."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, MissingExtra
from easyjobs.runtime.broker_url import shown

CONFIRM_S: Final = 60.0  # without a confirmation for so long, messages count as ones in doubt
BODY: Final = "body"  # the field of an entry that has the message …
ID: Final = "id"  # … what identifies it …
CORRELATION_ID: Final = "correlation_id"  # … and what a result answers to
PART_BYTES: Final = 4 * 1024 * 1024  # of a pipeline, which the client holds twice

REFUSALS: Final = ("WRONGTYPE", "MOVED", "unknown command", "unknown subcommand", "DB index", "invalid DB index")
RAW: Final = ("XREADGROUP", "XAUTOCLAIM", "XPENDING")  # answers that are taken as they come over the wire


def require() -> None:
    """Raises: MissingExtra."""
    try:
        import redis.asyncio  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise MissingExtra("Redis", "redis") from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Let what the client raises leave as BrokerDown or BrokerRefused, beginning with `what`."""
    from redis import exceptions as redis

    try:
        yield
    except BrokerError:
        raise
    except (redis.AuthenticationError, redis.AuthorizationError, redis.NoPermissionError) as error:
        raise BrokerRefused(f"{what}: refused: {_text(error)}") from error
    except redis.ResponseError as error:
        refuses = any(word in str(error) for word in REFUSALS) or isinstance(error, redis.AuthenticationWrongNumberOfArgsError)
        raise (BrokerRefused if refuses else BrokerDown)(f"{what}: {_text(error)}") from error
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise BrokerDown(f"{what}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__} {error}".strip()[:500]


async def connect(url: str, timeout_s: float) -> Any:
    """Connect, and see whether commands are taken. Returns a `redis.asyncio.Redis`, whose types say little.

    Args:
        url: `redis://user:password@host:6379/0`, `rediss://…` (TLS) or `unix:///path/to.sock?db=0`; options as redis-py reads them.
        timeout_s: for connecting, and the first answer. Whoever asks later sets a deadline of his own.

    Raises: BrokerDown, BrokerRefused, MissingExtra; no message shows the password.
    """
    require()
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    wrong = BrokerRefused(f"{shown(url)}: this is no URL of a Redis: redis://user:password@host:6379/0")
    client: Any = None
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdigit():
            raise wrong  # redis-py would take database 0
        client = Redis.from_url(
            url,
            protocol=2,  # one form of answers, whatever the versions of client and server
            retry=Retry(NoBackoff(), 0),  # a command that is repeated unasked would be a second message
            socket_connect_timeout=timeout_s,
            socket_timeout=None,  # redis-py's way of watching it loses a cancel that comes as a command was sent (wait_for, Python 3.11)
            max_connections=100_000,  # each queue has one that waits
        )
        with translated(shown(url)):
            async with asyncio.timeout(timeout_s):
                await client.ping()
    except (TypeError, ValueError):  # an unknown option; a port that is no number. Their texts have parts of the URL
        await _close(client)
        raise wrong from None
    except BaseException:
        await _close(client)
        raise
    for command in RAW:
        client.set_response_callback(command, _as_it_is)
    return client


async def _close(client: Any) -> None:
    if client is not None:
        with contextlib.suppress(Exception):
            await client.aclose()


def _as_it_is(answer: Any, **_options: Any) -> Any:
    return answer


@contextlib.asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """`translated`, with a deadline."""
    with translated(what):
        async with asyncio.timeout(seconds):
            yield


def entry(body: bytes, id: str | None, correlation_id: str | None = None) -> list[str | bytes]:
    """A message as fields and values."""
    fields: list[str | bytes] = [BODY, body]
    if id is not None:
        fields += [ID, id]
    if correlation_id is not None:
        fields += [CORRELATION_ID, correlation_id]
    return fields


async def add(client: Any, stream: str, entries: Sequence[list[str | bytes]]) -> None:
    """Add entries, in order; return when Redis has answered for each.

    Raises: BrokerDown (some may be there), BrokerRefused.
    """
    async with within(CONFIRM_S, f"stream {stream}"):
        at = 0
        while at < len(entries):
            pipe = client.pipeline(transaction=False)
            size = 0
            while at < len(entries) and size < PART_BYTES:
                pipe.execute_command("XADD", stream, "*", *entries[at])
                size += len(entries[at][1])
                at += 1
            for answer in await pipe.execute(raise_on_error=False):
                if isinstance(answer, Exception):
                    raise answer
