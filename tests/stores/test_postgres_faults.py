"""PostgreSQL goes away in every way that it can: what was answered is true, and no restart of ours is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from easyjobs.domain.job import IdempotencyKey, JobQuery, NewJob, NewSession, Spec, Submission, SubmitVerdict, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError, StoreError, StoreFull
from easyjobs.ports.store import News
from easyjobs.runtime.batcher import Call
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores.postgres import PostgresStore, connection, hints, writer
from easyjobs.stores.postgres import store as store_module
from tests.contracts.store_contract import a_job, an_id, assert_counts_are_exact, claim, finish, submit, succeeded
from tests.contracts.test_postgres import restore
from tests.faults.proxy import Cutter
from tests.postgres import Cluster, cluster, standby_of
from tests.processes import free_port

LEASE_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster(port=free_port()) as running:
        yield running


@pytest.fixture
def proxy(server: Cluster) -> Iterator[Cutter]:
    assert server.port is not None
    with Cutter(server.port) as running:
        yield running


@pytest.fixture
async def store(server: Cluster, proxy: Cutter) -> AsyncIterator[PostgresStore]:
    """Behind the proxy."""
    await restore(server.url())
    store = behind(proxy.port)
    await store.open()
    yield store
    await store.close()


def behind(port: int) -> PostgresStore:
    return PostgresStore(f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable", clock=SystemClock(), lease_s=LEASE_S)


async def a_lane(store: PostgresStore) -> tuple[int, int]:
    [lane] = await store.offer([TaskRow("q", "work", b"{}", b"{}")])
    [session] = await store.begin([NewSession(os.urandom(16), "w")])
    return lane, session


# --- a COMMIT without an answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", ["request", "reply"])
async def test_what_became_of_a_commit_is_found_out(store: PostgresStore, proxy: Cutter, cuts: str) -> None:
    lane, session = await a_lane(store)
    proxy.cuts = cuts
    [answer] = await store.submit([Submission(tuple(a_job(lane) for _ in range(5)))])
    assert answer.verdict is SubmitVerdict.ACCEPTED
    proxy.cuts = cuts
    jobs = await claim(store, session, lane, room=3)
    assert [(job.id, job.attempt) for job in jobs] == [(id, 1) for id in answer.ids[:3]]
    proxy.cuts = cuts
    verdicts = await finish(store, session, *(succeeded(job) for job in jobs))
    assert {verdict.state for verdict in verdicts} == {JobState.SUCCEEDED}
    assert proxy.times == 3
    assert await store.counts() == {(lane, JobState.QUEUED): 2, (lane, JobState.SUCCEEDED): 3}
    await assert_counts_are_exact(store)


async def test_a_fail_over_in_the_middle_of_a_commit_loses_nothing_and_runs_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3, with a standby that is waited for. The new server cannot tell what became of the old one's transaction."""
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)
    for what in ("submit", "claim", "finish"):
        with (
            cluster("synchronous_standby_names=*", "synchronous_commit=local", port=free_port()) as primary,
            standby_of(primary, free_port()) as standby,
            Cutter(primary.port or 0) as proxy,
        ):
            url = f"postgresql://postgres@127.0.0.1:{proxy.port},127.0.0.1:{standby.port}/postgres?sslmode=disable"
            store = PostgresStore(url, clock=SystemClock(), lease_s=LEASE_S)
            await store.open()
            told: list[str] = []
            store.on_failed_over = lambda told=told: told.append("failed over")  # type: ignore[misc]
            lane, session = await a_lane(store)

            def fail_over(primary: Cluster = primary, standby: Cluster = standby, proxy: Cutter = proxy) -> None:
                primary.stop(signal.SIGQUIT)
                proxy.refuse()
                standby.sql("select pg_promote()")

            proxy.on_cut = fail_over
            jobs = tuple(a_job(lane) for _ in range(5))
            proxy.cuts = "reply" if what == "submit" else None
            [answer] = await store.submit([Submission(jobs)])
            assert answer.verdict in (SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED)
            assert answer.ids == tuple(job.id for job in jobs)
            proxy.cuts = "reply" if what == "claim" else None
            claimed = await claim(store, session, lane, room=3)
            assert [(job.id, job.attempt) for job in claimed] == [(job.id, 1) for job in jobs[:3]]
            proxy.cuts = "reply" if what == "finish" else None
            verdicts = await finish(store, session, *(succeeded(job) for job in claimed))
            assert {verdict.state for verdict in verdicts} == {JobState.SUCCEEDED}
            assert proxy.times == 1
            assert await store.counts() == {(lane, JobState.QUEUED): 2, (lane, JobState.SUCCEEDED): 3}
            await assert_counts_are_exact(store)
            assert store._writer._rescue_from > store.clock.now()  # no lease is ended for the time of one
            assert len(await claim(store, session, lane, room=9)) == 2
            assert told == ["failed over"]
            await submit(store, a_job(lane))
            [later] = await claim(store, session, lane)
            assert later.seq > 2**32  # no number of a job that the old server may have had, and this one lacks
            await store.close()


# --- what is checked at the start -------------------------------------------------------------------------------------------------


async def test_a_server_that_forgets_is_refused_unless_that_is_wanted() -> None:
    with cluster("fsync=off") as forgetful:
        with pytest.raises(ConfigurationError, match=r"fsync = off.*set fsync = on"):
            await PostgresStore(forgetful.url(), clock=SystemClock()).open()
        relaxed = PostgresStore(forgetful.url(), clock=SystemClock(), durability="relaxed")
        await relaxed.open()
        await relaxed.close()


async def test_commits_are_synchronous_whatever_the_server_says() -> None:
    with cluster("synchronous_commit=off") as server:
        store = PostgresStore(server.url(), clock=SystemClock())
        await store.open()
        assert await store._writer._db.fetchval("show synchronous_commit") == "on"
        await store.close()


async def test_a_standby_is_refused_in_words() -> None:
    with (
        cluster(port=free_port()) as primary,
        standby_of(primary, free_port()) as standby,
        pytest.raises(StoreError, match=r"is a standby.*connect to the primary"),
    ):
        await behind(standby.port or 0).open()


# --- the connection ---------------------------------------------------------------------------------------------------------------


async def test_a_connection_that_was_cut_in_silence_is_noticed_and_made_anew(
    server: Cluster, proxy: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMAND_S", 1.0)
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)
    await restore(server.url())
    store = behind(proxy.port)
    await store.open()
    lane, _ = await a_lane(store)
    [before] = await submit(store, a_job(lane))
    assert await store.get([before])
    proxy.to_manager.clear()  # everything is sent, nothing arrives
    job = a_job(lane)
    async with asyncio.timeout(60):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
            await store.submit([Submission((job,))])
        with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
            await store.get([before])
    proxy.cut()
    proxy.to_manager.set()
    [answer] = await store.submit([Submission((job,))])
    assert answer.ids == (job.id,)
    assert [record is not None for record in await store.get([before, job.id])] == [True, True]
    assert await store.counts() == {(lane, JobState.QUEUED): 2}
    await store.close()


async def test_a_listening_connection_that_was_cut_in_silence_is_made_anew(
    server: Cluster, store: PostgresStore, proxy: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "PING_S", 0.2)
    monkeypatch.setattr(hints, "RETRY_S", 0.05)
    heard: asyncio.Queue[News] = asyncio.Queue()
    store.on_news = heard.put_nowait
    other = PostgresStore(server.url(), clock=SystemClock(), lease_s=LEASE_S)
    await other.open()
    lane, _ = await a_lane(other)

    async def until(condition: Callable[[News], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition(await heard.get()):
                pass

    await until(lambda news: news.is_more)
    listeners = "select count(*) from pg_stat_activity where query like '%pg_notify%' or query like 'LISTEN%'"
    assert int(server.sql(listeners)) >= 1
    proxy.to_worker.clear()  # what it is told does not arrive any more
    await submit(other, a_job(lane))
    await asyncio.to_thread(threading.Event().wait, 0.5)
    while not heard.empty():
        heard.get_nowait()
    proxy.cut()
    proxy.to_worker.set()
    await until(lambda news: news.is_more)  # it listens again
    await submit(other, a_job(lane))
    await until(lambda news: lane in news.lanes)
    await other.close()


def test_the_kernel_watches_connections_over_a_network(server: Cluster, proxy: Cutter) -> None:
    async def options() -> list[int]:
        db = await behind(proxy.port)._address.connect()
        opened = db._transport.get_extra_info("socket")
        found = [
            opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        ]
        await db.close()
        return found

    assert asyncio.run(options()) == [1, 10, 6000]


async def test_a_server_without_free_connections_is_waited_for() -> None:
    with cluster("max_connections=8", "superuser_reserved_connections=1") as small:
        small.sql("create role jobs login; grant create on database postgres to jobs")
        url = small.url().replace("postgres@", "jobs@")
        store = PostgresStore(url, clock=SystemClock(), lease_s=LEASE_S)
        await store.open()
        lane, session = await a_lane(store)
        [first] = await submit(store, a_job(lane))
        small.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'jobs'")
        taken: list[asyncpg.Connection] = []
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while len(taken) < 20:
                taken.append(await asyncpg.connect(url))
        assert len(taken) < 20
        async with asyncio.timeout(30):
            with pytest.raises(StoreError, match="TooManyConnections"):
                await submit(store, a_job(lane))
            with pytest.raises(StoreError, match="TooManyConnections"):
                await store.get([first])
        for one in taken:
            await one.close()
        [second] = await submit(store, a_job(lane))
        assert {job.id for job in await claim(store, session, lane, room=9)} == {first, second}
        await store.close()


# --- strangers --------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def locked_jobs(server: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A stranger has the whole table, and what waits for it can be asked."""
    stranger = await asyncpg.connect(server.url())
    try:
        await stranger.execute("begin; lock table easyjobs.jobs in access exclusive mode")
        yield stranger
    finally:
        await stranger.close()


async def until_waits(stranger: asyncpg.Connection) -> None:
    """Until somebody waits for a lock."""
    async with asyncio.timeout(20):
        while not await stranger.fetchval("select count(*) from pg_locks where not granted"):  # noqa: ASYNC110 (the server tells nobody)
            await asyncio.sleep(0.01)


async def test_a_lock_on_the_jobs_is_waited_for_once_however_many_calls_have_keys(
    server: Cluster, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for keys that somebody holds: each half of the batch, and of that, waited again."""
    lane, _ = await a_lane(store)
    tries = 0
    transact = store._writer._transact

    async def counted(calls: list[Call]) -> list[object]:
        nonlocal tries
        tries += 1
        return await transact(calls)

    monkeypatch.setattr(store._writer, "_transact", counted)
    monkeypatch.setattr(writer, "GIVE_UP_S", 1.0)
    keys = [IdempotencyKey("p", "s", f"k{n}", b"body") for n in range(8)]
    async with locked_jobs(server):
        calls = [store.submit([Submission((a_job(lane),), key)]) for key in keys] + [
            store.submit([Submission((a_job(lane),))]) for _ in keys
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreError] * 16
        assert tries <= writer.TRIES
    assert len(await submit(store, a_job(lane))) == 1


async def test_after_a_batch_that_was_given_up_the_next_one_is_given_up_earlier(
    server: Cluster, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it has waited for the other one: nobody waits for two of them."""
    lane, _ = await a_lane(store)
    await store._writer._db.execute("set lock_timeout = '100ms'")
    monkeypatch.setattr(writer, "GIVE_UP_S", 0.5)
    monkeypatch.setattr(writer, "GIVE_UP_AGAIN_S", 0.0)
    tries: list[int] = []
    transact = store._writer._transact

    async def counted(calls: list[Call]) -> list[object]:
        tries.append(id(calls))
        return await transact(calls)

    monkeypatch.setattr(store._writer, "_transact", counted)
    async with locked_jobs(server):
        for _ in range(2):
            with pytest.raises(StoreError, match="LockNotAvailable"):
                await submit(store, a_job(lane))
        assert tries.count(tries[0]) > 1
        assert tries.count(tries[-1]) == 1
    await submit(store, a_job(lane))
    assert not store._writer._is_stuck


async def test_no_lease_is_ended_for_the_time_in_which_nothing_could_be_written(server: Cluster, proxy: Cutter) -> None:
    """A lock that outlasts a lease: workers could not renew, and are alive."""
    await restore(server.url())
    store = PostgresStore(server.url(), clock=SystemClock(), lease_s=1.0)
    await store.open()
    lane, session = await a_lane(store)
    await submit(store, a_job(lane))
    [job] = await claim(store, session, lane)
    [until_us] = await lease_of(server, session)
    async with locked_jobs(server) as stranger:
        waiting = asyncio.ensure_future(submit(store, a_job(lane)))
        await until_waits(stranger)
        rescue = asyncio.ensure_future(store.rescue())
        await asyncio.sleep(max(0.0, (until_us - store.clock.now()) / 1e6) + 0.1)  # it has ended
    await waiting
    assert await rescue == []
    assert await store.renew([session]) == [True]
    assert {verdict.state for verdict in await finish(store, session, succeeded(job))} == {JobState.SUCCEEDED}
    [other] = await claim(store, session, lane)
    async with asyncio.timeout(30):  # a worker that is really gone
        while not (rescued := await store.rescue()):  # noqa: ASYNC110 (its lease ends by itself)
            await asyncio.sleep(0.05)
    assert [one.job.id for one in rescued] == [other.id]
    await store.close()


async def test_readers_do_not_wait_for_each_other_without_an_end(
    server: Cluster, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a connection, and each of them may wait for a lock."""
    monkeypatch.setattr(store_module, "TURN_S", 0.2)
    lane, _ = await a_lane(store)
    [job] = await submit(store, a_job(lane))
    assert await store.get([job])
    async with locked_jobs(server) as stranger:
        first = asyncio.ensure_future(store.get([job]))
        await until_waits(stranger)
        for answer in await asyncio.gather(*(store.get([job]) for _ in range(5)), return_exceptions=True):
            assert isinstance(answer, StoreError)
            assert "has not answered others" in str(answer)
        assert not first.done()
    assert [record.id for record in await first if record is not None] == [job]
    assert await store.get([job])


async def lease_of(server: Cluster, session: int) -> list[int]:
    db = await asyncpg.connect(server.url())
    try:
        return [row[0] for row in await db.fetch("select lease_until from easyjobs.sessions where number = $1", session)]
    finally:
        await db.close()


async def test_transactions_are_read_committed_whatever_the_server_says() -> None:
    """Statements look again at rows that they have waited for: with another level, they would fail."""
    with cluster("default_transaction_isolation=serializable") as server:
        store = PostgresStore(server.url(), clock=SystemClock())
        await store.open()
        assert await store._call(writer.OTHER, lambda: store._writer._db.fetchval("show transaction_isolation")) == "read committed"
        await store.close()


# --- the disk ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 48 MiB, with a directory `space` of the server's user."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    with tempfile.TemporaryDirectory(prefix="easyjobs-disk-") as name:
        where = Path(name)
        where.chmod(0o755)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=755", "tmpfs", name], check=False).returncode:
            pytest.skip("nothing may be mounted here")
        try:
            (where / "space").mkdir()
            shutil.chown(where / "space", "postgres", "postgres")
            yield where
        finally:
            subprocess.run(["umount", name], check=True)


async def test_a_full_disk_refuses_new_jobs_keeps_the_others_and_is_recovered_from(small_disk: Path) -> None:
    """The tables' disk. (Where the log of the server is on the same one and finds no room, the server ends: as any other that was killed.)"""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(16 << 20))
    with cluster() as server:
        server.sql(f"create tablespace small location '{small_disk / 'space'}'")
        server.sql("create database tight tablespace small")
        store = PostgresStore(server.url("tight"), clock=SystemClock(), lease_s=LEASE_S)
        await store.open()
        lane, session = await a_lane(store)
        accepted: list[bytes] = []

        async def fill() -> None:
            while True:
                jobs = [NewJob(an_id(), Spec(lane), b'[["' + os.urandom(50_000).hex().encode() + b'"],{}]') for _ in range(5)]
                [answer] = await store.submit([Submission(tuple(jobs))])
                accepted.extend(answer.ids)

        with pytest.raises(StoreFull):
            await fill()
        assert len(accepted) > 20
        assert len([record for record in await store.get(accepted) if record is not None]) == len(accepted)
        ballast.unlink()
        more = await submit(store, a_job(lane))
        ran: set[bytes] = set()
        while jobs := await claim(store, session, lane, room=1000):
            ran |= {job.id for job in jobs}
            verdicts = await finish(store, session, *(succeeded(job) for job in jobs))
            assert {verdict.state for verdict in verdicts} == {JobState.SUCCEEDED}
        assert ran == {*accepted, *more}
        await assert_counts_are_exact(store)
        assert await store.page(JobQuery(limit=1))
        await store.close()
