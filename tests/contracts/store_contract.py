"""What every store must do. The classes in `test_stores.py` only provide the store."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import (
    UNLIMITED,
    Answer,
    Claimed,
    ErrorInfo,
    IdempotencyKey,
    JobQuery,
    JobRecord,
    NewJob,
    NewSession,
    Outcome,
    Parent,
    Report,
    Reports,
    Running,
    Spec,
    Submission,
    Submitted,
    SubmitVerdict,
    TaskRow,
    Verdict,
    Want,
)
from easyjobs.domain.lifecycle import LATE_REPORTS, Back, JobEvent, JobState, advance
from easyjobs.domain.seeing import MAX_JOB_LINES, FailedAttempt, Glance, Line, LogLine, Look, Mark, Notes, Place, Progress
from easyjobs.errors import StoreError
from easyjobs.ports.store import Store
from tests.clocks import FakeClock

S = JobState
LEASE_S = 30.0
HOUR_US = 3_600_000_000
ACCEPTED, DUPLICATE, STALE = Answer.ACCEPTED, Answer.DUPLICATE, Answer.STALE
ERROR = msgspec.json.encode(ErrorInfo("ValueError", "no"))
_ids = itertools.count(1)


def an_id() -> bytes:
    return next(_ids).to_bytes(8, "big") + os.urandom(8)


def a_job(lane: int, args: bytes = b"[[],{}]", *, id: bytes | None = None, parent: Parent | None = None, **spec: Any) -> NewJob:
    return NewJob(an_id() if id is None else id, Spec(lane, **spec), args, parent)


def succeeded(job: Claimed | Running, body: bytes = b"1", ran_us: int = 0) -> Report:
    return Report(job.seq, job.attempt, Outcome.SUCCEEDED, ran_us, body)


def failed(job: Claimed | Running, *, retry: bool = False, delay_us: int = 0) -> Report:
    return Report(job.seq, job.attempt, Outcome.FAILED, 0, ERROR, retry, delay_us)


def crashed(job: Claimed | Running, *, retry: bool = False) -> Report:
    return Report(job.seq, job.attempt, Outcome.FAILED, 0, ERROR, retry, 0, crashed=True)


def released(job: Claimed | Running) -> Report:
    return Report(job.seq, job.attempt, Outcome.RELEASED)


def snoozed(job: Claimed | Running, *, delay_us: int) -> Report:
    return Report(job.seq, job.attempt, Outcome.SNOOZED, delay_us=delay_us)


async def submit(store: Store, *jobs: NewJob) -> list[bytes]:
    [answer] = await store.submit([Submission(jobs)])
    assert answer.verdict is SubmitVerdict.ACCEPTED
    return list(answer.ids)


async def claim(store: Store, session: int, *lanes: int, room: int = 100) -> list[Claimed]:
    [claims] = await store.claim([Want(session, lanes, room)])
    return claims.jobs


async def finish(store: Store, session: int, *reports: Report) -> list[Verdict]:
    [verdicts] = await store.finish([Reports(session, list(reports))])
    return verdicts


async def read(store: Store, id: bytes) -> JobRecord:
    [record] = await store.get([id])
    assert record is not None
    return record


async def all_jobs(store: Store) -> list[JobRecord]:
    return await store.page(JobQuery(limit=100_000))


def a_line(job: Claimed | Running, number: int, text: str = "text", *, attempt: int | None = None, at: int = 5) -> Line:
    return Line(job.seq, job.attempt if attempt is None else attempt, number, at, 20, "app", text)


async def look(store: Store, id: bytes, after: Place = (0, 0), limit: int = 100) -> Look:
    [seen] = await store.look([Glance(id, after, limit)])
    assert seen is not None
    return seen


async def assert_counts_are_exact(store: Store) -> None:
    counted = Counter((job.lane, job.state) for job in await all_jobs(store))
    assert {key: n for key, n in (await store.counts()).items() if n} == dict(counted)


class StoreContract:
    """Subclasses provide `store` (open, on `clock`) and `force`."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    async def lane(self, store: Store) -> int:
        [lane] = await store.offer([TaskRow("DEFAULT", "work", b"{}", b"{}")])
        return lane

    @pytest.fixture
    async def session(self, store: Store) -> int:
        [session] = await store.begin([NewSession(os.urandom(16), "worker-1")])
        return session

    @pytest.fixture(autouse=True)
    async def counters_stay_exact(self, store: Store) -> AsyncIterator[None]:
        yield
        await assert_counts_are_exact(store)

    async def force(self, store: Store, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        """Put a job where no verb of the port brings it yet."""
        raise NotImplementedError

    async def bring_to(self, store: Store, lane: int, session: int, state: JobState, back: Back = Back.NEVER) -> tuple[bytes, Running]:
        """A job in `state`, with the attempt that was claimed by `session` (attempt 1)."""
        [job_id] = await submit(store, a_job(lane, max_retries=UNLIMITED))
        [job] = await claim(store, session, lane)
        running = Running(job.seq, job.attempt, job.lane, job.id)
        if state is S.RUNNING:
            pass
        elif state is S.QUEUED and back is Back.RELEASED:
            await finish(store, session, released(job))
        elif state is S.QUEUED and back is Back.FAILED:
            await finish(store, session, failed(job, retry=True))
        elif state is S.SCHEDULED:
            await finish(store, session, failed(job, retry=True, delay_us=HOUR_US))
        elif state is S.SUCCEEDED:
            await finish(store, session, succeeded(job))
        elif state is S.FAILED:
            await finish(store, session, failed(job))
        else:
            await self.force(store, job.seq, state=state)
        return job_id, running

    # --- submit -----------------------------------------------------------------------------------------------------------------

    async def test_a_submitted_job_is_queued_and_reads_back_as_given(self, store: Store, lane: int, clock: FakeClock) -> None:
        job = a_job(lane, b'[[1,"a"],{"b":null}]', priority=2)
        assert await submit(store, job) == [job.id]
        record = await read(store, job.id)
        assert (record.state, record.lane, record.args, record.attempt) == (S.QUEUED, lane, job.args, 0)
        assert (record.priority, record.created_at, record.started_at, record.finished_at) == (2, clock.now(), None, None)
        assert (record.result, record.error, record.pulled_at, record.worker, record.parent) == (None, None, None, None, None)

    async def test_an_unknown_id_reads_as_none(self, store: Store, lane: int) -> None:
        [known] = await submit(store, a_job(lane))
        assert [record and record.id for record in await store.get([an_id(), known, known])] == [None, known, known]
        assert await store.get([]) == []

    async def test_submissions_are_answered_in_order(self, store: Store, lane: int) -> None:
        submissions = [Submission(tuple(a_job(lane, priority=p) for p in (0, 1, 0))) for _ in range(3)]
        assert await store.submit([*submissions, Submission(())]) == [
            *(Submitted(SubmitVerdict.ACCEPTED, tuple(job.id for job in each.jobs)) for each in submissions),
            Submitted(SubmitVerdict.ACCEPTED, ()),
        ]

    @pytest.mark.parametrize("together", [True, False])
    async def test_the_same_submission_again_stores_nothing_and_gives_the_same_ids(self, store: Store, lane: int, together: bool) -> None:
        submission = Submission((a_job(lane, b"[[1],{}]"), a_job(lane, b"[[2],{}]")))
        if together:
            first, second = await asyncio.gather(store.submit([submission]), store.submit([submission]))
        else:
            first, second = await store.submit([submission]), await store.submit([submission])
        assert [first[0].verdict, second[0].verdict] == [SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED]
        assert first[0].ids == second[0].ids == tuple(job.id for job in submission.jobs)
        assert len(await all_jobs(store)) == 2

    async def test_a_known_id_with_other_content_is_a_conflict_and_stores_nothing(self, store: Store, lane: int) -> None:
        [other] = await store.offer([TaskRow("DEFAULT", "other", b"{}", b"{}")])
        job = a_job(lane, b"[[1],{}]")
        await submit(store, job)
        answers = await store.submit(
            [
                Submission((a_job(lane), NewJob(job.id, job.spec, b"[[2],{}]"))),
                Submission((NewJob(job.id, Spec(other), job.args),)),
                Submission((a_job(lane, b"[[3],{}]"),)),
            ]
        )
        assert [answer.verdict for answer in answers] == [SubmitVerdict.CONFLICT, SubmitVerdict.CONFLICT, SubmitVerdict.ACCEPTED]
        assert answers[0].ids == ()
        assert {record.args for record in await all_jobs(store)} == {b"[[1],{}]", b"[[3],{}]"}

    async def test_one_bad_call_fails_alone(self, store: Store, lane: int) -> None:
        good, bad, also_good = a_job(lane), NewJob(b"short", Spec(lane), b"[[],{}]"), a_job(lane)
        answers = await asyncio.gather(*(store.submit([Submission((job,))]) for job in (good, bad, also_good)), return_exceptions=True)
        assert [isinstance(answer, StoreError) for answer in answers] == [False, True, False]
        assert {record.id for record in await all_jobs(store)} == {good.id, also_good.id}

    async def test_any_bytes_survive(self, store: Store, lane: int, session: int) -> None:
        payloads = [
            b"", b"\x00", b"\x00\x01\x02", bytes(range(256)) * 3, '["\'\\" – 漢字 \U0001f600 \x1e\x1f"]'.encode(), b"\xff\xfe", b"x" * (4 << 20),
            b"[[" + b"9" * 400 + b"],{}]",
        ]  # fmt: skip
        ids = await submit(store, *(a_job(lane, args) for args in payloads))
        jobs: list[Claimed] = []
        while some := await claim(store, session, lane):
            jobs += some
        assert [job.args for job in jobs] == payloads
        assert {verdict.answer for verdict in await finish(store, session, *(succeeded(job, job.args) for job in jobs))} == {ACCEPTED}
        records = await store.get(ids)
        assert [(record.args, record.result) for record in records if record] == [(payload, payload) for payload in payloads]

    # --- idempotency keys ---------------------------------------------------------------------------------------------------------

    async def test_a_key_sent_again_with_the_same_body_answers_as_the_first_time(self, store: Store, lane: int) -> None:
        key = IdempotencyKey("alice", "DEFAULT/work", "k1", b"hash")
        first = Submission((a_job(lane), a_job(lane)), key)
        again = Submission((a_job(lane), a_job(lane)), key)
        answers = await asyncio.gather(*(store.submit([each]) for each in (first, again, again)))
        assert [answer.verdict for [answer] in answers] == [SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED, SubmitVerdict.REPEATED]
        assert {answer.ids for [answer] in [*answers, await store.submit([again])]} == {tuple(job.id for job in first.jobs)}
        assert len(await all_jobs(store)) == 2

    async def test_a_key_with_another_body_is_a_conflict(self, store: Store, lane: int) -> None:
        [first, second] = await store.submit(
            [
                Submission((a_job(lane),), IdempotencyKey("alice", "s", "k", b"one")),
                Submission((a_job(lane),), IdempotencyKey("alice", "s", "k", b"two")),
            ]
        )
        assert (first.verdict, second.verdict, second.ids) == (SubmitVerdict.ACCEPTED, SubmitVerdict.CONFLICT, ())
        assert len(await all_jobs(store)) == 1

    async def test_keys_of_other_principals_and_scopes_are_other_keys(self, store: Store, lane: int) -> None:
        keys = [IdempotencyKey(principal, scope, key, b"body") for principal in "ab" for scope in "st" for key in "kl"]
        answers = await store.submit([Submission((a_job(lane),), key) for key in keys])
        assert {answer.verdict for answer in answers} == {SubmitVerdict.ACCEPTED}

    async def test_an_old_key_is_pruned_and_a_young_one_is_not(self, store: Store, lane: int, clock: FakeClock) -> None:
        old, young = (IdempotencyKey("a", "s", key, b"body") for key in ("old", "young"))
        await store.submit([Submission((a_job(lane),), old)])
        clock.advance(3600)
        await store.submit([Submission((a_job(lane),), young)])
        clock.advance(10)
        assert await store.prune(HOUR_US, HOUR_US) == 1
        [of_old, of_young] = await store.submit([Submission((a_job(lane),), old), Submission((a_job(lane),), young)])
        assert (of_old.verdict, of_young.verdict) == (SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED)

    # --- claim --------------------------------------------------------------------------------------------------------------------

    async def test_a_claim_starts_an_attempt(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane, b"[[7],{}]", timeout_us=5))
        clock.advance(1)
        [job] = await claim(store, session, lane)
        assert job == Claimed(job.seq, 1, lane, job_id, 0, 5, b"[[7],{}]")
        record = await read(store, job_id)
        assert (record.state, record.attempt, record.worker, record.started_at) == (S.RUNNING, 1, "worker-1", clock.now())

    async def test_jobs_are_claimed_in_the_order_of_their_submission(self, store: Store, lane: int, session: int) -> None:
        ids = await submit(store, *(a_job(lane) for _ in range(20)))
        assert [job.id for job in await claim(store, session, lane, room=7)] == ids[:7]
        assert [job.id for job in await claim(store, session, lane)] == ids[7:]
        assert await claim(store, session, lane) == []

    async def test_one_step_of_priority_is_worth_a_minute(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [early] = await submit(store, a_job(lane))
        clock.advance(59)
        [urgent] = await submit(store, a_job(lane, priority=1))
        clock.advance(2)
        [too_late] = await submit(store, a_job(lane, priority=1))
        await store.renew([session])
        [unimportant] = await submit(store, a_job(lane, priority=-1))
        assert [job.id for job in await claim(store, session, lane)] == [urgent, early, too_late, unimportant]

    async def test_a_claim_takes_only_its_lanes_in_the_order_of_rank(self, store: Store, session: int, clock: FakeClock) -> None:
        lanes = await store.offer([TaskRow("q", f"t{number}", b"{}", b"{}") for number in range(5)])
        ids = []
        for number in range(20):
            ids += await submit(store, a_job(lanes[number % 5], priority=number % 3))
            clock.advance(70)
        records = {record.id: record for record in await all_jobs(store)}
        wanted = lanes[1:4]
        await store.renew([session])
        expected = [job_id for job_id in ids if records[job_id].lane in wanted]
        expected.sort(key=lambda job_id: records[job_id].created_at - records[job_id].priority * 60_000_000)
        assert [job.id for job in await claim(store, session, *wanted, room=5)] == expected[:5]
        assert [job.id for job in await claim(store, session, *reversed(wanted))] == expected[5:]

    async def test_many_lanes_in_one_want_keep_the_order_of_rank(self, store: Store, session: int, clock: FakeClock) -> None:
        lanes = await store.offer([TaskRow("q", f"t{number}", b"{}", b"{}") for number in range(250)])
        ids = []
        for number in range(250):
            ids += await submit(store, a_job(lanes[(number * 7) % 250]))
            clock.advance(0.001)
        assert [job.id for job in await claim(store, session, *lanes, room=30)] == ids[:30]
        got = []
        while some := await claim(store, session, *lanes, room=150):
            got += [job.id for job in some]
        assert got == ids[30:]

    async def test_a_claim_names_the_lanes_that_have_no_more(self, store: Store, session: int) -> None:
        one, two, three = await store.offer([TaskRow("q", name, b"{}", b"{}") for name in "abc"])
        await submit(store, a_job(one), a_job(one), a_job(two))
        [claims] = await store.claim([Want(session, (one, two, three), 2)])
        assert (len(claims.jobs), claims.empty) == (2, (one, three))
        [claims] = await store.claim([Want(session, (one, two, three), 2)])
        assert (len(claims.jobs), claims.empty) == (1, (one, two, three))

    async def test_each_job_goes_to_one_session(self, store: Store, lane: int) -> None:
        sessions = await store.begin([NewSession(os.urandom(16), f"w{number}") for number in range(3)])
        ids = await submit(store, *(a_job(lane) for _ in range(10)))
        claims = await store.claim([Want(session, (lane,), 4) for session in sessions])
        assert [len(each.jobs) for each in claims] == [4, 4, 2]
        assert sorted(job.id for each in claims for job in each.jobs) == sorted(ids)

    async def test_a_claim_stops_near_its_bytes_and_gives_at_least_one(self, store: Store, lane: int, session: int) -> None:
        await submit(store, *(a_job(lane, b"x" * 1000) for _ in range(10)))
        [claims] = await store.claim([Want(session, (lane,), 10, 3500)])
        assert (len(claims.jobs), claims.empty) == (4, ())
        [claims] = await store.claim([Want(session, (lane,), 10, 10)])
        assert len(claims.jobs) == 1

    async def test_nothing_is_given_to_an_unknown_session_or_one_whose_lease_has_ended(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        await submit(store, a_job(lane))
        assert await claim(store, session + 100, lane) == []
        clock.advance(LEASE_S + 1)
        assert await claim(store, session, lane) == []
        assert await store.renew([session]) == [True]
        assert len(await claim(store, session, lane)) == 1

    async def test_a_job_may_be_claimed_in_the_turn_that_submits_it_and_reports_come_first(
        self, store: Store, lane: int, session: int
    ) -> None:
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        claimed = store.claim([Want(session, (lane,), 10)])  # called first, runs last
        submitted = store.submit([Submission((a_job(lane),))])
        finished = store.finish([Reports(session, [failed(job, retry=True)])])
        [[verdict]], [answer], [claims] = await asyncio.gather(finished, submitted, claimed)
        assert verdict == Verdict(ACCEPTED, S.QUEUED)
        assert [each.id for each in claims.jobs] == [job.id, answer.ids[0]]
        assert [each.failures for each in claims.jobs] == [1, 0]

    # --- finish: the table and the fence ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("cancel_requested", [False, True])
    @pytest.mark.parametrize("event", [*sorted(LATE_REPORTS), JobEvent.RELEASED, JobEvent.SNOOZED, JobEvent.CRASHED])
    @pytest.mark.parametrize(
        ("state", "back"),
        [(state, Back.NEVER) for state in JobState if state is not S.QUEUED] + [(S.QUEUED, back) for back in (Back.RELEASED, Back.FAILED)],
    )
    async def test_a_report_agrees_with_the_table(
        self, store: Store, lane: int, session: int, state: JobState, back: Back, event: JobEvent, cancel_requested: bool
    ) -> None:
        job_id, job = await self.bring_to(store, lane, session, state, back)
        if cancel_requested:
            await self.force(store, job.seq, cancel_requested=True)
        report = {
            JobEvent.SUCCEEDED: succeeded(job, b'"late"'),
            JobEvent.RETRIED_NOW: failed(job, retry=True),
            JobEvent.RETRIED_LATER: failed(job, retry=True, delay_us=1),
            JobEvent.FAILED: failed(job),
            JobEvent.RELEASED: released(job),
            JobEvent.SNOOZED: snoozed(job, delay_us=HOUR_US),
            JobEvent.CRASHED: crashed(job),
        }[event]
        before = await read(store, job_id)
        [verdict] = await finish(store, session, report)
        after = advance(state, event, cancel_requested=cancel_requested, back=back)
        assert (verdict.answer is ACCEPTED) == (after is not None)
        assert verdict.state is (await read(store, job_id)).state is (state if after is None else after)
        if after is None:
            assert await read(store, job_id) == before

    @pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING, S.SUCCEEDED, S.FAILED, S.SCHEDULED])
    @pytest.mark.parametrize("report", [succeeded, failed, released])
    async def test_another_attempt_or_session_changes_nothing(
        self, store: Store, lane: int, session: int, state: JobState, report: Any
    ) -> None:
        [stranger] = await store.begin([NewSession(os.urandom(16), "stranger")])
        job_id, job = await self.bring_to(store, lane, session, state, Back.RELEASED)
        before = await read(store, job_id)
        for reporter, attempt in ((stranger, 1), (session, 2), (session, 0), (session, -1), (session + 50, 1)):
            assert await finish(store, reporter, report(Running(job.seq, attempt, lane, job.id))) == [Verdict(STALE, state)]
        assert await read(store, job_id) == before

    @pytest.mark.parametrize("report", [succeeded, failed, released])
    async def test_a_report_of_an_unknown_job_is_stale(self, store: Store, session: int, report: Any) -> None:
        for seq in (0, -1, 999, 10**16, 2**63 - 1):
            assert await finish(store, session, report(Running(seq, 1, 1, b""))) == [Verdict(STALE, None)]

    @pytest.mark.parametrize("retry", [False, True])
    async def test_dead_children_end_a_job_at_max_crashes_and_spend_no_retries(
        self, store: Store, lane: int, session: int, retry: bool
    ) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=0, max_crashes=2))
        [job] = await claim(store, session, lane)
        assert await finish(store, session, crashed(job, retry=retry)) == [Verdict(ACCEPTED, S.QUEUED)]
        assert await finish(store, session, crashed(job, retry=retry)) == [Verdict(DUPLICATE, S.QUEUED)]
        record = await read(store, job_id)
        assert (record.crashes, record.failures, record.error) == (1, 0, None)
        [job] = await claim(store, session, lane)
        assert (job.attempt, job.failures) == (2, 0)
        assert await finish(store, session, crashed(job, retry=retry)) == [Verdict(ACCEPTED, S.FAILED)]
        assert await finish(store, session, crashed(job, retry=retry)) == [Verdict(DUPLICATE, S.FAILED)]
        record = await read(store, job_id)
        assert (record.state, record.crashes, record.failures, record.error) == (S.FAILED, 2, 0, ERROR)

    async def test_a_dead_child_and_a_lost_worker_are_one_budget(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=UNLIMITED, max_crashes=2))
        [job] = await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        await store.rescue()
        assert await finish(store, session, crashed(job)) == [Verdict(STALE, S.QUEUED)], "that attempt was counted by the rescue"
        await store.renew([session])
        [job] = await claim(store, session, lane)
        children = (a_job(lane, parent=Parent(job.seq, "on_failure:x", S.FAILED)),)
        [[verdict]] = await store.finish([Reports(session, [crashed(job)], {job.seq: children})])
        assert verdict == Verdict(ACCEPTED, S.FAILED)
        child, record = await all_jobs(store)
        assert (record.id, record.crashes, child.parent) == (job_id, 2, job_id)

    async def test_a_success_keeps_its_result_and_times(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        clock.advance(5)
        assert await finish(store, session, succeeded(job, b'{"a":0}', ran_us=1_500_000)) == [Verdict(ACCEPTED, S.SUCCEEDED)]
        record = await read(store, job_id)
        assert (record.state, record.result, record.error) == (S.SUCCEEDED, b'{"a":0}', None)
        assert (record.started_at, record.finished_at) == (clock.now() - 1_500_000, clock.now())

    async def test_a_snoozed_job_runs_again_later_and_has_not_failed(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=0))
        for _ in range(3):
            [job] = await claim(store, session, lane)
            assert await finish(store, session, snoozed(job, delay_us=5_000_000)) == [Verdict(ACCEPTED, S.SCHEDULED)]
            assert await finish(store, session, snoozed(job, delay_us=5_000_000)) == [Verdict(DUPLICATE, S.SCHEDULED)]
            clock.advance(4.9)
            assert (await store.due()).lanes == ()
            clock.advance(0.1)
            assert (await store.due()).lanes == (lane,)
            await store.renew([session])
        record = await read(store, job_id)
        assert (record.state, record.attempt, record.failures, record.error) == (S.QUEUED, 3, 0, None)

    async def test_one_call_judges_each_report_by_itself(self, store: Store, lane: int, session: int) -> None:
        await submit(store, *(a_job(lane) for _ in range(6)))
        one, two, three, four, five, six = await claim(store, session, lane)
        verdicts = await finish(
            store, session,
            succeeded(one), succeeded(one), failed(two), succeeded(two), released(three), failed(four, retry=True), succeeded(four),
            Report(99, 1, Outcome.SUCCEEDED), succeeded(five), Report(six.seq, 2, Outcome.SUCCEEDED), failed(two),
        )  # fmt: skip
        assert verdicts == [
            Verdict(ACCEPTED, S.SUCCEEDED), Verdict(DUPLICATE, S.SUCCEEDED), Verdict(ACCEPTED, S.FAILED), Verdict(STALE, S.FAILED),
            Verdict(ACCEPTED, S.QUEUED), Verdict(ACCEPTED, S.QUEUED), Verdict(STALE, S.QUEUED), Verdict(STALE, None),
            Verdict(ACCEPTED, S.SUCCEEDED), Verdict(STALE, S.RUNNING), Verdict(DUPLICATE, S.FAILED),
        ]  # fmt: skip

    async def test_several_sessions_and_lanes_report_in_one_call(self, store: Store) -> None:
        lanes = await store.offer([TaskRow("q", name, b"{}", b"{}") for name in "abc"])
        sessions = await store.begin([NewSession(os.urandom(16), "w") for _ in range(3)])
        await submit(store, *(a_job(lane) for lane in lanes for _ in range(4)))
        claims = await store.claim([Want(session, tuple(lanes), 4) for session in sessions])
        verdicts = await store.finish(
            [Reports(session, [succeeded(job) for job in each.jobs]) for session, each in zip(sessions, claims, strict=True)]
        )
        assert verdicts == [[Verdict(ACCEPTED, S.SUCCEEDED)] * 4] * 3

    async def test_a_repeated_report_is_a_duplicate(self, store: Store, lane: int, session: int) -> None:
        for state, report in (
            (S.SUCCEEDED, succeeded), (S.FAILED, failed), (S.QUEUED, released),
        ):  # fmt: skip
            job_id, job = await self.bring_to(store, lane, session, state, Back.RELEASED)
            before = await read(store, job_id)
            assert await finish(store, session, report(job)) == [Verdict(DUPLICATE, state)]
            assert await read(store, job_id) == before
            if state is S.QUEUED:
                await claim(store, session, lane)

    async def test_a_repeated_failure_is_a_duplicate_even_after_the_next_claim(self, store: Store, lane: int, session: int) -> None:
        await submit(store, a_job(lane, max_retries=5))
        [first] = await claim(store, session, lane)
        await finish(store, session, failed(first, retry=True))
        [second] = await claim(store, session, lane)
        assert await finish(store, session, failed(first, retry=True)) == [Verdict(DUPLICATE, S.RUNNING)]
        assert await finish(store, session, succeeded(first)) == [Verdict(STALE, S.RUNNING)]
        assert await finish(store, session, succeeded(second)) == [Verdict(ACCEPTED, S.SUCCEEDED)]

    async def test_a_released_job_spends_no_budget_and_keeps_its_place(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        ids = await submit(store, a_job(lane, max_retries=0, max_crashes=1))
        clock.advance(1)
        ids += await submit(store, a_job(lane))
        for attempt in range(1, 5):
            [job] = await claim(store, session, lane, room=1)
            assert (job.id, job.attempt, job.failures) == (ids[0], attempt, 0)
            assert await finish(store, session, released(job)) == [Verdict(ACCEPTED, S.QUEUED)]
        record = await read(store, ids[0])
        assert (record.failures, record.crashes, record.started_at) == (0, 0, None)

    async def test_a_late_report_of_a_released_job_counts_until_the_next_claim(self, store: Store, lane: int, session: int) -> None:
        _, job = await self.bring_to(store, lane, session, S.QUEUED, Back.RELEASED)
        assert await finish(store, session, succeeded(job)) == [Verdict(ACCEPTED, S.SUCCEEDED)]
        assert await claim(store, session, lane) == []
        _, job = await self.bring_to(store, lane, session, S.QUEUED, Back.RELEASED)
        [again] = await claim(store, session, lane)
        assert await finish(store, session, succeeded(job)) == [Verdict(STALE, S.RUNNING)]
        assert await finish(store, session, succeeded(again)) == [Verdict(ACCEPTED, S.SUCCEEDED)]

    # --- budgets and delays -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("max_retries", [0, 1, 3])
    async def test_a_failure_is_retried_as_often_as_the_budget_says(
        self, store: Store, lane: int, session: int, clock: FakeClock, max_retries: int
    ) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=max_retries))
        for attempt in range(1, max_retries + 1):
            [job] = await claim(store, session, lane)
            assert (job.attempt, job.failures) == (attempt, attempt - 1)
            assert await finish(store, session, failed(job, retry=True)) == [Verdict(ACCEPTED, S.QUEUED)]
            assert (await read(store, job_id)).error is None
        [job] = await claim(store, session, lane)
        clock.advance(1)
        assert await finish(store, session, failed(job, retry=True)) == [Verdict(ACCEPTED, S.FAILED)]
        record = await read(store, job_id)
        assert (record.failures, record.attempt, record.error, record.finished_at) == (max_retries + 1, max_retries + 1, ERROR, clock.now())

    async def test_a_budget_without_end_has_none_and_giving_up_ends_it(self, store: Store, lane: int, session: int) -> None:
        await submit(store, a_job(lane, max_retries=UNLIMITED))
        for _ in range(20):
            [job] = await claim(store, session, lane)
            assert await finish(store, session, failed(job, retry=True)) == [Verdict(ACCEPTED, S.QUEUED)]
        [job] = await claim(store, session, lane)
        assert await finish(store, session, failed(job)) == [Verdict(ACCEPTED, S.FAILED)]

    async def test_a_delayed_retry_waits_until_it_is_due(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        assert await finish(store, session, failed(job, retry=True, delay_us=60_000_000)) == [Verdict(ACCEPTED, S.SCHEDULED)]
        record = await read(store, job_id)
        assert (record.run_at, record.finished_at) == (clock.now() + 60_000_000, None)
        due = await store.due()
        assert (due.lanes, due.next_at) == ((), record.run_at)
        clock.advance(30)
        [newer] = await submit(store, a_job(lane))
        clock.advance(30)
        await store.renew([session])
        due = await store.due()
        assert (due.lanes, due.next_at) == ((lane,), None)
        first, again = await claim(store, session, lane)
        assert first.id == newer  # it ranks by the time that it became due
        assert (again.id, again.attempt, again.failures) == (job_id, 2, 1)

    async def test_a_job_for_later_is_scheduled_and_ranks_by_its_due_time(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        now = clock.now()
        later, soon, past = await submit(
            store,
            a_job(lane, run_at=now + 20_000_000),
            a_job(lane, run_at=now + 10_000_000),
            a_job(lane, run_at=now - 1),
        )
        assert [(await read(store, job_id)).state for job_id in (later, soon, past)] == [S.SCHEDULED, S.SCHEDULED, S.QUEUED]
        assert [job.id for job in await claim(store, session, lane)] == [past]
        clock.advance(15)
        [newest] = await submit(store, a_job(lane))
        clock.advance(15)
        await store.renew([session])
        assert (await store.due(limit=1)).next_at == now + 20_000_000
        assert (await store.due(limit=1)).next_at is None
        assert [job.id for job in await claim(store, session, lane)] == [soon, newest, later]

    # --- sessions, leases, rescue ---------------------------------------------------------------------------------------------------

    async def test_a_session_keeps_its_number(self, store: Store) -> None:
        one, two = os.urandom(16), os.urandom(16)
        [first, second] = await store.begin([NewSession(one, "a"), NewSession(two, "b")])
        assert first != second
        assert await store.begin([NewSession(two, "b"), NewSession(one, "a")]) == [second, first]
        assert min(first, second) > 0

    async def test_only_known_sessions_are_renewed(self, store: Store, session: int) -> None:
        assert await store.renew([session, session + 7]) == [True, False]

    async def test_running_lists_what_each_session_holds(self, store: Store, lane: int, session: int) -> None:
        [other] = await store.begin([NewSession(os.urandom(16), "other")])
        await submit(store, *(a_job(lane) for _ in range(3)))
        jobs = await claim(store, session, lane, room=2)
        assert await store.running([other, session]) == [[], [Running(job.seq, job.attempt, lane, job.id) for job in jobs]]
        await finish(store, session, succeeded(jobs[0]))
        assert [[job.seq for job in held] for held in await store.running([session])] == [[jobs[1].seq]]

    async def test_a_live_lease_is_not_rescued_and_an_ended_one_is(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        clock.advance(LEASE_S - 1)
        assert await store.rescue() == []
        await store.renew([session])
        clock.advance(LEASE_S - 1)
        assert await store.rescue() == []
        clock.advance(2)
        [rescued] = await store.rescue()
        assert (rescued.job, rescued.session, rescued.state) == (Running(job.seq, 1, lane, job_id), session, S.QUEUED)
        assert await store.rescue() == []
        record = await read(store, job_id)
        assert (record.state, record.crashes, record.failures) == (S.QUEUED, 1, 0)

    async def test_a_step_of_the_system_clock_ends_no_lease(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, a_job(lane))
        await claim(store, session, lane)
        clock.set_system_clock(86_400)
        assert await store.rescue() == []
        clock.set_system_clock(-2 * 86_400)
        clock.advance(LEASE_S + 1)
        assert len(await store.rescue()) == 1

    @pytest.mark.parametrize(
        ("report", "state"), [(succeeded, S.SUCCEEDED), (failed, S.FAILED), (lambda job: failed(job, retry=True), S.QUEUED)]
    )
    async def test_a_late_report_counts_after_a_rescue_until_the_next_claim(
        self, store: Store, lane: int, session: int, clock: FakeClock, report: Any, state: JobState
    ) -> None:
        await submit(store, a_job(lane, max_crashes=9), a_job(lane, max_crashes=9))
        one, two = await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        await store.rescue()
        assert await finish(store, session, report(one)) == [Verdict(ACCEPTED, state)]
        assert await finish(store, session, released(two)) == [Verdict(STALE, S.QUEUED)]
        [other] = await store.begin([NewSession(os.urandom(16), "other")])
        await claim(store, other, lane)
        assert await finish(store, session, report(two)) == [Verdict(STALE, S.RUNNING)]

    async def test_lost_workers_end_a_job_at_max_crashes(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=UNLIMITED, max_crashes=2))
        for state in (S.QUEUED, S.FAILED):
            await store.renew([session])
            [job] = await claim(store, session, lane)
            clock.advance(LEASE_S + 1)
            assert [each.state for each in await store.rescue()] == [state]
        record = await read(store, job_id)
        assert (record.state, record.crashes, record.finished_at) == (S.FAILED, 2, clock.now())
        assert record.error is not None
        assert msgspec.json.decode(record.error, type=ErrorInfo).kind == "crashed"
        assert await finish(store, session, succeeded(job)) == [Verdict(STALE, S.FAILED)]
        assert await finish(store, session, failed(job)) == [Verdict(STALE, S.FAILED)]

    async def test_a_rescue_says_which_jobs_fail_at_the_next_crash(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, *(a_job(lane, max_crashes=n) for n in (1, 2, 3)))
        await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        assert [(each.state, each.is_last_chance) for each in await store.rescue()] == [
            (S.FAILED, False),
            (S.QUEUED, True),
            (S.QUEUED, False),
        ]

    async def lose(
        self, store: Store, lane: int, session: int, clock: FakeClock, *, waits_s: float = 0, limit: int = 1000
    ) -> list[JobState]:
        """The session claims one job after the other, each so long after the one before, and its lease ends. The jobs' states, by seq."""
        await store.renew([session])
        while await claim(store, session, lane, room=1):
            clock.advance(waits_s)
            await store.renew([session])
        clock.advance(LEASE_S + 1)
        rescued = []
        while more := await store.rescue(limit=limit):
            rescued += more
        return [each.state for each in sorted(rescued, key=lambda each: each.job.seq)]

    async def test_of_those_on_their_last_chance_the_one_that_began_last_is_blamed(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        ids = await submit(store, *(a_job(lane, max_crashes=2) for _ in range(3)))
        assert await self.lose(store, lane, session, clock) == [S.QUEUED] * 3
        assert await self.lose(store, lane, session, clock, waits_s=21) == [S.QUEUED, S.QUEUED, S.FAILED]
        assert [(await read(store, id)).crashes for id in ids] == [2, 2, 2]
        assert await self.lose(store, lane, session, clock, waits_s=21) == [S.QUEUED, S.FAILED]
        [job] = await claim(store, session, lane) if await store.renew([session]) else []
        assert await finish(store, session, succeeded(job)) == [Verdict(ACCEPTED, S.SUCCEEDED)], "the innocent one ends well"

    async def test_who_is_blamed_does_not_depend_on_the_limit_of_a_rescue(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        await submit(store, *(a_job(lane, max_crashes=2, priority=n) for n in range(4)))  # the last by seq begins first
        assert await self.lose(store, lane, session, clock) == [S.QUEUED] * 4
        assert await self.lose(store, lane, session, clock, waits_s=21, limit=1) == [S.FAILED, S.QUEUED, S.QUEUED, S.QUEUED]

    async def test_those_that_began_together_are_all_blamed(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, *(a_job(lane, max_crashes=2) for _ in range(3)))
        assert await self.lose(store, lane, session, clock) == [S.QUEUED] * 3
        assert await self.lose(store, lane, session, clock) == [S.FAILED] * 3

    async def test_each_worker_has_its_own_last_one(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [other] = await store.begin([NewSession(os.urandom(16), "other")])
        await submit(store, *(a_job(lane, max_crashes=2) for _ in range(4)))
        await self.lose(store, lane, session, clock)
        await store.renew([session, other])
        for each in (session, session, other, other):
            await claim(store, each, lane, room=1)
            clock.advance(1)
        clock.advance(LEASE_S)
        states = {each.job.seq: each.state for each in await store.rescue()}
        assert [states[seq] for seq in sorted(states)] == [S.QUEUED, S.FAILED, S.QUEUED, S.FAILED]

    async def test_nobody_is_spared_for_ever(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        """A job that kills late looks innocent beside those that began after it."""
        [killer] = await submit(store, a_job(lane, max_crashes=2, priority=1))
        await self.lose(store, lane, session, clock)
        for crashes in (2, 3):
            await submit(store, a_job(lane, max_crashes=2))
            [_, job] = await self._both(store, lane, session, clock)
            assert (await read(store, killer)).crashes == crashes
            assert (await read(store, killer)).state is S.QUEUED
            assert job is S.FAILED
        await submit(store, a_job(lane, max_crashes=2))
        assert (await self._both(store, lane, session, clock))[0] is S.FAILED
        assert (await read(store, killer)).crashes == 4

    async def _both(self, store: Store, lane: int, session: int, clock: FakeClock) -> list[JobState]:
        """A job that is new has crashed once without the first one, and is lost with it."""
        await store.renew([session])
        [first] = await claim(store, session, lane, room=1)
        [other] = await store.begin([NewSession(b"the other worker", "other")])
        await claim(store, other, lane)
        clock.advance(LEASE_S / 2)
        await store.renew([session])
        clock.advance(LEASE_S * 2 / 3)
        await store.rescue()
        assert [job.seq for job in (await store.running([session]))[0]] == [first.seq]
        return await self.lose(store, lane, session, clock)

    async def test_a_job_that_may_not_crash_once_is_never_spared_and_excuses_nobody(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        await submit(store, a_job(lane, max_crashes=2))
        await self.lose(store, lane, session, clock)
        await submit(store, a_job(lane, max_crashes=1), a_job(lane, max_crashes=1))
        assert await self.lose(store, lane, session, clock, waits_s=21) == [S.FAILED] * 3

    async def test_a_rescue_stops_at_its_limit_and_goes_on_with_the_next(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        await submit(store, *(a_job(lane) for _ in range(5)))
        await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        assert [len(await store.rescue(limit=2)) for _ in range(4)] == [2, 2, 1, 0]

    async def test_a_rescue_of_a_job_that_is_to_be_cancelled_cancels_it(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        await self.force(store, job.seq, cancel_requested=True)
        clock.advance(LEASE_S + 1)
        assert [each.state for each in await store.rescue()] == [S.CANCELLED]
        assert (await read(store, job_id)).finished_at == clock.now()

    async def test_a_finish_called_together_with_a_rescue_wins(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        rescue = store.rescue()
        [[verdict]], rescued = await asyncio.gather(store.finish([Reports(session, [succeeded(job)])]), rescue)
        assert (verdict.answer, rescued) == (ACCEPTED, [])

    # --- successors -----------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("report", [succeeded, failed])
    async def test_a_successor_is_born_once_with_the_end_that_it_waits_for(
        self, store: Store, lane: int, session: int, report: Any
    ) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        after = a_job(lane, b'[["after"],{}]', parent=Parent(job.seq, "run_after:DEFAULT/work", S.SUCCEEDED))
        on_failure = a_job(lane, b'[["failed"],{}]', parent=Parent(job.seq, "on_failure:DEFAULT/work", S.FAILED))
        reports = Reports(session, [report(job)], {job.seq: (after, on_failure)})
        [[first]], [[second]] = await asyncio.gather(store.finish([reports]), store.finish([reports]))
        [[third]] = await store.finish([reports])
        assert [first.answer, second.answer, third.answer] == [ACCEPTED, DUPLICATE, DUPLICATE]
        [child] = [record for record in await all_jobs(store) if record.id != job_id]
        assert child.args == (after.args if report is succeeded else on_failure.args)
        assert (child.state, child.parent) == (S.QUEUED, job_id)

    async def test_a_refused_or_retried_report_brings_nothing_to_life(self, store: Store, lane: int, session: int) -> None:
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        children = {job.seq: tuple(a_job(lane, parent=Parent(job.seq, "e", when)) for when in (S.SUCCEEDED, S.FAILED))}
        await store.finish([Reports(session + 9, [succeeded(job)], children)])
        await store.finish([Reports(session, [failed(job, retry=True)], children)])
        assert len(await all_jobs(store)) == 1

    async def test_another_child_of_the_same_edge_is_not_born_again(self, store: Store, lane: int, session: int) -> None:
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        children = tuple(a_job(lane, parent=Parent(job.seq, "edge", S.SUCCEEDED)) for _ in range(2))
        await store.finish([Reports(session, [succeeded(job)], {job.seq: children})])
        [answer] = await store.submit([Submission((a_job(lane, parent=Parent(job.seq, "edge", S.SUCCEEDED)),))])
        assert answer == Submitted(SubmitVerdict.REPEATED, (children[0].id,))
        assert len(await all_jobs(store)) == 2

    async def test_a_crashed_out_job_brings_its_on_failure_job_to_life(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        [job_id] = await submit(store, a_job(lane, max_crashes=1))
        await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        seen: list[JobRecord] = []

        def on_failure(record: JobRecord) -> tuple[NewJob, ...]:
            seen.append(record)
            return (a_job(lane, parent=Parent(record.seq, "on_failure:x", S.FAILED)),)

        store.successors = on_failure
        await store.rescue()
        assert [(record.id, record.state, record.crashes, record.error is not None) for record in seen] == [(job_id, S.FAILED, 1, True)]
        [child, _] = await all_jobs(store)
        assert child.parent == job_id

    # --- catalogue --------------------------------------------------------------------------------------------------------------------

    async def test_a_task_keeps_its_lane_for_ever(self, store: Store, clock: FakeClock) -> None:
        [a, b] = await store.offer([TaskRow("q", "a", b"1", b"{}"), TaskRow("q", "b", b"2", b"{}")])
        clock.advance(5)
        [again, c, other] = await store.offer(
            [TaskRow("q", "a", b"9", b"{}"), TaskRow("q", "c", b"3", b"{}"), TaskRow("r", "a", b"4", b"{}")]
        )
        assert again == a
        assert len({a, b, c, other}) == 4
        assert min(a, b, c, other) > 0
        tasks = await store.tasks()
        assert [task.lane for task in tasks] == sorted([a, b, c, other])
        assert {task.lane: (task.signature, task.offered_at) for task in tasks}[a] == (b"9", clock.now())
        assert {task.lane: (task.signature, task.offered_at) for task in tasks}[b] == (b"2", clock.now() - 5_000_000)

    # --- what jobs show of themselves -------------------------------------------------------------------------------------------------

    async def test_the_newest_progress_of_a_running_job_is_kept(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        [id] = await submit(store, a_job(lane))
        assert await look(store, id) == Look(S.QUEUED, 0, None, [], False, 0, 0)
        [job] = await claim(store, session, lane)
        notes = Notes(session, [Mark(job.seq, 1, 1, 10, "one"), Mark(job.seq, 1, 2.5, None, "é")])
        assert await store.note([Notes(session), notes]) == [(), ()]
        assert (await look(store, id)).progress == Progress(1, 2.5, None, "é", clock.now())
        clock.advance(1)
        await store.note([Notes(session, [Mark(job.seq, 1, 2**60, 2**61)])])
        assert (await look(store, id)).progress == Progress(1, 2**60, 2**61, "", clock.now())
        await finish(store, session, succeeded(job))
        assert (await look(store, id)).progress == Progress(1, 2**60, 2**61, "", clock.now()), "what it came to stays"

    async def test_progress_of_an_earlier_attempt_is_not_shown(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        await store.note([Notes(session, [Mark(job.seq, 1, 1)])])
        await finish(store, session, released(job))
        await claim(store, session, lane)
        assert (await look(store, id)).progress is None

    async def test_lines_are_read_back_in_their_order_and_by_pages(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        texts = ["plain", "two\nlines", 'quo"te', "é\u2028", "nul\x00nul", ""]
        await store.note([Notes(session, (), [a_line(job, n, text) for n, text in enumerate(texts[:4], 1)])])
        await store.note([Notes(session, (), [a_line(job, n, text) for n, text in enumerate(texts[4:], 5)])])
        seen = await look(store, id)
        assert seen.lines == [LogLine(1, n, 5, 20, "app", text) for n, text in enumerate(texts, 1)]
        assert (seen.count, seen.dropped, seen.is_more) == (6, 0, False)
        first = await look(store, id, limit=4)
        assert ([line.number for line in first.lines], first.is_more) == ([1, 2, 3, 4], True)
        rest = await look(store, id, (1, 4), limit=4)
        assert ([line.number for line in rest.lines], rest.is_more, rest.count) == ([5, 6], False, 6)
        assert (await look(store, id, (1, 6))).lines == (await look(store, id, (2, 0))).lines == []
        assert (await look(store, id, limit=0)).is_more

    async def test_lines_that_are_sent_again_are_there_once(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        await store.note([Notes(session, (), [a_line(job, 1, "a"), a_line(job, 2, "b")])])
        await store.note([Notes(session, (), [a_line(job, 1, "other"), a_line(job, 2, "b"), a_line(job, 3, "c")])])
        seen = await look(store, id)
        assert ([line.text for line in seen.lines], seen.count) == (["a", "b", "c"], 3)

    async def test_notes_of_another_attempt_or_session_change_nothing(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        [other] = await store.begin([NewSession(os.urandom(16), "worker-2")])
        again = msgspec.structs.replace(job, attempt=2)
        foreign = [Notes(other, [Mark(job.seq, 1, 1)], [a_line(job, 1)]), Notes(session, [Mark(job.seq, 2, 1)], [a_line(again, 1)])]
        assert await store.note([*foreign, Notes(session, [Mark(999, 1, 1)], [Line(998, 1, 1, 0, 20, "", "")])]) == [
            (job.seq,),
            (job.seq,),
            (999, 998),
        ]
        assert await look(store, id) == Look(S.RUNNING, 1, None, [], False, 0, 0)

    async def test_a_stale_attempt_leaves_its_neighbours_alone(self, store: Store, lane: int, session: int) -> None:
        one, two = await submit(store, a_job(lane), a_job(lane))
        first, second = await claim(store, session, lane)
        await finish(store, session, released(first))
        [first_again] = await claim(store, session, lane)
        lines = [a_line(first, 1, "old"), a_line(second, 1, "b"), a_line(first_again, 1, "new")]
        assert await store.note([Notes(session, [Mark(first.seq, 1, 1), Mark(second.seq, 1, 2)], lines)]) == [(first.seq,)]
        assert [line.text for line in (await look(store, one)).lines] == ["new"]
        assert [line.text for line in (await look(store, two)).lines] == ["b"]
        assert (await look(store, one)).progress is None
        assert (await look(store, two)).progress is not None

    async def test_after_the_end_lines_of_that_attempt_are_kept_and_progress_is_not(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        await finish(store, session, succeeded(job))
        assert await store.note([Notes(session, [Mark(job.seq, 1, 1)], [a_line(job, 1)])]) == [(job.seq,)]
        seen = await look(store, id)
        assert (seen.state, seen.progress, len(seen.lines)) == (S.SUCCEEDED, None, 1)

    async def test_what_is_noted_before_a_report_is_there_with_it(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        answers = [
            store.note([Notes(session, [Mark(job.seq, 1, 10, 10)], [a_line(job, 1)])]),
            store.finish([Reports(session, [succeeded(job)])]),
        ]
        await asyncio.gather(*answers)
        seen = await look(store, id)
        assert seen.progress is not None
        assert (seen.state, seen.progress.done, len(seen.lines)) == (S.SUCCEEDED, 10, 1)

    async def test_a_log_that_is_full_says_so_and_counts_what_is_dropped(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        for at in range(0, MAX_JOB_LINES + 1000, 1000):
            lines = [a_line(job, at + n, "") for n in range(1, 1001)]
            await store.note([Notes(session, (), lines)])
        await store.note([Notes(session, (), lines)])  # the last ones again: they are counted once
        seen = await look(store, id, (1, MAX_JOB_LINES))
        assert (seen.count, seen.dropped) == (MAX_JOB_LINES, 1000)
        assert [line.number for line in seen.lines] == [MAX_JOB_LINES + 1]
        assert "full" in seen.lines[0].text

    async def test_nothing_is_seen_of_a_job_that_is_not_there(self, store: Store) -> None:
        assert await store.look([Glance(an_id())]) == [None]
        assert await store.attempts([an_id()]) == [[]]
        assert await store.ahead([an_id()]) == [None]
        assert await store.look([]) == await store.attempts([]) == await store.ahead([]) == await store.note([]) == []

    async def test_a_deleted_job_takes_along_what_it_showed(self, store: Store, lane: int, session: int) -> None:
        id, kept = await submit(store, a_job(lane), a_job(lane))
        job, other = await claim(store, session, lane)
        lines = [a_line(job, n) for n in range(1, 26)]
        await store.note([Notes(session, [Mark(job.seq, 1, 1)], [*lines, a_line(other, 1)])])
        await finish(store, session, failed(job))
        await store.delete([id])
        assert await store.look([Glance(id)]) == [None]
        assert await store.attempts([id]) == [[]]
        touched = [await store.prune(HOUR_US, HOUR_US, limit=10) for _ in range(4)]
        assert touched[-1] == 0
        assert await self.lines_of(store, job.seq) == 0
        assert len((await look(store, kept)).lines) == 1

    async def lines_of(self, store: Store, seq: int) -> int:
        """How many log lines the store holds for the job of this number, whether it is there or not."""
        raise NotImplementedError

    async def test_the_error_of_each_failed_attempt_is_kept(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        id, other = await submit(store, a_job(lane, max_retries=5), a_job(lane))
        for number in (1, 2):
            [job] = await claim(store, session, lane, room=1)
            clock.advance(1)
            error = msgspec.json.encode(ErrorInfo("ValueError", str(number)))
            await finish(store, session, Report(job.seq, job.attempt, Outcome.FAILED, 0, error, True, 0))
        [job] = await claim(store, session, lane, room=1)
        await finish(store, session, succeeded(job))
        errors = [msgspec.json.encode(ErrorInfo("ValueError", str(number))) for number in (1, 2)]
        now = clock.now()
        expected = [FailedAttempt(1, now - 1_000_000, "worker-1", errors[0]), FailedAttempt(2, now, "worker-1", errors[1])]
        assert await store.attempts([other, id, an_id(), id]) == [[], expected, [], expected]

    async def test_the_trace_of_a_submit_goes_with_its_jobs_and_no_others(self, store: Store, lane: int, session: int) -> None:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        traced = [a_job(lane, traceparent=trace) for _ in range(2)]
        plain = [a_job(lane) for _ in range(2)]
        ids = await submit(store, plain[0], traced[0], plain[1], traced[1])
        assert [(await read(store, id)).traceparent for id in ids] == [None, trace, None, trace]
        jobs = {job.id: job for job in await claim(store, session, lane)}
        assert [jobs[id].traceparent for id in ids] == ["", trace, "", trace]
        assert [jobs[id].args for id in ids] == [b"[[],{}]"] * 4

    async def test_ahead_counts_what_is_claimed_before(self, store: Store, clock: FakeClock) -> None:
        one, two = await store.offer([TaskRow("q", name, b"{}", b"{}") for name in "ab"])
        ids = await submit(store, *(a_job(one) for _ in range(3)), a_job(two))
        clock.advance(1)
        [urgent] = await submit(store, a_job(one, priority=5))
        [later] = await submit(store, a_job(one, run_at=clock.now() + HOUR_US))
        assert await store.ahead([*ids, urgent, later]) == [1, 2, 3, 0, 0, None]
        assert await store.ahead([ids[2]], limit=2) == [2]

    # --- reading and pulling ----------------------------------------------------------------------------------------------------------

    async def test_pages_go_from_the_newest_to_the_oldest_without_gaps(self, store: Store, lane: int) -> None:
        ids = await submit(store, *(a_job(lane) for _ in range(10)))
        got: list[bytes] = []
        before = None
        while page := await store.page(JobQuery(limit=4, before_seq=before)):
            got += [record.id for record in page]
            before = page[-1].seq
        assert got == ids[::-1]

    async def test_pages_are_filtered_by_lane_and_state(self, store: Store, session: int) -> None:
        one, two = await store.offer([TaskRow("q", name, b"{}", b"{}") for name in "ab"])
        await submit(store, *(a_job(lane) for _ in range(6) for lane in (one, two)))
        first, second, third = await claim(store, session, one, room=3)
        await finish(store, session, succeeded(first), failed(second))

        async def found(**filters: Any) -> list[tuple[int, JobState]]:
            return [(record.lane, record.state) for record in await store.page(JobQuery(**filters))]

        assert await found(states=(S.SUCCEEDED,)) == [(one, S.SUCCEEDED)]
        assert sorted(await found(states=(S.RUNNING, S.FAILED))) == [(one, S.RUNNING), (one, S.FAILED)]
        assert await found(lanes=(two,)) == [(two, S.QUEUED)] * 6
        assert await found(lanes=(one,), states=(S.QUEUED,), limit=2) == [(one, S.QUEUED)] * 2
        assert await found(lanes=(one, two), states=(S.QUEUED, S.SCHEDULED), before_seq=third.seq + 1) == []
        assert await found(lanes=()) == await found(states=()) == []
        assert [record.seq for record in await store.page(JobQuery())] == list(range(12, 0, -1))

    async def test_the_first_pull_of_a_success_is_remembered(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        done, running, waiting = await submit(store, *(a_job(lane) for _ in range(3)))
        jobs = await claim(store, session, lane, room=2)
        await finish(store, session, succeeded(jobs[0], b'"yes"'))
        clock.advance(1)
        pulled_at = clock.now()
        records = await store.pull([done, an_id(), running, waiting])
        assert [record and record.pulled_at for record in records] == [pulled_at, None, None, None]
        assert [record and record.result for record in records] == [b'"yes"', None, None, None]
        clock.advance(1)
        [again] = await store.pull([done])
        assert again == records[0] == await read(store, done)

    async def test_a_pulled_result_is_dropped_after_its_time_and_the_row_stays(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        ids = await submit(store, *(a_job(lane) for _ in range(3)))
        await finish(store, session, *map(succeeded, await claim(store, session, lane)))
        await store.pull(ids[:2])
        assert await store.prune(HOUR_US, HOUR_US) == 0
        clock.advance(3601)
        assert [await store.prune(HOUR_US, HOUR_US, limit=1) for _ in range(3)] == [1, 1, 0]
        records = await store.get(ids)
        assert [(record.state, record.result) for record in records if record] == [(S.SUCCEEDED, None)] * 2 + [(S.SUCCEEDED, b"1")]
        [again] = await store.pull(ids[:1])
        assert again is not None
        assert (again.result, again.pulled_at) == (None, clock.now() - 3_601_000_000)

    async def test_check_says_nothing_when_all_is_well(self, store: Store) -> None:
        assert await store.check() is None

    # --- calls ------------------------------------------------------------------------------------------------------------------------

    async def test_a_caller_who_goes_away_does_not_disturb_the_others(self, store: Store, lane: int) -> None:
        impatient = asyncio.ensure_future(store.submit([Submission((a_job(lane),))]))
        patient = store.submit([Submission((a_job(lane),))])
        impatient.cancel()
        assert (await patient)[0].verdict is SubmitVerdict.ACCEPTED

    async def test_many_callers_at_once_are_all_answered(self, store: Store, lane: int, session: int) -> None:
        answers = await asyncio.gather(*(store.submit([Submission((a_job(lane),))]) for _ in range(500)))
        assert {answer.verdict for [answer] in answers} == {SubmitVerdict.ACCEPTED}
        jobs = await claim(store, session, lane, room=1000)
        assert len(jobs) == 500
        verdicts = await asyncio.gather(*(store.finish([Reports(session, [succeeded(job)])]) for job in jobs))
        assert {verdict.answer for [[verdict]] in verdicts} == {ACCEPTED}

    async def test_close_finishes_what_was_called_and_refuses_what_comes_later(self, store: Store, lane: int) -> None:
        called = store.submit([Submission((a_job(lane),))])
        await store.close()
        assert (await called)[0].verdict is SubmitVerdict.ACCEPTED
        with pytest.raises(StoreError, match="not open"):
            await store.submit([Submission((a_job(lane),))])
        with pytest.raises(StoreError, match="not open"):
            await store.get([an_id()])
        await store.close()  # twice does no harm
        await store.open()
