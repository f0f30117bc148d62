"""Which session gets which jobs: credit on one side, lanes with queued jobs on the other.

One claim is in the store at a time; while it is there, what comes up is remembered, and the next claim takes it all. A claim is
called in the same turn as the submit or report that made it possible, so that both share a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from easyjobs.domain.job import Claimed, Claims, Outcome, Report, Reports, Running, Want
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime import failpoints
from easyjobs.services.last_chances import LastChances

log = logging.getLogger("easyjobs.dispatcher")

MAX_PER_CLAIM: Final = 1000  # jobs that one session gets from one claim
WEDGED_S: Final = 120.0  # a worker whose loop has not turned for so long is not alive, whatever its link says
RETRY_S: Final = 0.5  # after a claim that the store refused
MAX_UNHEARD: Final = 10_000  # jobs that a session may have got although they were given back


class Peer(Protocol):
    """How a session is reached: a socket, or the manager's own pool."""

    def run(self, jobs: list[Claimed]) -> None:
        """Send jobs. Never blocks."""
        ...

    def cancel(self, jobs: list[tuple[int, int]]) -> None:
        """Ask to stop attempts: (seq, attempt). Never blocks."""
        ...

    def close(self, code: int, reason: str) -> None:
        """End the connection. Never blocks."""
        ...


class Followed(Protocol):
    """Ids of jobs; `len` is 0 if there are none."""

    def __len__(self) -> int: ...

    def __contains__(self, id: object, /) -> bool: ...


class Session:
    """A connected worker process. `limit` and `sent` are the credit of this connection; `running` what it holds, by seq.

    While the worker holds an `overdue` attempt, it gets no job of that lane: it would run the same job beside itself, while the late
    report, when it comes, still counts as long as nobody else has claimed the job.
    """

    def __init__(self, number: int, id: bytes, name: str, queue: str, slots: int, peer: Peer, since: int) -> None:
        self.number, self.id, self.name, self.queue, self.slots, self.peer, self.since = number, id, name, queue, slots, peer, since
        self.lanes: set[int] = set()
        self.limit = self.sent = 0
        self.running: dict[int, Claimed | Running] = {}
        self.suspects: dict[tuple[int, int], float] = {}  # (seq, attempt) that the last comparison missed → since when, monotonic
        self.unheard: dict[int, Claimed | Running] = {}  # given back as the worker did not know of them; it may have got them all the same
        self.overdue: dict[int, Claimed | Running] = {}  # held by the worker, but put back when its lease had ended
        self.loop_age_s = 0.0
        self.beat_at = 0.0  # monotonic
        self.is_open = True

    def remember(self, jobs: Iterable[Claimed | Running]) -> None:
        """These were given back on the worker's behalf. A report of one still counts until somebody else has it, and has its successors."""
        self.unheard.update({job.seq: job for job in jobs})
        while len(self.unheard) > MAX_UNHEARD:
            del self.unheard[next(iter(self.unheard))]

    @property
    def room(self) -> int:
        return self.limit - self.sent

    @property
    def load(self) -> float:
        return len(self.running) / (self.slots or 1)


class Dispatcher:
    """Deals queued jobs to sessions. Everything runs on the manager's loop."""

    def __init__(self, store: Store, clock: Clock, silence_s: float) -> None:
        """`silence_s`: a session that has not beaten for so long gets no new jobs (it may be stopped, or cut off)."""
        self.last_chances = LastChances(clock, proven_s=silence_s)
        self._is_nudged = self._is_held_back = False
        self._store, self._clock, self.silence_s = store, clock, silence_s
        self._sessions: dict[int, Session] = {}
        self._ready: dict[int, int] = {}  # lane → when it was last marked: it may have queued jobs
        self._marks = 0
        self._claiming = False
        self._again = False
        self.is_paused = False
        self.followed: Followed = ()  # jobs of which `on_claimed` is to be told
        self.on_claimed: Callable[[Claimed], None] = lambda _: None
        self.is_held: Callable[[int], bool] | None = None  # whether a lane's queue is paused; None: no queue is

    async def load(self) -> None:
        """Learn from the store which lanes have queued jobs."""
        for (lane, state), count in (await self._store.counts()).items():
            if state is JobState.QUEUED and count:
                self.mark(lane)

    # --- sessions ---------------------------------------------------------------------------------------------------------------

    def attach(self, session: Session) -> None:
        """A session is connected. A connection that it had before is closed: the newest one counts."""
        session.beat_at = self._clock.monotonic()
        self._sessions[session.number] = session

    def by_number(self, number: int) -> Session | None:
        """The connected session of this number."""
        return self._sessions.get(number)

    def detach(self, session: Session) -> None:
        """The connection is gone. That is no death: its jobs stay with the session until its lease ends."""
        session.is_open = False
        if self._sessions.get(session.number) is session:
            del self._sessions[session.number]
            self.last_chances.forget(session.number)

    def sessions(self) -> list[Session]:
        """All connected sessions."""
        return list(self._sessions.values())

    def credit(self, session: Session, limit: int) -> None:
        """The session takes up to `limit` jobs in all on this connection, from now on; no more than were sent, if that is lower."""
        before, session.limit = session.limit, limit
        if limit > before:
            self._claim()

    def is_silent(self, session: Session) -> bool:
        """Whether the session has not beaten for so long that it gets no jobs."""
        return self._clock.monotonic() - session.beat_at > self.silence_s

    def beaten(self, session: Session, loop_age_s: float) -> None:
        """The session is alive."""
        was_silent = self.is_silent(session)
        session.beat_at, session.loop_age_s = self._clock.monotonic(), loop_age_s
        if was_silent:
            self._claim()

    def lapse(self, session: Session, seq: int) -> None:
        """The lease of this job had ended and it was put back; the worker may still hold it."""
        job = session.running.pop(seq, None)
        if job is not None:
            session.overdue[seq] = job

    def pause(self, is_paused: bool) -> None:
        """Give out no jobs, or go on."""
        self.is_paused = is_paused
        if not is_paused:
            self._claim()

    def offered(self, session: Session, lanes: Iterable[int]) -> None:
        """The session runs jobs of these lanes from now on."""
        session.lanes.update(lanes)
        self._claim()

    # --- jobs -------------------------------------------------------------------------------------------------------------------

    def mark(self, lane: int) -> None:
        """The lane may have queued jobs (they may be in the same transaction that the claim will join)."""
        self._marks += 1
        self._ready[lane] = self._marks
        if not self._claiming:
            self._claim()
        else:
            self._again = True

    def mark_all(self, lanes: Iterable[int]) -> None:
        """Like `mark`, for many."""
        for lane in lanes:
            self._marks += 1
            self._ready[lane] = self._marks
        self._claim()

    def _claim(self) -> None:
        if self._claiming or self._is_held_back:
            self._again = True
            return
        self._again = False
        if self.is_paused or not self._ready:
            return
        wants: list[Want] = []
        asked: list[Session] = []
        ready = self._ready.keys()
        sessions: Iterable[Session] = self._sessions.values()
        if len(self._sessions) > 1:  # of thousands only those are sorted that have to do with it: 0.7 ms instead of 8 with 10,000 idle ones
            fit = [session for session in sessions if session.limit > session.sent and not ready.isdisjoint(session.lanes)]
            sessions = sorted(fit, key=lambda session: session.load)
        heard_after = self._clock.monotonic() - self.silence_s
        careful = self.last_chances.lanes if self.last_chances else None
        for session in sessions:
            room = session.limit - session.sent
            if room > 0 and session.is_open and session.beat_at >= heard_after and session.loop_age_s < WEDGED_S:
                lanes = session.lanes & ready
                if session.overdue:
                    lanes -= {job.lane for job in session.overdue.values()}
                if self.is_held is not None:
                    lanes = {lane for lane in lanes if not self.is_held(lane)}
                if careful and lanes & careful:
                    if self.last_chances.may_have_one(session.number, session.running):
                        wants.append(Want(session=session.number, lanes=tuple(lanes & careful), room=1))
                        asked.append(session)
                        room -= 1
                    else:
                        self._nudge()
                    lanes -= careful
                if lanes and room > 0:
                    wants.append(Want(session=session.number, lanes=tuple(lanes), room=min(room, MAX_PER_CLAIM)))
                    asked.append(session)
        if not wants:
            return
        self._claiming = True
        future = asyncio.ensure_future(self._store.claim(wants))
        issued = self._marks
        future.add_done_callback(lambda done: self._claimed(done, asked, issued))

    def _claimed(self, done: asyncio.Future[list[Claims]], asked: list[Session], issued: int) -> None:
        self._claiming = False
        if done.cancelled():
            return
        problem = done.exception()
        if problem is not None:
            if isinstance(problem, StoreError):
                log.warning("no jobs are given out for now: %s", problem)
            else:
                log.error("claiming failed", exc_info=problem)
            asyncio.get_running_loop().call_later(RETRY_S, self._claim)
            return
        progress = self._again
        for session, claims in zip(asked, done.result(), strict=True):
            progress = progress or bool(claims.jobs)
            for lane in claims.empty:
                if self._ready.get(lane, issued + 1) <= issued:
                    del self._ready[lane]
                    progress = True
            if not claims.jobs:
                continue
            if not session.is_open:
                self._give_back(session, claims.jobs)
                continue
            self._take_over(session, claims.jobs)
            if self.last_chances:
                self.last_chances.given(session.number, claims.jobs)
            session.sent += len(claims.jobs)
            running = session.running
            for job in claims.jobs:
                running[job.seq] = job
            if failpoints.ARMED:
                failpoints.reach("dispatcher.claimed")
            session.peer.run(claims.jobs)
            if self.followed:
                for job in claims.jobs:
                    if job.id in self.followed:
                        self.on_claimed(job)
        if progress:
            self._claim()
        elif self._ready:  # the store had its reasons (a lease that has just ended): do not ask it in circles
            asyncio.get_running_loop().call_later(RETRY_S, self._claim)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Nothing is claimed within: what is put back there is claimed only when it is known what may go where."""
        self._is_held_back = True
        try:
            yield
        finally:
            self._is_held_back = False
            if self._again:
                self._claim()

    def _nudge(self) -> None:
        """Ask again soon: a job that has its last chance may have ended by then, or have run for long enough."""

        def again() -> None:
            self._is_nudged = False
            self._claim()

        if not self._is_nudged:
            self._is_nudged = True
            asyncio.get_running_loop().call_later(RETRY_S, again)

    def _take_over(self, session: Session, jobs: list[Claimed]) -> None:
        """A job that another session still holds, overdue, has a new owner: the old one may stop."""
        holders = [other for other in self._sessions.values() if other.overdue and other is not session]
        for other in holders:
            lost = [(job.seq, other.overdue.pop(job.seq).attempt) for job in jobs if job.seq in other.overdue]
            if lost:
                other.peer.cancel(lost)

    def _give_back(self, session: Session, jobs: list[Claimed]) -> None:
        """Jobs claimed for a connection that has gone: put them back at once, no budget spent."""
        reports = [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.RELEASED) for job in jobs]
        future = asyncio.ensure_future(self._store.finish([Reports(session=session.number, items=reports)]))

        def put_back(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                self.mark_all({job.lane for job in jobs})

        future.add_done_callback(put_back)
