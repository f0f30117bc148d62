"""Messages that were put aside, as the writer keeps them. Runs inside the writer's transactions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import apsw

from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery

if TYPE_CHECKING:
    from easyjobs.stores.sqlite.writer import Writer

ADD: Final = """insert into quarantine(broker, queue, key, reason, detail, size, at, waits_until, task_queue, task_name, body)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) on conflict do nothing"""
FIND: Final = "select id from quarantine where broker = ?1 and queue = ?2 and key = ?3"
ROW: Final = "select id, broker, queue, key, reason, detail, body, size, at, waits_until from quarantine"
WAITING: Final = "select distinct task_queue, task_name from quarantine where waits_until is not null and waits_until > ?1"


class Quarantine:
    """What the port says of quarantined messages, for `writer`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def add(self, messages: Sequence[BadMessage]) -> list[int]:
        """See the port."""
        return [self._add(message) for message in messages]

    def _add(self, message: BadMessage) -> int:
        db, now = self._writer._db, self._writer._now
        until = now + message.wait_us if message.wait_us else None
        task_queue, task_name = message.task or (None, None)
        db.execute(
            ADD,
            (
                message.broker, message.queue, message.key, message.reason, message.detail, message.size, now, until, task_queue, task_name,
                message.body,
            ),
        )  # fmt: skip
        if db.changes():
            return db.last_insert_rowid()
        return int(db.execute(FIND, (message.broker, message.queue, message.key)).get)

    def read(self, query: QuarantineQuery) -> list[Quarantined]:
        """See the port."""
        where, values = ["true"], list[Any]()
        if query.ids is not None:
            where.append("id in (select value from carray(?))")
            values.append(apsw.carray(array("q", query.ids)))
        for column, value in (("queue", query.queue), ("reason", query.reason)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if query.before_id is not None:
            where.append("id < ?")
            values.append(query.before_id)
        order = "desc"
        if query.task is not None:
            where.append("task_queue = ? and task_name = ? and waits_until is not null and waits_until > ?")
            values.extend((*query.task, self._writer._now))
            order = "asc"
        rows = self._writer._db.execute(f"{ROW} where {' and '.join(where)} order by id {order} limit ?", (*values, query.limit))
        return [Quarantined(*row) for row in rows]

    def awaited(self) -> list[tuple[str, str]]:
        """See the port."""
        return [(queue, name) for queue, name in self._writer._db.execute(WAITING, (self._writer._now,))]

    def remove(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        return [bool(self._writer._db.execute("delete from quarantine where id = ? returning 1", (id,)).get) for id in ids]
