"""Tasks that run in child processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain.job import MAX_RESULT, ErrorInfo, Outcome, Report
from easyjobs.domain.retry import RetryPolicy
from easyjobs.errors import StoreFull
from easyjobs.workers import child as child_module
from easyjobs.workers.child import Child, Output
from easyjobs.workers.children import MAIN, Children, Told, rebuilt
from easyjobs.workers.worker import EasyJobsWorker
from tests.processes import clean_environment, until
from tests.workers import bodies
from tests.workers.fake import FakeManager

Start = Callable[..., Awaitable[EasyJobsWorker]]
TEMPLATE = """
from easyjobs.workers.task import subprocess

@subprocess
{function}

if __name__ == "__main__":
    work()
"""


def error(report: Report) -> ErrorInfo:
    assert report.outcome is Outcome.FAILED, report
    return msgspec.json.decode(report.body, type=ErrorInfo)


def value(report: Report) -> Any:
    assert report.outcome is Outcome.SUCCEEDED, report
    return msgspec.json.decode(report.body)


def is_gone(pid: int) -> bool:
    """Whether no such process runs. (A dead one that nobody reaps, in a container without an init, counts as gone.)"""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


async def soon(what: str, condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    return await asyncio.to_thread(until, what, condition, within_s)


async def gone(*pids: int) -> None:
    """SIGKILL has been sent to them: it is only a moment until they are gone."""
    await soon(f"{pids} are gone", lambda: all(is_gone(pid) for pid in pids), 5)


async def register(manager: FakeManager, worker: EasyJobsWorker, *functions: Callable[..., Any], **options: Any) -> None:
    for function in functions:
        worker.task(function, subprocess=True, **options)
    names = {function.__name__ for function in functions}
    await manager.seen(lambda: names <= manager.offers.keys())


@pytest.fixture
def task_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """WORKER_TASK_DIR."""
    monkeypatch.setenv("WORKER_TASK_DIR", str(tmp_path))
    return tmp_path


async def register_file(manager: FakeManager, worker: EasyJobsWorker, directory: Path, text: str, name: str = "work") -> None:
    (directory / f"{name}.py").write_text(text)
    worker.task(bodies.untyped, name=name, subprocess=True)
    await manager.seen(lambda: name in manager.offers)


# --- functions ------------------------------------------------------------------------------------------------------------------


async def test_a_function_runs_in_a_process_of_its_own_which_is_kept_warm(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.add, bodies.in_a_loop)
    first = value(await manager.run_job("add", 1, b=2))
    assert first["sum"] == 3
    assert first["pid"] != os.getpid()
    assert value(await manager.run_job("add", 5)) == {"sum": 6, "pid": first["pid"]}
    assert value(await manager.run_job("in_a_loop", 21)) == 42
    assert worker._pool._children.idle == [first["pid"]]


async def test_arguments_and_results_are_converted_as_in_threads(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.convert, bodies.untyped)
    assert value(await manager.run_job("convert", {"number": 2, "day": "2026-11-24"}, {"x": 1}, when="P1D")) == {
        "day": "2026-11-25",
        "point": {"x": 1, "y": 0},
        "order": {"number": 2, "day": "2026-11-24"},
    }
    refused = await manager.run_job("convert", {"number": 3, "day": "2026-11-24"}, {"x": 1}, "P1D")
    assert (error(refused).kind, refused.retry) == ("invalid_arguments", False)
    assert "an even number" in error(refused).message
    big = 10**400
    assert value(await manager.run_job("untyped", 1.5, big, "ü\n", x=None)) == [1.5, big, ["ü\n"], {"x": None}]


async def test_a_function_knows_its_job(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.about)
    seq = manager.add("about", attempt=3, failures=2)
    await manager.give()
    about = value(await manager.report(seq))
    assert (about["attempt"], about["failures"], about["name"]) == (3, 2, "DEFAULT/about")
    assert bytes.fromhex(about["job_id"].replace("-", "")) == manager.jobs[seq].id


async def test_what_a_function_raises_is_its_error(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.fail, bodies.leave)
    report = await manager.run_job("fail", "because")
    assert (error(report).type, error(report).message) == ("tests.workers.bodies.OddError", "because")
    assert error(report).traceback.startswith('Traceback (most recent call last):\n  File "' + str(bodies.__file__))
    assert (report.retry, report.crashed) == (True, False)
    left = await manager.run_job("leave", 3)
    assert (error(left).type, error(left).message) == ("SystemExit", "the task called sys.exit(3)")


@pytest.mark.parametrize(
    ("policy", "retry"),
    [
        (RetryPolicy(retry_on=(bodies.OddError,)), True),
        (RetryPolicy(retry_on=(ValueError,)), True),
        (RetryPolicy(retry_on=(OSError,)), False),
        (RetryPolicy(give_up_on=(ValueError,)), False),
    ],
)
async def test_the_retry_policy_judges_the_class_that_was_raised_in_the_child(
    manager: FakeManager, start: Start, policy: RetryPolicy, retry: bool
) -> None:
    worker = await start()
    await register(manager, worker, bodies.fail, retry_policy=policy)
    assert (await manager.run_job("fail")).retry is retry


def test_an_exception_of_a_child_is_judged_by_the_nearest_class_that_the_worker_has() -> None:
    def of(*types: str, is_script: bool = False, **facts: Any) -> BaseException:
        return rebuilt(Told([*types, "Exception", "BaseException"], "text", facts=facts), is_script=is_script)

    assert type(of("tests.workers.bodies.OddError", "ValueError")) is bodies.OddError
    assert type(of("nowhere.at.All", "LookupError")) is LookupError
    assert type(of("tests.workers.bodies.Order", "KeyError")) is KeyError  # is no exception
    assert type(of("ExceptionGroup")) is Exception  # cannot be made without its exceptions
    full = of("easyjobs.errors.StoreFull", "easyjobs.errors.StoreError", store="disk")
    assert isinstance(full, StoreFull)
    assert (full.store, str(full)) == ("disk", "text")
    nested = of(f"{__name__}.Outer.Error", "ValueError")
    assert type(nested) is Outer.Error
    setattr(sys.modules["__main__"], "OwnError", bodies.OddError)  # noqa: B010
    try:
        assert type(of("__main__.OwnError", "ValueError")) is bodies.OddError
        assert type(of("__main__.OwnError", "ValueError", is_script=True)) is ValueError
    finally:
        delattr(sys.modules["__main__"], "OwnError")


class Outer:
    class Error(ValueError): ...


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_a_child_that_a_signal_kills_is_a_crash_and_the_next_job_gets_a_new_one(
    manager: FakeManager, start: Start, number: int
) -> None:
    worker = await start()
    await register(manager, worker, bodies.add, bodies.die, retry_policy="never")
    before = value(await manager.run_job("add", 1))
    report = await manager.run_job("die", number)
    assert (error(report).type, error(report).kind, report.crashed) == ("ChildDied", "crashed", True)
    assert signal.Signals(number).name in error(report).message
    after = value(await manager.run_job("add", 1))
    assert after["pid"] != before["pid"]
    assert is_gone(before["pid"])


async def test_a_child_that_exits_without_a_result_fails_with_its_last_words(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.leave_at_once)
    report = await manager.run_job("leave_at_once", 7)
    assert (error(report).kind, report.crashed, report.retry) == ("exited", False, True)
    assert "exit code 7" in error(report).message
    assert "last words" in error(report).message


async def test_results_that_cannot_be_kept_fail_the_job_for_good(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.returns_a_socket, bodies.returns_nan, bodies.large)
    for name, kind in (("returns_a_socket", "unserialisable"), ("returns_nan", "unserialisable")):
        report = await manager.run_job(name)
        assert (error(report).kind, report.retry) == (kind, False)
    report = await manager.run_job("large", MAX_RESULT)
    assert (error(report).kind, report.retry) == ("too_large", False)
    assert len(value(await manager.run_job("large", MAX_RESULT - 2))) == MAX_RESULT - 2


async def test_a_task_that_writes_to_or_closes_our_pipes_fails_clearly(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.garbage, bodies.close_all)
    assert error(await manager.run_job("garbage")).kind == "garbage"
    closed = error(await manager.run_job("close_all"))
    assert closed.kind == "exited"
    assert "closed file descriptors" in closed.message


async def test_what_is_printed_is_no_result_and_is_told_with_its_attempt(
    manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start()
    told: list[tuple[int, str, str]] = []
    worker._pool.on_output = lambda attempt, stream, text: told.append((attempt._claimed.seq, stream, text))
    await register(manager, worker, bodies.speak, bodies.flood)
    seq = manager.add("speak", 3, "zürich")
    await manager.give()
    assert value(await manager.report(seq)) == 3
    assert {one[0] for one in told} == {seq}
    for stream, word in (("stdout", "zürich"), ("stderr", "error")):
        assert "".join(text for _, name, text in told if name == stream) == "".join(f"{word} {n}\n" for n in range(3))
    told.clear()
    assert value(await manager.run_job("flood", 3 << 20)) == 3 << 20
    assert 1 << 20 <= sum(len(text) for _, _, text in told) < (1 << 20) + 200
    assert "left out" in told[-1][2]


async def test_what_is_printed_goes_to_the_log(manager: FakeManager, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start()
    await register(manager, worker, bodies.speak)
    with caplog.at_level(logging.INFO, "easyjobs.child"):
        await manager.run_job("speak", 1)
    lines = [getattr(record, "fields") for record in caplog.records if record.name == "easyjobs.child"]  # noqa: B009
    assert {(line["stream"], line["text"]) for line in lines} == {("stdout", "line 0"), ("stderr", "error 0")}
    assert {(line.logger, line.text) for line in manager.lines} == {("stdout", "line 0"), ("stderr", "error 0")}
    assert manager.order[-1] == "reports"


@given(st.text(), st.lists(st.integers(0, 60)))
def test_however_output_comes_it_is_told_in_order_and_in_whole_lines(text: str, cuts: list[int]) -> None:
    told: list[str] = []
    output = Output(lambda _, part: told.append(part))
    data = text.encode("utf-8", "replace")
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in pairwise(places):
        output.feed("stderr", data[begin:end])
    assert all(part.endswith("\n") for part in told)
    output.close()
    assert "".join(told) == data.decode()
    assert output.tail == data.decode()[-child_module.TAIL :]


def test_a_line_without_an_end_is_told_when_it_is_long_and_bytes_that_are_no_text_are_replaced() -> None:
    told: list[str] = []
    output = Output(lambda _, part: told.append(part))
    output.feed("stdout", b"x" * (child_module.MAX_LINE + 1))
    assert [len(part) for part in told] == [child_module.MAX_LINE + 1]
    output.feed("stdout", b"\xff\xc3")
    output.close()
    assert told[1:] == ["\ufffd\ufffd"]


async def test_a_listener_that_raises_costs_only_what_was_printed(manager: FakeManager, start: Start) -> None:
    worker = await start()

    def broken(*_: Any) -> None:
        raise RuntimeError("full")

    worker._pool.on_output = broken
    await register(manager, worker, bodies.speak)
    assert value(await manager.run_job("speak", 2)) == 2


async def test_a_child_inherits_no_secret_and_no_descriptor_but_its_two_pipes(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = ("EASYJOBS_SECRET", "EASYJOBS_SECRET_FILE", "EASYJOBS_OWN_SECRET", "EASYJOBS_TOKEN", "EASYJOBS_STORE", "EASYJOBS_BROKER_PATH")
    worker = await start()
    for name in private:
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("EASYJOBS_GRACE_S", "5")
    await register(manager, worker, bodies.environment, bodies.descriptors)
    names = value(await manager.run_job("environment"))
    assert not {*private, "EASYJOBS_CHILD"} & set(names)
    assert {"PATH", "EASYJOBS_GRACE_S"} <= set(names)
    assert sorted(place.partition(":")[0] for place in value(await manager.run_job("descriptors"))) == ["pipe", "pipe"]


async def test_more_memory_than_max_memory_is_an_error_that_says_so(manager: FakeManager, start: Start) -> None:
    worker = await start(1)
    await register(manager, worker, bodies.grow, bodies.add, max_memory="256MB")
    assert value(await manager.run_job("grow", 10)) == 10
    pid = value(await manager.run_job("add", 1))["pid"]
    report = await manager.run_job("grow", 400)
    assert (error(report).type, error(report).message) == ("MemoryError", "the task needed more memory than max_memory, 256 MB")
    assert report.crashed is False
    assert value(await manager.run_job("add", 1))["pid"] != pid  # that child is not used again
    await gone(pid)


async def test_children_of_different_limits_are_not_shared(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.add, max_memory="256MB")
    worker.task(bodies.add, name="free", subprocess=True)
    await manager.seen(lambda: "free" in manager.offers)
    limited = value(await manager.run_job("add", 1))["pid"]
    free = value(await manager.run_job("free", 1))["pid"]
    assert limited != free
    assert value(await manager.run_job("add", 1))["pid"] == limited


# --- timeouts, cancels, ends ----------------------------------------------------------------------------------------------------


async def test_a_timeout_ends_the_child_and_its_grandchild(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    worker = await start()
    await register(manager, worker, bodies.add, bodies.with_a_grandchild)
    warm = value(await manager.run_job("add", 1))["pid"]
    seq = manager.add("with_a_grandchild", str(tmp_path / "pids"), timeout_us=1_500_000)
    await manager.give()
    pids = [int(pid) for pid in (await soon("both run", lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())).split()]
    report = await manager.report(seq)
    assert (error(report).type, error(report).kind, report.retry, report.crashed) == ("TimeoutError", "timeout", True, False)
    assert "1.5 s" in error(report).message
    assert pids[0] == warm
    await gone(*pids)
    assert worker._pool._children.idle == []


async def test_a_computation_that_never_comes_back_ends_with_its_timeout(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    worker = await start()
    await register(manager, worker, bodies.add, bodies.spin)
    await manager.run_job("add", 1)
    seq = manager.add("spin", str(tmp_path / "pid"), timeout_us=1_000_000)
    await manager.give()
    assert error(await manager.report(seq)).kind == "timeout"
    assert is_gone(int((tmp_path / "pid").read_text()))


async def test_a_child_that_ignores_sigterm_is_killed(
    manager: FakeManager, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "KILL_AFTER_S", 0.1)
    worker = await start()
    await register(manager, worker, bodies.ignores_sigterm)
    manager.requeue_released = False
    seq = manager.add("ignores_sigterm", str(tmp_path / "pid"))
    await manager.give()
    pid = int(await soon("it runs", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    await manager.cancel(seq)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED
    assert is_gone(pid)


@pytest.mark.parametrize("name", ["cleans_up", "cleans_up_async"])
async def test_a_cancel_runs_finally_blocks_and_gives_the_job_back(manager: FakeManager, start: Start, tmp_path: Path, name: str) -> None:
    worker = await start()
    manager.requeue_released = False
    await register(manager, worker, getattr(bodies, name))
    seq = manager.add(name, str(tmp_path / "started"), str(tmp_path / "cleaned"))
    await manager.give()
    await soon("it runs", (tmp_path / "started").exists)
    await manager.cancel(seq)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED
    assert (tmp_path / "cleaned").exists()
    assert worker._pool.free == 3


async def test_a_job_that_is_cancelled_while_its_child_starts_does_not_run(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start()
    starting, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    take = Children._take

    def slow(self: Children, max_memory: int | None) -> Any:
        loop.call_soon_threadsafe(starting.set)
        go_on.wait(10)
        return take(self, max_memory)

    monkeypatch.setattr(Children, "_take", slow)
    await register(manager, worker, bodies.add)
    manager.requeue_released = False
    seq = manager.add("add", 1)
    await manager.give()
    await starting.wait()
    await manager.cancel(seq)
    await soon("the worker knows", lambda: [one.stop for one in worker._pool._running] != [None])
    go_on.set()
    assert (await manager.report(seq)).outcome is Outcome.RELEASED


async def test_a_worker_that_closes_gives_the_job_back_and_leaves_no_process(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    worker = await start(grace_s=0.2)
    await register(manager, worker, bodies.add, bodies.with_a_grandchild)
    seq = manager.add("with_a_grandchild", str(tmp_path / "pids"))
    await manager.give()
    pids = (await soon("both run", lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())).split()
    idle = value(await manager.run_job("add", 1))["pid"]
    await worker.close()
    assert manager.reports_of[seq][0].outcome is Outcome.RELEASED
    await gone(*map(int, pids), idle)


async def test_a_child_that_the_supervisor_ends_with_its_worker_is_no_crash(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    worker = await start(grace_s=20)
    manager.requeue_released = False
    await register(manager, worker, bodies.cleans_up)
    seq = manager.add("cleans_up", str(tmp_path / "started"), str(tmp_path / "cleaned"))
    await manager.give()
    await soon("it runs", (tmp_path / "started").exists)
    [attempt] = worker._pool._running
    assert attempt.child is not None
    os.kill(attempt.child.pid, signal.SIGTERM)  # systemd tells all processes of the service
    await worker.close()
    assert manager.reports_of[seq][0].outcome is Outcome.RELEASED


async def test_as_many_children_as_slots_run_at_once(manager: FakeManager, start: Start) -> None:
    worker = await start(2)
    await register(manager, worker, bodies.add)
    seqs = [manager.add("add", n) for n in range(20)]
    await manager.give()
    pids = {value(await manager.report(seq))["pid"] for seq in seqs}
    assert 1 <= len(pids) <= 2
    assert set(worker._pool._children.idle) == pids


async def test_a_new_child_takes_the_place_of_an_idle_one_when_there_are_as_many_as_slots(
    manager: FakeManager, start: Start, task_dir: Path
) -> None:
    worker = await start(1)
    await register(manager, worker, bodies.add)
    worker.task(bodies.add, name="limited", subprocess=True, max_memory="256MB")
    await manager.seen(lambda: "limited" in manager.offers)
    await register_file(manager, worker, task_dir, TEMPLATE.format(function="def work(a):\n    return a"))
    free = value(await manager.run_job("add", 1))["pid"]
    limited = value(await manager.run_job("limited", 1))["pid"]
    assert is_gone(free)
    assert worker._pool._children.idle == [limited]
    assert value(await manager.run_job("work", 1)) == 1
    assert is_gone(limited)
    assert worker._pool._children.idle == []


async def test_a_timeout_of_a_year_is_waited_for(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.add)
    seq = manager.add("add", 1, timeout_us=366 * 86_400_000_000)
    await manager.give()
    assert value(await manager.report(seq))["sum"] == 2


async def test_an_idle_child_ends_after_its_time(manager: FakeManager, start: Start) -> None:
    worker = await start()
    worker._pool._children = Children(3, idle_s=0.05)
    await register(manager, worker, bodies.add)
    pid = value(await manager.run_job("add", 1))["pid"]
    await soon("it ends", lambda: is_gone(pid) and not worker._pool._children.idle)
    assert value(await manager.run_job("add", 1))["pid"] != pid


async def test_an_idle_child_that_somebody_killed_is_replaced(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await register(manager, worker, bodies.add)
    pid = value(await manager.run_job("add", 1))["pid"]
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    assert value(await manager.run_job("add", 1))["pid"] != pid


async def test_without_pidfds_it_works_too(manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    worker = await start()
    await register(manager, worker, bodies.add, bodies.die)
    pid = value(await manager.run_job("add", 1))["pid"]
    assert (await manager.run_job("die", signal.SIGKILL)).crashed
    assert value(await manager.run_job("add", 1))["pid"] != pid


async def test_a_process_that_cannot_be_started_fails_the_attempt(
    manager: FakeManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start()
    await register(manager, worker, bodies.add)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        report = await manager.run_job("add", 1)
    assert (error(report).type, report.retry) == ("FileNotFoundError", True)


def test_a_child_without_the_kernels_help_ends_with_its_worker_too() -> None:
    code = """
import fcntl, os, subprocess, sys, threading
del fcntl.F_SETSIG  # as on macOS
from easyjobs.workers.task import pipes
pipes.tie()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pipes.write(b"B")
threading.Event().wait()
"""
    child = Child([sys.executable, "-c", code], clean_environment())
    try:
        group = f"/proc/{child.pid}/task/{child.pid}/children"
        [grandchild] = until("it has one", lambda: [int(pid) for pid in Path(group).read_text().split()])
        os.close(child._jobs)  # what the end of the worker does
        child._jobs = -1
        until("they are gone", lambda: is_gone(child.pid) and is_gone(grandchild), 5)
    finally:
        child.end()


# --- files ----------------------------------------------------------------------------------------------------------------------


async def test_a_file_is_a_process_of_its_own_each_time(manager: FakeManager, start: Start, task_dir: Path) -> None:
    worker = await start()
    function = (
        "def work(a, b=2, *args, **kwargs):\n    import os\n    print('not the result')\n    return [a, b, args, kwargs, os.getpid()]"
    )
    await register_file(manager, worker, task_dir, TEMPLATE.format(function=function))
    first, second = value(await manager.run_job("work", 1, 3, "x", y={"z": None})), value(await manager.run_job("work", "ü"))
    assert first[:4] == [1, 3, ["x"], {"y": {"z": None}}]
    assert second[:4] == ["ü", 2, [], {}]
    assert first[4] != second[4]
    assert is_gone(first[4])
    assert is_gone(second[4])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("async def work(a):\n    import asyncio\n    await asyncio.sleep(0)\n    return a", 1),
        ("def work(a):\n    import datetime\n    return datetime.date(2026, 11, 24)", "2026-11-24"),
        ("def work(a):\n    return {'result': f'{a}', 1: None, 'set': {3}}", {"result": "1", "1": None, "set": [3]}),
        ("def work(a):\n    return None", None),
        ("def work(a):\n    return 'failed'", "failed"),
    ],
)
async def test_results_of_files_are_written_as_those_of_threads(
    manager: FakeManager, start: Start, task_dir: Path, function: str, expected: Any
) -> None:
    worker = await start()
    await register_file(manager, worker, task_dir, TEMPLATE.format(function=function))
    assert value(await manager.run_job("work", 1)) == expected


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (TEMPLATE.format(function="def work(a):\n    raise KeyError(a)"), "exception", "1"),
        (TEMPLATE.format(function="def work(a):\n    import sys\n    sys.exit(0)"), "exception", "sys.exit(0)"),
        (TEMPLATE.format(function="def work(other, names):\n    return 1"), "exception", "missing 1 required positional argument"),
        (TEMPLATE.format(function="def work(a):\n    return object()"), "unserialisable", "builtins.object"),
        (TEMPLATE.format(function="def work(a):\n    import os\n    os._exit(3)"), "exited", "exit code 3"),
        (TEMPLATE.format(function="def work(a):\n    import os\n    os.kill(os.getpid(), 9)"), "crashed", "SIGKILL"),
        (TEMPLATE.format(function="def work(a) return 1"), "exited", "SyntaxError"),
        ("import nothing_like_this", "exited", "ModuleNotFoundError"),
        ("def work(a): return 1", "exited", "if __name__ == '__main__': work()"),
        (TEMPLATE.format(function="def work(a):\n    return float('inf')"), "unserialisable", "inf"),
        (TEMPLATE.format(function="def work(a):\n    x = []\n    x.append(x)\n    return x"), "unserialisable", "circle"),
    ],
)
async def test_a_file_that_does_not_give_a_result_says_why(
    manager: FakeManager, start: Start, task_dir: Path, text: str, kind: str, words: str
) -> None:
    worker = await start()
    await register_file(manager, worker, task_dir, text)
    report = await manager.run_job("work", 1)
    assert error(report).kind == kind
    assert words in error(report).message
    assert report.crashed is (kind == "crashed")


async def test_the_traceback_of_a_file_begins_in_the_file(manager: FakeManager, start: Start, task_dir: Path) -> None:
    worker = await start()
    await register_file(manager, worker, task_dir, TEMPLATE.format(function="def work(a):\n    raise KeyError(a)"))
    report = error(await manager.run_job("work", 1))
    assert report.type == "KeyError"
    assert report.traceback.startswith(f'Traceback (most recent call last):\n  File "{task_dir / "work.py"}", line 6, in work')


async def test_a_file_that_leaves_processes_behind_has_them_ended(manager: FakeManager, start: Start, task_dir: Path) -> None:
    worker = await start()
    function = "def work(a):\n    import subprocess as s\n    return s.Popen(['sleep', '600']).pid"
    await register_file(manager, worker, task_dir, TEMPLATE.format(function=function))
    await gone(value(await manager.run_job("work", 1)))


async def test_a_file_that_does_not_end_after_its_result_is_ended(
    manager: FakeManager, start: Start, task_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "LINGER_S", 0.1)
    worker = await start()
    function = "def work(a):\n    import threading, os\n    threading.Thread(target=threading.Event().wait).start()\n    return os.getpid()"
    await register_file(manager, worker, task_dir, TEMPLATE.format(function=function))
    await gone(value(await manager.run_job("work", 1)))


async def test_a_files_arguments_go_through_the_pipe_alone(manager: FakeManager, start: Start, task_dir: Path) -> None:
    worker = await start()
    function = (
        "def work(a):\n    import os, sys\n"
        "    return [open('/proc/self/cmdline').read(), open('/proc/self/environ').read(), sys.argv, dict(os.environ)]"
    )
    await register_file(manager, worker, task_dir, TEMPLATE.format(function=function))
    seen = value(await manager.run_job("work", "personal data"))
    assert "personal data" not in json.dumps(seen)
    assert "EASYJOBS_CHILD" not in seen[3]
    assert seen[2] == [str(task_dir / "work.py")]


def test_the_template_loads_only_the_standard_library_and_little_of_it(tmp_path: Path) -> None:
    code = "from easyjobs.workers.task import subprocess\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, timeout=30, check=True)
    before = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        env=clean_environment(), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    loaded = set(json.loads(said.stdout)) - set(json.loads(before.stdout))
    assert loaded <= {"easyjobs", "easyjobs.workers", "easyjobs.workers.task", "__future__", "signal", "_signal"}


def test_a_file_can_be_tried_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "work.py"
    file.write_text(TEMPLATE.format(function="async def work(a, b=None):\n    return {'a': a, 'b': b}"))

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(file), *argv], env=clean_environment(), capture_output=True, text=True, timeout=30, check=False
        )

    assert json.loads(run("[1]", "text").stdout) == {"a": [1], "b": "text"}
    assert "missing 1 required positional argument" in run().stderr


def test_a_child_program_that_nobody_started_says_so() -> None:
    ran = subprocess.run([sys.executable, "-c", MAIN], env=clean_environment(), capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 1
    assert "started by an easyjobs worker" in ran.stderr
