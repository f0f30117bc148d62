"""Reading jobs back, beside the writer."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import msgspec

from easyjobs.domain.job import JobQuery, JobRecord, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import Schedule
from easyjobs.domain.seeing import FailedAttempt, Glance, LogLine, Look, Progress
from easyjobs.stores.sqlite.connection import open_reader
from easyjobs.stores.sqlite.rows import RECORD, SCHEDULE, STATES, record, schedule

BY_ID = f"select {RECORD.format('carray(?1) c join jobs j on j.id = c.value')}"
FEW = 20_000  # jobs; sorting so many takes about 10 ms
INDEX = {
    JobState.QUEUED: "jobs_ready",
    JobState.RUNNING: "jobs_running",
    JobState.SCHEDULED: "jobs_due",
    JobState.FAILED: "jobs_ended_badly",
    JobState.CANCELLED: "jobs_ended_badly",
    JobState.EXPIRED: "jobs_ended_badly",
}
# The planner does not see that `state = 3` lies between 3 and 5, as this index says.
HINT = {state: "and j.state between 3 and 5" for state, index in INDEX.items() if index == "jobs_ended_badly"}
SEEN = """select j.seq, j.state, j.attempt, s.mark_attempt = j.attempt, s.done, s.total, s.message, s.marked_at, s.lines, s.dropped
    from jobs j left join seen s on s.seq = j.seq where j.id = ?1"""
LINES = """select attempt, number, at, level, logger, text from logs where seq = ?1 and (attempt, number) > (?2, ?3)
    order by attempt, number limit ?4"""
ATTEMPTS = """select j.id, a.attempt, a.at, s.name, a.error from carray(?1) c join jobs j on j.id = c.value
    join attempts a on a.seq = j.seq left join sessions s on s.number = a.session order by a.seq, a.attempt"""
AHEAD = """select j.id, (select count(*) from (select 1 from jobs o where o.state = 0 and o.lane = j.lane
    and (o.rank, o.seq) < (j.rank, j.seq) limit ?2)) from carray(?1) c join jobs j on j.id = c.value where +j.state = 0"""
TASKS = "select queue, name, signature, options, lane, offered_at from tasks order by lane"


def by_ids(db: apsw.Connection, ids: Sequence[bytes]) -> list[JobRecord | None]:
    """Jobs in the order of `ids`, None where there is none."""
    if not ids:
        return []
    found = {row[1]: record(row) for row in db.execute(BY_ID, (apsw.carray(tuple(dict.fromkeys(ids))),))}
    return [found.get(job_id) for job_id in ids]


def records(db: apsw.Connection, seqs: Sequence[int]) -> list[JobRecord]:
    """Jobs by seq, in its order."""
    return [
        record(row)
        for row in db.execute(
            f"select {RECORD.format('carray(?1) c join jobs j on j.seq = c.value')} order by j.seq", (apsw.carray(array("q", seqs)),)
        )
    ]


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

    def look(self, glances: Sequence[Glance]) -> list[Look | None]:
        """See the port. The state is read before the lines: those of a job that has ended are all there."""
        return [self._look(glance) for glance in glances]

    def _look(self, glance: Glance) -> Look | None:
        row = self._db.execute(SEEN, (glance.id,)).fetchone()
        if row is None:
            return None
        seq, state, attempt, is_current, done, total, message, at, count, dropped = row
        lines: list[LogLine] = []
        is_more = False
        if count:
            found: list[tuple[Any, ...]] = self._db.execute(LINES, (seq, *glance.after, glance.limit + 1)).fetchall()
            lines = [LogLine(*each) for each in found[: glance.limit]]
            is_more = len(found) > glance.limit
        progress = Progress(attempt, done, total, message, at) if is_current else None
        return Look(STATES[state], attempt, progress, lines, is_more, count or 0, dropped or 0)

    def attempts(self, ids: Sequence[bytes]) -> list[list[FailedAttempt]]:
        """See the port."""
        found: dict[bytes, list[FailedAttempt]] = {}
        if ids:
            for id, *rest in self._db.execute(ATTEMPTS, (apsw.carray(tuple(dict.fromkeys(ids))),)):
                found.setdefault(id, []).append(FailedAttempt(*rest))
        return [found.get(id, []) for id in ids]

    def ahead(self, ids: Sequence[bytes], limit: int) -> list[int | None]:
        """See the port."""
        found = dict(self._db.execute(AHEAD, (apsw.carray(tuple(dict.fromkeys(ids))), limit))) if ids else {}
        return [found.get(id) for id in ids]

    def schedules(self, ids: Sequence[int] | None) -> list[Schedule]:
        """See the port."""
        if ids is None:
            return [schedule(row) for row in self._db.execute(f"select {SCHEDULE} order by s.id")]
        some = (msgspec.json.encode(ids).decode(),)
        return [
            schedule(row)
            for row in self._db.execute(f"select {SCHEDULE} where s.id in (select value from json_each(?)) order by s.id", some)
        ]

    def page(self, query: JobQuery, counts: Mapping[tuple[int, int], int]) -> list[JobRecord]:
        """See the port. `counts` says how many jobs are in each (lane, state): what is not there is not looked for.

        One branch a state, each in the order of seq, merged. A state that has few jobs, or none, in these lanes is found by its
        partial index; where there are many, walking back from the newest meets them soon. What remains slow is a lane with few
        successes among millions of others.
        """
        lanes = None if query.lanes is None else msgspec.json.encode(query.lanes).decode()
        where = "j.seq < ?1" if lanes is None else "j.seq < ?1 and j.lane in (select value from json_each(?2))"
        states = query.states
        if states is None and query.lanes is not None:
            states = tuple(JobState)
        if states is None:
            pick = f"select seq from jobs j where {where} order by seq desc limit ?3"
        else:
            wanted = None if query.lanes is None else set(query.lanes)
            branches = []
            for state in dict.fromkeys(states):
                many = sum([n for (lane, of), n in counts.items() if of == state and (wanted is None or lane in wanted)])
                if many:
                    source = f"jobs j indexed by {INDEX[state]}" if state in INDEX and many <= FEW else "jobs j not indexed"
                    branches.append(
                        f"select seq from (select seq from {source} where j.state = {int(state)} {HINT.get(state, '')} "
                        f"and {where} order by seq desc limit ?3)"
                    )
            if not branches:
                return []
            pick = f"select seq from ({' union all '.join(branches)}) order by seq desc limit ?3"
        before = 2**63 - 1 if query.before_seq is None else query.before_seq
        sql = f"select {RECORD.format(f'(select seq from ({pick})) q join jobs j on j.seq = q.seq')} order by j.seq desc"
        return [record(row) for row in self._db.execute(sql, (before, lanes, query.limit))]
