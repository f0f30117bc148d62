"""The random walks of `test_walk` and `test_schedule_walk`, on PostgreSQL beside the store in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from easyjobs.domain.job import Change, JobQuery, NewSession, TaskRow
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.ports.store import Store
from easyjobs.stores.memory import MemoryStore
from easyjobs.stores.postgres import PostgresStore
from tests.contracts import test_schedule_walk, test_walk
from tests.contracts.test_postgres import restore
from tests.contracts.test_walk import LANES, SESSIONS, STEPS, an_id, on_failure
from tests.postgres import Cluster, cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


class Level:
    """Keeps PostgreSQL's sequence level with memory's: what is rolled back uses up numbers there, and the walker's ids follow them."""

    def __init__(self, memory: MemoryStore, postgres: PostgresStore) -> None:
        self.memory, self.writer, self.before = memory, postgres._writer, 0
        look_closer = self.writer._look_closer

        async def look_closer_from_the_same_number() -> None:
            await self.set(self.before)
            await look_closer()

        self.writer._look_closer = look_closer_from_the_same_number  # type: ignore[method-assign]

    async def set(self, last: int) -> None:
        name = "pg_get_serial_sequence('easyjobs.jobs', 'seq')"
        await self.writer._db.fetchval(f"select setval({name}, {max(last, 1)}, {'true' if last else 'false'})")

    async def step(self) -> None:
        self.before = self.memory._last_seq
        await self.set(self.before)


async def walk(seed: int, url: str) -> None:
    await restore(url)
    walker = test_walk.Walker(seed)
    memory = MemoryStore(clock=walker.clock, lease_s=30)
    postgres = PostgresStore(url, clock=walker.clock, lease_s=30, test_clock=walker.clock)
    stores: list[Store] = [memory, postgres]
    for store in stores:
        store.successors = on_failure
        await store.open()
        await store.offer([TaskRow("q", f"t{lane}", b"", b"") for lane in LANES])
        await store.begin([NewSession(an_id(number), f"w{number}") for number in SESSIONS])
    level = Level(memory, postgres)
    try:
        told: list[list[Change]] = [[], []]
        for store, changes in zip(stores, told, strict=True):
            store.on_change = changes.extend
        for _ in range(STEPS):
            walker.clock.advance(0.001)  # so that no two calls share an instant
            await level.step()
            answers = await walker.step(stores, memory)
            assert answers == answers[:1] * len(answers), walker.last
            await asyncio.sleep(0)
            assert told[0] == told[1], walker.last
        pages = [await store.page(JobQuery(limit=10_000)) for store in stores]
        assert [msgspec.structs.asdict(job) for job in pages[0]] == [msgspec.structs.asdict(job) for job in pages[1]]
        counted = dict(Counter((job.lane, job.state) for job in pages[0]))
        for store in stores:
            assert await store.counts() == counted
            assert await store.running(SESSIONS) == await memory.running(SESSIONS)
    finally:
        for store in stores:
            await store.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(1)
@example(2)
@example(3)
@given(st.integers(0, 2**32))
def test_both_stores_walk_the_same_way(server: Cluster, seed: int) -> None:
    asyncio.run(walk(seed, server.url()))


async def walk_schedules(seed: int, url: str) -> None:
    await restore(url)
    walker = test_schedule_walk.Walker(seed)
    memory = MemoryStore(clock=walker.clock)
    postgres = PostgresStore(url, clock=walker.clock, test_clock=walker.clock)
    stores: list[Store] = [memory, postgres]
    for store in stores:
        await store.open()
        await store.offer([TaskRow("Q", name, b"{}", b"{}") for name in "ab"])
        await store.begin([NewSession(b"s" * 16, "w")])
    level = Level(memory, postgres)
    for _ in range(test_schedule_walk.STEPS):
        await level.step()
        first, second = await walker.step(stores)
        assert first == second
        one, two = [await store.schedules() for store in stores]
        assert one == two
        assert await stores[0].due_schedules() == await stores[1].due_schedules()
    assert len(set(walker.born)) == len(walker.born), "a tick was born twice"
    for store in stores:
        jobs = await store.page(JobQuery(limit=10_000))
        assert len(jobs) == len(walker.born) + walker.by_hand
        assert {job.state for job in jobs} <= {JobState.QUEUED} | FINAL
        await store.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_both_stores_agree_on_every_walk_of_schedules(server: Cluster, seed: int) -> None:
    asyncio.run(walk_schedules(seed, server.url()))
