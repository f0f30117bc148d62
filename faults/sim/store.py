"""The way from several managers to one store, as if it were a server: calls travel, are carried out in their order, and answers travel back.

A manager that dies in between has asked and never hears: before the commit, or after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from random import Random
from typing import Any

import apsw

from easyjobs.domain.job import Change
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.errors import StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import News, Store, token
from easyjobs.runtime.batcher import Batcher
from easyjobs.stores.sqlite import writer as sqlite_writer
from easyjobs.stores.sqlite.files import DatabaseFile
from easyjobs.stores.sqlite.reader import Reader
from easyjobs.stores.sqlite.store import SqliteStore
from faults.events import sqlite_triggers
from faults.history import Renewal
from faults.sim.loop import Loop, Process

SEEN_S = 60.0  # a manager that has died counts for so long

VERBS = [
    "submit", "claim", "finish", "note", "begin", "renew", "running", "rescue", "due", "offer", "tasks", "schedule", "schedules", "due_schedules",
    "fire", "run_now", "pause_schedules", "resume_schedules", "prune_ticks", "get", "look", "attempts", "ahead", "page", "pull", "counts", "prune",
    "cancel", "stopping", "restart", "hasten", "delete", "expire", "fail_unoffered", "retain", "pause", "paused", "children", "quarantine",
    "quarantined", "awaited_tasks", "unquarantine", "unsent", "sent", "keep_tokens", "revoke_tokens", "tokens", "check",
]  # fmt: skip


class MemoryFile(DatabaseFile):
    """A name in SQLite's VFS "memdb", where the connections of this process see one database: no file can be removed under it."""

    def __init__(self, name: str) -> None:
        self.path = f"/{name}"

    def take(self) -> None:
        pass

    def release(self) -> None:
        pass

    def watch(self) -> None:
        pass

    def check(self) -> None:
        pass


class InlineSqliteStore(SqliteStore):
    """The SQLite store without threads, with the triggers of `faults.events`."""

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._writer.successors = lambda record: self.successors(record)  # noqa: PLW0108
        self._writer.on_change = lambda changes: self._tell(loop, changes)
        self._writer.on_unsent = lambda: self._tell_unsent(loop)
        self._file.take()
        self._writer.open()
        db = self._writer._db
        db.create_scalar_function("fault_now", lambda *_: self._writer._clock.now(), 0, flags=apsw.SQLITE_INNOCUOUS)  # triggers may use it
        db.execute(sqlite_triggers("fault_now()"))
        self.db, self._reader = db, Reader(self._file.path)
        self._batcher = Batcher(self._writer.run, sqlite_writer.KINDS, None)

    def _read(self, question: Callable[[Reader], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert self._reader is not None
        try:
            future.set_result(question(self._reader))
        except apsw.Error as error:
            future.set_exception(error)
        return future


class MemorySqliteStore(InlineSqliteStore):
    """The same without a disk. To be opened in `in_memory`."""

    def __init__(self, *, clock: Clock, lease_s: float) -> None:
        super().__init__("simulated", clock=clock, lease_s=lease_s, durability="relaxed")
        self._file = self._writer._file = MemoryFile("jobs.db")


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """All databases that SQLite opens within this are in memory, and end with their last connection."""
    usual = apsw.vfs_names()[0]
    apsw.set_default_vfs("memdb")
    try:
        yield
    finally:
        apsw.set_default_vfs(usual)


class Server:
    """The store, and who is connected to it."""

    def __init__(self, store: Store, loop: Loop, chance: Random, clock: Clock, *, latency_s: float) -> None:
        self.store, self.loop, self.chance, self.clock, self.latency_s = store, loop, chance, clock, latency_s
        self.views: list[View] = []
        self.renewals: list[Renewal] = []
        self.revised = 1
        self.refuses = 0.0  # how often a call is refused, without having been carried out
        self.is_down = False
        store.successors = self._successors
        store.on_change = self._changed
        store.on_unsent = lambda: [view.on_unsent() for view in self.live()]  # type: ignore[assignment]

    def live(self) -> list[View]:
        return [view for view in self.views if not view.process.is_dead]

    def revision(self) -> asyncio.Future[int]:
        """How often what all managers read at their start has changed."""
        future: asyncio.Future[int] = self.loop.create_future()
        future.set_result(self.revised)
        return future

    def _successors(self, record: Any) -> Any:
        for view in self.live():
            return view.successors(record)
        return ()

    def _changed(self, changes: Sequence[Change]) -> None:
        """One manager has made the change; the others get a hint, or none."""
        live = self.live()
        if not live:
            return
        told = self.chance.choice(live)
        told.process.run(self.loop.call_soon, told.on_change, changes)
        self.hint(told, News((), has_ended=True, is_more=True))

    def hint(self, sender: View | None, news: News) -> None:
        for view in self.live():
            if view is not sender and self.chance.random() < 0.8:
                self.loop.call_later(self.chance.random() * 0.1, view.hear, news, context=contextvars.Context())


def _verb(name: str) -> Callable[..., Awaitable[Any]]:
    def call(self: View, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        return self._call(name, args, kwargs)

    call.__name__ = name
    return call


Asked = tuple[str, tuple[Any, ...], dict[str, Any], asyncio.Future[Any]]


class View:
    """`ports.store.SharedStore` for one manager."""

    def __init__(self, server: Server, process: Process) -> None:
        self.server, self.process = server, process
        self.clock = server.clock
        self.successors: Any = lambda _: ()
        self.on_change: Callable[[Sequence[Change]], None] = lambda _: None
        self.on_unsent: Callable[[], None] = lambda: None
        self.on_news: Callable[[News], None] = lambda _: None
        self.on_followed: Callable[[frozenset[int] | None], None] = lambda _: None
        self.on_failed_over: Callable[[], None] = lambda: None
        self.followed: frozenset[int] = frozenset()
        self._queue: list[Asked] = []
        self._is_carrying = False
        server.views.append(self)

    @property
    def has_others(self) -> bool:
        since = self.server.loop.time() - SEEN_S
        return any(view is not self and (not view.process.is_dead or view.process.died_at > since) for view in self.server.views)

    @property
    def is_busy(self) -> bool:
        return False

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        while self._is_carrying:
            await asyncio.sleep(0.001)

    def hear(self, news: News) -> None:
        self.process.run(self.server.loop.call_soon, self.on_news, news)

    def follow(self, ids: Collection[bytes]) -> None:
        self.followed = frozenset(token(id) for id in ids)
        for view in self.server.live():
            if view is not self and self.server.chance.random() < 0.8:
                elsewhere = frozenset().union(*[other.followed for other in self.server.live() if other is not view])
                view.process.run(self.server.loop.call_soon, view.on_followed, elsewhere)

    def show(self, id: bytes) -> None:
        self.server.hint(self, News((), has_ended=False, is_more=False, shown=(token(id),)))

    def revision(self) -> Awaitable[int]:
        return self._call("revision", (), {})

    def ended(self, ids: Sequence[bytes]) -> Awaitable[list[Any]]:
        async def read() -> list[Any]:
            return [record for record in await self._call("get", (ids,), {}) if record is not None and record.state in FINAL]

        return read()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.server.loop.create_future()
        self._queue.append((name, args, kwargs, future))
        if not self._is_carrying:
            self._is_carrying = True
            self.server.loop.call_soon(self._depart, context=contextvars.Context())  # all calls of this turn go together
        return future

    # One batch at a time, as one connection carries them. Callbacks, not a coroutine: half of what a run does is done here.

    def _depart(self) -> None:
        if not self._queue:
            self._is_carrying = False
            return
        batch, self._queue = self._queue, []
        self.server.loop.call_later(self.server.latency_s * self.server.chance.random(), self._arrive, batch)

    def _arrive(self, batch: Sequence[Asked]) -> None:
        server, chance = self.server, self.server.chance
        if server.is_down:
            server.loop.call_later(0.5, self._arrive, batch)
        elif self.process.is_dead and chance.random() < 0.5:
            self._is_carrying = False  # it died before the request was out
        elif chance.random() < server.refuses:
            self._answer(batch, [StoreError("the database does not answer")] * len(batch))
        else:
            self._ask(batch)

    def _ask(self, batch: Sequence[Asked]) -> None:
        store, server = self.server.store, self.server
        asked = [getattr(server if name == "revision" else store, name)(*args, **kwargs) for name, args, kwargs, _ in batch]
        waiting = [future for future in asked if not future.done()]
        left = len(waiting)

        def answered(_: object = None) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._carried_out(batch, asked)

        for future in waiting:
            future.add_done_callback(answered)
        if not waiting:
            answered()

    def _carried_out(self, batch: Sequence[Asked], asked: Sequence[asyncio.Future[Any]]) -> None:
        answers: list[Any] = []
        for (name, args, _, _), future in zip(batch, asked, strict=True):
            error = future.exception()
            if error is None:
                self._done(name, args, future.result())
            answers.append(future.result() if error is None else error)
        self.server.loop.call_later(self.server.latency_s * self.server.chance.random(), self._answer, batch, answers)

    def _done(self, name: str, args: tuple[Any, ...], answer: Any) -> None:
        """What it means for the other managers, and for who judges the run."""
        server = self.server
        if name == "renew":
            now = server.loop.time()
            server.renewals.extend(Renewal(session, now) for session, known in zip(args[0], answer, strict=True) if known)
        elif name == "begin":
            server.renewals.extend(Renewal(number, server.loop.time()) for number in answer)
        elif name in ("offer", "pause", "schedule"):
            server.revised += 1
            server.hint(self, News((), has_ended=False, is_more=True))
        elif name == "submit":
            lanes = {job.spec.lane for submission in args[0] for job in submission.jobs}
            server.hint(self, News(tuple(sorted(lanes)), has_ended=False, is_more=False))
        elif name == "finish":
            server.hint(self, News((), has_ended=True, is_more=False))
        elif name == "due" and answer.lanes:
            server.hint(self, News(answer.lanes, has_ended=False, is_more=False))
        elif name == "rescue" and answer:
            server.hint(self, News(tuple(sorted({one.job.lane for one in answer})), has_ended=True, is_more=False))
        elif name == "fire" and args[0]:
            server.hint(self, News((), has_ended=False, is_more=True))

    def _answer(self, batch: Sequence[Asked], answers: Sequence[Any]) -> None:
        if not self.process.is_dead:
            for (_, _, _, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                    future.exception()
                else:
                    future.set_result(answer)
        self._depart()


for _name in VERBS:
    setattr(View, _name, _verb(_name))

__all__ = ["FINAL", "InlineSqliteStore", "MemorySqliteStore", "JobState", "Server", "View"]
