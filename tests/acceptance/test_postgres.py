"""Managers on PostgreSQL, as users start them: one, killed and started again; and two over one database."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from easyjobs.client import EasyJobsClient
from tests.acceptance.seed import PROGRAMS
from tests.postgres import Cluster, cluster
from tests.processes import Processes, Served, free_port, processes, until

SECRET = "abcd1234"
LEASE_S = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@dataclass
class Site:
    """Managers and workers over one fresh database."""

    group: Processes
    cluster: Cluster
    database: str
    directory: Path

    def manager(self, name: str, *options: str, port: int | None = None) -> Served:
        env = {"EASYJOBS_STORE": self.cluster.url(self.database), "TEST_DB_PATH": str(self.directory), "TEST_LEASE_S": str(LEASE_S)}
        served = self.group.uvicorn("flow_manager:server", *options, directory=PROGRAMS, name=name, env=env, port=port)
        return served.until_ready(40)

    def worker(self, of: Served, queue: str = "A", name: str = "worker", program: str = "flow_worker") -> Served:
        env = {"TEST_MANAGER_PORT": str(of.port), "TEST_QUEUE": queue, "TEST_EFFECTS": str(self.directory / "effects")}
        env["TEST_GATES"] = str(self.directory)
        before = len(of.get("/jobs/api/v1/workers")["items"])
        served = self.group.uvicorn(f"{program}:server", directory=PROGRAMS, name=name, env=env)

        def there() -> bool:
            workers = of.get("/jobs/api/v1/workers")["items"]
            return len(workers) > before and all(worker["tasks"] for worker in workers)

        until(f"{name} is there", there, 40)
        return served

    def sql(self, text: str) -> str:
        return self.cluster.sql(text, self.database).strip()


@pytest.fixture
def site(server: Cluster, tmp_path: Path) -> Iterator[Site]:
    database = f"test_{time.monotonic_ns()}"
    server.sql(f"create database {database}")
    with processes() as group:
        yield Site(group, server, database, tmp_path)


def address(manager: Served) -> str:
    return f"ws://127.0.0.1:{manager.port}"


async def test_a_manager_keeps_its_jobs_in_postgresql_through_kill_and_restart(site: Site) -> None:
    first = site.manager("manager")
    worker = site.worker(first, "B")
    done = first.submit("B", "enrich", {"text": "a"})
    assert first.until_status(done, "succeeded")["status"] == "succeeded"
    assert first.get(f"/job/view/result?job_id={done}")["results"] == "a and more"
    worker.stop()
    waiting = [first.submit("B", "enrich", {"text": str(n)}) for n in range(20)]
    first.kill()
    again = site.manager("manager again", port=first.port)
    assert {again.job(job)["status"] for job in waiting} == {"queued"}
    site.worker(again, "B", "worker again")
    for n, job in enumerate(waiting):
        again.until_status(job, "succeeded")
        assert again.get(f"/job/view/result?job_id={job}")["results"] == f"{n} and more"
    # The successors ran, in the manager itself, once each.
    until(
        "all successors have run",
        lambda: site.sql("select count(*) from easyjobs.jobs where edge like 'run_after:%' and state = 2") == "21",
    )
    assert again.stop() in (0, -signal.SIGTERM)


async def test_what_is_submitted_at_one_manager_runs_at_the_workers_of_another(site: Site) -> None:
    one, two = site.manager("one"), site.manager("two")
    site.worker(one, "B")
    two.until_offered("/B/task/enrich", within_s=3)  # a worker's task appears at the manager that it does not know
    async with EasyJobsClient(address(two), SECRET) as client:
        jobs = [await client.submit("B", "enrich", str(n)) for n in range(50)]
        assert [await job.result(timeout=20) for job in jobs] == [f"{n} and more" for n in range(50)]
    assert one.job(str(jobs[0].id))["status"] == two.job(str(jobs[0].id))["status"] == "succeeded"
    assert site.sql("select count(*), max(attempt) from easyjobs.jobs where edge is null") == "50|1"
    counted = site.sql("select coalesce(sum(n), 0) from easyjobs.counters where state = 2")
    assert counted == site.sql("select count(*) from easyjobs.jobs where state = 2")


async def test_a_job_is_cancelled_by_way_of_another_manager(site: Site) -> None:
    one, two = site.manager("one"), site.manager("two")
    site.worker(one, "A")
    two.until_offered("/A/task/sleeps", within_s=3)
    async with EasyJobsClient(address(two), SECRET) as client:
        job = await client.submit("A", "sleeps", "long")
        one.until_status(str(job.id), "running")
        assert await job.cancel()
        two.until_status(str(job.id), "cancelled", 10)
    until("the body was told", lambda: "cancelled long" in (site.directory / "effects").read_text())


async def test_the_jobs_of_a_worker_that_is_lost_with_its_manager_are_rescued_by_another(site: Site) -> None:
    one, two = site.manager("one"), site.manager("two")
    lost = site.worker(one, "A", "lost")
    two.until_offered("/A/task/sleeps", within_s=3)
    job = two.submit("A", "sleeps", {"token": "lost"})
    two.until_status(job, "running")
    lost.kill()
    one.kill()
    site.worker(two, "A", "found")
    found = until("another attempt runs", lambda: two.job(job) if two.job(job)["attempt"] == 2 else None, 20)
    assert found["status"] == "running"


async def test_a_worker_of_a_killed_manager_finishes_its_job_when_a_manager_is_back(site: Site) -> None:
    port = free_port()
    one = site.manager("one", port=port)
    site.worker(one, "A")
    gate = site.directory / "gate"
    job = one.submit("A", "slow_square", {"n": 3, "gate": str(gate)})
    one.until_status(job, "running")
    one.kill()
    again = site.manager("one again", port=port)
    gate.touch()
    assert again.until_status(job, "succeeded", 30)["attempt"] == 1


async def test_a_job_is_followed_at_another_manager_than_its_workers(site: Site) -> None:
    one, two = site.manager("one"), site.manager("two")
    site.worker(one, program="seen_worker")
    two.until_offered("/DEFAULT/task/steps", within_s=3)
    async with EasyJobsClient(address(one), SECRET) as client, EasyJobsClient(address(two), SECRET) as other:
        job = await client.submit("DEFAULT", "steps", list("abcde"))
        seen: list[str] = []
        async with asyncio.timeout(12):  # a follower that was told nothing would look after five seconds, five times
            async for news in other.job(job.id).events():
                what = repr(news)
                seen.append(what)
                for gate in "abcde":
                    if f"waits for {gate}" in what:
                        (site.directory / gate).touch()
        assert "succeeded" in seen[-1]
        assert [gate for gate in "abcde" if any(f"got {gate}" in what for what in seen)] == list("abcde")
        assert sum("Progress" in what for what in seen) >= 1


def test_uvicorn_runs_four_managers_in_one(site: Site) -> None:
    managers = site.manager("four", "--workers", "4")
    pids: set[int] = set()

    def all_four() -> bool:
        pids.add(managers.get("/pid"))
        return len(pids) == 4

    until("four processes answer", all_four, 30)
    site.group.uvicorn(
        "flow_worker:server",
        directory=PROGRAMS,
        name="worker",
        env={"TEST_MANAGER_PORT": str(managers.port), "TEST_QUEUE": "B", "TEST_EFFECTS": str(site.directory / "effects")},
    )
    managers.until_offered("/B/task/enrich", within_s=20)
    known = dict.fromkeys(pids, False)

    def everywhere() -> bool:
        with httpx2.Client(base_url=managers.url) as same:  # one connection is one process
            process = same.get("/pid").json()
            known[process] = known[process] or "/B/task/enrich" in same.get("/openapi.json").json()["paths"]
        return all(known.values())

    until("the task is in OpenAPI of all four", everywhere, 20)  # the kernel chooses who is asked
    jobs = [managers.submit("B", "enrich", {"text": str(n)}) for n in range(40)]
    for n, job in enumerate(jobs):  # wherever it was submitted, whoever is asked
        answer = managers.call("GET", f"/job/pull/result?job_id={job}&wait=20")
        assert answer.json() == f"{n} and more", answer
    assert site.sql("select max(attempt) from easyjobs.jobs") == "1"
    assert managers.stop() in (0, -signal.SIGTERM)
    until("no manager is left", lambda: site.sql("select count(*) from easyjobs.managers") == "0", 10)
