"""`timeout=`: how long one attempt may run, and what becomes of it then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.domain.retry import RetryPolicy
from easyjobs.tasks import current_job
from easyjobs.workers import pool as pool_module
from easyjobs.workers.worker import EasyJobsWorker
from tests.workers.fake import FakeManager, within

Start = Callable[..., Awaitable[EasyJobsWorker]]
SHORT_US = 50_000


def error(report: Report) -> ErrorInfo:
    assert report.outcome is Outcome.FAILED, report
    return msgspec.json.decode(report.body, type=ErrorInfo)


async def offered(manager: FakeManager, *names: str) -> None:
    await manager.seen(lambda: set(names) <= manager.offers.keys())


async def test_an_async_body_is_cancelled_and_fails_as_a_timeout(manager: FakeManager, start: Start) -> None:
    worker, cancelled = await start(), list[bool]()

    @worker.task()
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(current_job().cancel_requested)
            raise

    await offered(manager, "hang")
    seq = manager.add("hang", timeout_us=SHORT_US)
    await manager.give()
    report = await manager.report(seq)
    assert (error(report).type, error(report).kind, report.retry, report.crashed) == ("TimeoutError", "timeout", True, False)
    assert "0.05 s" in error(report).message
    assert "await asyncio.Event().wait()" in error(report).traceback
    assert report.ran_us >= SHORT_US
    assert cancelled == [True]


@pytest.mark.parametrize(
    ("policy", "retry"),
    [("never", False), (RetryPolicy(retry_on=(TimeoutError,)), True), (RetryPolicy(give_up_on=(TimeoutError,)), False)],
)
async def test_the_retry_policy_judges_a_timeout(manager: FakeManager, start: Start, policy: Any, retry: bool) -> None:
    worker = await start()
    worker.task(asyncio.Event().wait, name="hang", retry_policy=policy)
    await offered(manager, "hang")
    seq = manager.add("hang", timeout_us=SHORT_US)
    await manager.give()
    assert (await manager.report(seq)).retry is retry


async def test_a_body_that_ends_in_time_or_returns_when_it_is_cancelled_has_succeeded(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def quick() -> str:
        return "done"

    @worker.task()
    async def finishes() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "what there was"
        return ""

    await offered(manager, "quick", "finishes")
    seqs = [manager.add("quick", timeout_us=60_000_000), manager.add("finishes", timeout_us=SHORT_US)]
    await manager.give()
    assert [(await manager.report(seq)).body for seq in seqs] == [b'"done"', b'"what there was"']


async def test_what_a_body_raises_when_it_is_cancelled_does_not_hide_the_timeout(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while cleaning up")

    await offered(manager, "fails")
    seq = manager.add("fails", timeout_us=SHORT_US)
    await manager.give()
    assert error(await manager.report(seq)).kind == "timeout"


async def test_a_thread_keeps_its_slot_until_it_ends_and_is_reported_at_once(manager: FakeManager, start: Start) -> None:
    worker, gate, asked = await start(1), threading.Event(), list[bool]()

    @worker.task()
    def hang() -> str:
        context = current_job()
        gate.wait(20)
        asked.append(context.cancel_requested)
        return "too late"

    @worker.task()
    async def other() -> None: ...

    await offered(manager, "hang", "other")
    manager.requeue_released = False
    seq = manager.add("hang", timeout_us=SHORT_US)
    await manager.give()
    assert error(await manager.report(seq)).kind == "timeout"
    after = manager.add("other")
    await manager.give()
    assert manager.limit == manager.sent  # no room
    gate.set()
    assert (await manager.report(after)).outcome is Outcome.SUCCEEDED
    assert len(manager.reports_of[seq]) == 1
    assert asked == [True]


async def test_a_body_that_ignores_its_cancellation_is_given_up_on(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "STOP_S", 0.1)
    worker, gate = await start(1), asyncio.Event()

    @worker.task()
    async def stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    await offered(manager, "stubborn")
    seq = manager.add("stubborn", timeout_us=SHORT_US)
    await manager.give()
    assert error(await manager.report(seq)).kind == "timeout"
    assert (worker._pool.running, worker._pool.room().slots) == (1, 0)
    gate.set()
    await manager.seen(lambda: manager.limit > manager.sent)
    assert len(manager.reports_of[seq]) == 1


async def test_waiting_for_another_job_does_not_count(manager: FakeManager, start: Start) -> None:
    worker, released = await start(1), asyncio.Event()

    @worker.task()
    async def parent() -> str:
        async with current_job().waiting():
            await released.wait()
        return "in time"

    await offered(manager, "parent")
    seq = manager.add("parent", timeout_us=SHORT_US)
    await manager.give()
    loop = asyncio.get_running_loop()
    later = loop.create_future()
    loop.call_later(4 * SHORT_US / 1_000_000, later.set_result, None)  # the timeout has long passed, were it not paused
    await within(10, later)
    assert seq not in manager.reports_of
    released.set()
    assert (await manager.report(seq)).body == b'"in time"'


async def test_the_time_before_and_after_a_wait_adds_up(manager: FakeManager, start: Start) -> None:
    worker = await start(1)

    @worker.task()
    async def parent() -> None:
        async with current_job().waiting():
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    await offered(manager, "parent")
    seq = manager.add("parent", timeout_us=SHORT_US)
    await manager.give()
    assert error(await manager.report(seq)).kind == "timeout"
