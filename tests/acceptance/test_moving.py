"""Users move from a SQLite file to PostgreSQL: `easyjobs db copy` between a manager that is stopped and one that is started."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyjobs.domain.job import TaskRow
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores.sqlite import SqliteStore
from tests.acceptance.seed import PROGRAMS
from tests.acceptance.test_schedules import EVERY_SECOND, results, schedules
from tests.contracts.store_contract import a_job, submit
from tests.postgres import Cluster, cluster
from tests.processes import Processes, Served, clean_environment, free_port, until


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def database(server: Cluster, name: str) -> str:
    server.sql(f"create database {name}")
    return server.url(name)


def copy(file: Path, url: str) -> str:
    command = [sys.executable, "-m", "easyjobs", "db", "copy", str(file)]
    done = subprocess.run(command, env=clean_environment({"EASYJOBS_STORE": url}), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manager(started: Processes, directory: Path, port: int, **env: str) -> Served:
    env = {"TEST_DB_PATH": str(directory), "TEST_LEASE_S": "10", **env}
    return started.uvicorn("flow_manager:server", directory=PROGRAMS, name="manager", env=env, port=port).until_ready(40)


def test_jobs_of_every_kind_go_on_in_postgresql(started: Processes, server: Cluster, tmp_path: Path) -> None:
    port, gate = free_port(), tmp_path / "gate"
    old = manager(started, tmp_path, port)
    env = {"TEST_MANAGER_PORT": str(port), "TEST_QUEUE": "A", "TEST_EFFECTS": str(tmp_path / "effects")}
    worker = started.uvicorn("flow_worker:server", directory=PROGRAMS, name="worker", env=env)
    old.until_offered("/A/task/sleeps", "/A/task/bill", within_s=40)

    done = old.submit("A", "flaky", {"times": 1})
    assert old.until_status(done, "succeeded")["attempt"] == 2
    failed = old.submit("A", "hopeless", {})
    old.until_status(failed, "failed")
    running = old.submit("A", "slow_square", {"n": 7, "gate": str(gate)})
    old.until_status(running, "running")
    stopped = old.submit("A", "sleeps", {"token": "stopped"})
    old.until_status(stopped, "running")
    assert old.call("POST", f"/jobs/api/v1/jobs/{stopped}/cancel").status == 202
    old.until_status(stopped, "cancelled")
    bill = old.submit("A", "bill", {"customer": "Ada", "amount": 3})
    old.until_status(bill, "running")
    chained = old.submit("A", "fetch", {"text": "x"})  # whose successor, of a worker that is not there, is queued
    old.until_status(chained, "succeeded")
    worker.call("POST", "/toggle?pause=true")
    build = old.submit("A", "build", {"url": "u", "size": 1, "name": "n"})
    queued = [old.submit("A", "square", {"n": n}) for n in range(20)]
    [later] = old.call("POST", "/jobs/api/v1/jobs", [{"namespace": "A", "name": "square", "args": [30], "delay": 3}]).json()["request_ids"]
    assert (old.job(build)["status"], old.job(later)["status"]) == ("waiting", "scheduled")
    assert old.stop() == 0

    url = database(server, "moved")
    assert "copied and compared" in copy(tmp_path / "job_manager.db", url)
    new = manager(started, tmp_path, port, EASYJOBS_STORE=url)
    assert new.get(f"/job/view/result?job_id={done}")["results"] == 2
    assert [each["attempt"] for each in new.job(done)["attempts"]] == [1]
    assert new.job(failed)["status"] == "failed"
    # The worker has kept its jobs while there was no manager, and a key holds while its job runs.
    until("the worker is back", lambda: new.get("/jobs/api/v1/workers")["items"], 40)
    assert new.submit("A", "bill", {"customer": "Ada", "amount": 4}) == bill
    gate.touch()
    job = new.until_status(running, "succeeded", 40)
    assert (job["attempt"], job["result"]) == (1, 49)
    worker.call("POST", "/toggle?pause=false")
    for n, each in enumerate(queued):
        assert new.until_status(each, "succeeded", 40)["result"] == n * n
    assert new.until_status(build, "succeeded")["result"] == "n: u (1)"
    assert new.until_status(later, "succeeded")["result"] == 900
    (tmp_path / "effects.Ada").touch()
    assert new.until_status(bill, "succeeded")["result"] == 3
    assert new.submit("A", "bill", {"customer": "Ada", "amount": 5}) != bill
    started.uvicorn("flow_worker:server", directory=PROGRAMS, name="B", env={**env, "TEST_QUEUE": "B"})
    until("the successors have run", lambda: new.get("/job/view/results?name=archive&status=succeeded"), 40)
    effects = (tmp_path / "effects").read_text().split("\n")
    assert [effects.count(f"square {n}") for n in range(20)] == [1] * 20
    assert effects.count("slow_square 7") == effects.count("bill Ada 3") == effects.count("build n") == 1
    assert server.sql("select coalesce(sum(n), 0) from easyjobs.counters", "moved") == server.sql(
        "select count(*) from easyjobs.jobs", "moved"
    )


def test_schedules_tick_on_in_postgresql(started: Processes, server: Cluster, tmp_path: Path) -> None:
    url = database(server, "ticking")

    def start(**env: str) -> Served:
        env = {"DB_PATH": str(tmp_path), "TEST_SCHEDULE": EVERY_SECOND, "TEST_WHOM": "everybody", **env}
        return started.uvicorn("timed_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready(40)

    old = start()
    until("it has run twice", lambda: len(results(old)) >= 2)
    [before] = schedules(old)
    assert old.stop() == 0
    copy(tmp_path / "job_manager.db", url)
    count = int(server.sql("select count(*) from easyjobs.jobs", "ticking"))
    new = start(EASYJOBS_STORE=url)
    until("it has run again, twice", lambda: len(results(new)) >= count + 2)
    [after] = schedules(new)
    assert after["id"] == before["id"]
    runs = [job["run_at"] for job in new.get("/jobs/api/v1/jobs?name=remind&limit=500")["items"]]
    assert len(set(runs)) == len(runs)


def test_a_copy_that_is_killed_has_done_nothing(started: Processes, server: Cluster, tmp_path: Path) -> None:
    url, file = database(server, "killed"), tmp_path / "job_manager.db"

    async def fill() -> None:
        store = SqliteStore(str(file), clock=SystemClock())
        await store.open()
        [lane] = await store.offer([TaskRow("Q", "work", b"{}", b"{}")])
        for _ in range(60):
            await submit(store, *[a_job(lane, b'[["%s"],{}]' % (b"x" * 500)) for _ in range(1000)])
        await store.close()

    asyncio.run(fill())
    copying = started.program([sys.executable, "-m", "easyjobs", "db", "copy", str(file), url], name="copy")

    def is_under_way() -> bool:
        # The tables are locked: what it does can be seen only from outside.
        writing = "select count(*) from pg_stat_activity where datname = 'killed' and backend_xid is not null and query ilike 'copy%jobs%'"
        return server.sql(writing).strip() == "1"

    until("some of it is written", is_under_way, every_s=0.02)
    assert copying.is_running
    copying.kill()
    until(
        "the server has noticed",
        lambda: server.sql("select count(*) from pg_stat_activity where datname = 'killed' and pid <> pg_backend_pid()").strip() == "0",
    )
    assert server.sql("select count(*) from easyjobs.jobs", "killed").strip() == "0"
    assert server.sql("select count(*) from easyjobs.tasks", "killed").strip() == "0"
    copy(file, url)
    assert server.sql("select count(*) from easyjobs.jobs", "killed").strip() == "60000"
