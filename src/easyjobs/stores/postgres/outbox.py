"""Ends of jobs that wait to be sent, within the writer's transaction.

Each manager has a sender for the same broker: what one has read is its own for a while, so that the others do not send it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.job import MAX_FRAME, NewJob
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.replies import Unsent
from easyjobs.stores.postgres.control import changed
from easyjobs.stores.postgres.rows import clean

if TYPE_CHECKING:
    from asyncpg import Connection

RESERVED_US: Final = 60_000_000  # a sender that has read an end and not said that it was sent is gone after this time

ADDRESS: Final = """insert into easyjobs.replies(seq, broker, queue, correlation) select j.seq, r.broker, r.queue, r.correlation
    from unnest($1::bytea[], $2::text[], $3::text[], $4::text[]) r(id, broker, queue, correlation) join easyjobs.jobs j on j.id = r.id"""
ANSWER: Final = """insert into easyjobs.outbox(broker, queue, correlation, at, job, lane, state, attempt, body)
    select r.broker, r.queue, r.correlation, $2, j.id, j.lane, j.state, j.attempt, coalesce(j.result, j.error, ''::bytea)
    from unnest($1::bigint[]) with ordinality e(seq, at) join easyjobs.replies r on r.seq = e.seq join easyjobs.jobs j on j.seq = e.seq
    order by e.at"""
READ: Final = """with mine as materialized (select id from easyjobs.outbox where broker = $1 and id > $2
        and (sender_until is null or sender_until <= $4 or sender = $5) order by id limit $3 for update skip locked)
    update easyjobs.outbox o set sender = $5, sender_until = $6 from mine where o.id = mine.id
    returning o.id, o.queue, o.correlation, o.at, o.job, o.lane, o.state, o.attempt, o.body"""


async def address(db: Connection, jobs: Sequence[NewJob]) -> None:
    """Remember where the ends of these jobs, which are stored, are told."""
    rows = [(job.id, job.reply.broker, clean(job.reply.queue), clean(job.reply.correlation)) for job in jobs if job.reply is not None]
    if rows:
        await db.execute(ADDRESS, *map(list, zip(*rows, strict=True)))


async def answer(db: Connection, ended: Sequence[int], now: int) -> int:
    """These jobs have ended, in this transaction: write what is to be told of it. Returns: how many ends."""
    return changed(await db.execute(ANSWER, list(ended), now)) if ended else 0


async def unsent(db: Connection, broker: str, after_id: int, limit: int, manager: int, now: int) -> list[Unsent]:
    """See the port."""
    rows = sorted(await db.fetch(READ, broker, after_id, limit, now, manager, now + RESERVED_US))
    found: list[Unsent] = []
    size = 0
    for id, queue, correlation, at, job, lane, state, attempt, body in rows:
        size += len(body)
        if found and size > MAX_FRAME:
            break
        found.append(Unsent(id, queue, correlation, at, job, lane, JobState(state), attempt, body))
    return found


async def sent(db: Connection, ids: Sequence[int]) -> int:
    """See the port."""
    return changed(await db.execute("delete from easyjobs.outbox where id = any($1::bigint[])", list(ids)))
