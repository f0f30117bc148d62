"""The store on PostgreSQL, held to the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from easyjobs.domain.job import NewSession
from easyjobs.domain.lifecycle import JobState
from easyjobs.ports.store import Store
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.postgres.writer import OTHER
from tests.clocks import FakeClock
from tests.contracts.control_contract import ControlContract
from tests.contracts.outbox_contract import OutboxContract
from tests.contracts.quarantine_contract import QuarantineContract
from tests.contracts.schedule_contract import ScheduleContract
from tests.contracts.store_contract import LEASE_S, a_job, claim, submit
from tests.contracts.token_contract import TokenContract
from tests.postgres import RESTORE, Cluster, cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


async def restore(url: str) -> None:
    """Empty the tables, where there are any."""
    db = await asyncpg.connect(url)
    if await db.fetchval("select to_regclass('easyjobs.jobs') is not null"):
        await db.execute(RESTORE)
    await db.close()


class TestPostgresStore(ControlContract, OutboxContract, QuarantineContract, ScheduleContract, TokenContract):
    @pytest.fixture
    async def store(self, server: Cluster, clock: FakeClock) -> AsyncIterator[Store]:
        await restore(server.url())
        store = PostgresStore(server.url(), clock=clock, lease_s=LEASE_S, test_clock=clock)
        await store.open()
        yield store
        await store.close()

    async def force(self, store: Store, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        assert isinstance(store, PostgresStore)
        writer = store._writer

        async def change() -> None:
            if cancel_requested:
                await writer._db.execute("update easyjobs.jobs set cancel_requested = true where seq = $1", seq)
            if state is not None:
                lane, before = await writer._db.fetchrow("select lane, state from easyjobs.jobs where seq = $1", seq)
                await writer._db.execute("update easyjobs.jobs set state = $2 where seq = $1", seq, int(state))
                writer._move(lane, before, state)

        await store._call(OTHER, change)

    async def lines_of(self, store: Store, seq: int) -> int:
        assert isinstance(store, PostgresStore)
        tables = "select (select count(*) from easyjobs.logs where seq = $1) + (select count(*) from easyjobs.seen where seq = $1)"
        count: int = await store._read(lambda db: db.fetchval(tables, seq))
        return count

    async def test_a_step_of_the_system_clock_ends_no_lease(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        """Here it is the server's clock, and a lease is a row with a time: so after a step no lease is ended for the time of one."""
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        assert await store.rescue() == []
        for step in (86_400, -2 * 86_400, 86_400):
            clock.set_system_clock(step)
            assert await store.rescue() == []
            clock.advance(LEASE_S - 1)
            assert await store.rescue() == []
            assert await store.renew([session]) == [True]
        clock.advance(LEASE_S + 1)
        assert [each.job.seq for each in await store.rescue()] == [job.seq]
        assert await store.begin([NewSession(b"x" * 16, "other")]) == [session + 1]
