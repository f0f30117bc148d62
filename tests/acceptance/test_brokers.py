"""The seed's manager with RabbitMQ, and a producer, as a user runs them; the broker and the manager are killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyjobs.brokers import open_broker
from easyjobs.errors import BrokerError
from easyjobs.producers.rabbitmq import get_producer_channel
from tests.acceptance.seed import PROGRAMS
from tests.contracts.broker_contract import take
from tests.processes import ROOT, Processes, Served, free_port, until
from tests.rabbit import Rabbit, rabbit

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rabbit]:
    with rabbit(tmp_path) as running:
        yield running


def start(started: Processes, directory: Path, url: str, port: int | None = None, **more: str) -> Served:
    env = {"TEST_DB_PATH": str(directory / "database"), "TEST_BROKER": url, **more}
    return started.uvicorn("broker_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()


def all_jobs(manager: Served) -> list[dict[str, Any]]:
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
    until("all jobs have run", lambda: sum(job["status"] == "succeeded" for job in all_jobs(manager)) == 101)
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"rabbitmq": "up"}}
    [bad] = until("the unknown task is put aside", lambda: manager.get("/jobs/api/v1/quarantine")["items"])
    assert bad["reason"] == "unknown_task"
    assert "guest:guest" not in manager.log


def test_the_seed_s_programs_run_as_they_are_written(tmp_path: Path) -> None:
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("they name port 5672, and this machine gives us no network of our own to use it in")
    command = [*unshare, sys.executable, "-m", "tests.acceptance.seed_broker", str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as written" in ran.stdout


def test_without_its_broker_a_manager_serves_http_and_says_so(started: Processes, tmp_path: Path) -> None:
    manager = start(started, tmp_path, f"amqp://guest:pass-word@127.0.0.1:{free_port()}/")
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"rabbitmq": "down"}}
    job = manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3})
    manager.until_status(job, "succeeded")
    manager.wait_for_line("broker.down")
    assert "pass-word" not in manager.log


def test_wrong_credentials_are_said_and_the_manager_serves_http(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    manager = start(started, tmp_path, server.url.replace("guest:guest", "guest:pass-word"))
    manager.wait_for_line("broker.refused")
    assert "ACCESS_REFUSED" in manager.log
    assert "pass-word" not in manager.log
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"rabbitmq": "down"}}
    job = manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3})
    manager.until_status(job, "succeeded")


def test_of_several_brokers_the_one_that_is_down_is_named_and_stops_no_other(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    more = {"EASYJOBS_BROKERS": f"amqp://guest:guest@127.0.0.1:{free_port()}/ {server.url}", "EASYJOBS_RESULTS_TO": "rabbitmq-3/answers"}
    manager = start(started, tmp_path, server.url, **more)
    up = {"rabbitmq": "up", "rabbitmq-2": "down", "rabbitmq-3": "up"}
    until("two are up", lambda: manager.get("/jobs/readyz")["brokers"] == up)
    job = manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3})
    [answer] = asyncio.run(answers(server.url, "answers", 1))
    assert (answer["job_id"], answer["correlation_id"], answer["result"]) == (job, job, [1, 2, 3])


async def answers(url: str, queue: str, count: int) -> list[dict[str, Any]]:
    """That many messages of a queue."""
    broker = open_broker(url)
    await broker.connect()
    await broker.consume(queue)
    got = [json.loads(delivery.body) for delivery in await take(broker, queue, count)]
    await broker.close()
    return got


def test_every_end_is_told_though_the_manager_is_killed(started: Processes, tmp_path: Path, server: Rabbit) -> None:
    count = 3000
    told: dict[str, Any] = {}
    short = {"EASYJOBS_LEASE_S": "5"}  # what ran when the manager was killed runs again after its lease

    async def with_kills() -> None:
        async with await get_producer_channel(server.url, "DEFAULT") as channel:
            jobs = [{"name": "basic_job", "args": [n, 0, 0], "reply_to": "answers", "id": f"order-{n}"} for n in range(count)]
            await channel.send_jobs(jobs)
        manager = await asyncio.to_thread(start, started, tmp_path, server.url, **short)
        broker = open_broker(server.url)
        await broker.connect()
        await broker.consume("answers")
        kills = [500, 1500]
        async with asyncio.timeout(120):
            while len(told) < count:
                deliveries = await broker.fetch("answers", 100)
                told.update({each["correlation_id"]: each["result"] for each in (json.loads(delivery.body) for delivery in deliveries)})
                await broker.ack("answers", deliveries)
                if kills and len(told) >= kills[0]:
                    kills.pop(0)
                    await asyncio.to_thread(manager.kill)
                    manager = await asyncio.to_thread(start, started, tmp_path, server.url, manager.port, **short)
        await broker.close()
        assert kills == []
        assert len(jobs) == len(await asyncio.to_thread(all_jobs, manager))

    asyncio.run(with_kills())
    assert told == {f"order-{n}": [n, 0, 0] for n in range(count)}


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
    until("every confirmed message is a job", lambda: confirmed <= {job["args"][0] for job in all_jobs(manager)}, 60, 0.5)
    assert {n: count for n, count in Counter(job["args"][0] for job in all_jobs(manager)).items() if count > 1} == {}


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


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_every_confirmed_message_is_one_job_though_the_broker_goes(
    started: Processes, tmp_path: Path, server: Rabbit, how: signal.Signals
) -> None:
    manager = start(started, tmp_path, server.url)
    until("it is consumed from", lambda: manager.get("/jobs/readyz")["brokers"] == {"rabbitmq": "up"})
    asyncio.run(produce(server.url, range(0), set()))  # makes the queue, if the manager has not yet
    server.until_registered()
    confirmed: set[int] = set()

    async def with_a_restart() -> None:
        producing = asyncio.create_task(produce(server.url, range(10_000), confirmed))
        async with asyncio.timeout(60):
            while len(confirmed) < 2000 and not producing.done():
                await asyncio.wait([producing], timeout=0.005)
        await asyncio.to_thread(server.kill, how)
        await producing

    asyncio.run(with_a_restart())
    server.start()
    asyncio.run(produce(server.url, range(10_000, 15_000), confirmed))
    assert len(confirmed) >= 7000
    assert_each_is_one_job(manager, confirmed)
