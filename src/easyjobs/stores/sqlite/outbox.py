"""Ends of jobs that wait to be sent, as the writer keeps them. Runs inside the writer's transactions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import apsw

from easyjobs.domain.job import MAX_FRAME
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.replies import Unsent

if TYPE_CHECKING:
    from easyjobs.stores.sqlite.writer import Writer

READ: Final = """select id, queue, correlation, at, job, lane, state, attempt, body from outbox
    where broker = ?1 and id > ?2 order by id limit ?3"""


class Outbox:
    """What the port says of ends that are sent, for `writer`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def unsent(self, broker: str, after_id: int, limit: int) -> list[Unsent]:
        """See the port."""
        found: list[Unsent] = []
        size = 0
        for id, queue, correlation, at, job, lane, state, attempt, body in self._writer._db.execute(READ, (broker, after_id, limit)):
            size += len(body)
            if found and size > MAX_FRAME:
                break
            found.append(Unsent(id, queue, correlation, at, job, lane, JobState(state), attempt, body))
        return found

    def sent(self, ids: Sequence[int]) -> int:
        """See the port."""
        db = self._writer._db
        db.execute("delete from outbox where id in (select value from carray(?))", (apsw.carray(array("q", ids)),))
        return db.changes()
