"""The store in memory: for tests and trials; nothing survives the process.

It keeps every promise of the port but durability, by the plainest means: one dict of jobs, a heap of ready jobs a lane, and rules
that are looked up, not repeated in SQL.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from easyjobs.domain.blame import is_blamed, is_suspect
from easyjobs.domain.job import (
    BEFORE,
    CALL,
    Answer,
    Change,
    Changed,
    Child,
    Claimed,
    Claims,
    Due,
    JobQuery,
    JobRecord,
    NewJob,
    NewSession,
    Outcome,
    Report,
    Reports,
    Rescued,
    Running,
    Spec,
    Submission,
    Submitted,
    SubmitVerdict,
    TaskRow,
    UniqueKey,
    Verdict,
    Want,
    with_predecessors,
)
from easyjobs.domain.lifecycle import FINAL, Back, JobEvent, JobState, advance
from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import Unsent
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, Schedule, TaskSchedules
from easyjobs.domain.seeing import FailedAttempt, Glance, Ledger, Line, LogLine, Look, Notes, Progress, enter
from easyjobs.domain.tokens import Token
from easyjobs.errors import StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Kept, Successors
from easyjobs.runtime.batcher import Batcher, Call
from easyjobs.stores.memory_outbox import MemoryOutbox
from easyjobs.stores.memory_quarantine import MemoryQuarantine
from easyjobs.stores.memory_schedules import MemorySchedules
from easyjobs.stores.memory_tokens import MemoryTokens
from easyjobs.stores.verdicts import (
    RANK_STEP_US,
    UNKNOWN,
    Standing,
    calls_for_help,
    crash_error,
    depth_error,
    expired_error,
    judge,
    predecessor_error,
    unoffered_error,
)

NOTE, FINISH, RENEW, SUBMIT, CLAIM, OTHER = range(6)  # kinds of calls, in the order in which they run
ENDED = float("-inf")


class _Job(msgspec.Struct):
    """A job as it stands."""

    seq: int
    new: NewJob
    spec: Spec
    state: JobState
    rank: int
    created_at: int
    run_at: int | None
    parent_seq: int = 0
    edge: str = ""
    parent_round: int = 0
    depth: int = 0
    expires_at: int | None = None
    attempt: int = 0
    session: int | None = None
    back: Back = Back.NEVER
    round: int = 1
    failures: int = 0
    crashes: int = 0
    cancel_requested: bool = False
    started_at: int | None = None
    finished_at: int | None = None
    pulled_at: int | None = None
    result: bytes | None = None
    error: bytes | None = None
    progress: Progress | None = None
    log: _Log | None = None
    failed_attempts: tuple[FailedAttempt, ...] = ()


class _Log:
    """The log of one job."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.lines: list[Line] = []


class MemoryStore:
    """`ports.store.Store` without a disk."""

    def __init__(self, *, clock: Clock, lease_s: float = 30.0) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._batcher: Batcher | None = None
        self._jobs: dict[int, _Job] = {}  # by seq, in its order
        self._last_seq = 0
        self._by_id: dict[bytes, _Job] = {}
        self._ready: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # lane → heap of (rank, seq); may hold jobs that left
        self._scheduled: list[tuple[int, int]] = []  # heap of (run_at, seq); the same
        self._running: defaultdict[int, dict[int, _Job]] = defaultdict(dict)  # session → seq → job
        self._failed: dict[tuple[int, int], int] = {}  # (seq, attempt) → session, of failed attempts
        self._children: defaultdict[int, dict[tuple[str, int], _Job]] = defaultdict(dict)  # parent → (edge, its round) → child
        self._expiring: list[tuple[int, int]] = []  # heap of (expires_at, seq); may hold jobs that are not queued any more
        self._uniques: dict[bytes, tuple[int, UniqueKey, int | None]] = {}  # key → (seq, what it is, until)
        self._paused: set[str] = set()
        self._changes: list[Change] = []
        self._keys: dict[tuple[str, str, str], tuple[bytes, tuple[bytes, ...], int, int | None]] = {}  # … its time, and its own end
        self._quarantine = MemoryQuarantine(clock)
        self._tokens = MemoryTokens(clock)
        self._outbox = MemoryOutbox()
        self._is_to_send = False
        self._counts: Counter[tuple[int, JobState]] = Counter()
        self._tasks: dict[tuple[str, str], TaskRow] = {}
        self._schedules = MemorySchedules(clock, self._lane_of, self._add_scheduled, self._is_open)
        self._sessions: dict[bytes, int] = {}
        self._names: dict[int, str] = {}
        self._leases: dict[int, float] = {}
        self.successors: Successors = lambda _: ()
        self.on_change: Callable[[Sequence[Change]], None] = lambda _: None
        self.on_unsent: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Ready at once."""
        self._batcher = Batcher(self._run, 6, None)

    async def close(self) -> None:
        """Finish what was called."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close(StoreError("the store is not open"))

    @property
    def is_busy(self) -> bool:
        """See the port. Never: there is nothing to wait for."""
        return False

    def submit(self, submissions: Sequence[Submission]) -> Awaitable[list[Submitted]]:
        """See the port."""
        return self._call(SUBMIT, lambda: [self._submit(submission) for submission in submissions])

    def claim(self, wants: Sequence[Want]) -> Awaitable[list[Claims]]:
        """See the port."""
        return self._call(CLAIM, lambda: [self._claim(want) for want in wants])

    def finish(self, reports: Sequence[Reports]) -> Awaitable[list[list[Verdict]]]:
        """See the port."""
        return self._call(FINISH, lambda: self._finish_all(reports))

    def note(self, notes: Sequence[Notes]) -> Awaitable[list[tuple[int, ...]]]:
        """See the port."""
        return self._call(NOTE, lambda: [self._note(each) for each in notes])

    def begin(self, sessions: Sequence[NewSession]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._begin(session) for session in sessions])

    def renew(self, sessions: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(RENEW, lambda: [self._renew(session) for session in sessions])

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return self._call(OTHER, lambda: [[_running(job) for _, job in sorted(self._running[session].items())] for session in sessions])

    def rescue(self, limit: int = 1000) -> Awaitable[list[Rescued]]:
        """See the port."""
        return self._call(OTHER, lambda: self._rescue(limit))

    def due(self, limit: int = 1000) -> Awaitable[Due]:
        """See the port."""
        return self._call(OTHER, lambda: self._due(limit))

    def offer(self, tasks: Sequence[TaskRow]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._offer(task) for task in tasks])

    def tasks(self) -> Awaitable[list[TaskRow]]:
        """See the port."""
        return self._call(OTHER, lambda: sorted(self._tasks.values(), key=lambda task: task.lane))

    def schedule(self, tasks: Sequence[TaskSchedules]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.schedule(tasks))

    def schedules(self, ids: Sequence[int] | None = None) -> Awaitable[list[Schedule]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.read(ids))

    def due_schedules(self, limit: int = 100) -> Awaitable[DueSchedules]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.due(limit))

    def fire(self, firings: Sequence[Firing]) -> Awaitable[list[list[Fired]]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.fire(firings))

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.run_now(jobs))

    def pause_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.pause(ids))

    def resume_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.resume(ids))

    def prune_ticks(self, before_us: int, limit: int = 500) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._schedules.prune(before_us, limit))

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._record_of(job_id) for job_id in ids])

    def look(self, glances: Sequence[Glance]) -> Awaitable[list[Look | None]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._look(glance) for glance in glances])

    def attempts(self, ids: Sequence[bytes]) -> Awaitable[list[list[FailedAttempt]]]:
        """See the port."""
        return self._call(OTHER, lambda: [list(self._by_id[id].failed_attempts) if id in self._by_id else [] for id in ids])

    def ahead(self, ids: Sequence[bytes], limit: int = 10_000) -> Awaitable[list[int | None]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._ahead(id, limit) for id in ids])

    def page(self, query: JobQuery) -> Awaitable[list[JobRecord]]:
        """See the port."""
        return self._call(OTHER, lambda: self._page(query))

    def pull(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._call(OTHER, lambda: self._pull(ids))

    def counts(self) -> Awaitable[dict[tuple[int, JobState], int]]:
        """See the port."""
        return self._call(OTHER, lambda: {key: n for key, n in self._counts.items() if n})

    def prune(self, pulled_before_us: int, keys_before_us: int, limit: int = 500) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._prune(pulled_before_us, keys_before_us, limit))

    def cancel(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._cancel(self._by_id.get(job_id)) for job_id in ids])

    def stopping(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return self._call(
            OTHER,
            lambda: [[_running(job) for _, job in sorted(self._running[each].items()) if job.cancel_requested] for each in sessions],
        )

    def restart(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._restart(self._by_id.get(job_id)) for job_id in ids])

    def hasten(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._hasten(self._by_id.get(job_id)) for job_id in ids])

    def delete(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._delete(self._by_id.get(job_id)) for job_id in ids])

    def expire(self, limit: int = 1000) -> Awaitable[int | None]:
        """See the port."""
        return self._call(OTHER, lambda: self._expire(limit))

    def fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int = 1000) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._fail_unoffered(lanes, grace_us, limit))

    def retain(self, kept: Kept, after_seq: int = 0, limit: int = 500) -> Awaitable[tuple[int, int | None]]:
        """See the port."""
        return self._call(OTHER, lambda: self._retain(kept, after_seq, limit))

    def pause(self, queue: str, is_paused: bool) -> Awaitable[bool]:
        """See the port."""
        return self._call(OTHER, lambda: self._pause(queue, is_paused))

    def paused(self) -> Awaitable[list[str]]:
        """See the port."""
        return self._call(OTHER, lambda: sorted(self._paused))

    def children(self, ids: Sequence[bytes]) -> Awaitable[list[list[Child]]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._children_of(self._by_id.get(job_id)) for job_id in ids])

    def quarantine(self, messages: Sequence[BadMessage]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.add(messages))

    def quarantined(self, query: QuarantineQuery) -> Awaitable[list[Quarantined]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.read(query))

    def awaited_tasks(self) -> Awaitable[list[tuple[str, str]]]:
        """See the port."""
        return self._call(OTHER, self._quarantine.awaited)

    def unquarantine(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._quarantine.remove(ids))

    def keep_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._tokens.keep(tokens))

    def revoke_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(OTHER, lambda: self._tokens.revoke(tokens))

    def tokens(self) -> Awaitable[list[Token]]:
        """See the port."""
        return self._call(OTHER, self._tokens.read)

    def unsent(self, broker: str, after_id: int = 0, limit: int = 500) -> Awaitable[list[Unsent]]:
        """See the port."""
        return self._call(OTHER, lambda: self._outbox.unsent(broker, after_id, limit))

    def sent(self, ids: Sequence[int]) -> Awaitable[int]:
        """See the port."""
        return self._call(OTHER, lambda: self._outbox.sent(ids))

    def check(self) -> Awaitable[None]:
        """See the port."""
        return self._call(OTHER, lambda: None)

    # --- one call at a time -----------------------------------------------------------------------------------------------------

    def _call(self, kind: int, what: Callable[[], Any]) -> asyncio.Future[Any]:
        if self._batcher is not None:
            return self._batcher.call(kind, what)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(StoreError("the store is not open"))
        return future

    def _run(self, calls: list[Call]) -> list[Any]:
        self._changes = []
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(call.what())
            except Exception as error:  # noqa: BLE001 (it is the call's answer)
                wrapped = StoreError(f"{type(error).__name__}: {error}")
                wrapped.__cause__ = error
                answers.append(wrapped)
        if self._changes:
            asyncio.get_running_loop().call_soon(self.on_change, self._changes)
        if self._is_to_send:
            self._is_to_send = False
            asyncio.get_running_loop().call_soon(self.on_unsent)
        return answers

    def _put(self, job: _Job, state: JobState) -> None:
        """Move a job to `state`, in all the places that know about it."""
        lane = job.spec.lane
        self._counts[lane, job.state] -= 1
        self._counts[lane, state] += 1
        if job.state is JobState.RUNNING and job.session is not None:
            del self._running[job.session][job.seq]
        job.state = state
        if state in FINAL:
            self._answer(job)
        self._place(job)

    def _answer(self, job: _Job) -> None:
        reply = job.new.reply
        if reply is not None:
            body = job.result if job.result is not None else job.error or b""
            self._outbox.add(
                reply,
                Unsent(
                    self._outbox.next_id(), reply.queue, reply.correlation, self._clock.now(), job.new.id, job.spec.lane, job.state, job.attempt,
                    body,
                ),
            )  # fmt: skip
            self._is_to_send = True

    def _place(self, job: _Job) -> None:
        if job.state is JobState.QUEUED:
            heapq.heappush(self._ready[job.spec.lane], (job.rank, job.seq))
        elif job.state is JobState.SCHEDULED and job.run_at is not None:
            heapq.heappush(self._scheduled, (job.run_at, job.seq))
        elif job.state is JobState.RUNNING and job.session is not None:
            self._running[job.session][job.seq] = job
        if job.expires_at is not None and advance(job.state, JobEvent.EXPIRED) is not None:
            heapq.heappush(self._expiring, (job.expires_at, job.seq))

    def _submit(self, submission: Submission) -> Submitted:
        jobs, key = submission.jobs, submission.key
        if any(len(job.id) != 16 for job in jobs):
            raise ValueError("a job's id has 16 bytes")
        if key is not None and (stored := self._keys.get((key.principal, key.scope, key.key))) is not None:
            body, ids, *_ = stored
            return Submitted(SubmitVerdict.REPEATED, ids) if body == key.body else Submitted(SubmitVerdict.CONFLICT, ())
        known = {job.id: (old.spec.lane, old.new.args) for job in jobs if (old := self._by_id.get(job.id)) is not None}
        new: dict[bytes, NewJob] = {}
        for job in jobs:
            content = (job.spec.lane, job.args)
            if job.id not in known:
                new[job.id] = job
            if known.setdefault(job.id, content) != content:
                return Submitted(SubmitVerdict.CONFLICT, ())
        for job in new.values():
            if job.parent is not None and job.parent.holder is not None and not self._owns(job.parent.seq, job.parent.holder):
                return Submitted(SubmitVerdict.ORPHANED, ())
        by_spec: dict[Spec, list[NewJob]] = {}  # numbered spec by spec, as in other stores
        kin: list[NewJob] = []
        for job in new.values():
            if job.parent is None and not job.befores and job.unique is None:
                by_spec.setdefault(job.spec, []).append(job)
            else:
                kin.append(job)
        for some in by_spec.values():
            for job in some:
                self._add(job, self._state_of(job.spec))
        born = {job.id: self._bear(job) for job in kin}
        ids = tuple(born.get(job.id, job.id) for job in jobs)
        if key is not None:
            now = self._clock.now()
            self._keys[key.principal, key.scope, key.key] = (key.body, ids, now, None if key.keep_us is None else now + key.keep_us)
        is_new = any(born.get(job_id, job_id) == job_id for job_id in new) or not jobs
        return Submitted(SubmitVerdict.ACCEPTED if is_new else SubmitVerdict.REPEATED, ids)

    def _state_of(self, spec: Spec) -> JobState:
        return JobState.SCHEDULED if spec.run_at is not None and spec.run_at > self._clock.now() else JobState.QUEUED

    def _add(self, new: NewJob, state: JobState) -> _Job:
        now, spec = self._clock.now(), new.spec
        rank = (now if spec.run_at is None else spec.run_at) - spec.priority * RANK_STEP_US
        self._last_seq += 1
        job = _Job(self._last_seq, new, spec, state, rank, now, spec.run_at)
        self._jobs[job.seq] = job
        self._by_id[new.id] = job
        self._counts[spec.lane, state] += 1
        if spec.expires_us is not None:
            job.expires_at = now + spec.expires_us
        self._place(job)
        return job

    def _owns(self, seq: int, holder: tuple[int, int]) -> bool:
        job = self._jobs.get(seq)
        return job is not None and job.state is JobState.RUNNING and (job.attempt, job.session) == holder

    def _bear(self, new: NewJob, parent_round: int | None = None, parent_seq: int | None = None) -> bytes:
        """Add a job that has kin or a unique key, with its predecessors; return the id of the one that is there in its place."""
        link, edge, depth, too_deep = new.parent, "", 0, False
        seq = 0 if link is None else link.seq if parent_seq is None else parent_seq
        if link is not None:
            edge, parent = link.edge, self._jobs.get(seq)
            depth = 1 if parent is None else parent.depth + 1
            too_deep = depth > link.max_depth
            if edge.startswith(CALL):
                before = [(round, job) for (of, round), job in self._children[seq].items() if of == edge]
                last_round, last = max(before, key=lambda each: each[0], default=(0, None))
                if last is not None and last.state not in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
                    return last.new.id
                parent_round = last_round + 1
            elif parent_round is None:
                parent_round = 1 if parent is None else parent.round
            if (child := self._children[seq].get((edge, parent_round))) is not None:
                return child.new.id
        if new.unique is not None and (holder := self._holder(new.unique.key)) is not None:
            return holder.new.id
        if new.id in self._by_id:
            return new.id
        state = JobState.FAILED if too_deep else JobState.WAITING if new.befores else self._state_of(new.spec)
        job = self._add(new, state)
        job.depth = depth
        if link is not None and parent_round is not None:
            job.parent_seq, job.edge, job.parent_round = seq, edge, parent_round
            self._children[seq][edge, parent_round] = job
            if too_deep:
                job.error, job.finished_at = depth_error(link.max_depth), job.created_at
                self._answer(job)
        if new.unique is not None:
            until = None if new.unique.period_us is None else job.created_at + new.unique.period_us
            self._uniques[new.unique.key] = (job.seq, new.unique, until)
        if state is JobState.WAITING:
            for predecessor in new.befores:
                self._bear(predecessor, 1, job.seq)
        return new.id

    def _bear_all(self, jobs: Iterable[NewJob], parent: _Job, *, tell: bool = False) -> None:
        for job in jobs:
            if job.parent is not None and (job.parent.when is None or job.parent.when == parent.state):
                self._bear(job, parent.round)
                for each in with_predecessors([job]) if tell else ():
                    if (born := self._by_id.get(each.id)) is not None:
                        self._changes.append(Change(born.seq, born.new.id, born.spec.lane, born.state))

    def _claim(self, want: Want) -> Claims:
        if self._leases.get(want.session, ENDED) <= self._clock.monotonic():
            return Claims([], ())
        lanes = list(dict.fromkeys(want.lanes))
        claimed: list[Claimed] = []
        size = 0
        while len(claimed) < want.room and size < want.max_bytes:
            heads = [self._ready[lane][0] for lane in lanes if self._tidy(lane)]
            if not heads:
                break
            job = self._jobs[min(heads)[1]]
            heapq.heappop(self._ready[job.spec.lane])
            job.attempt += 1
            job.session = want.session
            job.back = Back.NEVER
            job.started_at = self._clock.now()
            self._put(job, JobState.RUNNING)
            size += len(job.new.args)
            timeout_us, trace = job.spec.timeout_us or 0, job.spec.traceparent or ""
            claimed.append(Claimed(job.seq, job.attempt, job.spec.lane, job.new.id, job.failures, timeout_us, job.new.args, trace))
        return Claims(claimed, tuple(lane for lane in want.lanes if self._counts[lane, JobState.QUEUED] <= 0))

    def _tidy(self, lane: int) -> bool:
        """Drop what is no longer ready from the top of the lane's heap; say whether something is left."""
        heap = self._ready[lane]
        while heap:
            rank, seq = heap[0]
            job = self._jobs.get(seq)
            if job is not None and job.state is JobState.QUEUED and job.rank == rank:
                return True
            heapq.heappop(heap)
        return False

    def _finish_all(self, reports: Sequence[Reports]) -> list[list[Verdict]]:
        failed: list[tuple[_Job, bytes]] = []
        verdicts = [[self._finish(some, report, failed) for report in some.items] for some in reports]
        for hurt, error in sorted(failed, key=lambda each: each[0].seq):
            self._bear_all(self.successors(msgspec.structs.replace(self._record(hurt), error=error)), hurt, tell=True)
        self._follow([job for some in reports for report in some.items if (job := self._jobs.get(report.seq)) is not None])
        return verdicts

    def _finish(self, reports: Reports, report: Report, failed: list[tuple[_Job, bytes]]) -> Verdict:
        job = self._jobs.get(report.seq)
        if job is None:
            return UNKNOWN
        standing = Standing(
            job.seq, job.spec.lane, job.state, job.attempt, job.session, job.back, job.round, job.failures,
            job.spec.max_retries, job.cancel_requested, job.crashes, job.spec.max_crashes,
        )  # fmt: skip
        failed_before = self._failed.get((report.seq, report.attempt)) == reports.session
        verdict = judge(standing, reports.session, report, failed_before=failed_before)
        if verdict.answer is not Answer.ACCEPTED:
            return verdict
        now = self._clock.now()
        job.back, job.failures, job.crashes = standing.back, standing.failures, standing.crashes
        job.result = job.error = None
        if report.outcome is Outcome.SUCCEEDED:
            job.result = report.body
        elif report.outcome is Outcome.FAILED:
            self._failed[report.seq, report.attempt] = reports.session
            attempt = FailedAttempt(report.attempt, now, self._names.get(reports.session), report.body)
            job.failed_attempts = (*job.failed_attempts, attempt)
            if calls_for_help(standing.state, job.spec.max_retries, job.failures):
                failed.append((job, report.body))
            if standing.state in FINAL:
                job.error = report.body
        job.started_at = None if report.outcome in (Outcome.RELEASED, Outcome.SNOOZED) else now - report.ran_us
        if standing.state is JobState.SCHEDULED:
            job.run_at = now + report.delay_us
        job.finished_at = now if standing.state in FINAL else None
        self._put(job, standing.state)
        self._bear_all(reports.successors.get(report.seq, ()), job)
        return verdict

    def _note(self, notes: Notes) -> tuple[int, ...]:
        stale: dict[int, None] = {}
        lines: dict[int, list[Line]] = {}
        now = self._clock.now()
        for mark in notes.marks:
            job = self._job_of(mark.seq, mark.attempt, notes.session)
            if job is None or job.state in FINAL:
                stale[mark.seq] = None
            else:
                job.progress = Progress(mark.attempt, mark.done, mark.total, mark.message, now)
        for line in notes.lines:
            lines.setdefault(line.seq, []).append(line)
        for seq, some in lines.items():
            ours = [line for line in some if self._job_of(seq, line.attempt, notes.session) is not None]
            if ours:
                job = self._jobs[seq]
                log = job.log = job.log or _Log()
                log.lines += enter(log.ledger, ours)
            else:
                stale[seq] = None
        return tuple(stale)

    def _job_of(self, seq: int, attempt: int, session: int) -> _Job | None:
        """The job whose last attempt this is."""
        job = self._jobs.get(seq)
        return job if job is not None and job.attempt == attempt and job.session == session else None

    def _look(self, glance: Glance) -> Look | None:
        job = self._by_id.get(glance.id)
        if job is None:
            return None
        progress = job.progress if job.progress is not None and job.progress.attempt == job.attempt else None
        if job.log is None:
            return Look(job.state, job.attempt, progress, [], False, 0, 0)
        after = [line for line in job.log.lines if (line.attempt, line.number) > glance.after]
        lines = [LogLine(line.attempt, line.number, line.at, line.level, line.logger, line.text) for line in after[: glance.limit]]
        ledger = job.log.ledger
        return Look(job.state, job.attempt, progress, lines, len(after) > len(lines), ledger.lines, ledger.dropped)

    def _ahead(self, id: bytes, limit: int) -> int | None:
        job = self._by_id.get(id)
        if job is None or job.state is not JobState.QUEUED:
            return None
        place, lane = (job.rank, job.seq), job.spec.lane
        queued = [one for one in self._jobs.values() if one.state is JobState.QUEUED and one.spec.lane == lane]
        return min(limit, sum((one.rank, one.seq) < place for one in queued))

    def _begin(self, session: NewSession) -> int:
        number = self._sessions.setdefault(session.id, len(self._sessions) + 1)
        self._names[number] = session.name
        self._leases[number] = self._clock.monotonic() + self._lease_s
        return number

    def _renew(self, session: int) -> bool:
        if session not in self._leases:
            return False
        self._leases[session] = self._clock.monotonic() + self._lease_s
        return True

    def _rescue(self, limit: int) -> list[Rescued]:
        now, rescued = self._clock.now(), list[Rescued]()
        ended = [session for session, deadline in self._leases.items() if deadline <= self._clock.monotonic()]
        lost = sorted((job.started_at or 0, seq, session) for session in ended for seq, job in self._running[session].items())
        # In the order of their beginnings: the last of a session's suspects is there until all others are judged.
        last_began = {session: at for at, seq, session in lost if is_suspect(self._jobs[seq].crashes, self._jobs[seq].spec.max_crashes)}
        for began_at, seq, session in lost[:limit]:
            job = self._jobs[seq]
            blamed = is_blamed(job.crashes, job.spec.max_crashes, began_at, session, last_began)
            job.crashes += 1
            event = JobEvent.CRASHED_OUT if blamed else JobEvent.LEASE_ENDED
            after = advance(job.state, event, cancel_requested=job.cancel_requested)
            assert after is not None
            job.back = Back.RESCUED
            job.finished_at = now if after in FINAL else None
            job.error = crash_error(job.crashes) if after is JobState.FAILED else None
            is_last = after is JobState.QUEUED and job.crashes + 1 >= job.spec.max_crashes
            rescued.append(Rescued(_running(job), session, after, is_last))
            self._put(job, after)
        for each in rescued:
            if each.state is JobState.FAILED:
                job = self._jobs[each.job.seq]
                self._bear_all(self.successors(self._record(job)), job, tell=True)
        self._follow([self._jobs[each.job.seq] for each in rescued])
        return rescued

    def _due(self, limit: int) -> Due:
        now, lanes = self._clock.now(), set[int]()
        queued = 0
        while self._scheduled:
            run_at, seq = self._scheduled[0]
            job = self._jobs.get(seq)
            if job is None or job.state is not JobState.SCHEDULED or job.run_at != run_at:
                heapq.heappop(self._scheduled)
                continue
            if run_at > now or queued == limit:
                return Due(tuple(sorted(lanes)), run_at)
            heapq.heappop(self._scheduled)
            job.rank = run_at - job.spec.priority * RANK_STEP_US
            self._put(job, JobState.QUEUED)
            lanes.add(job.spec.lane)
            queued += 1
        return Due(tuple(sorted(lanes)), None)

    def _offer(self, task: TaskRow) -> int:
        old = self._tasks.get((task.queue, task.name))
        lane = len(self._tasks) + 1 if old is None else old.lane
        self._tasks[task.queue, task.name] = msgspec.structs.replace(task, lane=lane, offered_at=self._clock.now())
        return lane

    def _lane_of(self, queue: str, name: str) -> int | None:
        task = self._tasks.get((queue, name))
        return None if task is None else task.lane

    def _add_scheduled(self, new: NewJob) -> int:
        if len(new.id) != 16:
            raise ValueError("a job's id has 16 bytes")
        return self._by_id[self._bear(new)].seq

    def _is_open(self, seq: int) -> bool:
        return seq in self._jobs and self._jobs[seq].state not in FINAL

    def _record_of(self, id: bytes) -> JobRecord | None:
        job = self._by_id.get(id)
        return None if job is None else self._record(job)

    def _record(self, job: _Job) -> JobRecord:
        parent = self._jobs.get(job.parent_seq)
        return JobRecord(
            job.seq, job.new.id, job.spec.lane, job.state, job.attempt, job.failures, job.crashes, job.spec.priority, job.created_at,
            job.run_at, job.started_at, job.finished_at, job.pulled_at, None if job.session is None else self._names.get(job.session),
            job.new.args, job.result, job.error, None if parent is None else parent.new.id, job.spec.traceparent,
        )  # fmt: skip

    def _page(self, query: JobQuery) -> list[JobRecord]:
        before = self._last_seq + 1 if query.before_seq is None else query.before_seq
        found: list[JobRecord] = []
        for job in reversed(self._jobs.values()):
            if len(found) >= query.limit:
                break
            if (
                job.seq < before
                and (query.lanes is None or job.spec.lane in query.lanes)
                and (query.states is None or job.state in query.states)
            ):
                found.append(self._record(job))
        return found

    def _pull(self, ids: Sequence[bytes]) -> list[JobRecord | None]:
        now = self._clock.now()
        for job_id in ids:
            job = self._by_id.get(job_id)
            if job is not None and job.state is JobState.SUCCEEDED and job.pulled_at is None:
                job.pulled_at = now
        return [self._record_of(job_id) for job_id in ids]

    def _prune(self, pulled_before_us: int, keys_before_us: int, limit: int) -> int:
        now = self._clock.now()
        pulled = [
            job
            for job in self._jobs.values()
            if job.pulled_at is not None and job.result is not None and job.pulled_at < now - pulled_before_us and not self._is_needed(job)
        ]
        for job in pulled[:limit]:
            job.result = None
        kept = [
            job
            for job in self._jobs.values()
            if job.spec.ttl_us is not None and job.result is not None and (job.finished_at or now) + job.spec.ttl_us < now
            and not self._is_needed(job)
        ]  # fmt: skip
        for job in kept[:limit]:
            job.result = None
        keys = [key for key, (_, _, at, until) in self._keys.items() if (at < now - keys_before_us if until is None else until < now)][
            :limit
        ]
        for key in keys:
            del self._keys[key]
        return len(pulled[:limit]) + len(kept[:limit]) + len(keys)

    # --- what happens otherwise than by claims and reports ------------------------------------------------------------------------

    def _change(self, job: _Job, event: JobEvent, error: bytes | None = None) -> JobState | None:
        after = advance(job.state, event)
        if after is None:
            return None
        now = self._clock.now()
        job.back, job.cancel_requested = Back.NEVER, False
        job.finished_at, job.error = (now, error) if after in FINAL else (None, error)
        if after is JobState.QUEUED:
            job.rank = now - job.spec.priority * RANK_STEP_US
        self._put(job, after)
        self._tell(job)
        return after

    def _tell(self, job: _Job) -> None:
        running = job.state is JobState.RUNNING
        self._changes.append(
            Change(
                job.seq, job.new.id, job.spec.lane, job.state, job.attempt if running else 0, (job.session or 0) if running else 0,
                job.error or b"",
            )
        )  # fmt: skip

    def _fail(self, job: _Job, event: JobEvent, error: bytes) -> None:
        if self._change(job, event, error) is JobState.FAILED:
            self._bear_all(self.successors(self._record(job)), job, tell=True)

    def _follow(self, ended: list[_Job]) -> None:
        queue = list(ended)
        while queue:
            child = queue.pop(0)
            parent = self._jobs.get(child.parent_seq)
            if parent is None or child.state not in FINAL or not child.edge.startswith(BEFORE) or parent.state is not JobState.WAITING:
                continue
            if child.state is not JobState.SUCCEEDED:
                self._fail(parent, JobEvent.PREDECESSOR_ENDED, predecessor_error(child.edge, child.state, child.error))
                queue.append(parent)
            elif not self._unmet(parent):
                early = parent.run_at is not None and parent.run_at > self._clock.now()
                self._change(parent, JobEvent.MET_EARLY if early else JobEvent.MET)

    def _unmet(self, job: _Job) -> list[_Job]:
        return [child for child in self._kids(job) if child.edge.startswith(BEFORE) and child.state is not JobState.SUCCEEDED]

    def _kids(self, job: _Job) -> list[_Job]:
        return sorted(self._children[job.seq].values(), key=lambda child: child.seq)

    def _is_needed(self, job: _Job) -> bool:
        parent = self._jobs.get(job.parent_seq)
        return parent is not None and job.edge.startswith((CALL, BEFORE)) and parent.state not in FINAL

    def _cancel(self, job: _Job | None) -> Changed:
        if job is None:
            return Changed(False, None)
        if job.state in FINAL:
            return Changed(job.state is JobState.CANCELLED, job.state)
        if job.state is JobState.RUNNING:
            job.cancel_requested = True
            self._tell(job)
        else:
            self._change(job, JobEvent.CANCELLED)
        for child in self._kids(job):
            if child.edge.startswith((CALL, BEFORE)) and child.state not in FINAL:
                self._cancel(child)
        self._follow([job])
        return Changed(True, job.state)

    def _holder(self, key: bytes) -> _Job | None:
        held = self._uniques.get(key)
        if held is None:
            return None
        seq, unique, until = held
        job = self._jobs.get(seq)
        return None if job is None or job.state not in unique.states or (until is not None and until <= self._clock.now()) else job

    def _restart(self, job: _Job | None) -> Changed:
        if job is None or advance(job.state, JobEvent.RESTARTED) is None:
            return Changed(False, None if job is None else job.state)
        unique = job.new.unique
        if unique is not None and unique.key in self._uniques:
            _, what, until = self._uniques[unique.key]
            holder = self._holder(unique.key)
            if holder is not None and holder is not job:
                return Changed(False, job.state)
            self._uniques[unique.key] = (job.seq, what, until)
        unmet = self._unmet(job)
        after = advance(job.state, JobEvent.RESTARTED_WAITING if unmet else JobEvent.RESTARTED)
        assert after is not None
        job.back, job.round, job.failures, job.crashes, job.cancel_requested = Back.NEVER, job.round + 1, 0, 0, False
        job.run_at = job.expires_at = job.started_at = job.finished_at = job.pulled_at = job.result = job.error = None
        job.rank = self._clock.now() - job.spec.priority * RANK_STEP_US
        self._put(job, after)
        self._tell(job)
        for child in unmet:
            self._restart(child)
        return Changed(True, after)

    def _hasten(self, job: _Job | None) -> Changed:
        after = None if job is None or job.state is not JobState.SCHEDULED else self._change(job, JobEvent.DUE)
        return Changed(after is not None, None if job is None else job.state)

    def _delete(self, job: _Job | None) -> Changed:
        if job is None or job.state not in FINAL:
            return Changed(False, None if job is None else job.state)
        self._forget(job)
        return Changed(True, job.state)

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.seq], self._by_id[job.new.id]
        self._counts[job.spec.lane, job.state] -= 1
        self._failed = {key: session for key, session in self._failed.items() if key[0] != job.seq}
        self._children[job.parent_seq].pop((job.edge, job.parent_round), None)
        unique = job.new.unique
        if unique is not None and unique.key in self._uniques and self._uniques[unique.key][0] == job.seq:
            del self._uniques[unique.key]

    def _expire(self, limit: int) -> int | None:
        expired: list[_Job] = []
        while self._expiring:
            at, seq = self._expiring[0]
            job = self._jobs.get(seq)
            lives = job is not None and job.expires_at == at and advance(job.state, JobEvent.EXPIRED) is not None
            if lives and (at > self._clock.now() or len(expired) == limit):
                break
            heapq.heappop(self._expiring)
            if job is not None and lives:
                self._change(job, JobEvent.EXPIRED, expired_error())
                expired.append(job)
        self._follow(expired)
        return self._expiring[0][0] if self._expiring else None

    def _fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int) -> int:
        before = self._clock.now() - grace_us
        old = [
            job
            for lane in lanes
            for job in sorted(self._jobs.values(), key=lambda job: (job.rank, job.seq))
            if (job.state, job.spec.lane) == (JobState.QUEUED, lane)
            and job.edge
            and not job.edge.startswith(CALL)
            and job.created_at <= before
        ][:limit]
        for job in old:
            self._fail(job, JobEvent.UNOFFERED, unoffered_error())
        self._follow(old)
        return len(old)

    def _retain(self, kept: Kept, after_seq: int, limit: int) -> tuple[int, int | None]:
        now = self._clock.now()
        some = [job for job in self._jobs.values() if job.seq > after_seq][:limit]
        old = []
        for job in some:
            keep_us = kept.of(job.state)
            if job.finished_at is not None and keep_us is not None and job.finished_at <= now - keep_us and not self._is_needed(job):
                old.append(job)
        for job in old:
            self._forget(job)
        is_over = len(some) < limit or some[-1].created_at > now - kept.shortest_us
        return len(old), None if is_over else some[-1].seq

    def _pause(self, queue: str, is_paused: bool) -> bool:
        before = queue in self._paused
        (self._paused.add if is_paused else self._paused.discard)(queue)
        return before != is_paused

    def _children_of(self, job: _Job | None) -> list[Child]:
        if job is None:
            return []
        return [Child(child.new.id, child.spec.lane, child.edge, child.state) for child in self._kids(job)][:1000]


def _running(job: _Job) -> Running:
    return Running(job.seq, job.attempt, job.spec.lane, job.new.id)
