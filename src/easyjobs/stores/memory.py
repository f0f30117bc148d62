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

from easyjobs.domain.job import (
    Answer,
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
    Verdict,
    Want,
)
from easyjobs.domain.lifecycle import FINAL, Back, JobEvent, JobState, advance
from easyjobs.errors import StoreError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Successors
from easyjobs.runtime.batcher import Batcher, Call
from easyjobs.stores.verdicts import RANK_STEP_US, UNKNOWN, Standing, crash_error, judge

FINISH, RENEW, SUBMIT, CLAIM, OTHER = range(5)  # kinds of calls, in the order in which they run
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
    parent_round: int = 0
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


class MemoryStore:
    """`ports.store.Store` without a disk."""

    def __init__(self, *, clock: Clock, lease_s: float = 30.0) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._batcher: Batcher | None = None
        self._jobs: list[_Job] = []  # by seq - 1
        self._by_id: dict[bytes, _Job] = {}
        self._ready: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # lane → heap of (rank, seq); may hold jobs that left
        self._scheduled: list[tuple[int, int]] = []  # heap of (run_at, seq); the same
        self._running: defaultdict[int, dict[int, _Job]] = defaultdict(dict)  # session → seq → job
        self._failed: dict[tuple[int, int], int] = {}  # (seq, attempt) → session, of failed attempts
        self._children: dict[tuple[int, str, int], _Job] = {}  # (parent, edge, round)
        self._keys: dict[tuple[str, str, str], tuple[bytes, tuple[bytes, ...], int]] = {}
        self._counts: Counter[tuple[int, JobState]] = Counter()
        self._tasks: dict[tuple[str, str], TaskRow] = {}
        self._sessions: dict[bytes, int] = {}
        self._names: dict[int, str] = {}
        self._leases: dict[int, float] = {}

    async def open(self) -> None:
        """Ready at once."""
        self._batcher = Batcher(self._run, 5, None)

    async def close(self) -> None:
        """Finish what was called."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close(StoreError("the store is not open"))

    def submit(self, submissions: Sequence[Submission]) -> Awaitable[list[Submitted]]:
        """See the port."""
        return self._call(SUBMIT, lambda: [self._submit(submission) for submission in submissions])

    def claim(self, wants: Sequence[Want]) -> Awaitable[list[Claims]]:
        """See the port."""
        return self._call(CLAIM, lambda: [self._claim(want) for want in wants])

    def finish(self, reports: Sequence[Reports]) -> Awaitable[list[list[Verdict]]]:
        """See the port."""
        return self._call(FINISH, lambda: [[self._finish(some, report) for report in some.items] for some in reports])

    def begin(self, sessions: Sequence[NewSession]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._begin(session) for session in sessions])

    def renew(self, sessions: Sequence[int]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._call(RENEW, lambda: [self._renew(session) for session in sessions])

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return self._call(OTHER, lambda: [[_running(job) for _, job in sorted(self._running[session].items())] for session in sessions])

    def rescue(self, successors: Successors, limit: int = 1000) -> Awaitable[list[Rescued]]:
        """See the port."""
        return self._call(OTHER, lambda: self._rescue(successors, limit))

    def due(self, limit: int = 1000) -> Awaitable[Due]:
        """See the port."""
        return self._call(OTHER, lambda: self._due(limit))

    def offer(self, tasks: Sequence[TaskRow]) -> Awaitable[list[int]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._offer(task) for task in tasks])

    def tasks(self) -> Awaitable[list[TaskRow]]:
        """See the port."""
        return self._call(OTHER, lambda: sorted(self._tasks.values(), key=lambda task: task.lane))

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return self._call(OTHER, lambda: [self._record_of(job_id) for job_id in ids])

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

    @staticmethod
    def _run(calls: list[Call]) -> list[Any]:
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(call.what())
            except Exception as error:  # noqa: BLE001 (it is the call's answer)
                wrapped = StoreError(f"{type(error).__name__}: {error}")
                wrapped.__cause__ = error
                answers.append(wrapped)
        return answers

    def _put(self, job: _Job, state: JobState) -> None:
        """Move a job to `state`, in all the places that know about it."""
        lane = job.spec.lane
        self._counts[lane, job.state] -= 1
        self._counts[lane, state] += 1
        if job.state is JobState.RUNNING and job.session is not None:
            del self._running[job.session][job.seq]
        job.state = state
        self._place(job)

    def _place(self, job: _Job) -> None:
        if job.state is JobState.QUEUED:
            heapq.heappush(self._ready[job.spec.lane], (job.rank, job.seq))
        elif job.state is JobState.SCHEDULED and job.run_at is not None:
            heapq.heappush(self._scheduled, (job.run_at, job.seq))
        elif job.state is JobState.RUNNING and job.session is not None:
            self._running[job.session][job.seq] = job

    def _submit(self, submission: Submission) -> Submitted:
        jobs, key = submission.jobs, submission.key
        if any(len(job.id) != 16 for job in jobs):
            raise ValueError("a job's id has 16 bytes")
        if key is not None and (stored := self._keys.get((key.principal, key.scope, key.key))) is not None:
            body, ids, _ = stored
            return Submitted(SubmitVerdict.REPEATED, ids) if body == key.body else Submitted(SubmitVerdict.CONFLICT, ())
        known = {job.id: (old.spec.lane, old.new.args) for job in jobs if (old := self._by_id.get(job.id)) is not None}
        new: dict[bytes, NewJob] = {}
        for job in jobs:
            content = (job.spec.lane, job.args)
            if job.id not in known:
                new[job.id] = job
            if known.setdefault(job.id, content) != content:
                return Submitted(SubmitVerdict.CONFLICT, ())
        by_spec: dict[Spec, list[NewJob]] = {}  # numbered spec by spec, as in other stores
        for job in new.values():
            if job.parent is None:
                by_spec.setdefault(job.spec, []).append(job)
        for some in by_spec.values():
            for job in some:
                self._add(job)
        born = {job.id: self._bear(job) for job in new.values() if job.parent is not None}
        ids = tuple(born.get(job.id, job.id) for job in jobs)
        if key is not None:
            self._keys[key.principal, key.scope, key.key] = (key.body, ids, self._clock.now())
        is_new = any(born.get(job_id, job_id) == job_id for job_id in new) or not jobs
        return Submitted(SubmitVerdict.ACCEPTED if is_new else SubmitVerdict.REPEATED, ids)

    def _add(self, new: NewJob, parent_round: int = 0) -> _Job:
        now, spec = self._clock.now(), new.spec
        state = JobState.SCHEDULED if spec.run_at is not None and spec.run_at > now else JobState.QUEUED
        rank = (now if spec.run_at is None else spec.run_at) - spec.priority * RANK_STEP_US
        job = _Job(len(self._jobs) + 1, new, spec, state, rank, now, spec.run_at, parent_round)
        self._jobs.append(job)
        self._by_id[new.id] = job
        self._counts[spec.lane, state] += 1
        self._place(job)
        return job

    def _bear(self, new: NewJob, parent_round: int | None = None) -> bytes:
        parent = new.parent
        assert parent is not None
        if parent_round is None:
            parent_round = self._jobs[parent.seq - 1].round if 0 < parent.seq <= len(self._jobs) else 1
        child = self._children.get((parent.seq, parent.edge, parent_round))
        if child is None:
            if new.id in self._by_id:
                return new.id
            child = self._children[parent.seq, parent.edge, parent_round] = self._add(new, parent_round)
        return child.new.id

    def _bear_all(self, jobs: Iterable[NewJob], parent: _Job) -> None:
        for job in jobs:
            if job.parent is not None and job.parent.when == parent.state:
                self._bear(job, parent.round)

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
            job = self._jobs[min(heads)[1] - 1]
            heapq.heappop(self._ready[job.spec.lane])
            job.attempt += 1
            job.session = want.session
            job.back = Back.NEVER
            job.started_at = self._clock.now()
            self._put(job, JobState.RUNNING)
            size += len(job.new.args)
            claimed.append(Claimed(job.seq, job.attempt, job.spec.lane, job.new.id, job.failures, job.spec.timeout_us or 0, job.new.args))
        return Claims(claimed, tuple(lane for lane in want.lanes if self._counts[lane, JobState.QUEUED] <= 0))

    def _tidy(self, lane: int) -> bool:
        """Drop what is no longer ready from the top of the lane's heap; say whether something is left."""
        heap = self._ready[lane]
        while heap:
            rank, seq = heap[0]
            job = self._jobs[seq - 1]
            if job.state is JobState.QUEUED and job.rank == rank:
                return True
            heapq.heappop(heap)
        return False

    def _finish(self, reports: Reports, report: Report) -> Verdict:
        if not 0 < report.seq <= len(self._jobs):
            return UNKNOWN
        job = self._jobs[report.seq - 1]
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
            if standing.state in FINAL:
                job.error = report.body
        job.started_at = None if report.outcome is Outcome.RELEASED else now - report.ran_us
        if standing.state is JobState.SCHEDULED:
            job.run_at = now + report.delay_us
        job.finished_at = now if standing.state in FINAL else None
        self._put(job, standing.state)
        self._bear_all(reports.successors.get(report.seq, ()), job)
        return verdict

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

    def _rescue(self, successors: Successors, limit: int) -> list[Rescued]:
        now, rescued = self._clock.now(), list[Rescued]()
        ended = [session for session, deadline in self._leases.items() if deadline <= self._clock.monotonic()]
        lost = sorted((seq, session) for session in ended for seq in self._running[session])
        for seq, session in lost[:limit]:
            job = self._jobs[seq - 1]
            job.crashes += 1
            event = JobEvent.CRASHED_OUT if job.crashes >= job.spec.max_crashes else JobEvent.LEASE_ENDED
            after = advance(job.state, event, cancel_requested=job.cancel_requested)
            assert after is not None
            job.back = Back.RESCUED
            job.finished_at = now if after in FINAL else None
            job.error = crash_error(job.crashes) if after is JobState.FAILED else None
            rescued.append(Rescued(_running(job), session, after))
            self._put(job, after)
        for each in rescued:
            if each.state is JobState.FAILED:
                job = self._jobs[each.job.seq - 1]
                self._bear_all(successors(self._record(job)), job)
        return rescued

    def _due(self, limit: int) -> Due:
        now, lanes = self._clock.now(), set[int]()
        queued = 0
        while self._scheduled:
            run_at, seq = self._scheduled[0]
            job = self._jobs[seq - 1]
            if job.state is not JobState.SCHEDULED or job.run_at != run_at:
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

    def _record_of(self, id: bytes) -> JobRecord | None:
        job = self._by_id.get(id)
        return None if job is None else self._record(job)

    def _record(self, job: _Job) -> JobRecord:
        parent = job.new.parent
        known_parent = parent is not None and 0 < parent.seq <= len(self._jobs)
        return JobRecord(
            job.seq, job.new.id, job.spec.lane, job.state, job.attempt, job.failures, job.crashes, job.spec.priority, job.created_at,
            job.run_at, job.started_at, job.finished_at, job.pulled_at, None if job.session is None else self._names.get(job.session),
            job.new.args, job.result, job.error, self._jobs[parent.seq - 1].new.id if parent is not None and known_parent else None,
        )  # fmt: skip

    def _page(self, query: JobQuery) -> list[JobRecord]:
        before = len(self._jobs) + 1 if query.before_seq is None else query.before_seq
        found: list[JobRecord] = []
        for job in reversed(self._jobs[: max(before - 1, 0)]):
            if len(found) >= query.limit:
                break
            if (query.lanes is None or job.spec.lane in query.lanes) and (query.states is None or job.state in query.states):
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
            job for job in self._jobs if job.pulled_at is not None and job.result is not None and job.pulled_at < now - pulled_before_us
        ]
        for job in pulled[:limit]:
            job.result = None
        keys = [key for key, (_, _, at) in self._keys.items() if at < now - keys_before_us][:limit]
        for key in keys:
            del self._keys[key]
        return len(pulled[:limit]) + len(keys)


def _running(job: _Job) -> Running:
    return Running(job.seq, job.attempt, job.spec.lane, job.new.id)
