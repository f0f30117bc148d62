"""Schedules and ticks, as the store in memory keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from easyjobs.domain.job import NewJob
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, Schedule, TaskSchedules, first_tick, next_of_changed, plan
from easyjobs.ports.clock import Clock


class MemorySchedules:
    """What the port says of schedules. `add` stores a job and returns its seq; `is_open` says whether one is not final."""

    def __init__(
        self, clock: Clock, lane_of: Callable[[str, str], int | None], add: Callable[[NewJob], int], is_open: Callable[[int], bool]
    ) -> None:
        self._clock, self._lane_of, self._add, self._is_open = clock, lane_of, add, is_open
        self._all: dict[int, Schedule] = {}
        self._last = 0
        self._ticks: dict[tuple[int, int], int | None] = {}  # (schedule, tick) → the seq of its job

    def schedule(self, tasks: Sequence[TaskSchedules]) -> list[bool]:
        """See the port."""
        return [self._schedule(task) for task in tasks]

    def _schedule(self, task: TaskSchedules) -> bool:
        now, lane = self._clock.now(), self._lane_of(task.queue, task.name)
        if lane is None:
            return False
        todo = plan([one for one in self._all.values() if one.lane == lane], task.schedules)
        for gone in todo.remove:
            del self._all[gone.id]
        for known, what in todo.change:
            self._change(known, what=what, version=known.version + 1, next_at=next_of_changed(known, what, now))
        for what in todo.add:
            self._last += 1
            self._all[self._last] = Schedule(self._last, lane, what, 1, first_tick(what, now))
        return any(todo)

    def _change(self, schedule: Schedule, **fields: object) -> None:
        self._all[schedule.id] = msgspec.structs.replace(schedule, **fields)

    def read(self, ids: Sequence[int] | None) -> list[Schedule]:
        """See the port."""
        return [one for id, one in sorted(self._all.items()) if ids is None or id in ids]

    def due(self, limit: int) -> DueSchedules:
        """See the port."""
        now = self._clock.now()
        coming = sorted((one.next_at, one.id) for one in self._all.values() if one.paused_at is None and one.next_at is not None)
        due = tuple([self._all[id] for next_at, id in coming if next_at <= now][:limit])
        return DueSchedules(now, due, coming[0][0] if coming else None)

    def fire(self, firings: Sequence[Firing]) -> list[list[Fired]]:
        """See the port."""
        return [self._fire(firing) for firing in firings]

    def _fire(self, firing: Firing) -> list[Fired]:
        known = self._all.get(firing.schedule)
        is_as_it_was = known is not None and (known.version, known.next_at, known.paused_at) == (firing.version, firing.due_at, None)
        if known is None or not is_as_it_was or any(tick.at > self._clock.now() for tick in firing.ticks):
            return [Fired.STALE] * len(firing.ticks)
        answers = []
        for tick in firing.ticks:
            if (known.id, tick.at) in self._ticks:
                answers.append(Fired.REPEATED)
            elif firing.alone and any(seq is not None and self._is_open(seq) for (id, _), seq in self._ticks.items() if id == known.id):
                self._ticks[known.id, tick.at] = None
                answers.append(Fired.OVERLAPS)
            else:
                self._bear(known.id, tick.at, tick.job)
                answers.append(Fired.BORN)
        last_tick = firing.ticks[-1].at if firing.ticks else known.last_tick
        self._change(self._all[known.id], next_at=firing.next_at, last_tick=last_tick)
        return answers

    def _bear(self, id: int, tick: int, job: NewJob) -> None:
        self._ticks[id, tick] = self._add(job)
        self._change(self._all[id], last_job=job.id)

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> list[bool]:
        """See the port."""
        for id, job in jobs:
            if id in self._all:
                at = max([self._clock.now(), *(tick + 1 for of, tick in self._ticks if of == id)])
                self._bear(id, at + (at % 1_000_000 == 0), job)
        return [id in self._all for id, _ in jobs]

    def pause(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        for id in ids:
            if id in self._all and self._all[id].paused_at is None:
                self._change(self._all[id], paused_at=self._clock.now())
        return [id in self._all for id in ids]

    def resume(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        for id in ids:
            if id in self._all and self._all[id].paused_at is not None:
                self._change(self._all[id], paused_at=None, next_at=first_tick(self._all[id].what, self._clock.now()))
        return [id in self._all for id in ids]

    def prune(self, before_us: int, limit: int) -> int:
        """See the port."""
        bound = self._clock.now() - before_us
        old = sorted(tick for tick, seq in self._ticks.items() if tick[1] < bound and not (seq is not None and self._is_open(seq)))
        for tick in old[:limit]:
            del self._ticks[tick]
        return len(old[:limit])
