"""A model of the life of jobs, a page long, beside each store: whatever hypothesis does to both, they agree.

Unlike the walks, which compare the stores with each other, the model shares no code with them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from easyjobs.domain.job import (
    Answer,
    JobQuery,
    NewJob,
    NewSession,
    Outcome,
    Report,
    Reports,
    Spec,
    Submission,
    SubmitVerdict,
    TaskRow,
    Want,
)
from easyjobs.domain.lifecycle import JobState as S
from easyjobs.stores import open_store
from easyjobs.stores.postgres import PostgresStore
from tests.clocks import FakeClock
from tests.contracts.test_postgres import restore
from tests.contracts.test_stores import MEMORY
from tests.postgres import cluster

LEASE_S = 30.0
MAX_CRASHES = 2
which = st.integers(0, 1_000_000)  # of what there is, modulo how many


@dataclass
class Job:
    """What the model knows. `back`: a late report of the last attempt still counts."""

    number: int
    retries: int
    state: S = S.QUEUED
    attempt: int = 0
    session: int = 0
    seq: int = 0
    failures: int = 0
    crashes: int = 0
    back: bool = False
    stopping: bool = False
    run_at: float = 0.0
    began: float = 0.0
    result: bytes | None = None

    @property
    def id(self) -> bytes:
        return self.number.to_bytes(16, "big")


class Life(RuleBasedStateMachine):
    """`address` says which store."""

    address = "memory://"

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.mkdtemp(dir=MEMORY)
        self.clock = FakeClock()
        self.store = self.loop.run_until_complete(self._open())
        self.jobs: list[Job] = []
        self.sessions: dict[int, float] = dict.fromkeys(self.call("begin", [NewSession(bytes([n] * 16), f"w{n}") for n in (1, 2)]), LEASE_S)
        self.now = 0.0

    async def _open(self) -> Any:
        store = await self._empty()
        await store.open()
        await store.offer([TaskRow("q", "t", b"", b"")])
        return store

    async def _empty(self) -> Any:
        return open_store(self.address.format(self.directory), clock=self.clock, lease_s=LEASE_S)

    def call(self, name: str, *args: Any) -> Any:
        async def go() -> Any:
            return await getattr(self.store, name)(*args)

        return self.loop.run_until_complete(go())

    def pick(self, number: int, *states: S) -> Job | None:
        some = [job for job in self.jobs if job.state in states] if states else self.jobs
        return some[number % len(some)] if some else None

    # --- what may happen

    @rule(delay=st.sampled_from([0, 0, 5]), retries=st.sampled_from([0, 1, -1]))
    def submit(self, delay: int, retries: int) -> None:
        job = Job(len(self.jobs) + 1, retries, run_at=self.now + delay)
        spec = Spec(1, max_retries=retries, max_crashes=MAX_CRASHES, run_at=self.clock.now() + delay * 1_000_000 if delay else None)
        [answer] = self.call("submit", [Submission((NewJob(job.id, spec, b"[[],{}]"),))])
        assert answer.verdict is SubmitVerdict.ACCEPTED
        job.state = S.SCHEDULED if delay else S.QUEUED
        self.jobs.append(job)

    @rule(number=which)
    def submit_again(self, number: int) -> None:
        job = self.pick(number)
        if job is not None:
            [answer] = self.call("submit", [Submission((NewJob(job.id, Spec(1), b"[[],{}]"),))])
            assert answer.verdict is SubmitVerdict.REPEATED

    @rule(number=which, room=st.integers(1, 3))
    def claim(self, number: int, room: int) -> None:
        session = list(self.sessions)[number % 2]
        [claims] = self.call("claim", [Want(session, (1,), room)])
        if self.sessions[session] <= self.now:
            assert claims.jobs == []
            return
        assert len(claims.jobs) == min(room, sum(job.state is S.QUEUED for job in self.jobs))
        for claimed in claims.jobs:
            job = self.jobs[int.from_bytes(claimed.id, "big") - 1]
            assert job.state is S.QUEUED
            assert claimed.attempt == job.attempt + 1
            assert claimed.failures == job.failures
            job.state, job.attempt, job.session, job.seq, job.back = S.RUNNING, claimed.attempt, session, claimed.seq, False
            job.began = self.now

    @precondition(lambda self: any(job.attempt for job in self.jobs))
    @rule(
        number=which,
        outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RELEASED]),
        is_old=st.sampled_from([False, False, False, True]),
        is_other=st.sampled_from([False, False, False, True]),
        retry=st.booleans(),
    )
    def report(self, number: int, outcome: Outcome, is_old: bool, is_other: bool, retry: bool) -> None:
        claimed = [job for job in self.jobs if job.attempt]
        job = claimed[number % len(claimed)]
        session = job.session if not is_other else next(other for other in self.sessions if other != job.session)
        attempt = job.attempt - is_old
        body = b"%d" % attempt if outcome is Outcome.SUCCEEDED else b'{"type":"E","message":""}' if outcome is Outcome.FAILED else b""
        [[verdict]] = self.call("finish", [Reports(session, [Report(job.seq, attempt, outcome, 1, body, retry)])])
        is_late = job.state is S.QUEUED and job.back and outcome is not Outcome.RELEASED
        owns = not is_old and not is_other and (job.state is S.RUNNING or is_late)
        assert (verdict.answer is Answer.ACCEPTED) == owns, (verdict, job)
        if not owns:
            assert verdict.state is job.state
            return
        stopping = job.stopping
        if outcome is Outcome.SUCCEEDED:
            job.state, job.result = S.SUCCEEDED, body
        elif outcome is Outcome.RELEASED:
            job.state, job.back = (S.CANCELLED if stopping else S.QUEUED), True
        else:
            again = retry and (job.retries == -1 or job.failures < job.retries)
            job.failures += 1
            job.back = False
            job.state = S.CANCELLED if stopping else S.QUEUED if again else S.FAILED
        assert verdict.state is job.state

    @rule(seconds=st.sampled_from([1, 6, 16, 31]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    @rule(number=which)
    def renew(self, number: int) -> None:
        session = list(self.sessions)[number % 2]
        assert self.call("renew", [session]) == [True]
        self.sessions[session] = self.now + LEASE_S

    @rule()
    def rescue(self) -> None:
        rescued = {one.job.seq: one.state for one in self.call("rescue")}
        gone = [job for job in self.jobs if job.state is S.RUNNING and self.sessions[job.session] <= self.now]
        assert rescued.keys() == {job.seq for job in gone}
        last_chances = [job for job in gone if job.crashes + 1 >= MAX_CRASHES]
        spared = {
            job.number
            for job in last_chances
            if any(other.session == job.session and other.began > job.began for other in last_chances) and job.crashes + 1 < 2 * MAX_CRASHES
        }
        for job in gone:
            job.crashes += 1
            is_over = job.crashes >= MAX_CRASHES and job.number not in spared
            job.state = S.CANCELLED if job.stopping else S.FAILED if is_over else S.QUEUED
            job.back = True
            assert rescued[job.seq] is job.state

    @rule()
    def due(self) -> None:
        self.call("due")
        for job in self.jobs:
            if job.state is S.SCHEDULED and job.run_at <= self.now:
                job.state = S.QUEUED

    @rule(number=which)
    def cancel(self, number: int) -> None:
        job = self.pick(number)
        if job is None:
            return
        [changed] = self.call("cancel", [job.id])
        if job.state in (S.QUEUED, S.SCHEDULED):
            job.state = S.CANCELLED
        elif job.state is S.RUNNING:
            job.stopping = True
        else:
            assert changed.done == (job.state is S.CANCELLED)
        assert changed.state is job.state

    @rule(number=which)
    def restart(self, number: int) -> None:
        job = self.pick(number)
        if job is None:
            return
        [changed] = self.call("restart", [job.id])
        assert changed.done == (job.state in (S.FAILED, S.CANCELLED))
        if changed.done:
            job.state, job.failures, job.crashes, job.stopping, job.back = S.QUEUED, 0, 0, False, False

    # --- what always holds

    @invariant()
    def the_store_and_the_model_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        records = self.call("page", JobQuery(limit=10_000))
        found = {record.id: (record.state, record.attempt, record.failures, record.crashes, record.result) for record in records}
        assert found == {job.id: (job.state, job.attempt, job.failures, job.crashes, job.result) for job in self.jobs}
        counts = {state: n for (_, state), n in self.call("counts").items() if n}
        assert counts == {state: n for state in S if (n := sum(job.state is state for job in self.jobs))}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.call("close")
            self.loop.close()
            shutil.rmtree(self.directory)


class LifeOnSqlite(Life):
    address = "sqlite:///{}/jobs.db"


class LifeOnPostgres(Life):
    address = ""

    async def _empty(self) -> Any:
        await restore(self.address)
        return PostgresStore(self.address, clock=self.clock, lease_s=LEASE_S, test_clock=self.clock)


Life.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
LifeOnSqlite.TestCase.settings = settings(max_examples=25, stateful_step_count=50, deadline=None)
LifeOnPostgres.TestCase.settings = settings(max_examples=20, stateful_step_count=50, deadline=None)
TestMemory = Life.TestCase
TestSqlite = LifeOnSqlite.TestCase


class TestPostgres(LifeOnPostgres.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        LifeOnPostgres.address = cls.enterClassContext(cluster()).url()
