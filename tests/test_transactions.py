"""Jobs that are submitted within a user's own transaction, by every driver that is supported."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from easyjobs.domain.job import IdempotencyKey, NewJob, NewSession, Submission, SubmitVerdict, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError, InvalidArguments, KeyReused, PayloadTooLarge, StoreError, UnknownTask
from easyjobs.ports.store import News
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.ids import id_bytes
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.flow import Flow
from easyjobs.stores import upkeep
from easyjobs.stores.postgres import PostgresStore
from easyjobs.tasks import Registry, Task
from easyjobs.transactions import Enqueuer
from tests.contracts.store_contract import a_job, all_jobs, assert_counts_are_exact, claim, finish, read, submit, succeeded
from tests.contracts.test_postgres import restore
from tests.postgres import Cluster, cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        running.sql("create table orders(id integer)")
        yield running


@pytest.fixture
async def store(server: Cluster) -> AsyncIterator[PostgresStore]:
    await restore(server.url())
    server.sql("truncate orders")
    store = PostgresStore(server.url(), clock=SystemClock())
    await store.open()
    yield store
    await store.close()


class Nobody:
    """The caller of tasks that are only submitted in transactions."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a manager was asked: {name}")


async def a_task(store: PostgresStore, fn: Callable[..., Any], queue: str = "Q", **options: Any) -> Task[..., Any]:
    """A task that a worker offers to a manager."""
    registry = Registry(Nobody(), lambda _: None)  # type: ignore[arg-type]
    task = registry.register(fn, [queue], options)  # type: ignore[arg-type]
    await store.offer([TaskRow(queue, task.name, task.signature_json, task.task_options.to_json())])
    return task


def receipt(order: int, copies: int = 1) -> str:
    return f"{order}"


@dataclass
class Open:
    """A connection with an open transaction."""

    connection: Any
    execute: Callable[[str], Awaitable[Any]]
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]
    is_sync: bool = False

    async def submit(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> bytes:
        job = (
            task.submit_in_sync(self.connection, *args, **kwargs)
            if self.is_sync
            else await task.submit_in(self.connection, *args, **kwargs)
        )
        raw = id_bytes(job.id)
        assert raw is not None
        return raw


Way = Callable[[str], AbstractAsyncContextManager[Open]]


@asynccontextmanager
async def by_asyncpg(url: str) -> AsyncIterator[Open]:
    db = await asyncpg.connect(url)
    transaction = db.transaction()
    await transaction.start()
    yield Open(db, db.execute, transaction.commit, transaction.rollback)
    await db.close()


@asynccontextmanager
async def by_asyncpg_pool(url: str) -> AsyncIterator[Open]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        yield Open(db, db.execute, transaction.commit, transaction.rollback)


@asynccontextmanager
async def by_psycopg(url: str) -> AsyncIterator[Open]:
    async with await psycopg.AsyncConnection.connect(url, row_factory=psycopg.rows.dict_row) as db:
        yield Open(db, db.execute, db.commit, db.rollback)


@asynccontextmanager
async def by_psycopg_sync(url: str) -> AsyncIterator[Open]:
    with psycopg.connect(url, row_factory=psycopg.rows.namedtuple_row) as db:
        yield of_sync(db, db.execute)


def of_sync(connection: Any, execute: Callable[[str], Any]) -> Open:
    async def run(sql: str) -> Any:
        return execute(sql)

    async def commit() -> None:
        connection.commit()

    async def rollback() -> None:
        connection.rollback()

    return Open(connection, run, commit, rollback, is_sync=True)


def of_sqlalchemy(connection: Any) -> Open:
    return Open(connection, lambda sql: connection.execute(text(sql)), connection.commit, connection.rollback)


@asynccontextmanager
async def by_async_session(url: str) -> AsyncIterator[Open]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with AsyncSession(engine) as session:
        yield of_sqlalchemy(session)
    await engine.dispose()


@asynccontextmanager
async def by_async_connection(url: str) -> AsyncIterator[Open]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    async with engine.connect() as connection:
        yield of_sqlalchemy(connection)
    await engine.dispose()


@asynccontextmanager
async def by_session(url: str) -> AsyncIterator[Open]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine) as session:
        yield of_sync(session, lambda sql: session.execute(text(sql)))
    engine.dispose()


@asynccontextmanager
async def by_connection(url: str) -> AsyncIterator[Open]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        yield of_sync(connection, lambda sql: connection.execute(text(sql)))
    engine.dispose()


WAYS = (by_asyncpg, by_asyncpg_pool, by_psycopg, by_async_session, by_async_connection, by_psycopg_sync, by_session, by_connection)
each_way = pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])


# --- with every driver


@each_way
async def test_the_job_is_there_with_the_commit_and_not_before(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt, priority=3, retry_policy=4, timeout=5, result_ttl=6)
    async with way(server.url()) as mine:
        await mine.execute("insert into orders values (7)")
        id = await mine.submit(task, 7, copies=2)
        assert await store.get([id]) == [None]
        await mine.commit()
    record = await read(store, id)
    assert (record.state, record.args, record.priority) == (JobState.QUEUED, b'[[7],{"copies":2}]', 3)
    assert server.sql("select max_retries, timeout_us, ttl_us from easyjobs.jobs").strip() == "4|5000000|6000000"
    await assert_counts_are_exact(store)


@each_way
async def test_a_rollback_takes_the_job_along(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt)
    async with way(server.url()) as mine:
        await mine.execute("insert into orders values (7)")
        await mine.submit(task, 7)
        await mine.rollback()
    assert await all_jobs(store) == []
    assert server.sql("select count(*) from orders").strip() == "0"
    await assert_counts_are_exact(store)


@each_way
async def test_what_is_refused_leaves_the_transaction_whole(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt)
    unknown = Registry(Nobody(), lambda _: None).register(receipt, ["Z"], {})  # type: ignore[arg-type]
    async with way(server.url()) as mine:
        with pytest.raises(InvalidArguments, match="integer"):
            await mine.submit(task, "seven")
        with pytest.raises(InvalidArguments):
            await mine.submit(task)
        with pytest.raises(PayloadTooLarge):
            await mine.submit(await a_task(store, lambda text: text, name="long"), "x" * 2_000_000)
        with pytest.raises(UnknownTask):
            await mine.submit(unknown, 7)
        await mine.execute("insert into orders values (8)")
        await mine.submit(task, 8)
        await mine.commit()
    assert server.sql("select count(*) from orders").strip() == "1"
    assert [job.args for job in await all_jobs(store)] == [b"[[8],{}]"]


@each_way
async def test_options_and_keys_are_those_of_submit(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt)
    async with way(server.url()) as mine:
        first = await mine.submit(task.options(key="order-7", priority=9, delay=3600), 7)
        assert await mine.submit(task.options(key="order-7"), 7) == first
        with pytest.raises(KeyReused):
            await mine.submit(task.options(key="order-7"), 8)
        at = datetime.now(UTC) + timedelta(days=2)
        later = await mine.submit(task.options(at=at), 9)
        await mine.commit()
    record = await read(store, first)
    assert (record.state, record.priority) == (JobState.SCHEDULED, 9)
    assert record.run_at is not None
    assert abs(record.run_at - record.created_at - 3_600_000_000) < 60_000_000
    assert (await read(store, later)).run_at == (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    await assert_counts_are_exact(store)
    async with way(server.url()) as mine:
        assert await mine.submit(task.options(key="order-7"), 7) == first


@each_way
async def test_tables_that_are_not_there_are_a_sentence(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt)
    server.sql("create database bare")
    try:
        async with way(server.url("bare")) as mine:
            with pytest.raises(ConfigurationError, match=r"no tables of easyjobs.*easyjobs db migrate"):
                await mine.submit(task, 7)
            await mine.rollback()
    finally:
        server.sql("drop database bare with (force)")


@each_way
async def test_another_search_path_and_schema_do_no_harm(server: Cluster, store: PostgresStore, way: Way) -> None:
    task = await a_task(store, receipt)
    server.sql(
        "drop schema if exists tenant cascade; create schema tenant; create table tenant.jobs(x integer); create table tenant.tasks(x integer)"
    )
    async with way(server.url()) as mine:
        await mine.execute("set local search_path = tenant")
        id = await mine.submit(task, 7)
        await mine.execute("insert into jobs values (1)")
        await mine.commit()
    assert (await read(store, id)).state is JobState.QUEUED
    assert server.sql("select count(*) from tenant.jobs").strip() == "1"


# --- without a transaction, without a right, without PostgreSQL


async def test_a_connection_that_commits_by_itself_is_refused(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    db = await asyncpg.connect(server.url())
    with pytest.raises(ConfigurationError, match="needs an open transaction"):
        await task.submit_in(db, 7)
    await db.close()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        with pytest.raises(ConfigurationError, match="needs an open transaction"):
            task.submit_in_sync(connection, 7)
        with connection.transaction():
            task.submit_in_sync(connection, 7)
    engine = create_engine(server.url().replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(ConfigurationError, match="needs an open transaction"):
        task.submit_in_sync(session, 7)
    engine.dispose()
    assert len(await all_jobs(store)) == 1


async def test_connections_that_do_not_fit_are_named(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    with (
        sqlite3.connect(":memory:") as lite,
        pytest.raises(ConfigurationError, match=r"sqlite3.Connection is no connection .* AsyncSession"),
    ):
        await task.submit_in(lite, 7)
    lite.close()
    engine = create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(ConfigurationError, match="this connection is of sqlite"):
        task.submit_in_sync(session, 7)
    engine.dispose()
    async with by_session(server.url()) as mine:
        with pytest.raises(ConfigurationError, match="use submit_in_sync"):
            await task.submit_in(mine.connection, 7)
    async with by_asyncpg(server.url()) as mine:
        with pytest.raises(ConfigurationError, match=r"use submit_in$"):
            task.submit_in_sync(mine.connection, 7)
        await mine.rollback()


async def test_a_role_needs_three_rights_and_is_told_so(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    server.sql("drop role if exists app; create role app login; grant all on orders to app")
    url = server.url().replace("postgres@", "app@")
    async with by_asyncpg(url) as mine:
        with pytest.raises(ConfigurationError, match=r"grant usage on schema easyjobs, select on easyjobs.tasks"):
            await mine.submit(task, 7)
        await mine.rollback()
    server.sql(
        "grant usage on schema easyjobs to app; grant select on easyjobs.tasks, easyjobs.managers to app; "
        "grant execute on function easyjobs.submit(text) to app"
    )
    async with by_asyncpg(url) as mine:
        await mine.execute("insert into orders values (1)")
        id = await mine.submit(task.options(key="k"), 7)
        await mine.commit()
    assert (await read(store, id)).state is JobState.QUEUED
    server.sql("drop owned by app; drop role app")


# --- what belongs to a job


async def test_predecessors_come_along_and_the_job_waits_for_them(server: Cluster, store: PostgresStore) -> None:
    await a_task(store, receipt, name="weigh")
    await a_task(store, receipt, queue="other", name="pack", run_before=["Q/weigh"])
    task = await a_task(store, receipt, name="ship", run_before=["weigh", "pack"])
    async with by_asyncpg(server.url()) as mine:
        id = await mine.submit(task, 7)
        await mine.commit()
    jobs = await all_jobs(store)
    assert sorted(job.state.text for job in jobs) == ["queued", "queued", "waiting", "waiting"]
    [children] = await store.children([id])
    assert sorted(child.edge for child in children) == ["run_before:Q/weigh", "run_before:other/pack"]
    await assert_counts_are_exact(store)
    [session] = await store.begin([NewSession(os.urandom(16), "worker")])
    lanes = [row.lane for row in await store.tasks()]
    while claimed := await claim(store, session, *lanes):
        await finish(store, session, *[succeeded(job) for job in claimed])
    assert {job.state for job in await all_jobs(store)} == {JobState.SUCCEEDED}
    await assert_counts_are_exact(store)


async def test_a_predecessor_is_the_same_as_a_manager_makes_it(server: Cluster, store: PostgresStore) -> None:
    """Whatever a manager stores for a submit, is stored here: column by column, but for ids and times."""
    await a_task(store, receipt, name="weigh", priority=4, expires=50, result_ttl=1)
    task = await a_task(store, receipt, name="ship", run_before=["weigh"], unique=True, retry_policy="always", max_crashes=9)
    catalogue = Catalogue(store, SystemClock())
    await catalogue.load()
    job = Flow(catalogue, SystemClock()).job(catalogue.find("Q", "ship"), os.urandom(16), b"[[7],{}]")
    await submit(store, job)
    await store.cancel([job.id])  # so that its unique key is free
    server.sql(
        "update easyjobs.jobs set state = 7 where parent_seq is null; update easyjobs.jobs set state = 0, error = null where parent_seq is not null"
    )
    server.sql("update easyjobs.jobs set finished_at = null; delete from easyjobs.uniques")
    async with by_asyncpg(server.url()) as mine:
        await mine.submit(task, 7)
        await mine.commit()
    own = "seq, id, created_at, expires_at, rank, parent_seq"
    rows = server.sql(f"select to_jsonb(j) - string_to_array('{own}', ', ') from easyjobs.jobs j order by seq").splitlines()
    assert len(rows) == 4
    assert rows[:2] == rows[2:]
    times = server.sql("select expires_at - created_at, rank - created_at, parent_seq - seq from easyjobs.jobs order by seq").splitlines()
    assert times[:2] == times[2:]
    assert server.sql("select states, until from easyjobs.uniques").strip()


async def test_a_unique_key_holds_in_the_transaction_and_after_it(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt, unique=True)
    async with by_asyncpg(server.url()) as mine:
        id = await mine.submit(task, 7)
        assert await mine.submit(task, 7) == id
        assert await mine.submit(task, 8) != id
        await mine.commit()
    async with by_psycopg(server.url()) as mine:
        assert await mine.submit(task, 7) == id
    assert len(await all_jobs(store)) == 2


async def test_what_only_a_manager_can_do_is_refused(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt, results_to="results")
    async with by_asyncpg(server.url()) as mine:
        with pytest.raises(InvalidArguments, match="results_to, whose broker only a manager knows"):
            await mine.submit(task, 7)
        await mine.rollback()


async def test_a_task_is_unknown_when_managers_have_not_been_offered_it_for_ten_minutes(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    server.sql("update easyjobs.tasks set offered_at = offered_at - 900000000")
    await store.check()
    async with by_asyncpg(server.url()) as mine:
        with pytest.raises(UnknownTask):
            await mine.submit(task, 7)
        await mine.rollback()
    # But where no manager was there in these ten minutes, none could be offered it.
    server.sql("update easyjobs.managers set seen_at = seen_at - 900000000")
    async with by_asyncpg(server.url()) as mine:
        await mine.submit(task, 7)
        await mine.commit()
    await store.close()  # and with no manager at all
    async with by_asyncpg(server.url()) as mine:
        await mine.submit(task, 8)
        await mine.commit()
    assert server.sql("select count(*) from easyjobs.jobs").strip() == "2"


async def test_an_enqueuer_needs_no_task(server: Cluster, store: PostgresStore) -> None:
    await a_task(store, receipt)
    jobs = Enqueuer()
    async with by_asyncpg(server.url()) as mine:
        id = await jobs.options(priority=2).submit_in(mine.connection, "Q", "receipt", 7, copies=3)
        await mine.commit()
    async with by_session(server.url()) as mine:
        other = jobs.submit_in_sync(mine.connection, "Q", "receipt", order=8)
        await mine.commit()
    found = {job.id: (job.args, job.priority) for job in await all_jobs(store)}
    assert found == {id_bytes(id): (b'[[7],{"copies":3}]', 2), id_bytes(other): (b'[[],{"order":8}]', 0)}


# --- beside managers


async def test_managers_are_told_by_the_commit(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    [lane] = [row.lane for row in await store.tasks()]
    news: list[News] = []
    heard = asyncio.Event()

    def hear(some: News) -> None:
        news.append(some)
        heard.set()

    async def until(is_it: Callable[[News], bool]) -> None:
        async with asyncio.timeout(10):
            while not any(is_it(some) for some in news):
                heard.clear()
                await heard.wait()

    store.on_news = hear
    async with asyncio.timeout(10):
        while not news:  # until it listens
            server.sql("select pg_notify('easyjobs', '[0,[],true,false,0]')")
            await asyncio.sleep(0.05)
    async with by_psycopg(server.url()) as mine:
        await mine.submit(task, 7)
        server.sql("select pg_notify('easyjobs', '[0,[77],false,false,0]')")
        await until(lambda some: some.lanes == (77,))
        assert (lane,) not in [some.lanes for some in news]
        await mine.commit()
        await until(lambda some: some == News((lane,), has_ended=False, is_more=False))
        await mine.submit(task.options(delay=60), 7)
        await mine.commit()
        await until(lambda some: some.is_more)
    assert not store.has_others


async def test_an_open_transaction_holds_up_no_manager(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    [lane] = [row.lane for row in await store.tasks()]
    [session] = await store.begin([NewSession(os.urandom(16), "worker")])
    async with by_asyncpg(server.url()) as mine, by_psycopg(server.url()) as other:
        await mine.submit(task, 1)
        await other.submit(task, 2)
        async with asyncio.timeout(5):
            await submit(store, a_job(lane))
            [job] = await claim(store, session, lane)
            await finish(store, session, succeeded(job))
            await store.prune(1, 1)
            await store.check()
        await mine.commit()
        await other.rollback()
    await assert_counts_are_exact(store)


async def test_a_key_that_an_open_transaction_holds_refuses_its_like_and_nobody_else(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt, unique=True)
    [lane] = [row.lane for row in await store.tasks()]
    catalogue = Catalogue(store, SystemClock())
    await catalogue.load()
    flow = Flow(catalogue, SystemClock())

    def same() -> NewJob:
        return flow.job(catalogue.find("Q", "receipt"), os.urandom(16), b"[[7],{}]")

    async with by_asyncpg(server.url()) as mine:
        id = await mine.submit(task, 7)
        held, *others = await asyncio.gather(
            store.submit([Submission((same(),))]), *(store.submit([Submission((a_job(lane),))]) for _ in range(3)), return_exceptions=True
        )
        assert isinstance(held, StoreError)
        assert "part of a transaction that is still open" in str(held)
        assert [each[0].verdict for each in others if not isinstance(each, BaseException)] == [SubmitVerdict.ACCEPTED] * 3
        await mine.commit()
    [answer] = await store.submit([Submission((same(),))])
    assert (answer.verdict, answer.ids) == (SubmitVerdict.REPEATED, (id,))
    await assert_counts_are_exact(store)


async def test_counts_of_transactions_are_folded_into_those_of_a_manager(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    async with by_asyncpg(server.url()) as mine:
        for n in range(20):
            await mine.submit(task, n)
        await mine.commit()
    await assert_counts_are_exact(store)
    assert server.sql("select count(*) from easyjobs.counters where manager < 0").strip() == "20"
    await store.prune(1, 1)
    assert server.sql("select count(*) from easyjobs.counters where manager < 0").strip() == "0"
    await assert_counts_are_exact(store)
    assert await upkeep.check(server.url()) == []


async def test_a_key_of_a_transaction_and_one_of_a_manager_are_the_same(server: Cluster, store: PostgresStore) -> None:
    task = await a_task(store, receipt)
    async with by_asyncpg(server.url()) as mine:
        id = await mine.submit(task.options(key="k"), 7)
        await mine.commit()
    key = server.sql("select principal || '|' || scope || '|' || key from easyjobs.idempotency").strip()
    assert key == "secret|Q/receipt|k"
    body = bytes.fromhex(server.sql("select encode(body, 'hex') from easyjobs.idempotency").strip())
    [lane] = [row.lane for row in await store.tasks()]
    [answer] = await store.submit([Submission((a_job(lane),), IdempotencyKey("secret", "Q/receipt", "k", body))])
    assert (answer.verdict, answer.ids) == (SubmitVerdict.REPEATED, (id,))
