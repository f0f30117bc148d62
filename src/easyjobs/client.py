"""Submit jobs and wait for their results from any asyncio program, over one WebSocket.

    async with EasyJobsClient("http://127.0.0.1:8220", secret) as client:
        job = await client.submit("DEFAULT", "add", 1, 2)
        print(await job.result(timeout=10))

The connection is kept up: after a break the client dials again and repeats what was not answered. That is safe, since the client
makes the job ids itself: a repeated submit is no second job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from easyjobs.domain.cloning import arguments_json
from easyjobs.domain.job import MAX_BULK_JOBS, MAX_FRAME
from easyjobs.domain.seeing import News, Place, Unrepeated
from easyjobs.errors import AccessRefused, ConfigurationError, ConnectionFailed, ProtocolError, StoreBusy, StoreError, UnknownJob
from easyjobs.protocol.address import socket_url
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.handshake import manager_proof, matches, peer_proof
from easyjobs.protocol.messages import (
    CLOSE_REFUSED,
    CLOSE_VERSION,
    PROTOCOL_VERSION,
    Challenge,
    Control,
    Controlled,
    Follow,
    Followed,
    Frame,
    Goaway,
    Hello,
    Refused,
    Results,
    Submit,
    SubmitItem,
    SubmitOptions,
    Submitted,
    Unfollow,
    Unwatch,
    Watch,
    WatchedResult,
    Welcome,
)
from easyjobs.protocol.options import NOTHING, submit_options
from easyjobs.protocol.problems import error_of, failure_of
from easyjobs.runtime import reconnect
from easyjobs.runtime.ids import id_bytes, id_text, new_id
from easyjobs.runtime.tls import CA_VARIABLE, context_for, distrust

log = logging.getLogger("easyjobs.client")

FRAME_BYTES: Final = MAX_FRAME // 4  # of arguments in one frame of a bulk submit
CONNECT_S: Final = 10.0
CONNECT_S_OF_MANY: Final = 4.0  # where there are other addresses
PATIENT_S: Final = 60.0  # for an answer a try to come back never waits longer
MAX_BRIEF: Final = 4  # connections that ended at once; more do not make the pause longer, which is 2 s then: there is a manager
BUSY_S: Final = 1.0  # a bulk submit that the manager has no room for is sent again after at most so long
_JOB_KEYS: Final = frozenset({"namespace", "name", "args", "kwargs"})


class Job:
    """A submitted job."""

    __slots__ = ("_client", "_raw")

    def __init__(self, client: EasyJobsClient, raw: bytes) -> None:
        self._client, self._raw = client, raw

    @property
    def id(self) -> str:
        """The id's text, as in the HTTP API."""
        return id_text(self._raw)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the job's end and return its result, a JSON value.

        Args:
            timeout: seconds; None waits for ever. The job goes on after a timeout.

        Raises:
            TimeoutError, JobFailed, JobCancelled, JobExpired, ResultRemoved, UnknownJob.
        """
        async with asyncio.timeout(timeout):
            end = await self._client._end_of(self._raw)
        failure = failure_of(end, self.id)
        if failure is not None:
            raise failure
        return msgspec.json.decode(end.body)

    async def events(self) -> AsyncGenerator[News, None]:
        """What happens to the job, as it happens: `StateChanged`, `Progress`, `LogLine` (see `easyjobs.domain.seeing`).

        First its present state, its progress and the log as far as it is stored; the last one is its final state. After a broken connection it
        goes on where it was: no line is lost or comes twice.

        Raises: UnknownJob, ConnectionFailed.
        """
        unrepeated, is_last = Unrepeated(), False
        with self._client._following(self._raw) as follow:
            while not is_last:
                answer = await follow(unrepeated.place)
                is_last = answer.is_last
                if is_last and not answer.news and not unrepeated.has_begun:
                    raise UnknownJob(self.id)
                for news in unrepeated.of(answer.news):
                    yield news

    async def cancel(self) -> bool:
        """Cancel the job, and the unfinished jobs that it called: at once if it does not run, else its worker is asked to stop it.

        Returns: whether it is cancelled, or was asked to stop; False if it had ended otherwise. Raises: UnknownJob, StoreError, ConnectionFailed.
        """
        return await self._wish("cancel")

    async def retry(self) -> bool:
        """Run a job again that failed, was cancelled or expired, with fresh budgets. Returns: whether it does. Raises: as `cancel`."""
        return await self._wish("retry")

    async def run_now(self) -> bool:
        """Run a scheduled job now. Returns: whether it was scheduled. Raises: as `cancel`."""
        return await self._wish("run_now")

    async def delete(self) -> bool:
        """Delete a job that has ended. Returns: whether it had. Raises: as `cancel`."""
        return await self._wish("delete")

    async def _wish(self, verb: str) -> bool:
        [(done, state)] = await self._client._control(verb, [self._raw])
        if state < 0:
            raise UnknownJob(self.id)
        return done

    def __repr__(self) -> str:
        return f"Job({self.id!r})"


class Submitter:
    """A client with options for what it submits; see `EasyJobsClient.options`."""

    __slots__ = ("_client", "_options")

    def __init__(self, client: EasyJobsClient, options: SubmitOptions) -> None:
        self._client, self._options = client, options

    async def submit(self, namespace: str, name: str, /, *args: Any, **kwargs: Any) -> Job:
        """As `EasyJobsClient.submit`. Raises: KeyReused too, for a key that was used with other arguments."""
        raw = new_id()
        item = SubmitItem(raw, namespace, name, arguments_json(args, kwargs))
        [found] = await self._client._send_submit([item], self._options) or [raw]
        return Job(self._client, found)


class EasyJobsClient:
    """A connection to a manager. Use it with `async with`, or `await open()` and `await close()`.

    Args:
        manager_url: the manager's address, `http://host:port` (or `https`, `ws`, `wss`); a path is kept as the app's prefix. A list, where several
            managers have one database: the client goes to the next when it loses one. None takes `EASYJOBS_MANAGER_URL`.
        secret: the manager's `server_secret`; None takes `EASYJOBS_SECRET`.
        ca: a file of certificates (PEM) that are trusted instead of the system's; None takes `EASYJOBS_MANAGER_CA`.

    Raises (on open): ConnectionFailed if no manager answers within 10 s, AccessRefused for a wrong secret.
    """

    def __init__(
        self, manager_url: str | Sequence[str] | None = None, secret: str | SecretStr | None = None, *, ca: str | Path | None = None
    ) -> None:
        given = secret.get_secret_value() if isinstance(secret, SecretStr) else secret or os.environ.get("EASYJOBS_SECRET")
        if not given:
            raise ConfigurationError("no secret: pass EasyJobsClient(url, secret) or set EASYJOBS_SECRET")
        self._secret = SecretStr(given.splitlines()[0])  # while it is being replaced there are two: the newest counts
        urls = manager_url or os.environ.get("EASYJOBS_MANAGER_URL") or ()
        self._urls = [socket_url(url) for url in (urls.split(",") if isinstance(urls, str) else urls)]
        if not self._urls:
            raise ConfigurationError("no address: pass EasyJobsClient(manager_url, …) or set EASYJOBS_MANAGER_URL")
        random.shuffle(self._urls)  # so that clients spread over managers
        self.url = self._urls[0]
        named = os.environ.get(CA_VARIABLE)
        trusted = Path(ca) if ca is not None else Path(named) if named else None
        self._tls = {url: context_for(url, trusted) for url in self._urls}
        self._session = os.urandom(16)
        self._numbers = 0
        self._unanswered: dict[int, tuple[bytes, asyncio.Future[Any]]] = {}
        self._singles: deque[tuple[SubmitItem, asyncio.Future[list[bytes]]]] = deque()
        self._watched: dict[bytes, asyncio.Future[WatchedResult]] = {}
        self._waiting: dict[bytes, int] = {}
        self._follows: dict[int, tuple[Follow, asyncio.Future[Followed]]] = {}  # those that wait for an answer
        self._out: deque[bytes] = deque()
        self._new_watches: list[bytes] = []
        self._out_ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_up = False
        self._timeouts = 0  # tries in a row that got no answer
        self._ended: Exception | None = None

    async def open(self) -> None:
        """Connect; from then on the connection is kept up."""
        if self._keeper is not None:
            return
        for left in reversed(range(len(self._urls))):
            try:
                async with asyncio.timeout(self._patience_s):
                    connection = await self._dial()
                    break
            except TimeoutError:
                if not left:
                    raise ConnectionFailed(f"no manager answers at {self.url} within {self._patience_s:.0f} s") from None
            except ConnectionFailed:
                if not left:
                    raise
            self._next()
        self._keeper = asyncio.create_task(self._keep(connection), name="easyjobs-client")

    async def close(self) -> None:
        """Close the connection. What was not answered fails with ConnectionFailed."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._end(ConnectionFailed("the client was closed"))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # --- the API ----------------------------------------------------------------------------------------------------------------

    async def submit(self, namespace: str, name: str, /, *args: Any, **kwargs: Any) -> Job:
        """Submit one job; returns after the manager has committed it.

        Raises: InvalidArguments, UnknownTask, AmbiguousTask, PayloadTooLarge, StoreError, ConnectionFailed; of these StoreBusy says that the
        manager has more to store than it can now: the same submit may do in a moment. And a ValueError (`domain.payload.NotJson`), before
        anything is sent, for an argument that JSON cannot carry (a NaN, an open file): it names the place, `args[0].when: …`.
        """
        self._check_open()
        raw = new_id()
        answer: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        if not self._singles:  # the first of this turn
            asyncio.get_running_loop().call_soon(self._send_singles)
        self._singles.append((SubmitItem(raw, namespace, name, arguments_json(args, kwargs)), answer))
        [found] = await answer or [raw]
        return Job(self, found)

    async def submit_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[Job]:
        """Submit jobs in the job format, `{"namespace", "name", "args", "kwargs"}` each; returns them in order, after their commit.

        They go in frames of at most 10,000 jobs or 2 MiB, each frame all or none; an error names the first job that was refused, and
        frames before it stay submitted. While the manager has more to store than it can, it waits.

        Raises: as `submit`; ValueError for a job without a name, or with a key that is none of the format's.
        """
        made: list[bytes] = []
        frame: list[SubmitItem] = []
        size = 0
        pending: deque[tuple[list[SubmitItem], asyncio.Future[list[bytes]]]] = deque()

        async def answered() -> None:
            items, answer = pending.popleft()
            while True:
                try:
                    made.extend(await answer or [item.id for item in items])
                    return
                except StoreBusy:
                    await asyncio.sleep(random.uniform(0.5, 1.0) * BUSY_S)
                    answer = self._send_submit(items)  # with the same ids

        for index, job in enumerate(jobs):
            unknown = job.keys() - _JOB_KEYS
            if unknown or "name" not in job:
                what = f"has the unknown key {min(unknown)!r}" if unknown else "has no 'name'"
                raise ValueError(f"job {index} {what}: a job is {{'namespace', 'name', 'args', 'kwargs'}}")
            args = arguments_json(tuple(job.get("args") or ()), dict(job.get("kwargs") or {}))
            item = SubmitItem(new_id(), job.get("namespace") or "", job["name"], args)
            if frame and (size + len(args) > FRAME_BYTES or len(frame) >= MAX_BULK_JOBS):
                pending.append((frame, self._send_submit(frame)))
                frame, size = [], 0
                if len(pending) > 4:
                    await answered()
            frame.append(item)
            size += len(args) + 40
        if frame:
            pending.append((frame, self._send_submit(frame)))
        while pending:
            await answered()
        return [Job(self, raw) for raw in made]

    def options(
        self,
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
    ) -> Submitter:
        """Return what submits with options: `await client.options(delay=60).submit("mail", "send", 5)`.

        Args:
            priority: instead of the task's own; higher first.
            delay: seconds, or a timedelta, before the job may start.
            at: the instant before which the job may not start: a datetime with a time zone. One that has passed is now.
            key: an idempotency key: the same key, task and arguments give the same job for 24 h.

        Raises:
            ValueError: the delay is negative, `at` has no time zone, both are given, or the key is empty or has more than 255 characters.
        """
        return Submitter(self, submit_options(NOTHING, priority=priority, delay=delay, at=at, key=key))

    def job(self, id: str) -> Job:
        """A job submitted earlier, by its id. Raises: UnknownJob for what is no id."""
        raw = id_bytes(id)
        if raw is None:
            raise UnknownJob(id)
        return Job(self, raw)

    # --- requests ---------------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._keeper is None:
            raise ConnectionFailed("the client is not open: use `async with EasyJobsClient(…) as client`")

    def _send_singles(self) -> None:
        """Submits that are called in one turn go in one frame: a hundred callers cost little more than one.

        A frame is stored all or none. If one of them is refused, so was the frame, and nothing was stored: then each goes alone, and
        each caller gets the answer to its own.
        """
        singles, self._singles = self._singles, deque()
        if self._ended is not None or self._keeper is None:
            for _, answer in singles:
                if not answer.done():
                    answer.set_exception(self._ended or ConnectionFailed("the client was closed"))
            return
        while singles:
            part: list[tuple[SubmitItem, asyncio.Future[list[bytes]]]] = []
            size = 0
            while singles and len(part) < MAX_BULK_JOBS and size < FRAME_BYTES:
                part.append(singles.popleft())
                size += len(part[-1][0].args)
            self._send_together(part)

    def _send_together(self, part: list[tuple[SubmitItem, asyncio.Future[list[bytes]]]]) -> None:
        def answered(frame: asyncio.Future[list[bytes]]) -> None:
            problem = asyncio.CancelledError() if frame.cancelled() else frame.exception()
            is_busy = isinstance(problem, StoreBusy)  # of which none is to blame: to send each alone would make it worse
            if problem is not None and len(part) > 1 and self._ended is None and not is_busy:
                for one in part:
                    self._send_together([one])
                return
            ids = [] if problem is not None else frame.result()
            for index, (_, answer) in enumerate(part):
                if not answer.done():
                    if problem is None:
                        answer.set_result(ids[index : index + 1])
                    else:
                        answer.set_exception(problem)

        self._send_submit([item for item, _ in part]).add_done_callback(answered)

    def _send_submit(self, items: list[SubmitItem], options: SubmitOptions | None = None) -> asyncio.Future[list[bytes]]:
        self._check_open()
        self._numbers += 1
        data = encode(Submit(number=self._numbers, jobs=items, options=options))
        answer: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._unanswered[self._numbers] = (data, answer)
        if self._is_up:
            self._out.append(data)
            self._out_ready.set()
        return answer

    async def _control(self, verb: str, ids: list[bytes]) -> list[tuple[bool, int]]:
        self._check_open()
        self._numbers += 1
        data = encode(Control(number=self._numbers, verb=verb, ids=ids))
        answer: asyncio.Future[Controlled] = asyncio.get_running_loop().create_future()
        self._unanswered[self._numbers] = (data, answer)
        if self._is_up:
            self._out.append(data)
            self._out_ready.set()
        controlled = await answer
        if controlled.problem:
            raise StoreError(controlled.problem)
        return controlled.items

    async def _end_of(self, raw: bytes) -> WatchedResult:
        self._check_open()
        future = self._watched.get(raw)
        if future is None:
            future = self._watched[raw] = asyncio.get_running_loop().create_future()
            if self._is_up:
                self._new_watches.append(raw)
                self._out_ready.set()
        self._waiting[raw] = self._waiting.get(raw, 0) + 1
        try:
            return await asyncio.shield(future)
        finally:
            left = self._waiting[raw] - 1
            if left:
                self._waiting[raw] = left
            else:
                del self._waiting[raw]
                if self._watched.get(raw) is future:
                    del self._watched[raw]
                    if not future.done():
                        future.cancel()
                        self._put(Unwatch(ids=[raw]))

    @contextlib.contextmanager
    def _following(self, raw: bytes) -> Iterator[Callable[[Place], Awaitable[Followed]]]:
        """A stream of a job's news; each call asks for the next batch, and says which line was the last to come."""
        self._check_open()
        self._numbers += 1
        number, is_last = self._numbers, False

        async def follow(after: Place) -> Followed:
            nonlocal is_last
            self._check_open()
            frame = Follow(number=number, id=raw, after=after)
            answer: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
            self._follows[number] = (frame, answer)
            self._put(frame)
            followed = await answer
            is_last = followed.is_last
            return followed

        try:
            yield follow
        finally:
            self._follows.pop(number, None)
            if not is_last:
                self._put(Unfollow(number=number))

    def _put(self, frame: Frame) -> None:
        if self._is_up:
            self._out.append(encode(frame))
            self._out_ready.set()

    # --- the connection ---------------------------------------------------------------------------------------------------------

    @property
    def _patience_s(self) -> float:
        """How long a try waits for its answer: longer after each that had none, or thousands that come back at once never get in."""
        first_s = CONNECT_S if len(self._urls) == 1 else CONNECT_S_OF_MANY
        return reconnect.patience(first_s, self._timeouts // len(self._urls), PATIENT_S)

    def _next(self) -> None:
        self.url = self._urls[(self._urls.index(self.url) + 1) % len(self._urls)]

    async def _dial(self) -> ClientConnection:
        patience_s = self._patience_s
        try:
            connection = await connect(
                self.url, compression=None, max_size=MAX_FRAME, open_timeout=patience_s, close_timeout=1, ssl=self._tls[self.url]
            )
        except ssl.SSLCertVerificationError as why:
            raise ConnectionFailed(distrust(self.url, why)) from why
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as why:
            raise ConnectionFailed(f"no manager at {self.url}: {why}") from why
        try:
            async with asyncio.timeout(patience_s):
                await self._handshake(connection)
        except TimeoutError as why:
            await connection.close()
            raise ConnectionFailed(f"the manager at {self.url} does not answer") from why
        except ConnectionClosed as closed:
            await connection.close()
            raise refusal(closed) from closed
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _handshake(self, connection: ClientConnection) -> None:
        decoder = from_manager()
        challenge = decoder.decode(await connection.recv())
        if not isinstance(challenge, Challenge):
            raise ProtocolError(f"{type(challenge).__name__.lower()} instead of a challenge")
        secret, nonce = self._secret.get_secret_value(), os.urandom(32)
        facts = {
            "role": "client",
            "session": self._session,
            "manager_nonce": challenge.nonce,
            "peer_nonce": nonce,
            "version": PROTOCOL_VERSION,
        }
        proof = peer_proof(secret, **facts)  # type: ignore[arg-type]
        name = f"{socket.gethostname()}:{os.getpid()}"
        hello = Hello(version=PROTOCOL_VERSION, role="client", session=self._session, nonce=nonce, proof=proof, name=name)
        await connection.send(encode(hello))
        answer = decoder.decode(await connection.recv())
        if isinstance(answer, Refused):
            raise AccessRefused(f"the manager at {self.url} refuses this client: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{type(answer).__name__.lower()} instead of a welcome")
        if not matches(manager_proof(secret, **facts), answer.proof):  # type: ignore[arg-type]
            raise AccessRefused(f"what answers at {self.url} does not know the secret: it is not this client's manager")

    async def _keep(self, connection: ClientConnection) -> None:
        brief = 0  # connections in a row that did not last
        loop = asyncio.get_running_loop()
        while True:
            spread_s, began = 0.0, loop.time()
            try:
                spread_s = await self._carry(connection)
            except ConnectionClosed:
                pass
            except ProtocolError as why:
                log.error("the connection to %s is closed: %s", self.url, why)
            finally:
                self._is_up = False
                await connection.close()
            brief = 0 if loop.time() - began > reconnect.STABLE_S else min(brief + 1, MAX_BRIEF)
            self._next()
            await asyncio.sleep(random.uniform(0, spread_s / len(self._urls)) if spread_s else self._pause_s(brief))
            tries = 0
            while True:
                try:
                    connection = await self._dial()
                    self._timeouts = 0
                    break
                except AccessRefused as why:
                    self._end(why)
                    return
                except (ConnectionFailed, ProtocolError) as why:
                    self._timeouts += isinstance(why.__cause__, TimeoutError)
                    if tries in (0, 5) or tries % 20 == 0:
                        log.warning("%s; trying again", why)
                    self._next()
                    tries += 1
                    await asyncio.sleep(self._pause_s(tries))

    def _pause_s(self, failures: int) -> float:
        return reconnect.wait(failures // len(self._urls), random.random())

    async def _carry(self, connection: ClientConnection) -> float:
        """Serve one connection. Returns: how many seconds the manager asked to stay away, at most."""
        self._out.clear()
        self._new_watches.clear()
        self._out.extend(data for data, _ in self._unanswered.values())
        self._new_watches.extend(self._watched)
        self._out.extend(encode(frame) for frame, _ in self._follows.values())
        self._is_up = True
        self._out_ready.set()
        writer = asyncio.create_task(self._write(connection), name="easyjobs-client-writer")
        decoder = from_manager()
        try:
            while True:
                frame = decoder.decode(await connection.recv())
                if isinstance(frame, Submitted):
                    found = self._unanswered.pop(frame.number, None)
                    if found is not None and not found[1].done():
                        if frame.problem is None:
                            found[1].set_result(frame.ids)
                        else:
                            found[1].set_exception(error_of(frame.problem))
                elif isinstance(frame, Controlled):
                    wished = self._unanswered.pop(frame.number, None)
                    if wished is not None and not wished[1].done():
                        wished[1].set_result(frame)
                elif isinstance(frame, Results):
                    for item in frame.items:
                        future = self._watched.get(item.id)
                        if future is not None and not future.done():
                            future.set_result(item)
                elif isinstance(frame, Followed):
                    follow = self._follows.pop(frame.number, None)
                    if follow is not None and not follow[1].done():
                        follow[1].set_result(frame)
                elif isinstance(frame, Goaway):
                    return frame.spread_s
                elif isinstance(frame, Refused):
                    raise ProtocolError(frame.reason)
        finally:
            self._is_up = False
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await writer

    async def _write(self, connection: ClientConnection) -> None:
        while True:
            await self._out_ready.wait()
            self._out_ready.clear()
            while self._out or self._new_watches:
                if self._new_watches:
                    ids, self._new_watches = self._new_watches, []
                    self._out.append(encode(Watch(ids=ids)))
                await connection.send(self._out.popleft())

    def _end(self, why: Exception) -> None:
        self._ended = why
        for _, answer in self._unanswered.values():
            if not answer.done():
                answer.set_exception(why)
        for future in self._watched.values():
            if not future.done():
                future.set_exception(why)
        for _, follow in self._follows.values():
            if not follow.done():
                follow.set_exception(why)
        self._unanswered.clear()
        self._watched.clear()
        self._follows.clear()


def refusal(closed: ConnectionClosed) -> ConnectionFailed:
    """What a closed handshake means: refused for good, or only not now."""
    frame = closed.rcvd
    if frame is not None and frame.code in (CLOSE_REFUSED, CLOSE_VERSION):
        return AccessRefused(f"the manager refuses this client: {frame.reason}")
    return ConnectionFailed(f"the manager closed the connection: {closed}")
