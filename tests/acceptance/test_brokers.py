"""The seed's manager with RabbitMQ, and a producer, as a user runs them; the broker and the manager are killed meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyjobs.errors import BrokerError
from easyjobs.producers.rabbitmq import get_producer_channel
from tests.acceptance.seed import PROGRAMS
from tests.processes import Processes, Served, free_port, until
from tests.rabbit import Rabbit, rabbit

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rabbit]:
    with rabbit(tmp_path) as running:
        yield running


def start(started: Processes, directory: Path, url: str, port: int | None = None) -> Served:
    env = {"TEST_DB_PATH": str(directory / "database"), "TEST_BROKER": url}
    return started.uvicorn("broker_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()


def jobs(manager: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = manager.get(f"/jobs/api/v1/jobs?limit=500{cursor}")
        found += page["items"]
        if not page.get("next_cursor"):
            return found
        cursor = f"&cursor={page['next_cursor']}"


def test_a_producer_sends_first_and_the_manager_consumes_later(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    async def produce() -> None:
        async with await get_producer_channel(server.url, "DEFAULT") as channel:
            await channel.send_job({"namespace": "DEFAULT", "name": "basic_job", "args": [1, 2, 3, 4], "kwargs": {}})
            await channel.send_jobs([{"job": {"name": "basic_job", "args": [n, 2, 3]}} for n in range(100)] + [{"name": "nobody"}])

    asyncio.run(produce())
    manager = start(started, tmp_path, server.url)
    manager.wait_for_line("basic_job: 1 2 3 - args (4,)")
    until("all jobs have run", lambda: sum(job["status"] == "succeeded" for job in jobs(manager)) == 101)
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"rabbitmq": "up"}}
    [bad] = until("the unknown task is put aside", lambda: manager.get("/jobs/api/v1/quarantine")["items"])
    assert bad["reason"] == "unknown_task"
    assert "guest:guest" not in manager.log


def test_without_its_broker_a_manager_serves_http_and_says_so(started: Processes, tmp_path: Path) -> None:
    manager = start(started, tmp_path, f"amqp://guest:pass-word@127.0.0.1:{free_port()}/")
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"rabbitmq": "down"}}
    job = manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3})
    manager.until_status(job, "succeeded")
    manager.wait_for_line("broker.down")
    assert "pass-word" not in manager.log


async def produce(url: str, numbers: range, confirmed: set[int]) -> None:
    try:
        async with await get_producer_channel(url, "DEFAULT") as channel:
            for at in range(numbers.start, numbers.stop, 250):
                some = range(at, min(at + 250, numbers.stop))
                await channel.send_jobs([{"name": "basic_job", "args": [n, 0, 0]} for n in some])
                confirmed.update(some)
    except BrokerError:
        pass  # what was under way is in doubt, and may be there


def assert_each_is_one_job(manager: Served, confirmed: set[int]) -> None:
    until("every confirmed message is a job", lambda: confirmed <= {job["args"][0] for job in jobs(manager)}, 60, 0.5)
    assert {n: count for n, count in Counter(job["args"][0] for job in jobs(manager)).items() if count > 1} == {}


def test_every_confirmed_message_is_one_job_though_the_manager_is_killed(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    manager = start(started, tmp_path, server.url)
    confirmed: set[int] = set()

    async def with_kills() -> None:
        nonlocal manager
        producing = asyncio.create_task(produce(server.url, range(10_000), confirmed))
        for so_many in (2000, 5000):
            async with asyncio.timeout(60):
                while len(confirmed) < so_many and not producing.done():
                    await asyncio.wait([producing], timeout=0.005)
            await asyncio.to_thread(manager.kill)
            manager = await asyncio.to_thread(start, started, tmp_path, server.url, manager.port)
        await producing

    asyncio.run(with_kills())
    assert len(confirmed) == 10_000
    assert_each_is_one_job(manager, confirmed)


def test_every_confirmed_message_is_one_job_though_the_broker_is_restarted(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    manager = start(started, tmp_path, server.url)
    confirmed: set[int] = set()

    async def with_a_restart() -> None:
        producing = asyncio.create_task(produce(server.url, range(10_000), confirmed))
        async with asyncio.timeout(60):
            while len(confirmed) < 2000 and not producing.done():
                await asyncio.wait([producing], timeout=0.005)
        await asyncio.to_thread(server.kill, signal.SIGTERM)
        await producing

    asyncio.run(with_a_restart())
    server.start()
    asyncio.run(produce(server.url, range(10_000, 15_000), confirmed))
    assert len(confirmed) >= 7000
    assert_each_is_one_job(manager, confirmed)
