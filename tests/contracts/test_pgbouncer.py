"""The store on PostgreSQL behind PgBouncer in transaction mode, held to the contract: no statement may count on its connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from easyjobs.domain.job import TaskRow
from easyjobs.errors import StoreError
from easyjobs.ports.store import Store
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.postgres.connection import SETTINGS
from tests.clocks import FakeClock
from tests.contracts.store_contract import LEASE_S, a_job, all_jobs, assert_counts_are_exact, submit
from tests.contracts.test_postgres import TestPostgresStore as Contract
from tests.contracts.test_postgres import restore
from tests.pgbouncer import Bouncer, bouncer
from tests.postgres import Cluster, cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def pooler(server: Cluster) -> Iterator[Bouncer]:
    with bouncer(server) as running:
        yield running


class TestPooledStore(Contract):
    @pytest.fixture
    async def store(self, server: Cluster, pooler: Bouncer, clock: FakeClock) -> AsyncIterator[Store]:
        await restore(server.url())
        store = PostgresStore(pooler.url(), clock=clock, lease_s=LEASE_S, test_clock=clock, listen_url=server.url())
        await store.open()
        yield store
        await store.close()


del Contract  # it has run elsewhere


async def test_no_setting_is_left_on_the_servers_connections(pooler: Bouncer, server: Cluster) -> None:
    await restore(server.url())
    store = PostgresStore(pooler.url(), clock=SystemClock(), listen_url=server.url())
    await store.open()
    for _ in range(20):
        await store.check()
        await store.counts()
    direct = await asyncpg.connect(server.url())
    clean = {name: await direct.fetchval("select current_setting($1)", name) for name in SETTINGS}
    await direct.close()
    db = await asyncpg.connect(pooler.url(said=False), statement_cache_size=0)
    backends = set()
    for _ in range(20):
        async with db.transaction():
            backends.add(await db.fetchval("select pg_backend_pid()"))
            assert {name: await db.fetchval("select current_setting($1)", name) for name in SETTINGS} == clean
            assert await db.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0
    assert len(backends) > 1, "this shows nothing with one connection"
    await db.close()
    await store.close()


async def test_our_settings_hold_in_each_transaction(pooler: Bouncer, server: Cluster) -> None:
    store = PostgresStore(pooler.url(), clock=SystemClock(), listen_url=server.url())
    await store.open()
    for _ in range(8):
        for name, value in SETTINGS.items():
            found = await store._read(lambda db, name=name: db.fetchval("select current_setting($1)", name))  # type: ignore[misc]
            assert found == value
    await store.close()


async def test_a_pooler_that_nobody_has_told_of_is_named(pooler: Bouncer) -> None:
    store = PostgresStore(pooler.url(said=False), clock=SystemClock())
    with pytest.raises(StoreError, match=r"a pooler in transaction mode .* \?statement_cache_size=0"):  # noqa: PT012
        await store.open()
        try:
            for _ in range(20):
                await store.check()
                await store.counts()
        finally:
            await store.close()


async def test_without_a_direct_address_it_is_said_once_that_nothing_is_heard(pooler: Bouncer, caplog: pytest.LogCaptureFixture) -> None:
    store = PostgresStore(pooler.url(), clock=SystemClock())
    await store.open()
    await store.check()
    await store.close()
    [said] = [record.getMessage() for record in caplog.records if "store.deaf" in record.getMessage()]
    assert "EASYJOBS_STORE_LISTEN" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_pooler_that_is_restarted_loses_and_repeats_nothing(pooler: Bouncer, server: Cluster, how: signal.Signals) -> None:
    await restore(server.url())
    store = PostgresStore(pooler.url(), clock=SystemClock(), listen_url=server.url())
    await store.open()
    [lane] = await store.offer([TaskRow("Q", "work", b"{}", b"{}")])
    accepted: set[bytes] = set()
    refused: set[bytes] = set()
    is_over = False
    more = asyncio.Event()

    async def submits() -> None:
        while not is_over:
            job = a_job(lane)
            try:
                await submit(store, job)
                accepted.add(job.id)
                more.set()
            except StoreError:
                refused.add(job.id)

    async def until_more() -> None:
        before = len(accepted)
        async with asyncio.timeout(30):
            while len(accepted) < before + 50:
                more.clear()
                await more.wait()

    callers = [asyncio.create_task(submits()) for _ in range(5)]
    for _ in range(2):
        await until_more()
        await asyncio.to_thread(pooler.stop, how)
        await asyncio.to_thread(pooler.start)
    await until_more()
    is_over = True
    await asyncio.gather(*callers)
    found = [job.id for job in await all_jobs(store)]
    assert len(found) == len(set(found))
    assert accepted <= set(found)
    assert set(found) <= accepted | refused
    await assert_counts_are_exact(store)
    await store.close()
