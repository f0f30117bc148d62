"""Managers whose every connection but one goes through PgBouncer in transaction mode, as users start them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from easyjobs.client import EasyJobsClient
from easyjobs.stores import transfer, upkeep
from easyjobs.transactions import Enqueuer
from tests.acceptance.seed import PROGRAMS
from tests.pgbouncer import Bouncer, bouncer
from tests.postgres import Cluster, cluster
from tests.processes import Processes, Served, until


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def pooler(server: Cluster) -> Iterator[Bouncer]:
    with bouncer(server) as running:
        yield running


async def test_two_managers_and_a_worker_over_a_pooler(started: Processes, server: Cluster, pooler: Bouncer, tmp_path: Path) -> None:
    server.sql("create database app")
    env = {
        "EASYJOBS_STORE": pooler.url("app"), "EASYJOBS_STORE_LISTEN": server.url("app"), "TEST_DB_PATH": str(tmp_path), "TEST_LEASE_S": "5",
    }  # fmt: skip

    def manager(name: str) -> Served:
        return started.uvicorn("flow_manager:server", directory=PROGRAMS, name=name, env=env).until_ready(40)

    one, two = manager("one"), manager("two")
    worker_env = {"TEST_MANAGER_PORT": str(one.port), "TEST_QUEUE": "A", "TEST_EFFECTS": str(tmp_path / "effects")}
    started.uvicorn("flow_worker:server", directory=PROGRAMS, name="worker", env=worker_env)
    two.until_offered("/A/task/square", "/A/task/build", within_s=40)
    async with EasyJobsClient(f"ws://127.0.0.1:{two.port}", "abcd1234") as client:
        jobs = [await client.submit("A", "square", n) for n in range(200)]
        assert [await job.result(timeout=30) for job in jobs] == [n * n for n in range(200)]
        built = await client.submit("A", "build", url="u", size=1, name="n")
        assert await built.result(timeout=30) == "n: u (1)"
    db = await asyncpg.connect(pooler.url("app").partition("?")[0], statement_cache_size=0)
    async with db.transaction():
        mine = await Enqueuer().submit_in(db, "A", "square", 77)
    await db.close()
    assert two.until_status(mine, "succeeded")["result"] == 77 * 77
    assert "store.deaf" not in one.log + two.log
    found = await upkeep.overview(pooler.url("app"))
    assert found.managers == 2
    one.stop()
    two.stop()
    assert await upkeep.check(pooler.url("app")) == []
    copied = await transfer.copy(pooler.url("app"), str(tmp_path / "copy.db"))
    server.sql("create database again")
    assert await transfer.copy(str(tmp_path / "copy.db"), pooler.url("again")) == copied
    assert copied["jobs"] >= 204


async def test_a_manager_without_a_direct_address_finds_by_itself_what_others_do(
    started: Processes, server: Cluster, pooler: Bouncer, tmp_path: Path
) -> None:
    server.sql("create database deaf")
    env = {"EASYJOBS_STORE": pooler.url("deaf"), "TEST_DB_PATH": str(tmp_path)}
    manager = started.uvicorn("flow_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready(40)
    manager.wait_for_line("store.deaf")
    manager.until_offered("/DEFAULT/task/archive")
    db = await asyncpg.connect(server.url("deaf"))
    async with db.transaction():
        mine = await Enqueuer().submit_in(db, "DEFAULT", "archive", text="x")
    await db.close()
    assert until("it has run", lambda: manager.job(mine)["result"]) == "archived x"
