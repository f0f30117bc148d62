from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from easyjobs.domain.job import NewJob, NewSession, Outcome, Report, Reports, Spec, Submission, TaskRow, Want
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreError, UnknownJob
from easyjobs.runtime.ids import new_id
from easyjobs.services.results import End, Results, Watcher
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(clock=FakeClock())
    await store.open()
    yield store
    await store.close()


async def a_job(store: MemoryStore) -> bytes:
    [lane] = await store.offer([TaskRow("Q", "t", b"{}", b"{}")])
    made = new_id()
    await store.submit([Submission((NewJob(made, Spec(lane), b"[[],{}]"),))])
    return made


async def finish(store: MemoryStore, body: bytes = b"1") -> None:
    [session] = await store.begin([NewSession(b"s" * 16, "w")])
    [claims] = await store.claim([Want(session, (1,), 100)])
    await store.finish([Reports(session, [Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=body) for job in claims.jobs])])


class ToldResults(Results):
    """Tells when somebody begins to wait."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.someone_waits = asyncio.Event()

    def add(self, id: bytes, watcher: Watcher) -> None:
        super().add(id, watcher)
        self.someone_waits.set()


async def settled(results: ToldResults) -> None:
    async with asyncio.timeout(10):
        await results.someone_waits.wait()


async def test_an_end_that_is_told_ends_the_wait(store: MemoryStore) -> None:
    job, results = await a_job(store), ToldResults(store)
    waiting = asyncio.ensure_future(results.wait(job, 60))
    await settled(results)
    results.ended(job, JobState.SUCCEEDED, b"7")
    async with asyncio.timeout(5):
        assert await waiting == End(job, JobState.SUCCEEDED, b"7")
    assert results.watched == {}


async def test_an_end_before_the_wait_is_found_in_the_store(store: MemoryStore) -> None:
    job = await a_job(store)
    await finish(store, b'"x"')
    assert await Results(store).wait(job, 60) == End(job, JobState.SUCCEEDED, b'"x"')


async def test_an_end_between_subscribing_and_reading_is_told_once(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, results = await a_job(store), ToldResults(store)
    told: list[End] = []
    get = store.get

    async def slow(ids: list[bytes]) -> object:
        await finish(store)
        results.ended(job, JobState.SUCCEEDED, b"1")
        return await get(ids)

    monkeypatch.setattr(store, "get", slow)
    await results.watch([job], told.append)
    assert told == [End(job, JobState.SUCCEEDED, b"1")]
    assert results.watched == {}


async def test_an_end_after_an_old_read_is_told(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, results = await a_job(store), ToldResults(store)
    get = store.get

    async def stale(ids: list[bytes]) -> object:
        records = await get(ids)
        results.ended(job, JobState.SUCCEEDED, b"1")
        return records

    monkeypatch.setattr(store, "get", stale)
    async with asyncio.timeout(5):
        assert await results.wait(job, 60) == End(job, JobState.SUCCEEDED, b"1")


async def test_a_wait_that_is_over_is_no_end(store: MemoryStore) -> None:
    job, results = await a_job(store), ToldResults(store)
    assert await results.wait(job, 0) is None
    assert await results.wait(job, 0.01) is None
    assert results.watched == {}


async def test_a_job_that_is_not_there(store: MemoryStore) -> None:
    results = Results(store)
    told: list[End] = []
    with pytest.raises(UnknownJob):
        await results.wait(b"n" * 16, 60)
    await results.watch([b"n" * 16], told.append)
    assert told == [End(b"n" * 16, None, None)]
    assert results.watched == {}


async def test_watchers_are_told_each_once_and_not_after_unwatch(store: MemoryStore) -> None:
    job, results = await a_job(store), ToldResults(store)
    first: list[End] = []
    second: list[End] = []
    third: list[End] = []
    for told in (first, second, third):
        await results.watch([job], told.append)
    results.unwatch([job, b"n" * 16], second.append)
    for _ in range(2):
        results.ended(job, JobState.FAILED, b"{}")
    assert (len(first), len(second), len(third)) == (1, 0, 1)


async def test_a_store_that_cannot_leaves_nothing_watched(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> object:
        raise StoreError("no")

    monkeypatch.setattr(store, "get", fail)
    results = Results(store)
    with pytest.raises(StoreError):
        await results.watch([b"n" * 16], lambda _: None)
    with pytest.raises(StoreError):
        await results.wait(b"n" * 16, 1)
    assert results.watched == {}


async def test_a_cancelled_wait_leaves_nothing_watched(store: MemoryStore) -> None:
    job, results = await a_job(store), ToldResults(store)
    waiting = asyncio.ensure_future(results.wait(job, 60))
    await settled(results)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert results.watched == {}


async def test_closing_ends_every_wait_at_once(store: MemoryStore) -> None:
    job, results = await a_job(store), ToldResults(store)
    waiting = [asyncio.ensure_future(results.wait(job, 60)) for _ in range(3)]
    await settled(results)
    results.close()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [None] * 3
        assert await results.wait(job, 60) is None  # and so does one that comes later
