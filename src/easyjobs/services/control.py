"""What people do to jobs and queues, and what follows from it: for workers, for those who wait, for the lanes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from easyjobs.domain.job import MAX_BULK_JOBS, Change, Changed
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.errors import ProtocolError
from easyjobs.ports.store import Store
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.dispatcher import Dispatcher, Session
from easyjobs.services.events import Events
from easyjobs.services.results import Results


class Control:
    """Everything runs on the manager's loop. Errors: StoreError."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        results: Results,
        wake_timers: Callable[[], None],
        events: Events | None = None,
    ) -> None:
        self._events = events or Events(store, results)
        self._store, self._catalogue, self._dispatcher, self._results = store, catalogue, dispatcher, results
        self._wake_timers = wake_timers
        self._paused: set[str] = set()
        self.stopped: set[tuple[int, int]] | None = None  # (seq, attempt) that were told to stop; a set, if somebody asks
        store.on_change = self.changed

    async def load(self) -> None:
        """Learn which queues are paused."""
        self._paused = set(await self._store.paused())
        self._hold()

    def changed(self, changes: Sequence[Change]) -> None:
        """The store changed these jobs: tell who must know."""
        lanes: set[int] = set()
        for change in changes:
            self._events.wake(change.id)
            if change.state is JobState.QUEUED:
                lanes.add(change.lane)
            elif change.state is JobState.SCHEDULED:
                self._wake_timers()
            elif change.state is JobState.RUNNING:
                session = self._dispatcher.by_number(change.session)
                if session is not None:
                    session.peer.cancel([(change.seq, change.attempt)])
                    if self.stopped is not None:
                        self.stopped.add((change.seq, change.attempt))
            elif change.state in FINAL:
                self._results.ended(change.id, change.state, change.body)
        if lanes:
            self._dispatcher.mark_all(lanes)
            self._wake_timers()  # some of them may have been born, and may expire

    async def remind(self, session: Session) -> None:
        """A worker is back: ask it again to stop what was cancelled while it was away."""
        [stopping] = await self._store.stopping([session.number])
        if stopping:
            session.peer.cancel([(job.seq, job.attempt) for job in stopping])

    # --- jobs -------------------------------------------------------------------------------------------------------------------

    def cancel(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See `Store.cancel`."""
        return self._store.cancel(ids)

    def retry(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See `Store.restart`."""
        return self._store.restart(ids)

    def run_now(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See `Store.hasten`."""
        return self._store.hasten(ids)

    def delete(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See `Store.delete`."""
        return self._store.delete(ids)

    async def frame(self, verb: str, ids: Sequence[bytes]) -> list[tuple[bool, int]]:
        """Do what a `Control` frame asks. Raises: ProtocolError for an unknown verb, StoreError."""
        verbs = {"cancel": self.cancel, "retry": self.retry, "run_now": self.run_now, "delete": self.delete}
        if verb not in verbs:
            raise ProtocolError(f"{verb[:40]!r} is nothing that can be done to a job: {', '.join(verbs)}")
        if len(ids) > MAX_BULK_JOBS:
            raise ProtocolError(f"more than {MAX_BULK_JOBS:,} jobs in one frame")
        return [(each.done, -1 if each.state is None else int(each.state)) for each in await verbs[verb](ids)]

    # --- queues -----------------------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> frozenset[str]:
        """The queues that give out no jobs."""
        return frozenset(self._paused)

    async def pause(self, queue: str, is_paused: bool) -> None:
        """Stop giving out the jobs of a queue, or go on; running jobs run on. Survives restarts."""
        await self._store.pause(queue, is_paused)
        (self._paused.add if is_paused else self._paused.discard)(queue)
        self._hold()
        if not is_paused:
            self._dispatcher.mark_all(self._catalogue.lanes_of(queue, None))

    def _hold(self) -> None:
        self._dispatcher.is_held = self._is_held if self._paused else None

    def _is_held(self, lane: int) -> bool:
        task = self._catalogue.by_lane(lane)
        return task is not None and task.queue in self._paused

    def pause_all(self, is_paused: bool) -> None:
        """Give out no jobs at all, to no worker; not remembered over a restart."""
        self._dispatcher.pause(is_paused)
