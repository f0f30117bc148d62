"""The manager's own session: its pool is a worker among others, with a lease that its own beat renews."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from easyjobs.domain.job import NewSession, Report, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.seeing import Line, Mark, News
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult
from easyjobs.protocol.problems import GONE, REMOVED
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher, Peer, Session
from easyjobs.services.events import Events
from easyjobs.services.intake import Intake
from easyjobs.services.reporter import Reporter
from easyjobs.services.results import End, Results


class OwnSession(Service):
    """What a connection is to a worker, for the manager's own pool. `run_once` is the beat."""

    name = "own-session"

    def __init__(
        self,
        *,
        store: Store,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        intake: Intake,
        reporter: Reporter,
        results: Results,
        events: Events,
        control: Control,
        clock: Clock,
        beat_s: float,
    ) -> None:
        super().__init__()
        self._store, self._catalogue, self._dispatcher = store, catalogue, dispatcher
        self._intake, self._reporter, self._results, self._control, self._clock = intake, reporter, results, control, clock
        self._events = events
        self._beat_s = beat_s
        self._session: Session | None = None

    async def join(self, name: str, slots: int, peer: Peer) -> None:
        """Become a session."""
        id = os.urandom(16)
        [number] = await self._store.begin([NewSession(id=id, name=name)])
        self._session = Session(number, id, name, "", slots, peer, self._clock.now())
        self._dispatcher.attach(self._session)

    def leave(self) -> None:
        """Be one no longer."""
        if self._session is not None:
            self._catalogue.left(self._session.lanes)
            self._dispatcher.detach(self._session)

    async def run_once(self) -> float:
        """Renew the lease."""
        if self._session is not None:
            await self._store.renew([self._session.number])
            self._dispatcher.beaten(self._session, 0.0)
        return self._beat_s

    async def offer(self, rows: Sequence[TaskRow]) -> list[tuple[TaskRow, int]]:
        """Offer tasks; returns those taken, with their lanes, before any job of them comes. `serve` them then."""
        taken, _ = await self._catalogue.offer(rows, "the manager itself")
        return taken

    def serve(self, lanes: Sequence[int]) -> None:
        """Run jobs of these lanes from now on."""
        if self._session is not None:
            new = set(lanes) - self._session.lanes
            self._catalogue.joined(new)
            self._dispatcher.offered(self._session, new)

    # --- LocalManager -----------------------------------------------------------------------------------------------------------

    def report(self, items: list[Report]) -> Coroutine[Any, Any, list[int]]:
        """Apply the pool's reports."""
        assert self._session is not None
        return self._reporter.report(self._session, items)

    def note(self, marks: list[Mark], lines: list[Line]) -> Coroutine[Any, Any, None]:
        """Keep what the pool's attempts show."""
        assert self._session is not None
        return self._events.note(self._session, marks, lines)

    def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """What is new of a job; see `Events.follow`."""
        return self._events.follow(id)

    def credit(self, limit: int) -> None:
        """The pool takes up to `limit` jobs in all."""
        if self._session is not None:
            self._dispatcher.credit(self._session, limit)

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """Store jobs, as from a socket. What a job calls waits for the store; what the program submits is refused where too much waits."""
        session = self._session.number if self._session is not None else 0
        return await self._intake.submit_frame(items, options, session, is_patient=any(item.caller is not None for item in items))

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """Do something to jobs, as from a socket."""
        return await self._control.frame(verb, ids)

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """Wait for a job's end."""
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

        def settle(end: End) -> None:
            if not ended.done():
                ended.set_result(end)

        try:
            async with asyncio.timeout(timeout):
                await self._results.watch([id], settle)
                end = await ended
        finally:
            self._results.unwatch([id], settle)
        if end.state is None:
            return WatchedResult(id, GONE)
        if end.body is None and end.state is JobState.SUCCEEDED:
            return WatchedResult(id, REMOVED)
        return WatchedResult(id, end.state, end.body or b"")
