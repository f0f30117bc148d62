"""Who follows which job, and what is new of it.

It costs nothing while nobody follows: the parts that change jobs look at `followed`, which is empty then. A follower is only told that there is
something, and which states the job went through; it reads the rest from the store, from where it stands. So a slow reader costs no memory,
and one that comes back with the place of its last line misses none and gets none twice.

A job that is followed at another manager over the same store counts as followed too: what is new of it is told by way of `on_shown`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from easyjobs.domain.job import Claimed
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.seeing import Glance, Line, Look, Mark, News, Notes, Place, Progress, StateChanged
from easyjobs.errors import UnknownJob
from easyjobs.ports.store import Store, token
from easyjobs.runtime.ids import id_text
from easyjobs.services.dispatcher import Session
from easyjobs.services.results import End, Results

PAGE: Final = 200  # lines that one reading takes
MAX_STATES: Final = 64  # changes of state that one follower may be behind; older ones are left out
IDLE_S: Final = 15.0  # a job of which nothing was heard for so long is looked at again


class _Follower:
    """One who follows a job."""

    __slots__ = ("id", "states", "woken")

    def __init__(self, id: bytes) -> None:
        self.id = id
        self.states: deque[tuple[JobState, int]] = deque(maxlen=MAX_STATES)
        self.woken = asyncio.Event()

    def ended(self, _: End) -> None:
        self.woken.set()


class Followed:
    """The jobs that somebody follows: `here`, or at another manager (`elsewhere`, by token; None: it may be any job)."""

    __slots__ = ("elsewhere", "here")

    def __init__(self) -> None:
        self.here: dict[bytes, list[_Follower]] = {}
        self.elsewhere: frozenset[int] | None = frozenset()

    def __len__(self) -> int:
        return len(self.here) + (1 if self.elsewhere is None else len(self.elsewhere))

    def __contains__(self, id: object) -> bool:
        return id in self.here or (isinstance(id, bytes) and self.is_elsewhere(id))

    def is_elsewhere(self, id: bytes) -> bool:
        """Whether others want to know of this job."""
        return self.elsewhere is None or (bool(self.elsewhere) and token(id) in self.elsewhere)


class Events:
    """The table of followers. Everything runs on the manager's loop.

    `on_follow` is called when another job is followed here, or one no longer; `on_shown` for each job that others follow, when it has something new.
    """

    def __init__(self, store: Store, results: Results) -> None:
        self._store, self._results = store, results
        self.followed = Followed()
        self.on_follow: Callable[[], None] = lambda: None
        self.on_shown: Callable[[bytes], None] = lambda _: None
        self.is_closed = False

    # --- what the manager's parts say -------------------------------------------------------------------------------------------

    def note(self, session: Session, marks: Sequence[Mark], lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        """Store what attempts of a session show. It is in the store's queue when this returns, before the coroutine is awaited.

        Raises: StoreError, then nothing was kept.
        """
        stored = self._store.note((Notes(session.number, marks, lines),))
        seqs: set[int] = set()
        if self.followed:
            seqs = {mark.seq for mark in marks} | {line.seq for line in lines}
        ids = [job.id for job in map(session.running.get, seqs) if job is not None and job.id in self.followed]
        return self._noted(stored, ids)

    async def _noted(self, stored: Awaitable[Any], ids: list[bytes]) -> None:
        await stored
        for id in ids:
            self.wake(id)

    def changed(self, id: bytes, state: JobState, attempt: int) -> None:
        """The job is in `state` now. To be called after the commit, for ids in `followed`; does nothing for others."""
        for follower in self.followed.here.get(id, ()):
            follower.states.append((state, attempt))
            follower.woken.set()
        if self.followed.is_elsewhere(id):
            self.on_shown(id)

    def claimed(self, job: Claimed) -> None:
        """The job runs now."""
        self.changed(job.id, JobState.RUNNING, job.attempt)

    def look_again(self) -> None:
        """Something has changed, and it is not known of which jobs."""
        for followers in self.followed.here.values():
            for follower in followers:
                follower.woken.set()

    def look_at(self, tokens: Sequence[int]) -> None:
        """Another manager says that these have something new."""
        wanted = set(tokens)
        for id, followers in self.followed.here.items():
            if token(id) in wanted:
                for follower in followers:
                    follower.woken.set()

    def wake(self, id: bytes) -> None:
        """Something of this job has changed. Does nothing for jobs that nobody follows."""
        for follower in self.followed.here.get(id, ()):
            follower.woken.set()
        if self.followed.is_elsewhere(id):
            self.on_shown(id)

    def close(self) -> None:
        """The manager is going down: every stream ends at once."""
        self.is_closed = True
        self.look_again()

    # --- what followers ask -----------------------------------------------------------------------------------------------------

    async def follow(self, id: bytes, after: Place = (0, 0), idle_s: float = IDLE_S) -> AsyncGenerator[list[News], None]:
        """What is new of a job, as it comes: first its state, its progress and the lines after `after`; the last is its final state.

        An empty list says that nothing has come for `idle_s`. Ends early when the manager closes, or the job is deleted.

        Raises: UnknownJob, StoreError.
        """
        follower = _Follower(id)
        followers = self.followed.here.setdefault(id, [])
        followers.append(follower)
        if len(followers) == 1:
            self.on_follow()
        self._results.add(id, follower.ended)  # whoever ends a job tells there
        try:
            reading = Reading(after)
            while True:
                follower.woken.clear()
                while follower.states:
                    reading.told.append(follower.states.popleft())
                [look] = await self._store.look([Glance(id, reading.place, PAGE)])
                if look is None:
                    if reading.last is None:
                        raise UnknownJob(id_text(id))
                    return
                news = reading.news(look)
                if news:
                    yield news
                if look.is_more:
                    continue
                if look.state.is_final or self.is_closed:
                    return
                try:
                    async with asyncio.timeout(idle_s):
                        await follower.woken.wait()
                except TimeoutError:
                    yield []
        finally:
            self._results.unwatch([id], follower.ended)
            followers.remove(follower)
            if not followers:
                del self.followed.here[id]
                self.on_follow()


class Reading:
    """Where one follower stands, and so what is new to it. No I/O.

    `place` is that of the last line that it has; `last` the last state and attempt, None before the first; `told` the states that it was told of.
    """

    def __init__(self, after: Place = (0, 0)) -> None:
        self.place = after
        self.last: tuple[JobState, int] | None = None
        self.told: deque[tuple[JobState, int]] = deque(maxlen=MAX_STATES)
        self._progress: Progress | None = None

    def news(self, look: Look) -> list[News]:
        """What this look shows that was not shown before, in an order in which it may have happened.

        While there are more lines than one look takes, they come first; the states that the job went through meanwhile come with the last of
        them. A final state is the last of all.
        """
        lines: list[News] = list(look.lines)
        first: list[News] = []
        if look.lines:
            self.place = (look.lines[-1].attempt, look.lines[-1].number)
        if self.last is None and not look.state.is_final:
            first.append(self._enter(look.state, look.attempt))
        if look.progress is not None and look.progress != self._progress:
            self._progress = look.progress
            (first or lines).append(look.progress)
        if look.is_more:
            return first + lines
        states: list[News] = []
        while self.told:
            state, attempt = self.told.popleft()
            if self.last is None or _age(state, attempt) > _age(*self.last):
                states.append(self._enter(state, attempt))
        if self.last != (look.state, look.attempt):
            states.append(self._enter(look.state, look.attempt))
        return first + sorted([*lines, *states], key=_order)

    def _enter(self, state: JobState, attempt: int) -> StateChanged:
        self.last = (state, attempt)
        return StateChanged(state.text, attempt)


def _age(state: JobState, attempt: int) -> tuple[int, int]:
    """Grows along a job's life: attempt 1 runs, has ended and waits for its time, is queued again, attempt 2 runs …"""
    if state is JobState.RUNNING:
        return attempt, 0
    return attempt, 3 if state.is_final else 2 if state is JobState.QUEUED else 1


def _order(news: News) -> tuple[int, int]:
    """Sorts one batch: an attempt begins, logs and shows its progress, ends. (Sorting keeps the order of equals.)"""
    if isinstance(news, StateChanged):
        return news.attempt, 0 if news.state == JobState.RUNNING.text else 2
    return news.attempt, 1
