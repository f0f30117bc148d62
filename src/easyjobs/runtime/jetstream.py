"""What the manager and producers share of NATS JetStream: how they connect, which stream a queue has, how messages are published."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, MissingExtra
from easyjobs.runtime.broker_url import shown

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

CONFIRM_S: Final = 60.0  # without a confirmation for so long, messages count as ones in doubt
API_S: Final = 5.0  # for an answer of the server about streams and consumers
LOOK_S: Final = 0.5  # between two looks at whether a connection on which something is awaited stands
PING_S: Final = 5  # a connection that was cut silently is given up after three of them
DUPLICATES_S: Final = 120.0  # for so long a stream of ours knows the ids of its messages

MSG_ID: Final = "Nats-Msg-Id"
CORRELATION_ID: Final = "Correlation-Id"

_NAME_IN_USE: Final = 10058
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


def require() -> None:
    """Raises: MissingExtra."""
    try:
        import nats  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise MissingExtra("NATS", "nats") from error


def name_of(queue: str) -> str:
    """A queue as the name of a stream or a consumer, which has no dots, spaces or wildcards: `=2E` for a dot; no two have the same."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), queue)


def subject_of(queue: str) -> str:
    """The subject of a queue: itself where that is one, else its name."""
    return queue if _PLAIN.fullmatch(queue) else name_of(queue)


def servers_of(url: str) -> list[str]:
    """The servers of a cluster, with commas between them."""
    return re.split(r",(?=[a-z]+://)", url)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Let what the client raises leave as BrokerDown or BrokerRefused, beginning with `what`; and a cancel that the client has swallowed."""
    from nats import errors as nats
    from nats.js.errors import BadRequestError

    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    try:
        yield
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError
    except BrokerError:
        raise
    except nats.MaxPayloadError as error:
        raise BrokerRefused(f"{what}: a message is larger than the server's max_payload") from error
    except BadRequestError as error:
        raise BrokerRefused(f"{what}: refused: {_text(error)}") from error
    except nats.Error as error:
        raise (BrokerRefused if _is_refusal(error) else BrokerDown)(f"{what}: {_text(error)}") from error
    except (OSError, TimeoutError) as error:
        raise BrokerDown(f"{what}: {_text(error)}") from error


def _is_refusal(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("authorization", "authentication", "permissions violation", "connect url"))


def _text(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__} {error}".strip()[:500]


class Connection:
    """One connection, which does not reconnect by itself. `on_lost` is called once with the reason when it has ended.

    Attributes:
        js: the client's own interface to JetStream.
        refusal: what the server has said of our permissions, which it does beside the answer that does not come.
    """

    def __init__(self, url: str, on_lost: Callable[[str], None] | None = None) -> None:
        require()
        from nats.aio.client import Client

        self._url, self._on_lost = url, on_lost
        self.shown = ",".join(map(shown, servers_of(url)))
        self.client: Client = Client()
        self.js: JetStreamContext = self.client.jetstream(timeout=API_S)
        self.refusal: str | None = None
        self._last: BaseException | None = None
        self._unconfirmed: set[asyncio.Future[Any]] = set()
        self._streams: dict[str, tuple[str, str]] = {}  # of queues that were looked for

    @property
    def is_up(self) -> bool:
        """Whether it stands, as far as is known."""
        return bool(self.client.is_connected)

    async def open(self, timeout_s: float) -> None:
        """Connect, and see whether JetStream is there. Raises: BrokerDown, BrokerRefused; no message shows the password."""
        from nats.errors import NoServersError
        from nats.js.errors import ServiceUnavailableError

        try:
            for server in servers_of(self._url):
                _ = urlsplit(server).port  # one that is no number is a ValueError
            with translated(self.shown):
                try:
                    async with asyncio.timeout(timeout_s):
                        await self.client.connect(
                            servers_of(self._url),
                            name="easyjobs",
                            allow_reconnect=False,
                            max_reconnect_attempts=1,
                            reconnect_time_wait=0,
                            ping_interval=PING_S,
                            max_outstanding_pings=2,
                            error_cb=self._failed,
                            closed_cb=self._closed,
                        )
                except NoServersError as error:
                    raise BrokerDown(f"{self.shown}: {_text(self._last or error)}") from error
                try:
                    await self.js.account_info()
                except ServiceUnavailableError as error:
                    raise BrokerDown(f"{self.shown}: JetStream does not answer: is it enabled (nats-server --jetstream)?") from error
        except (BrokerError, asyncio.CancelledError):
            await self.close()
            raise
        except (TypeError, ValueError):
            await self.close()
            raise BrokerRefused(f"{self.shown}: this is no URL of a NATS server: nats://user:password@host:4222") from None

    async def _failed(self, error: Exception) -> None:
        self._last = error
        if "permissions violation" in str(error).lower():
            self.refusal = str(error)
            self._end_unconfirmed(BrokerRefused(f"{self.shown}: {error}"))

    async def _closed(self) -> None:
        why = f"{self.shown}: the connection was lost: {_text(self._last) if self._last else 'closed'}"
        self._end_unconfirmed(BrokerDown(why))
        if self._on_lost is not None:
            self._on_lost(why)

    def _end_unconfirmed(self, why: BrokerError) -> None:
        for future in list(self._unconfirmed):
            if not future.done():
                future.set_exception(why)

    async def ensure_stream(self, queue: str) -> tuple[str, str]:
        """Make sure that a queue has a stream; return its name and the subject.

        One that takes the subject is used as it is, unless messages could get lost in it unseen; else a durable one is made, from which
        what is acknowledged disappears.

        Raises: BrokerDown, BrokerRefused.
        """
        if queue not in self._streams:
            self._streams[queue] = await self._find_or_make(queue)
        return self._streams[queue]

    async def _find_or_make(self, queue: str) -> tuple[str, str]:
        from nats.js import api
        from nats.js.errors import BadRequestError, NotFoundError

        name, subject = name_of(queue), subject_of(queue)
        with self._explained(f"queue {queue}"):
            try:
                name = await self.js.find_stream_name_by_subject(subject)
            except NotFoundError:
                ours = api.StreamConfig(
                    name=name,
                    subjects=[subject],
                    retention=api.RetentionPolicy.WORK_QUEUE,
                    storage=api.StorageType.FILE,
                    discard=api.DiscardPolicy.NEW,  # a stream that is full refuses the new, and does not drop the old
                    duplicate_window=DUPLICATES_S,
                )
                try:
                    await self.js.add_stream(ours)
                except BadRequestError as error:
                    if error.err_code != _NAME_IN_USE:
                        raise
                    raise BrokerRefused(f"queue {queue}: the stream {name} does not take its subject: add {subject} to it") from error
                return name, subject
            config = (await self.js.stream_info(name)).config
            if config.no_ack:
                raise BrokerRefused(f"queue {queue}: the stream {name} confirms nothing (no_ack): make it without")
            if config.retention == api.RetentionPolicy.INTEREST:
                raise BrokerRefused(f"queue {queue}: the stream {name} drops what nobody consumes yet: make it with workqueue or limits")
            return name, subject

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """`translated`; an answer that did not come may have been forbidden."""
        self.refusal = None
        try:
            with translated(what):
                yield
        except BrokerDown as error:
            if self.refusal is None:
                raise
            raise BrokerRefused(f"{what}: {self.refusal}") from error

    async def publish(self, subject: str, messages: Sequence[tuple[bytes, str | None, str | None]]) -> None:
        """Send (body, id, correlation id), in order; return when the server has stored all of them.

        Raises: BrokerDown (some may be there), BrokerRefused; nats.js.errors.NoStreamResponseError: no stream takes the subject.
        """
        from nats.js.errors import NoStreamResponseError

        futures: list[asyncio.Future[Any]] = []
        try:
            with translated(f"subject {subject}"):
                for body, id, correlation_id in messages:
                    headers = {name: value for name, value in ((MSG_ID, id), (CORRELATION_ID, correlation_id)) if value is not None}
                    future = await self.js.publish_async(subject, body, headers=headers or None)
                    futures.append(future)
                    self._unconfirmed.add(future)
                    future.add_done_callback(self._unconfirmed.discard)
                await self._while_up(futures, CONFIRM_S)
                for future in futures:
                    if not future.done():
                        raise BrokerDown(f"subject {subject}: not confirmed within {CONFIRM_S:.0f} s")
                    error = future.exception()
                    if isinstance(error, NoStreamResponseError):
                        raise _NoStreamError(subject)
                    if error is not None:
                        raise error
        except _NoStreamError:
            raise NoStreamResponseError from None
        finally:
            for future in futures:
                if not future.done():
                    future.cancel()
                elif not future.cancelled():
                    future.exception()  # it is known by now

    async def request(self, subject: str, payload: bytes = b"") -> None:
        """Send, and wait for an answer. Raises: BrokerDown, also at once when the connection is lost, and what the client raises."""
        asking = asyncio.ensure_future(self.client.request(subject, payload, timeout=API_S))
        try:
            await self._while_up([asking], API_S + 1)
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    async def _while_up(self, futures: Sequence[asyncio.Future[Any]], seconds: float) -> None:
        """Wait until all are done, or the time is over. Raises: BrokerDown.

        The client has a callback for the end of a connection, and does not call it if writing what it had still to write fails.
        """
        loop = asyncio.get_running_loop()
        until, waiting = loop.time() + seconds, set(futures)
        while waiting and (left := until - loop.time()) > 0:
            _, waiting = await asyncio.wait(waiting, timeout=min(left, LOOK_S))
            if waiting and not self.is_up:
                raise BrokerDown(f"{self.shown}: the connection was lost")

    async def send(self, queue: str, subject: str, messages: Sequence[tuple[bytes, str | None, str | None]]) -> None:
        """`publish`; a stream that was deleted meanwhile is made again. Raises: BrokerDown, BrokerRefused."""
        from nats.js.errors import NoStreamResponseError

        try:
            await self.publish(subject, messages)
        except NoStreamResponseError:
            del self._streams[queue]
            await self.ensure_stream(queue)
            try:
                await self.publish(subject, messages)
            except NoStreamResponseError as error:
                raise BrokerDown(f"queue {queue}: no stream takes its subject {subject}") from error

    async def close(self) -> None:
        """Let go; never raises."""
        self._on_lost = None
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self.client.close()


class _NoStreamError(BrokerError):
    """Passes `translated`, which would make a BrokerDown of it."""
