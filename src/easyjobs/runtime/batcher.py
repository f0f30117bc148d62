"""Group commit: how concurrent calls become one transaction.

A call enters a queue at once and gets a future. One batch at a time takes what is there, runs as one transaction and then resolves
all its futures; what comes in meanwhile waits for the next batch. So batches grow by themselves under load, and a call on an idle
store waits for nothing.

Each kind of work has its own queue and its own share of a batch. Nothing starves, and the biggest bulk submit delays a report by one
batch at most. How much of a kind waits is counted: where it is too much (`is_full`), whoever has something new for it can be told so at
once, instead of being queued until there is no memory left. Within a batch the kinds run in the order of their numbers; within a kind, first come, first served.

A batch runs in a thread of its own, so that the loop goes on while the database's C code runs (with the GIL released). A small batch
runs on the loop's thread instead, as long as recent commits were fast: two hand-overs between threads cost more than such a commit.

A batch that fails is halved until the call that is to blame fails alone; a `StoreError` says that the store, not a call, is to
blame, and fails the batch as a whole.

Another program may hold the store's lock (`StoreHeld`). The loop never waits for that: the batch goes to the thread, which tries it
again, as a whole, for at most `HELD_S`. If it fails then, all that waits behind it fails with it: nothing is answered ever later.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from easyjobs.errors import StoreError, StoreHeld
from easyjobs.runtime.clock import pause, stopwatch

MAX_ROWS: Final = 2_000  # of each kind in one batch; a single call is never split
MAX_BYTES: Final = 8 * 1024 * 1024  # the same, of payload
MAX_WAITING_ROWS: Final = 100_000  # of one kind, beside the batch that runs; above it the kind is full
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024  # the same, of payload
INLINE_ROWS: Final = 16  # a batch of at most so many rows may run on the loop's thread …
INLINE_S: Final = 0.001  # … while small batches take less than this on average
SLOW_S: Final = 0.1  # a batch that took longer counts as this: it may have waited for a lock
HELD_S: Final = 5.0  # so long a batch waits for a lock that another program holds
LOOK_AGAIN_S: Final = (0.005, 0.1)  # between two tries: at first, at most


class Call:
    """A call on its way: what to do, how big it is, and the future of its answer."""

    __slots__ = ("future", "kind", "rows", "size", "what")

    def __init__(self, kind: int, what: Any, rows: int, size: int, future: asyncio.Future[Any]) -> None:
        self.kind, self.what, self.rows, self.size, self.future = kind, what, rows, size, future


class Queues:
    """What waits: a queue for each kind, and how much there is in it."""

    def __init__(self, kinds: int) -> None:
        self._calls: tuple[deque[Call], ...] = tuple(deque() for _ in range(kinds))
        self._rows, self._bytes = [0] * kinds, [0] * kinds

    def __bool__(self) -> bool:
        return any(self._calls)

    def put(self, call: Call) -> None:
        """To the end of its kind's."""
        kind = call.kind
        self._calls[kind].append(call)
        self._rows[kind] += call.rows
        self._bytes[kind] += call.size

    def is_full(self, kind: int) -> bool:
        """Whether so much of this kind waits that no more should come. (What comes all the same is queued.)"""
        return self._rows[kind] >= MAX_WAITING_ROWS or self._bytes[kind] >= MAX_WAITING_BYTES

    def take(self) -> tuple[list[Call], int]:
        """The next batch, and its rows. Calls that were given up meanwhile are left out."""
        calls: list[Call] = []
        total = 0
        for kind, waiting in enumerate(self._calls):
            if not waiting:
                continue
            rows = size = 0
            while waiting and rows < MAX_ROWS and size < MAX_BYTES:
                call = waiting.popleft()
                if call.future.cancelled():
                    self._rows[kind] -= call.rows
                    self._bytes[kind] -= call.size
                    continue
                calls.append(call)
                rows += call.rows
                size += call.size
            self._rows[kind] -= rows
            self._bytes[kind] -= size
            total += rows
        return calls, total


class Batcher:
    """Collects calls and runs them in batches.

    Args:
        run: runs calls as one transaction and returns one answer each; all or nothing. Called by one thread at a time.
        kinds: how many kinds there are; a batch holds them in the order of their numbers.
        name: of the thread; None: there is none, every batch runs on the loop's thread.
    """

    def __init__(self, run: Callable[[list[Call]], Sequence[Any]], kinds: int, name: str | None) -> None:
        self._run = run
        self._queues = Queues(kinds)
        self.is_full = self._queues.is_full
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if name is not None:
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._thread.start()
        self._scheduled = False
        self._in_flight = False
        self._closed: StoreError | None = None
        self._idle: asyncio.Future[None] | None = None
        self._small_s = 0.0  # moving average of what small batches take

    def call(self, kind: int, what: Any, rows: int = 1, size: int = 0) -> asyncio.Future[Any]:
        """Queue a call; the future has its answer after the commit. Loop's thread only."""
        future = self._loop.create_future()
        if self._closed is not None:
            future.set_exception(self._closed)
            return future
        self._queues.put(Call(kind, what, rows, size, future))
        if not self._scheduled and not self._in_flight:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return future

    def in_thread(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `function` in the writer's thread, after what it has begun."""
        future = self._loop.create_future()

        def work() -> None:
            try:
                answer = function()
            except BaseException as error:  # noqa: BLE001 (it is raised where the future is awaited)
                self._loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, answer, None)

        self._work.put(work)
        return future

    async def close(self, error: StoreError) -> None:
        """Refuse further calls with `error`, finish those that are queued, end the thread."""
        if self._closed is None:
            self._closed = error
        if self._scheduled or self._in_flight:
            self._idle = self._loop.create_future()
            await self._idle
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()  # it has nothing left to do

    def _flush(self) -> None:
        self._scheduled = False
        calls, rows = self._queues.take()
        if not calls:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            return
        if self._thread is None or (rows <= INLINE_ROWS and self._small_s < INLINE_S):
            began = stopwatch()
            answers = self._attempt(calls, None)
            held = [call for call, answer in zip(calls, answers, strict=True) if answer.__class__ is StoreHeld]
            if not held or self._thread is None:
                self._resolve(calls, answers)
                self._small_s += (stopwatch() - began - self._small_s) * 0.1
                self._go_on()
                return
            for call, answer in zip(calls, answers, strict=True):
                if answer.__class__ is not StoreHeld:
                    self._resolve([call], [answer])
            calls = held
        self._in_flight = True
        self._work.put(lambda: self._in_thread(calls, rows))

    def _in_thread(self, calls: list[Call], rows: int) -> None:
        began = stopwatch()
        answers = self._attempt(calls, began + HELD_S)
        took = stopwatch() - began
        self._loop.call_soon_threadsafe(self._landed, calls, answers, rows, took)

    def _landed(self, calls: list[Call], answers: Sequence[Any], rows: int, took: float) -> None:
        self._in_flight = False
        if rows <= INLINE_ROWS:
            self._small_s += (min(took, SLOW_S) - self._small_s) * 0.1
        if answers and answers[-1].__class__ is StoreHeld:
            while waiting := self._queues.take()[0]:
                self._resolve(waiting, [answers[-1]] * len(waiting))
        self._go_on()  # first: the next batch runs while these callers go on
        self._resolve(calls, answers)

    def _go_on(self) -> None:
        if not self._scheduled and (self._queues or self._idle is not None):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _attempt(self, calls: list[Call], until: float | None) -> Sequence[Any]:
        """One answer each. `until`: when to give up a lock that another program holds; None: at once."""
        try:
            return self._run(calls) if until is None else self._run_patiently(calls, until)
        except StoreError as error:
            return [error] * len(calls)
        except Exception as error:  # noqa: BLE001 (it is the answer of the call that is to blame)
            if len(calls) == 1:
                wrapped = StoreError(f"{type(error).__name__}: {error}")
                wrapped.__cause__ = error
                return [wrapped]
            half = len(calls) // 2
            return [*self._attempt(calls[:half], until), *self._attempt(calls[half:], until)]

    def _run_patiently(self, calls: list[Call], until: float) -> Sequence[Any]:
        wait_s, longest_s = LOOK_AGAIN_S
        while True:
            try:
                return self._run(calls)
            except StoreHeld:
                if stopwatch() >= until:
                    raise
            pause(wait_s)
            wait_s = min(longest_s, wait_s * 2)

    @staticmethod
    def _resolve(calls: list[Call], answers: Sequence[Any]) -> None:
        for call, answer in zip(calls, answers, strict=True):
            future = call.future
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
