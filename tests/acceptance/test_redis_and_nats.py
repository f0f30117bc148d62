"""The seed's manager with Redis or NATS, a producer and a worker, as a user runs them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyjobs.brokers import open_broker
from tests.acceptance.seed import PROGRAMS, pull, start_worker
from tests.brokers_under_test import Under, jobs, under
from tests.contracts.broker_contract import take
from tests.processes import Processes, Served, until

pytestmark = pytest.mark.slow


@pytest.fixture(params=["redis", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Under]:
    with under(request.param, tmp_path / "broker") as running:
        yield running


def start(started: Processes, directory: Path, broker: Under, url: str | None = None) -> Served:
    env = {"TEST_DB_PATH": str(directory / "database"), "TEST_BROKER": url or broker.url, "TEST_BROKER_TYPE": broker.kind}
    return started.uvicorn("broker_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready()


def test_a_producer_sends_first_and_the_manager_consumes_later(started: Processes, tmp_path: Path, broker: Under) -> None:
    async def send() -> None:
        async with await broker.open(broker.url, "DEFAULT") as channel:
            await channel.send_job({"namespace": "DEFAULT", "name": "basic_job", "args": [1, 2, 3, 4], "kwargs": {}})
            await channel.send_jobs([{"job": {"name": "basic_job", "args": [n, 2, 3]}} for n in range(100)] + [{"name": "nobody"}])

    asyncio.run(send())
    manager = start(started, tmp_path, broker)
    manager.wait_for_line("basic_job: 1 2 3 - args (4,)")
    until("all jobs have run", lambda: sum(job["status"] == "succeeded" for job in jobs(manager)) == 101)
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {broker.kind: "up"}}
    [bad] = until("the unknown task is put aside", lambda: manager.get("/jobs/api/v1/quarantine")["items"])
    assert bad["reason"] == "unknown_task"
    assert broker.url not in manager.log


def test_a_job_for_a_worker_that_connects_later_is_run_by_it(started: Processes, tmp_path: Path, broker: Under) -> None:
    async def send() -> None:
        async with await broker.open(broker.url, "REMOTE") as channel:
            await channel.send_job({"name": "greet", "kwargs": {"name": "Ada"}})

    asyncio.run(send())
    manager = start(started, tmp_path, broker)
    assert jobs(manager) == []
    start_worker(started, manager.port, app="broker_worker:server")
    [job] = until("the message is a job", lambda: jobs(manager))
    assert pull(manager, job["id"]) == "hello Ada"


def test_the_end_of_a_job_is_told_to_the_queue_that_its_message_names(started: Processes, tmp_path: Path, broker: Under) -> None:
    manager = start(started, tmp_path, broker)

    async def ask(count: int) -> list[dict[str, Any]]:
        async with await broker.open(broker.url, "DEFAULT") as channel:
            await channel.send_jobs(
                [{"name": "basic_job", "args": [n, 0, 0], "reply_to": "answers", "id": f"order-{n}"} for n in range(count)]
            )
        reader = open_broker(broker.url)
        await reader.connect()
        await reader.consume("answers")
        try:
            async with asyncio.timeout(30):
                return [json.loads(each.body) for each in await take(reader, "answers", count)]
        finally:
            await reader.close()

    told = asyncio.run(ask(100))
    assert {answer["correlation_id"]: answer["result"] for answer in told} == {f"order-{n}": [n, 0, 0] for n in range(100)}
    assert manager.get("/jobs/readyz")["brokers"] == {broker.kind: "up"}


def test_with_wrong_credentials_a_manager_serves_http_and_says_so(started: Processes, tmp_path: Path, broker: Under) -> None:
    manager = start(started, tmp_path, broker, broker.url.replace("jobs:", "jobs:not-"))
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {broker.kind: "down"}}
    manager.until_status(manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3}), "succeeded")
    said = manager.wait_for_line("broker.down").lower()
    assert "refused" in said or "authorization" in said
    assert "not-a-password" not in manager.log
