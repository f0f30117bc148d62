"""Schedules and ticks, as the writer keeps them. Runs inside the writer's transactions."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.job import NewJob
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, NewSchedule, Schedule, TaskSchedules, first_tick, next_of_changed, plan
from easyjobs.stores.sqlite.rows import SCHEDULE, schedule

if TYPE_CHECKING:
    from easyjobs.stores.sqlite.writer import Writer

ADD: Final = """insert into schedules(lane, expression, timezone, args, catch_up, window_us, overlap, next_at)
    values (?, ?, ?, ?, ?, ?, ?, ?)"""
CHANGE: Final = """update schedules set expression = ?2, timezone = ?3, args = ?4, catch_up = ?5, window_us = ?6, overlap = ?7, next_at = ?8,
    version = version + 1 where id = ?1"""
ADVANCE: Final = """update schedules set next_at = ?4 where id = ?1 and version = ?2 and next_at = ?3 and paused_at is null"""
TICK: Final = "insert into ticks(schedule, tick) values (?1, ?2) on conflict do nothing"
JOB_OF_TICK: Final = "update ticks set seq = ?3, live = 1 where schedule = ?1 and tick = ?2"
OPEN: Final = "exists (select 1 from jobs j where j.seq = t.seq and j.state not between 2 and 5)"
SETTLED: Final = f"update ticks as t set live = 0 where schedule = ?1 and live = 1 and not {OPEN}"
# The second question is for a job that somebody retries by hand: it is not final any more.
IS_BUSY: Final = f"""select exists (select 1 from ticks where schedule = ?1 and live = 1)
    or exists (select 1 from (select seq from ticks where schedule = ?1 order by tick desc limit 100) t where {OPEN})"""
PRUNE: Final = f"""delete from ticks where (schedule, tick) in
    (select schedule, tick from ticks t where tick < ?1 and not (live = 1 and {OPEN}) order by tick limit ?2)"""


class Schedules:
    """What the port says of schedules, for `writer`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def schedule(self, tasks: Sequence[TaskSchedules]) -> list[bool]:
        """See the port."""
        return [self._schedule(task) for task in tasks]

    def _schedule(self, task: TaskSchedules) -> bool:
        db, now = self._writer._db, self._writer._now
        lane = db.execute("select lane from tasks where queue = ? and name = ?", (task.queue, task.name)).get
        if lane is None:
            return False
        stored = [schedule(row) for row in db.execute(f"select {SCHEDULE} where s.lane = ? order by s.id", (lane,))]
        todo = plan(stored, task.schedules)
        for gone in todo.remove:
            db.execute("delete from schedules where id = ?", (gone.id,))
        for known, what in todo.change:
            db.execute(CHANGE, (known.id, *_columns(what), next_of_changed(known, what, now)))
        for what in todo.add:
            db.execute(ADD, (lane, *_columns(what), first_tick(what, now)))
        return any(todo)

    def due(self, limit: int) -> DueSchedules:
        """See the port."""
        db, now = self._writer._db, self._writer._now
        ready = "where s.paused_at is null and s.next_at <= ? order by s.next_at limit ?"
        schedules = tuple([schedule(row) for row in db.execute(f"select {SCHEDULE} {ready}", (now, limit))])
        return DueSchedules(now, schedules, db.execute("select min(next_at) from schedules where paused_at is null").get)

    def fire(self, firings: Sequence[Firing]) -> list[list[Fired]]:
        """See the port."""
        return [self._fire(firing) for firing in firings]

    def _fire(self, firing: Firing) -> list[Fired]:
        writer, db = self._writer, self._writer._db
        if any(tick.at > writer._now for tick in firing.ticks):
            return [Fired.STALE] * len(firing.ticks)
        before = db.total_changes()
        db.execute(ADVANCE, (firing.schedule, firing.version, firing.due_at, firing.next_at))
        if db.total_changes() == before:
            return [Fired.STALE] * len(firing.ticks)
        answers = []
        for tick in firing.ticks:
            before = db.total_changes()
            db.execute(TICK, (firing.schedule, tick.at))
            if db.total_changes() == before:
                answers.append(Fired.REPEATED)
            elif firing.alone and self._is_busy(firing.schedule):
                answers.append(Fired.OVERLAPS)
            else:
                self._bear(firing.schedule, tick.at, tick.job)
                answers.append(Fired.BORN)
        if firing.ticks:
            db.execute("update schedules set last_tick = ?2 where id = ?1", (firing.schedule, firing.ticks[-1].at))
        return answers

    def _bear(self, schedule: int, tick: int, job: NewJob) -> None:
        """The job of a tick whose row is there."""
        writer, db = self._writer, self._writer._db
        if len(job.id) != 16:
            raise ValueError("a job's id has 16 bytes")
        seq = db.execute("select seq from jobs where id = ?", (writer._bear(job),)).get
        db.execute(JOB_OF_TICK, (schedule, tick, seq))
        db.execute("update schedules set last_seq = ?2 where id = ?1", (schedule, seq))

    def _is_busy(self, schedule: int) -> bool:
        db = self._writer._db
        db.execute(SETTLED, (schedule,))
        return bool(db.execute(IS_BUSY, (schedule,)).get)

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> list[bool]:
        """See the port."""
        db = self._writer._db
        answers = []
        for id, job in jobs:
            known = self._exists(id)
            answers.append(known)
            if known:
                # Between two whole seconds, and later than any that is there: never a tick's.
                latest = db.execute("select max(tick) from ticks where schedule = ?", (id,)).get or 0
                at = max(self._writer._now, latest + 1)
                at += at % 1_000_000 == 0
                db.execute(TICK, (id, at))
                self._bear(id, at, job)
        return answers

    def _exists(self, id: int) -> bool:
        return self._writer._db.execute("select 1 from schedules where id = ?", (id,)).get is not None

    def pause(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        for id in ids:
            self._writer._db.execute("update schedules set paused_at = ?2 where id = ?1 and paused_at is null", (id, self._writer._now))
        return [self._exists(id) for id in ids]

    def resume(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        db, now = self._writer._db, self._writer._now
        for id in ids:
            found: Sequence[Schedule] = [
                schedule(row) for row in db.execute(f"select {SCHEDULE} where s.id = ? and s.paused_at is not null", (id,))
            ]
            for paused in found:
                db.execute("update schedules set paused_at = null, next_at = ?2 where id = ?1", (id, first_tick(paused.what, now)))
        return [self._exists(id) for id in ids]

    def prune(self, before_us: int, limit: int) -> int:
        """See the port."""
        before = self._writer._db.total_changes()
        self._writer._db.execute(PRUNE, (self._writer._now - before_us, limit))
        return self._writer._db.total_changes() - before


def _columns(what: NewSchedule) -> tuple[str, str, bytes, str, int, str]:
    return what.expression, what.timezone, what.args, what.catch_up.value, what.window_us, what.overlap.value
