"""Runs attempts: at most as many bodies at once as there are slots, with as much waiting beside them as keeps the slots busy.

Everything runs on the loop of the tasks. One asyncio task per attempt: it gives the body its own context variables, and
`asyncio.current_task()` and `asyncio.timeout()` what they expect; 3 µs of a no-op job are its price (measured: running a coroutine's first
step without a task saves them, but hands it a context and a current task that are not its own).

A job that waits for another job gives its slot back (`Attempt.waiting`), and when it resumes takes the next free slot before any new
job. So a pipeline cannot lock itself up, however few slots there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import copy_context
from enum import Enum
from typing import Any, Final

import msgspec

from easyjobs.domain.job import Claimed, ErrorInfo, Outcome, Report
from easyjobs.domain.seeing import MAX_MESSAGE, OUR_LOGGER, Mark
from easyjobs.runtime.clock import stopwatch
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import INFO, WARNING, event
from easyjobs.tasks import JobContext, Task
from easyjobs.workers.carrier import Carrier, Inbox, Room
from easyjobs.workers.child import Child
from easyjobs.workers.children import Children, log_output, run_in_child
from easyjobs.workers.countdown import Countdown
from easyjobs.workers.executor import ended_late, released, run_async, run_awaitable, run_plain, unknown
from easyjobs.workers.notebook import Notebook, capture, cut, text_of
from easyjobs.workers.threads import Threads

log = logging.getLogger("easyjobs.worker")

PREFETCH_US: Final = 10_000  # of work, going by the bodies alone
WINDOW_S: Final = 0.02  # of work, going by how many jobs end
MIN_WINDOW: Final = 32
MEASURE_S: Final = 0.005
MAX_PREFETCH: Final = 1000
SLOW_US: Final = 50_000  # a task that takes longer needs no prefetch
SAMPLES: Final = 15  # run times remembered per lane
NAMES: Final = {
    Outcome.SUCCEEDED: "attempt.succeeded",
    Outcome.FAILED: "attempt.failed",
    Outcome.RELEASED: "attempt.released",
    Outcome.SNOOZED: "attempt.snoozed",
}
NO_ATTEMPT: Final = 0  # they begin at 1
STOP_S: Final = 3.0  # how long bodies may take to end after they were cancelled


class Stop(Enum):
    """Why an attempt should end."""

    CANCELLED = "cancelled"  # by somebody: report it released at once
    LOST = "lost"  # it belongs to another worker now: say nothing
    SHUTDOWN = "shutdown"  # this worker ends, or its lease has: give the job back


class Attempt(JobContext):
    """A running attempt, and the context that its body sees. Defaults are on the class, as most attempts keep them."""

    stop: Stop | None = None
    began = False
    is_reported = False
    has_slot = True
    waits = 0
    """Branches of the body that wait for another job."""
    handle: asyncio.Task[None] | None = None
    child: Child | None = None
    """The process that it runs in; set by its thread, once there is one."""
    error: ErrorInfo | None = None
    started = 0.0
    """When the body began; 0.0: not yet."""
    timed_out = False
    countdown: Countdown | None = None
    lines = 0
    """Log lines so far, those included that were dropped; all four are the notebook's."""
    line_bytes = 0
    dropped_lines = 0
    last_line_at = 0

    def __init__(self, claimed: Claimed, task: Task[..., Any], pool: Pool) -> None:
        self._claimed = claimed
        self._task = task
        self._pool = pool

    def count_down(self) -> None:
        """The body begins: its timeout runs from now on. On the loop."""
        self.countdown = Countdown(self._pool.loop, self._claimed.timeout_us / 1_000_000, lambda: self._pool.time_out(self))

    def is_being_stopped(self) -> bool:
        """Whether a `CancelledError` that leaves the body is our doing (or that of a loop that ends), and not its own."""
        return self.stop is not None or self._pool.is_ending()

    def is_loop_running(self) -> bool:
        """Whether a `GeneratorExit` that leaves the body is its own, and not that of a loop that is torn down."""
        return self._pool.loop.is_running()

    def is_worker_ending(self, within_s: float) -> bool:
        """Whether the worker ends, or begins to within some seconds. For threads: it waits."""
        return self._pool.ending.wait(within_s)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """See `JobContext.progress`."""
        done = _number("done", done)
        total = None if total is None else _number("total", total)
        if not self.is_reported:
            claimed = self._claimed
            self._pool.notebook.mark(Mark(claimed.seq, claimed.attempt, done, total, cut(str(message)[:MAX_MESSAGE])))

    def _logged(self, record: logging.LogRecord) -> None:
        """See `JobContext._logged`. Our own lines about attempts are not the job's."""
        name = record.name
        if not name.startswith("easyjobs.") or name == OUR_LOGGER:
            self.write_line(record.levelno, name, text_of(record), int(record.created * 1_000_000))

    def write_line(self, level: int, logger: str, text: str, at: int) -> None:
        """Add a line to the job's log. From any thread. `level` as in `logging`; `at`: microseconds since 1970."""
        if not self.is_reported:
            self._pool.notebook.write(self, level, logger, text, at)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """See `JobContext.waiting`."""
        pool = self._pool
        if asyncio.get_running_loop() is pool.loop:
            pool.park(self)
            try:
                yield
            finally:
                await pool.resume(self)
        else:  # a plain task that runs a loop of its own in its thread
            await _elsewhere(pool.loop, lambda: pool.park(self))
            try:
                yield
            finally:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(pool.resume(self), pool.loop))


def _number(name: str, value: float) -> float:
    """A number that msgpack, JSON and SQLite can carry."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: progress is a number, not {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: progress is a finite number from 0 on")
    return value if value < 2**53 else float(value)


async def _elsewhere(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    async def run() -> None:
        call()

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), loop))


class Pool:
    """The slots of a worker, or of a manager that runs its own tasks.

    Args:
        slots: bodies that may run at once.
        name: for the names of threads, and in logs.

    `carrier` must be set before the first job comes; `lanes` is filled as the manager numbers the tasks.
    """

    carrier: Carrier

    def __init__(self, *, slots: int, name: str = "easyjobs") -> None:
        self.loop = asyncio.get_running_loop()
        self.slots = self.free = slots
        self.lanes: dict[int, Task[..., Any]] = {}
        self.inbox = Inbox()
        self._jobs = self.inbox.jobs
        self.notebook = Notebook()
        capture()
        self._threads = Threads(name)
        self._children = Children(slots)
        self.on_output = log_output
        """Gets what children print; see `children.OnOutput`."""
        self._running: dict[Attempt, None] = {}
        self._resuming: deque[asyncio.Future[None]] = deque()
        self._parked = 0
        self._zombies = 0  # attempts that were reported but still run: their slots are taken
        self._recent: dict[int, deque[int]] = {}
        self._in_play: set[int] = set()
        self._in_play_before: set[int] = set()
        self._in_play_since = 0.0
        self._window = MIN_WINDOW
        self._was_empty = True  # the inbox, while a slot was free, since the last measurement
        self._ended_count = 0
        self._measured_at = 0.0
        self._is_draining = False
        self._is_paused = False
        self.ending = threading.Event()
        """Set when the drain begins, for threads."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_ending: Callable[[], bool] = lambda: False
        self.sync_done: deque[tuple[Attempt, Any]] = deque()
        self._sync_woken = False

    # --- jobs come --------------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look into the inbox."""
        if self._is_draining or self._is_paused:
            self._give_back(self.inbox.take_back())
            return
        while self.free > 0:
            if self._resuming:
                self._let_resume()
                continue
            try:
                claimed = self._jobs.popleft()
            except IndexError:
                self._was_empty = True
                return
            self._start(claimed)

    def _start(self, claimed: Claimed) -> None:
        lane = claimed.lane
        task = self.lanes.get(lane)
        if task is None:
            self.carrier.report(unknown(claimed))
            return
        attempt = Attempt(claimed, task, self)
        self._running[attempt] = None
        self.free -= 1
        self._in_play.add(lane)
        if task.program is not None:
            self._threads.run(lambda: self._run_in_thread(attempt, self._run_in_child))
        elif task.is_async:
            attempt.handle = self.loop.create_task(run_async(attempt, self.ended))
        else:
            if claimed.timeout_us:
                attempt.count_down()
            context = copy_context()
            self._threads.run(lambda: context.run(self._run_in_thread, attempt, run_plain))

    def _run_in_child(self, attempt: Attempt) -> Report:
        return run_in_child(attempt, self._children, self.on_output)

    def _run_in_thread(self, attempt: Attempt, run: Callable[[Attempt], Any]) -> None:
        self.sync_done.append((attempt, run(attempt)))
        if not self._sync_woken:
            self._sync_woken = True
            try:
                self.loop.call_soon_threadsafe(self._sync_ended)
            except RuntimeError:  # the loop is closed: there is nobody to tell
                return

    def _sync_ended(self) -> None:
        self._sync_woken = False
        done = self.sync_done
        while done:
            attempt, outcome = done.popleft()
            if isinstance(outcome, Report):
                self.ended(attempt, outcome)
            else:
                attempt.handle = self.loop.create_task(run_awaitable(attempt, outcome, self.ended))
                if attempt.stop is not None or attempt.timed_out:
                    attempt.handle.cancel()

    # --- attempts end -----------------------------------------------------------------------------------------------------------

    def ended(self, attempt: Attempt, report: Report) -> None:
        """The body of an attempt has ended."""
        running = self._running
        if attempt not in running:
            return  # abandoned meanwhile
        del running[attempt]
        if attempt.countdown is not None:
            attempt.countdown.pause()
        self._ended_count += 1
        lane = attempt._claimed.lane
        recent = self._recent.get(lane)
        if recent is None:
            recent = self._recent[lane] = deque(maxlen=SAMPLES)
        recent.append(report.ran_us)
        was_reported = attempt.is_reported
        if attempt.dropped_lines:
            self.notebook.ended(attempt)
        if was_reported:
            self._zombies -= 1
            self.carrier.nudge()
        else:
            attempt.is_reported = True
            if attempt.stop is Stop.LOST:  # by now its number may be that of another one here: after a restore both begin again
                report = msgspec.structs.replace(report, attempt=NO_ATTEMPT)
            self.carrier.report(report)
        level = WARNING if report.outcome is Outcome.FAILED else INFO
        if log.isEnabledFor(level) and not (was_reported and attempt.timed_out):  # then that was told
            self._tell(attempt, report, level)
        if attempt.has_slot:
            attempt.has_slot = False
            self._freed()
        else:
            self._parked -= 1
        if not running:
            self._idle.set()

    def _freed(self) -> None:
        """A slot is free: for a job that resumes, else for a new one."""
        self.free += 1
        if self._resuming:
            self._let_resume()
        elif self._jobs:
            self.wake()
        else:
            self._was_empty = True

    def _tell(self, attempt: Attempt, report: Report, level: int) -> None:
        name = NAMES[report.outcome]
        claimed, task, error = attempt._claimed, attempt._task, attempt.error
        event(
            log,
            level,
            name,
            job_id=id_text(claimed.id),
            queue=task.queue,
            task=task.name,
            attempt=claimed.attempt,
            ran_ms=round(report.ran_us / 1000, 1),
            error=f"{error.type}: {error.message}" if error is not None else report.body.decode() if level == WARNING else None,
            retryable=report.retry if level == WARNING else None,
        )

    def _give_back(self, jobs: Iterable[Claimed]) -> None:
        for claimed in jobs:
            self.carrier.report(released(claimed))

    # --- slots ------------------------------------------------------------------------------------------------------------------

    def room(self) -> Room:
        """How many unfinished attempts this pool takes now."""
        if self._is_paused:
            return Room(0, 0)
        slots = max(0, self.slots + self._parked - self._zombies)
        return Room(slots, self._prefetch())

    def pause(self, is_paused: bool) -> None:
        """Start no more jobs, and give back those that have not started; or go on. What runs, runs on."""
        self._is_paused = is_paused
        self.wake()
        self.carrier.nudge()

    def _prefetch(self) -> int:
        """How many jobs to have at hand: at most 10 ms of work, going by the slowest task in play; none if one is slow or unknown.

        That counts bodies only. What a job costs besides shows in how many end: while the inbox never runs empty, the window is what
        ends in 20 ms; when it does run empty, the window doubles.
        """
        if self._is_draining:
            return 0
        now = stopwatch()
        for attempt in self._running:  # oldest first
            if attempt.has_slot and attempt.started:
                if now - attempt.started > SLOW_US / 1_000_000:
                    return 0
                break
        slowest = 1
        if not self._recent:
            return 0
        for lane in self._in_play | self._in_play_before:
            recent = self._recent.get(lane)
            if recent is None:
                return 0
            slowest = max(slowest, sorted(recent)[len(recent) // 2])
        if now - self._in_play_since > 0.1:
            self._in_play_since = now
            self._in_play_before, self._in_play = self._in_play, set()
        took = now - self._measured_at
        if took > MEASURE_S and self._ended_count:
            if self._was_empty:
                self._window = min(MAX_PREFETCH, self._window * 2)
            else:
                self._window = max(MIN_WINDOW, min(MAX_PREFETCH, int(self._ended_count / took * WINDOW_S)))
            self._was_empty, self._ended_count, self._measured_at = False, 0, now
        return 0 if slowest > SLOW_US else min(self._window, self.slots * PREFETCH_US // slowest)

    def park(self, attempt: Attempt) -> None:
        """The attempt (or one branch of its body) waits for another job: its slot is free meanwhile."""
        attempt.waits += 1
        if attempt.has_slot and attempt in self._running and not attempt.is_reported:
            attempt.has_slot = False
            if attempt.countdown is not None:
                attempt.countdown.pause()
            self._parked += 1
            self.carrier.nudge()
            self._freed()

    async def resume(self, attempt: Attempt) -> None:
        """The attempt goes on: return when it has a slot again.

        While other branches of its body still wait, it goes on without one: it may do no more than wait for them (`gather`), and the
        jobs that they wait for may need this very slot.
        """
        attempt.waits -= 1
        if attempt.waits or attempt.has_slot or attempt.stop is not None or attempt not in self._running:
            return  # another branch of the body took it; or the body ends, and needs none for that
        if self.free <= 0 or self._resuming:
            turn: asyncio.Future[None] = self.loop.create_future()
            self._resuming.append(turn)
            try:
                await turn  # comes with a slot that is not free any more
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._freed()
                raise
            if attempt.has_slot or attempt not in self._running:
                self._freed()
                return
            self.free += 1
        attempt.has_slot = True
        if attempt.countdown is not None:
            attempt.countdown.go_on()
        self.free -= 1
        self._parked -= 1
        self.carrier.nudge()

    def _let_resume(self) -> None:
        while self._resuming:
            turn = self._resuming.popleft()
            if not turn.done():
                self.free -= 1
                turn.set_result(None)
                return

    # --- stopping ---------------------------------------------------------------------------------------------------------------

    def stop(self, attempts: Iterable[tuple[int, int]], why: Stop) -> None:
        """End these attempts (seq, attempt); those that this pool does not have are passed over."""
        wanted = set(attempts)
        for claimed in [job for job in self._jobs if (job.seq, job.attempt) in wanted]:
            try:
                self._jobs.remove(claimed)
            except ValueError:
                continue  # the carrier took it back
            wanted.discard((claimed.seq, claimed.attempt))
            self.carrier.report(released(claimed))
        if wanted:
            for attempt in list(self._running):
                if (attempt._claimed.seq, attempt._claimed.attempt) in wanted:
                    self._stop(attempt, why)

    def stop_all(self, why: Stop) -> None:
        """End all attempts."""
        self._give_back(self.inbox.take_back())
        for attempt in list(self._running):
            self._stop(attempt, why)

    def _stop(self, attempt: Attempt, why: Stop) -> None:
        if attempt.stop is None:
            attempt.stop = why
        attempt.cancel_requested = True
        handle = attempt.handle
        if handle is not None:
            if attempt.began:  # else it stops before its body begins
                handle.cancel()
        elif attempt._task.program is not None:
            if attempt.child is not None:  # else its thread looks at `stop` when there is one
                attempt.child.stop()
        elif why is Stop.CANCELLED and not attempt.is_reported:
            # A thread cannot be ended. What becomes of its job is decided now; its slot stays taken until it ends.
            attempt.is_reported = True
            self._zombies += 1
            self.carrier.report(released(attempt._claimed))

    def time_out(self, attempt: Attempt) -> None:
        """The attempt has run for longer than it may. What can be cancelled is, and reported when it ends."""
        if attempt not in self._running or attempt.is_reported or attempt.stop is not None:
            return
        attempt.timed_out = attempt.cancel_requested = True
        if attempt.handle is None:
            self._give_up_on(attempt)  # a thread cannot be ended
        else:
            attempt.handle.cancel()
            self.loop.call_later(STOP_S, self._give_up_on, attempt)

    def _give_up_on(self, attempt: Attempt) -> None:
        """What becomes of a job whose body does not end is decided now; its slot stays taken until it ends."""
        if attempt in self._running and not attempt.is_reported and attempt.stop is None:
            attempt.is_reported = True
            self._zombies += 1
            report = ended_late(attempt, attempt._claimed.timeout_us)
            self.carrier.report(report)
            self._tell(attempt, report, WARNING)

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Take nothing new; let bodies run for `grace_s`, or until `hurry` is set; cancel the rest; give back what does not end.

        Afterwards nothing is unreported.
        """
        self._is_draining = True
        self.ending.set()
        self._give_back(self.inbox.take_back())
        self.carrier.nudge()
        if self._running and not hurry.is_set():
            self._idle.clear()
            await _either(self._idle, hurry, grace_s)
        if self._running:
            left = [attempt for attempt in self._running if not attempt.is_reported]
            event(log, WARNING, "worker.gave_up_waiting", running=len(self._running), unreported=len(left))
            self.stop_all(Stop.SHUTDOWN)
            if self._some_will_end():
                self._idle.clear()
                self._watch_async()
                await _either(self._idle, None, STOP_S)
        self.abandon()

    def _some_will_end(self) -> bool:
        return any(attempt.handle is not None or attempt._task.program is not None for attempt in self._running)

    def _watch_async(self) -> None:
        """Threads will not end for our asking: when only they are left, waiting is over."""
        if not self._some_will_end():
            self._idle.set()
        elif not self._idle.is_set():
            self.loop.call_later(0.02, self._watch_async)

    def abandon(self) -> None:
        """Give back what still runs, without waiting for it. What it returns later is not reported."""
        self._is_draining = True
        self._give_back(self.inbox.take_back())
        for attempt in list(self._running):
            del self._running[attempt]
            if not attempt.is_reported:
                attempt.is_reported = True
                self.carrier.report(released(attempt._claimed))
        self._children.close()
        self._threads.close()
        self._idle.set()

    @property
    def running(self) -> int:
        """Attempts that run or wait for another job."""
        return len(self._running)


async def _either(one: asyncio.Event, other: asyncio.Event | None, timeout_s: float) -> None:
    """Wait until one of the events is set, or time is up."""
    waits = [asyncio.ensure_future(event.wait()) for event in (one, other) if event is not None]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
