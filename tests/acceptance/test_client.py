"""The Python client against a real manager and worker, as a program of the user's has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyjobs.client import EasyJobsClient
from easyjobs.errors import AccessRefused, ConnectionFailed, InvalidArguments, JobFailed, KeyReused, UnknownJob, UnknownTask
from tests.acceptance.seed import start_manager, start_worker, until_workers
from tests.processes import Processes, Served, free_port, processes

SECRET = "abcd1234"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with processes() as group:
        served = start_manager(group, tmp_path_factory.mktemp("client")).until_ready()
        start_worker(group, served.port)
        until_workers(served, 1)
        yield served


def url(manager: Served) -> str:
    return f"http://127.0.0.1:{manager.port}"


async def test_a_submitted_job_gives_its_result(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        job = await client.submit("DEFAULT", "plain", "abc")
        assert await job.result(timeout=20) == "ABC"
        assert await client.job(job.id).result(timeout=20) == "ABC", "also later, and by its id"
        assert manager.get(f"/jobs/api/v1/jobs/{job.id}")["status"] == "succeeded"


async def test_a_failed_job_raises_what_happened(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        job = await client.submit("DEFAULT", "finance_work", employee_id="e7", employee_data={})
        with pytest.raises(JobFailed) as failed:
            await job.result(timeout=20)
        assert (failed.value.type, failed.value.message) == ("ValueError", "no such employee e7")
        assert "finance_work" in failed.value.remote_traceback


async def test_a_wait_that_times_out_leaves_the_job_running(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        job = await client.submit("DEFAULT", "work_a", 1, 2, 3)
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.2)
        assert await job.result(timeout=20) == {"result": [1, 2, 3]}


async def test_a_submit_may_have_options(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        later = await client.options(delay=3600, priority=7).submit("DEFAULT", "plain", "x")
        found = manager.get(f"/jobs/api/v1/jobs/{later.id}")
        assert (found["status"], found["priority"]) == ("scheduled", 7)
        assert await later.run_now()
        assert await later.result(20) == "X"
        keyed = client.options(key="once")
        first, second = await keyed.submit("DEFAULT", "plain", "y"), await keyed.submit("DEFAULT", "plain", "y")
        assert first.id == second.id
        with pytest.raises(KeyReused):
            await keyed.submit("DEFAULT", "plain", "z")
        with pytest.raises(ValueError, match="from 0 to ten years"):
            client.options(delay=-1)


async def test_many_jobs_come_back_in_their_order(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        jobs = await client.submit_many({"namespace": "DEFAULT", "name": "plain", "args": [f"text {n}"]} for n in range(500))
        results = await asyncio.gather(*(job.result(timeout=60) for job in jobs))
        assert results == [f"TEXT {n}" for n in range(500)]


async def test_of_callers_at_the_same_time_only_the_one_that_is_wrong_is_refused(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        calls = [client.submit("DEFAULT", "plain", text) for text in ("a", "b")]
        wrong = [client.submit("DEFAULT", "plain", 5), client.submit("DEFAULT", "plainn", "c")]
        answers = await asyncio.gather(*calls, *wrong, return_exceptions=True)
        assert [await job.result(timeout=20) for job in answers[:2]] == ["A", "B"]  # type: ignore[union-attr]
        assert isinstance(answers[2], InvalidArguments)
        assert isinstance(answers[3], UnknownTask)
        assert "DEFAULT/plain" in str(answers[3])


async def test_what_cannot_be_is_said_clearly(manager: Served) -> None:
    async with EasyJobsClient(url(manager), SECRET) as client:
        with pytest.raises(ValueError, match=r"nan"):
            await client.submit("DEFAULT", "plain", float("nan"))
        with pytest.raises(InvalidArguments):
            await client.submit_many([{"namespace": "DEFAULT", "name": "plain", "args": [1, 2]}])
        for wrong in ({"name": "plain", "argz": ["a"]}, {"name": "plain", "args": ["a"], "delay": 1}, {"args": ["a"]}):
            with pytest.raises(ValueError, match="job 0 has"):
                await client.submit_many([{"namespace": "DEFAULT", **wrong}])
        for unknown in ("no id", "01a20bb1-4283-76f8-85ff-c81f8ba26ee4"):
            with pytest.raises(UnknownJob):
                await client.job(unknown).result(timeout=10)
    with pytest.raises(ConnectionFailed):
        await client.submit("DEFAULT", "plain", "x")


async def test_a_wrong_secret_is_refused_and_a_missing_manager_is_named(manager: Served) -> None:
    with pytest.raises(AccessRefused, match="secret"):
        await EasyJobsClient(url(manager), "another secret").open()
    port = free_port()
    with pytest.raises(ConnectionFailed, match=str(port)):
        await EasyJobsClient(f"http://127.0.0.1:{port}", SECRET).open()


async def test_a_client_lives_through_a_manager_that_is_killed_and_comes_back(started: Processes, tmp_path: Path) -> None:
    first = await asyncio.to_thread(lambda: start_manager(started, tmp_path).until_ready())
    await asyncio.to_thread(start_worker, started, first.port)
    await asyncio.to_thread(until_workers, first, 1)
    async with EasyJobsClient(url(first), SECRET) as client:
        before = await client.submit("DEFAULT", "work_a", 1, 2, 3)
        waits = asyncio.create_task(before.result(timeout=60))
        await asyncio.to_thread(first.kill)
        during = asyncio.create_task(client.submit("DEFAULT", "plain", "while it was away"))
        again = await asyncio.to_thread(lambda: start_manager(started, tmp_path, port=first.port).until_ready())
        assert await (await asyncio.wait_for(during, 60)).result(timeout=60) == "WHILE IT WAS AWAY"
        assert await waits == {"result": [1, 2, 3]}
        counted = {queue["namespace"]: queue for queue in (await asyncio.to_thread(again.get, "/jobs/api/v1/queues"))["items"]}
        assert counted["DEFAULT"]["succeeded"] == 2, "nothing was submitted or run twice"
