"""Everything that a store holds, in another store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from easyjobs.domain.job import JobRecord, NewJob, NewSession, Spec, Submission, SubmitVerdict, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import QuarantineQuery
from easyjobs.errors import ConfigurationError, StoreError
from easyjobs.ports.store import Store
from easyjobs.stores import transfer, upkeep
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, all_jobs, an_id, claim, finish, look, read, submit, succeeded
from tests.everything import KEY, TRACE, UNIQUE, fill
from tests.postgres import Cluster, cluster

numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def filled(tmp_path: Path, clock: FakeClock) -> tuple[str, dict[str, bytes]]:
    path = str(tmp_path / "old.db")
    store = SqliteStore(path, clock=clock)
    await store.open()
    ids = await fill(store, clock)
    await store.close()
    return path, ids


@pytest.fixture
def url(server: Cluster) -> str:
    name = f"copy_{next(numbers)}"
    server.sql(f"create database {name}")
    return server.url(name)


async def seen_of(store: Store, ids: dict[str, bytes]) -> dict[str, Any]:
    """All that can be seen of a store through its port."""
    return {
        "jobs": await all_jobs(store),
        "tasks": await store.tasks(),
        "schedules": await store.schedules(),
        "paused": await store.paused(),
        "counts": {key: n for key, n in (await store.counts()).items() if n},
        "looks": {name: await look(store, id) for name, id in ids.items()},
        "attempts": await store.attempts(list(ids.values())),
        "children": await store.children(list(ids.values())),
        "unsent": await store.unsent("rabbitmq"),
        "quarantined": [
            msgspec.structs.replace(each, detail=each.detail.replace("\0", "\ufffd")) for each in await store.quarantined(QuarantineQuery())
        ],
        "tokens": await store.tokens(),
        "ahead": await store.ahead(list(ids.values())),
    }


async def opened(store: Store) -> Store:
    await store.open()
    return store


async def seen_at(address: str, clock: FakeClock, ids: dict[str, bytes]) -> dict[str, Any]:
    if address.startswith("postgresql"):
        store: Store = PostgresStore(address, clock=clock, test_clock=clock)
    else:
        store = SqliteStore(address, clock=clock)
    await store.open()
    try:
        return await seen_of(store, ids)
    finally:
        await store.close()


async def test_everything_goes_to_postgresql_and_back(
    filled: tuple[str, dict[str, bytes]], url: str, clock: FakeClock, tmp_path: Path
) -> None:
    path, ids = filled
    before = await seen_at(path, clock, ids)
    assert {job.state for job in before["jobs"]} == set(JobState)
    told: list[tuple[str, int, int]] = []
    copied = await transfer.copy(path, url, lambda *what: told.append(what))
    assert copied["jobs"] == len(before["jobs"])
    assert ("jobs", copied["jobs"], copied["jobs"]) in told
    assert ("jobs", 1000, copied["jobs"]) in told
    assert all(copied.values()), f"a table without rows shows nothing: {copied}"
    assert await seen_at(url, clock, ids) == before
    assert await upkeep.check(path) == []
    assert await upkeep.check(url) == []
    back = str(tmp_path / "deep" / "back.db")
    assert await transfer.copy(url, back) == copied
    assert await seen_at(back, clock, ids) == before
    assert await upkeep.check(back, is_full=True) == []
    assert sorted(each.name for each in Path(back).parent.iterdir()) == ["back.db", "back.db.lock"]


async def test_life_goes_on_in_the_copy(filled: tuple[str, dict[str, bytes]], url: str, clock: FakeClock) -> None:
    path, ids = filled
    old = SqliteStore(path, clock=clock)
    await old.open()
    order = [job.id for job in sorted(await all_jobs(old), key=lambda job: job.seq)]
    await old.close()
    await transfer.copy(path, url)
    store = PostgresStore(url, clock=clock, test_clock=clock)
    await store.open()
    try:
        # Keys hold: the same answers as before.
        other = next(task.lane for task in await store.tasks() if task.name == "other")
        [repeated] = await store.submit([Submission((a_job(other),), KEY)])
        assert (repeated.verdict, repeated.ids) == (SubmitVerdict.REPEATED, (ids["keyed"],))
        [held] = await store.submit([Submission((NewJob(an_id(), Spec(other), b"[[],{}]", None, (), UNIQUE),))])
        assert (held.verdict, held.ids) == (SubmitVerdict.REPEATED, (ids["unique"],))
        # Numbers are not used again, lanes not either.
        [new] = await submit(store, a_job(other))
        assert (await read(store, new)).seq > max(job.seq for job in await all_jobs(store) if job.id != new)
        assert await store.offer([TaskRow("Q", "fourth", b"{}", b"{}")]) == [4]
        [session] = await store.begin([NewSession(b"\x01" * 16, "third")])
        assert session == 3
        # The queue has kept its order: by rank, then seq.
        unlogged = next(task.lane for task in await store.tasks() if task.name == "unlogged")
        jobs = await claim(store, session, unlogged, room=5)
        assert [job.id for job in jobs] == [id for id in order if id in {each.id for each in await in_lane(store, unlogged)}][:5]
        # A predecessor that ends lets its job go on.
        before = next(job for job in await claim(store, session, other, room=50) if job.args == b"[[3],{}]")
        await finish(store, session, succeeded(before))
        assert (await read(store, ids["waiting"])).state is JobState.QUEUED
        # A session of before comes back, and its report counts.
        running = next(job for job in await store.running([1]) for job in job if job.id == ids["parent"])
        [verdict] = await finish(store, 1, succeeded(running))
        assert verdict.state is JobState.SUCCEEDED
        # What was asked to stop is so still.
        [stopping] = await store.stopping([2])
        assert [job.id for job in stopping] == [ids["stopping"]]
        # What was kept with a job is there.
        assert (await read(store, ids["succeeded"])).traceparent == TRACE
    finally:
        await store.close()


async def in_lane(store: Store, lane: int) -> list[JobRecord]:
    return [job for job in await all_jobs(store) if job.lane == lane]


async def test_what_runs_is_rescued_where_its_worker_does_not_come_back(
    filled: tuple[str, dict[str, bytes]], url: str, server: Cluster
) -> None:
    path, ids = filled
    await transfer.copy(path, url)
    clock = FakeClock(int(float(server.sql("select extract(epoch from clock_timestamp()) * 1000000"))))
    store = PostgresStore(url, clock=clock, test_clock=clock)
    await store.open()
    try:
        assert await store.rescue() == []
        clock.advance(60)
        rescued = {each.job.id: each.state for each in await store.rescue()}
        assert rescued[ids["parent"]] is JobState.QUEUED
        assert rescued[ids["stopping"]] is JobState.CANCELLED
    finally:
        await store.close()


# --- what is refused, and what an interruption leaves


async def test_a_target_that_holds_jobs_is_refused(
    filled: tuple[str, dict[str, bytes]], url: str, tmp_path: Path, clock: FakeClock
) -> None:
    path, ids = filled
    await transfer.copy(path, url)
    before = await seen_at(url, clock, ids)
    with pytest.raises(ConfigurationError, match="holds jobs already"):
        await transfer.copy(path, url)
    before.pop("unsent")  # has a sender since it was looked at
    assert (await seen_at(url, clock, ids)).items() >= before.items()
    other = str(tmp_path / "other.db")
    await transfer.copy(url, other)
    with pytest.raises(ConfigurationError, match="holds jobs already"):
        await transfer.copy(url, other)
    with pytest.raises(ConfigurationError, match="into itself"):
        await transfer.copy(path, path)
    with pytest.raises(ConfigurationError, match="into itself"):
        await transfer.copy(url, url)


async def test_a_store_whose_manager_runs_is_neither_source_nor_target(
    filled: tuple[str, dict[str, bytes]], url: str, clock: FakeClock, tmp_path: Path
) -> None:
    path, _ = filled
    old = await opened(SqliteStore(path, clock=clock))
    with pytest.raises(ConfigurationError, match="in use by a running manager: stop"):
        await transfer.copy(path, url)
    await old.close()
    new = await opened(PostgresStore(url, clock=clock))
    with pytest.raises(ConfigurationError, match="in use by 1 running manager: stop"):
        await transfer.copy(path, url)
    with pytest.raises(ConfigurationError, match="in use by 1 running manager: stop"):
        await transfer.copy(url, str(tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()
    await new.close()
    await transfer.copy(path, url)


async def test_tasks_of_a_manager_that_was_tried_on_the_target_are_replaced(
    filled: tuple[str, dict[str, bytes]], url: str, clock: FakeClock
) -> None:
    path, ids = filled
    tried = await opened(PostgresStore(url, clock=clock))
    await tried.offer([TaskRow("Q", "other", b"{}", b"{}"), TaskRow("Q", "tried", b"{}", b"{}")])
    await tried.begin([NewSession(b"\x07" * 16, "tried")])
    await tried.close()
    await transfer.copy(path, url)
    assert await seen_at(url, clock, ids) == await seen_at(path, clock, ids)


class _InterruptedError(Exception):
    pass


@pytest.mark.parametrize("at", ["jobs", "logs", "logs, checking"])
async def test_an_interrupted_copy_leaves_the_target_as_it_was_and_can_be_begun_again(
    filled: tuple[str, dict[str, bytes]], url: str, tmp_path: Path, clock: FakeClock, at: str
) -> None:
    path, ids = filled

    def interrupt(what: str, done: int, of: int) -> None:
        if what == at and done:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        await transfer.copy(path, url, interrupt)
    assert (await upkeep.overview(url)).states == {}
    assert (await upkeep.overview(url)).tasks == 0
    await transfer.copy(path, url)
    back = tmp_path / "back.db"
    with pytest.raises(_InterruptedError):
        await transfer.copy(url, str(back), interrupt)
    assert not back.exists()
    (tmp_path / "back.db.copying").write_bytes(b"what a kill has left")
    await transfer.copy(url, str(back))
    assert await seen_at(str(back), clock, ids) == await seen_at(path, clock, ids)


async def test_a_difference_is_found_and_nothing_is_kept(
    filled: tuple[str, dict[str, bytes]], url: str, server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = filled
    await upkeep.migrate(url, 0)
    trigger = """create function public.spoil() returns trigger language plpgsql as $$ begin new.args := 'x'; return new; end $$;
        create trigger spoil before insert on easyjobs.jobs for each row when (new.state = 3) execute function public.spoil()"""
    server.sql(trigger, url.rpartition("?")[0].rpartition("/")[2])
    with pytest.raises(StoreError, match=r"jobs: 1,\d+ rows .* with another checksum: nothing was copied"):
        await transfer.copy(path, url)
    assert (await upkeep.overview(url)).states == {}


async def test_a_source_of_another_schema_version_is_refused(filled: tuple[str, dict[str, bytes]], url: str) -> None:
    path, _ = filled
    apsw.Connection(path).execute("delete from migrations where version = (select max(version) from migrations)")
    with pytest.raises(ConfigurationError, match=r"run `easyjobs db migrate` on it first"):
        await transfer.copy(path, url)
    with pytest.raises(ConfigurationError, match="is not there"):
        await transfer.copy(path + "x", url)


async def test_every_table_is_copied_or_follows_from_what_is(filled: tuple[str, dict[str, bytes]], url: str, server: Cluster) -> None:
    """For whoever adds a table, or a column."""
    path, _ = filled
    left_out = {"counters", "migrations", "meta", "forgotten", "managers", "sqlite_sequence", "traces"}
    own_columns = {"manager", "lease_until", "sender", "sender_until"}  # of PostgreSQL alone: whose connection, until when, who sends
    copied = {table.name: set(table.columns) for table in transfer.TABLES}
    db = apsw.Connection(path)
    tables = {name for (name,) in db.execute("select name from sqlite_schema where type = 'table'")} - left_out
    assert tables == set(copied)
    for table in tables - {"seen"}:
        assert {row[1] for row in db.execute(f"pragma table_info({table})")} == copied[table] - {"traceparent"}
    await upkeep.migrate(url, 0)
    database = url.rpartition("?")[0].rpartition("/")[2]
    found: dict[str, set[str]] = {}
    for line in server.sql(
        "select table_name, column_name from information_schema.columns where table_schema = 'easyjobs'", database
    ).split():
        name, column = line.split("|")
        found.setdefault(name, set()).add(column)
    assert {name: columns - own_columns for name, columns in found.items() if name not in left_out} == copied
