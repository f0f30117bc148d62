"""What a job shows of itself reaches the manager: progress, its log, whatever logger it uses, from whatever thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.seeing import MAX_LINE, MAX_MESSAGE
from easyjobs.tasks import JobContext, current_job
from easyjobs.workers import notebook as module
from easyjobs.workers.worker import EasyJobsWorker
from tests.workers.fake import FakeManager

Start = Callable[..., Awaitable[EasyJobsWorker]]
app_log = logging.getLogger("tests.app")


@pytest.fixture(autouse=True)
def app_logs_info() -> Iterator[None]:
    app_log.setLevel(logging.INFO)
    yield
    app_log.setLevel(logging.NOTSET)


def texts(manager: FakeManager, seq: int | None = None) -> list[str]:
    return [line.text for line in manager.lines if seq is None or line.seq == seq]


async def test_lines_of_any_logger_are_there_before_the_result(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def work(ctx: JobContext) -> None:
        app_log.info("one %d", 1)
        app_log.debug("not let through by its level")
        ctx.log.warning("two", extra={"more": 1})
        try:
            raise KeyError("k")
        except KeyError:
            app_log.exception("three")

    report = await manager.run_job("work")
    assert report.outcome is Outcome.SUCCEEDED
    assert manager.order[-1] == "reports"
    assert manager.order.count("reports") == 1
    first, second, third = manager.lines
    assert (first.seq, first.attempt, first.number, first.level, first.logger, first.text) == (1, 1, 1, 20, "tests.app", "one 1")
    assert (second.number, second.level, second.logger, second.text) == (2, 30, "easyjobs.job", "two")
    assert third.text.startswith("three\nTraceback")
    assert third.text.endswith("KeyError: 'k'")
    assert 0 < third.at - first.at < 60_000_000


async def test_a_plain_task_logs_from_its_thread_and_those_it_starts_with_its_log(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    def work(ctx: JobContext) -> None:
        app_log.info("from the task")
        threads = [
            threading.Thread(target=app_log.info, args=("nobody's",)),
            threading.Thread(target=ctx.log.info, args=("from another thread",)),
        ]
        for thread in threads:
            thread.start()
            thread.join()

    await manager.run_job("work")
    assert texts(manager) == ["from the task", "from another thread"]


async def test_each_job_has_its_own_lines(manager: FakeManager, start: Start) -> None:
    worker = await start(slots=10)
    together = asyncio.Barrier(5)

    @worker.task()
    async def work(name: str) -> None:
        app_log.info("%s begins", name)
        await together.wait()
        await asyncio.create_task(log_later(f"{name} ends"))

    async def log_later(text: str) -> None:
        await asyncio.sleep(0)
        app_log.info(text)

    seqs = {name: manager.add("work", name) for name in "abcde"}
    await manager.give()
    for name, seq in seqs.items():
        await manager.report(seq)
        assert texts(manager, seq) == [f"{name} begins", f"{name} ends"]
    app_log.info("outside of a job")
    assert len(manager.lines) == 10


async def test_the_program_s_own_handlers_get_what_they_always_did(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    before = list(logging.getLogger().handlers)
    worker = await start()
    assert logging.getLogger().handlers == before, "no handler is added: basicConfig() would do nothing then"

    @worker.task()
    async def work(ctx: JobContext) -> None:
        ctx.log.info("hello %s", "there")

    await manager.run_job("work")
    [record] = [one for one in caplog.records if one.name == "easyjobs.job"]
    assert record.getMessage() == "hello there"
    assert record.funcName == "work", "who logged is not hidden behind our logger"
    assert (record.attempt, record.task) == (1, "DEFAULT/work")  # type: ignore[attr-defined]


async def test_our_own_lines_are_not_the_job_s(manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    worker = await start()

    @worker.task()
    async def work() -> None:
        return None

    await manager.run_job("work")
    assert "attempt.succeeded" in caplog.text
    assert [line for line in manager.lines if line.logger.startswith("easyjobs")] == []


async def test_a_record_that_cannot_be_written_does_no_harm(manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    worker = await start()

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    @worker.task()
    async def work() -> None:
        for message, *args in ((Bad(),), ("%s", Bad()), ("%d %d", 1), ("\ud800 and \x00",), ("x" * (MAX_LINE + 5),)):
            app_log.handle(app_log.makeRecord(app_log.name, 20, "f", 1, message, tuple(args), None))

    assert (await manager.run_job("work")).outcome is Outcome.SUCCEEDED
    assert texts(manager)[:4] == ["<Bad>", "%s", "%d %d", "\\ud800 and \x00"]
    assert texts(manager)[4] == "x" * MAX_LINE + "… 5 characters left out"


async def test_progress_comes_while_the_job_runs_and_the_newest_wins(manager: FakeManager, start: Start) -> None:
    worker = await start()
    go = asyncio.Event()

    @worker.task()
    async def work(ctx: JobContext) -> None:
        for n in range(1000):
            ctx.progress(n, 1000, f"n {n}")
        await go.wait()
        ctx.progress(1.5, message="m" * 1000)

    seq = manager.add("work")
    await manager.give()
    await manager.seen(lambda: manager.marks and manager.marks[-1].done == 999)
    assert seq not in manager.reports_of
    go.set()
    await manager.report(seq)
    *_, before, last = manager.marks
    assert (before.seq, before.attempt, before.done, before.total, before.message) == (seq, 1, 999, 1000, "n 999")
    assert (last.done, last.total, last.message) == (1.5, None, "m" * MAX_MESSAGE)
    assert len(manager.marks) < 10


async def test_a_task_that_blocks_its_loop_is_seen_all_the_same(manager: FakeManager, start: Start) -> None:
    worker = await start()
    go = threading.Event()

    @worker.task()
    async def work() -> None:
        app_log.info("blocking now")
        assert go.wait(20)

    seq = manager.add("work")

    def release() -> None:  # the fake manager shares our loop: it can only look on when the task has ended
        go.set()

    timer = threading.Timer(0.5, release)
    timer.start()
    await manager.give()
    await manager.report(seq)
    timer.join()
    assert manager.order[0] == "log"
    assert texts(manager) == ["blocking now"]


@pytest.mark.parametrize("bad", ["1", None, True, float("nan"), float("inf"), -1, 10**400])
async def test_what_is_no_number_is_refused(manager: FakeManager, start: Start, bad: Any) -> None:
    worker = await start()

    @worker.task()
    async def work(ctx: JobContext) -> str:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            ctx.progress(bad)
        ctx.progress(2**70, 2**71)
        return "went on"

    assert (await manager.run_job("work")).body == b'"went on"'
    assert [mark.done for mark in manager.marks] == [float(2**70)]


async def test_tracking_goes_through_all_items_and_shows_how_far_it_is(manager: FakeManager, start: Start) -> None:
    worker = await start()
    seen: dict[str, list[Any]] = {}

    async def stream() -> AsyncIterator[int]:
        for n in (7, 8):
            yield n

    def shown(ctx: JobContext, into: str) -> None:
        show = seen.setdefault(into, [])
        ctx.progress = lambda done, total=None, message="": show.append((done, total))  # type: ignore[method-assign]

    @worker.task()
    async def walk(ctx: JobContext) -> list[int]:
        shown(ctx, "list")
        items = [x async for x in ctx.track([5, 6])]
        shown(ctx, "generator")
        items += [x async for x in ctx.track(n for n in (1, 2))]
        shown(ctx, "stream")
        items += [x async for x in ctx.track(stream(), total=2)]
        return items

    @worker.task()
    def plain() -> list[int]:
        shown(current_job(), "plain")
        return list(current_job().track(range(2)))

    assert (await manager.run_job("walk")).body == b"[5,6,1,2,7,8]"
    assert (await manager.run_job("plain")).body == b"[0,1]"
    assert seen == {
        "list": [(0, 2), (1, 2), (2, 2)],
        "generator": [(0, None), (1, None), (2, 2)],
        "stream": [(0, 2), (1, 2), (2, 2)],
        "plain": [(0, 2), (1, 2), (2, 2)],
    }


async def test_tracking_lets_a_cancellation_in(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def for_ever(ctx: JobContext) -> None:
        async for n in ctx.track(iter(int, 1)):
            ctx.log.debug(n)

    seq = manager.add("for_ever")
    manager.requeue_released = False
    await manager.give()
    await manager.seen(lambda: manager.marks)
    await manager.cancel(seq)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED


async def test_an_attempt_that_logs_too_much_says_how_much_was_dropped(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ATTEMPT_LINES", 3)
    worker = await start()

    @worker.task()
    async def work() -> None:
        for n in range(1, 11):
            app_log.info("line %d", n)

    await manager.run_job("work")
    assert texts(manager)[:3] == ["line 1", "line 2", "line 3"]
    [said] = manager.lines[3:]
    assert said.text.startswith("7 more lines were not kept")
    assert (said.number, said.level) == (11, 30)


async def test_lines_that_were_not_acked_come_again_after_a_reconnect(manager: FakeManager, start: Start) -> None:
    worker = await start()
    go = asyncio.Event()

    @worker.task()
    async def work() -> None:
        app_log.info("first")
        await go.wait()
        app_log.info("second")

    manager.ack_logs = False
    seq = manager.add("work")
    await manager.give()
    await manager.seen(lambda: manager.lines)
    manager.cut()
    manager.ack_logs = True
    await manager.connected(2)
    go.set()
    await manager.report(seq)
    assert texts(manager) == ["first", "first", "second"]


async def test_the_trace_of_the_submit_is_there(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def work(ctx: JobContext) -> str | None:
        return ctx.traceparent

    assert (await manager.run_job("work")).body == b"null"
    seq = manager.add("work")
    manager.queue[0] = msgspec.structs.replace(manager.queue[0], traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    await manager.give()
    assert (await manager.report(seq)).body == b'"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"'


async def test_after_its_end_a_job_shows_nothing_more(manager: FakeManager, start: Start) -> None:
    worker = await start()
    kept: list[JobContext] = []

    @worker.task()
    async def work(ctx: JobContext) -> None:
        kept.append(ctx)

    await manager.run_job("work")
    kept[0].log.info("late")
    kept[0].progress(1)
    assert (await manager.run_job("work")).outcome is Outcome.SUCCEEDED
    assert manager.lines == []
    assert manager.marks == []


async def test_a_job_that_shows_nothing_sends_nothing(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def work() -> None: ...

    report: Report = await manager.run_job("work")
    assert report.outcome is Outcome.SUCCEEDED
    assert manager.notes == []
