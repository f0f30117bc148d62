"""The store on PostgreSQL: how calls reach the writing connection and the reading ones.

Everything that writes goes through the batcher to `writer`, which runs a batch as one transaction. Reads of jobs have a connection of
their own, and see the last commit. A third connection hears what other managers have done, and tells them what this one did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from easyjobs.domain.job import (
    Change,
    Changed,
    Child,
    Claims,
    Due,
    JobQuery,
    JobRecord,
    NewJob,
    NewSession,
    Reports,
    Rescued,
    Running,
    Submission,
    Submitted,
    TaskRow,
    Verdict,
    Want,
)
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import Unsent
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, Schedule, TaskSchedules
from easyjobs.domain.seeing import FailedAttempt, Glance, Look, Notes
from easyjobs.domain.tokens import Token
from easyjobs.errors import StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Kept, News, Successors
from easyjobs.runtime.async_batcher import AsyncBatcher
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.postgres import reader, seeing
from easyjobs.stores.postgres import tokens as token_list
from easyjobs.stores.postgres.connection import Address, is_cut
from easyjobs.stores.postgres.hints import Hints
from easyjobs.stores.postgres.schedules import Schedules
from easyjobs.stores.postgres.writer import CLAIM, FINISH, KINDS, NOTE, OTHER, RENEW, SUBMIT, Writer

if TYPE_CHECKING:
    from asyncpg import Connection

log = logging.getLogger("easyjobs.store")
T = TypeVar("T")

TURN_S: Final = (
    10.0  # readers share a connection: one that has waited so long for its turn, behind others that wait for a lock, say, is refused
)


class ServerClock:
    """The server's time, as of the last transaction, carried on by our own clock."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer, self._clock = writer, clock

    def now(self) -> int:
        """Microseconds since 1970 (UTC)."""
        return self._clock.now() + self._writer.offset_us

    def monotonic(self) -> float:
        """Seconds since some start; never steps back."""
        return self._clock.monotonic()


class PostgresStore:
    """`ports.store.Store` on the database at `url` (`postgresql://user@host/database`), in its schema `easyjobs`.

    Time is the server's. `clock` only measures how time passes here, to notice when the server's clock was set; `test_clock` takes the
    server's place, for tests. `listen_url`: where the server is reached directly, if `url` leads through a pooler, which cannot LISTEN.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        lease_s: float = 30.0,
        durability: str = "full",
        test_clock: Clock | None = None,
        listen_url: str | None = None,
    ) -> None:
        self._address = Address(url)
        self._writer = Writer(self._address, clock=clock, lease_s=lease_s, durability=durability, test_clock=test_clock)
        self._schedules = Schedules(self._writer)
        self._hints = Hints(self._address if listen_url is None else Address(listen_url), self._writer)
        self.clock: Clock = ServerClock(self._writer, clock)
        self.on_news: Callable[[News], None] = lambda _: None
        self.on_followed: Callable[[frozenset[int] | None], None] = lambda _: None
        self.on_failed_over: Callable[[], None] = lambda: None
        self._durability = durability
        self.successors: Successors = lambda _: ()
        self.on_change: Callable[[Sequence[Change]], None] = lambda _: None
        self.on_unsent: Callable[[], None] = lambda: None
        self._batcher: AsyncBatcher | None = None
        self._reading: Connection | None = None
        self._turn = asyncio.Lock()

    @property
    def has_others(self) -> bool:
        """See the port."""
        return self._writer.has_others

    async def open(self) -> None:
        """Connect, check, migrate. Raises: MissingExtra, ConfigurationError, SchemaTooNew, StoreError."""
        if self._durability != "full":
            event(
                log, WARNING, "setting.doubted", setting="durability", value=self._durability, effect="a power cut may lose the last jobs"
            )
        self._writer.successors = lambda record: self.successors(record)  # noqa: PLW0108 (it may be set later)
        self._writer.on_change = lambda changes: self.on_change(changes)  # noqa: PLW0108
        self._writer.on_unsent = lambda: self.on_unsent()  # noqa: PLW0108
        self._writer.on_failed_over = lambda: self.on_failed_over()  # noqa: PLW0108
        self._writer.told = self._hints.tell
        self._hints.on_news = lambda news: self.on_news(news)  # noqa: PLW0108
        self._hints.on_followed = lambda tokens: self.on_followed(tokens)  # noqa: PLW0108
        await self._writer.open()
        await self._hints.start()
        self._batcher = AsyncBatcher(self._writer.run, KINDS)

    async def close(self) -> None:
        """Finish what was called, disconnect."""
        batcher, self._batcher = self._batcher, None
        if batcher is None:
            return
        await batcher.close(self._not_open())
        await self._hints.stop()
        async with self._turn:
            if self._reading is not None:
                self._reading.terminate()
                self._reading = None
        await self._writer.close()

    @property
    def is_busy(self) -> bool:
        """See the port."""
        return self._batcher is not None and self._batcher.is_full(SUBMIT)

    def submit(self, submissions: Sequence[Submission]) -> Awaitable[list[Submitted]]:
        """See the port."""
        rows = size = 0
        for submission in submissions:
            jobs = submission.jobs
            rows += len(jobs)
            size += sum([len(job.args) for job in jobs])
        return self._call(SUBMIT, submissions, rows, size)

    def claim(self, wants: Sequence[Want]) -> Awaitable[list[Claims]]:
        """See the port."""
        return self._call(CLAIM, wants, sum([want.room for want in wants]))

    def finish(self, reports: Sequence[Reports]) -> Awaitable[list[list[Verdict]]]:
        """See the port."""
        rows = size = 0
        for some in reports:
            rows += len(some.items)
            size += sum([len(report.body) for report in some.items])
        return self._call(FINISH, reports, rows, size)

    def note(self, notes: Sequence[Notes]) -> Awaitable[list[tuple[int, ...]]]:
        """See the port."""
        rows = sum([len(each.marks) + len(each.lines) for each in notes])
        return self._call(NOTE, notes, rows, sum([len(line.text) for each in notes for line in each.lines]))

    def begin(self, sessions: Sequence[NewSession]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.begin(sessions))

    def renew(self, sessions: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(RENEW, sessions)

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.running(sessions))

    def rescue(self, limit: int = 1000) -> Awaitable[list[Rescued]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.rescue(limit), limit)

    def cancel(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.cancel(ids), len(ids))

    def stopping(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.stopping(sessions))

    def restart(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.restart(ids), len(ids))

    def hasten(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.hasten(ids), len(ids))

    def delete(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.delete(ids), len(ids))

    def expire(self, limit: int = 1000) -> Awaitable[int | None]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.expire(limit), limit)

    def fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int = 1000) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.fail_unoffered(lanes, grace_us, limit), limit)

    def retain(self, kept: Kept, after_seq: int = 0, limit: int = 500) -> Awaitable[tuple[int, int | None]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.retain(kept, after_seq, limit), limit)

    def pause(self, queue: str, is_paused: bool) -> Awaitable[bool]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.pause(queue, is_paused))

    def paused(self) -> Awaitable[list[str]]:
        """See the port."""
        return self._read(reader.paused)

    def children(self, ids: Sequence[bytes]) -> Awaitable[list[list[Child]]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.children(ids))

    def due(self, limit: int = 1000) -> Awaitable[Due]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.due(limit))

    def offer(self, tasks: Sequence[TaskRow]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.offer(tasks), len(tasks))

    def tasks(self) -> Awaitable[list[TaskRow]]:
        """See the port."""
        return self._read(reader.tasks)

    def schedule(self, tasks: Sequence[TaskSchedules]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.schedule(tasks), len(tasks))

    def schedules(self, ids: Sequence[int] | None = None) -> Awaitable[list[Schedule]]:
        """See the port."""
        return self._read(lambda db: reader.schedules(db, ids))

    def due_schedules(self, limit: int = 100) -> Awaitable[DueSchedules]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.due(limit))

    def fire(self, firings: Sequence[Firing]) -> Awaitable[list[list[Fired]]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.fire(firings), sum([len(firing.ticks) for firing in firings]))

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.run_now(jobs), len(jobs))

    def pause_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.pause(ids))

    def resume_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.resume(ids))

    def prune_ticks(self, before_us: int, limit: int = 500) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.prune(before_us, limit), limit)

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._read(lambda db: reader.by_ids(db, ids))

    def look(self, glances: Sequence[Glance]) -> Awaitable[list[Look | None]]:
        """See the port."""
        return self._read(lambda db: seeing.look(db, glances))

    def attempts(self, ids: Sequence[bytes]) -> Awaitable[list[list[FailedAttempt]]]:
        """See the port."""
        return self._read(lambda db: seeing.attempts(db, ids))

    def ahead(self, ids: Sequence[bytes], limit: int = 10_000) -> Awaitable[list[int | None]]:
        """See the port."""
        return self._read(lambda db: seeing.ahead(db, ids, limit))

    def page(self, query: JobQuery) -> Awaitable[list[JobRecord]]:
        """See the port."""
        return self._read(lambda db: reader.page(db, query))

    def pull(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.pull(ids), len(ids))

    def counts(self) -> Awaitable[dict[tuple[int, JobState], int]]:
        """See the port. The counters of all managers, summed."""
        return self._read(reader.counts)

    def prune(self, pulled_before_us: int, keys_before_us: int, limit: int = 500) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.prune(pulled_before_us, keys_before_us, limit), limit)

    def follow(self, ids: Collection[bytes]) -> None:
        """See the port."""
        self._hints.follow(ids)

    def show(self, id: bytes) -> None:
        """See the port."""
        self._hints.show(id)

    def revision(self) -> Awaitable[int]:
        """See the port."""
        return self._read(reader.revision)

    def ended(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord]]:
        """See the port."""
        return self._read(lambda db: reader.ended(db, ids))

    def quarantine(self, messages: Sequence[BadMessage]) -> Awaitable[list[int]]:
        """See the port."""
        size = sum([len(message.body) for message in messages])
        return self._call(OTHER, lambda: self._writer.quarantine(messages), len(messages), size)

    def quarantined(self, query: QuarantineQuery) -> Awaitable[list[Quarantined]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.quarantined(query))

    def awaited_tasks(self) -> Awaitable[list[tuple[str, str]]]:
        """See the port."""
        return self._call(OTHER, self._writer.awaited_tasks)

    def unquarantine(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.unquarantine(ids), len(ids))

    def keep_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.keep_tokens(tokens), len(tokens))

    def revoke_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.revoke_tokens(tokens), len(tokens))

    def tokens(self) -> Awaitable[list[Token]]:
        """See the port."""
        return self._read(token_list.read)

    def unsent(self, broker: str, after_id: int = 0, limit: int = 500) -> Awaitable[list[Unsent]]:
        """See the port. What is returned is this manager's to send for a minute; others do not see it meanwhile."""
        return self._call(OTHER, lambda: self._writer.unsent(broker, after_id, limit))

    def sent(self, ids: Sequence[int]) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.sent(ids), len(ids))

    def check(self) -> Awaitable[None]:
        """See the port."""
        return self._call(OTHER, self._writer.check)

    def _call(self, kind: int, what: Any, rows: int = 1, size: int = 0) -> asyncio.Future[Any]:
        if self._batcher is not None:
            return self._batcher.call(kind, what, rows, size)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(self._not_open())
        return future

    async def _read(self, question: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        if self._batcher is None:
            raise self._not_open()
        try:
            async with asyncio.timeout(TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            raise StoreError(f"{self._address.name} has not answered others for {TURN_S:.0f} s: look again in a moment") from None
        try:
            for is_last in (False, True):
                try:
                    if self._reading is None or self._reading.is_closed():
                        self._reading = await self._address.connect()
                    return await question(self._reading)
                except StoreError:
                    raise
                except Exception as error:
                    ours = self._address.translate(error)
                    if is_cut(error) and self._reading is not None:
                        self._reading.terminate()
                        self._reading = None
                        if not is_last:
                            continue
                    raise ours or StoreError(f"{self._address.name}: {type(error).__name__}: {error}") from error
        finally:
            self._turn.release()
        raise AssertionError

    def _not_open(self) -> StoreError:
        return StoreError(f"{self._address.name} is not open")
