"""Reading jobs back: on a connection of its own, as of the last commit, or inside the writer's transaction."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.job import JobQuery, JobRecord, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import Schedule
from easyjobs.stores.postgres.rows import FINAL_STATES, RECORD, SCHEDULE, record, schedule

if TYPE_CHECKING:
    from asyncpg import Connection

BY_ID: Final = f"select {RECORD.format('easyjobs.jobs j')} where j.id = any($1::bytea[])"
BY_SEQ: Final = f"select {RECORD.format('easyjobs.jobs j')} where j.seq = any($1::bigint[]) order by j.seq"
TASKS: Final = "select queue, name, signature, options, lane, offered_at from easyjobs.tasks order by lane"
COUNTS: Final = "select lane, state, sum(n)::bigint from easyjobs.counters group by lane, state having sum(n) <> 0"
SCHEDULES: Final = f"select {SCHEDULE} where $1::bigint[] is null or s.id = any($1::bigint[]) order by s.id"


async def by_ids(db: Connection, ids: Sequence[bytes]) -> list[JobRecord | None]:
    """Jobs in the order of `ids`, None where there is none."""
    if not ids:
        return []
    found = {row[1]: record(row) for row in await db.fetch(BY_ID, list(dict.fromkeys(ids)))}
    return [found.get(job_id) for job_id in ids]


async def records(db: Connection, seqs: Sequence[int]) -> list[JobRecord]:
    """Jobs by seq, in its order."""
    return [record(row) for row in await db.fetch(BY_SEQ, list(seqs))]


async def tasks(db: Connection) -> list[TaskRow]:
    """See the port."""
    return [TaskRow(*row) for row in await db.fetch(TASKS)]


async def schedules(db: Connection, ids: Sequence[int] | None) -> list[Schedule]:
    """See the port."""
    return [schedule(row) for row in await db.fetch(SCHEDULES, None if ids is None else list(ids))]


async def counts(db: Connection) -> dict[tuple[int, JobState], int]:
    """See the port."""
    return {(lane, JobState(state)): n for lane, state, n in await db.fetch(COUNTS)}


async def page(db: Connection, query: JobQuery) -> list[JobRecord]:
    """See the port.

    One branch a state, each in the order of seq, merged: each may use its state's partial index. States that have no job, as the
    counters say, are not looked for.
    """
    before = 2**63 - 1 if query.before_seq is None else query.before_seq
    lanes = None if query.lanes is None else list(query.lanes)
    where = "j.seq < $1 and ($2::integer[] is null or j.lane = any($2))"
    if query.states is None and lanes is None:
        pick = f"select seq from easyjobs.jobs j where {where} order by seq desc limit $3"
    else:
        wanted = tuple(JobState) if query.states is None else query.states
        counted = await counts(db)
        states = [state for state in dict.fromkeys(wanted) if any(of == state and (lanes is None or lane in lanes) for lane, of in counted)]
        if not states:
            return []
        pick = " union all ".join(
            f"(select seq from easyjobs.jobs j where j.state = {int(state)} and {where} order by seq desc limit $3)" for state in states
        )
        pick = f"select seq from ({pick}) b order by seq desc limit $3"
    sql = f"select {RECORD.format(f'({pick}) q join easyjobs.jobs j on j.seq = q.seq')} order by j.seq desc"
    return [record(row) for row in await db.fetch(sql, before, lanes, query.limit)]


async def paused(db: Connection) -> list[str]:
    """See the port."""
    return [queue for (queue,) in await db.fetch('select queue from easyjobs.paused order by queue collate "C"')]


async def revision(db: Connection) -> int:
    """See the port."""
    found: int | None = await db.fetchval("select value from easyjobs.meta where key = 'revision'")
    return found or 0


async def ended(db: Connection, ids: Sequence[bytes]) -> list[JobRecord]:
    """See the port."""
    sql = f"select {RECORD.format('easyjobs.jobs j')} where j.id = any($1::bytea[]) and j.state in {FINAL_STATES}"
    return [record(row) for row in await db.fetch(sql, list(ids))]
