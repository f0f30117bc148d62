"""How many bodies run at once, what waits beside them, and what goes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from easyjobs.domain.job import Claimed, Outcome, Report
from easyjobs.errors import InvalidArguments, JobFailed, UnknownTask
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, SubmitProblem, WatchedResult
from easyjobs.tasks import Registry, current_job
from easyjobs.workers.pool import NO_ATTEMPT, Pool, Stop
from easyjobs.workers.worker import EasyJobsWorker
from tests.workers.fake import FakeManager, within

Start = Callable[..., Awaitable[EasyJobsWorker]]


class Gauge:
    """How many are inside, and how many were at most. Asyncio bodies wait until `open` is set."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.changed = asyncio.Event()
        self.open = asyncio.Event()

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1

    async def inside(self) -> None:
        self.enter()
        self.changed.set()
        try:
            await self.open.wait()
        finally:
            self.leave()
            self.changed.set()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.now != count:
                self.changed.clear()
                await self.changed.wait()


async def test_no_more_bodies_run_than_there_are_slots(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(3), Gauge()
    worker.task(gauge.inside, name="wait")
    seqs = [manager.add("wait") for _ in range(12)]
    await manager.seen(lambda: "wait" in manager.offers)
    await manager.give()
    await gauge.has(3)
    assert manager.sent == 3  # an unmeasured task gets no prefetch
    gauge.open.set()
    for seq in seqs:
        assert (await manager.report(seq)).outcome is Outcome.SUCCEEDED
    assert gauge.most == 3


async def test_a_job_behind_a_busy_slot_goes_back_once_and_waits_at_the_manager(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(1), Gauge()
    worker.task(gauge.inside, name="wait")
    worker.task(lambda: None, name="noop")
    await manager.seen(lambda: len(manager.told) == 2)
    while manager.limit - manager.sent < 3:  # short jobs earn a prefetch
        await manager.run_job("noop")
    manager.add("wait")
    behind = manager.add("noop")
    await manager.give()
    assert (await manager.report(behind)).outcome is Outcome.RELEASED
    assert [job.seq for job in manager.queue] == [behind], "there is no credit left for it"
    gauge.open.set()
    assert (await manager.report(behind, 2)).outcome is Outcome.SUCCEEDED


async def test_no_more_threads_run_than_there_are_slots(manager: FakeManager, start: Start) -> None:
    worker, gauge, together = await start(3), Gauge(), threading.Barrier(3)

    def meet() -> None:
        gauge.enter()
        together.wait(10)  # three at once: or nobody gets through
        gauge.leave()

    worker.task(meet)
    seqs = [manager.add("meet") for _ in range(30)]
    await manager.seen(lambda: "meet" in manager.offers)
    await manager.give()
    for seq in seqs:
        await manager.report(seq)
    assert gauge.most == 3


async def test_short_jobs_flow_though_there_are_few_slots(manager: FakeManager, start: Start) -> None:
    worker = await start(3)

    @worker.task()
    async def noop(n: int) -> int:
        return n

    seqs = [manager.add("noop", n) for n in range(3000)]
    await manager.seen(lambda: "noop" in manager.offers)
    await manager.give()
    await manager.seen(lambda: len(manager.reports_of) == 3000, 60)
    assert {manager.reports_of[seq][-1].outcome for seq in seqs} <= {Outcome.SUCCEEDED, Outcome.RELEASED}
    assert manager.most_sent_unreported > 20  # more than three were on their way at once


async def test_jobs_that_wait_behind_busy_slots_go_back(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(1), Gauge()

    @worker.task()
    async def maybe(n: int) -> int:
        if n < 0:
            await gauge.inside()
        return n

    for n in range(50):
        await manager.run_job("maybe", n)  # short: there is prefetch now
    manager.requeue_released = False
    slow = manager.add("maybe", -1)
    behind = [manager.add("maybe", 1) for _ in range(5)]
    await manager.give()
    await gauge.has(1)
    for seq in behind:
        assert (await manager.report(seq)).outcome is Outcome.RELEASED
    later = manager.add("maybe", 2)
    await manager.give()
    gauge.open.set()
    assert (await manager.report(slow)).outcome is Outcome.SUCCEEDED
    assert (await manager.report(later)).outcome is Outcome.SUCCEEDED  # was not sent to a full worker


async def test_a_job_that_awaits_another_on_a_worker_with_one_slot_does_not_lock_it_up(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(1), Gauge()

    @worker.task()
    async def leaf(n: int) -> int:
        gauge.enter()
        await asyncio.sleep(0)
        gauge.leave()
        return n

    @worker.task()
    async def middle(n: int) -> int:
        a, b = await asyncio.gather(leaf(n), leaf(n + 1))
        return a + b

    @worker.task()
    async def top() -> int:
        return sum([await middle(1), await middle(10)])

    seqs = [manager.add("top") for _ in range(3)]
    await manager.seen(lambda: len(manager.offers) == 3)
    await manager.give()
    for seq in seqs:
        assert (await manager.report(seq)).body == b"24"
    assert gauge.most == 1


class Nowhere:
    """A carrier that only remembers."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def nudge(self) -> None:
        pass

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        raise NotImplementedError

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        raise NotImplementedError

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        raise NotImplementedError


async def test_a_job_that_resumes_goes_before_new_ones() -> None:
    pool, order = Pool(slots=1), list[str]()
    pool.carrier = carrier = Nowhere()
    may_resume, ended = asyncio.Event(), asyncio.Event()

    async def parent() -> None:
        async with current_job().waiting():
            await may_resume.wait()
        order.append("parent resumed")

    async def other(n: int) -> None:
        order.append(f"other {n}")
        if n == 1:
            may_resume.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if n == 2:
            ended.set()

    registry = Registry(carrier, lambda _: None)
    pool.lanes[1], pool.lanes[2] = registry.register(parent, ["q"], {}), registry.register(other, ["q"], {})
    pool.inbox.put([Claimed(1, 1, 1, b"i" * 16, 0, 0, b"[[],{}]")], 0.0)
    pool.inbox.put([Claimed(seq, 1, 2, b"i" * 16, 0, 0, b"[[%d],{}]" % (seq - 1)) for seq in (2, 3)], 0.0)
    pool.wake()
    await within(10, ended.wait())
    assert order == ["other 1", "parent resumed", "other 2"]
    assert [report.seq for report in carrier.reports[:2]] == [2, 1]


async def test_a_waiting_job_that_is_cancelled_leaves_the_slots_as_they_were() -> None:
    pool = Pool(slots=1)
    pool.carrier = carrier = Nowhere()

    async def parent() -> None:
        async with current_job().waiting():
            await asyncio.Event().wait()

    registry = Registry(carrier, lambda _: None)
    pool.lanes[1] = registry.register(parent, ["q"], {})
    pool.inbox.put([Claimed(seq, 1, 1, b"i" * 16, 0, 0, b"[[],{}]") for seq in (1, 2, 3)], 0.0)
    pool.wake()
    while pool.running < 3 or pool.free < 1:  # noqa: ASYNC110 - a few turns of the loop
        await asyncio.sleep(0)
    assert pool.room().slots == 4
    pool.stop_all(Stop.SHUTDOWN)
    while pool.running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (pool.free, pool.room().slots) == (1, 1)
    assert [report.outcome for report in carrier.reports] == [Outcome.RELEASED] * 3


async def test_an_attempt_that_was_lost_does_not_speak_for_a_later_job_of_its_number() -> None:
    """A database that was restored gives the numbers of the jobs that it lacks out again."""
    pool, began = Pool(slots=2), asyncio.Event()
    pool.carrier = carrier = Nowhere()

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "of the job that is gone"
        return "never"

    pool.lanes[1] = Registry(carrier, lambda _: None).register(stubborn, ["q"], {})
    pool.inbox.put([Claimed(7, 1, 1, b"i" * 16, 0, 0, b"[[],{}]")], 0.0)
    pool.wake()
    await within(10, began.wait())
    pool.stop([(7, 1)], Stop.LOST)
    while pool.running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert [(report.seq, report.attempt) for report in carrier.reports] == [(7, NO_ATTEMPT)]  # its room is counted, and nothing is said


async def test_a_result_has_the_annotated_type_and_a_failure_is_raised(manager: FakeManager, start: Start) -> None:
    from datetime import date

    worker = await start()

    @worker.task()
    async def day(n: int) -> date:
        return date(2026, 11, n)

    @worker.task(retry_policy="never")
    async def fail() -> None:
        raise ValueError("no")

    assert await within(10, day(24)) == date(2026, 11, 24)
    job = await day.options(priority=3, delay=0.5, key="k").submit(2)
    assert await job.result(timeout=10) == date(2026, 11, 2)
    options = manager.submits[-1].options
    assert options is not None
    assert (options.priority, options.delay_us, options.key) == (3, 500_000, "k")
    with pytest.raises(JobFailed, match="ValueError: no") as caught:
        await within(10, fail())
    assert "raise ValueError" in caught.value.remote_traceback
    assert day.fn.__name__ == "day"


@pytest.mark.parametrize(
    ("problem", "raised"),
    [
        (SubmitProblem(status=404, detail="no task 'day'"), UnknownTask),
        (SubmitProblem(status=422, detail="day: body.n: bad", errors=b'[{"type":"x","loc":["body","n"],"msg":"bad"}]'), InvalidArguments),
    ],
)
async def test_a_refused_submit_is_raised_with_the_managers_words(
    manager: FakeManager, start: Start, problem: SubmitProblem, raised: type[Exception]
) -> None:
    worker = await start()
    manager.problem = problem
    task: Any = worker.task(lambda: 1, name="day")
    with pytest.raises(raised, match=r"no task 'day'|body\.n: bad"):
        await within(10, task.submit())


async def test_a_wait_for_a_result_ends_in_time_and_can_be_taken_up_again(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(), Gauge()
    task: Any = worker.task(gauge.inside, name="wait")
    job = await within(10, task.submit())
    with pytest.raises(TimeoutError):
        await job.result(timeout=0.05)
    gauge.open.set()
    assert await job.result(timeout=10) is None


async def test_a_plain_task_may_call_tasks_from_a_loop_of_its_own(manager: FakeManager, start: Start) -> None:
    worker = await start(1)

    @worker.task()
    async def child(n: int) -> int:
        return n * 2

    @worker.task()
    def parent() -> int:
        async def call() -> int:
            return await child(21)

        return asyncio.run(call())

    assert (await manager.run_job("parent")).body == b"42"
