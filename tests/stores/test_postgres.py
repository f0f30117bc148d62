"""What several managers do to one PostgreSQL at the same time, and what happens when the connection or the server goes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from easyjobs.domain.job import (
    IdempotencyKey,
    JobQuery,
    NewJob,
    NewSession,
    Parent,
    Reports,
    Spec,
    Submission,
    SubmitVerdict,
    TaskRow,
    UniqueKey,
    Want,
)
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import Fired, Firing, NewSchedule, TaskSchedules, Tick
from easyjobs.errors import ConfigurationError, MissingExtra, StoreError
from easyjobs.ports.store import News, SharedStore, token
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores import open_store
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.postgres.connection import Address
from easyjobs.stores.postgres.writer import lock_number
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, an_id, assert_counts_are_exact, claim, failed, finish, read, submit, succeeded
from tests.contracts.test_postgres import restore
from tests.postgres import Cluster, cluster

LEASE_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def stores(server: Cluster, clock: FakeClock) -> AsyncIterator[list[PostgresStore]]:
    """Two managers."""
    await restore(server.url())
    opened = [PostgresStore(server.url(), clock=clock, lease_s=LEASE_S, test_clock=clock) for _ in range(2)]
    for store in opened:
        await store.open()
    yield opened
    for store in opened:
        await store.close()


@pytest.fixture
async def lane(stores: list[PostgresStore]) -> int:
    [lane] = await stores[0].offer([TaskRow("q", "work", b"{}", b"{}")])
    return lane


@pytest.fixture
async def sessions(stores: list[PostgresStore]) -> list[int]:
    """One at each manager."""
    return [(await store.begin([NewSession(os.urandom(16), "w")]))[0] for store in stores]


async def both(stores: list[PostgresStore], call: Callable[[PostgresStore], Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*(call(store) for store in stores))


# --- at the same time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [True, False], ids=["managers that know of each other", "and that do not"])
async def test_each_job_is_given_once_and_ends_once(stores: list[PostgresStore], lane: int, sessions: list[int], is_known: bool) -> None:
    count = 600
    await both(stores, lambda store: store.submit([Submission((a_job(lane),)) for _ in range(count // 2)]))
    got: list[list[int]] = [[], []]

    async def work(number: int) -> None:
        while left(await stores[number].counts()):
            stores[number]._writer.has_others = is_known
            jobs = await claim(stores[number], sessions[number], lane, room=7)
            got[number] += [job.seq for job in jobs]
            await finish(stores[number], sessions[number], *(succeeded(job) for job in jobs))

    def left(counts: dict[tuple[int, JobState], int]) -> int:
        return counts.get((lane, JobState.QUEUED), 0)

    await asyncio.gather(work(0), work(1))
    assert len(got[0] + got[1]) == len(set(got[0] + got[1])) == count
    assert got[0]
    assert got[1]
    assert (await stores[0].counts()) == {(lane, JobState.SUCCEEDED): count}
    await assert_counts_are_exact(stores[1])


async def test_the_last_two_predecessors_end_at_two_managers(stores: list[PostgresStore], lane: int, sessions: list[int]) -> None:
    jobs = [
        NewJob(an_id(), Spec(lane), b"[[],{}]", befores=tuple(
            NewJob(an_id(), Spec(lane), b"[[],{}]", Parent(0, f"run_before:q/{name}")) for name in "ab"
        ))
        for _ in range(20)
    ]  # fmt: skip
    await submit(stores[0], *jobs)
    halves = [await claim(store, session, lane, room=20) for store, session in zip(stores, sessions, strict=True)]
    for pair in zip(*halves, strict=True):
        await asyncio.gather(*(finish(stores[n], sessions[n], succeeded(job)) for n, job in enumerate(pair)))
    assert {(await read(stores[0], job.id)).state for job in jobs} == {JobState.QUEUED}


async def test_a_key_is_used_once_whoever_is_asked(stores: list[PostgresStore], lane: int) -> None:
    for number in range(10):
        key = IdempotencyKey("p", "s", f"k{number}", b"body")
        answers = await both(stores, lambda store, key=key: store.submit([Submission((a_job(lane),), key)]))  # type: ignore[misc]
        assert sorted(answer.verdict for [answer] in answers) == [SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED]
        assert len({answer.ids for [answer] in answers}) == 1
    assert len(await stores[0].page(JobQuery(limit=100))) == 10


async def test_a_unique_job_is_stored_once(stores: list[PostgresStore], lane: int) -> None:
    for number in range(10):
        unique = UniqueKey(b"%d" % number, (JobState.QUEUED,))
        answers = await both(stores, lambda store, unique=unique: store.submit([Submission((NewJob(an_id(), Spec(lane), b"[[],{}]", unique=unique),))]))  # type: ignore[misc]  # fmt: skip
        assert len({answer.ids for [answer] in answers}) == 1
    assert len(await stores[0].page(JobQuery(limit=100))) == 10


async def test_the_same_jobs_submitted_at_two_managers_are_stored_once(stores: list[PostgresStore], lane: int) -> None:
    for _ in range(10):
        jobs = tuple(a_job(lane) for _ in range(5))
        answers = await both(stores, lambda store, jobs=jobs: store.submit([Submission(jobs)]))  # type: ignore[misc]
        assert sorted(answer.verdict for [answer] in answers) == [SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED]
    assert await stores[0].counts() == {(lane, JobState.QUEUED): 50}


async def test_a_tick_is_fired_once(stores: list[PostgresStore], lane: int, clock: FakeClock) -> None:
    await stores[0].schedule([TaskSchedules("q", "work", (NewSchedule("* * * * * *"),))])
    for _ in range(10):
        clock.advance(1)
        due = (await stores[0].due_schedules()).schedules[0]
        assert due.next_at is not None
        at = due.next_at
        answers = await both(
            stores,
            lambda store, at=at, due=due: store.fire([Firing(due.id, due.version, at, at + 1_000_000, (Tick(at, a_job(lane)),))]),  # type: ignore[misc]
        )
        assert sorted(said for [[said]] in answers) == [Fired.BORN, Fired.STALE]
    assert await stores[1].counts() == {(lane, JobState.QUEUED): 10}


async def test_managers_whose_clocks_are_wrong_fire_by_that_of_the_server(server: Cluster) -> None:
    """C2: one is five minutes ahead, one behind; each decision is by the database's time."""
    await restore(server.url())
    true = SystemClock()
    clocks = [FakeClock(true.now() + minutes * 60_000_000) for minutes in (5, 0, -5)]
    opened = [PostgresStore(server.url(), clock=clock, lease_s=LEASE_S) for clock in clocks]
    for store in opened:
        await store.open()
    [lane] = await opened[0].offer([TaskRow("q", "work", b"{}", b"{}")])
    await both(opened, lambda store: store.schedule([TaskSchedules("q", "work", (NewSchedule("* * * * * *"),))]))
    fired: list[int] = []
    async with asyncio.timeout(20):
        while len(fired) < 3:
            for due in await both(opened, lambda store: store.due_schedules()):
                assert abs(due.now - true.now()) < 5_000_000
                for one in due.schedules:
                    at = one.next_at
                    assert at is not None
                    assert at <= due.now
                    firing = Firing(one.id, one.version, at, at + 1_000_000, (Tick(at, a_job(lane)),))
                    said = await both(opened, lambda store, firing=firing: store.fire([firing]))  # type: ignore[misc]
                    fired += [at] * sum(answer == [[Fired.BORN]] for answer in said)
            assert all(abs(store.clock.now() - true.now()) < 5_000_000 for store in opened)
    assert fired == sorted(set(fired))
    early = await opened[2].submit([Submission((NewJob(an_id(), Spec(lane, run_at=true.now() + 60_000_000), b"[[],{}]"),))])
    assert (await opened[0].due()).lanes == ()  # for the manager that is ahead its time has come; for the server it has not
    assert (await read(opened[1], early[0].ids[0])).state is JobState.SCHEDULED
    for store in opened:
        await store.close()


async def test_the_same_schedules_offered_at_two_managers_are_there_once(stores: list[PostgresStore], lane: int) -> None:
    await both(stores, lambda store: store.schedule([TaskSchedules("q", "work", (NewSchedule("* * * * *"),))]))
    assert len(await stores[0].schedules()) == 1


async def test_a_renewal_at_one_manager_and_a_rescue_at_another_exclude_each_other(
    stores: list[PostgresStore], lane: int, sessions: list[int], clock: FakeClock
) -> None:
    await submit(stores[0], a_job(lane))
    [job] = await claim(stores[0], sessions[0], lane)
    clock.advance(LEASE_S + 1)
    _, rescued = await asyncio.gather(stores[0].renew(sessions), stores[1].rescue())
    running = await stores[0].running([sessions[0]])
    assert (len(rescued), len(running[0])) in {(1, 0), (0, 1)}
    [verdict] = await finish(stores[0], sessions[0], succeeded(job))
    assert verdict.state is JobState.SUCCEEDED
    assert await stores[1].rescue() == []


async def test_managers_that_come_up_together_make_one_schema(server: Cluster) -> None:
    server.sql("create database fresh")
    opened = [PostgresStore(server.url("fresh"), clock=SystemClock()) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in opened))
    assert server.sql("select count(*) from easyjobs.managers", "fresh").strip() == "4"
    for store in opened:
        await store.close()
    assert server.sql("select count(*) from easyjobs.managers", "fresh").strip() == "0"


async def test_the_counters_of_a_manager_that_is_gone_are_kept(stores: list[PostgresStore], lane: int, clock: FakeClock) -> None:
    await submit(stores[0], a_job(lane))
    clock.advance(3600)
    await stores[1].check()
    await stores[1].prune(0, 0)
    assert await stores[1].counts() == {(lane, JobState.QUEUED): 1}
    await submit(stores[0], a_job(lane))
    assert await stores[1].counts() == {(lane, JobState.QUEUED): 2}


async def test_only_the_manager_that_a_worker_is_connected_to_claims_for_it(
    server: Cluster, stores: list[PostgresStore], lane: int
) -> None:
    """A worker that has moved tells its new manager what it holds; what the old one claimed for it later would never be delivered."""
    worker = NewSession(os.urandom(16), "w")
    [session] = await stores[0].begin([worker])
    await submit(stores[0], *(a_job(lane) for _ in range(4)))
    assert len(await claim(stores[0], session, lane, room=1)) == 1
    # The old manager's claim is under way when the worker arrives at the new one: what that one compares includes it.
    other = await Address(server.url()).connect()
    await other.execute(f"begin; select from easyjobs.sessions where number = {session} for share")
    begun = asyncio.ensure_future(stores[1].begin([worker]))
    async with asyncio.timeout(10):
        while not await stores[0]._read(lambda db: db.fetchval("select exists(select 1 from pg_locks where not granted)")):
            pass
    await other.execute("commit")
    assert await begun == [session]
    assert await claim(stores[0], session, lane, room=1) == []
    assert len(await claim(stores[1], session, lane, room=9)) == 3
    assert len((await stores[1].running([session]))[0]) == 4
    await other.close()


# --- news -------------------------------------------------------------------------------------------------------------------------


async def test_a_manager_hears_what_another_has_committed(stores: list[PostgresStore], lane: int, sessions: list[int]) -> None:
    one, two = stores
    assert isinstance(one, SharedStore)
    heard: asyncio.Queue[News] = asyncio.Queue()

    async def until(condition: Callable[[News], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(await heard.get()):
                pass

    two.on_news = heard.put_nowait
    before = await two.revision()
    await one.offer([TaskRow("q", "other", b"{}", b"{}")])
    await until(lambda news: news.is_more)
    assert await two.revision() == before + 1
    [job_id] = await submit(one, a_job(lane))
    await until(lambda news: lane in news.lanes)
    assert await two.ended([job_id]) == []
    [job] = await claim(one, sessions[0], lane)
    await finish(one, sessions[0], succeeded(job))
    await until(lambda news: news.has_ended)
    assert [record.result for record in await two.ended([job_id])] == [b"1"]


async def test_what_is_followed_at_one_manager_is_shown_by_the_others(stores: list[PostgresStore], clock: FakeClock) -> None:
    one, two = stores
    followed: asyncio.Queue[frozenset[int] | None] = asyncio.Queue()
    heard: asyncio.Queue[News] = asyncio.Queue()
    one.on_followed, two.on_news = followed.put_nowait, heard.put_nowait

    async def shown() -> set[int] | None:
        found: set[int] = set()
        async with asyncio.timeout(10):
            while not found:
                news = await heard.get()
                if news.shown is None:
                    return None
                found |= set(news.shown)
        return found

    ids = [an_id() for _ in range(300)]
    two.follow(ids[:1])
    assert await asyncio.wait_for(followed.get(), 10) == {token(ids[0])}
    while await shown() != {token(ids[0])}:  # what it may have shown before it knew
        pass
    one.show(ids[0])
    assert await shown() == {token(ids[0])}
    for each in ids:
        one.show(each)
    assert await shown() is None  # too many to name
    two.follow(ids)
    assert await asyncio.wait_for(followed.get(), 10) is None
    third = PostgresStore(two._address.dsn, clock=clock, lease_s=LEASE_S, test_clock=clock)
    third.on_followed = followed.put_nowait
    await third.open()
    assert await asyncio.wait_for(followed.get(), 10) is None  # one that comes later is told
    two.follow([])
    assert await asyncio.wait_for(followed.get(), 10) == await asyncio.wait_for(followed.get(), 10) == frozenset()
    await third.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------------------


async def cut(store: PostgresStore, url: str) -> None:
    """End the writing connection, as a server or a network does."""
    pid = store._writer._db.get_server_pid()
    other = await Address(url).connect()
    await other.execute("select pg_terminate_backend($1)", pid)
    await other.close()


async def test_a_connection_that_was_cut_is_made_anew_and_nobody_notices(
    server: Cluster, stores: list[PostgresStore], lane: int, sessions: list[int], clock: FakeClock
) -> None:
    await cut(stores[0], server.url())
    [job_id] = await submit(stores[0], a_job(lane))
    assert (await read(stores[1], job_id)).state is JobState.QUEUED
    # A server that was away may have kept workers from renewing: this manager ends no lease for the time of one.
    [job] = await claim(stores[0], sessions[0], lane)
    await cut(stores[0], server.url())
    clock.advance(LEASE_S + 1)
    assert await stores[0].rescue() == []
    clock.advance(LEASE_S + 1)
    assert [each.job.seq for each in await stores[0].rescue()] == [job.seq]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_commit_whose_reply_is_lost_is_found_out_about(
    server: Cluster, stores: list[PostgresStore], lane: int, is_committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = stores[0]._writer
    db = writer._db
    execute = type(db).execute
    commits = 0

    async def losing(self: Any, query: str, *arguments: Any, **more: Any) -> Any:
        nonlocal commits
        if query == "commit" and self is db:
            commits += 1
            if is_committed:
                await execute(self, query)
            self.terminate()
            raise ConnectionResetError("the reply is lost")
        return await execute(self, query, *arguments, **more)

    monkeypatch.setattr(type(db), "execute", losing)
    jobs = tuple(a_job(lane) for _ in range(3))
    [answer] = await stores[0].submit([Submission(jobs)])
    assert answer.verdict is SubmitVerdict.ACCEPTED
    assert commits == 1
    assert await stores[1].counts() == {(lane, JobState.QUEUED): 3}
    await assert_counts_are_exact(stores[1])


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_server_that_crashes_at_a_commit_does_not_have_it_taken_for_done(
    is_committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by killing a server under load: jobs were acknowledged and gone, for the server gave the transaction's number to the next one."""
    with cluster() as server:
        store = PostgresStore(server.url(), clock=SystemClock())
        await store.open()
        [lane] = await store.offer([TaskRow("q", "t", b"{}", b"{}")])
        db = store._writer._db
        execute = type(db).execute
        crashes = 0

        async def crashing(self: Any, query: str, *arguments: Any, **more: Any) -> Any:
            nonlocal crashes
            if query == "commit" and self is db:
                crashes += 1
                if is_committed:
                    await execute(self, query)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            return await execute(self, query, *arguments, **more)

        monkeypatch.setattr(type(db), "execute", crashing)
        jobs = tuple(a_job(lane) for _ in range(3))
        [answer] = await store.submit([Submission(jobs)])
        assert answer.verdict is SubmitVerdict.ACCEPTED
        assert crashes == 1
        assert [record is not None for record in await store.get([job.id for job in jobs])] == [True] * 3
        assert await store.counts() == {(lane, JobState.QUEUED): 3}
        await store.close()


async def test_a_server_that_is_killed_again_and_again_loses_nothing() -> None:
    with cluster("fsync=on") as own:
        store = PostgresStore(own.url(), clock=SystemClock(), lease_s=LEASE_S)
        await store.open()
        [lane] = await store.offer([TaskRow("q", "work", b"{}", b"{}")])
        [session] = await store.begin([NewSession(os.urandom(16), "w")])
        accepted: list[bytes] = []
        for _ in range(3):
            for _ in range(20):
                accepted += await submit(store, a_job(lane))
            own.stop(signal.SIGQUIT)
            with pytest.raises(StoreError, match="postgresql://"):
                await submit(store, a_job(lane))
            own.start()
            accepted += await submit(store, a_job(lane))  # without a restart of ours
        assert all(await store.get(accepted))
        got = await claim(store, session, lane, room=1000)
        assert {job.id for job in got} >= set(accepted)
        assert {job.id for job in got} == {record.id for record in await store.page(JobQuery(limit=1000))}
        await store.close()


async def test_a_batch_that_meets_a_deadlock_runs_again(
    server: Cluster, stores: list[PostgresStore], lane: int, sessions: list[int]
) -> None:
    await submit(stores[0], a_job(lane, max_retries=9), a_job(lane, max_retries=9))
    one, two = await claim(stores[0], sessions[0], lane)
    other = await Address(server.url()).connect()
    await other.execute(f"begin; select from easyjobs.jobs where seq = {two.seq} for update")
    waiting = asyncio.ensure_future(stores[0].finish([Reports(sessions[0], [failed(one, retry=True), failed(two, retry=True)])]))
    async with asyncio.timeout(10):
        while not await stores[1]._read(lambda db: db.fetchval("select exists(select 1 from pg_locks where not granted)")):
            pass
    try:
        await other.execute(f"select from easyjobs.jobs where seq = {one.seq} for update; commit")
    except asyncpg.DeadlockDetectedError:  # one of the two is chosen: either is fine
        await other.execute("rollback")
    [[first, second]] = await waiting
    assert first.state is second.state is JobState.QUEUED
    await other.close()


async def test_a_claim_passes_by_what_another_transaction_holds(
    server: Cluster, stores: list[PostgresStore], lane: int, sessions: list[int]
) -> None:
    ids = await submit(stores[0], *(a_job(lane) for _ in range(5)))
    other = await Address(server.url()).connect()
    await other.execute("begin; select from easyjobs.jobs order by seq limit 2 for update")
    [claims] = await stores[0].claim([Want(sessions[0], (lane,), 2)])
    assert [job.id for job in claims.jobs] == ids[2:4]
    await other.execute("rollback")
    await other.close()


async def test_what_cannot_be_reached_is_refused_in_words(server: Cluster) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        await PostgresStore(server.url("nowhere"), clock=SystemClock()).open()
    with pytest.raises(StoreError, match="cannot be reached"):
        await PostgresStore("postgresql://u:topsecret@/x?host=/nowhere", clock=SystemClock()).open()


@pytest.mark.parametrize("password", ["p@ss/w#rd", "se#cret", "se/cret", "se?cret", "p@ss"])
def test_a_password_that_cannot_be_told_from_the_address_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write @ / # . within its user") as refused:
        Address(f"postgresql://jobs:{password}@127.0.0.1:5432/x")
    assert not any(part in str(refused.value) for part in ("ss/", "cret", "p@"))


async def test_what_is_wrong_with_an_address_is_said(server: Cluster) -> None:
    for url in ("postgresql://u@127.0.0.1:74x2/x", server.url() + "&foo=bar" if "?" in server.url() else server.url() + "?foo=bar"):
        with pytest.raises(ConfigurationError, match="the address or one of its options is wrong"):
            await Address(url).connect()


async def test_a_user_without_rights_is_told_what_to_grant(server: Cluster) -> None:
    server.sql("create database shut")
    server.sql("do $$ begin create role nobody_here login; exception when duplicate_object then null; end $$")
    url = server.url("shut").replace("postgres@", "nobody_here@", 1)
    assert "nobody_here" in url
    store = PostgresStore(url, clock=SystemClock())
    with pytest.raises(ConfigurationError, match="let its owner run `easyjobs db migrate` once"):
        await store.open()


def test_a_password_is_in_no_message() -> None:
    assert "topsecret" not in Address("postgresql://u:topsecret@h:5432/x?password=topsecret").name


async def test_without_asyncpg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtra, match=r"easyjobs\[postgres\]"):
        await open_store("postgresql://h/x", clock=SystemClock()).open()


async def test_a_successor_whose_key_a_users_transaction_holds_waits_alone(stores: list[PostgresStore], lane: int, server: Cluster) -> None:
    store = stores[0]
    [session] = await store.begin([NewSession(b"s" * 16, "w")])
    await submit(store, a_job(lane), a_job(lane))
    held, free = await claim(store, session, lane)
    key = UniqueKey(b"k" * 16, (JobState.QUEUED, JobState.RUNNING))
    child = NewJob(an_id(), Spec(lane), b"[[],{}]", Parent(held.seq, "run_after:q/a", JobState.SUCCEEDED), (), key)
    db = await asyncpg.connect(server.url())
    transaction = db.transaction()
    await transaction.start()
    await db.execute("select pg_advisory_xact_lock($1)", lock_number(b"unique", key.key))
    report = Reports(session, [succeeded(held)], {held.seq: (child,)})
    waiting, other = await asyncio.gather(
        store.finish([report]), store.finish([Reports(session, [succeeded(free)])]), return_exceptions=True
    )
    assert isinstance(waiting, StoreError)
    assert not isinstance(other, BaseException)
    await transaction.rollback()
    await db.close()
    [[verdict]] = await store.finish([report])
    assert verdict.state is JobState.SUCCEEDED
    assert (await read(store, child.id)).state is JobState.QUEUED
    await assert_counts_are_exact(store)
