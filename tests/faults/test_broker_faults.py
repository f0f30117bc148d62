"""Redis and NATS under faults: every confirmed message is exactly one job, whoever is killed, restarted, cut off or deleted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.brokers_under_test import Under, assert_each_is_one_job, jobs, produce, under
from tests.faults.proxy import Proxy
from tests.processes import Processes, Served, until

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(params=["redis", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Under]:
    with under(request.param, tmp_path / "broker") as running:
        yield running


def start(started: Processes, directory: Path, url: str, port: int | None = None) -> Served:
    env = {"DB_PATH": str(directory / "database"), "TEST_BROKER": url, "TEST_DIE": str(directory / "die")}
    return started.uvicorn("broker_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()


async def while_producing(broker: Under, part: int, confirmed: set[int], faults: Sequence[Callable[[], None]]) -> None:
    """Send `part` jobs for each fault, which happens in a thread in the middle of them, while the producer goes on."""
    for number, fault in enumerate(faults):
        begun = len(confirmed)
        producing = asyncio.create_task(produce(broker, range(number * part, (number + 1) * part), confirmed, by=20))
        async with asyncio.timeout(60):
            while len(confirmed) < begun + part / 4 and not producing.done():
                await asyncio.wait([producing], timeout=0.005)
        assert not producing.done(), "the fault came too late"
        await asyncio.to_thread(fault)
        await producing


@pytest.mark.parametrize("end", [Served.kill, Served.stop])
def test_the_manager_is_ended_twice(started: Processes, tmp_path: Path, broker: Under, end: Callable[[Served], object]) -> None:
    manager = start(started, tmp_path, broker.url)
    confirmed: set[int] = set()

    def kill() -> None:
        nonlocal manager
        end(manager)
        manager = start(started, tmp_path, broker.url, manager.port)

    asyncio.run(while_producing(broker, 3000, confirmed, [kill, kill]))
    assert len(confirmed) == 6000
    assert_each_is_one_job(manager, confirmed)


def test_the_manager_is_killed_between_commit_and_acknowledgement(started: Processes, tmp_path: Path, broker: Under) -> None:
    manager = start(started, tmp_path, broker.url)
    confirmed: set[int] = set()
    asyncio.run(produce(broker, range(50), confirmed))
    assert_each_is_one_job(manager, confirmed)
    (tmp_path / "die").touch()
    asyncio.run(produce(broker, range(50, 100), confirmed))
    manager.wait(20)
    (tmp_path / "die").unlink()
    manager = start(started, tmp_path, broker.url, manager.port)
    asyncio.run(produce(broker, range(100, 150), confirmed))
    assert_each_is_one_job(manager, confirmed)

    async def is_empty() -> bool:
        from easyjobs.brokers import open_broker

        other = open_broker(broker.url)
        await other.connect()
        try:
            if broker.kind == "redis":
                return bool(await other._client.xlen("DEFAULT") == 0)  # type: ignore[attr-defined]
            return bool((await other._connection.js.stream_info("DEFAULT")).state.messages == 0)  # type: ignore[attr-defined]
        finally:
            await other.close()

    # What was committed and not acknowledged has come again, made no job, and is acknowledged.
    until("nothing is left", lambda: asyncio.run(is_empty()), 20, 0.3)
    assert_each_is_one_job(manager, confirmed)
    assert len(jobs(manager)) == 150


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_broker_is_ended_and_started_again(started: Processes, tmp_path: Path, broker: Under, number: signal.Signals) -> None:
    manager = start(started, tmp_path, broker.url)
    confirmed: set[int] = set()

    def restart() -> None:
        broker.server.kill(number)
        broker.server.start()

    asyncio.run(while_producing(broker, 3000, confirmed, [restart, restart]))
    assert len(confirmed) >= 2000
    asyncio.run(produce(broker, range(6000, 6500), confirmed))
    assert_each_is_one_job(manager, confirmed)
    assert set(range(6000, 6500)) <= confirmed


def test_the_managers_connection_is_cut(started: Processes, tmp_path: Path, broker: Under) -> None:
    with Proxy(broker.server.port) as proxy:
        manager = start(started, tmp_path, broker.url.replace(str(broker.server.port), str(proxy.port)))
        confirmed: set[int] = set()
        asyncio.run(while_producing(broker, 1500, confirmed, [proxy.cut] * 3))
        assert len(confirmed) == 4500
        assert_each_is_one_job(manager, confirmed)


def test_the_managers_connection_falls_silent(started: Processes, tmp_path: Path, broker: Under) -> None:
    with Proxy(broker.server.port) as proxy:
        manager = start(started, tmp_path, broker.url.replace(str(broker.server.port), str(proxy.port)))
        confirmed: set[int] = set()
        asyncio.run(produce(broker, range(100), confirmed))
        assert_each_is_one_job(manager, confirmed)
        proxy.to_manager.clear()
        asyncio.run(produce(broker, range(100, 200), confirmed))
        manager.wait_for_line("broker.down", 40)
        assert manager.get("/jobs/readyz")["brokers"] == {broker.kind: "down"}
        proxy.cut()
        proxy.to_manager.set()
        assert_each_is_one_job(manager, confirmed)


def test_the_queue_is_deleted_while_it_is_consumed(started: Processes, tmp_path: Path, broker: Under) -> None:
    manager = start(started, tmp_path, broker.url)
    before: set[int] = set()
    asyncio.run(produce(broker, range(200), before))
    assert_each_is_one_job(manager, before)
    asyncio.run(broker.delete("DEFAULT"))
    after: set[int] = set()
    asyncio.run(produce(broker, range(200, 400), after))
    assert len(after) == 200
    assert_each_is_one_job(manager, before | after)
    manager.wait_for_line("broker.down")
