"""One manager's writing connection: runs a batch of calls as one transaction, beside the other managers.

* One statement serves a whole batch where jobs are plain; what is usual is written first and looked at afterwards: when fewer rows changed
  than were asked for, the batch is rolled back and runs again with a look at each row.
* Nothing is decided on a row that is not locked, or that the statement which writes it does not check again.
* Time is the database's: it is asked at the start of each transaction, with the transaction's number.
* A COMMIT whose reply is lost is no riddle: on the next connection the server is asked by that number what became of it
  (`pg_xact_status`), so that a batch is never applied twice, nor taken for lost. Where it cannot tell, as after a fail-over, the batch runs again, row by
  row: what was stored is found there, and answered as it would have been. (Claims too: by the session, and the time of the lost transaction.)
* A batch that meets a deadlock, or whose connection breaks before its COMMIT, was rolled back as a whole, and runs again.
"""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

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
from easyjobs.domain.lifecycle import FINAL, Back, JobEvent, JobState, advance
from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import Unsent
from easyjobs.domain.tokens import Token
from easyjobs.errors import ConfigurationError, StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Successors
from easyjobs.runtime import failpoints
from easyjobs.runtime.batcher import Call
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.postgres import outbox, quarantine, seeing, tokens
from easyjobs.stores.postgres.connection import SERIAL, Address, examine, identity, is_cut, migrate
from easyjobs.stores.postgres.control import BY_ID, KIN, NEEDED, Control, changed
from easyjobs.stores.postgres.reader import by_ids, records
from easyjobs.stores.postgres.rows import clean
from easyjobs.stores.verdicts import RANK_STEP_US, SUCCEEDED, UNKNOWN, Standing, calls_for_help, crash_error, depth_error, judge

if TYPE_CHECKING:
    from asyncpg import Connection

log = logging.getLogger("easyjobs.store")

NOTE, FINISH, RENEW, SUBMIT, CLAIM, OTHER = range(6)  # kinds of calls, in the order in which a transaction runs them
KINDS: Final = 6
TRIES: Final = 6  # of a batch that meets deadlocks or broken connections
GIVE_UP_S: Final = 15.0  # after so long there are no more tries: whoever waits for an answer gets one
GIVE_UP_AGAIN_S: Final = 4.0  # the same, after a batch that was given up: what is in this one has waited for that one
HEADS: Final = 100  # lanes that one claim looks into
BIGGEST: Final = 2**63 - 1
STEP_US: Final = 5_000_000  # a clock that is further off than this was set

# Since when the server runs. After a crash it gives out again the numbers of transactions that it has forgotten.
STARTED: Final = "select pg_postmaster_start_time()::text"
# Our counters are written by nobody else within minutes: rows of that transaction show that it is there.
WRITTEN: Final = "select exists(select from easyjobs.counters where manager = $1 and xmin = $2::text::xid8::xid)"
CLOCK: Final = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint, pg_current_xact_id()::text"

COLUMNS: Final = (
    "id, lane, state, rank, max_retries, max_crashes, priority, run_at, timeout_us, expires_at, ttl_us, created_at, traceparent, args"
)
# Without `on conflict`, which costs more for each row: an id that is there already fails the batch, which then looks at each row.
INSERT: Final = f"""insert into easyjobs.jobs({COLUMNS})
    select n.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, n.args
    from unnest($1::bytea[], $2::bytea[]) with ordinality n(id, args, at) order by n.at"""
INSERT_ONE: Final = f"""insert into easyjobs.jobs({COLUMNS}, parent_seq, edge, parent_round, depth, unique_key, error, finished_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21) returning seq"""
KEEP_KEYS: Final = """insert into easyjobs.idempotency(principal, scope, key, body, ids, at, until)
    select k.principal, k.scope, k.key, k.body, k.ids, $1, k.until
    from unnest($2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::bigint[]) k(principal, scope, key, body, ids, until)
    on conflict do nothing"""
KNOWN: Final = "select id, lane, args from easyjobs.jobs where id = any($1::bytea[])"
CHILD: Final = "select id from easyjobs.jobs where parent_seq = $1 and edge = $2 and parent_round = $3"
LAST_CALL: Final = (
    "select id, state, parent_round from easyjobs.jobs where parent_seq = $1 and edge = $2 order by parent_round desc limit 1"
)
PARENT: Final = "select round, depth, state, attempt, session from easyjobs.jobs where seq = $1 for update"

# First it is seen how many each lane would give, without a lock; then as many of each are locked, past those that others have locked.
# So no row is locked that is not taken, but for those that were too large. A manager that knows of no other does not lock at all: the update alone
# is right as well, but would wait for another one's claim of the same rows.
ORDER: Final = "order by rank, seq"
LOCK: Final = "for update skip locked"
READY: Final = "select seq, lane, rank from easyjobs.jobs where state = 0 and lane ="
ONE_LANE: Final = f"locked as materialized (select ctid as at, seq, rank, octet_length(args) as size from easyjobs.jobs where state = 0 and lane = $1 {ORDER} limit $2 {LOCK})"
MANY_LANES: Final = f"""heads as (select h.lane from unnest($1::integer[]) l(lane) cross join lateral ({READY} l.lane {ORDER} limit 1) h {ORDER} limit {HEADS}),
    shares as (select b.lane, count(*) as n from (select r.lane from heads cross join lateral ({READY} heads.lane {ORDER} limit $2) r {ORDER} limit $2) b
        group by b.lane),
    locked as materialized (select r.at, r.seq, r.rank, r.size from shares cross join lateral (
        select ctid as at, seq, rank, octet_length(args) as size from easyjobs.jobs where state = 0 and lane = shares.lane {ORDER} limit shares.n
        {LOCK}) r)"""
CLAIM_OF: Final = """with {},
    picked as materialized (select at from (select at, sum(size) over (order by rank, seq) - size as before from locked) w where before < $5)
    update easyjobs.jobs j set state = 1, attempt = attempt + 1, session = $3, back = 0, started_at = $4 from picked
    where j.ctid = picked.at and j.state + 0 = 0
    returning j.seq, j.attempt, j.lane, j.id, j.failures, coalesce(j.timeout_us, 0), j.args, coalesce(j.traceparent, ''), j.rank"""
CLAIM_ONE: Final = CLAIM_OF.format(ONE_LANE)
CLAIM_MANY: Final = CLAIM_OF.format(MANY_LANES)
CLAIM_ONE_ALONE: Final = CLAIM_ONE.replace(LOCK, "")
CLAIM_MANY_ALONE: Final = CLAIM_MANY.replace(LOCK, "")
CLAIMED_AT: Final = """select seq, attempt, lane, id, failures, coalesce(timeout_us, 0), args, coalesce(traceparent, ''), rank
    from easyjobs.jobs where session = $1 and state = 1 and started_at = $2"""
EMPTY: Final = """select l.lane from unnest($1::integer[]) l(lane)
    where not exists (select 1 from easyjobs.jobs j where j.state = 0 and j.lane = l.lane)"""
# Only for sessions that are connected here, which holds until our commit: else the manager that a worker has come from would claim for it
# still, after the one that it has gone to has compared what the worker holds with what is in the store.
IS_OURS: Final = "select from easyjobs.sessions where number = $1 and lease_until > $2 and manager = $3 for share"

# `state + 0`: the partial index of running jobs by session would be the wrong way in.
FENCE: Final = "j.seq = r.seq and j.state + 0 = 1 and j.attempt = r.attempt and j.session = r.session"
SUCCEED: Final = f"""with done as (update easyjobs.jobs j set state = 2, result = r.body, finished_at = $6, started_at = $6 - r.ran_us
    from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[], $5::bytea[]) r(seq, attempt, session, ran_us, body)
    where {FENCE} returning j.seq, j.lane, j.edge)
    select lane, count(*), array_agg(seq) filter (where {KIN}),
        array_agg(seq) filter (where (select true from easyjobs.replies r where r.seq = done.seq)) from done group by lane"""
STANDINGS: Final = """select seq, lane, state, attempt, session, back, round, failures, max_retries, cancel_requested, crashes, max_crashes
    from easyjobs.jobs where seq = any($1::bigint[]) order by seq for update"""
FAILED_BEFORE: Final = """select r.at from unnest($1::bigint[], $2::bigint[], $3::bigint[]) with ordinality r(seq, attempt, session, at)
    join easyjobs.attempts a on a.seq = r.seq and a.attempt = r.attempt and a.session = r.session"""
SETTLE: Final = f"""update easyjobs.jobs j set state = r.after, back = r.back, failures = r.failures, crashes = r.crashes,
        run_at = coalesce(r.run_at, j.run_at), started_at = r.started_at, finished_at = r.finished_at, result = r.result, error = r.error
    from unnest($1::bigint[], $2::smallint[], $3::integer[], $4::bigint[], $5::smallint[], $6::smallint[], $7::integer[], $8::integer[],
        $9::bigint[], $10::bigint[], $11::bigint[], $12::bytea[], $13::bytea[])
        r(seq, before, attempt, session, after, back, failures, crashes, run_at, started_at, finished_at, result, error)
    where {FENCE.replace("j.state + 0 = 1", "j.state + 0 = r.before")}"""
REMEMBER: Final = """insert into easyjobs.attempts(seq, attempt, session, at, error)
    select seq, attempt, session, $4, error from unnest($1::bigint[], $2::integer[], $3::bigint[], $5::bytea[]) r(seq, attempt, session, error)
    on conflict do nothing"""

QUEUE: Final = f"""with ready as materialized (select seq from easyjobs.jobs where state = 6 and run_at <= $1 order by run_at, seq limit $2
        for update skip locked),
    moved as (update easyjobs.jobs j set state = 0, rank = j.run_at - j.priority * {RANK_STEP_US}::bigint from ready
        where j.seq = ready.seq and j.state + 0 = 6 returning j.lane)
    select lane, count(*) from moved group by lane"""
# The session is locked as well: a renewal waits for the rescue, or the rescue passes by.
# In the order of their beginnings: the last of a session's suspects is there until all others are judged.
EXPIRED: Final = """select j.seq, j.attempt, j.lane, j.id, j.session, j.crashes, j.max_crashes, coalesce(j.started_at, 0), j.cancel_requested
    from easyjobs.sessions s join easyjobs.jobs j on j.session = s.number and j.state = 1
    where s.lease_until <= $1 order by coalesce(j.started_at, 0), j.seq limit $2 for update of j, s skip locked"""
LAST_BEGAN: Final = """select session, max(coalesce(started_at, 0)) from easyjobs.jobs where state = 1 and session = any($1::bigint[])
    and crashes > 0 and crashes + 1 >= max_crashes group by session"""
RESCUE: Final = f"""update easyjobs.jobs j set state = r.after, back = {int(Back.RESCUED)}, crashes = j.crashes + 1, finished_at = r.finished_at, error = r.error
    from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::smallint[], $5::bigint[], $6::bytea[])
        r(seq, attempt, session, after, finished_at, error) where {FENCE}"""
FORGET_LEASES: Final = """update easyjobs.sessions s set lease_until = null where lease_until <= $1
    and not exists (select 1 from easyjobs.jobs j where j.session = s.number and j.state = 1)"""
REVISE: Final = """insert into easyjobs.meta(key, value) values ('revision', 1) on conflict (key) do update set value = meta.value + 1"""
OTHERS: Final = "select exists(select 1 from easyjobs.managers where number <> $1 and seen_at > $2)"
SEEN_US: Final = 60_000_000  # who was seen so lately is told our news
COUNT: Final = """insert into easyjobs.counters(manager, lane, state, n) select $1, * from unnest($2::integer[], $3::smallint[], $4::bigint[])
    on conflict (manager, lane, state) do update set n = counters.n + excluded.n"""
ADOPT: Final = """with gone as (delete from easyjobs.managers m where seen_at < $1 returning number),
    left_over as (delete from easyjobs.counters c using gone where c.manager = gone.number returning c.lane, c.state, c.n)
    insert into easyjobs.counters(manager, lane, state, n) select 0, lane, state, sum(n) from left_over group by lane, state
    on conflict (manager, lane, state) do update set n = counters.n + excluded.n"""
# Jobs that came with users' own transactions are counted in rows of their own: nobody waits for a row that such a transaction has written.
FOLD: Final = """with loose as (delete from easyjobs.counters c where (c.manager, c.lane, c.state) in
        (select manager, lane, state from easyjobs.counters where manager < 0 limit 20000 for update skip locked) returning c.lane, c.state, c.n)
    insert into easyjobs.counters(manager, lane, state, n) select $1, lane, state, sum(n) from loose group by lane, state
    on conflict (manager, lane, state) do update set n = counters.n + excluded.n"""
BEGIN: Final = (
    "begin isolation level read committed"  # whatever the server's default is: statements look again at rows that they waited for
)
KEY_WAIT: Final = "select set_config('lock_timeout', '500ms', true)"
SKIP: Final = (
    "select setval(s, nextval(s) + 4294967296) from unnest(array['easyjobs.jobs_seq_seq', 'easyjobs.sessions_number_seq']::regclass[]) s"
)
SILENT_US: Final = 600_000_000  # a manager that was not seen for so long is gone


class _KeyHeldError(Exception):
    """A key is held by a transaction that is still open, and not a manager's: those are short."""

    def __init__(self) -> None:
        super().__init__("a job with this key is part of a transaction that is still open: end that one, or submit again in a moment")


class _LookCloserError(Exception):
    """Something in the batch is not usual: roll back, and look at each row."""


class _UnknownError(Exception):
    """Whether the batch was committed cannot be found out: run it again, and look at each row."""


class Writer(Control):
    """The connection that writes. One batch at a time.

    `told` is called on the loop after each commit with what other managers may want to know: the lanes that got queued jobs, whether a job
    has ended, and whether something else changed.
    """

    def __init__(self, address: Address, *, clock: Clock, lease_s: float, durability: str, test_clock: Clock | None) -> None:
        self._address = address
        self._clock = clock
        self._lease_us = round(lease_s * 1_000_000)
        self._durability = durability
        self._test_clock = test_clock
        self._connection: Connection | None = None
        self._manager = 0
        self._careful = False
        self._now = 0
        self._identity = ""
        # What may have been claimed by a transaction of which nobody knows whether it was committed: (its time, session). Its next claim takes it.
        self._doubts: set[tuple[int, int]] = set()
        self._cleared: set[tuple[int, int]] = set()
        self._seen = (0, 0.0)  # the database's time and ours, at the last transaction
        self._rescue_from = 0
        self._tried_since: float | None = None  # monotonic: the first try of a batch since the last one that was committed
        self._was_held_up = False  # nothing was committed for so long that sessions may have lost their leases by no fault of theirs
        self._is_stuck = False  # the last batch was given up after a long wait
        self._delta: dict[tuple[int, int], int] = {}
        self._changes: list[Change] = []
        self._is_news = False
        self._waits_for_keys = False  # this transaction has submits with keys, which may be held by a user's transaction
        self._is_revised = False  # this transaction changes the catalogue or a pause
        self.has_others = False  # whether other managers are there
        self.offset_us = 0  # the server's time minus ours
        self.successors: Successors = lambda _: ()
        self.on_change: Callable[[list[Change]], None] = lambda _: None
        self._started = ""  # since when the server that we are connected to runs
        self._is_to_send = False  # this transaction has written something to be sent
        self.on_unsent: Callable[[], None] = lambda: None
        self.on_failed_over: Callable[[], None] = lambda: None
        self.told: Callable[[set[int], bool, bool], None] = lambda _lanes, _ended, _news: None

    @property
    def manager(self) -> int:
        """The number of this manager, > 0 when it is open."""
        return self._manager

    def monotonic(self) -> float:
        """How time passes here, in seconds."""
        return self._clock.monotonic()

    @property
    def _db(self) -> Connection:
        assert self._connection is not None
        return self._connection

    # --- opening and closing ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, check, migrate, become a manager. Raises: MissingExtra, ConfigurationError, SchemaTooNew, StoreError."""
        try:
            await self._connect()
            db = self._db
            await examine(db, self._address.name, self._durability)
            now, _ = await self._time()
            await migrate(db, self._address.name, now)
            self._manager = await db.fetchval("insert into easyjobs.managers(begun_at, seen_at) values ($1, $1) returning number", now)
            await self.look_for_others(db)
        except BaseException as error:
            self._drop()
            if getattr(error, "sqlstate", None) == "42501":
                raise ConfigurationError(
                    f"{self._address.name}: {error}: let its owner run `easyjobs db migrate` once, and grant this user usage on the schema easyjobs, "
                    "all on its tables and sequences, and execute on its functions"
                ) from error
            ours = self._ours(error)
            if ours is not None and ours is not error:
                raise ours from error
            raise

    async def close(self) -> None:
        """Leave our counters to number 0, and disconnect."""
        if self._connection is not None:
            with contextlib.suppress(Exception):  # whoever looks after ten minutes does it as well
                await self._connection.execute("update easyjobs.managers set seen_at = 0 where number = $1", self._manager)
                await self._connection.execute(ADOPT, 1)
            connection, self._connection = self._connection, None
            with contextlib.suppress(Exception):
                await connection.close(timeout=2)

    async def _connect(self) -> None:
        self._connection = await self._address.connect(durability=self._durability)
        before, self._identity = self._identity, await identity(self._connection)
        if before not in ("", self._identity):
            event(log, WARNING, "store.failed_over", store=self._address.name, server=self._identity, before=before)
            # It may lack the end of what the other one had. Workers hold jobs of that by number, so none of those numbers is given out again.
            await self._connection.execute(SKIP)
            self.on_failed_over()
        self._started = await self._connection.fetchval(STARTED)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _ours(self, error: BaseException) -> StoreError | None:
        if isinstance(error, StoreError):
            return error
        return self._address.translate(error) if isinstance(error, Exception) else None

    async def _time(self) -> tuple[int, str]:
        """The database's time, and the number of this transaction."""
        now, number = await self._db.fetchrow(CLOCK)
        if self._test_clock is not None:
            now = self._test_clock.now()
        self.offset_us = now - self._clock.now()
        return now, number

    # --- a batch ----------------------------------------------------------------------------------------------------------------

    async def run(self, calls: list[Call]) -> list[Any]:
        """Run calls, which are sorted by kind, as one transaction: all or nothing. Raises StoreError; other errors blame a call."""
        started = self._clock.monotonic()
        if self._tried_since is None:
            self._tried_since = started
        try:
            answers = await self._try(calls, started + (GIVE_UP_AGAIN_S if self._is_stuck else GIVE_UP_S))
        except StoreError:
            self._is_stuck = self._clock.monotonic() - started >= GIVE_UP_AGAIN_S
            raise
        self._is_stuck = False
        self._was_held_up = self._was_held_up or self._is_held_up()
        self._tried_since = None
        return answers

    def _is_held_up(self) -> bool:
        """Whether beats could not be written for a good part of a lease."""
        return self._tried_since is not None and 2_000_000 * (self._clock.monotonic() - self._tried_since) > self._lease_us

    async def _try(self, calls: list[Call], until: float) -> list[Any]:
        """The batch, again where that helps, but not after `until` (monotonic). Raises: as `run`."""
        self._careful = False
        failure: Exception | None = None
        is_unknown = False
        for attempt in range(TRIES):
            if attempt > 0 and self._clock.monotonic() > until:
                break
            if attempt > 1:
                await asyncio.sleep(0.02 * 2**attempt)
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._reconnect()
                return await self._transact(calls)
            except (_LookCloserError, _UnknownError) as why:
                failure = why
                is_unknown = is_unknown or isinstance(why, _UnknownError)
                await self._look_closer()
            except StoreError as error:
                if self._connection is not None:
                    raise
                failure = error  # not reached: perhaps the next time
            except Exception as error:
                failure = error
                if isinstance(error, _KeyHeldError):
                    raise  # the batcher finds out which call it is, and lets the others go on
                if is_cut(error) or self._connection is None or self._connection.is_closed():
                    self._drop()
                elif getattr(error, "sqlstate", None) == "23505":  # a key that another manager has just taken
                    await self._look_closer()
                elif getattr(error, "sqlstate", None) not in SERIAL:
                    ours = self._ours(error)
                    if ours is None:
                        raise  # the batcher finds out which call is to blame
                    if getattr(error, "sqlstate", None) == "25006":
                        self._drop()  # the server has become a standby: look for the new primary
                    raise ours from error
        assert failure is not None
        if is_unknown:
            raise StoreError(
                f"{self._address.name} went away during a commit: whether the last calls were stored is not known; look, or call again"
            ) from failure
        raise self._ours(failure) or StoreError(f"{self._address.name}: {type(failure).__name__}: {failure}") from failure

    async def _look_closer(self) -> None:
        """The batch was rolled back: from now on, look at each row."""
        self._careful = True

    async def _reconnect(self) -> None:
        """A server that comes back may be another one, or may have kept workers from renewing: no lease is ended for a while."""
        await self._connect()
        now, _ = await self._time()
        self._rescue_from = now + self._lease_us
        event(log, WARNING, "store.reconnected", store=self._address.name)

    async def _transact(self, calls: list[Call]) -> list[Any]:
        db = self._db
        self._delta.clear()
        self._changes.clear()
        self._cleared.clear()
        self._is_news = self._is_revised = self._is_to_send = self._waits_for_keys = False
        answers: list[Any] = []
        number = ""
        look_closely = False
        try:
            await db.execute(BEGIN)
            self._now, number = await self._time()
            if self._careful or any(call.kind == SUBMIT and not _are_plain(call.what) for call in calls):
                look_closely = True
                await self._lock_keys(calls)
            at, end = 0, len(calls)
            while at < end:
                kind, first = calls[at].kind, at
                while at < end and calls[at].kind == kind:
                    at += 1
                some = calls[first:at]
                if kind == NOTE:
                    answers.extend([[await seeing.note(db, notes, self._now) for notes in call.what] for call in some])
                elif kind == FINISH:
                    answers.extend(await self._finish_calls([call.what for call in some]))
                elif kind == RENEW:
                    answers.extend(await self._renew_calls([call.what for call in some]))
                elif kind == SUBMIT:
                    answers.extend(await self._submit_calls([call.what for call in some], look_closely=look_closely))
                elif kind == CLAIM:
                    answers.extend([[await self._claim(want) for want in call.what] for call in some])
                else:
                    answers.extend([await call.what() for call in some])
            if self._is_revised:
                await db.execute(REVISE)  # last: whoever changes the catalogue as well waits for this row until we have committed
                self._is_news = True
            delta = [(lane, state, n) for (lane, state), n in self._delta.items() if n]
            if delta:
                lanes, states, ns = zip(*sorted(delta), strict=True)
                await db.execute(COUNT, self._manager, list(lanes), list(states), list(ns))
        except BaseException:
            await self._roll_back(db)
            raise
        try:
            if failpoints.ARMED:
                failpoints.reach("store.before_commit")
            await db.execute("commit")
        except BaseException as error:
            if not (isinstance(error, Exception) and (is_cut(error) or db.is_closed())):
                await self._roll_back(db)
                raise
            server = self._identity
            self._drop()
            was_committed = await self._was_committed(number, server)
            if was_committed is None:
                self._doubts.update((self._now, want.session) for call in calls if call.kind == CLAIM for want in call.what)
                raise _UnknownError from error
            if not was_committed:
                raise
        self._doubts -= self._cleared
        if failpoints.ARMED:
            failpoints.reach("store.committed")
        self._tell()
        return answers

    async def _roll_back(self, db: Connection) -> None:
        if db.is_closed():
            return
        try:
            await db.execute("rollback")
        except Exception:  # noqa: BLE001 (what went wrong is being raised)
            self._drop()

    async def _was_committed(self, number: str, server: str) -> bool | None:
        """The reply to a COMMIT was lost: ask what became of it. None, if that cannot be found out.

        A server that has crashed meanwhile may have forgotten the transaction, and given its number to another one, which it then says is
        committed. There only what the transaction wrote counts; where it changed no counter, running it again does no harm.
        """
        started = self._started
        for attempt in range(2 * TRIES):
            await asyncio.sleep(0.02 * 2 ** min(attempt, 6))
            try:
                await self._reconnect()
                if self._identity != server:
                    return None  # this one may have given the number to another transaction
                if self._started != started:
                    return bool(await self._db.fetchval(WRITTEN, self._manager, number))
                state = await self._db.fetchval("select pg_xact_status($1::text::xid8)", number)
            except Exception as error:  # noqa: BLE001 (any of them: try again)
                log.info("not known yet what became of a commit: %s", error)
                self._drop()
                continue
            if state != "in progress":
                return None if state is None else bool(state == "committed")
        return None

    def _tell(self) -> None:
        lanes: set[int] = set()
        has_ended = False
        for (lane, state), n in self._delta.items():
            if n > 0:
                if state == JobState.QUEUED:
                    lanes.add(lane)
                elif JobState(state) in FINAL:
                    has_ended = True
        if self._changes:
            asyncio.get_running_loop().call_soon(self.on_change, self._changes.copy())
            self._is_news = True
            lanes.update(change.lane for change in self._changes if change.state is JobState.QUEUED)
        if self._is_to_send:
            asyncio.get_running_loop().call_soon(self.on_unsent)
        if lanes or has_ended or self._is_news:
            self.told(lanes, has_ended, self._is_news)

    def _count(self, lane: int, state: int, n: int) -> None:
        key = (lane, int(state))
        self._delta[key] = self._delta.get(key, 0) + n

    def _move(self, lane: int, before: int, after: int, n: int = 1) -> None:
        if before != after:
            self._count(lane, before, -n)
            self._count(lane, after, n)

    # --- submit -----------------------------------------------------------------------------------------------------------------

    async def _lock_keys(self, calls: list[Call]) -> None:
        """Let no other manager decide about the same keys until our commit: locks of the transaction, taken in the order of their numbers."""
        keys: set[int] = set()
        for call in calls:
            if call.kind == SUBMIT:
                for submission in call.what:
                    if submission.key is not None:
                        key = submission.key
                        keys.add(lock_number(b"key", key.principal.encode(), key.scope.encode(), key.key.encode()))
                    keys.update(lock_number(b"unique", job.unique.key) for job in submission.jobs if job.unique is not None)
        await self._hold(keys)

    async def _hold(self, keys: Collection[int]) -> None:
        """Lock these, waiting for half a second at most: a user's transaction may hold one of them for as long as it likes."""
        if keys:
            if not self._waits_for_keys:
                self._waits_for_keys = True
                await self._db.fetchval(KEY_WAIT)
            try:
                await self._db.execute("select pg_advisory_xact_lock(k) from unnest($1::bigint[]) k", sorted(keys))
            except Exception as error:
                if getattr(error, "sqlstate", None) == "55P03":
                    raise _KeyHeldError from error
                raise

    async def _submit_calls(self, calls: list[Sequence[Submission]], *, look_closely: bool) -> list[list[Submitted]]:
        if look_closely:
            return [[await self._submit_carefully(submission) for submission in call] for call in calls]
        groups: dict[Spec, tuple[list[bytes], list[bytes]]] = {}
        keyed: list[tuple[IdempotencyKey, tuple[bytes, ...]]] = []
        replying: list[NewJob] = []
        spec: Spec | None = None
        ids: list[bytes] = []
        args: list[bytes] = []
        answers: list[list[Submitted]] = []
        for call in calls:
            some: list[Submitted] = []
            for submission in call:
                if submission.key is not None:
                    keyed.append((submission.key, tuple([job.id for job in submission.jobs])))
                for job in submission.jobs:
                    if job.spec is not spec:
                        spec = job.spec
                        ids, args = groups.setdefault(spec, ([], []))
                    if job.reply is not None:
                        replying.append(job)
                    ids.append(job.id)
                    args.append(job.args)
                some.append(Submitted(SubmitVerdict.ACCEPTED, tuple([job.id for job in submission.jobs])))
            answers.append(some)
        for of, (some_ids, some_args) in groups.items():
            if some_ids:
                await self._insert(of, some_ids, some_args)
        await outbox.address(self._db, replying)
        if not await self._keep_keys(keyed):
            raise _LookCloserError
        return answers

    async def _submit_carefully(self, submission: Submission) -> Submitted:
        jobs, key, db = submission.jobs, submission.key, self._db
        if any(len(job.id) != 16 for job in jobs):
            raise ValueError("a job's id has 16 bytes")
        ids = tuple([job.id for job in jobs])
        if key is not None:
            stored = await db.fetchrow(
                "select body, ids from easyjobs.idempotency where principal = $1 and scope = $2 and key = $3", *_named(key)
            )
            if stored is not None:
                if stored[0] != key.body:
                    return Submitted(SubmitVerdict.CONFLICT, ())
                return Submitted(SubmitVerdict.REPEATED, tuple(stored[1][at : at + 16] for at in range(0, len(stored[1]), 16)))
        known: dict[bytes, tuple[int, bytes]] = {}
        if ids:
            known = {job_id: (lane, args) for job_id, lane, args in await db.fetch(KNOWN, list(ids))}
        repeated = len(known) > 0
        new: dict[bytes, NewJob] = {}
        for job in jobs:
            content = known.get(job.id)
            if content is None:
                known[job.id] = (job.spec.lane, job.args)
                new[job.id] = job
            elif content != (job.spec.lane, job.args):
                return Submitted(SubmitVerdict.CONFLICT, ())
        groups: dict[Spec, list[NewJob]] = {}
        kin: list[NewJob] = []
        for job in new.values():
            if job.parent is None and not job.befores and job.unique is None:
                groups.setdefault(job.spec, []).append(job)
            else:
                kin.append(job)
                if job.parent is not None and job.parent.holder is not None and not await self._owns(job.parent.seq, job.parent.holder):
                    return Submitted(SubmitVerdict.ORPHANED, ())
        for spec, some in groups.items():
            await self._insert(spec, [job.id for job in some], [job.args for job in some])
        await outbox.address(db, [job for some in groups.values() for job in some])
        born = {job.id: await self._bear(job) for job in kin}
        if born:
            ids = tuple(born.get(job_id, job_id) for job_id in ids)
            repeated = repeated or any(job_id != given for given, job_id in born.items())
        if key is not None:
            if not await self._keep_keys([(key, ids)]):
                raise _LookCloserError  # another manager has just taken it
        if repeated and not any(born.get(job_id, job_id) == job_id for job_id in new):
            return Submitted(SubmitVerdict.REPEATED, ids)
        return Submitted(SubmitVerdict.ACCEPTED, ids)

    async def _keep_keys(self, keyed: Sequence[tuple[IdempotencyKey, tuple[bytes, ...]]]) -> bool:
        """Remember keys with the ids of their jobs. False: some of them are known already."""
        if not keyed:
            return True
        rows = [
            (*_named(key), key.body, b"".join(ids), None if key.keep_us is None else self._now + key.keep_us)
            for key, ids in sorted(keyed, key=lambda each: _named(each[0]))  # so that two managers never wait for each other
        ]
        return changed(await self._db.execute(KEEP_KEYS, self._now, *map(list, zip(*rows, strict=True)))) == len(rows)

    def _placed(self, spec: Spec) -> tuple[Any, ...]:
        now = self._now
        state = JobState.SCHEDULED if spec.run_at is not None and spec.run_at > now else JobState.QUEUED
        rank = (now if spec.run_at is None else spec.run_at) - spec.priority * RANK_STEP_US
        return (
            spec.lane, int(state), rank, spec.max_retries, spec.max_crashes, spec.priority, spec.run_at, spec.timeout_us,
            None if spec.expires_us is None else now + spec.expires_us, spec.ttl_us, now, spec.traceparent,
        )  # fmt: skip

    async def _insert(self, spec: Spec, ids: list[bytes], args: list[bytes]) -> None:
        placed = self._placed(spec)
        await self._db.execute(INSERT, ids, args, *placed)
        self._count(spec.lane, placed[1], len(ids))

    async def _owns(self, seq: int, holder: tuple[int, int]) -> bool:
        """Whether the attempt of a call runs its job still; it cannot end before our commit."""
        row = await self._db.fetchrow(PARENT, seq)
        return row is not None and row[2] == JobState.RUNNING and (row[3], row[4]) == holder

    async def _bear(self, job: NewJob, parent_round: int | None = None, parent_seq: int | None = None) -> bytes:
        """Insert a job that has kin or a unique key, with its predecessors; return the id of the one that is there in its place."""
        db, parent, edge, depth, error = self._db, job.parent, None, 0, None
        if parent is not None:
            edge = parent.edge
            if parent_seq is None:
                parent_seq = parent.seq
            generation: Any = await db.fetchrow(PARENT, parent_seq) or (1, 0)
            depth = generation[1] + 1
            if edge.startswith(CALL):
                last = await db.fetchrow(LAST_CALL, parent_seq, edge)
                if last is not None and last[1] not in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
                    return bytes(last[0])
                parent_round = 1 if last is None else last[2] + 1
            elif parent_round is None:
                parent_round = generation[0]
            if depth > parent.max_depth:
                error = depth_error(parent.max_depth)
            if (found := await db.fetchval(CHILD, parent_seq, edge, parent_round)) is not None:
                return bytes(found)
        if job.unique is not None:
            await self._hold([lock_number(b"unique", job.unique.key)])
            if (holder := await self._claim_key(job.unique)) is not None:
                return holder
        if await db.fetchval("select exists(select 1 from easyjobs.jobs where id = $1)", job.id):
            return job.id
        lane, state, *rest = self._placed(job.spec)
        if error is not None:
            state = int(JobState.FAILED)
        elif job.befores:
            state = int(JobState.WAITING)
        seq = await db.fetchval(
            INSERT_ONE,
            job.id, lane, state, *rest, job.args, parent_seq, edge, parent_round, depth,
            None if job.unique is None else job.unique.key, error, None if error is None else self._now,
        )  # fmt: skip
        self._count(lane, state, 1)
        if job.reply is not None:
            await outbox.address(db, [job])
            await self._answer([seq] if error is not None else [])
        if job.unique is not None:
            await self._keep_unique(job.unique, seq)
        if state == JobState.WAITING:
            for predecessor in job.befores:
                await self._bear(predecessor, 1, seq)
        return job.id

    # --- claim ------------------------------------------------------------------------------------------------------------------

    async def _claim(self, want: Want) -> Claims:
        db = self._db
        if not await db.fetch(IS_OURS, want.session, self._now, self._manager):
            return Claims([], ())  # whose lease has ended gets nothing either: the next rescue would take it back
        lanes = list(dict.fromkeys(want.lanes))
        rows: list[Any] = []
        doubtful = await self._claimed_before(want.session) if self._doubts else []
        room = want.room - len(doubtful)
        if lanes and room > 0:
            one = len(lanes) == 1
            if self.has_others:
                sql = CLAIM_ONE if one else CLAIM_MANY
            else:
                sql = CLAIM_ONE_ALONE if one else CLAIM_MANY_ALONE
            rows = await db.fetch(sql, lanes[0] if one else lanes, room, want.session, self._now, want.max_bytes)
            rows.sort(key=lambda row: (row[-1], row[0]))
        for row in rows:
            self._move(row[2], 0, 1)
        jobs = [Claimed(*list(row)[:-1]) for row in (*doubtful, *rows)]
        empty = {lane for (lane,) in await db.fetch(EMPTY, lanes)}
        return Claims(jobs, tuple([lane for lane in want.lanes if lane in empty]))

    async def _claimed_before(self, session: int) -> list[Any]:
        """What a transaction has claimed of which nobody knew whether it was committed."""
        found: list[Any] = []
        for doubt in [doubt for doubt in self._doubts if doubt[1] == session]:
            found += await self._db.fetch(CLAIMED_AT, session, doubt[0])
            self._cleared.add(doubt)
        return found

    # --- finish -----------------------------------------------------------------------------------------------------------------

    async def _finish_calls(self, calls: list[Sequence[Reports]]) -> list[list[list[Verdict]]]:
        everything = [reports for call in calls for reports in call]
        if not self._careful and not any(reports.successors for reports in everything):
            outcomes = [report.outcome for reports in everything for report in reports.items]
            if not any(outcomes):  # SUCCEEDED is 0
                if outcomes:
                    await self._succeed(everything)
                return [[[SUCCEEDED] * len(reports.items) for reports in call] for call in calls]
        verdicts = iter(await self._finish_carefully(everything))
        return [[[next(verdicts) for _ in reports.items] for reports in call] for call in calls]

    async def _succeed(self, everything: list[Reports]) -> None:
        items = [report for reports in everything for report in reports.items]
        if not all(_is_in_range(report.seq, report.attempt, report.ran_us) for report in items):
            raise _LookCloserError
        lanes = await self._db.fetch(
            SUCCEED,
            [report.seq for report in items],
            [report.attempt for report in items],
            [reports.session for reports in everything for _ in reports.items],
            [report.ran_us for report in items],
            [report.body for report in items],
            self._now,
        )
        if sum([n for _, n, _, _ in lanes]) != len(items):
            raise _LookCloserError
        waited_for: list[int] = []
        replying: set[int] = set()
        for lane, n, some, told in lanes:
            self._move(lane, JobState.RUNNING, JobState.SUCCEEDED, n)
            waited_for += some or ()
            replying.update(told or ())
        if replying:
            await self._answer([report.seq for report in items if report.seq in replying])
        if waited_for:
            waited = set(waited_for)
            await self._follow([report.seq for report in items if report.seq in waited])

    async def _finish_carefully(self, everything: list[Reports]) -> list[Verdict]:
        db = self._db
        reported = [(report, reports.session) for reports in everything for report in reports.items]
        sane = [_is_in_range(report.seq, report.attempt, 0) for report, _ in reported]
        seqs = sorted({report.seq for (report, _), ok in zip(reported, sane, strict=True) if ok})
        standings = {
            row[0]: Standing(row[0], row[1], JobState(row[2]), row[3], row[4], Back(row[5]), *list(row)[6:])
            for row in await db.fetch(STANDINGS, seqs)
        }
        kept = [(at, report, session) for at, ((report, session), ok) in enumerate(zip(reported, sane, strict=True)) if ok]
        before_rows = await db.fetch(
            FAILED_BEFORE,
            [report.seq for _, report, _ in kept],
            [report.attempt for _, report, _ in kept],
            [session for _, _, session in kept],
        )
        failed_before = {kept[at - 1][0] for (at,) in before_rows}
        verdicts: list[Verdict] = []
        rows: list[tuple[Any, ...]] = []
        touched: set[int] = set()
        ended: list[int] = []
        helpless: dict[int, tuple[bytes, int]] = {}
        at = -1
        for reports in everything:
            for report in reports.items:
                at += 1
                standing = standings.get(report.seq) if sane[at] else None
                if standing is None:
                    verdicts.append(UNKNOWN)
                    continue
                if report.seq in touched:  # one statement sees a row once: what came before must be written first
                    await self._settle(rows, helpless)
                    rows.clear()
                    touched.clear()
                before = standing.state
                verdict = judge(standing, reports.session, report, failed_before=at in failed_before)
                verdicts.append(verdict)
                if verdict.answer is Answer.ACCEPTED:
                    touched.add(report.seq)
                    rows.append((reports, report, standing, before, standing.state, standing.back, standing.failures, standing.crashes))
                    if standing.state in FINAL:
                        ended.append(report.seq)
        await self._settle(rows, helpless)
        await self._answer(ended)
        await self._help(helpless)
        if ended:
            await self._follow(await self._waited_for(ended))
        return verdicts

    async def _settle(self, rows: list[tuple[Any, ...]], helpless: dict[int, tuple[bytes, int]]) -> None:
        if not rows:
            return
        db, now = self._db, self._now
        changes: list[tuple[Any, ...]] = []
        failures: list[tuple[Any, ...]] = []
        for reports, report, standing, before, after, back, failed, crashes in rows:
            outcome = report.outcome
            gave_up = outcome is Outcome.RELEASED or outcome is Outcome.SNOOZED
            changes.append((
                report.seq, int(before), report.attempt, reports.session, int(after), int(back), failed, crashes,
                now + report.delay_us if after is JobState.SCHEDULED else None,
                None if gave_up else now - report.ran_us,
                now if after in FINAL else None,
                report.body if outcome is Outcome.SUCCEEDED else None,
                report.body if outcome is Outcome.FAILED and after in FINAL else None,
            ))  # fmt: skip
            if outcome is Outcome.FAILED:
                failures.append((report.seq, report.attempt, reports.session, report.body))
            self._move(standing.lane, before, after)
        if changed(await db.execute(SETTLE, *map(list, zip(*changes, strict=True)))) != len(changes):
            raise StoreError("a row changed under its lock")
        if failures:
            seqs, attempts, sessions, errors = map(list, zip(*failures, strict=True))
            await db.execute(REMEMBER, seqs, attempts, sessions, now, errors)
        for reports, report, standing, _, after, _, failed, _ in rows:
            await self._bear_all(reports.successors.get(report.seq, ()), after, standing.round)
            if report.outcome is Outcome.FAILED and calls_for_help(after, standing.max_retries, failed):
                helpless[report.seq] = (report.body, standing.round)

    async def _help(self, helpless: dict[int, tuple[bytes, int]]) -> None:
        """Bring to life what the failures of these jobs (seq → error, round) call for."""
        for record in await records(self._db, sorted(helpless)) if helpless else ():
            error, round = helpless[record.seq]
            await self._bear_all(self.successors(msgspec.structs.replace(record, error=error)), record.state, round, tell=True)

    async def _bear_all(self, jobs: Iterable[NewJob], state: JobState, round: int, *, tell: bool = False) -> None:
        for job in jobs:
            if job.parent is not None and (job.parent.when is None or job.parent.when == state):
                await self._bear(job, round)
                for each in with_predecessors([job]) if tell else ():
                    if (row := await self._row(BY_ID, each.id)) is not None:
                        self._changes.append(Change(row.seq, row.id, row.lane, row.state))

    # --- sessions and leases ----------------------------------------------------------------------------------------------------

    async def begin(self, sessions: Sequence[NewSession]) -> list[int]:
        """See the port."""
        numbers: list[int] = []
        for session in sessions:
            values = (session.id, session.name, self._now + self._lease_us, self._manager)
            number = await self._db.fetchval(
                "update easyjobs.sessions set name = $2, lease_until = $3, manager = $4 where id = $1 returning number", *values
            )  # first: an insert that conflicts would use up a number
            if number is None:
                number = await self._db.fetchval(
                    "insert into easyjobs.sessions(id, name, lease_until, manager, begun_at) values ($1, $2, $3, $4, $5) on conflict (id) "
                    "do update set name = excluded.name, lease_until = excluded.lease_until, manager = excluded.manager returning number",
                    *values, self._now,
                )  # fmt: skip
            numbers.append(number)
        return numbers

    async def _renew_calls(self, calls: list[Sequence[int]]) -> list[list[bool]]:
        wanted = sorted({session for call in calls for session in call if _is_in_range(session, 0, 0)})
        # In the order of their numbers, so that two managers never wait for each other.
        rows = await self._db.fetch(
            "with mine as materialized (select number from easyjobs.sessions where number = any($1::bigint[]) order by number for update) "
            "update easyjobs.sessions s set lease_until = $2 from mine where s.number = mine.number returning s.number",
            wanted, self._now + self._lease_us,
        )  # fmt: skip
        known = {number for (number,) in rows}
        await self._be_seen()
        return [[session in known for session in call] for call in calls]

    async def running(self, sessions: Sequence[int]) -> list[list[Running]]:
        """See the port."""
        found: dict[int, list[Running]] = {session: [] for session in sessions}
        for session, *rest in await self._db.fetch(
            "select session, seq, attempt, lane, id from easyjobs.jobs where state = 1 and session = any($1::bigint[]) order by seq",
            list(found),
        ):
            found[session].append(Running(*rest))
        return [found[session] for session in sessions]

    def _clock_was_set(self) -> bool:
        """Whether the database's clock has gone otherwise than ours since we last looked."""
        before, mine = self._seen
        self._seen = (self._now, self._clock.monotonic())
        passed_us = round((self._seen[1] - mine) * 1_000_000)
        return before > 0 and abs(self._now - before - passed_us) > STEP_US

    async def rescue(self, limit: int) -> list[Rescued]:
        """See the port. After a reconnection, when the database's clock was set, or when nothing could be written, no lease is ended for the time of one."""
        if self._clock_was_set():
            event(log, WARNING, "store.clock_set", store=self._address.name, effect="no lease is ended for the time of one lease")
            self._rescue_from = self._now + self._lease_us
        elif self._was_held_up or self._is_held_up():
            event(log, WARNING, "store.held_up", store=self._address.name, effect="no lease is ended for the time of one lease")
            self._was_held_up, self._tried_since = False, None
            self._rescue_from = self._now + self._lease_us
        elif self._rescue_from - self._now > 2 * self._lease_us:
            self._rescue_from = self._now + self._lease_us
        if self._now < self._rescue_from:
            return []
        rows = await self._db.fetch(EXPIRED, self._now, limit)
        rescued: list[Rescued] = []
        changes: list[tuple[Any, ...]] = []
        suspected = {session for _, _, _, _, session, crashes, max_crashes, _, _ in rows if is_suspect(crashes, max_crashes)}
        last_began: dict[int, int] = dict(await self._db.fetch(LAST_BEGAN, list(suspected))) if suspected else {}
        for seq, attempt, lane, job_id, session, crashes, max_crashes, began_at, cancel_requested in rows:
            blamed = is_blamed(crashes, max_crashes, began_at, session, last_began)
            what = JobEvent.CRASHED_OUT if blamed else JobEvent.LEASE_ENDED
            after = advance(JobState.RUNNING, what, cancel_requested=cancel_requested)
            assert after is not None
            error = crash_error(crashes + 1) if after is JobState.FAILED else None
            changes.append((seq, attempt, session, int(after), self._now if after in FINAL else None, error))
            rescued.append(
                Rescued(Running(seq, attempt, lane, job_id), session, after, after is JobState.QUEUED and crashes + 2 >= max_crashes)
            )
        if changes:
            if changed(await self._db.execute(RESCUE, *map(list, zip(*changes, strict=True)))) != len(changes):
                raise StoreError("a row changed under its lock")
            self._is_news = True  # the worker of a rescued job may be at another manager
            for each in rescued:
                self._move(each.job.lane, JobState.RUNNING, each.state)
            failed = [each.job.id for each in rescued if each.state is JobState.FAILED]
            for record in await by_ids(self._db, failed):
                if record is not None and (born := self.successors(record)):
                    await self._bear_all(born, record.state, await self._round_of(record), tell=True)
            ended = [each.job.seq for each in rescued if each.state in FINAL]
            await self._answer(ended)
            if ended:
                await self._follow(await self._waited_for(ended))
        if len(rows) < limit:
            await self._db.execute(FORGET_LEASES, self._now)
        return rescued

    async def _round_of(self, record: JobRecord) -> int:
        found: Any = await self._db.fetchrow(PARENT, record.seq)
        return int(found[0])

    # --- time, catalogue, results ---------------------------------------------------------------------------------------------

    async def due(self, limit: int) -> Due:
        """See the port."""
        moved = await self._db.fetch(QUEUE, self._now, limit)
        for lane, n in moved:
            self._move(lane, JobState.SCHEDULED, JobState.QUEUED, n)
        return Due(
            tuple(sorted(lane for lane, _ in moved)), await self._db.fetchval("select min(run_at) from easyjobs.jobs where state = 6")
        )

    async def offer(self, tasks: Sequence[TaskRow]) -> list[int]:
        """See the port."""
        lanes: list[int] = []
        for task in tasks:
            values = (task.queue, task.name, task.signature, task.options, self._now)
            found = await self._db.fetchrow(
                "select lane, signature = $3 and options = $4 from easyjobs.tasks where queue = $1 and name = $2 for update", *values[:4]
            )
            if found is None or not found[1]:
                self._is_revised = True
            if found is None:
                lane = await self._db.fetchval(
                    "insert into easyjobs.tasks(queue, name, signature, options, offered_at) values ($1, $2, $3, $4, $5) "
                    "on conflict (queue, name) do update set signature = excluded.signature, options = excluded.options, "
                    "offered_at = excluded.offered_at returning lane",
                    *values,
                )
            else:
                lane = found[0]
                await self._db.execute(
                    "update easyjobs.tasks set signature = $2, options = $3, offered_at = $4 where lane = $1", lane, *values[2:]
                )
            lanes.append(lane)
        return lanes

    async def pull(self, ids: Sequence[bytes]) -> list[JobRecord | None]:
        """See the port."""
        if ids:
            await self._db.execute(
                "update easyjobs.jobs set pulled_at = $2 where id = any($1::bytea[]) and state + 0 = 2 and pulled_at is null",
                list(ids), self._now,
            )  # fmt: skip
        return await by_ids(self._db, ids)

    async def prune(self, pulled_before_us: int, keys_before_us: int, limit: int) -> int:
        """See the port."""
        db, now = self._db, self._now
        pulled = f"""update easyjobs.jobs set result = null where seq in (select j.seq from easyjobs.jobs j
            where j.pulled_at is not null and j.result is not null and j.pulled_at < $1 and not {NEEDED}
            order by j.pulled_at limit $2 for update skip locked)"""
        kept = f"""update easyjobs.jobs set result = null where seq in (select j.seq from easyjobs.jobs j
            where j.ttl_us is not null and j.result is not null and j.finished_at + j.ttl_us < $1 and not {NEEDED}
            order by j.finished_at + j.ttl_us limit $2 for update skip locked)"""
        keys = """delete from easyjobs.idempotency where (principal, scope, key) in (select principal, scope, key from easyjobs.idempotency
            where until is null and at < $1 order by at limit $2 for update skip locked)"""
        own_keys = keys.replace("until is null and at < $1 order by at", "until is not null and until < $1 order by until")
        statements = ((pulled, now - pulled_before_us), (kept, now), (keys, now - keys_before_us), (own_keys, now))
        await db.execute(ADOPT, now - SILENT_US)
        await db.execute(FOLD, self._manager)
        touched = 0
        for sql, before in statements:
            touched += changed(await db.execute(sql, before, limit))
        return touched + await seeing.prune(db, limit)

    # --- message brokers --------------------------------------------------------------------------------------------------------

    async def _answer(self, ended: Sequence[int]) -> None:
        self._is_to_send = await outbox.answer(self._db, ended, self._now) > 0 or self._is_to_send

    async def unsent(self, broker: str, after_id: int, limit: int) -> list[Unsent]:
        """See the port."""
        return await outbox.unsent(self._db, broker, after_id, limit, self._manager, self._now)

    async def sent(self, ids: Sequence[int]) -> int:
        """See the port."""
        return await outbox.sent(self._db, ids)

    async def keep_tokens(self, some: Sequence[Token]) -> list[bool]:
        """See the port."""
        return await tokens.keep(self._db, some, self._now)

    async def revoke_tokens(self, some: Sequence[Token]) -> list[bool]:
        """See the port."""
        self._is_revised = True  # other managers read the list
        return await tokens.revoke(self._db, some, self._now)

    async def quarantine(self, messages: Sequence[BadMessage]) -> list[int]:
        """See the port."""
        return await quarantine.add(self._db, messages, self._now)

    async def quarantined(self, query: QuarantineQuery) -> list[Quarantined]:
        """See the port."""
        return await quarantine.read(self._db, query, self._now)

    async def awaited_tasks(self) -> list[tuple[str, str]]:
        """See the port."""
        return await quarantine.awaited(self._db, self._now)

    async def unquarantine(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        return await quarantine.remove(self._db, ids)

    async def check(self) -> None:
        """See the port."""
        await self._be_seen()

    async def look_for_others(self, db: Connection) -> None:
        """Whether other managers are there, to be told what this one does."""
        self.has_others = await db.fetchval(OTHERS, self._manager, self._clock.now() + self.offset_us - SEEN_US)

    async def _be_seen(self) -> None:
        await self._db.execute(
            "insert into easyjobs.managers(number, begun_at, seen_at) values ($1, $2, $2) "
            "on conflict (number) do update set seen_at = excluded.seen_at",
            self._manager, self._now,
        )  # fmt: skip
        await self.look_for_others(self._db)


def _are_plain(submissions: Sequence[Submission]) -> bool:
    for submission in submissions:
        if submission.key is not None and submission.key.keep_us is None:
            return False  # one of a message is hardly ever known: it is written first, and looked at if it is
        for job in submission.jobs:
            if job.parent is not None or job.befores or job.unique is not None or len(job.id) != 16:
                return False
    return True


def _is_in_range(seq: int, attempt: int, us: int) -> bool:
    return abs(seq) <= BIGGEST and abs(attempt) < 2**31 and abs(us) <= BIGGEST // 2


def _named(key: IdempotencyKey) -> tuple[str, str, str]:
    return clean(key.principal) or "", clean(key.scope) or "", clean(key.key) or ""


def lock_number(*parts: bytes) -> int:
    """The number of the lock that stands for a key, over all who submit."""
    digest = hashlib.sha256(b"easyjobs" + b"".join(len(part).to_bytes(4) + part for part in parts)).digest()
    return int.from_bytes(digest[:8], signed=True)


__all__ = ["CLAIM", "FINISH", "KINDS", "NOTE", "OTHER", "RENEW", "SUBMIT", "Writer"]
