"""What becomes of an attempt, whatever its body does: always one report, and the worker lives on."""

from __future__ import annotations

import asyncio
import contextvars
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.domain.retry import RetryPolicy
from easyjobs.errors import GiveUp, Retry, Signal, Snooze
from easyjobs.tasks import JobContext, current_job
from easyjobs.workers.worker import EasyJobsWorker
from tests.workers.fake import FakeManager

Start = Callable[..., Awaitable[EasyJobsWorker]]


def error(report: Report) -> ErrorInfo:
    assert report.outcome is Outcome.FAILED, report
    return msgspec.json.decode(report.body, type=ErrorInfo)


@pytest.mark.parametrize("value", [None, 0, False, "", "failed", [], {}, [1, [2, {"a": None}]], 2**80, -1.5, "ünï ✓", {"1": {"2": [3]}}])
@pytest.mark.parametrize("plain", [False, True])
async def test_every_kind_of_json_is_a_result(manager: FakeManager, start: Start, value: Any, plain: bool) -> None:
    worker = await start()
    if plain:
        worker.task(lambda: value, name="give")
    else:

        async def give() -> Any:
            return value

        worker.task(give)
    report = await manager.run_job("give")
    assert report.outcome is Outcome.SUCCEEDED
    assert json.loads(report.body) == value


class Color(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    on: date


async def test_arguments_come_as_what_they_are_annotated_and_objects_go_as_json(manager: FakeManager, start: Start) -> None:
    worker = await start()
    seen: list[Any] = []

    @worker.task()
    async def take(point: Point, color: Color, *rest: int, flag: bool = False) -> Point:
        seen.append((point, color, rest, flag))
        return Point(point.x + 1, date(2030, 1, 2))

    report = await manager.run_job("take", {"x": 1, "on": "2026-11-24"}, "red", 1, 2, flag=True)
    assert seen == [(Point(1, date(2026, 11, 24)), Color.RED, (1, 2), True)]
    assert json.loads(report.body) == {"x": 2, "on": "2030-01-02"}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), (("x", 1), {}), ((1,), {"c": 2}), ((1,), {"a": 2, "b": 3}), ((1, None), {})]
)
async def test_arguments_that_this_version_refuses_fail_without_a_retry(
    manager: FakeManager, start: Start, args: Any, kwargs: Any, plain: bool
) -> None:
    worker = await start()
    ran = []
    if plain:

        def typed(a: int, b: int = 1) -> None:
            ran.append(1)

        worker.task(typed)
    else:

        async def atyped(a: int, b: int = 1) -> None:
            ran.append(1)

        worker.task(atyped, name="typed")
    report = await manager.run_job("typed", *args, **kwargs)
    assert error(report).kind == "invalid_arguments"
    assert not report.retry
    assert not ran


@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
async def test_an_untyped_task_refuses_a_wrong_number_of_arguments_too(manager: FakeManager, start: Start, args: Any) -> None:
    worker = await start()

    @worker.task()
    async def untyped(a, b):  # type: ignore[no-untyped-def]
        return a

    assert error(await manager.run_job("untyped", *args)).kind == "invalid_arguments"
    assert (await manager.run_job("untyped", 1, 2)).body == b"1"
    assert (await manager.run_job("untyped", b=2, a=1)).body == b"1"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"[[],{},1]", b"{}", b"[{},[]]", b"[[1e999],{}]"])
async def test_arguments_that_are_no_call_fail_without_a_retry(manager: FakeManager, start: Start, raw: bytes) -> None:
    worker = await start()
    worker.task(lambda *args, **kwargs: None, name="anything")
    assert error(await manager.run_job("anything", raw=raw)).kind == "invalid_arguments"


async def test_an_exception_is_reported_with_type_message_and_the_users_part_of_the_traceback(manager: FakeManager, start: Start) -> None:
    worker = await start()

    class Trouble(Exception):
        pass

    @worker.task()
    async def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise Trouble("it went wrong") from inner

    report = await manager.run_job("fail")
    info = error(report)
    assert info.type.endswith("Trouble")
    assert info.message == "it went wrong"
    assert info.kind == "exception"
    assert "raise Trouble" in info.traceback
    assert "KeyError: 'inner'" in info.traceback
    assert "easyjobs/workers/executor.py" not in info.traceback
    assert report.retry
    assert report.delay_us == 0


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _recurse(n: int = 0) -> int:
    return _recurse(n + 1) + 1


def _raise(error: BaseException) -> None:
    raise error


ENDS: dict[str, tuple[Callable[[], Any], str]] = {
    "sys.exit": (lambda: sys.exit(3), "SystemExit"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt"),
    "BaseException": (lambda: _raise(BaseException("bare")), "BaseException"),
    "GeneratorExit": (lambda: _raise(GeneratorExit()), "GeneratorExit"),
    "StopIteration": (lambda: next(iter(())), "StopIteration"),
    "recursion": (_recurse, "RecursionError"),
    "CancelledError": (lambda: _raise(asyncio.CancelledError()), "CancelledError"),
    "a text that raises": (lambda: _raise(Unprintable()), "Unprintable"),
    "a surrogate": (lambda: _raise(ValueError("\ud800")), "ValueError"),
    "a group": (lambda: _raise(ExceptionGroup("many", [ValueError("1"), TypeError("2")])), "ExceptionGroup"),
    "a huge message": (lambda: _raise(ValueError("x" * 10_000_000)), "ValueError"),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("plain", [False, True])
async def test_whatever_a_body_raises_is_a_failure_and_the_worker_lives_on(
    manager: FakeManager, start: Start, how: str, plain: bool
) -> None:
    body, expected = ENDS[how]
    worker = await start()
    if plain:
        worker.task(body, name="fail")
    else:

        async def fail() -> None:
            body()

        worker.task(fail)
    worker.task(lambda: "alive", name="next")
    report = await manager.run_job("fail")
    info = error(report)
    if not (how == "StopIteration" and not plain):  # Python itself turns it into a RuntimeError
        assert info.type.rsplit(".", 1)[-1] == expected
    assert report.retry
    assert len(report.body) < 200_000
    assert (await manager.run_job("next")).body == b'"alive"'


@pytest.mark.parametrize(
    "value", [float("nan"), [float("inf")], {1, object()}, object(), b"\xff", "\ud800", lambda: 1, {"a": {"b": {3: object()}}}]
)
async def test_a_result_that_is_no_json_fails_the_job_for_good_and_says_so(manager: FakeManager, start: Start, value: Any) -> None:
    worker = await start()

    async def give() -> Any:
        return value

    worker.task(give)
    report = await manager.run_job("give")
    assert error(report).kind == "unserialisable"
    assert "$" in error(report).message
    assert not report.retry


async def test_a_result_over_the_limit_fails_the_job_for_good(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def give() -> str:
        return "x" * (4 * 1024 * 1024)

    report = await manager.run_job("give")
    assert error(report).kind == "too_large"
    assert not report.retry


@pytest.mark.parametrize(
    ("policy", "failures", "retry", "least_s", "most_s"),
    [
        ("never", 0, False, 0, 0),
        ("retry_once", 0, True, 0, 0),
        ("always", 3, True, 4, 8),
        (RetryPolicy(retry_on=(KeyError,)), 0, False, 0, 0),
        (RetryPolicy(base=10, jitter=0), 0, True, 10, 10),
    ],
)
async def test_the_report_carries_what_the_policy_says(
    manager: FakeManager, start: Start, policy: Any, failures: int, retry: bool, least_s: float, most_s: float
) -> None:
    worker = await start()

    @worker.task(retry_policy=policy)
    async def fail() -> None:
        raise ValueError

    seq = manager.add("fail", failures=failures)
    await manager.give()
    report = await manager.report(seq)
    assert report.retry is retry
    assert least_s <= report.delay_us / 1e6 <= most_s


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("signal", "policy", "outcome", "retry", "delay_us"),
    [
        (Retry(in_=7), "never", Outcome.FAILED, False, 7_000_000),
        (Retry(in_=7), 3, Outcome.FAILED, True, 7_000_000),
        (Retry(in_=timedelta(minutes=1)), RetryPolicy(retry_on=(KeyError,)), Outcome.FAILED, True, 60_000_000),
        (Retry("later"), RetryPolicy(backoff="fixed", base=2, jitter=0), Outcome.FAILED, True, 2_000_000),
        (Snooze(2.5), "never", Outcome.SNOOZED, False, 2_500_000),
        (GiveUp("no use"), "always", Outcome.FAILED, False, 0),
    ],
)
async def test_a_task_may_say_how_its_attempt_ends(
    manager: FakeManager, start: Start, signal: Signal, policy: Any, outcome: Outcome, retry: bool, delay_us: int, plain: bool
) -> None:
    worker = await start()

    def stop() -> None:
        raise signal

    async def stop_async() -> None:
        raise signal

    worker.task(stop if plain else stop_async, name="stop", retry_policy=policy)
    report = await manager.run_job("stop")
    assert (report.outcome, report.retry, report.delay_us) == (outcome, retry, delay_us)
    if outcome is Outcome.FAILED:
        assert (error(report).message, error(report).kind) == (str(signal), "gave_up" if isinstance(signal, GiveUp) else "exception")


@pytest.mark.parametrize("duration", [-1, float("nan"), float("inf"), timedelta(days=5000)])
def test_a_signal_refuses_a_time_that_cannot_be_meant(duration: Any) -> None:
    for make in (lambda: Retry(in_=duration), lambda: Snooze(duration)):
        with pytest.raises(ValueError, match="from 0 to ten years"):
            make()


async def test_a_job_sees_itself_and_its_own_context_variables(manager: FakeManager, start: Start) -> None:
    worker = await start()
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    @worker.task()
    async def look(context: JobContext, n: int) -> list[Any]:
        was = variable.get()
        variable.set(n)
        await asyncio.sleep(0)
        assert current_job() is context
        assert asyncio.current_task() is not None
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return [was, context.queue, context.task, context.attempt, context.failures, context.job_id, context.idempotency_key]

    @worker.task()
    def look_plain(n: int) -> list[Any]:
        was = variable.get()
        variable.set(n)
        return [was, current_job().task, threading.current_thread() is threading.main_thread()]

    for n in range(1, 4):
        was, *rest = json.loads((await manager.run_job("look", n=n)).body)
        assert was == 0
        assert rest[:4] == ["DEFAULT", "look", 1, 0]
        assert rest[4] in rest[5]
        assert json.loads((await manager.run_job("look_plain", n)).body) == [0, "look_plain", False]
    with pytest.raises(LookupError):
        current_job()


async def test_the_context_takes_its_place_before_further_positional_arguments(manager: FakeManager, start: Start) -> None:
    worker = await start()

    @worker.task()
    async def gather(context: JobContext, first: int, *rest: int) -> list[Any]:
        return [context.task, first, list(rest)]

    assert json.loads((await manager.run_job("gather", 1, 2, 3)).body) == ["gather", 1, [2, 3]]


async def test_a_plain_function_that_returns_an_awaitable_is_awaited_on_the_loop(manager: FakeManager, start: Start) -> None:
    worker = await start()

    async def inner() -> bool:
        await asyncio.sleep(0)
        return threading.current_thread() is threading.main_thread()

    worker.task(lambda: inner(), name="give")  # noqa: PLW0108 - a plain function is what is tested
    assert (await manager.run_job("give")).body == b"true"


async def test_an_unknown_lane_fails_the_job_as_unknown_task(manager: FakeManager, start: Start) -> None:
    worker = await start()
    worker.task(lambda: 1, name="known")
    await manager.run_job("known")
    manager.lanes["other"] = 99
    manager.told.add(99)
    assert error(await manager.run_job("other")).kind == "unknown_task"
