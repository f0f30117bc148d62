"""Reading jobs back, beside the writer."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence

import apsw
import msgspec

from easyjobs.domain.job import JobQuery, JobRecord, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.stores.sqlite.connection import open_reader
from easyjobs.stores.sqlite.rows import RECORD, record

BY_ID = f"select {RECORD.format('carray(?1) c join jobs j on j.id = c.value')}"
# As the partial indexes say it: the planner does not see that `state = 3` lies between 3 and 5.
STATE = {state: f"j.state = {int(state)}" + (" and j.state between 3 and 5" if 3 <= state <= 5 else "") for state in JobState}
TASKS = "select queue, name, signature, options, lane, offered_at from tasks order by lane"


def by_ids(db: apsw.Connection, ids: Sequence[bytes]) -> list[JobRecord | None]:
    """Jobs in the order of `ids`, None where there is none."""
    if not ids:
        return []
    found = {row[1]: record(row) for row in db.execute(BY_ID, (apsw.carray(tuple(dict.fromkeys(ids))),))}
    return [found.get(job_id) for job_id in ids]


class Reader:
    """A connection that only reads; for one thread at a time."""

    def __init__(self, path: str) -> None:
        self._db = open_reader(path)

    def close(self) -> None:
        self._db.close()

    def get(self, ids: Sequence[bytes]) -> list[JobRecord | None]:
        """See the port."""
        return by_ids(self._db, ids)

    def tasks(self) -> list[TaskRow]:
        """See the port."""
        return [TaskRow(*row) for row in self._db.execute(TASKS)]

    def page(self, query: JobQuery) -> list[JobRecord]:
        """See the port.

        One branch a state, each in the order of an index as far as there is one, merged: so that a page of a rare state does not
        walk through all jobs.
        """
        lanes = None if query.lanes is None else msgspec.json.encode(query.lanes).decode()
        where = "j.seq < ?1 and (?2 is null or j.lane in (select value from json_each(?2)))"
        if query.states is None:
            pick = f"select seq from jobs j where {where} order by seq desc limit ?3"
        else:
            branches = [
                f"select seq from (select seq from jobs j where {STATE[JobState(state)]} and {where} order by seq desc limit ?3)"
                for state in dict.fromkeys(query.states)
            ]
            if not branches:
                return []
            pick = f"select seq from ({' union all '.join(branches)}) order by seq desc limit ?3"
        before = 2**63 - 1 if query.before_seq is None else query.before_seq
        sql = f"select {RECORD.format(f'(select seq from ({pick})) q join jobs j on j.seq = q.seq')} order by j.seq desc"
        return [record(row) for row in self._db.execute(sql, (before, lanes, query.limit))]
