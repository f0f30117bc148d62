"""What time brings: scheduled jobs become due and are queued, and schedules fire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from easyjobs.domain.cron import Cron
from easyjobs.domain.job import NewJob, lanes_of
from easyjobs.domain.schedule import CatchUp, Decision, DueSchedules, Fired, Firing, Overlap, Schedule, Tick, decide
from easyjobs.errors import InvalidArguments, UnknownSchedule, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime import failpoints
from easyjobs.runtime.ids import id_text, new_id
from easyjobs.runtime.log import ERROR, INFO, event
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import Catalogue, CatalogueTask
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.flow import Flow

log = logging.getLogger("easyjobs.scheduler")

MAX_PAUSE_S: Final = 60.0  # look again at least so often: the system's clock may have been set
MAX_SCHEDULES: Final = 100  # looked at in one run
MAX_JOBS: Final = 1000  # fired in one run: one transaction
KEEP_TICKS_US: Final = 24 * 3600 * 1_000_000
PRUNE_S: Final = 600.0
START_S: Final = 1.0  # the program registers its tasks after `create()`: what it no longer schedules shall not be caught up with
PRUNED: Final = 500  # ticks in one transaction

cron_of = lru_cache(maxsize=1024)(Cron)


class Scheduler(Service):
    """Queues jobs that are due, fires ticks, then sleeps until the next of either.

    A tick is fired also while no worker offers the task: its job waits. But when nobody has offered the task for as long as the catalogue
    remembers it (`GRACE_S`), one job waits and further ticks have none, so that a task that was renamed does not pile up jobs for ever;
    with `catch_up="all"` they do.
    """

    name = "scheduler"

    def __init__(self, store: Store, dispatcher: Dispatcher, clock: Clock, catalogue: Catalogue, flow: Flow) -> None:
        super().__init__()
        self._store, self._dispatcher, self._clock, self._catalogue, self._flow = store, dispatcher, clock, catalogue, flow
        self._prune_at = clock.monotonic() + PRUNE_S
        self._fire_from = 0.0
        self.on_due: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Begin to run; ticks are fired from `START_S` on."""
        self._fire_from = self._clock.monotonic() + START_S
        await super().start()

    async def run_once(self) -> float:
        """Queue one batch of due jobs, and fire one of due ticks."""
        jobs, due = await asyncio.gather(self._store.due(), self._store.due_schedules(MAX_SCHEDULES))
        self._dispatcher.mark_all(jobs.lanes)
        if jobs.lanes:
            self.on_due()
        early_s = max(0.0, self._fire_from - self._clock.monotonic())
        if due.schedules and not early_s:
            await self._fire(due)
            return 0.0  # what is next is known after that
        if self._clock.monotonic() >= self._prune_at:
            pruned = await self._store.prune_ticks(KEEP_TICKS_US, PRUNED)
            self._prune_at = self._clock.monotonic() + (PRUNE_S if pruned < PRUNED else 1.0)
        return min(MAX_PAUSE_S, self._seconds_until(jobs.next_at), max(early_s, self._seconds_until(due.next_at)))

    def _seconds_until(self, at: int | None) -> float:
        return MAX_PAUSE_S if at is None else max(0.0, (at - self._clock.now()) / 1_000_000)

    # --- ticks ------------------------------------------------------------------------------------------------------------------

    async def _fire(self, due: DueSchedules) -> None:
        limit = max(1, MAX_JOBS // len(due.schedules))
        decided = [(schedule, self._decide(schedule, due.now, limit)) for schedule in due.schedules]
        firings = [self._firing(schedule, decision) for schedule, decision in decided]
        answers = await self._store.fire(firings)
        if failpoints.ARMED:
            failpoints.reach("scheduler.fired")
        for (schedule, decision), firing, answer in zip(decided, firings, answers, strict=True):
            born = answer.count(Fired.BORN)
            if born:
                self._dispatcher.mark_all(lanes_of([tick.job for tick in firing.ticks]))
            if Fired.STALE not in answer:
                self._tell(schedule, decision, born, answer.count(Fired.OVERLAPS))

    def _decide(self, schedule: Schedule, now: int, limit: int) -> Decision:
        what = schedule.what
        assert schedule.next_at is not None
        try:
            cron = cron_of(what.expression, what.timezone)
            return decide(cron, schedule.next_at, now, what.catch_up, what.window_us, limit)
        except Exception as why:  # noqa: BLE001 (a zone that is known no more, or whatever a worker has written: it fails no other)
            event(log, ERROR, "schedule.unreadable", schedule=schedule.id, reason=f"{type(why).__name__}: {why}")
            return Decision((), None, has_skipped=False)

    def _firing(self, schedule: Schedule, decision: Decision) -> Firing:
        assert schedule.next_at is not None
        task = self._catalogue.by_lane(schedule.lane)
        ticks: tuple[Tick, ...] = ()
        alone = schedule.what.overlap is Overlap.SKIP
        if task is None:
            reason = "its task is stored in a form that this manager cannot read: it is fired again when a worker offers the task"
            event(log, ERROR, "schedule.unreadable", schedule=schedule.id, reason=reason)
        else:
            alone = alone or (schedule.what.catch_up is not CatchUp.ALL and not self._catalogue.is_visible(task))
            try:
                ticks = tuple([Tick(at, self._job(task, schedule, at)) for at in decision.ticks])
            except InvalidArguments as why:  # its predecessors go round in circles
                event(log, ERROR, "schedule.unreadable", schedule=schedule.id, reason=str(why))
        return Firing(schedule.id, schedule.version, schedule.next_at, decision.next_at, ticks, alone)

    def _job(self, task: CatalogueTask, schedule: Schedule, tick: int | None = None) -> NewJob:
        spec = msgspec.structs.replace(task.spec, run_at=tick)
        return self._flow.job(task, new_id(self._clock.now()), schedule.what.args, spec=spec)

    def _tell(self, schedule: Schedule, decision: Decision, born: int, overlaps: int) -> None:
        if not decision.has_skipped and not overlaps:
            return
        task = self._catalogue.by_lane(schedule.lane)
        name = None if task is None else f"{task.queue}/{task.name}"
        if decision.has_skipped:
            since = datetime.fromtimestamp((schedule.next_at or 0) / 1_000_000, UTC).isoformat(timespec="seconds")
            event(
                log, INFO, "schedule.missed", schedule=schedule.id, task=name, since=since, catch_up=schedule.what.catch_up.value, jobs=born
            )
        if overlaps:
            event(log, INFO, "schedule.overlapped", schedule=schedule.id, task=name, ticks=overlaps)

    # --- by hand ----------------------------------------------------------------------------------------------------------------

    async def find(self, id: int) -> Schedule:
        """The schedule of this id. Raises: UnknownSchedule."""
        found = await self._store.schedules([id])
        if not found:
            raise UnknownSchedule(id)
        return found[0]

    async def pause(self, id: int) -> Schedule:
        """No ticks from now on, until `resume`. Raises: UnknownSchedule, StoreError."""
        await self._store.pause_schedules([id])
        return await self.find(id)

    async def resume(self, id: int) -> Schedule:
        """Go on with the first tick from now. Raises: UnknownSchedule, StoreError."""
        await self._store.resume_schedules([id])
        self.wake()
        return await self.find(id)

    async def run_now(self, id: int) -> str:
        """Run the schedule's job once more, whatever its ticks do. Returns the job's id, after the commit.

        Raises: UnknownSchedule, UnknownTask (its task cannot be read), StoreError.
        """
        schedule = await self.find(id)
        task = self._catalogue.by_lane(schedule.lane)
        if task is None:
            raise UnknownTask(None, f"(lane {schedule.lane})")
        job = self._job(task, schedule)
        [is_known] = await self._store.run_now([(id, job)])
        if not is_known:
            raise UnknownSchedule(id)
        self._dispatcher.mark_all(lanes_of([job]))
        return id_text(job.id)
