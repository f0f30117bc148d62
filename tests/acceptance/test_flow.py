"""Retries, chains, calls and control, with real processes and by the public API alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from easyjobs.client import EasyJobsClient, Job
from easyjobs.errors import JobCancelled, JobExpired, JobFailed
from tests.acceptance.seed import PROGRAMS
from tests.processes import Processes, Served, processes, until

SECRET = "abcd1234"
LEASE_S = 2.0


@dataclass
class Site:
    """A manager, and workers of the queues A and B."""

    group: Processes
    directory: Path
    manager: Served
    workers: dict[str, Served]

    def start_worker(self, queue: str, name: str = "") -> Served:
        before = len(self.manager.get("/jobs/api/v1/workers")["items"])
        env = {"TEST_MANAGER_PORT": str(self.manager.port), "TEST_QUEUE": queue, "TEST_EFFECTS": str(self.directory / "effects")}
        served = self.group.uvicorn("flow_worker:server", directory=PROGRAMS, name=f"worker-{queue}", env=env)
        self.workers[name or queue] = served

        def there() -> bool:
            workers = self.manager.get("/jobs/api/v1/workers")["items"]
            return len(workers) > before and all(worker["tasks"] for worker in workers)

        until(f"a worker of {queue} is there", there, 40)
        return served

    def effects(self, first: str) -> list[str]:
        file = self.directory / "effects"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.split(" ")[0] == first or line.startswith(first + " ") or line == first]

    def until_effect(self, text: str, times: int = 1) -> None:
        until(f"{times} × {text}", lambda: len(self.effects(text)) >= times)

    def job(self, job: Job | str) -> Any:
        return self.manager.get(f"/jobs/api/v1/jobs/{job if isinstance(job, str) else job.id}")

    def until_status(self, job: Job | str, status: str) -> Any:
        def there() -> Any:
            found = self.job(job)
            return found if found["status"] == status else None

        return until(f"the job is {status}", there)

    def client(self) -> EasyJobsClient:
        return EasyJobsClient(f"http://127.0.0.1:{self.manager.port}", SECRET)


def start_site(group: Processes, directory: Path, queues: str = "AB") -> Site:
    started = group.uvicorn(
        "flow_manager:server", directory=PROGRAMS, name="manager", env={"TEST_DB_PATH": str(directory), "TEST_LEASE_S": str(LEASE_S)}
    )
    site = Site(group, directory, started.until_ready(), {})
    for queue in queues:
        site.start_worker(queue)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with processes() as group:
        yield start_site(group, tmp_path_factory.mktemp("flow"))


# --- retries ----------------------------------------------------------------------------------------------------------------------


async def test_a_policy_says_how_often_a_failure_is_retried(site: Site) -> None:
    async with site.client() as client:
        assert await (await client.submit("A", "flaky", 3)).result(20) == 4
        job = await client.submit("A", "flaky", 4)
        with pytest.raises(JobFailed, match="failure 4"):
            await job.result(20)
        assert site.job(job)["failures"] == 4


async def test_a_task_says_itself_how_its_attempt_ends(site: Site) -> None:
    async with site.client() as client:
        assert await (await client.submit("A", "drowsy")).result(20) == 0
        assert await (await client.submit("A", "patient")).result(20) == "done"
        with pytest.raises(JobFailed, match="no use"):
            await (await client.submit("A", "hopeless")).result(20)


# --- chains -----------------------------------------------------------------------------------------------------------------------


def descendants(site: Site, job: Job | str) -> Any:
    return site.job(job)["children"]


async def test_a_chain_goes_over_two_workers_and_the_manager(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "fetch", "page")
        assert await job.result(20) == "PAGE"
        [enrich] = descendants(site, job)
        assert (enrich["namespace"], enrich["name"], enrich["edge"]) == ("B", "enrich", "run_after")
        assert await client.job(enrich["id"]).result(20) == "PAGE and more"
        [archive] = descendants(site, enrich["id"])
        assert await client.job(archive["id"]).result(20) == "archived PAGE and more"
        assert site.job(archive["id"])["parent"] == enrich["id"]


async def test_a_chain_that_comes_back_to_itself_stops_at_its_depth(site: Site) -> None:
    async with site.client() as client:
        job: Job = await client.submit("A", "loop")
        depth = 0
        while True:
            site.until_status(job, "failed" if depth == 5 else "succeeded")
            if depth == 5:
                break
            [child] = descendants(site, job)
            job, depth = client.job(child["id"]), depth + 1
        with pytest.raises(JobFailed, match="max_chain_depth"):
            await job.result(20)
        assert [line.split()[1] for line in site.effects("loop")] == ["0", "1", "2", "3", "4"]


async def test_a_successor_whose_task_nobody_offers_is_there_and_its_parent_shows_it(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "leads_nowhere")
        assert await job.result(20) == "here"
        found = site.job(job)
        assert (found["status"], found["children"][0]["name"], found["children"][0]["status"]) == ("succeeded", "nobody_has_this", "queued")


async def test_what_must_run_before_runs_before_with_the_arguments_that_it_names(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "build", "http://x", size=5, name="thing")
        assert await job.result(20) == "thing: http://x (5)"
        children = {child["name"]: site.job(child["id"]) for child in descendants(site, job)}
        assert children["download"]["kwargs"] == {"url": "http://x"}
        assert children["check"]["kwargs"] == {"size": 5}
        assert site.effects("build") == ["build thing"]


async def test_a_job_whose_predecessor_fails_fails_and_a_retry_repeats_only_that(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "build", "http://y", size=-1, name="bad")
        with pytest.raises(JobFailed, match=r"run_before job A/check failed: ValueError: too small"):
            await job.result(20)
        report = next(child for child in descendants(site, job) if child["name"] == "report")
        told = await client.job(report["id"]).result(20)
        assert told["job"] == job.id
        assert (told["args"], told["kwargs"]) == (["http://y"], {"size": -1, "name": "bad"})
        download = next(child for child in descendants(site, job) if child["name"] == "download")
        site.until_status(download["id"], "succeeded")
        assert await job.retry()
        with pytest.raises(JobFailed):
            await job.result(20)
        assert site.effects("download http://y") == ["download http://y"]
        assert len(site.effects("check -1")) == 2
        assert site.effects("build bad") == []


async def test_endless_retries_tell_once_that_they_fail(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "endless")
        site.until_effect("endless 3")
        assert await job.cancel()
        assert len(site.effects("plain_report")) == 1
        assert site.effects("plain_report") == ["plain_report KeyError: 'again'"]


# --- calls ------------------------------------------------------------------------------------------------------------------------


async def test_a_retried_parent_gets_the_results_of_its_children_without_running_them_again(tmp_path: Path) -> None:
    with processes() as group:
        site = start_site(group, tmp_path, "A")
        gate = tmp_path / "gate"
        async with site.client() as client:
            job = await client.submit("A", "sums", str(gate))
            await asyncio.to_thread(site.until_effect, "two of three 1")
            await asyncio.to_thread(site.until_effect, "slow_square 3")
            site.workers["A"].kill()
            await asyncio.to_thread(site.start_worker, "A", "again")
            gate.touch()
            assert await job.result(40) == 1 + 4 + 9
        assert site.effects("square") == ["square 1", "square 2"]
        assert site.effects("two of three") == ["two of three 1", "two of three 2"]


async def test_fifty_parents_that_each_wait_for_a_child_end_on_three_slots(site: Site) -> None:
    async with site.client() as client:
        jobs = await client.submit_many({"namespace": "A", "name": "gathers", "args": [2]} for _ in range(50))
        assert await asyncio.gather(*(job.result(60) for job in jobs)) == [1] * 50


async def test_a_job_gathers_its_children(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "gathers", 40)
        assert await job.result(60) == sum(n * n for n in range(40))
        assert {child["edge"] for child in descendants(site, job)} == {"call"}


# --- control ----------------------------------------------------------------------------------------------------------------------


async def test_a_running_job_is_cancelled_in_its_body(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "sleeps", "one")
        await asyncio.to_thread(site.until_effect, "sleeps one")
        answer = site.manager.call("POST", f"/jobs/api/v1/jobs/{job.id}/cancel")
        assert (answer.status, answer.json()["status"]) == (202, "running")
        with pytest.raises(JobCancelled):
            await job.result(20)
        await asyncio.to_thread(site.until_effect, "cancelled one")
        assert site.manager.call("POST", f"/jobs/api/v1/jobs/{job.id}/cancel").status == 200, "again does no harm"


async def test_a_thread_sees_that_it_should_stop(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "blocks", "two")
        await asyncio.to_thread(site.until_effect, "blocks two")
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(20)
        await asyncio.to_thread(site.until_effect, "stopped two True")


async def test_a_cancel_reaches_the_jobs_that_a_job_called(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "calls_sleeps", "three")
        await asyncio.to_thread(site.until_effect, "sleeps three")
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(20)
        await asyncio.to_thread(site.until_effect, "cancelled three")
        [child] = descendants(site, job)
        site.until_status(child["id"], "cancelled")


async def test_a_job_that_has_ended_cannot_be_cancelled_but_deleted(site: Site) -> None:
    async with site.client() as client:
        job = await client.submit("A", "square", 9)
        assert await job.result(20) == 81
        answer = site.manager.call("POST", f"/jobs/api/v1/jobs/{job.id}/cancel")
        assert (answer.status, answer.json()["title"]) == (409, "Its state does not allow this")
        assert site.manager.call("DELETE", f"/jobs/api/v1/jobs/{job.id}").status == 204
        assert site.manager.call("DELETE", f"/jobs/api/v1/jobs/{job.id}").status == 404


async def test_a_paused_queue_keeps_its_jobs_over_a_restart_until_it_is_resumed(tmp_path: Path) -> None:
    with processes() as group:
        site = start_site(group, tmp_path, "A")
        assert site.manager.call("POST", "/jobs/api/v1/queues/A/pause").json() == {"namespace": "A", "paused": True}
        async with site.client() as client:
            job = await client.submit("A", "square", 7)
        port = site.manager.port
        site.manager.stop()
        env = {"TEST_DB_PATH": str(tmp_path), "TEST_LEASE_S": str(LEASE_S)}
        site.manager = group.uvicorn("flow_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()
        until("the worker is back", lambda: site.manager.get("/jobs/api/v1/workers")["items"])
        [queue] = [each for each in site.manager.get("/jobs/api/v1/queues")["items"] if each["namespace"] == "A"]
        assert (queue["paused"], queue["queued"]) == (True, 1)
        async with site.client() as client:
            with pytest.raises(TimeoutError):
                await client.job(job.id).result(0.5)
            assert site.manager.call("POST", "/jobs/api/v1/queues/A/resume").json() == {"namespace": "A", "paused": False}
            assert await client.job(job.id).result(20) == 49


async def test_a_job_like_one_that_is_there_is_that_one(site: Site) -> None:
    async with site.client() as client:
        first = await client.submit("A", "bill", "ann", 5)
        second, other = await asyncio.gather(client.submit("A", "bill", "ann", 6), client.submit("A", "bill", "bob", 7))
        assert second.id == first.id != other.id
        again = site.manager.call("POST", "/A/task/bill", {"customer": "ann", "amount": 8}).json()
        assert again == {"request_id": first.id}
        for name in ("ann", "bob"):
            (site.directory / f"effects.{name}").touch()
        assert [await first.result(20), await other.result(20)] == [5, 7]
        assert (await client.submit("A", "bill", "ann", 9)).id != first.id


async def test_what_is_not_started_in_time_expires_and_can_be_retried(site: Site) -> None:
    site.manager.call("POST", "/jobs/api/v1/queues/A/pause")
    try:
        async with site.client() as client:
            job = await client.submit("A", "urgent")
            with pytest.raises(JobExpired):
                await job.result(20)
            site.manager.call("POST", "/jobs/api/v1/queues/A/resume")
            assert await job.retry()
            assert await job.result(20) == "in time"
    finally:
        site.manager.call("POST", "/jobs/api/v1/queues/A/resume")


@pytest.mark.parametrize("who", ["manager", "worker"])
async def test_workers_are_paused_and_go_on(site: Site, who: str) -> None:
    """No other worker has these tasks, so what a paused worker gives back waits for it."""
    toggled = site.manager if who == "manager" else site.workers["A"]
    async with site.client() as client:
        assert toggled.call("POST", "/toggle?pause=true").status == 200
        job = await client.submit("A", "square", 12)
        with pytest.raises(TimeoutError):
            await job.result(0.5)
        assert toggled.call("POST", "/toggle?pause=false").status == 200
        assert await job.result(20) == 144


async def test_results_and_jobs_are_kept_for_their_time_and_no_longer(tmp_path: Path) -> None:
    with processes() as group:
        site = start_site(group, tmp_path, "A")
        async with site.client() as client:
            kept, short = await client.submit("A", "square", 5), await client.submit("A", "short_lived")
            assert [await kept.result(20), await short.result(20)] == [25, "gone soon"]
            cancelled = await client.options(delay=60).submit("A", "square", 6)
            assert await cancelled.cancel()
        port = site.manager.port
        site.manager.stop()  # a manager that starts looks at what is past its time; a running one does from time to time
        env = {"TEST_DB_PATH": str(tmp_path), "TEST_LEASE_S": str(LEASE_S)}
        site.manager = group.uvicorn("flow_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready()
        path = "/jobs/api/v1/jobs/"
        until("the cancelled job is deleted", lambda: site.manager.call("GET", path + cancelled.id).status == 404)
        until("the short result is gone", lambda: site.job(short)["result_removed"])
        assert site.job(kept)["result"] == 25
        assert site.manager.call("GET", f"/job/pull/result?request_id={short.id}").status == 410
