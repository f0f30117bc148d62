"""Between the pool, which lives on the loop of the tasks, and what connects it to a manager, which may live in another thread.

Everything that crosses is in this module: an `Inbox` of jobs one way, the methods of `Carrier` the other. The link (a thread with a
socket) and the loopback (the manager's own process) are carriers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple, Protocol

from easyjobs.domain.job import Claimed, Report
from easyjobs.domain.seeing import News
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult

OVERDUE_S: Final = 0.1  # a job that has waited here for so long is better off elsewhere


class Room(NamedTuple):
    """How many unfinished attempts the pool takes: as many as there are slots, and some more so that no slot waits for the wire."""

    slots: int
    prefetch: int


class Inbox:
    """Jobs that came and have not started. Filled by the carrier; taken from the left by the pool, or back by the carrier.

    A deque's ends are safe to use from two threads, so each job goes to exactly one of them.
    """

    __slots__ = ("_marks", "_put", "_seen", "jobs")

    def __init__(self) -> None:
        self.jobs: deque[Claimed] = deque()
        self._put = 0  # jobs ever put in
        self._marks: deque[tuple[float, int]] = deque()  # (when, `_put` after it)
        self._seen = 0  # `_put` of the newest mark that is old enough

    def put(self, jobs: Sequence[Claimed], now: float) -> None:
        """Add jobs. `now`: seconds, of the clock that `overdue` is asked with too."""
        self._put += len(jobs)
        self.jobs.extend(jobs)
        self._marks.append((now, self._put))

    def overdue(self, now: float) -> list[Claimed]:
        """Take back the jobs that have waited for `OVERDUE_S` or longer."""
        marks = self._marks
        while marks and marks[0][0] <= now - OVERDUE_S:
            self._seen = marks.popleft()[1]
        taken = self._put - len(self.jobs)  # jobs leave in the order in which they came
        return self.take_back(self._seen - taken)

    def take_back(self, most: int | None = None) -> list[Claimed]:
        """Take up to `most` jobs, oldest first; all if None."""
        back: list[Claimed] = []
        while most is None or len(back) < most:
            try:
                back.append(self.jobs.popleft())
            except IndexError:
                break
        return back


class Carrier(Protocol):
    """What the pool and the tasks need of a manager. Called on the loop of the tasks; nothing here blocks."""

    def report(self, report: Report) -> None:
        """Tell the manager how an attempt ended; repeated until it is acknowledged. Reports of one turn of the loop go together."""
        ...

    def nudge(self) -> None:
        """The pool's `room()` has changed without a report."""
        ...

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """Return the jobs' ids when they are stored, all or none: where a job is found that is there already, that one's.

        Raises: SubmitError, StoreError, ConnectionFailed.
        """
        ...

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """Do something to jobs ("cancel", "retry", "run_now", "delete"): for each whether it was done, and its state (-1: no such job).

        Raises: StoreError, ConnectionFailed.
        """
        ...

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """Return how the job ended. Raises: TimeoutError, ConnectionFailed."""
        ...

    def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """What is new of a job, in batches, until its end; after a lost connection some may be repeated. Raises: UnknownJob, ConnectionFailed."""
        ...
