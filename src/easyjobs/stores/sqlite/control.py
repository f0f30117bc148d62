"""What happens to jobs otherwise than by claims and reports: a person's wishes, time that is over, and jobs that wait for others.

Part of the writer: everything here runs inside its transaction. These verbs are about few jobs, so they look at one row at a time;
what they change beyond what they were asked for is told as `Change`s after the commit.
"""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw
import msgspec

from easyjobs.domain.job import BEFORE, CALL, Change, Changed, Child, Running, UniqueKey
from easyjobs.domain.lifecycle import FINAL, JobEvent, JobState, advance
from easyjobs.errors import StoreError
from easyjobs.ports.store import Kept
from easyjobs.stores.sqlite.reader import by_ids
from easyjobs.stores.verdicts import RANK_STEP_US, expired_error, predecessor_error, unoffered_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from easyjobs.domain.job import NewJob
    from easyjobs.ports.store import Successors

ROW: Final = "seq, id, lane, state, attempt, session, round, cancel_requested, run_at, priority, parent_seq, edge, error, unique_key"
BY_SEQ: Final = f"select {ROW} from jobs where seq = ?1"
BY_ID: Final = f"select {ROW} from jobs where id = ?1"
KIN: Final = f"edge >= '{BEFORE}' and edge < '{BEFORE[:-1]};'"  # the edges that begin with BEFORE
CALLED: Final = f"edge >= '{CALL}' and edge < '{CALL[:-1]};'"
WAITED_FOR: Final = f"select j.seq from carray(?1) c cross join jobs j on j.seq = c.value where j.{KIN.replace('and edge', 'and j.edge')}"
PUT: Final = """update jobs set state = ?2, back = 0, finished_at = ?3, error = ?4, rank = coalesce(?5, rank), cancel_requested = 0
    where seq = ?1 and +state = ?6"""
AGAIN: Final = """update jobs set state = ?2, rank = ?3, back = 0, round = round + 1, failures = 0, crashes = 0, cancel_requested = 0, run_at = null,
    expires_at = null, started_at = null, finished_at = null, pulled_at = null, result = null, error = null where seq = ?1"""


class Row(NamedTuple):
    """A job as far as this module cares."""

    seq: int
    id: bytes
    lane: int
    state: JobState
    attempt: int
    session: int | None
    round: int
    cancel_requested: int
    run_at: int | None
    priority: int
    parent_seq: int | None
    edge: str | None
    error: bytes | None
    unique_key: bytes | None


class Control:
    """The verbs; `Writer` has what they stand on."""

    _db: apsw.Connection
    _now: int
    _waiting: int
    _changes: list[Change]
    _on_commit: list[Callable[[], None]]
    successors: Successors

    def _move(self, lane: int, before: int, after: int, n: int = 1) -> None: ...

    def _count(self, lane: int, state: int, n: int) -> None: ...

    def _answer(self, ended: Sequence[int]) -> None: ...

    def _bear_all(self, jobs: Iterable[NewJob], state: JobState, round: int, *, tell: bool = False) -> None: ...

    def _rows(self, sql: str, bindings: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, bindings).fetchall()

    # --- one job ----------------------------------------------------------------------------------------------------------------

    def _row(self, sql: str, of: int | bytes) -> Row | None:
        found = self._db.execute(sql, (of,)).fetchone()
        return None if found is None else Row(*found)._replace(state=JobState(found[3]))

    def _put(self, row: Row, event: JobEvent, error: bytes | None = None) -> JobState | None:
        """Move a job that does not run, as the table says, and tell it; None: the table has no such step."""
        after = advance(row.state, event)
        if after is None:
            return None
        rank = self._now - row.priority * RANK_STEP_US if after is JobState.QUEUED else None
        ended = self._now if after in FINAL else None
        self._db.execute(PUT, (row.seq, int(after), ended, error, rank, int(row.state)))
        if self._db.changes() != 1:
            raise StoreError("a row changed between two statements of one transaction")
        self._move(row.lane, row.state, after)
        if after in FINAL:
            self._answer([row.seq])
        self._changes.append(Change(row.seq, row.id, row.lane, after, body=error or b""))
        return after

    def _fail(self, row: Row, event: JobEvent, error: bytes) -> None:
        """Fail a job that does not run, with what its failure brings to life."""
        after = self._put(row, event, error)
        if after is JobState.FAILED:
            [record] = by_ids(self._db, [row.id])
            assert record is not None
            self._bear_all(self.successors(record), after, row.round, tell=True)

    # --- jobs that wait for others ----------------------------------------------------------------------------------------------

    def _follow(self, ended: Sequence[int]) -> None:
        """These jobs have ended: queue the jobs whose last predecessor they were, fail those whose predecessor did not succeed."""
        if not self._waiting or not ended:
            return
        queue = [seq for (seq,) in self._rows(WAITED_FOR, (apsw.carray(array("q", ended)),))]
        while queue:
            child = self._row(BY_SEQ, queue.pop(0))
            if child is None or child.parent_seq is None or child.edge is None or not child.edge.startswith(BEFORE):
                continue
            parent = self._row(BY_SEQ, child.parent_seq)
            if parent is None or parent.state is not JobState.WAITING:
                continue
            if child.state is not JobState.SUCCEEDED:
                self._fail(parent, JobEvent.PREDECESSOR_ENDED, predecessor_error(child.edge, child.state, child.error))
                queue.append(parent.seq)
            elif not self._db.execute(
                f"select exists(select 1 from jobs where parent_seq = ? and {KIN} and state <> 2)", (parent.seq,)
            ).get:
                early = parent.run_at is not None and parent.run_at > self._now
                self._put(parent, JobEvent.MET_EARLY if early else JobEvent.MET)

    # --- a person's wishes ------------------------------------------------------------------------------------------------------

    def cancel(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        return [self._cancel(self._row(BY_ID, job_id)) for job_id in ids]

    def _cancel(self, row: Row | None) -> Changed:
        if row is None:
            return Changed(False, None)
        if row.state in FINAL:
            return Changed(row.state is JobState.CANCELLED, row.state)
        if row.state is JobState.RUNNING:
            self._db.execute("update jobs set cancel_requested = 1 where seq = ?", (row.seq,))
            self._changes.append(Change(row.seq, row.id, row.lane, row.state, row.attempt, row.session or 0))
            after: JobState | None = row.state
        else:
            after = self._put(row, JobEvent.CANCELLED)
        children = self._rows(
            f"select seq from jobs where parent_seq = ? and ({KIN} or {CALLED}) and state in (0, 1, 6, 7) order by seq", (row.seq,)
        )
        for (seq,) in children:
            self._cancel(self._row(BY_SEQ, seq))
        if after in FINAL:
            self._follow([row.seq])
        return Changed(True, after)

    def stopping(self, sessions: Sequence[int]) -> list[list[Running]]:
        """See the port."""
        return [
            [
                Running(*each)
                for each in self._db.execute(
                    "select seq, attempt, lane, id from jobs where state = 1 and session = ? and cancel_requested = 1 order by seq",
                    (session,),
                )
            ]
            for session in sessions
        ]

    def restart(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        return [self._restart(self._row(BY_ID, job_id)) for job_id in ids]

    def _restart(self, row: Row | None) -> Changed:
        if row is None or advance(row.state, JobEvent.RESTARTED) is None:
            return Changed(False, None if row is None else row.state)
        if row.unique_key is not None:
            held = self._db.execute("select seq, states, until from uniques where key = ?", (row.unique_key,)).fetchone()
            if held is not None and held[0] != row.seq and self._holder(held) is not None:
                return Changed(False, row.state)  # its place is taken
            if held is not None:
                self._db.execute("update uniques set seq = ? where key = ?", (row.seq, row.unique_key))
        unmet = self._rows(f"select seq, state from jobs where parent_seq = ? and {KIN} and state <> 2 order by seq", (row.seq,))
        after = advance(row.state, JobEvent.RESTARTED_WAITING if unmet else JobEvent.RESTARTED)
        assert after is not None
        self._db.execute(AGAIN, (row.seq, int(after), self._now - row.priority * RANK_STEP_US))
        self._move(row.lane, row.state, after)
        self._changes.append(Change(row.seq, row.id, row.lane, after))
        for seq, _ in unmet:
            self._restart(self._row(BY_SEQ, seq))  # those that have not ended yet go on as they are
        return Changed(True, after)

    def hasten(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        answers = []
        for job_id in ids:
            row = self._row(BY_ID, job_id)
            after = None if row is None or row.state is not JobState.SCHEDULED else self._put(row, JobEvent.DUE)
            answers.append(Changed(after is not None, after if after is not None else row.state if row is not None else None))
        return answers

    def delete(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        answers = []
        for job_id in ids:
            row = self._row(BY_ID, job_id)
            done = row is not None and row.state in FINAL
            if row is not None and done:
                self._forget([(row.seq, row.lane, row.state)])
            answers.append(Changed(done, None if row is None else row.state))
        return answers

    def _forget(self, jobs: Sequence[tuple[int, int, int]]) -> None:
        seqs = msgspec.json.encode([seq for seq, _, _ in jobs]).decode()
        self._db.execute(
            "delete from uniques where (key, seq) in (select unique_key, seq from jobs "
            "where seq in (select value from json_each(?)) and unique_key is not null)",
            (seqs,),
        )
        for table in ("attempts", "jobs"):
            self._db.execute(f"delete from {table} where seq in (select value from json_each(?))", (seqs,))
        for _, lane, state in jobs:
            self._count(lane, state, -1)

    # --- unique keys ------------------------------------------------------------------------------------------------------------

    def _claim_key(self, unique: UniqueKey) -> bytes | None:
        """The id of the job that has this key now, if there is one."""
        held = self._db.execute("select seq, states, until from uniques where key = ?", (unique.key,)).fetchone()
        return None if held is None else self._holder(held)

    def _holder(self, held: tuple[Any, ...]) -> bytes | None:
        seq, states, until = held
        row = self._row(BY_SEQ, seq)
        if row is None or not states >> row.state & 1 or (until is not None and until <= self._now):
            return None
        return row.id

    def _keep_unique(self, unique: UniqueKey, seq: int) -> None:
        self._db.execute(
            "insert into uniques(key, seq, states, until) values (?, ?, ?, ?) "
            "on conflict do update set seq = excluded.seq, states = excluded.states, until = excluded.until",
            (
                unique.key, seq, sum(1 << state for state in unique.states),
                None if unique.period_us is None else self._now + unique.period_us,
            ),
        )  # fmt: skip

    # --- time -------------------------------------------------------------------------------------------------------------------

    def expire(self, limit: int) -> int | None:
        """See the port."""
        rows = self._rows(
            "select seq from jobs where expires_at is not null and state in (0, 6, 7) and expires_at <= ? order by expires_at limit ?",
            (self._now, limit),
        )
        for (seq,) in rows:
            row = self._row(BY_SEQ, seq)
            if row is not None:
                self._put(row, JobEvent.EXPIRED, expired_error())
        self._follow([seq for (seq,) in rows])
        next_at: int | None = self._db.execute("select min(expires_at) from jobs where expires_at is not null and state in (0, 6, 7)").get
        return next_at

    def fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int) -> int:
        """See the port."""
        failed: list[int] = []
        for lane in lanes:
            rows = self._rows(
                f"select seq from jobs where state = 0 and lane = ? and parent_seq is not null and not ({CALLED}) and created_at <= ? order by rank, seq limit ?",
                (lane, self._now - grace_us, limit - len(failed)),
            )
            for (seq,) in rows:
                row = self._row(BY_SEQ, seq)
                assert row is not None
                self._fail(row, JobEvent.UNOFFERED, unoffered_error())
                failed.append(seq)
        self._follow(failed)
        return len(failed)

    def retain(self, kept: Kept, after_seq: int, limit: int) -> tuple[int, int | None]:
        """See the port."""
        rows = self._rows(
            "select seq, lane, state, finished_at, created_at from jobs where seq > ? order by seq limit ?", (after_seq, limit)
        )
        if not rows:
            return 0, None
        old = []
        for seq, lane, state, finished_at, _ in rows:
            keep_us = kept.of(JobState(state))
            if finished_at is not None and keep_us is not None and finished_at <= self._now - keep_us:
                old.append((seq, lane, state))
        if old:
            live = {
                seq
                for (seq,) in self._db.execute(
                    f"select c.seq from json_each(?) o join jobs c on c.seq = o.value join jobs p on p.seq = c.parent_seq "
                    f"where (c.{CALLED.replace('and edge', 'and c.edge')} or c.{KIN.replace('and edge', 'and c.edge')}) and p.state not in (2, 3, 4, 5)",
                    (msgspec.json.encode([seq for seq, _, _ in old]).decode(),),
                )
            }
            old = [each for each in old if each[0] not in live]
        if old:
            self._forget(old)
        is_young = rows[-1][4] > self._now - kept.shortest_us
        return len(old), None if len(rows) < limit or is_young else rows[-1][0]

    # --- queues -----------------------------------------------------------------------------------------------------------------

    def pause(self, queue: str, is_paused: bool) -> bool:
        """See the port."""
        before = self._db.total_changes()
        if is_paused:
            self._db.execute("insert into paused(queue, at) values (?, ?) on conflict do nothing", (queue, self._now))
        else:
            self._db.execute("delete from paused where queue = ?", (queue,))
        return self._db.total_changes() != before

    def paused(self) -> list[str]:
        """See the port."""
        return [queue for (queue,) in self._db.execute("select queue from paused order by queue")]

    def children(self, ids: Sequence[bytes]) -> list[list[Child]]:
        """See the port."""
        return [
            [
                Child(child, lane, edge, JobState(state))
                for child, lane, edge, state in self._db.execute(
                    "select id, lane, edge, state from jobs where parent_seq = (select seq from jobs where id = ?) order by seq limit 1000",
                    (job_id,),
                )
            ]
            for job_id in ids
        ]
