"""The link inside the manager's own process: its pool is a session like any other, without a socket, a thread or frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Final, Protocol

from easyjobs.domain.job import Claimed, Report
from easyjobs.domain.seeing import Line, Mark, News
from easyjobs.errors import StoreError, StoreLost
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult
from easyjobs.runtime.log import WARNING, event
from easyjobs.workers.carrier import OVERDUE_S
from easyjobs.workers.executor import released
from easyjobs.workers.notebook import NOTES_S
from easyjobs.workers.pool import Pool, Stop

log = logging.getLogger("easyjobs.worker")

RETRY_S: Final = 0.5  # a store that could not take reports is asked again after so long


class LocalManager(Protocol):
    """What the loopback needs of the manager."""

    def report(self, items: list[Report]) -> Coroutine[Any, Any, list[int]]:
        """Apply reports; they are in the store's queue when this returns. Awaiting gives the stale seqs. Raises: StoreError."""
        ...

    def note(self, marks: list[Mark], lines: list[Line]) -> Coroutine[Any, Any, None]:
        """Keep what attempts show; it is in the store's queue when this returns. Raises: StoreError."""
        ...

    def credit(self, limit: int) -> None:
        """The pool takes up to `limit` jobs in all."""
        ...

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """See `Carrier.submit`."""
        ...

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """See `Carrier.control`."""
        ...

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """See `Carrier.result`."""
        ...

    def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """What is new of a job; empty batches say that nothing has come. Ends early when the manager closes."""
        ...


class Loopback:
    """The pool's `Carrier`, and the dispatcher's peer."""

    def __init__(self, pool: Pool, manager: LocalManager) -> None:
        self._pool, self._manager = pool, manager
        self._loop = asyncio.get_running_loop()
        self._reports: list[Report] = []
        self._flush_planned = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._ended = 0  # jobs reported since the start
        self._is_closed = False
        self._inbox_timer: asyncio.TimerHandle | None = None
        self._prefetch_is_off = False
        self._notes_timer: asyncio.TimerHandle | None = None
        self._noted_at = 0.0
        pool.notebook.wake = self._notes_wait

    # --- the dispatcher's peer --------------------------------------------------------------------------------------------------

    def run(self, jobs: list[Claimed]) -> None:
        """Start jobs."""
        self._pool.inbox.put(jobs, self._loop.time())
        self._pool.wake()
        if self._inbox_timer is None:
            self._inbox_timer = self._loop.call_later(OVERDUE_S, self._check_inbox)

    def _check_inbox(self) -> None:
        """Jobs that wait here although a worker could run them go back; no more than the slots hold come until the next report."""
        overdue = self._pool.inbox.overdue(self._loop.time())
        if overdue:
            self._prefetch_is_off = True
            for claimed in overdue:
                self.report(released(claimed))
        waits = self._pool.inbox.jobs and not self._is_closed
        self._inbox_timer = self._loop.call_later(OVERDUE_S, self._check_inbox) if waits else None

    def cancel(self, jobs: list[tuple[int, int]]) -> None:
        """Stop attempts."""
        self._pool.stop(jobs, Stop.CANCELLED)

    def close(self, code: int, reason: str) -> None:
        """There is no connection to end."""

    # --- the pool's carrier -----------------------------------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """See `Carrier.report`."""
        self._reports.append(report)
        self.nudge()

    def nudge(self) -> None:
        """See `Carrier.nudge`."""
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """See `Carrier.submit`. From any loop."""
        ids: Sequence[bytes] = await self._here(self._manager.submit(items, options))
        return ids

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """See `Carrier.control`. From any loop."""
        answers: Sequence[tuple[bool, int]] = await self._here(self._manager.control(verb, ids))
        return answers

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """See `Carrier.result`. From any loop."""
        ended: WatchedResult = await self._here(self._manager.result(id, timeout))
        return ended

    async def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """See `Carrier.follow`. From any loop."""
        stream = self._manager.follow(id)
        try:
            while (news := await self._here(_next(stream))) is not None:
                if news:
                    yield news
        finally:
            await self._here(_close(stream))

    async def _here(self, call: Coroutine[Any, Any, Any]) -> Any:
        if asyncio.get_running_loop() is self._loop:
            return await call
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))  # a plain task, in its thread

    def _notes_wait(self) -> None:
        """There is something in the notebook. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._plan_notes)

    def _plan_notes(self) -> None:
        if self._notes_timer is None:
            self._notes_timer = self._loop.call_later(max(0.0, self._noted_at + NOTES_S - self._loop.time()), self._send_notes)

    def _send_notes(self) -> None:
        self._notes_timer, self._noted_at = None, self._loop.time()
        marks, lines = self._pool.notebook.take()
        if marks or lines:
            task = self._loop.create_task(self._keep_notes(self._manager.note(marks, lines), len(lines)), name="easyjobs-notes")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    @staticmethod
    async def _keep_notes(noted: Coroutine[Any, Any, None], lines: int) -> None:
        try:
            await noted
        except StoreError as why:
            event(log, WARNING, "lines.dropped", lines=lines, reason=str(why))

    def _flush(self) -> None:
        self._flush_planned = False
        items, self._reports = self._reports, []
        if items:
            if not self._pool.notebook.is_empty:  # before the reports, so that it is there when the result is
                self._send_notes()
            self._ended += len(items)
            task = self._loop.create_task(self._deliver(items, self._manager.report(items)), name="easyjobs-loopback")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if not self._is_closed:
            room = self._pool.room()
            prefetch = 0 if self._prefetch_is_off else room.prefetch
            self._prefetch_is_off = False
            self._manager.credit(self._ended + room.slots + prefetch)  # after the reports: the claim joins their transaction

    async def _deliver(self, items: list[Report], first: Coroutine[Any, Any, list[int]]) -> None:
        """Repeat until the store has taken them: a report is never dropped."""
        reported = first
        while True:
            try:
                await reported
            except StoreLost:
                return  # the store's own error has been logged; what ran runs again when the file is back
            except StoreError as why:
                log.warning("%d reports wait: %s", len(items), why)
            else:
                return
            await asyncio.sleep(RETRY_S)
            reported = self._manager.report(items)

    async def close_reports(self, flush_s: float) -> bool:
        """Take no more jobs, and wait up to `flush_s` until all reports are stored. Returns whether they are."""
        self._is_closed = True
        self._flush()
        if self._under_way:
            await asyncio.wait(list(self._under_way), timeout=flush_s)
        return not self._under_way


async def _next(stream: AsyncGenerator[list[News], None]) -> list[News] | None:
    return await anext(stream, None)


async def _close(stream: AsyncGenerator[list[News], None]) -> None:
    await stream.aclose()
