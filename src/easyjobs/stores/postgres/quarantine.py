"""Messages that were put aside, within the writer's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.stores.postgres.rows import clean

if TYPE_CHECKING:
    from asyncpg import Connection

ADD: Final = """insert into easyjobs.quarantine(broker, queue, key, reason, detail, size, at, waits_until, task_queue, task_name, body)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing returning id"""
FIND: Final = "select id from easyjobs.quarantine where broker = $1 and queue = $2 and key = $3"
ROW: Final = "select id, broker, queue, key, reason, detail, body, size, at, waits_until from easyjobs.quarantine"
WAITING: Final = "select distinct task_queue, task_name from easyjobs.quarantine where waits_until is not null and waits_until > $1"
REMOVE: Final = "delete from easyjobs.quarantine where id = $1 returning true"


async def add(db: Connection, messages: Sequence[BadMessage], now: int) -> list[int]:
    """See the port's `quarantine`."""
    return [await _add(db, message, now) for message in messages]


async def _add(db: Connection, message: BadMessage, now: int) -> int:
    until = now + message.wait_us if message.wait_us else None
    task_queue, task_name = message.task or (None, None)
    named = (clean(message.broker), clean(message.queue), clean(message.key))
    id: int | None = await db.fetchval(
        ADD, *named, message.reason, clean(message.detail), message.size, now, until, clean(task_queue), clean(task_name), message.body
    )
    if id is None:
        id = await db.fetchval(FIND, *named)
    assert id is not None
    return id


async def read(db: Connection, query: QuarantineQuery, now: int) -> list[Quarantined]:
    """See the port's `quarantined`."""
    where, values = ["true"], list[Any]()

    def restrict(condition: str, *some: Any) -> None:
        where.append(condition.format(*[f"${len(values) + n}" for n in range(1, len(some) + 1)]))
        values.extend(some)

    if query.ids is not None:
        restrict("id = any({}::bigint[])", list(query.ids))
    if query.queue is not None:
        restrict("queue = {}", clean(query.queue))
    if query.reason is not None:
        restrict("reason = {}", clean(query.reason))
    if query.before_id is not None:
        restrict("id < {}", query.before_id)
    order = "desc"
    if query.task is not None:
        queue, name = query.task
        restrict("task_queue = {} and task_name = {} and waits_until is not null and waits_until > {}", clean(queue), clean(name), now)
        order = "asc"
    rows = await db.fetch(f"{ROW} where {' and '.join(where)} order by id {order} limit ${len(values) + 1}", *values, query.limit)
    return [Quarantined(*row) for row in rows]


async def awaited(db: Connection, now: int) -> list[tuple[str, str]]:
    """See the port's `awaited_tasks`."""
    return [(queue, name) for queue, name in await db.fetch(WAITING, now)]


async def remove(db: Connection, ids: Sequence[int]) -> list[bool]:
    """See the port's `unquarantine`."""
    return [bool(await db.fetchval(REMOVE, id)) for id in ids]
