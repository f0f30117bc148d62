"""What workers say of their attempts: into the store, then to whoever waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from easyjobs.domain.job import Answer, NewJob, Report, Reports, Verdict, lanes_of
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.ports.store import Store
from easyjobs.services.dispatcher import Dispatcher, Session
from easyjobs.services.events import Events
from easyjobs.services.results import Results

Flow = Callable[[Session, Sequence[Report]], Mapping[int, tuple[NewJob, ...]]]
"""Which jobs the ends of these attempts bring to life: by seq."""


class Reporter:
    """Applies reports; an answer is given only after their commit."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        results: Results,
        flow: Flow,
        wake_timers: Callable[[], None],
        events: Events | None = None,
    ) -> None:
        self._events = events or Events(store, results)
        self._store, self._dispatcher, self._results, self._flow = store, dispatcher, results, flow
        self._wake_timers = wake_timers

    def report(self, session: Session, items: list[Report]) -> Coroutine[Any, Any, list[int]]:
        """Apply the reports of a session. They are in the store's queue when this returns, before the coroutine is awaited.

        Awaiting gives the seqs whose report was stale. Raises: StoreError, then nothing was applied.
        """
        successors = self._flow(session, items)
        stored = self._store.finish((Reports(session=session.number, items=items, successors=successors),))
        if successors:
            born = [job for jobs in successors.values() for job in jobs]
            for lane in lanes_of(born):  # in this turn: a claim of them joins the transaction of the report
                self._dispatcher.mark(lane)
            timed = any(job.spec.expires_us is not None for job in born)
            return self._settled(session, items, stored, timed=timed)
        return self._settled(session, items, stored, timed=False)

    async def _settled(self, session: Session, items: list[Report], stored: Awaitable[list[list[Verdict]]], *, timed: bool) -> list[int]:
        [verdicts] = await stored
        if timed:
            self._wake_timers()
        return self._settle(session, items, verdicts)

    def _settle(self, session: Session, items: Sequence[Report], verdicts: Sequence[Verdict]) -> list[int]:
        """After the commit: forget what no longer runs, tell the watchers, wake who has new work. Returns the stale seqs."""
        running, watched, followed = session.running, self._results.watched, self._events.followed
        stale: list[int] = []
        lanes: set[int] = set()
        for report, verdict in zip(items, verdicts, strict=True):
            job = running.pop(report.seq, None)
            if job is None:
                job = session.overdue.pop(report.seq, None) or session.unheard.pop(report.seq, None)
            elif job.attempt != report.attempt:
                running[report.seq] = job  # the session runs a later attempt of it
            if verdict.answer is Answer.STALE:
                stale.append(report.seq)
                continue
            state = verdict.state
            if followed and job is not None and state is not None and job.id in followed:
                self._events.changed(job.id, state, report.attempt)
            if state in FINAL:
                if watched and job is not None and job.id in watched:
                    self._results.ended(job.id, state, report.body if state is not JobState.CANCELLED else b"")
            elif state is JobState.QUEUED:
                if job is not None:
                    lanes.add(job.lane)
            elif state is JobState.SCHEDULED:
                self._wake_timers()
        if lanes:
            self._dispatcher.mark_all(lanes)
        return stale
