"""The store on SQLite: how calls reach the one writer and the readers.

Everything that writes goes through the batcher to `writer`, which runs a batch as one transaction. Reads of jobs go to a connection
of their own, in a thread of their own, and see the last commit. Counts are kept in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apsw

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
from easyjobs.ports.store import Kept, Successors
from easyjobs.runtime.batcher import Batcher
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.sqlite.connection import translate
from easyjobs.stores.sqlite.files import DatabaseFile
from easyjobs.stores.sqlite.outbox import Outbox
from easyjobs.stores.sqlite.quarantine import Quarantine
from easyjobs.stores.sqlite.reader import Reader
from easyjobs.stores.sqlite.schedules import Schedules
from easyjobs.stores.sqlite.tokens import Tokens
from easyjobs.stores.sqlite.writer import CLAIM, FINISH, KINDS, NOTE, OTHER, SUBMIT, Writer

log = logging.getLogger("easyjobs.store")
T = TypeVar("T")


class SqliteStore:
    """`ports.store.Store` on the file at `path`. One process, and one object in it, may have it open."""

    def __init__(self, path: str, *, clock: Clock, lease_s: float = 30.0, durability: str = "full") -> None:
        self._file = DatabaseFile(path)
        self._writer = Writer(self._file, clock=clock, lease_s=lease_s, durability=durability)
        self._schedules = Schedules(self._writer)
        self._quarantine = Quarantine(self._writer)
        self._tokens = Tokens(self._writer)
        self._outbox = Outbox(self._writer)
        self._durability = durability
        self.successors: Successors = lambda _: ()
        self.on_change: Callable[[Sequence[Change]], None] = lambda _: None
        self.on_unsent: Callable[[], None] = lambda: None
        self._batcher: Batcher | None = None
        self._reader: Reader | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Lock the file, migrate it, check it. Raises: StoreLocked, SchemaTooNew, ConfigurationError, StoreError."""
        if self._durability != "full":
            event(
                log, WARNING, "setting.doubted", setting="durability", value=self._durability, effect="a power cut may lose the last jobs"
            )
        loop = asyncio.get_running_loop()
        self._writer.successors = lambda record: self.successors(record)  # noqa: PLW0108 (it may be set later)
        self._writer.on_change = lambda changes: self._tell(loop, changes)
        self._writer.on_unsent = lambda: self._tell_unsent(loop)
        self._file.take()
        batcher = Batcher(self._writer.run, KINDS, "easyjobs-writer")
        try:
            await batcher.in_thread(self._writer.open)
            self._threads = ThreadPoolExecutor(1, "easyjobs-reader")
            self._reader = await loop.run_in_executor(self._threads, Reader, self._file.path)
        except BaseException as error:
            if self._threads is not None:
                threads, self._threads = self._threads, None
                threads.shutdown()
            await batcher.close(StoreError("the store could not be opened"))
            self._writer.close()
            self._file.release()
            if isinstance(error, apsw.Error):
                raise translate(self._file.path, error) from error
            raise
        self._batcher = batcher

    async def close(self) -> None:
        """Finish what was called, checkpoint, let the file go."""
        batcher, self._batcher = self._batcher, None
        if batcher is None:
            return
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.get_running_loop().run_in_executor(threads, lambda: None)  # reads that were called end first
            threads.shutdown()
        await batcher.close(self._not_open())
        if self._reader is not None:
            self._reader.close()
        self._writer.close()
        self._file.release()

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
        """See the port. Leases are kept in memory, so this writes nothing, and waits for nothing: a slow disk ends no lease."""
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        try:
            if self._batcher is None:
                raise self._not_open()
            future.set_result(self._writer.renew(sessions))
        except StoreError as why:
            future.set_exception(why)
        return future

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
        return self._call(OTHER, self._writer.paused)

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
        return self._read(lambda reader: reader.tasks())

    def schedule(self, tasks: Sequence[TaskSchedules]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.schedule(tasks), len(tasks))

    def schedules(self, ids: Sequence[int] | None = None) -> Awaitable[list[Schedule]]:
        """See the port."""
        return self._read(lambda reader: reader.schedules(ids))

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
        return self._read(lambda reader: reader.get(ids))

    def look(self, glances: Sequence[Glance]) -> Awaitable[list[Look | None]]:
        """See the port."""
        return self._read(lambda reader: reader.look(glances))

    def attempts(self, ids: Sequence[bytes]) -> Awaitable[list[list[FailedAttempt]]]:
        """See the port."""
        return self._read(lambda reader: reader.attempts(ids))

    def ahead(self, ids: Sequence[bytes], limit: int = 10_000) -> Awaitable[list[int | None]]:
        """See the port."""
        return self._read(lambda reader: reader.ahead(ids, limit))

    def page(self, query: JobQuery) -> Awaitable[list[JobRecord]]:
        """See the port."""
        return self._read(lambda reader: reader.page(query, self._writer.counts.copy()))

    def pull(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.pull(ids), len(ids))

    def counts(self) -> Awaitable[dict[tuple[int, JobState], int]]:
        """See the port. As of the last commit."""
        future: asyncio.Future[dict[tuple[int, JobState], int]] = asyncio.get_running_loop().create_future()
        if self._batcher is None:
            future.set_exception(self._not_open())
        elif self._writer.lost is not None:
            future.set_exception(self._writer.lost)
        else:
            future.set_result({(lane, JobState(state)): n for (lane, state), n in self._writer.counts.copy().items() if n})
        return future

    def prune(self, pulled_before_us: int, keys_before_us: int, limit: int = 500) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._writer.prune(pulled_before_us, keys_before_us, limit), limit)

    def quarantine(self, messages: Sequence[BadMessage]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.add(messages), len(messages), sum([len(message.body) for message in messages]))

    def quarantined(self, query: QuarantineQuery) -> Awaitable[list[Quarantined]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.read(query))

    def awaited_tasks(self) -> Awaitable[list[tuple[str, str]]]:
        """See the port."""
        return self._call(OTHER, self._quarantine.awaited)

    def unquarantine(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.remove(ids), len(ids))

    def keep_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._tokens.keep(tokens), len(tokens))

    def revoke_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._tokens.revoke(tokens), len(tokens))

    def tokens(self) -> Awaitable[list[Token]]:
        """See the port."""
        return self._call(OTHER, self._tokens.read)

    def unsent(self, broker: str, after_id: int = 0, limit: int = 500) -> Awaitable[list[Unsent]]:
        """See the port."""
        return self._call(OTHER, lambda: self._outbox.unsent(broker, after_id, limit))

    def sent(self, ids: Sequence[int]) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._outbox.sent(ids))

    def check(self) -> Awaitable[None]:
        """See the port."""
        return self._call(OTHER, self._writer.check)

    def _tell(self, loop: asyncio.AbstractEventLoop, changes: list[Change]) -> None:
        """From the thread that ran the batch."""
        loop.call_soon_threadsafe(lambda: self.on_change(changes))

    def _tell_unsent(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(lambda: self.on_unsent())  # noqa: PLW0108 (it may be set meanwhile)

    def _call(self, kind: int, what: Any, rows: int = 1, size: int = 0) -> asyncio.Future[Any]:
        if self._batcher is not None:
            return self._batcher.call(kind, what, rows, size)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(self._not_open())
        return future

    def _read(self, question: Callable[[Reader], T]) -> asyncio.Future[T]:
        if self._threads is not None and self._reader is not None:
            return asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question, self._reader)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        future.set_exception(self._not_open())
        return future

    def _ask(self, question: Callable[[Reader], T], reader: Reader) -> T:
        if self._writer.lost is not None:
            raise self._writer.lost
        try:
            return question(reader)
        except apsw.Error as error:
            raise translate(self._file.path, error) from error

    def _not_open(self) -> StoreError:
        return StoreError(f"{self._file.path} is not open")
