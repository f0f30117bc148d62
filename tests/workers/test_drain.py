"""How a worker process ends: real processes, real signals, in each way of starting one."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from easyjobs.domain.job import Outcome
from tests.processes import Process, Processes
from tests.workers.fake import SECRET, FakeManager

TASKS = """
import asyncio, os, time
from easyjobs.workers.worker import EasyJobsWorker

async def start(server=None):
    worker = await EasyJobsWorker.create(
        server, manager_port=int(os.environ["PORT"]), manager_secret=os.environ["SECRET"], max_tasks_per_worker=2
    )

    @worker.task()
    async def nap(seconds: float) -> str:
        print("napping", flush=True)
        await asyncio.sleep(seconds)
        return "rested"

    @worker.task()
    def block(seconds: float) -> str:
        print("blocking", flush=True)
        time.sleep(seconds)
        return "unblocked"

    return worker
"""
SCRIPT = (
    TASKS
    + """
async def main():
    try:
        await start()
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

asyncio.run(main())
"""
)
UVLOOP_SCRIPT = SCRIPT.replace("asyncio.run(main())", "import uvloop; uvloop.run(main())")
ON_EVENT = (
    TASKS
    + """
from fastapi import FastAPI
server = FastAPI()

@server.on_event("startup")
async def startup():
    await start(server)

@server.on_event("shutdown")
async def shutdown():
    print("cleaned up", flush=True)
"""
)
LIFESPAN = (
    TASKS
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(server):
    await start(server)
    yield
    print("cleaned up", flush=True)

server = FastAPI(lifespan=lifespan)
"""
)
PROGRAMS = {"script": SCRIPT, "uvloop script": UVLOOP_SCRIPT, "on_event": ON_EVENT, "lifespan": LIFESPAN}


def launch(started: Processes, directory: Path, how: str, port: int, *options: str, **env: str) -> Process:
    (directory / "program.py").write_text(textwrap.dedent(PROGRAMS[how]))
    env = {"PORT": str(port), "SECRET": SECRET, **env}
    if "script" in how:
        return started.program([sys.executable, "program.py"], name=how, env=env, cwd=directory)
    return started.uvicorn("program:server", *options, directory=directory, name=how, env=env)


async def said(process: Process, text: str, within_s: float = 20.0) -> None:
    await asyncio.to_thread(process.wait_for_line, text, within_s)


async def ended(process: Process, within_s: float = 20.0) -> int:
    return await asyncio.to_thread(process.wait, within_s)


async def ready(manager: FakeManager, workers: int = 1) -> None:
    await manager.seen(lambda: len(manager.hellos) >= workers and len(manager.told) == 2 and manager.limit > 0, 40)
    manager.requeue_released = False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", PROGRAMS)
async def test_a_signal_lets_running_jobs_finish_and_the_process_end_cleanly(
    manager: FakeManager, started: Processes, tmp_path: Path, how: str, number: signal.Signals
) -> None:
    process = launch(started, tmp_path, how, manager.port)
    await ready(manager)
    seqs = [manager.add("nap", 1.0), manager.add("block", 1.0)]
    await manager.give()
    await said(process, "napping")
    await said(process, "blocking")
    process.signal(number)
    assert [(await manager.report(seq)).body for seq in seqs] == [b'"rested"', b'"unblocked"']
    assert await ended(process) == 0, process.log
    assert "cleaned up" in process.log
    assert "Traceback" not in process.log


@pytest.mark.parametrize("how", ["script", "lifespan"])
async def test_what_does_not_finish_within_the_grace_is_given_back(
    manager: FakeManager, started: Processes, tmp_path: Path, how: str
) -> None:
    process = launch(started, tmp_path, how, manager.port, EASYJOBS_GRACE_S="0.5")
    await ready(manager)
    seqs = [manager.add("nap", 60), manager.add("block", 60)]
    await manager.give()
    await said(process, "napping")
    await said(process, "blocking")
    process.signal(signal.SIGTERM)
    assert [(await manager.report(seq)).outcome for seq in seqs] == [Outcome.RELEASED] * 2
    assert await ended(process, 10) == 0, process.log


@pytest.mark.parametrize("how", ["script", "on_event"])
async def test_a_second_signal_of_the_same_kind_skips_the_wait(manager: FakeManager, started: Processes, tmp_path: Path, how: str) -> None:
    process = launch(started, tmp_path, how, manager.port)
    await ready(manager)
    seq = manager.add("nap", 60)
    await manager.give()
    await said(process, "napping")
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGINT)  # of another kind: the same request, as under `uvicorn --workers`
    with pytest.raises(TimeoutError):
        await manager.report(seq, seconds=1.0)
    process.signal(signal.SIGTERM)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED
    assert await ended(process, 10) == 0, process.log


async def test_five_uvicorn_workers_drain_each_on_its_own(manager: FakeManager, started: Processes, tmp_path: Path) -> None:
    process = launch(started, tmp_path, "on_event", manager.port, "--workers=5")
    await ready(manager, 5)
    seq = manager.add("nap", 1.0)
    await manager.give()
    await said(process, "napping")
    process.signal(signal.SIGTERM)
    assert (await manager.report(seq)).body == b'"rested"'
    assert await ended(process) == 0, process.log
    assert len({hello.session for hello in manager.hellos}) == 5


@pytest.mark.parametrize("how", ["script", "on_event"])
async def test_a_process_whose_reports_were_not_acknowledged_ends_with_1(
    manager: FakeManager, started: Processes, tmp_path: Path, how: str
) -> None:
    process = launch(started, tmp_path, how, manager.port, EASYJOBS_GRACE_S="1")
    await ready(manager)
    manager.ack = False
    await manager.run_job("nap", 0)
    process.signal(signal.SIGTERM)
    assert await ended(process, 15) == 1, process.log


async def with_a_report_and_no_manager(manager: FakeManager, process: Process) -> int:
    """A job ends while the manager is away, and the worker is told to end. Returns the job's seq."""
    await ready(manager)
    seq = manager.add("nap", 1.0)
    await manager.give()
    await said(process, "napping")
    await manager.stop()
    process.signal(signal.SIGTERM)
    return seq


@pytest.mark.parametrize("how", ["script", "on_event"])
async def test_a_report_is_delivered_to_a_manager_that_comes_back_within_the_grace(
    manager: FakeManager, started: Processes, tmp_path: Path, how: str
) -> None:
    process = launch(started, tmp_path, how, manager.port, EASYJOBS_GRACE_S="300")
    seq = await with_a_report_and_no_manager(manager, process)
    await said(process, "worker.holds_on reports=1")  # what there is to say in general has had its time
    await manager.start(manager.port)
    assert (await manager.report(seq)).body == b'"rested"'
    assert await ended(process) == 0, process.log
    assert "reports.undelivered" not in process.log


async def test_a_manager_that_does_not_come_back_within_the_grace_is_waited_for_no_longer(
    manager: FakeManager, started: Processes, tmp_path: Path
) -> None:
    process = launch(started, tmp_path, "script", manager.port, EASYJOBS_GRACE_S="6")
    await with_a_report_and_no_manager(manager, process)
    assert await ended(process, 60) == 1, process.log
    assert "worker.holds_on reports=1" in process.log
    assert "reports.undelivered ended=1 given_back=0" in process.log


async def test_a_second_signal_does_not_wait_for_the_manager(manager: FakeManager, started: Processes, tmp_path: Path) -> None:
    process = launch(started, tmp_path, "script", manager.port, EASYJOBS_GRACE_S="600")
    await with_a_report_and_no_manager(manager, process)
    await said(process, "worker.holds_on")
    process.signal(signal.SIGTERM)
    assert await ended(process, 60) == 1, process.log
    assert "reports.undelivered ended=1" in process.log


async def test_a_manager_that_refuses_the_worker_is_not_waited_for(manager: FakeManager, started: Processes, tmp_path: Path) -> None:
    process = launch(started, tmp_path, "script", manager.port, EASYJOBS_GRACE_S="600")
    await with_a_report_and_no_manager(manager, process)
    await said(process, "worker.holds_on")
    other = FakeManager(secret="another secret, as long as the first one")
    await other.start(manager.port)
    try:
        assert await ended(process, 60) == 1, process.log
    finally:
        await other.stop()
    assert "reports.undelivered ended=1" in process.log


async def test_without_anything_to_deliver_the_manager_is_not_waited_for(manager: FakeManager, started: Processes, tmp_path: Path) -> None:
    process = launch(started, tmp_path, "script", manager.port, EASYJOBS_GRACE_S="600")
    await ready(manager)
    await manager.run_job("nap", 0)
    await manager.stop()
    process.signal(signal.SIGTERM)
    assert await ended(process, 60) == 0, process.log
    assert "worker.holds_on" not in process.log


@pytest.mark.parametrize("how", PROGRAMS)
async def test_a_wrong_secret_ends_the_process_with_an_error(manager: FakeManager, started: Processes, tmp_path: Path, how: str) -> None:
    process = launch(started, tmp_path, how, manager.port, SECRET="wrong, but as long as a good one is")
    assert await ended(process) != 0
    assert "AccessRefused" in process.log
    assert "wrong, but as long" not in process.log


@pytest.mark.parametrize("how", ["script", "lifespan", "on_event"])
async def test_a_secret_refused_by_a_manager_that_came_later_ends_the_process_with_1(started: Processes, tmp_path: Path, how: str) -> None:
    from tests.processes import free_port

    manager, port = FakeManager(secret="another secret, as long as the first one"), free_port()
    process = launch(started, tmp_path, how, port)
    await said(process, "worker.waits")
    await manager.start(port)
    try:
        assert await ended(process, 15) == 1, process.log
    finally:
        await manager.stop()
    assert "wrong secret" in process.log


async def test_a_script_that_simply_ends_gives_its_jobs_back(manager: FakeManager, started: Processes, tmp_path: Path) -> None:
    program = TASKS + textwrap.dedent("""
        async def main():
            await start()
            await asyncio.sleep(float(os.environ["FOR"]))

        asyncio.run(main())
    """)
    (tmp_path / "program.py").write_text(program)
    env = {"PORT": str(manager.port), "SECRET": SECRET, "FOR": "2.5"}
    process = started.program([sys.executable, "program.py"], name="script", env=env, cwd=tmp_path)
    await ready(manager)
    seqs = [manager.add("nap", 60), manager.add("block", 60)]
    await manager.give()
    await said(process, "napping")
    assert [(await manager.report(seq)).outcome for seq in seqs] == [Outcome.RELEASED] * 2
    assert await ended(process) == 0, process.log


async def test_a_fork_of_a_worker_ends_by_its_own_signal_and_does_not_touch_the_worker(
    manager: FakeManager, started: Processes, tmp_path: Path
) -> None:
    program = TASKS + textwrap.dedent("""
        import multiprocessing, signal

        def child():
            print("forked", flush=True)
            signal.pause()

        async def main():
            worker = await start()

            @worker.task()
            def fork() -> int:
                process = multiprocessing.get_context("fork").Process(target=child)
                process.start()
                time.sleep(0.3)
                process.terminate()
                process.join(10)
                return process.exitcode

            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    (tmp_path / "program.py").write_text(program)
    process = started.program(
        [sys.executable, "program.py"], name="script", env={"PORT": str(manager.port), "SECRET": SECRET}, cwd=tmp_path
    )
    await manager.seen(lambda: len(manager.offers) == 3, 20)
    assert (await manager.run_job("fork")).body == str(-signal.SIGTERM).encode()
    assert (await manager.run_job("nap", 0)).body == b'"rested"'
    process.signal(signal.SIGTERM)
    assert await ended(process) == 0, process.log
