"""What other managers over the same store have done: jobs that were queued, tasks that were offered, jobs that have ended.

The store gives a hint when another manager has committed something. Behind it stands a poll each second, which finds what no hint came
for; so every part of this reads the store, and a hint only says when. The poll goes by the clock: hints that come all the time, as jobs end
elsewhere, do not put it off, or a token that was taken back in silence would hold for as long as others are busy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

from easyjobs.domain.lifecycle import JobState
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import News, SharedStore
from easyjobs.protocol.messages import CLOSE_STORE_AWAY
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.events import Events
from easyjobs.services.results import Results, end_of

POLL_S: Final = 1.0
REFRESH_POLLS: Final = 20  # after so many polls the catalogue is read again: when its tasks were last offered
TIMER_POLLS: Final = 5  # after so many, the timers look again (a manager with scheduled jobs may have gone), and so do followers
STRAY_POLLS: Final = 10  # after so many, what the store says of our sessions is compared with what we know; about a beat
MAX_WATCHED: Final = 1000  # jobs that are asked for at once


class Peers(Service):
    """`run_once` looks at everything; between two polls only at what a hint was about."""

    name = "peers"

    def __init__(
        self,
        store: SharedStore,
        clock: Clock,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        results: Results,
        control: Control,
        events: Events,
        wake_timers: Callable[[], None],
        read_tokens: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self._events = events
        self._read_tokens = read_tokens
        self._store, self._catalogue, self._dispatcher, self._results, self._control = store, catalogue, dispatcher, results, control
        self._wake_timers = wake_timers
        self._revision = -1
        self._clock, self._poll_at = clock, 0.0
        self._polls = 0
        self._has_ended = self._is_more = False
        self._stopped: set[tuple[int, int]] = set()
        self._strays: set[tuple[int, int, int]] = set()
        self._polls_to_strays = STRAY_POLLS
        control.stopped = self._stopped
        store.on_news, store.on_followed, store.on_failed_over = self.hear, self._followed_elsewhere, self._failed_over
        events.on_follow, events.on_shown = self._followed_here, store.show

    def hear(self, news: News) -> None:
        """Another manager has committed something. On the manager's loop."""
        if news.lanes:
            self._dispatcher.mark_all(news.lanes)
        if news.shown is None:
            self._events.look_again()
        elif news.shown:
            self._events.look_at(news.shown)
        self._has_ended = self._has_ended or news.has_ended
        self._is_more = self._is_more or news.is_more
        if news.has_ended or news.is_more:
            self.wake()

    async def run_once(self) -> float:
        """Look at what the hints since the last run were about; at everything, if there were none, or if that was a second ago."""
        is_told = self._is_more
        is_poll = not (self._has_ended or is_told) or self._clock.monotonic() >= self._poll_at
        has_ended, is_more = self._has_ended or is_poll, is_told or is_poll
        self._has_ended = self._is_more = False
        if is_poll:
            self._polls += 1
            self._poll_at = self._clock.monotonic() + POLL_S
        if is_more:
            await self._look_at_tasks()
            await self._look_at_lanes()
            await self._look_at_stops()
            await self._look_at_overdue()
            self._polls_to_strays -= is_poll
            if self._polls_to_strays <= 0:
                self._polls_to_strays = STRAY_POLLS
                await self._look_for_strays()
        if has_ended:
            await self._look_at_ends()
        if is_told or (is_poll and self._polls % TIMER_POLLS == 0):
            self._wake_timers()
            self._events.look_again()
        return max(0.0, self._poll_at - self._clock.monotonic())

    def _failed_over(self) -> None:
        """Sessions and attempts may be gone, or may be as they were a while ago. Workers that say hello again are given new ones, and told what to drop."""
        for session in self._dispatcher.sessions():
            session.peer.close(CLOSE_STORE_AWAY, "the database has failed over")

    def _followed_elsewhere(self, tokens: frozenset[int] | None) -> None:
        self._events.followed.elsewhere = tokens

    def _followed_here(self) -> None:
        self._store.follow(self._events.followed.here.keys())

    async def _look_at_tasks(self) -> None:
        revision = await self._store.revision()
        if revision != self._revision or self._polls >= REFRESH_POLLS:
            self._polls = 0
            await self._catalogue.refresh()
            await self._control.load()
            if self._read_tokens is not None:
                await self._read_tokens()
            self._revision = revision

    async def _look_at_lanes(self) -> None:
        offered = set().union(*(session.lanes for session in self._dispatcher.sessions()))
        if offered:
            counts = await self._store.counts()
            self._dispatcher.mark_all([lane for (lane, state), n in counts.items() if state is JobState.QUEUED and n and lane in offered])

    async def _look_at_stops(self) -> None:
        sessions = {session.number: session for session in self._dispatcher.sessions() if session.running}
        found: set[tuple[int, int]] = set()
        before = self._stopped.copy()
        if sessions:
            for session, jobs in zip(sessions.values(), await self._store.stopping(list(sessions)), strict=True):
                told = [(job.seq, job.attempt) for job in jobs]
                found.update(told)
                new = [each for each in told if each not in self._stopped]  # a body is interrupted once: it may be tidying up
                if new:
                    session.peer.cancel(new)
                    self._stopped.update(new)
        self._stopped -= before - found

    async def _look_at_overdue(self) -> None:
        """What our workers hold although it was put back counts until somebody else gets it, and that may be a worker of another manager."""
        held = [(session, job) for session in self._dispatcher.sessions() for job in session.overdue.values()]
        for (session, job), record in zip(held, await self._store.get([job.id for _, job in held]) if held else (), strict=True):
            still_counts = record is not None and record.state is JobState.QUEUED and (record.seq, record.attempt) == (job.seq, job.attempt)
            if not still_counts and session.overdue.get(job.seq) is job:  # else it was reported, or given away here, meanwhile
                del session.overdue[job.seq]
                session.peer.cancel([(job.seq, job.attempt)])

    async def _look_for_strays(self) -> None:
        """Attempts of our sessions that we do not know of: claimed by another manager, on a connection that its worker had left already.

        The beats renew their lease, so no rescue would ever find them. What is unknown at two looks is counted among what the session
        holds: then the next beat differs, and its worker says whether it has them.
        """
        sessions = {session.number: session for session in self._dispatcher.sessions()}
        found: set[tuple[int, int, int]] = set()
        for number, jobs in zip(sessions, await self._store.running(list(sessions)), strict=True) if sessions else ():
            session = sessions[number]
            for job in jobs:
                known = session.running.get(job.seq)
                if known is not None and known.attempt >= job.attempt:
                    continue
                if (number, job.seq, job.attempt) in self._strays:
                    session.running[job.seq] = job
                else:
                    found.add((number, job.seq, job.attempt))
        self._strays = found

    async def _look_at_ends(self) -> None:
        watched = list(self._results.watched)
        for first in range(0, len(watched), MAX_WATCHED):
            for record in await self._store.ended(list(islice(watched, first, first + MAX_WATCHED))):
                self._results.ended(record.id, record.state, end_of(record).body)
