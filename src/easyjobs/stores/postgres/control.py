"""What happens to jobs otherwise than by claims and reports: a person's wishes, time that is over, and jobs that wait for others.

Part of the writer: everything here runs inside its transaction, one row at a time, as in `stores.sqlite.control`. Other managers write
beside us, so a row is locked when it is looked at (`for update`), and stays as it was seen until the commit.
"""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from easyjobs.domain.job import BEFORE, CALL, Change, Changed, Child, Running, UniqueKey
from easyjobs.domain.lifecycle import FINAL, JobEvent, JobState, advance
from easyjobs.errors import StoreError
from easyjobs.ports.store import Kept
from easyjobs.stores.postgres.reader import by_ids
from easyjobs.stores.postgres.rows import FINAL_STATES
from easyjobs.stores.verdicts import RANK_STEP_US, expired_error, predecessor_error, unoffered_error

if TYPE_CHECKING:
    from asyncpg import Connection

    from easyjobs.domain.job import NewJob
    from easyjobs.ports.store import Successors

ROW: Final = "seq, id, lane, state, attempt, session, round, cancel_requested, run_at, priority, parent_seq, edge, error, unique_key"
BY_SEQ: Final = f"select {ROW} from easyjobs.jobs where seq = $1 for update"
BY_ID: Final = f"select {ROW} from easyjobs.jobs where id = $1 for update"
KIN: Final = f"edge >= '{BEFORE}' and edge < '{BEFORE[:-1]};'"  # the edges that begin with BEFORE
CALLED: Final = f"edge >= '{CALL}' and edge < '{CALL[:-1]};'"
NEEDED: Final = f"""(j.parent_seq is not null and ({CALLED.replace("edge", "j.edge")} or {KIN.replace("edge", "j.edge")})
    and exists (select 1 from easyjobs.jobs p where p.seq = j.parent_seq and p.state not in {FINAL_STATES}))"""
PUT: Final = """update easyjobs.jobs set state = $2, back = 0, finished_at = $3, error = $4, rank = coalesce($5, rank), cancel_requested = false
    where seq = $1 and state = $6"""
AGAIN: Final = """update easyjobs.jobs set state = $2, rank = $3, back = 0, round = round + 1, failures = 0, crashes = 0, cancel_requested = false,
    run_at = null, expires_at = null, started_at = null, finished_at = null, pulled_at = null, result = null, error = null where seq = $1"""
FREE: Final = """delete from easyjobs.uniques u using unnest($1::bytea[], $2::bigint[]) r(key, seq) where u.key = r.key and u.seq = r.seq"""
FORGET: Final = "insert into easyjobs.forgotten(seq) select seq from easyjobs.seen where seq = any($1::bigint[])"


class Row(NamedTuple):
    """A job as far as this module cares."""

    seq: int
    id: bytes
    lane: int
    state: JobState
    attempt: int
    session: int | None
    round: int
    cancel_requested: bool
    run_at: int | None
    priority: int
    parent_seq: int | None
    edge: str | None
    error: bytes | None
    unique_key: bytes | None


class Control:
    """The verbs; `Writer` has what they stand on."""

    _db: Connection
    _now: int
    _changes: list[Change]
    _is_revised: bool
    successors: Successors

    def _move(self, lane: int, before: int, after: int, n: int = 1) -> None: ...

    def _count(self, lane: int, state: int, n: int) -> None: ...

    async def _bear_all(self, jobs: Iterable[NewJob], state: JobState, round: int, *, tell: bool = False) -> None: ...

    async def _answer(self, ended: Sequence[int]) -> None: ...

    # --- one job ----------------------------------------------------------------------------------------------------------------

    async def _row(self, sql: str, of: int | bytes) -> Row | None:
        found = await self._db.fetchrow(sql, of)
        return None if found is None else Row(*found)._replace(state=JobState(found[3]))

    async def _put(self, row: Row, event: JobEvent, error: bytes | None = None) -> JobState | None:
        """Move a job that does not run, as the table says, and tell it; None: the table has no such step."""
        after = advance(row.state, event)
        if after is None:
            return None
        rank = self._now - row.priority * RANK_STEP_US if after is JobState.QUEUED else None
        ended = self._now if after in FINAL else None
        if changed(await self._db.execute(PUT, row.seq, int(after), ended, error, rank, int(row.state))) != 1:
            raise StoreError("a row changed under its lock")
        self._move(row.lane, row.state, after)
        self._changes.append(Change(row.seq, row.id, row.lane, after, body=error or b""))
        if after in FINAL:
            await self._answer([row.seq])
        return after

    async def _fail(self, row: Row, event: JobEvent, error: bytes) -> None:
        """Fail a job that does not run, with what its failure brings to life."""
        after = await self._put(row, event, error)
        if after is JobState.FAILED:
            [record] = await by_ids(self._db, [row.id])
            assert record is not None
            await self._bear_all(self.successors(record), after, row.round, tell=True)

    # --- jobs that wait for others ----------------------------------------------------------------------------------------------

    async def _waited_for(self, ended: Sequence[int]) -> list[int]:
        """Those of these jobs that others wait for, in the order given."""
        rows = await self._db.fetch(f"select seq from easyjobs.jobs where seq = any($1::bigint[]) and {KIN}", list(ended))
        found = {seq for (seq,) in rows}
        return [seq for seq in ended if seq in found]

    async def _follow(self, ended: Sequence[int]) -> None:
        """These jobs have ended: queue the jobs whose last predecessor they were, fail those whose predecessor did not succeed.

        The waiting job is locked before its predecessors are looked at: of two managers that end its last two predecessors at once,
        the second one waits here, and then sees both.
        """
        queue = list(ended)
        while queue:
            child = await self._row(BY_SEQ, queue.pop(0))
            if child is None or child.parent_seq is None or child.edge is None or not child.edge.startswith(BEFORE):
                continue
            parent = await self._row(BY_SEQ, child.parent_seq)
            if parent is None or parent.state is not JobState.WAITING or child.state not in FINAL:
                continue
            if child.state is not JobState.SUCCEEDED:
                await self._fail(parent, JobEvent.PREDECESSOR_ENDED, predecessor_error(child.edge, child.state, child.error))
                queue.append(parent.seq)
            elif not await self._db.fetchval(
                f"select exists(select 1 from easyjobs.jobs where parent_seq = $1 and {KIN} and state <> 2)", parent.seq
            ):
                early = parent.run_at is not None and parent.run_at > self._now
                await self._put(parent, JobEvent.MET_EARLY if early else JobEvent.MET)

    # --- a person's wishes ------------------------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        return [await self._cancel(await self._row(BY_ID, job_id)) for job_id in ids]

    async def _cancel(self, row: Row | None) -> Changed:
        if row is None:
            return Changed(False, None)
        if row.state in FINAL:
            return Changed(row.state is JobState.CANCELLED, row.state)
        if row.state is JobState.RUNNING:
            await self._db.execute("update easyjobs.jobs set cancel_requested = true where seq = $1", row.seq)
            self._changes.append(Change(row.seq, row.id, row.lane, row.state, row.attempt, row.session or 0))
            after: JobState | None = row.state
        else:
            after = await self._put(row, JobEvent.CANCELLED)
        children = await self._db.fetch(
            f"select seq from easyjobs.jobs where parent_seq = $1 and (({KIN}) or ({CALLED})) and state in (0, 1, 6, 7) order by seq",
            row.seq,
        )
        for (seq,) in children:
            await self._cancel(await self._row(BY_SEQ, seq))
        if after in FINAL:
            await self._follow([row.seq])
        return Changed(True, after)

    async def stopping(self, sessions: Sequence[int]) -> list[list[Running]]:
        """See the port."""
        found: dict[int, list[Running]] = {session: [] for session in sessions}
        for session, *rest in await self._db.fetch(
            "select session, seq, attempt, lane, id from easyjobs.jobs where state = 1 and session = any($1::bigint[]) and cancel_requested "
            "order by seq",
            list(found),
        ):
            found[session].append(Running(*rest))
        return [found[session] for session in sessions]

    async def restart(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        return [await self._restart(await self._row(BY_ID, job_id)) for job_id in ids]

    async def _restart(self, row: Row | None) -> Changed:
        if row is None or advance(row.state, JobEvent.RESTARTED) is None:
            return Changed(False, None if row is None else row.state)
        if row.unique_key is not None:
            held = await self._db.fetchrow("select seq, states, until from easyjobs.uniques where key = $1 for update", row.unique_key)
            if held is not None and held[0] != row.seq and await self._holder(held) is not None:
                return Changed(False, row.state)  # its place is taken
            if held is not None:
                await self._db.execute("update easyjobs.uniques set seq = $1 where key = $2", row.seq, row.unique_key)
        unmet = await self._db.fetch(
            f"select seq, state from easyjobs.jobs where parent_seq = $1 and {KIN} and state <> 2 order by seq", row.seq
        )
        after = advance(row.state, JobEvent.RESTARTED_WAITING if unmet else JobEvent.RESTARTED)
        assert after is not None
        await self._db.execute(AGAIN, row.seq, int(after), self._now - row.priority * RANK_STEP_US)
        self._move(row.lane, row.state, after)
        self._changes.append(Change(row.seq, row.id, row.lane, after))
        for seq, _ in unmet:
            await self._restart(await self._row(BY_SEQ, seq))  # those that have not ended yet go on as they are
        return Changed(True, after)

    async def hasten(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        answers = []
        for job_id in ids:
            row = await self._row(BY_ID, job_id)
            after = None if row is None or row.state is not JobState.SCHEDULED else await self._put(row, JobEvent.DUE)
            answers.append(Changed(after is not None, after if after is not None else row.state if row is not None else None))
        return answers

    async def delete(self, ids: Sequence[bytes]) -> list[Changed]:
        """See the port."""
        answers = []
        for job_id in ids:
            row = await self._row(BY_ID, job_id)
            done = row is not None and row.state in FINAL
            if row is not None and done:
                await self._forget([row.seq])
            answers.append(Changed(done, None if row is None else row.state))
        return answers

    async def _forget(self, seqs: Sequence[int]) -> int:
        """Delete these jobs, but for those that have been brought back to life meanwhile; how many."""
        await self._db.execute("delete from easyjobs.attempts where seq = any($1::bigint[])", list(seqs))
        gone = await self._db.fetch(
            f"delete from easyjobs.jobs where seq = any($1::bigint[]) and state in {FINAL_STATES} returning lane, state, seq, unique_key",
            list(seqs),
        )
        for lane, state, *_ in gone:
            self._count(lane, state, -1)
        if gone:  # what they showed is left to `prune`
            await self._db.execute("delete from easyjobs.replies where seq = any($1::bigint[])", [seq for _, _, seq, _ in gone])
            await self._db.execute(FORGET, [seq for _, _, seq, _ in gone])
        if keys := [(key, seq) for _, _, seq, key in gone if key is not None]:
            await self._db.execute(FREE, *map(list, zip(*keys, strict=True)))
        return len(gone)

    # --- unique keys ------------------------------------------------------------------------------------------------------------

    async def _claim_key(self, unique: UniqueKey) -> bytes | None:
        """The id of the job that has this key now, if there is one."""
        held = await self._db.fetchrow("select seq, states, until from easyjobs.uniques where key = $1", unique.key)
        return None if held is None else await self._holder(held)

    async def _holder(self, held: Any) -> bytes | None:
        seq, states, until = held
        row = await self._row(BY_SEQ, seq)
        if row is None or not states >> row.state & 1 or (until is not None and until <= self._now):
            return None
        return row.id

    async def _keep_unique(self, unique: UniqueKey, seq: int) -> None:
        await self._db.execute(
            "insert into easyjobs.uniques(key, seq, states, until) values ($1, $2, $3, $4) "
            "on conflict (key) do update set seq = excluded.seq, states = excluded.states, until = excluded.until",
            unique.key, seq, sum(1 << state for state in unique.states),
            None if unique.period_us is None else self._now + unique.period_us,
        )  # fmt: skip

    # --- time -------------------------------------------------------------------------------------------------------------------

    async def expire(self, limit: int) -> int | None:
        """See the port."""
        rows = await self._db.fetch(
            "select seq from easyjobs.jobs where expires_at is not null and state in (0, 6, 7) and expires_at <= $1 "
            "order by expires_at, seq limit $2 for update skip locked",
            self._now, limit,
        )  # fmt: skip
        for (seq,) in rows:
            row = await self._row(BY_SEQ, seq)
            if row is not None:
                await self._put(row, JobEvent.EXPIRED, expired_error())
        await self._follow(await self._waited_for([seq for (seq,) in rows]) if rows else [])
        next_at: int | None = await self._db.fetchval(
            "select min(expires_at) from easyjobs.jobs where expires_at is not null and state in (0, 6, 7)"
        )
        return next_at

    async def fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int) -> int:
        """See the port."""
        failed: list[int] = []
        for lane in lanes:
            rows = await self._db.fetch(
                f"select seq from easyjobs.jobs where state = 0 and lane = $1 and parent_seq is not null and not ({CALLED}) "
                "and created_at <= $2 order by rank, seq limit $3 for update skip locked",
                lane, self._now - grace_us, limit - len(failed),
            )  # fmt: skip
            for (seq,) in rows:
                row = await self._row(BY_SEQ, seq)
                assert row is not None
                await self._fail(row, JobEvent.UNOFFERED, unoffered_error())
                failed.append(seq)
        await self._follow(await self._waited_for(failed) if failed else [])
        return len(failed)

    async def retain(self, kept: Kept, after_seq: int, limit: int) -> tuple[int, int | None]:
        """See the port."""
        rows = await self._db.fetch(
            "select seq, state, finished_at, created_at from easyjobs.jobs where seq > $1 order by seq limit $2", after_seq, limit
        )
        if not rows:
            return 0, None
        old = []
        for seq, state, finished_at, _ in rows:
            keep_us = kept.of(JobState(state))
            if finished_at is not None and keep_us is not None and finished_at <= self._now - keep_us:
                old.append(seq)
        gone = 0
        if old:
            # Locked, as another manager may retry one of them just now (`_forget` deletes what is final still), or be deleting it as we do.
            free = await self._db.fetch(
                f"select j.seq from easyjobs.jobs j where j.seq = any($1::bigint[]) and not {NEEDED} for update of j skip locked", old
            )
            gone = await self._forget([seq for (seq,) in free])
        is_young = rows[-1][3] > self._now - kept.shortest_us
        return gone, None if len(rows) < limit or is_young else rows[-1][0]

    # --- queues -----------------------------------------------------------------------------------------------------------------

    async def pause(self, queue: str, is_paused: bool) -> bool:
        """See the port."""
        if is_paused:
            done = await self._db.execute("insert into easyjobs.paused(queue, at) values ($1, $2) on conflict do nothing", queue, self._now)
        else:
            done = await self._db.execute("delete from easyjobs.paused where queue = $1", queue)
        is_new = changed(done) > 0
        self._is_revised = self._is_revised or is_new
        return is_new

    async def children(self, ids: Sequence[bytes]) -> list[list[Child]]:
        """See the port."""
        return [
            [
                Child(child, lane, edge, JobState(state))
                for child, lane, edge, state in await self._db.fetch(
                    "select id, lane, edge, state from easyjobs.jobs where parent_seq = (select seq from easyjobs.jobs where id = $1) "
                    "order by seq limit 1000",
                    job_id,
                )
            ]
            for job_id in ids
        ]


def changed(status: str) -> int:
    """How many rows a statement changed, by its tag: `UPDATE 3`."""
    return int(status.rpartition(" ")[2])
