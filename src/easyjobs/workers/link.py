"""The connection to the manager, in a thread of its own, so that a task that blocks its loop costs neither the lease nor other jobs.

The thread runs a loop with the socket, the beats and `protocol.worker_side`. What crosses to the loop of the tasks goes in batches: jobs
through the pool's inbox and one wake-up, reports through a deque and one wake-up, however many there are.

A worker that cannot renew its lease for as long as it lasts stops its running work itself, since others may have it by then. A manager
that is down (its port refuses) gives nothing to others: then the work goes on, however long it takes. What is finished is kept, and
offered to the manager when it is back: it may still want it.

Where several managers have one database, the worker has the addresses of all, or of what balances their load. It goes to the next address as soon
as it has lost one, and what it holds goes with it: leases are in the database. There, any manager may end a lease, so the silence of one is
not waited out, and a lease is only taken to live on while every one of at least two addresses refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from easyjobs.domain.job import MAX_FRAME, Outcome, Report
from easyjobs.domain.seeing import LogLine, News, Place
from easyjobs.errors import AccessRefused, ConnectionFailed, ProtocolError, StoreError, UnknownJob
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.messages import (
    CLOSE_BUSY,
    CLOSE_ENDED,
    CLOSE_REFUSED,
    CLOSE_REPLACED,
    CLOSE_STORE_AWAY,
    CLOSE_VERSION,
    HOLDS_HEADER,
    NewTask,
    Reports,
    SubmitItem,
    SubmitOptions,
    WatchedResult,
)
from easyjobs.protocol.problems import error_of
from easyjobs.protocol.worker_side import (
    Event,
    JobsArrived,
    JobsEnded,
    LanesKnown,
    LeaseRenewed,
    Leaving,
    Lost,
    NewsArrived,
    StopAsked,
    SubmitAnswered,
    Welcomed,
    WishAnswered,
    WorkerSide,
)
from easyjobs.runtime import failpoints, reconnect
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import ERROR, INFO, WARNING, event
from easyjobs.runtime.tls import context_for, distrust
from easyjobs.workers.carrier import OVERDUE_S
from easyjobs.workers.executor import released
from easyjobs.workers.notebook import NOTES_S
from easyjobs.workers.pool import Pool, Stop

log = logging.getLogger("easyjobs.link")

CONNECT_S: Final = 10.0
CONNECT_S_OF_MANY: Final = 1.0  # where there are other addresses: an eighth of a lease, and no less than this
PATIENT_LEASES: Final = 2.0  # of an answer more is never waited for, in leases
MAX_TOLD: Final = 10  # causes of one outage that are logged as they come up, beside some of the tries
BATCH: Final = 128  # reports that cross at once while there is more work; fewer cross when there is none, or after `BATCH_S`
BATCH_S: Final = 0.001
TICK_S: Final = 0.5
INBOX_TICK_S: Final = 0.05
FLUSH_S: Final = 3.0  # at the end, for what there is to say
RETURN_S: Final = 1.0  # at the end, between tries to reach the manager, at most
BLOCKED_S: Final = 1.0  # a loop that has not turned for so long is reported, with its stack
SILENT_BEATS: Final = 3.0  # beats without any answer until the connection counts as dead
SILENT_BEATS_OF_MANY: Final = 1.4  # the same where another manager may end the lease: there is to be time to find one
OTHERS_S: Final = 3600.0  # who has heard of other managers counts with them for so long, if they were there
OTHERS_LAST_S: Final = 180.0  # for so long: one that has died, and was followed by ours, is named for a minute
STALL_GRACE_S: Final = 5.0  # after this process itself stood still, so long to renew the lease before work is stopped


class _Replaced(AccessRefused):
    """Trying elsewhere would not help."""


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Link:
    """One session's connection. The public methods are for the loop of the tasks, unless they say otherwise."""

    def __init__(self, urls: Sequence[str], side: WorkerSide, pool: Pool, ca: Path | None = None) -> None:
        """`ca`: certificates that are trusted instead of the system's. Raises: ConfigurationError."""
        self._tls = {url: context_for(url, ca) for url in urls}
        self._urls = random.sample(urls, len(urls))  # so that workers spread over managers
        self.url = self._urls[0]
        self._refusing: set[str] = set()  # where nobody listened, or there was no store, when it was last tried
        self._closed_to_us: set[str] = set()  # which refused our secret or version, when it was last tried
        self._side, self._pool = side, pool
        self._tasks_loop = asyncio.get_running_loop()
        self._tasks_thread = threading.get_ident()
        self._decoder = from_manager()
        self._thread = threading.Thread(target=self._main, name="easyjobs-link", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        # from the tasks to the link
        self._reports: deque[Report] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._room = pool.room()
        self._flush_planned = False
        self._link_woken = False
        pool.notebook.wake = self._notes_wait
        # from the link to the tasks
        self._pool_woken = False
        self._pinged_at: float | None = None
        # the link's own
        self._ready = asyncio.Event()  # there is something to send
        self._progress = asyncio.Event()
        self._ending = asyncio.Event()
        self._submits: dict[int, _Waiter] = {}
        self._watches: dict[bytes, list[_Waiter]] = {}
        self._follows: dict[int, _Waiter] = {}
        self._beats: dict[int, float] = {}
        self._timeouts = 0  # tries in a row that got no answer
        self._refusals = 0  # tries in a row that met a manager which has too many at its door
        self._lease_s = 30.0
        self._beat_s = 10.0
        self._lease_until: float | None = None
        # Managers over the same store, besides the one that we are connected to: since when we hear of them, and when we last heard of some that stay.
        self._others_since: float | None = None
        self._others_at: float | None = None
        self._heard_at = 0.0
        self._spread_s = 0.0
        self._inbox_timer: asyncio.TimerHandle | None = None
        self._blocked_reported = False
        self._notes_timer: asyncio.TimerHandle | None = None
        self._noted_at = 0.0
        self._dropped_lines = 0  # as far as was logged
        self._is_closing = False
        self._is_hurried = False
        self._closing = asyncio.Event()  # with a report that is to be delivered: a pause between two tries is over
        self._is_over = False  # the thread is about to end
        self._flush_task: asyncio.Task[None] | None = None
        self._left: int | None = None  # how many attempts were not acknowledged at the end
        self._is_flushed = False  # all reports were acknowledged at the end
        self.refused: AccessRefused | None = None
        self.first: asyncio.Future[None] = self._tasks_loop.create_future()
        self.on_refused: Callable[[AccessRefused], None] = lambda _: None
        self.on_lanes: Callable[[list[tuple[str, int]]], None] = lambda _: None

    def start(self) -> None:
        """Start the thread and begin to connect. `first` is resolved by the first welcome, or by a refusal."""
        self._thread.start()
        self._up.wait()

    # --- Carrier: called on the loop of the tasks -------------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """See `Carrier.report`."""
        self._reports.append(report)
        if not self._flush_planned:
            self._flush_planned = True
            if self._pool.inbox.jobs:
                self._tasks_loop.call_later(BATCH_S, self._flush)
            else:
                self._tasks_loop.call_soon(self._flush)
        elif len(self._reports) == BATCH:
            self._hand_over()

    def nudge(self) -> None:
        """See `Carrier.nudge`."""
        if not self._flush_planned:
            self._flush_planned = True
            self._tasks_loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        self._hand_over()

    def _hand_over(self) -> None:
        self._room = self._pool.room()
        self._wake()

    def _wake(self) -> None:
        """Make the link look at its deques. From any thread."""
        if not self._link_woken:
            self._link_woken = True
            self._on_link(self._turn)

    def _on_link(self, call: Callable[..., Any], *args: Any) -> bool:
        loop = self._loop
        if loop is None:
            return False
        try:
            loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the link has ended
            return False
        return True

    def _notes_wait(self) -> None:
        """There is something in the notebook. From any thread; straight to the link, so that it is seen even while a task blocks its loop."""
        self._on_link(self._plan_notes)

    def _plan_notes(self) -> None:
        """On the link."""
        loop = self._loop
        if self._notes_timer is None and loop is not None:
            self._notes_timer = loop.call_later(max(0.0, self._noted_at + NOTES_S - loop.time()), self._send_notes, loop)

    def _send_notes(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the link."""
        self._notes_timer, self._noted_at = None, loop.time()
        self._take_notes()
        if self._side.outgoing:
            self._ready.set()

    def _take_notes(self) -> None:
        """On the link."""
        side = self._side
        side.note(*self._pool.notebook.take())
        if side.dropped_lines > self._dropped_lines:
            event(log, WARNING, "lines.dropped", lines=side.dropped_lines - self._dropped_lines, reason="the manager does not take them")
            self._dropped_lines = side.dropped_lines

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """See `Carrier.submit`. From any loop. While there is no connection it waits for one."""
        waiter = self._waiter()
        self._call(lambda: self._submit(waiter, items, options))
        ids: Sequence[bytes] = await waiter.future
        return ids or [item.id for item in items]

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """See `Carrier.result`. From any loop."""
        waiter = self._waiter()
        self._call(lambda: self._watch(waiter, id))
        try:
            async with asyncio.timeout(timeout):
                ended: WatchedResult = await waiter.future
                return ended
        except BaseException:
            self._call(lambda: self._unwatch(waiter, id))
            raise

    async def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """See `Carrier.follow`. From any loop."""
        place: Place = (0, 0)
        numbers: list[int] = []  # the stream's, once it has one; the link's
        is_first, is_last = True, False
        try:
            while not is_last:
                waiter = self._waiter()
                self._call(lambda waiter=waiter, place=place: self._ask_news(waiter, id, place, numbers))  # type: ignore[misc]
                arrived: NewsArrived = await waiter.future
                is_last = arrived.is_last
                if is_first and is_last and not arrived.news:
                    raise UnknownJob(id_text(id))
                is_first = False
                yield arrived.news
                place = next(((one.attempt, one.number) for one in reversed(arrived.news) if isinstance(one, LogLine)), place)
        finally:
            if not is_last:
                self._call(lambda: self._end_news(numbers))

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """See `Carrier.control`. From any loop."""
        waiter = self._waiter()
        self._call(lambda: self._submits.__setitem__(self._side.control(verb, ids), waiter))
        answer: WishAnswered = await waiter.future
        if answer.problem:
            raise StoreError(answer.problem)
        return answer.items

    def offer(self, tasks: Sequence[NewTask]) -> None:
        """Offer tasks, now and after every reconnect."""
        self._call(lambda: self._side.offer(tasks))

    def _waiter(self) -> _Waiter:
        if self._is_closing or self.refused is not None:
            raise self.refused or ConnectionFailed("the worker was closed")
        loop = asyncio.get_running_loop()
        return _Waiter(loop, loop.create_future())

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._wake()

    async def close(self, flush_s: float, reports_s: float = 0.0) -> int:
        """Flush, end the connection and the thread. Returns how many attempts were not acknowledged.

        Args:
            flush_s: for so long it waits for answers of any kind.
            reports_s: and for so long, if that is longer, while there are reports of attempts that have ended: if they are lost, that work
                is done again. `hurry` takes it back.
        """
        self._hand_over()
        done = asyncio.Event()

        def finish() -> None:
            self._finish(flush_s, reports_s)
            with contextlib.suppress(RuntimeError):
                self._tasks_loop.call_soon_threadsafe(done.set)

        threading.Thread(target=finish, name="easyjobs-link-close", daemon=True).start()
        await done.wait()
        return self.unacked

    def close_blocking(self, flush_s: float) -> int:
        """The same, from any thread, for tasks whose loop has ended: gives back what was not reported."""
        self._call(self._give_back_unreported)
        self.hurry()
        self._finish(flush_s)
        return self.unacked

    def hurry(self) -> None:
        """Do not wait for a manager that is away. From any thread."""
        self._is_hurried = True
        self._wake()

    def _finish(self, flush_s: float, reports_s: float = 0.0) -> None:
        self._on_link(self._begin_end, flush_s, reports_s)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(max(flush_s, reports_s) + 2.0)

    @property
    def unacked(self) -> int:
        """Attempts whose report the manager has not acknowledged."""
        return self._side.held_count + len(self._reports) if self._left is None else self._left

    @property
    def undelivered(self) -> int:
        """Those of them that have ended, and are not only given back."""
        return min(self._side.finished + len(self._reports), self.unacked)

    def withdraw(self) -> None:
        """Take no new jobs any more. From any thread, also from a signal handler."""
        self._call(self._side.withdraw)

    # --- the link's thread ------------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        with contextlib.suppress(ImportError):
            import uvloop

            factory = uvloop.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._live())
        except Exception:
            log.exception("the link to the manager failed")
        finally:
            self._up.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._up.set()
        ticker = asyncio.create_task(self._tick(), name="easyjobs-link-ticker")
        connected = asyncio.create_task(self._keep_connected(), name="easyjobs-link-connection")
        ending = asyncio.create_task(self._ending.wait(), name="easyjobs-link-end")
        try:
            await asyncio.wait([connected, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_over = True
            for task in (ticker, connected, ending):
                task.cancel()
            await asyncio.wait([ticker, connected, ending], timeout=2.0)
            self._fail_waiters(self.refused or ConnectionFailed("the worker was closed"))
        if connected.done() and not connected.cancelled():
            error = connected.exception()
            if error is not None:
                raise error

    def _turn(self) -> None:
        self._link_woken = False
        side, calls, reports = self._side, self._calls, self._reports
        while calls:
            calls.popleft()()
        if reports:
            count = len(reports)
            if not self._pool.notebook.is_empty:  # written before these reports were made: sent before them
                self._take_notes()
            self._side.report([reports.popleft() for _ in range(count)], sum(self._room))
        else:
            side.credit(sum(self._room))
        if side.outgoing:
            self._ready.set()
        self._progress.set()

    # --- connecting

    async def _keep_connected(self) -> None:
        failures = 0
        told = set[str]()  # why this outage goes on
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            got_no_answer = is_busy = False
            try:
                await self._connection()
            except AccessRefused as refused:
                self._closed_to_us.add(self.url)
                self._refusing.discard(self.url)
                if isinstance(refused, _Replaced) or len(self._closed_to_us) == len(self._urls):
                    self._end_refused(refused)
                    return
                why = str(refused)
            except ssl.SSLCertVerificationError as error:
                why = distrust(self.url, error)
                self._refusing.discard(self.url)
                self._closed_to_us.add(self.url)
                if not self.first.done() and len(self._closed_to_us) == len(self._urls):  # later: it may have run out, and be renewed
                    self._end_refused(AccessRefused(why))
                    return
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError, ProtocolError, EOFError) as error:
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                is_busy = _is_busy(error)
                got_no_answer = isinstance(error, TimeoutError) and not self._side.is_up
                if isinstance(error, ConnectionRefusedError) or _has_no_store(error):
                    self._refusing.add(self.url)
                    if self._lease_until is not None and self._nobody_listens():
                        # There is no manager that could end our lease, and one that starts, or gets its store back, waits a whole one first.
                        # What runs goes on. Silence is another thing: behind a broken network a manager may be giving our jobs to others.
                        self._lease_until = loop.time() + self._lease_s
                else:
                    self._refusing.discard(self.url)
            except InvalidURI as error:
                self._end_refused(AccessRefused(f"{self.url} is no address of a manager: {error}"))
                return
            else:
                why = "the connection ended"
            was_up = self._side.is_up
            self._timeouts = 0 if was_up else self._timeouts + got_no_answer  # one that is refused for now has not been answered either
            self._side.disconnected()
            if was_up and loop.time() - started > reconnect.STABLE_S:
                failures = 0
            lost = self.url
            self.url = self._urls[(self._urls.index(lost) + 1) % len(self._urls)]
            pause = reconnect.wait(failures // len(self._urls), random.random())  # it grows when all of them have failed
            self._refusals = self._refusals + 1 if is_busy else 0
            soon = reconnect.cap(self._lease_s, self._refusals, holds=self._side.held_count > 0) / len(self._urls)
            if pause > soon:
                pause = soon * random.random()
            if self._spread_s:
                pause, self._spread_s = random.random() * self._spread_s, 0.0
            if self._closing.is_set() and not is_busy:
                pause = min(pause, RETURN_S * random.random())
            failures += 1
            if was_up:
                told.clear()
            if was_up or failures in (1, 5) or failures % 20 == 0 or (why not in told and len(told) < MAX_TOLD):
                told.add(why)
                event(log, WARNING, "manager.unreachable", url=lost, tries=failures, error=why, next_try_s=round(pause, 2))
            await self._pause(pause)

    async def _pause(self, pause_s: float) -> None:
        """Wait, but not for longer than it takes until this worker is to end and has something to deliver."""
        if self._closing.is_set():
            await asyncio.sleep(pause_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._closing.wait()

    def _nobody_listens(self) -> bool:
        return len(self._refusing) == len(self._urls) and (len(self._urls) > 1 or not self._has_others())

    def _has_others(self) -> bool:
        """Whether managers that we do not know may end our lease. They may have been away when ours was asked, and be back before it is."""
        assert self._loop is not None
        lately = self._others_at is not None and self._loop.time() - self._others_at < OTHERS_S
        return lately or self._others_since is not None

    def _end_refused(self, refused: AccessRefused) -> None:
        self.refused = refused
        event(log, ERROR, "manager.refused", url=self.url, error=str(refused))
        self._on_tasks(self._tell_refused, refused)

    def _tell_refused(self, refused: AccessRefused) -> None:
        if not self.first.done():
            self.first.set_exception(refused)
        else:
            self.on_refused(refused)

    async def _connection(self) -> None:
        """One connection, until it ends. Raises: AccessRefused, ProtocolError, and what the network gives."""
        loop = asyncio.get_running_loop()
        patience_s = CONNECT_S if len(self._urls) == 1 else max(CONNECT_S_OF_MANY, min(CONNECT_S, self._lease_s / 8))
        patience_s = reconnect.patience(patience_s, self._timeouts // len(self._urls), PATIENT_LEASES * self._lease_s)
        async with connect(
            self.url,
            compression=None,
            max_size=MAX_FRAME,
            open_timeout=patience_s,
            close_timeout=2.0,
            ping_interval=None,
            proxy=None,
            ssl=self._tls[self.url],
            additional_headers={HOLDS_HEADER: str(self._side.held_count)} if self._side.held_count else None,
        ) as socket:
            try:
                async with asyncio.timeout(patience_s):
                    answer = self._side.challenged(self._decoder.decode(await socket.recv()), os.urandom(32))
                    said_at = loop.time()
                    for frame in answer:
                        await socket.send(encode(frame))
                    events = self._side.welcomed(self._decoder.decode(await socket.recv()))
                self._refusing.clear()
                self._closed_to_us.clear()
                self._beats = {0: said_at}
                self._heard_at = loop.time()
                for one in events:
                    self._take(one)
                event(log, INFO, "manager.connected", url=self.url, held=self._side.held_count)
                self._ready.set()
                sender = asyncio.create_task(self._send(socket), name="easyjobs-link-sender")
                beater = asyncio.create_task(self._beat(socket), name="easyjobs-link-beater")
                try:
                    side, decode, take, ready = self._side, self._decoder.decode, self._take, self._ready
                    while True:
                        arrived = side.receive(decode(await socket.recv()))
                        self._heard_at = loop.time()
                        if arrived is not None:
                            take(arrived)
                        else:
                            self._progress.set()
                        if side.outgoing:
                            ready.set()
                finally:
                    sender.cancel()
                    beater.cancel()
            except asyncio.CancelledError:  # this worker ends
                with contextlib.suppress(ConnectionClosed, OSError):
                    if self._is_flushed:  # 1000 would not do: any connection that is given up closes with it
                        await socket.close(CLOSE_ENDED, "the worker has ended")
                raise
            except ConnectionClosed as closed:
                _raise_if_refused(closed)
                raise
            except ProtocolError as error:
                if not isinstance(error, AccessRefused):
                    with contextlib.suppress(ConnectionClosed, OSError):
                        await socket.close(error.code, str(error).encode()[:100].decode(errors="ignore"))
                raise

    async def _send(self, socket: ClientConnection) -> None:
        side, ready = self._side, self._ready
        try:
            while True:
                await ready.wait()
                ready.clear()
                while side.outgoing:
                    frames, side.outgoing = side.outgoing, []
                    for frame in frames:
                        await socket.send(encode(frame))
                        if failpoints.ARMED and isinstance(frame, Reports):
                            failpoints.reach("link.reported")
                self._progress.set()
        except ConnectionClosed:
            return  # the reader says why

    async def _beat(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            number = self._side.beat(self._loop_age(now))
            self._beats[number] = now
            self._ready.set()
            for _ in range(2):
                await asyncio.sleep(self._beat_s / 2)
                if loop.time() - self._heard_at > self._beat_s * (SILENT_BEATS_OF_MANY if self._has_others() else SILENT_BEATS):
                    event(log, WARNING, "manager.silent", url=self.url, silent_s=round(loop.time() - self._heard_at, 1))
                    socket.transport.abort()
                    return

    # --- what the manager says

    def _take(self, arrived: Event) -> None:
        if isinstance(arrived, JobsArrived):
            if failpoints.ARMED:
                failpoints.reach("link.received")
            assert self._loop is not None
            now = self._loop.time()
            self._pool.inbox.put(arrived.jobs, now)
            if self._lease_until is None:  # it was lost, and what renewed it is not heard of yet: if that does not come, these stop as well
                self._lease_until = now + min(STALL_GRACE_S, self._lease_s)
            if self._inbox_timer is None:
                self._inbox_timer = self._loop.call_later(INBOX_TICK_S, self._check_inbox)
            self._wake_pool()
        elif isinstance(arrived, SubmitAnswered):
            waiter = self._submits.pop(arrived.number, None)
            if waiter is not None:
                self._answer([(waiter, arrived.ids, None if arrived.problem is None else error_of(arrived.problem))])
        elif isinstance(arrived, WishAnswered):
            waiter = self._submits.pop(arrived.number, None)
            if waiter is not None:
                self._answer([(waiter, arrived, None)])
        elif isinstance(arrived, JobsEnded):
            self._answer((waiter, item, None) for item in arrived.items for waiter in self._watches.pop(item.id, ()))
        elif isinstance(arrived, NewsArrived):
            waiter = self._follows.pop(arrived.number, None)
            if waiter is not None:
                self._answer([(waiter, arrived, None)])
        elif isinstance(arrived, LeaseRenewed):
            assert self._loop is not None
            now = self._loop.time()
            if not arrived.has_others:
                self._others_since = None
            else:
                self._others_since = now if self._others_since is None else self._others_since
                if now - self._others_since > OTHERS_LAST_S:
                    self._others_at = now
            said_at = self._beats.get(arrived.number)
            if said_at is not None:
                self._lease_until = said_at + self._lease_s
                self._beats = {number: at for number, at in self._beats.items() if number > arrived.number}
        elif isinstance(arrived, StopAsked):
            self._on_tasks(self._pool.stop, arrived.attempts, Stop.CANCELLED)
        elif isinstance(arrived, Lost):
            event(log, WARNING, "attempts.lost", attempts=len(arrived.attempts))
            self._on_tasks(self._pool.stop, arrived.attempts, Stop.LOST)
        elif isinstance(arrived, LanesKnown):
            self.on_lanes([(task.name, task.lane) for task in arrived.tasks])
            for name, reason in arrived.refused:
                event(log, ERROR, "task.refused", task=name, reason=reason)
        elif isinstance(arrived, Welcomed):
            self._lease_s, self._beat_s = arrived.lease_s, arrived.beat_s
            self._on_tasks(self._tell_first)
        elif isinstance(arrived, Leaving):
            self._spread_s = min(arrived.spread_s, self._lease_s / 4)
        self._progress.set()

    def _tell_first(self) -> None:
        if not self.first.done():
            self.first.set_result(None)

    def _wake_pool(self) -> None:
        if not self._pool_woken:
            self._pool_woken = True
            self._on_tasks(self._woken)

    def _woken(self) -> None:
        """On the loop of the tasks."""
        self._pool_woken = False
        self._pool.wake()

    def _on_tasks(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            self._tasks_loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            self._tasks_loop_gone()

    def _tasks_loop_gone(self) -> None:
        """The program's loop was closed, and the worker was not: give back what it has, and end."""
        if not self._is_closing:
            event(log, WARNING, "worker.not_closed", held=self._side.held_count)
            self._give_back_unreported()
            self._begin_end(FLUSH_S)

    def _submit(self, waiter: _Waiter, items: Sequence[SubmitItem], options: SubmitOptions | None) -> None:
        self._submits[self._side.submit(items, options)] = waiter

    def _watch(self, waiter: _Waiter, id: bytes) -> None:
        waiters = self._watches.setdefault(id, [])
        waiters.append(waiter)
        if len(waiters) == 1:
            self._side.watch([id])

    def _unwatch(self, waiter: _Waiter, id: bytes) -> None:
        waiters = self._watches.get(id, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._watches[id]
                self._side.unwatch([id])

    def _ask_news(self, waiter: _Waiter, id: bytes, after: Place, numbers: list[int]) -> None:
        number = self._side.follow(id, after, numbers[0] if numbers else None)
        numbers[:] = [number]
        self._follows[number] = waiter

    def _end_news(self, numbers: list[int]) -> None:
        for number in numbers:
            self._follows.pop(number, None)
            self._side.unfollow(number)

    def _answer(self, answers: Iterable[tuple[_Waiter, Any, Exception | None]]) -> None:
        """Resolve waiters, each on its loop, with one wake-up a loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, Exception | None]]] = {}
        for waiter, value, error in answers:
            by_loop.setdefault(waiter.loop, []).append((waiter.future, value, error))
        for loop, batch in by_loop.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, batch)

    def _fail_waiters(self, error: Exception) -> None:
        waiters = [*self._submits.values(), *(waiter for waiters in self._watches.values() for waiter in waiters), *self._follows.values()]
        self._submits.clear()
        self._follows.clear()
        self._watches.clear()
        self._answer((waiter, None, error) for waiter in waiters)

    # --- what must happen in time

    def _check_inbox(self) -> None:
        """Jobs that wait here although others could run them go back."""
        assert self._loop is not None
        self._inbox_timer = None
        now = self._loop.time()
        if self._pool.free > 0 and self._pool.inbox.jobs:
            # Nothing but the loop keeps them from starting. It may be working its way through a burst: only one that does not turn at all
            # sends them away, or two busy workers would hand each other's jobs to and fro (measured: half of the rate).
            self._ping()
            overdue = self._pool.inbox.overdue(now) if self._loop_age(now) >= OVERDUE_S else []
            if overdue:
                self._side.freeze()
        else:
            overdue = self._pool.inbox.overdue(now)
        if overdue:
            self._room = self._room._replace(prefetch=0)
            self._side.report([released(job) for job in overdue], sum(self._room), falls=True)
            self._ready.set()
        if self._pool.inbox.jobs:
            self._inbox_timer = self._loop.call_later(INBOX_TICK_S, self._check_inbox)

    def _ping(self) -> None:
        if self._pinged_at is None:
            assert self._loop is not None
            self._pinged_at = self._loop.time()
            self._on_tasks(self._pong)

    def _pong(self) -> None:
        """On the loop of the tasks."""
        self._pinged_at = None
        self._call(self._side.thaw)

    def _loop_age(self, now: float) -> float:
        """How long the loop of the tasks has not turned, in seconds."""
        pinged = self._pinged_at
        return 0.0 if pinged is None else now - pinged

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            stalled_s = now - before - TICK_S
            before = now
            until = self._lease_until
            if until is not None and now > until:
                if stalled_s > 1.0:  # this process stood still: the manager may be there, ask it first
                    self._lease_until = now + min(STALL_GRACE_S, self._lease_s)
                else:
                    self._lease_until = None
                    self._lease_lost()
            age = self._loop_age(now)
            if age > BLOCKED_S:
                self._report_blocked(age)
            elif age == 0.0:
                self._blocked_reported = False
                self._ping()

    def _lease_lost(self) -> None:
        if self._side.held_count:
            event(log, WARNING, "lease.lost", held=self._side.held_count, lease_s=self._lease_s)
            self._on_tasks(self._pool.stop_all, Stop.SHUTDOWN)

    def _report_blocked(self, age: float) -> None:
        if self._blocked_reported:
            return
        self._blocked_reported = True
        frame = sys._current_frames().get(self._tasks_thread)
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame is not None else ""
        event(log, WARNING, "loop.blocked", blocked_s=round(age, 1), hint="a task blocks the event loop: make it a plain def", stack=stack)

    # --- the end

    def _begin_end(self, flush_s: float, reports_s: float = 0.0) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._is_over:  # a task that begins now would never run
                self._flush_task = asyncio.get_running_loop().create_task(self._end(flush_s, reports_s), name="easyjobs-link-flush")

    async def _end(self, flush_s: float, reports_s: float) -> None:
        """Wait until all is acknowledged, for as long as `close` says; then end the thread."""
        loop, side = asyncio.get_running_loop(), self._side
        side.withdraw()
        soon = until = loop.time() + flush_s
        late = max(soon, loop.time() + reports_s)
        teller = loop.call_at(soon, self._tell_of_reports, late)
        while self.refused is None:
            self._progress.clear()
            self._give_back_unstarted()
            if side.outgoing:
                self._ready.set()
            if not (self._calls or self._reports or side.unacked or side.outgoing or side.waits_for_answers):
                break
            if self._is_hurried:
                until = soon
            elif self._reports or side.finished:
                until = late
                self._closing.set()
            else:  # what is left may follow what went just now
                until = min(until, max(soon, loop.time() + flush_s))
            if loop.time() >= until:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._progress.wait()
        teller.cancel()
        self._is_flushed = not (self._reports or side.unacked)
        self._left = side.held_count + len(self._reports)  # what comes from now on was never begun: the manager gives it to others
        self._ending.set()

    def _tell_of_reports(self, until: float) -> None:
        assert self._loop is not None
        left_s = until - self._loop.time()
        if self._side.finished and left_s > 0 and not self._is_hurried:
            reason = "these jobs have ended, and the manager has not acknowledged it; trying on until the grace is over"
            event(log, WARNING, "worker.holds_on", reports=self._side.finished, up_to_s=round(left_s, 1), reason=reason)

    def _give_back_unreported(self) -> None:
        self._side.withdraw()
        self._take_notes()
        self._side.report([Report(job.seq, job.attempt, Outcome.RELEASED) for job in self._side.unreported()], 0)
        self._ready.set()

    def _give_back_unstarted(self) -> None:
        jobs = self._pool.inbox.take_back()
        if jobs:
            self._side.report([released(job) for job in jobs], 0)
            self._ready.set()


def _resolve(batch: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, value, error in batch:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _has_no_store(error: Exception) -> bool:
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code == CLOSE_STORE_AWAY


def _is_busy(error: Exception) -> bool:
    if isinstance(error, InvalidStatus):
        return error.response.status_code == 503
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code == CLOSE_BUSY


def _raise_if_refused(closed: ConnectionClosed) -> None:
    frame = closed.rcvd
    if frame is None:
        return
    if frame.code in (CLOSE_REFUSED, CLOSE_VERSION):
        raise AccessRefused(f"the manager refuses this worker: {frame.reason or 'wrong secret or version'}") from closed
    if frame.code == CLOSE_REPLACED:
        raise _Replaced("another connection of this very session took over: it must have been copied, perhaps by a fork after create()")
