"""A manager with Amazon SQS, a worker and a producer, as a user runs them; moto plays the service, and a proxy the network.

moto is slow, and more so with the square of what is in a queue: hence few messages.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from easyjobs.errors import BrokerError
from easyjobs.producers.sqs import get_producer_channel
from easyjobs.runtime import sqs
from tests.acceptance.readme import blocks
from tests.acceptance.seed import PROGRAMS, start_worker
from tests.faults.proxy import Proxy
from tests.moto import AWS, CREDENTIALS, Moto, moto
from tests.processes import ROOT, NotInTime, Processes, Served, until

pytestmark = pytest.mark.slow

NAMES = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Moto]:
    with moto(tmp_path) as running:
        yield running


def start(started: Processes, directory: Path, url: str, port: int | None = None) -> Served:
    env = {"TEST_DB_PATH": str(directory / "database"), "TEST_BROKER": url}
    return started.uvicorn("sqs_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()


def jobs(manager: Served) -> list[dict[str, Any]]:
    """Oldest first."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = manager.get(f"/jobs/api/v1/jobs?limit=500{cursor}")
        found += page["items"]
        if not page.get("next_cursor"):
            return found[::-1]
        cursor = f"&cursor={page['next_cursor']}"


def firsts(manager: Served) -> list[Any]:
    """The first argument of each job."""
    return [job["args"][0] for job in jobs(manager)]


def send(url: str, queue: str, messages: list[dict[str, Any]], **options: Any) -> None:
    async def run() -> None:
        async with await get_producer_channel(url, queue, **options) as channel:
            await channel.send_jobs(messages)

    asyncio.run(run())


def counted(url: str, queue: str) -> int:
    """Messages that SQS still has, visible or not."""

    async def run() -> int:
        async with AsyncExitStack() as stack:
            client = await sqs.open_client(sqs.parse(url), stack)
            found = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
            answer = await client.get_queue_attributes(QueueUrl=found, AttributeNames=NAMES)
            return sum(int(answer["Attributes"][name]) for name in NAMES)

    return asyncio.run(run())


def until_empty(url: str, queue: str) -> None:
    until(f"{queue} is empty", lambda: counted(url, queue) == 0, 60, 0.5)


def assert_no_secret(log: str) -> None:
    assert not [secret for secret in CREDENTIALS.values() if secret in log]


def test_the_programs_of_the_documentation_run_as_they_are_written(started: Processes, tmp_path: Path, server: Moto) -> None:
    programs = [content for language, content in blocks((ROOT / "docs/sqs.md").read_text()) if language == "python"]
    for content in programs:
        (tmp_path / content.split()[1].rstrip(":")).write_text(content)
    env = {**AWS, "AWS_ENDPOINT_URL_SQS": server.endpoint, "DB_PATH": str(tmp_path / "database")}
    manager = started.uvicorn("manager:server", directory=tmp_path, name="manager", env=env).until_ready()
    (tmp_path / "producer.py").write_text((tmp_path / "producer.py").read_text().replace("range(1000)", "range(100)"))  # for moto's sake
    assert started.program([sys.executable, str(tmp_path / "producer.py")], name="producer", env=env).wait(60) == 0
    until("all jobs have run", lambda: sum(job["status"] == "succeeded" for job in jobs(manager)) == 101, 60, 0.2)
    assert_no_secret(manager.log)


def test_a_worker_that_comes_later_gets_what_a_producer_sent_first(started: Processes, tmp_path: Path, server: Moto) -> None:
    send(server.url(), "later", [{"name": "newcomer", "args": [n]} for n in range(25)])
    manager = start(started, tmp_path, server.url())
    until("the broker is up", lambda: manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"sqs": "up"}})
    start_worker(started, manager.port, app="late_worker:server").wait_for_line("worker is set up")
    until("all jobs have run", lambda: sum(job["status"] == "succeeded" for job in jobs(manager)) == 25, 40, 0.2)
    assert sorted(firsts(manager)) == list(range(25))
    until_empty(server.url(), "later")
    assert manager.stop() == 0
    assert_no_secret(manager.log)


def test_poison_is_put_aside_and_what_is_behind_it_flows_on(started: Processes, tmp_path: Path, server: Moto) -> None:
    async def poison() -> None:
        async with AsyncExitStack() as stack:
            client = await sqs.open_client(sqs.parse(server.url()), stack)
            queue = await sqs.ensure_queue(client, sqs.parse(server.url()), "DEFAULT")
            bodies = [b"no json", b"{}", b'"x"', b'{"name":"basic_job","args":[1,"x"]}', b'{"name":"basic_job"']
            parcels = [sqs.Parcel(sqs.new_id(), bodies[n % 5] if n % 2 else b'{"name":"basic_job","args":[%d]}' % n) for n in range(200)]
            await sqs.send(client, queue, parcels)

    asyncio.run(poison())
    manager = start(started, tmp_path, server.url())
    until_empty(server.url(), "DEFAULT")
    assert sorted(firsts(manager)) == list(range(0, 200, 2))
    bad = manager.get("/jobs/api/v1/quarantine?limit=100")["items"]
    assert len(bad) == 100
    assert {row["reason"] for row in bad} == {"bad_json", "bad_format", "invalid_arguments"}


def test_what_was_committed_and_not_deleted_is_no_second_job(started: Processes, tmp_path: Path, server: Moto) -> None:
    url = server.url(visibility=3)
    manager = start(started, tmp_path, url)
    sent = 0
    for _ in range(10):  # deletions wait half a second for others: usually the first round is quick enough
        send(url, "DEFAULT", [{"name": "basic_job", "args": [n]} for n in range(sent, sent + 5)])
        sent += 5
        until("the messages are jobs", lambda: len(jobs(manager)) == sent)  # noqa: B023
        manager.kill()
        left = counted(url, "DEFAULT")
        manager = start(started, tmp_path, url, manager.port)
        if left:
            break
    else:
        raise NotInTime("the manager has deleted each time before it was killed")
    until_empty(url, "DEFAULT")
    assert sorted(firsts(manager)) == list(range(sent))


async def produce(url: str, numbers: range, confirmed: set[int], doubted: set[int]) -> None:
    """Jobs with keys; what was not confirmed is sent again until it is."""
    async with await get_producer_channel(url, "DEFAULT") as channel:
        for at in range(numbers.start, numbers.stop, 20):
            left = list(range(at, min(at + 20, numbers.stop)))
            while left:
                try:
                    await channel.send_jobs([{"name": "basic_job", "args": [n], "key": f"k{n}"} for n in left])
                    failed: list[int] = []
                except BrokerError as error:
                    failed = [left[n] for n in error.failed] or left
                    doubted.update(failed)
                confirmed.update(set(left) - set(failed))
                left = failed


def test_each_message_is_one_job_though_the_endpoint_goes_away_and_comes_back(started: Processes, tmp_path: Path, server: Moto) -> None:
    confirmed: set[int] = set()
    doubted: set[int] = set()
    proxy = Proxy(server.port)
    url = server.url(proxy.port)
    manager = start(started, tmp_path, url)

    async def with_faults() -> None:
        nonlocal proxy
        producing = asyncio.create_task(produce(url, range(300), confirmed, doubted))
        for so_many in (60, 140):
            async with asyncio.timeout(60):
                while len(confirmed) < so_many and not producing.done():
                    await asyncio.wait([producing], timeout=0.005)
            assert not producing.done()
            before = len(manager.lines)
            await asyncio.to_thread(proxy.__exit__, None, None, None)  # what is under way is cut, and nobody listens any more
            await asyncio.to_thread(manager.wait_for_line, "broker.down", 30, after=before)
            proxy = Proxy(server.port, proxy.port)
        await asyncio.wait_for(producing, 90)

    try:
        asyncio.run(with_faults())
        assert confirmed == set(range(300))
        until("every message is a job", lambda: set(firsts(manager)) == confirmed, 60, 0.5)
        until_empty(url, "DEFAULT")
        assert {n: count for n, count in Counter(firsts(manager)).items() if count > 1} == {}
        assert doubted
    finally:
        proxy.__exit__(None, None, None)


def test_each_message_is_one_job_though_the_manager_is_killed(started: Processes, tmp_path: Path, server: Moto) -> None:
    url = server.url(visibility=3)
    manager = start(started, tmp_path, url)
    confirmed: set[int] = set()

    async def with_kills() -> None:
        nonlocal manager
        producing = asyncio.create_task(produce(url, range(300), confirmed, set()))
        for so_many in (60, 140):
            async with asyncio.timeout(60):
                while len(confirmed) < so_many and not producing.done():
                    await asyncio.wait([producing], timeout=0.005)
            await asyncio.to_thread(manager.kill)
            manager = await asyncio.to_thread(start, started, tmp_path, url, manager.port)
        await asyncio.wait_for(producing, 90)

    asyncio.run(with_kills())
    until("every message is a job", lambda: set(firsts(manager)) == set(range(300)), 60, 0.5)
    until_empty(url, "DEFAULT")
    assert {n: count for n, count in Counter(firsts(manager)).items() if count > 1} == {}


def test_groups_of_a_fifo_queue_are_stored_in_order(started: Processes, tmp_path: Path, server: Moto) -> None:
    url = server.url(visibility=60, fifo="true")
    sent = [{"name": "basic_job", "args": [n, n % 3]} for n in range(90)]
    send(url, "DEFAULT", sent, group=lambda job: f"g{job['args'][1]}")
    manager = start(started, tmp_path, url)
    until_empty(url, "DEFAULT.fifo")
    stored = firsts(manager)
    assert sorted(stored) == list(range(90))
    for group in range(3):
        assert [n for n in stored if n % 3 == group] == list(range(group, 90, 3))


def test_a_result_goes_to_the_queue_that_the_message_names(started: Processes, tmp_path: Path, server: Moto) -> None:
    send(server.url(), "DEFAULT", [{"name": "basic_job", "args": [41], "id": "order-17", "reply_to": "answers"}])
    start(started, tmp_path, server.url())

    async def receive() -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            client = await sqs.open_client(sqs.parse(server.url()), stack)
            queue = await sqs.ensure_queue(client, sqs.parse(server.url()), "answers")
            async with asyncio.timeout(30):
                while True:
                    answer = await client.receive_message(QueueUrl=queue.url, WaitTimeSeconds=1, MessageAttributeNames=["All"])
                    for message in answer.get("Messages", ()):
                        return {**json.loads(message["Body"]), "attributes": message["MessageAttributes"]}

    got = asyncio.run(receive())
    assert (got["status"], got["result"], got["correlation_id"]) == ("succeeded", 41, "order-17")
    assert got["attributes"]["correlation_id"]["StringValue"] == "order-17"


def test_a_queue_that_is_deleted_is_made_again(started: Processes, tmp_path: Path, server: Moto) -> None:
    manager = start(started, tmp_path, server.url())

    async def delete() -> None:
        async with AsyncExitStack() as stack:
            client = await sqs.open_client(sqs.parse(server.url()), stack)
            url = (await client.get_queue_url(QueueName="DEFAULT"))["QueueUrl"]
            await client.delete_queue(QueueUrl=url)

    send(server.url(), "DEFAULT", [{"name": "basic_job", "args": [1]}])
    until("the message is a job", lambda: firsts(manager) == [1])
    asyncio.run(delete())
    assert "deleted" in manager.wait_for_line("broker.down")
    send(server.url(), "DEFAULT", [{"name": "basic_job", "args": [7]}])
    until("the message is a job", lambda: firsts(manager) == [1, 7], 30, 0.2)


def test_wrong_credentials_are_told_and_http_goes_on(started: Processes, tmp_path: Path) -> None:
    with moto(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0") as strict:
        manager = start(started, tmp_path, strict.url())
        assert "AWS_ACCESS_KEY_ID" in manager.wait_for_line("broker.down")
        assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"sqs": "down"}}
        job = manager.submit("DEFAULT", "basic_job", {"arg1": 1})
        manager.until_status(job, "succeeded")
        assert_no_secret(manager.log)


def test_an_endpoint_that_comes_later_is_found(started: Processes, tmp_path: Path) -> None:
    server = Moto(tmp_path, {})
    manager = start(started, tmp_path, server.url())
    assert str(server.port) in manager.wait_for_line("broker.down")
    assert manager.get("/jobs/readyz") == {"status": "ready", "brokers": {"sqs": "down"}}
    try:
        server.start()
        send(server.url(), "DEFAULT", [{"name": "basic_job", "args": [7]}])
        until("the message is a job", lambda: firsts(manager) == [7], 60, 0.2)
    finally:
        server.kill()
