"""Schedules and ticks, as the writer keeps them. Runs inside the writer's transactions.

Of several managers that fire the same tick, the first one moves `next_at` in its transaction; the others wait for the row, and then find
that the schedule is not as they looked at it.
"""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.job import NewJob
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, NewSchedule, TaskSchedules, first_tick, next_of_changed, plan
from easyjobs.stores.postgres.control import changed
from easyjobs.stores.postgres.rows import FINAL_STATES, SCHEDULE, schedule

if TYPE_CHECKING:
    from easyjobs.stores.postgres.writer import Writer

ADD: Final = """insert into easyjobs.schedules(lane, expression, timezone, args, catch_up, window_us, overlap, next_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8)"""
CHANGE: Final = """update easyjobs.schedules set expression = $2, timezone = $3, args = $4, catch_up = $5, window_us = $6, overlap = $7, next_at = $8,
    version = version + 1 where id = $1"""
ADVANCE: Final = """update easyjobs.schedules set next_at = $4 where id = $1 and version = $2 and next_at = $3 and paused_at is null"""
TICK: Final = "insert into easyjobs.ticks(schedule, tick) values ($1, $2) on conflict do nothing"
JOB_OF_TICK: Final = "update easyjobs.ticks set seq = $3, live = true where schedule = $1 and tick = $2"
OPEN: Final = f"exists (select 1 from easyjobs.jobs j where j.seq = t.seq and j.state not in {FINAL_STATES})"
SETTLED: Final = f"update easyjobs.ticks as t set live = false where schedule = $1 and live and not {OPEN}"
# The second question is for a job that somebody retries by hand: it is not final any more.
IS_BUSY: Final = f"""select exists (select 1 from easyjobs.ticks where schedule = $1 and live)
    or exists (select 1 from (select seq from easyjobs.ticks where schedule = $1 order by tick desc limit 100) t where {OPEN})"""
PRUNE: Final = f"""delete from easyjobs.ticks where (schedule, tick) in
    (select schedule, tick from easyjobs.ticks t where tick < $1 and not (live and {OPEN}) order by tick limit $2)"""


class Schedules:
    """What the port says of schedules, for `writer`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def schedule(self, tasks: Sequence[TaskSchedules]) -> list[bool]:
        """See the port."""
        return [await self._schedule(task) for task in tasks]

    async def _schedule(self, task: TaskSchedules) -> bool:
        db, now = self._writer._db, self._writer._now
        if not task.schedules and not await db.fetchval("select exists(select 1 from easyjobs.schedules)"):
            return False
        # Locked, so that two managers that get the same offer do not add its schedules twice.
        lane = await db.fetchval("select lane from easyjobs.tasks where queue = $1 and name = $2 for update", task.queue, task.name)
        if lane is None:
            return False
        stored = [schedule(row) for row in await db.fetch(f"select {SCHEDULE} where s.lane = $1 order by s.id", lane)]
        todo = plan(stored, task.schedules)
        for gone in todo.remove:
            await db.execute("delete from easyjobs.schedules where id = $1", gone.id)
        for known, what in todo.change:
            await db.execute(CHANGE, known.id, *_columns(what), next_of_changed(known, what, now))
        for what in todo.add:
            await db.execute(ADD, lane, *_columns(what), first_tick(what, now))
        if any(todo):
            self._writer._is_news = True
        return any(todo)

    async def due(self, limit: int) -> DueSchedules:
        """See the port."""
        db, now = self._writer._db, self._writer._now
        ready = "where s.paused_at is null and s.next_at <= $1 order by s.next_at, s.id limit $2"
        schedules = tuple([schedule(row) for row in await db.fetch(f"select {SCHEDULE} {ready}", now, limit)])
        return DueSchedules(now, schedules, await db.fetchval("select min(next_at) from easyjobs.schedules where paused_at is null"))

    async def fire(self, firings: Sequence[Firing]) -> list[list[Fired]]:
        """See the port."""
        return [await self._fire(firing) for firing in firings]

    async def _fire(self, firing: Firing) -> list[Fired]:
        writer, db = self._writer, self._writer._db
        if any(tick.at > writer._now for tick in firing.ticks):
            return [Fired.STALE] * len(firing.ticks)
        if changed(await db.execute(ADVANCE, firing.schedule, firing.version, firing.due_at, firing.next_at)) == 0:
            return [Fired.STALE] * len(firing.ticks)
        answers = []
        for tick in firing.ticks:
            if changed(await db.execute(TICK, firing.schedule, tick.at)) == 0:
                answers.append(Fired.REPEATED)
            elif firing.alone and await self._is_busy(firing.schedule):
                answers.append(Fired.OVERLAPS)
            else:
                await self._bear(firing.schedule, tick.at, tick.job)
                answers.append(Fired.BORN)
        if firing.ticks:
            await db.execute("update easyjobs.schedules set last_tick = $2 where id = $1", firing.schedule, firing.ticks[-1].at)
        return answers

    async def _bear(self, schedule: int, tick: int, job: NewJob) -> None:
        """The job of a tick whose row is there."""
        writer, db = self._writer, self._writer._db
        if len(job.id) != 16:
            raise ValueError("a job's id has 16 bytes")
        seq = await db.fetchval("select seq from easyjobs.jobs where id = $1", await writer._bear(job))
        await db.execute(JOB_OF_TICK, schedule, tick, seq)
        await db.execute("update easyjobs.schedules set last_seq = $2 where id = $1", schedule, seq)

    async def _is_busy(self, schedule: int) -> bool:
        db = self._writer._db
        await db.execute(SETTLED, schedule)
        return bool(await db.fetchval(IS_BUSY, schedule))

    async def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> list[bool]:
        """See the port."""
        db = self._writer._db
        answers = []
        for id, job in jobs:
            known = await db.fetchval("select true from easyjobs.schedules where id = $1 for update", id) is not None
            answers.append(known)
            if known:
                # Between two whole seconds, and later than any that is there: never a tick's.
                latest = await db.fetchval("select max(tick) from easyjobs.ticks where schedule = $1", id) or 0
                at = max(self._writer._now, latest + 1)
                at += at % 1_000_000 == 0
                await db.execute(TICK, id, at)
                await self._bear(id, at, job)
        return answers

    async def _known(self, ids: Sequence[int]) -> list[bool]:
        found = {id for (id,) in await self._writer._db.fetch("select id from easyjobs.schedules where id = any($1::bigint[])", list(ids))}
        return [id in found for id in ids]

    async def pause(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        await self._writer._db.execute(
            "update easyjobs.schedules set paused_at = $2 where id = any($1::bigint[]) and paused_at is null", list(ids), self._writer._now
        )
        return await self._known(ids)

    async def resume(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        db, now = self._writer._db, self._writer._now
        paused = await db.fetch(
            f"select {SCHEDULE} where s.id = any($1::bigint[]) and s.paused_at is not null order by s.id for update of s", list(ids)
        )
        for each in map(schedule, paused):
            await db.execute(
                "update easyjobs.schedules set paused_at = null, next_at = $2 where id = $1", each.id, first_tick(each.what, now)
            )
        return await self._known(ids)

    async def prune(self, before_us: int, limit: int) -> int:
        """See the port."""
        return changed(await self._writer._db.execute(PRUNE, self._writer._now - before_us, limit))


def _columns(what: NewSchedule) -> tuple[str, str, bytes, str, int, str]:
    return what.expression, what.timezone, what.args, what.catch_up.value, what.window_us, what.overlap.value
