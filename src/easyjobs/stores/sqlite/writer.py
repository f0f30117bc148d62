"""The one writer: runs a batch of calls as one transaction.

What makes it fast, and must stay:

* One statement serves a whole batch, and returns one row: for each row that SQLite returns, the thread takes the GIL back from a busy
  event loop, which can take milliseconds.
* Payloads cross as arrays of blobs (carray), each with the numbers that belong to it in front, in fixed width: no escaping, no JSON.
* What is usual is written first and looked at afterwards: when fewer rows changed than were asked for, the batch is rolled back and
  runs again with a look at each row.
* A claim reads the best jobs and then updates them; between the two nobody can write, since there is one writer.

Counters are added up in memory and written once a batch, in its transaction. Leases are deadlines in memory, in monotonic time: this
process is the only one that could end them, and after a restart every session gets a fresh one.
"""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

import contextlib
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import apsw
import msgspec

from easyjobs.domain.blame import is_blamed, is_suspect
from easyjobs.domain.job import (
    CALL,
    Answer,
    Change,
    Claimed,
    Claims,
    Due,
    IdempotencyKey,
    JobRecord,
    NewJob,
    NewSession,
    Outcome,
    Reports,
    Rescued,
    Running,
    Spec,
    Submission,
    Submitted,
    SubmitVerdict,
    TaskRow,
    Verdict,
    Want,
    with_predecessors,
)
from easyjobs.domain.lifecycle import FINAL, JobEvent, JobState, advance
from easyjobs.domain.seeing import Ledger, Line, Notes, enter
from easyjobs.errors import StoreError, StoreFull, StoreHeld, StoreLost
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Successors
from easyjobs.runtime import failpoints
from easyjobs.runtime.batcher import Call
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.sqlite.connection import MAX_CHECKED, migrate, open_writer, translate
from easyjobs.stores.sqlite.control import BY_ID, Control
from easyjobs.stores.sqlite.files import DatabaseFile
from easyjobs.stores.sqlite.reader import by_ids, records
from easyjobs.stores.sqlite.rows import CLAIMED, CLAIMED_TRACED, LIST, TRACE_OF, decode_claimed
from easyjobs.stores.verdicts import RANK_STEP_US, SUCCEEDED, UNKNOWN, Standing, calls_for_help, crash_error, depth_error, judge

log = logging.getLogger("easyjobs.store")

NOTE, FINISH, SUBMIT, CLAIM, OTHER = range(5)  # kinds of calls, in the order in which a transaction runs them
KINDS: Final = 5

CHECKPOINT_PAGES: Final = 1000
ARMS: Final = 100  # lanes that one claim merges in one statement

INSERT = """insert into jobs(id, lane, state, rank, max_retries, max_crashes, priority, run_at, timeout_us, expires_at, ttl_us, created_at, args)
    select substr(value, 1, 16), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, substr(value, 17) from carray(?1)"""
INSERT_ONE = """insert into jobs(id, lane, state, rank, max_retries, max_crashes, priority, run_at, timeout_us, expires_at, ttl_us, created_at, args,
    parent_seq, edge, parent_round, depth, unique_key, error, finished_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"""
TRACE = "insert into traces(seq, traceparent) select seq, ?2 from jobs where id in (select value from carray(?1))"
KEEP_KEYS = """insert into idempotency(principal, scope, key, body, ids, at, until)
    select value->>0, value->>1, value->>2, unhex(value->>3), unhex(value->>4), ?2, ?2 + (value->>5) from json_each(?1)"""
REPLIES = """insert into replies(seq, broker, queue, correlation) select j.seq, r.value->>1, r.value->>2, r.value->>3
    from json_each(?1) r cross join jobs j on j.id = unhex(r.value->>0)"""
ANSWER = """insert into outbox(broker, queue, correlation, at, job, lane, state, attempt, body)
    select r.broker, r.queue, r.correlation, ?2, j.id, j.lane, j.state, j.attempt, coalesce(j.result, j.error, x'')
    from carray(?1) c cross join replies r on r.seq = c.value cross join jobs j on j.seq = c.value"""
KNOWN = "select j.id, j.lane, j.args from carray(?1) c join jobs j on j.id = c.value"
CHILD = "select id from jobs where parent_seq = ?1 and edge = ?2 and parent_round = ?3"
LAST_CALL = "select id, state, parent_round from jobs where parent_seq = ?1 and edge = ?2 order by parent_round desc limit 1"
PARENT = "select round, depth, state, attempt, session from jobs where seq = ?1"

READY = "select rank, seq from jobs where state = 0 and lane = "
WITHIN = "select count(*) from (select sum(length(j.args)) over (order by q.rank, q.seq) - length(j.args) as before from ({}) q join jobs j using (seq)) where before < {}"
PICK = f"""select cast({LIST} || group_concat({CLAIMED}, '') as blob)
    from (select seq, attempt, lane, id, failures, timeout_us, args from jobs where state = 0 and lane = ?1 order by rank, seq limit ?2)"""
PICK_OF_MANY = f"""select cast({LIST} || group_concat({CLAIMED}, '') as blob)
    from (select seq, attempt, lane, id, failures, timeout_us, args from ({{}}) q cross join jobs j using (seq) order by q.rank, q.seq)"""
# The same for a file in which jobs have traces.
PICK_TRACED = PICK.replace(CLAIMED, CLAIMED_TRACED).replace("args from", f"args, {TRACE_OF.format('jobs')} from")
PICK_OF_MANY_TRACED = PICK_OF_MANY.replace(CLAIMED, CLAIMED_TRACED).replace("args from", f"args, {TRACE_OF.format('j')} from")
TAKE = "update jobs set state = 1, attempt = attempt + 1, session = ?2, back = 0, started_at = ?3 where {} and +state = 0"
TAKE_SOME = TAKE.format("seq in (select value from carray(?1))")
TAKE_ROW_OF = TAKE.format("seq between ?1 and ?4")  # seqs without a gap, as a lane of its own has them: a fifth faster

# A success, as one blob: the JSON `[seq, attempt, session, ran_us]`, then the result. Each number has BASE added, so that it has 19
# digits and stands where it is looked for; msgspec writes that seven times as fast as Python formats numbers. A number out of range
# (negative, or 9e18 and more) moves what follows it: then the fence finds no such attempt, or the bracket is not in its place, or the
# row's length is wrong, and the batch is looked at row by row.
BASE: Final = 10**18
SUCCESS_HEAD: Final = 81
# The fence. Without the unary plus the planner takes the partial index of running jobs: 1.7 s instead of 11 ms for 1,000 reports.
FENCE = """jobs.seq = cast(substr(r.value, 3, 18) as integer) and +jobs.state = 1
    and +jobs.attempt = cast(substr(r.value, 23, 18) as integer) and +jobs.session = cast(substr(r.value, 43, 18) as integer)
    and substr(r.value, 81, 1) = x'5d'"""
SUCCEED = f"""update jobs set state = 2, result = substr(r.value, 82), finished_at = ?2,
    started_at = ?2 - cast(substr(r.value, 63, 18) as integer) from carray(?1) r where {FENCE}"""
SUCCEEDED_LANES = f"select lane, count(*) from carray(?1) r cross join jobs where {FENCE} group by lane"

STANDINGS = """select json_group_array(json_array(j.seq, j.lane, j.state, j.attempt, j.session, j.back, j.round, j.failures, j.max_retries,
    json(iif(j.cancel_requested, 'true', 'false')), j.crashes, j.max_crashes)) from jobs j where j.seq in (select value from json_each(?1))"""
FAILED_BEFORE = """select json_group_array(r.key) from json_each(?1) r
    join attempts a on a.seq = r.value->>0 and a.attempt = r.value->>1 and a.session = r.value->>2"""
# Each row of the array: six digits that say how long its JSON is, the JSON, a payload.
CHANGES = "(select substr(value, 7, cast(substr(value, 1, 6) as integer))->'$' as f, substr(value, 7 + cast(substr(value, 1, 6) as integer)) as body from carray(?1))"
SETTLE = f"""update jobs set state = f->>4, back = f->>5, failures = f->>6, crashes = f->>11,
        run_at = coalesce(f->>7, run_at), started_at = ?2 - (f->>8), finished_at = iif(f->>9, ?2, null),
        result = iif(f->>10 = 0, body, null), error = iif(f->>10 = 1, body, null)
    from {CHANGES} where jobs.seq = f->>0 and +jobs.state = f->>1 and +jobs.attempt = f->>2 and +jobs.session = f->>3"""
REMEMBER = f"insert into attempts(seq, attempt, session, at, error) select f->>0, f->>2, f->>3, ?2, body from {CHANGES}"

# The parent of a call or of a predecessor has not ended: it may ask for the result again.
NEEDED = """(j.parent_seq is not null and (j.edge between 'call:' and 'call;' or j.edge between 'run_before:' and 'run_before;')
    and exists (select 1 from jobs p where p.seq = j.parent_seq and p.state not in (2, 3, 4, 5)))"""

HELD_SHORT_S: Final = 1.0  # a lock of another program that lasts no longer sends no worker away
QUEUE = f"""update jobs set state = 0, rank = run_at - priority * {RANK_STEP_US}
    where seq in (select value from json_each(?1)) and +state = 6"""
# In the order of their beginnings: the last of a session's suspects is there until all others are judged.
EXPIRED = """select seq, attempt, lane, id, session, crashes, max_crashes, coalesce(started_at, 0), cancel_requested from jobs
    where state = 1 and session in (select value from json_each(?1)) order by coalesce(started_at, 0), seq limit ?2"""
LAST_BEGAN = """select session, max(coalesce(started_at, 0)) from jobs where state = 1 and session in (select value from json_each(?1))
    and crashes > 0 and crashes + 1 >= max_crashes group by session"""
RESCUE = """update jobs set state = r.value->>2, back = 1, crashes = crashes + 1, finished_at = iif(r.value->>3, ?2, null), error = cast(r.value->>4 as blob)
    from json_each(?1) r where jobs.seq = r.value->>0 and +jobs.state = 1 and +jobs.attempt = r.value->>1 and +jobs.session = r.value->>5"""
COUNT = """insert into counters(lane, state, n) select value->>0, value->>1, value->>2 from json_each(?1) where true
    on conflict do update set n = n + excluded.n"""

# What jobs show of themselves. One row of JSON: [seq, attempt, session, state, ledger], the ledger null where there is none yet.
NOTED = """select json_group_array(json_array(j.seq, j.attempt, j.session, j.state,
    json(iif(s.seq is null, 'null', json_array(s.lines, s.bytes, s.dropped, s.last_attempt, s.last_number)))))
    from json_each(?1) r join jobs j on j.seq = r.value left join seen s on s.seq = j.seq"""
MARK = """insert into seen(seq, mark_attempt, done, total, message, marked_at) values (?, ?, ?, ?, ?, ?) on conflict (seq) do update set
    mark_attempt = excluded.mark_attempt, done = excluded.done, total = excluded.total, message = excluded.message, marked_at = excluded.marked_at"""
LINE = "insert into logs(seq, attempt, number, at, level, logger, text) values (?, ?, ?, ?, ?, ?, ?)"
LEDGER = """insert into seen(seq, lines, bytes, dropped, last_attempt, last_number) values (?, ?, ?, ?, ?, ?) on conflict (seq) do update set
    lines = excluded.lines, bytes = excluded.bytes, dropped = excluded.dropped, last_attempt = excluded.last_attempt, last_number = excluded.last_number"""

_json: Final = msgspec.json.Encoder().encode
_standings: Final = msgspec.json.Decoder(list[Standing]).decode
_numbers: Final = msgspec.json.Decoder(list[int]).decode
_noted: Final = msgspec.json.Decoder(list[tuple[int, int, int | None, JobState, Ledger | None]]).decode


def _text(value: object) -> str:
    return _json(value).decode()


class _LookCloserError(Exception):
    """Something in the batch is not usual: roll back, and look at each row."""


class Writer(Control):
    """The connection that writes. Used by one thread at a time; `counts` and `lost` may be read by others."""

    def __init__(self, file: DatabaseFile, *, clock: Clock, lease_s: float, durability: str) -> None:
        self._file = file
        self._clock = clock
        self._lease_s = lease_s
        self._durability = durability
        self._db: apsw.Connection
        self._opened = False
        self.lost: StoreLost | None = None
        self.counts: dict[tuple[int, int], int] = {}  # as of the last commit
        self._held: tuple[float, float] | None = None  # when another program's lock was first met, and last; until `rescue` finds it gone
        self._leases: dict[int, float] = {}  # session → deadline; -inf: ended, and nothing left to rescue
        self._has_traces = False  # whether any job ever had one
        self._is_trace_noted = False  # in the database, committed
        self._has_replies = False  # whether the end of any job is to be told to somebody
        self._is_to_send = False  # whether this transaction has written something to be sent
        self._widest = 0  # no queued job has more bytes of arguments
        self._wal_pages = 0
        self._careful = False
        self._now = 0
        self._n: dict[tuple[int, int], int] = {}  # counts, with what this transaction does
        self._delta: dict[tuple[int, int], int] = {}
        self._on_commit: list[Callable[[], None]] = []
        self._changes: list[Change] = []
        self._waiting = 0  # jobs that wait for others, with what this transaction does
        self.successors: Successors = lambda _: ()
        self.on_change: Callable[[list[Change]], None] = lambda _: None
        self.on_unsent: Callable[[], None] = lambda: None

    # --- opening and closing ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open, check and migrate the file; give every session with running jobs a fresh lease."""
        try:
            self._db = db = open_writer(self._file.path, durability=self._durability)
            self._opened = True
            pages, size = db.pragma("page_count"), db.pragma("page_size")
            if pages * size <= MAX_CHECKED and (verdict := db.pragma("quick_check")) != "ok":
                raise StoreLost(self._file.path, f"the file is damaged ({verdict})")
            migrate(db, self._file.path, self._clock.now())
            self.counts = {(lane, state): n for lane, state, n in db.execute("select lane, state, n from counters where n <> 0")}
            self._n = self.counts.copy()
            self._waiting = sum([n for (_, state), n in self._n.items() if state == JobState.WAITING])
            self._has_traces = bool(db.execute("select value from meta where key = 'has_traces'").get)
            self._has_replies = bool(db.execute("select exists(select 1 from replies)").get)
            self._widest = db.execute("select value from meta where key = 'widest_args'").get or 0
            self._leases = dict.fromkeys((number for (number,) in db.execute("select number from sessions")), float("-inf"))
            deadline = self._clock.monotonic() + self._lease_s
            for (number,) in db.execute("select distinct session from jobs where state = 1"):
                self._leases[number] = deadline
            db.set_wal_hook(self._on_wal)
            self._checkpoint()
            db.execute(
                "insert into meta(key, value) values ('opened_at', ?) on conflict do update set value = excluded.value",
                (self._clock.now(),),
            )
            self._file.watch()
            db.set_busy_timeout(0)  # a batch may run on the loop's thread: the batcher waits, elsewhere
        except apsw.Error as error:
            raise translate(self._file.path, error) from error

    def close(self) -> None:
        """Move all commits into the main file and close it."""
        if self._opened:
            self._opened = False
            self._db.set_busy_timeout(0)  # this is the loop's thread
            if self.lost is None:
                with contextlib.suppress(apsw.Error):  # commits are safe in the log as well
                    self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._db.close()

    def _on_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    # --- a batch ----------------------------------------------------------------------------------------------------------------

    def run(self, calls: list[Call]) -> list[Any]:
        """Run calls, which are sorted by kind, as one transaction: all or nothing. Raises StoreFull, StoreHeld, StoreLost; other errors blame a call."""
        if self.lost is not None:
            raise self.lost
        if self._wal_pages >= CHECKPOINT_PAGES:
            self._checkpoint()
        try:
            try:
                return self._transact(calls)
            except (_LookCloserError, apsw.ConstraintError):
                self._careful = True
                try:
                    return self._transact(calls)
                finally:
                    self._careful = False
        except StoreLost as error:
            self.lost = error
            raise
        except apsw.Error as error:
            ours = translate(self._file.path, error)
            if isinstance(ours, StoreLost):
                self.lost = ours
            if isinstance(ours, StoreHeld):
                now = self._clock.monotonic()
                self._held = (now if self._held is None else self._held[0], now)
            if isinstance(ours, StoreLost | StoreFull | StoreHeld):
                raise ours from error
            raise  # the batcher finds out which call is to blame

    def _transact(self, calls: list[Call]) -> list[Any]:
        db = self._db
        self._now = self._clock.now()
        self._delta.clear()
        self._on_commit.clear()
        self._changes.clear()
        self._is_to_send = False
        answers: list[Any] = []
        db.execute("begin")
        try:
            at, end = 0, len(calls)
            while at < end:
                kind, first = calls[at].kind, at
                while at < end and calls[at].kind == kind:
                    at += 1
                some = calls[first:at]
                if kind == NOTE:
                    answers.extend([self._note(notes) for notes in call.what] for call in some)
                elif kind == FINISH:
                    answers.extend(self._finish_calls([call.what for call in some]))
                elif kind == SUBMIT:
                    answers.extend(self._submit_calls([call.what for call in some]))
                elif kind == CLAIM:
                    answers.extend([self._claim(want) for want in call.what] for call in some)
                else:
                    answers.extend(call.what() for call in some)
            delta = [(lane, state, n) for (lane, state), n in self._delta.items() if n]
            if delta:
                db.execute(COUNT, (_text(delta),))
            if failpoints.ARMED:
                failpoints.reach("store.before_commit")
            db.execute("commit")
        except BaseException:
            for key, n in self._delta.items():
                self._n[key] -= n
                if key[1] == JobState.WAITING:
                    self._waiting -= n
            if db.in_transaction:
                with contextlib.suppress(apsw.Error):
                    db.execute("rollback")
            raise
        for lane, state, _ in delta:
            self.counts[lane, state] = self._n[lane, state]
        if failpoints.ARMED:
            failpoints.reach("store.committed")
        self._file.check()
        for act in self._on_commit:
            act()
        if self._changes:
            self.on_change(self._changes.copy())
        if self._is_to_send:
            self.on_unsent()
        return answers

    def _checkpoint(self) -> None:
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.FullError, apsw.BusyError):
            pass  # the commits stay in the log; the next time will do
        except apsw.Error as error:
            ours = translate(self._file.path, error)
            if isinstance(ours, StoreLost):
                self.lost = ours
            raise ours from error
        finally:
            self._wal_pages = 0  # the next commit says how many there are

    def _count(self, lane: int, state: int, n: int) -> None:
        key = (lane, state)
        self._delta[key] = self._delta.get(key, 0) + n
        self._n[key] = self._n.get(key, 0) + n
        if state == JobState.WAITING:
            self._waiting += n

    def _move(self, lane: int, before: int, after: int, n: int = 1) -> None:
        if before != after:
            self._count(lane, before, -n)
            self._count(lane, after, n)

    # --- submit -----------------------------------------------------------------------------------------------------------------

    def _submit_calls(self, calls: list[Sequence[Submission]]) -> list[list[Submitted]]:
        if self._careful:
            return [[self._submit_carefully(submission) for submission in call] for call in calls]
        groups: dict[Spec, list[bytes]] = {}
        keys: list[Submission] = []
        replying: list[NewJob] = []
        spec: Spec | None = None
        rows: list[bytes] = []
        answers: list[list[Submitted]] = []
        for call in calls:
            some: list[Submitted] = []
            for submission in call:
                if submission.key is not None and submission.key.keep_us is not None:
                    keys.append(submission)
                elif submission.key is not None:
                    some.append(self._submit_carefully(submission))
                    continue
                for job in submission.jobs:
                    if job.spec is not spec:
                        spec = job.spec
                        rows = groups.setdefault(spec, [])
                    if job.parent is not None or job.befores or job.unique is not None or len(job.id) != 16:
                        raise _LookCloserError
                    if job.reply is not None:
                        replying.append(job)
                    rows.append(job.id + job.args)
                some.append(Submitted(SubmitVerdict.ACCEPTED, tuple([job.id for job in submission.jobs])))
            answers.append(some)
        for of, values in groups.items():
            if values:
                self._insert(of, values)
        if replying:
            self._keep_replies(replying)
        if keys:  # of messages: hardly ever known, and if one is, the constraint makes us look closer
            self._keep_keys(keys)
        return answers

    def _submit_carefully(self, submission: Submission) -> Submitted:
        jobs = submission.jobs
        key = submission.key
        if any(len(job.id) != 16 for job in jobs):
            raise ValueError("a job's id has 16 bytes")
        ids = tuple([job.id for job in jobs])
        if key is not None:
            stored = self._db.execute(
                "select body, ids from idempotency where principal = ? and scope = ? and key = ?", (key.principal, key.scope, key.key)
            ).get
            if stored is not None:
                if stored[0] != key.body:
                    return Submitted(SubmitVerdict.CONFLICT, ())
                return Submitted(SubmitVerdict.REPEATED, tuple(stored[1][at : at + 16] for at in range(0, len(stored[1]), 16)))
        known: dict[bytes, tuple[int, bytes]] = {}
        if ids:
            known = {job_id: (lane, args) for job_id, lane, args in self._db.execute(KNOWN, (apsw.carray(ids),))}
        repeated = len(known) > 0
        new: dict[bytes, NewJob] = {}
        for job in jobs:
            content = known.get(job.id)
            if content is None:
                known[job.id] = (job.spec.lane, job.args)
                new[job.id] = job
            elif content != (job.spec.lane, job.args):
                return Submitted(SubmitVerdict.CONFLICT, ())
        groups: dict[Spec, list[bytes]] = {}
        kin: list[NewJob] = []
        for job in new.values():
            if job.parent is None and not job.befores and job.unique is None:
                groups.setdefault(job.spec, []).append(job.id + job.args)
            else:
                kin.append(job)
                if job.parent is not None and job.parent.holder is not None and not self._owns(job.parent.seq, job.parent.holder):
                    return Submitted(SubmitVerdict.ORPHANED, ())
        for spec, rows in groups.items():
            self._insert(spec, rows)
        self._keep_replies(
            [job for job in new.values() if job.reply is not None and job.parent is None and not job.befores and job.unique is None]
        )
        born = {job.id: self._bear(job) for job in kin}
        if born:
            ids = tuple(born.get(job_id, job_id) for job_id in ids)
            repeated = repeated or any(job_id != given for given, job_id in born.items())
        if key is not None:
            self._keep_key(key, ids)
        if repeated and not any(born.get(job_id, job_id) == job_id for job_id in new):
            return Submitted(SubmitVerdict.REPEATED, ids)
        return Submitted(SubmitVerdict.ACCEPTED, ids)

    def _keep_key(self, key: IdempotencyKey, ids: tuple[bytes, ...]) -> None:
        until = None if key.keep_us is None else self._now + key.keep_us
        self._db.execute(
            "insert into idempotency(principal, scope, key, body, ids, at, until) values (?, ?, ?, ?, ?, ?, ?)",
            (key.principal, key.scope, key.key, key.body, b"".join(ids), self._now, until),
        )

    def _keep_keys(self, submissions: Sequence[Submission]) -> None:
        rows = [
            (key.principal, key.scope, key.key, key.body.hex(), b"".join([job.id for job in submission.jobs]).hex(), key.keep_us)
            for submission in submissions
            if (key := submission.key) is not None
        ]
        self._db.execute(KEEP_KEYS, (_text(rows), self._now))

    def _keep_replies(self, jobs: Sequence[NewJob]) -> None:
        rows = [(job.id.hex(), job.reply.broker, job.reply.queue, job.reply.correlation) for job in jobs if job.reply is not None]
        if rows:
            self._db.execute(REPLIES, (_text(rows),))
            self._has_replies = True  # wrongly, if it fails: that does no harm

    def _answer(self, ended: Sequence[int]) -> None:
        """These jobs have ended, in this transaction: write what is to be told of it."""
        if self._has_replies and ended:
            self._db.execute(ANSWER, (apsw.carray(array("q", ended)), self._now))
            self._is_to_send = self._is_to_send or self._db.changes() > 0

    def _placed(self, spec: Spec) -> tuple[Any, ...]:
        now = self._now
        state = JobState.SCHEDULED if spec.run_at is not None and spec.run_at > now else JobState.QUEUED
        rank = (now if spec.run_at is None else spec.run_at) - spec.priority * RANK_STEP_US
        return (
            spec.lane, int(state), rank, spec.max_retries, spec.max_crashes, spec.priority, spec.run_at, spec.timeout_us,
            None if spec.expires_us is None else now + spec.expires_us, spec.ttl_us, now,
        )  # fmt: skip

    def _insert(self, spec: Spec, rows: list[bytes]) -> None:
        placed = self._placed(spec)
        self._db.execute(INSERT, (apsw.carray(tuple(rows)), *placed))
        if spec.traceparent is not None:
            self._trace([row[:16] for row in rows], spec.traceparent)
        self._widen(max(map(len, rows)) - 16)
        self._count(spec.lane, placed[1], len(rows))

    def _owns(self, seq: int, holder: tuple[int, int]) -> bool:
        """Whether the attempt of a call runs its job still."""
        row = self._db.execute(PARENT, (seq,)).fetchone()
        return row is not None and row[2] == JobState.RUNNING and (row[3], row[4]) == holder

    def _bear(self, job: NewJob, parent_round: int | None = None, parent_seq: int | None = None) -> bytes:
        """Insert a job that has kin or a unique key, with its predecessors; return the id of the one that is there in its place."""
        parent, edge, depth, error = job.parent, None, 0, None
        if parent is not None:
            edge = parent.edge
            if parent_seq is None:
                parent_seq = parent.seq
            generation = self._db.execute(PARENT, (parent_seq,)).fetchone() or (1, 0)
            depth = generation[1] + 1
            if edge.startswith(CALL):
                last = self._db.execute(LAST_CALL, (parent_seq, edge)).fetchone()
                if last is not None and last[1] not in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
                    return bytes(last[0])
                parent_round = 1 if last is None else last[2] + 1
            elif parent_round is None:
                parent_round = generation[0]
            if depth > parent.max_depth:
                error = depth_error(parent.max_depth)
            if (found := self._db.execute(CHILD, (parent_seq, edge, parent_round)).get) is not None:
                return bytes(found)
        if job.unique is not None and (holder := self._claim_key(job.unique)) is not None:
            return holder
        if self._db.execute("select exists(select 1 from jobs where id = ?)", (job.id,)).get:
            return job.id
        lane, state, *rest = self._placed(job.spec)
        if error is not None:
            state = int(JobState.FAILED)
        elif job.befores:
            state = int(JobState.WAITING)
        self._db.execute(
            INSERT_ONE,
            (
                job.id, lane, state, *rest, job.args, parent_seq, edge, parent_round, depth,
                None if job.unique is None else job.unique.key, error, None if error is None else self._now,
            ),
        )  # fmt: skip
        seq = self._db.last_insert_rowid()
        if job.spec.traceparent is not None:
            self._trace([job.id], job.spec.traceparent)
        if job.reply is not None:
            self._keep_replies([job])
            self._answer([seq] if error is not None else [])
        self._widen(len(job.args))
        self._count(lane, state, 1)
        if job.unique is not None:
            self._keep_unique(job.unique, seq)
        if state == JobState.WAITING:
            for predecessor in job.befores:
                self._bear(predecessor, 1, seq)
        return job.id

    def _noted_traces(self) -> None:
        self._is_trace_noted = True

    def _trace(self, ids: Sequence[bytes], traceparent: str) -> None:
        self._db.execute(TRACE, (apsw.carray(tuple(ids)), traceparent))
        self._has_traces = True  # at once: a claim may be in this transaction; wrongly, if it fails: that does no harm
        if not self._is_trace_noted:
            self._db.execute("insert into meta(key, value) values ('has_traces', 1) on conflict do nothing")
            self._on_commit.append(self._noted_traces)

    def _widen(self, size: int) -> None:
        if size > self._widest:
            widest = 1 << size.bit_length()
            self._db.execute(
                "insert into meta(key, value) values ('widest_args', ?) on conflict do update set value = excluded.value", (widest,)
            )
            self._widest = widest  # too large, if the batch fails: that does no harm

    # --- claim ------------------------------------------------------------------------------------------------------------------

    def _claim(self, want: Want) -> Claims:
        n = self._n
        if self._leases.get(want.session, float("-inf")) <= self._clock.monotonic():
            return Claims([], ())  # whose lease has ended gets nothing: the next rescue would take it back
        lanes = [lane for lane in dict.fromkeys(want.lanes) if n.get((lane, 0), 0) > 0]
        jobs: list[Claimed] = []
        room = want.room
        if lanes and room > 0:
            ready = f"{READY}?1"
            if len(lanes) > 1:
                ready = " union all ".join([f"{READY}{int(lane)}" for lane in self._best(lanes, room)])
            ready += " order by rank, seq limit ?2"
            if room * self._widest > want.max_bytes:
                room = self._db.execute(WITHIN.format(ready, "?3"), (lanes[0], room, want.max_bytes)).get
            pick, pick_of_many = (PICK_TRACED, PICK_OF_MANY_TRACED) if self._has_traces else (PICK, PICK_OF_MANY)
            picked = self._db.execute(pick if len(lanes) == 1 else pick_of_many.format(ready), (lanes[0], room)).get
            jobs = decode_claimed(picked)
            self._take([job.seq for job in jobs], want.session)
            if len(lanes) == 1:
                self._move(lanes[0], 0, 1, len(jobs))
            else:
                for lane, many in Counter([job.lane for job in jobs]).items():
                    self._move(lane, 0, 1, many)
        return Claims(jobs, tuple([lane for lane in want.lanes if n.get((lane, 0), 0) <= 0]))

    def _take(self, seqs: list[int], session: int) -> None:
        first, last = seqs[0], seqs[-1]
        if last - first == len(seqs) - 1 and seqs == list(range(first, last + 1)):
            self._db.execute(TAKE_ROW_OF, (first, session, self._now, last))
        else:
            self._db.execute(TAKE_SOME, (apsw.carray(array("q", seqs)), session, self._now))
        if self._db.changes() != len(seqs):
            raise StoreError("a row changed between two statements of one transaction")

    def _best(self, lanes: list[int], room: int) -> list[int]:
        """At most ARMS lanes, those with the best first job."""
        if len(lanes) <= ARMS:
            return lanes
        heads = self._db.execute(
            "select json_group_array(value) from (select value from json_each(?1) order by "
            "(select rank from jobs where state = 0 and lane = value order by rank, seq limit 1) limit ?2)",
            (_text(lanes), min(ARMS, max(room, 1))),
        ).get
        return _numbers(heads)

    # --- finish -----------------------------------------------------------------------------------------------------------------

    def _finish_calls(self, calls: list[Sequence[Reports]]) -> list[list[list[Verdict]]]:
        everything = [reports for call in calls for reports in call]
        if not self._careful and not any(reports.successors for reports in everything):
            outcomes = [report.outcome for reports in everything for report in reports.items]
            if not any(outcomes):  # SUCCEEDED is 0
                if outcomes:
                    self._succeed(everything)
                return [[[SUCCEEDED] * len(reports.items) for reports in call] for call in calls]
        verdicts = iter(self._finish_carefully(everything))
        return [[[next(verdicts) for _ in reports.items] for reports in call] for call in calls]

    def _succeed(self, everything: list[Reports]) -> None:
        rows: list[bytes] = []
        size = 0
        for reports in everything:
            session = reports.session + BASE
            items = reports.items
            size += sum([len(report.body) for report in items]) + SUCCESS_HEAD * len(items)
            rows += [_json((report.seq + BASE, report.attempt + BASE, session, report.ran_us + BASE)) + report.body for report in items]
        if sum(map(len, rows)) != size:
            raise _LookCloserError
        values = tuple(rows)
        lanes: list[Any]
        live = [lane for (lane, state), n in self._n.items() if state == JobState.RUNNING and n]
        if len(live) == 1:
            lanes = [(live[0], len(rows))]
        else:
            lanes = list(self._db.execute(SUCCEEDED_LANES, (apsw.carray(values),)))
        self._db.execute(SUCCEED, (apsw.carray(values), self._now))
        if self._db.changes() != len(rows):
            raise _LookCloserError
        for lane, n in lanes:
            self._move(lane, JobState.RUNNING, JobState.SUCCEEDED, n)
        if self._waiting or self._has_replies:
            ended = [report.seq for reports in everything for report in reports.items]
            self._answer(ended)
            self._follow(ended)

    def _finish_carefully(self, everything: list[Reports]) -> list[Verdict]:
        reported = [(report.seq, report.attempt, reports.session) for reports in everything for report in reports.items]
        found = _standings(self._db.execute(STANDINGS, (_text(sorted({seq for seq, _, _ in reported})),)).get)
        standings = {standing.seq: standing for standing in found}
        failed_before = set(_numbers(self._db.execute(FAILED_BEFORE, (_text(reported),)).get))
        verdicts: list[Verdict] = []
        rows: list[tuple[Any, ...]] = []
        changed: set[int] = set()
        ended: list[int] = []
        helpless: dict[int, tuple[bytes, int]] = {}
        at = -1
        for reports in everything:
            for report in reports.items:
                at += 1
                standing = standings.get(report.seq)
                if standing is None:
                    verdicts.append(UNKNOWN)
                    continue
                if report.seq in changed:  # one statement sees a row once: what came before must be written first
                    self._settle(rows, helpless)
                    rows.clear()
                    changed.clear()
                before = standing.state
                verdict = judge(standing, reports.session, report, failed_before=at in failed_before)
                verdicts.append(verdict)
                if verdict.answer is Answer.ACCEPTED:
                    changed.add(report.seq)
                    rows.append((reports, report, standing, before, standing.state, standing.back, standing.failures, standing.crashes))
                    if standing.state in FINAL:
                        ended.append(report.seq)
        self._settle(rows, helpless)
        self._answer(ended)
        self._help(helpless)
        self._follow(ended)
        return verdicts

    def _settle(self, rows: list[tuple[Any, ...]], helpless: dict[int, tuple[bytes, int]]) -> None:
        if not rows:
            return
        changes: list[bytes] = []
        failures: list[bytes] = []
        for reports, report, standing, before, after, back, failed, crashes in rows:
            outcome = report.outcome
            what = -1
            if outcome is Outcome.SUCCEEDED:
                what = 0
            elif outcome is Outcome.FAILED and after in FINAL:
                what = 1
            fields = _json((
                report.seq, before, report.attempt, reports.session, after, back, failed,
                self._now + report.delay_us if after is JobState.SCHEDULED else None,
                None if outcome is Outcome.RELEASED or outcome is Outcome.SNOOZED else report.ran_us,
                after in FINAL, what, crashes,
            ))  # fmt: skip
            row = b"%06d%b%b" % (len(fields), fields, report.body)
            changes.append(row)
            if outcome is Outcome.FAILED:
                failures.append(row)
            self._move(standing.lane, before, after)
        self._db.execute(SETTLE, (apsw.carray(tuple(changes)), self._now))
        if self._db.changes() != len(changes):
            raise StoreError("a row changed between two statements of one transaction")
        if failures:
            self._db.execute(REMEMBER, (apsw.carray(tuple(failures)), self._now))
        for reports, report, standing, _, after, _, failed, _ in rows:
            self._bear_all(reports.successors.get(report.seq, ()), after, standing.round)
            if report.outcome is Outcome.FAILED and calls_for_help(after, standing.max_retries, failed):
                helpless[report.seq] = (report.body, standing.round)

    def _help(self, helpless: dict[int, tuple[bytes, int]]) -> None:
        """Bring to life what the failures of these jobs (seq → error, round) call for."""
        for record in records(self._db, sorted(helpless)) if helpless else ():
            error, round = helpless[record.seq]
            self._bear_all(self.successors(msgspec.structs.replace(record, error=error)), record.state, round, tell=True)

    def _bear_all(self, jobs: Iterable[NewJob], state: JobState, round: int, *, tell: bool = False) -> None:
        for job in jobs:
            if job.parent is not None and (job.parent.when is None or job.parent.when == state):
                self._bear(job, round)
                for each in with_predecessors([job]) if tell else ():
                    if (row := self._row(BY_ID, each.id)) is not None:
                        self._changes.append(Change(row.seq, row.id, row.lane, row.state))

    # --- notes ------------------------------------------------------------------------------------------------------------------

    def _note(self, notes: Notes) -> tuple[int, ...]:
        """See the port's `note`."""
        lines: dict[int, list[Line]] = {}
        for line in notes.lines:
            lines.setdefault(line.seq, []).append(line)
        seqs = sorted({mark.seq for mark in notes.marks} | lines.keys())
        rows = _noted(self._db.execute(NOTED, (_text(seqs),)).get)
        ours = {seq: (attempt, state, ledger or Ledger()) for seq, attempt, session, state, ledger in rows if session == notes.session}
        nobody = (0, JobState.FAILED, Ledger())
        stale: dict[int, None] = {}
        new_marks: list[tuple[Any, ...]] = []
        new_lines: list[tuple[Any, ...]] = []
        ledgers: list[tuple[Any, ...]] = []
        for mark in notes.marks:
            attempt, state, _ = ours.get(mark.seq, nobody)
            if mark.attempt == attempt and state not in FINAL:
                new_marks.append((mark.seq, attempt, mark.done, mark.total, mark.message, self._now))
            else:
                stale[mark.seq] = None
        for seq, some in lines.items():
            attempt, _, ledger = ours.get(seq, nobody)
            current = [line for line in some if line.attempt == attempt]
            if current:
                new_lines.extend(msgspec.structs.astuple(line) for line in enter(ledger, current))
                ledgers.append((seq, *msgspec.structs.astuple(ledger)))
            else:
                stale[seq] = None
        for sql, values in ((MARK, new_marks), (LINE, new_lines), (LEDGER, ledgers)):
            if values:
                self._db.executemany(sql, values)
        return tuple(stale)

    # --- sessions and leases ----------------------------------------------------------------------------------------------------

    def begin(self, sessions: Sequence[NewSession]) -> list[int]:
        """See the port."""
        numbers: list[int] = [
            self._db.execute(
                "insert into sessions(id, name, begun_at) values (?, ?, ?) on conflict (id) do update set name = excluded.name returning number",
                (session.id, session.name, self._now),
            ).get
            for session in sessions
        ]
        self._on_commit.append(lambda: self._leases.update(dict.fromkeys(numbers, self._clock.monotonic() + self._lease_s)))
        return numbers

    def renew(self, sessions: Sequence[int]) -> list[bool]:
        """See the port. In memory, and at once, on the loop's thread: a batch may be running meanwhile. Raises: StoreLost."""
        if self.lost is not None:
            raise self.lost
        deadline = self._clock.monotonic() + self._lease_s
        known = [session in self._leases for session in sessions]
        self._leases.update(dict.fromkeys((session for session, is_known in zip(sessions, known, strict=True) if is_known), deadline))
        return known

    def running(self, sessions: Sequence[int]) -> list[list[Running]]:
        """See the port."""
        found: dict[int, list[Running]] = {session: [] for session in sessions}
        for session, *rest in self._db.execute(
            "select session, seq, attempt, lane, id from jobs where state = 1 and session in (select value from json_each(?)) order by seq",
            (_text(sessions),),
        ):
            found[session].append(Running(*rest))
        return [found[session] for session in sessions]

    def _let_go(self, held_s: float) -> None:
        self._held = None
        if held_s:
            event(log, WARNING, "store.held_up", store=self._file.path, held_s=round(held_s, 1), effect="leases last so much longer")
            latest = self._clock.monotonic() + self._lease_s
            self._leases.update({s: min(until + held_s, latest) for s, until in self._leases.items() if float("-inf") < until < latest})

    def rescue(self, limit: int) -> list[Rescued]:
        """See the port.

        A worker whose report could not be written has been sent away, and cannot come back before something can be written again: for the
        time of a lock no lease runs out.
        """
        now = self._clock.monotonic()
        if self._held is not None:
            self.check()  # meets the lock, if it is still there
            first, last = self._held
            is_long = last - first > HELD_SHORT_S
            held_s = now - first if is_long else 0.0  # it went between `last` and now
            self._on_commit.append(lambda: self._let_go(held_s))
            if is_long:
                return []
        leases = {session: deadline for session, deadline in self._leases.items() if float("-inf") < deadline <= now}
        ended = list(leases)
        if not ended:
            return []
        rows: list[tuple[Any, ...]] = self._db.execute(EXPIRED, (_text(ended), limit)).fetchall()
        rescued: list[Rescued] = []
        changes: list[tuple[Any, ...]] = []
        suspected = {session for _, _, _, _, session, crashes, max_crashes, _, _ in rows if is_suspect(crashes, max_crashes)}
        last_began: dict[int, int] = dict(self._db.execute(LAST_BEGAN, (_text(list(suspected)),))) if suspected else {}
        for seq, attempt, lane, job_id, session, crashes, max_crashes, began_at, cancel_requested in rows:
            blamed = is_blamed(crashes, max_crashes, began_at, session, last_began)
            event = JobEvent.CRASHED_OUT if blamed else JobEvent.LEASE_ENDED
            after = advance(JobState.RUNNING, event, cancel_requested=bool(cancel_requested))
            assert after is not None
            error = crash_error(crashes + 1).decode() if after is JobState.FAILED else None
            changes.append((seq, attempt, int(after), after in FINAL, error, session))
            rescued.append(
                Rescued(Running(seq, attempt, lane, job_id), session, after, after is JobState.QUEUED and crashes + 2 >= max_crashes)
            )
        if changes:
            self._db.execute(RESCUE, (_text(changes), self._now))
            if self._db.changes() != len(changes):
                raise StoreError("a row changed between two statements of one transaction")
            for each in rescued:
                self._move(each.job.lane, JobState.RUNNING, each.state)
            failed = [each.job.id for each in rescued if each.state is JobState.FAILED]
            for record in by_ids(self._db, failed):
                if record is not None and (born := self.successors(record)):
                    self._bear_all(born, record.state, self._rows(PARENT, (record.seq,))[0][0], tell=True)
            over = [each.job.seq for each in rescued if each.state in FINAL]
            self._answer(over)
            self._follow(over)
        if len(rows) < limit:
            self._on_commit.append(lambda: self._end_leases(leases))
        return rescued

    def _end_leases(self, leases: dict[int, float]) -> None:
        """Nothing is left to rescue of these, unless they were renewed while the batch ran."""
        self._leases.update({session: float("-inf") for session, deadline in leases.items() if self._leases[session] == deadline})

    # --- time, catalogue, results ---------------------------------------------------------------------------------------------

    def due(self, limit: int) -> Due:
        """See the port."""
        picked, lanes = self._db.execute(
            "select json_group_array(seq), json_group_array(lane) from "
            "(select seq, lane from jobs where state = 6 and run_at <= ?1 order by run_at, seq limit ?2)",
            (self._now, limit),
        ).get
        ready = Counter(_numbers(lanes))
        if ready:
            self._db.execute(QUEUE, (picked,))
            for lane, n in ready.items():
                self._move(lane, JobState.SCHEDULED, JobState.QUEUED, n)
        return Due(tuple(sorted(ready)), self._db.execute("select min(run_at) from jobs where state = 6").get)

    def offer(self, tasks: Sequence[TaskRow]) -> list[int]:
        """See the port."""
        return [
            self._db.execute(
                "insert into tasks(queue, name, signature, options, offered_at) values (?, ?, ?, ?, ?) on conflict (queue, name) do update "
                "set signature = excluded.signature, options = excluded.options, offered_at = excluded.offered_at returning lane",
                (task.queue, task.name, task.signature, task.options, self._now),
            ).get
            for task in tasks
        ]

    def pull(self, ids: Sequence[bytes]) -> list[JobRecord | None]:
        """See the port."""
        if ids:
            self._db.execute(
                "update jobs set pulled_at = ?2 where id in (select value from carray(?1)) and +state = 2 and pulled_at is null",
                (apsw.carray(tuple(ids)), self._now),
            )
        return by_ids(self._db, ids)

    def prune(self, pulled_before_us: int, keys_before_us: int, limit: int) -> int:
        """See the port."""
        before = self._db.total_changes()
        self._db.execute(
            f"update jobs set result = null where seq in (select seq from jobs j where pulled_at is not null and result is not null "
            f"and pulled_at < ?1 and not {NEEDED} order by pulled_at limit ?2)",
            (self._now - pulled_before_us, limit),
        )
        self._db.execute(
            f"update jobs set result = null where seq in (select seq from jobs j where ttl_us is not null and result is not null "
            f"and finished_at + ttl_us < ?1 and not {NEEDED} order by finished_at + ttl_us limit ?2)",
            (self._now, limit),
        )
        self._db.execute(
            "delete from idempotency where (principal, scope, key) in "
            "(select principal, scope, key from idempotency where until is null and at < ?1 order by at limit ?2)",
            (self._now - keys_before_us, limit),
        )
        self._db.execute(
            "delete from idempotency where (principal, scope, key) in "
            "(select principal, scope, key from idempotency where until is not null and until < ?1 order by until limit ?2)",
            (self._now, limit),
        )
        while self._db.total_changes() - before < limit:  # a job has a few lines, or thousands
            found = self._db.execute("select seq from forgotten limit 1").fetchone()
            if found is None:
                break
            self._db.execute(
                "delete from logs where (seq, attempt, number) in (select seq, attempt, number from logs where seq = ?1 limit ?2)",
                (*found, limit),
            )
            if self._db.changes() < limit:
                self._db.execute("delete from seen where seq = ?", found)
                self._db.execute("delete from forgotten where seq = ?", found)
        return self._db.total_changes() - before

    def check(self) -> None:
        """See the port."""
        self._db.execute(
            "insert into meta(key, value) values ('checked_at', ?) on conflict do update set value = excluded.value", (self._now,)
        )


__all__ = ["CLAIM", "FINISH", "KINDS", "NOTE", "OTHER", "SUBMIT", "Writer"]
