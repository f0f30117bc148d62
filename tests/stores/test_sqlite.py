"""What only the SQLite store has: a file, a lock, a schema, a disk that fills up."""

# ruff: noqa: ASYNC240 (files on a RAM disk, looked at between two calls)

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from easyjobs.domain.job import JobQuery, NewSession, Reports, Submission, SubmitVerdict, TaskRow, Want
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError, SchemaTooNew, StoreError, StoreFull, StoreHeld, StoreLocked, StoreLost
from easyjobs.runtime import batcher
from easyjobs.stores import migrate, open_store
from easyjobs.stores.sqlite import SqliteStore, connection, writer
from easyjobs.stores.sqlite.connection import translate
from easyjobs.stores.sqlite.writer import OTHER
from tests.clocks import FakeClock
from tests.contracts.store_contract import (
    LEASE_S,
    a_job,
    all_jobs,
    an_id,
    assert_counts_are_exact,
    claim,
    failed,
    finish,
    submit,
    succeeded,
)
from tests.contracts.test_stores import MEMORY


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:
        yield Path(path)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "deep" / "er" / "jobs.db"


def a_store(path: Path, clock: FakeClock) -> SqliteStore:
    store = open_store(str(path), clock=clock, lease_s=LEASE_S)
    assert isinstance(store, SqliteStore)
    return store


@pytest.fixture
async def store(path: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
    store = a_store(path, clock)
    await store.open()
    yield store
    await store.close()


async def prepared(store: SqliteStore) -> tuple[int, int]:
    """A lane and a session."""
    [lane] = await store.offer([TaskRow("DEFAULT", "work", b"{}", b"{}")])
    [session] = await store.begin([NewSession(b"s" * 16, "worker-1")])
    return lane, session


# --- the file -------------------------------------------------------------------------------------------------------------------------


async def test_the_directory_is_created_and_the_files_are_for_this_user_only(store: SqliteStore, path: Path) -> None:
    await submit(store, a_job((await prepared(store))[0]))
    for suffix in ("", "-wal", "-shm", ".lock"):
        assert stat.S_IMODE(Path(f"{path}{suffix}").stat().st_mode) == 0o600, suffix


async def test_everything_survives_closing_and_opening(path: Path, clock: FakeClock) -> None:
    store = a_store(path, clock)
    await store.open()
    lane, session = await prepared(store)
    await submit(store, *(a_job(lane, max_retries=3) for _ in range(6)))
    one, two, three = await claim(store, session, lane, room=3)
    await finish(store, session, succeeded(one), failed(two, retry=True, delay_us=5_000_000))
    before, tasks, counts = await all_jobs(store), await store.tasks(), await store.counts()
    await store.close()
    assert not Path(f"{path}-wal").exists()  # all is in one file

    store = a_store(path, clock)
    await store.open()
    assert (await all_jobs(store), await store.tasks(), await store.counts()) == (before, tasks, counts)
    assert await prepared(store) == (lane, session)
    assert [job.seq for job in (await store.running([session]))[0]] == [three.seq]
    assert [verdict.answer.name for verdict in await finish(store, session, succeeded(one), succeeded(three))] == ["DUPLICATE", "ACCEPTED"]
    await assert_counts_are_exact(store)
    await store.close()


async def test_what_was_acknowledged_is_there_after_the_process_is_killed(path: Path, clock: FakeClock) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from easyjobs.stores import open_store\n"
        "from easyjobs.runtime.clock import SystemClock\n"
        "from easyjobs.domain.job import *\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1], clock=SystemClock())\n"
        "    await store.open()\n"
        "    [lane] = await store.offer([TaskRow('q', 't', b'', b'')])\n"
        "    for n in range(50):\n"
        "        await store.submit([Submission((NewJob(n.to_bytes(16, 'big'), Spec(lane), b'x' * n * 100),))])\n"
        "        print(n, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path), stdout=subprocess.PIPE)
    acknowledged, _ = await child.communicate()
    store = a_store(path, clock)
    await store.open()
    assert len(acknowledged.split()) == len(await all_jobs(store)) == 50
    await store.close()


async def test_sessions_get_a_fresh_lease_when_the_file_is_opened(path: Path, clock: FakeClock) -> None:
    store = a_store(path, clock)
    await store.open()
    lane, session = await prepared(store)
    await submit(store, a_job(lane))
    await claim(store, session, lane)
    await store.close()
    clock.advance(10 * LEASE_S)  # the manager was away
    store = a_store(path, clock)
    await store.open()
    clock.advance(LEASE_S - 1)
    assert await store.rescue() == []
    clock.advance(2)
    assert len(await store.rescue()) == 1
    await store.close()


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, clock: FakeClock) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"these are my notes, not a database" * 300)
    with pytest.raises(StoreError, match="not a database"):
        await a_store(path, clock).open()
    assert path.read_bytes().startswith(b"these are my notes")


async def test_a_directory_that_cannot_be_made_is_a_setting_to_change(directory: Path, clock: FakeClock) -> None:
    (directory / "file").touch()
    with pytest.raises(ConfigurationError, match="choose a directory"):
        await a_store(directory / "file" / "jobs.db", clock).open()


# --- one manager ----------------------------------------------------------------------------------------------------------------------


async def test_a_second_open_is_refused_here_and_in_another_process(store: SqliteStore, path: Path, clock: FakeClock) -> None:
    with pytest.raises(StoreLocked, match="another manager"):
        await a_store(path, clock).open()
    link = path.parent / "link.db"
    link.symlink_to(path)
    with pytest.raises(StoreLocked):
        await a_store(link, clock).open()
    program = (
        "import asyncio, sys\n"
        "from easyjobs.stores import open_store\n"
        "from easyjobs.runtime.clock import SystemClock\n"
        "asyncio.run(open_store(sys.argv[1], clock=SystemClock()).open())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path), stderr=subprocess.PIPE)
    _, complaint = await child.communicate()
    assert child.returncode == 1
    assert b"StoreLocked" in complaint
    assert b"start uvicorn without --workers" in complaint
    await store.check()  # the first one is not disturbed


async def test_a_failed_open_lets_the_file_go(path: Path, clock: FakeClock) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 5000)
    for _ in range(2):
        with pytest.raises(StoreError, match="not a database"):
            await a_store(path, clock).open()
    path.unlink()
    store = a_store(path, clock)
    await store.open()
    await store.close()


# --- the schema -----------------------------------------------------------------------------------------------------------------------


async def change(path: Path, clock: FakeClock, statement: str) -> None:
    store = a_store(path, clock)
    await store.open()
    await store.close()
    with apsw.Connection(str(path)) as db:
        db.execute(statement)
    db.close()


async def test_a_newer_schema_is_refused(path: Path, clock: FakeClock) -> None:
    await change(path, clock, "insert into migrations values (99, 'from the future', 0)")
    with pytest.raises(SchemaTooNew, match=r"version 99.*upgrade easyjobs"):
        await a_store(path, clock).open()


async def test_a_schema_step_that_was_applied_in_another_form_is_refused(path: Path, clock: FakeClock) -> None:
    await change(path, clock, "update migrations set checksum = 'other' where version = 1")
    with pytest.raises(StoreError, match="in another form"):
        await a_store(path, clock).open()


async def test_a_new_step_is_applied_to_an_old_file_and_keeps_its_jobs(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(path, clock)
    await store.open()
    await submit(store, a_job((await prepared(store))[0]))
    await store.close()
    known = migrate.load("easyjobs.stores.sqlite.migrations")
    newer = [*known, migrate.Migration(len(known) + 1, "more", "create table more (a integer) strict; create index more_a on more (a);")]
    monkeypatch.setattr(connection, "load", lambda _: newer)
    for _ in range(2):
        store = a_store(path, clock)
        await store.open()
        assert len(await all_jobs(store)) == 1
        await store.close()


async def test_a_step_that_fails_leaves_nothing_behind(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrate.load("easyjobs.stores.sqlite.migrations")
    broken = migrate.Migration(len(known) + 1, "broken", "create table half (a integer) strict; create table half (b integer) strict;")
    monkeypatch.setattr(connection, "load", lambda _: [*known, broken])
    with pytest.raises(StoreError):
        await a_store(path, clock).open()
    monkeypatch.undo()
    store = a_store(path, clock)
    await store.open()
    assert store._writer._db.execute("select count(*) from sqlite_schema where name = 'half'").get == 0
    await store.close()


def test_steps_are_planned_in_order_and_only_once() -> None:
    known = [migrate.Migration(n, f"step{n}", f"sql {n}") for n in (1, 2, 3)]
    applied = {1: known[0].checksum}
    assert migrate.pending("x", known, {}) == known
    assert migrate.pending("x", known, applied) == known[1:]
    assert migrate.pending("x", known, {step.version: step.checksum for step in known}) == []


# --- the disk -------------------------------------------------------------------------------------------------------------------------


async def assert_lost(store: SqliteStore, lane: int, session: int) -> None:
    """Every verb says so, and nothing is acknowledged."""
    calls: list[Any] = [
        store.submit([Submission((a_job(lane),))]), store.claim([Want(session, (lane,), 1)]), store.renew([session]), store.check(),
        store.get([an_id()]), store.page(JobQuery()), store.pull([an_id()]), store.due(), store.rescue(), store.counts(),
    ]  # fmt: skip
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreLost}


@pytest.mark.parametrize("loss", ["unlinked", "replaced", "log unlinked"])
async def test_a_database_that_is_no_longer_there_acknowledges_nothing(path: Path, clock: FakeClock, loss: str) -> None:
    store = a_store(path, clock)
    await store.open()
    lane, session = await prepared(store)
    await submit(store, a_job(lane))
    if loss == "unlinked":
        path.unlink()
    elif loss == "replaced":
        shutil.copy(path, path.parent / "copy.db")
        (path.parent / "copy.db").replace(path)
    else:
        Path(f"{path}-wal").unlink()
    with pytest.raises(StoreLost, match=r"removed|replaced"):
        await store.submit([Submission((a_job(lane),))])
    await assert_lost(store, lane, session)
    await store.close()


class FaultyDisk(apsw.VFS):
    """The usual file system, until `broken` is set: then fsync fails, as it does when a disk goes away."""

    def __init__(self) -> None:
        self.broken = False
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        disk = self

        class File(apsw.VFSFile):
            def __init__(self) -> None:
                super().__init__("unix", name, flags)

            def xSync(self, flags: int) -> None:  # noqa: N802
                if disk.broken:
                    error = apsw.IOError("no fsync")
                    error.extendedresult = apsw.SQLITE_IOERR_FSYNC
                    raise error
                super().xSync(flags)

        return File()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # apsw shows errors of a VFS a second time
async def test_after_a_failed_fsync_nothing_is_acknowledged_any_more(path: Path, clock: FakeClock) -> None:
    disk = FaultyDisk()
    hook, sys.excepthook = sys.excepthook, lambda *_: None
    try:
        store = a_store(path, clock)
        await store.open()
        lane, session = await prepared(store)
        await submit(store, a_job(lane))
        disk.broken = True
        with pytest.raises(StoreLost):
            await store.submit([Submission((a_job(lane),))])
        disk.broken = False  # the next fsync would succeed, and prove nothing
        await assert_lost(store, lane, session)
        await store.close()
    finally:
        disk.unregister()
        sys.excepthook = hook


async def test_a_lease_is_renewed_while_the_disk_takes_its_time(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that waited for the batch that runs, and then for its own, would come after more than a second of a disk that needs 0.3 s."""
    lane, session = await prepared(store)
    [job_id] = await submit(store, a_job(lane))
    await claim(store, session, lane)
    goes_on = threading.Event()
    monkeypatch.setattr(store._file, "check", lambda: goes_on.wait(10))  # after a commit, before it is acknowledged
    slow = store.submit([Submission(tuple(a_job(lane) for _ in range(100)))])
    await asyncio.sleep(0)
    clock.advance(LEASE_S - 1)
    async with asyncio.timeout(5):
        assert await store.renew([session, 99]) == [True, False]
    assert not slow.done()  # type: ignore[attr-defined]
    rescued = store.rescue()
    clock.advance(2)
    goes_on.set()
    assert await rescued == []
    [record] = await store.get([job_id])
    assert record is not None
    assert (record.state, record.attempt) == (JobState.RUNNING, 1)
    await slow


async def test_a_lease_that_is_renewed_while_its_rescue_is_committed_is_not_over(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, session = await prepared(store)
    await submit(store, a_job(lane))
    assert len(await claim(store, session, lane)) == 1
    clock.advance(LEASE_S + 1)
    monkeypatch.setattr(store._file, "check", lambda: store._writer.renew([session]))
    assert len(await store.rescue()) == 1
    monkeypatch.undo()
    assert len(await claim(store, session, lane)) == 1


def test_errors_of_the_database_say_what_a_manager_must_do() -> None:
    def error(kind: type[apsw.Error], extended: int = 0) -> apsw.Error:
        made = kind("x")
        made.extendedresult = extended
        return made

    assert isinstance(translate("f", error(apsw.FullError)), StoreFull)
    assert isinstance(translate("f", error(apsw.IOError, apsw.SQLITE_IOERR_SHMSIZE)), StoreFull)
    for kind in (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError):
        assert isinstance(translate("f", error(kind)), StoreLost)
    assert type(translate("f", error(apsw.BusyError))) is StoreHeld
    assert type(translate("f", error(apsw.SQLError))) is StoreError


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """A tmpfs of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = directory / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_acknowledges_nothing_reads_on_and_recovers(small_disk: Path, clock: FakeClock) -> None:
    path = small_disk / "jobs.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 20))
    store = a_store(path, clock)
    await store.open()
    lane, session = await prepared(store)
    acknowledged: list[bytes] = []
    refused: list[bytes] = []
    while not refused and len(acknowledged) < 1000:
        frames = [a_job(lane, b"x" * 30_000) for _ in range(3)]
        answers = await asyncio.gather(*(store.submit([Submission((job,))]) for job in frames), return_exceptions=True)
        for job, answer in zip(frames, answers, strict=True):
            assert isinstance(answer, list | StoreFull), answer
            (acknowledged if isinstance(answer, list) else refused).append(job.id)
    assert refused
    assert len(acknowledged) > 5
    assert [record and record.id for record in await store.get(acknowledged)] == acknowledged  # reading goes on
    assert await store.get(refused) == [None] * len(refused)
    await assert_counts_are_exact(store)
    assert await store.renew([session]) == [True]  # leases need no disk

    ballast.unlink()
    [answer] = await store.submit([Submission((a_job(lane),))])
    assert answer.verdict is SubmitVerdict.ACCEPTED
    await assert_counts_are_exact(store)
    await store.close()

    store = a_store(path, clock)
    await store.open()
    assert {record.id for record in await all_jobs(store)} == {*acknowledged, *answer.ids}
    assert store._writer._db.pragma("integrity_check") == "ok"
    await store.close()


# --- speed that must not be lost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (writer.PICK, "jobs_ready"),
        (writer.PICK_OF_MANY.format(writer.READY + "1 union all " + writer.READY + "2 order by rank, seq limit ?2"), "jobs_ready"),
        (writer.PICK_TRACED, "jobs_ready"),
        (writer.EXPIRED, "jobs_running"),
        (writer.SUCCEED, "INTEGER PRIMARY KEY"),
        (writer.SETTLE, "INTEGER PRIMARY KEY"),
        (writer.RESCUE, "INTEGER PRIMARY KEY"),
        (writer.TAKE_SOME, "INTEGER PRIMARY KEY"),
        (writer.TAKE_ROW_OF, "INTEGER PRIMARY KEY"),
        ("select min(run_at) from jobs where state = 6", "jobs_due"),
    ],
)
async def test_no_statement_of_the_life_of_a_job_walks_through_all_jobs(store: SqliteStore, statement: str, index: str) -> None:
    db = store._writer._db
    values: list[Any] = [None] * 5
    many = max((number for number in range(1, 7) if f"?{number}" in statement), default=0)
    plan = [row[3] for row in db.execute(f"explain query plan {statement}", values[:many])]
    assert not [line for line in plan if line.split()[:2] in (["SCAN", "jobs"], ["SCAN", "j"])], plan
    assert any(index in line for line in plan), plan
    assert not [line for line in plan if "TEMP B-TREE" in line and "union" in statement], plan


async def test_a_checkpoint_keeps_the_log_small(store: SqliteStore, path: Path) -> None:
    lane, session = await prepared(store)
    for _ in range(40):
        await submit(store, *(a_job(lane, b"x" * 2000) for _ in range(300)))
        await finish(store, session, *map(succeeded, await claim(store, session, lane, room=300)))
    assert Path(f"{path}-wal").stat().st_size < 3 * writer.CHECKPOINT_PAGES * 4096
    await assert_counts_are_exact(store)


async def test_an_id_of_a_scheduled_job_reads_back_with_its_time(store: SqliteStore, clock: FakeClock) -> None:
    lane, _ = await prepared(store)
    [job_id] = await submit(store, a_job(lane, run_at=clock.now() + 5))
    [record] = await store.get([job_id])
    assert record is not None
    assert (record.state, record.run_at) == (JobState.SCHEDULED, clock.now() + 5)


def test_a_store_is_chosen_by_its_url(clock: FakeClock) -> None:
    for url in ("jobs.db", "/tmp/jobs.db", "sqlite:///jobs.db", "sqlite:////tmp/jobs.db"):
        assert isinstance(open_store(url, clock=clock), SqliteStore)
    store = open_store("sqlite:////tmp/jobs.db", clock=clock)
    assert isinstance(store, SqliteStore)
    assert store._file.path == os.path.realpath("/tmp/jobs.db")
    for url, durability in (("mongo://x", "full"), ("sqlite:///", "full"), ("jobs.db", "yes")):
        with pytest.raises(ConfigurationError):
            open_store(url, clock=clock, durability=durability)


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("relaxed", 1)])
def test_every_setting_of_the_writing_connection_holds(path: Path, durability: str, synchronous: int) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    db = connection.open_writer(str(path), durability=durability)
    settings = ("journal_mode", "synchronous", "wal_autocheckpoint", "temp_store", "cache_size", "trusted_schema")
    assert {name: db.pragma(name) for name in settings} == {
        "journal_mode": "wal", "synchronous": synchronous, "wal_autocheckpoint": 0, "temp_store": 2, "cache_size": -32000, "trusted_schema": 0,
    }  # fmt: skip
    db.close()


# --- a lock that another program holds --------------------------------------------------------------------------------------------


async def test_no_call_waits_for_a_strangers_lock_on_the_loop(path: Path, store: SqliteStore) -> None:
    lane, session = await prepared(store)
    job = a_job(lane)
    await submit(store, job)
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    calls = [
        asyncio.ensure_future(call)
        for call in (store.submit([Submission((a_job(lane),))]), store.claim([Want(session, (lane,), 1)]), store.check())
    ]
    for _ in range(100):
        await asyncio.sleep(0)
        assert await store.renew([session]) == [True]
        assert await store.get([job.id]) != [None]
        assert await store.counts() == {(lane, JobState.QUEUED): 1}
    assert not any(call.done() for call in calls)
    stranger.execute("rollback")
    [[submitted], [claims], _] = await asyncio.gather(*calls)
    assert (submitted.verdict, len(claims.jobs)) == (SubmitVerdict.ACCEPTED, 1)
    await assert_counts_are_exact(store)
    stranger.close()


async def test_a_lock_that_stays_fails_what_waits_for_it_and_nothing_of_it_is_stored(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "HELD_S", 0.05)
    lane, session = await prepared(store)
    job = a_job(lane)
    await submit(store, job)
    [claimed] = await claim(store, session, lane)
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    answers = await asyncio.gather(
        store.submit([Submission((a_job(lane),))]),
        store.submit([Submission((a_job(lane), a_job(lane)))]),
        store.finish([Reports(session, [succeeded(claimed)])]),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [StoreHeld] * 3
    assert await store.due() is not None  # what only reads is not held up
    stranger.execute("rollback")
    stranger.close()
    assert [each.id for each in await all_jobs(store)] == [job.id]
    assert [verdict.answer.name for verdict in await finish(store, session, succeeded(claimed))] == ["ACCEPTED"]
    await assert_counts_are_exact(store)


async def test_a_stranger_that_writes_between_our_look_and_our_write_costs_one_more_try(path: Path, store: SqliteStore) -> None:
    stranger = apsw.Connection(str(path))
    tries = 0

    def look_then_write() -> int:
        nonlocal tries
        tries += 1
        store._writer._db.execute("select count(*) from jobs").fetchall()
        if tries == 1:
            stranger.execute("insert into meta(key, value) values ('stranger', 1)")
        store._writer.check()
        return tries

    assert await store._call(OTHER, look_then_write) == 2
    stranger.close()


async def test_no_lease_ends_for_the_time_of_a_long_lock(
    path: Path, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "HELD_S", 0.01)
    lane, session = await prepared(store)
    await submit(store, a_job(lane))
    await claim(store, session, lane)
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    for call in (store.check, store.rescue, store.rescue):
        with pytest.raises(StoreHeld):
            await call()
        clock.advance(LEASE_S)
    stranger.execute("rollback")
    assert await store.rescue() == []
    clock.advance(LEASE_S - 1)
    assert await store.rescue() == []
    clock.advance(2)
    assert len(await store.rescue()) == 1
    stranger.close()


@pytest.mark.parametrize(("before_s", "after_s"), [(LEASE_S + 1, LEASE_S / 6), (0.0, LEASE_S + 1)], ids=["soon", "late"])
async def test_a_lock_that_was_met_once_delays_no_rescue(
    path: Path, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, before_s: float, after_s: float
) -> None:
    monkeypatch.setattr(batcher, "HELD_S", 0.01)
    lane, session = await prepared(store)
    await submit(store, a_job(lane))
    await claim(store, session, lane)
    clock.advance(before_s)
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    with pytest.raises(StoreHeld):
        await store.check()
    stranger.execute("rollback")
    clock.advance(after_s)  # late: a manager that has just come up rescues nothing for one lease
    assert len(await store.rescue()) == 1
    stranger.close()


async def test_closing_waits_for_no_stranger(path: Path, store: SqliteStore, clock: FakeClock) -> None:
    lane, _ = await prepared(store)
    await submit(store, a_job(lane))
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    assert store._writer._db.pragma("busy_timeout") == 0  # it checkpoints on the loop's thread
    await store.close()
    stranger.close()
    await store.open()
    assert len(await all_jobs(store)) == 1


async def test_a_file_that_a_stranger_holds_is_not_opened_and_the_loop_turns_meanwhile(
    path: Path, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.close()
    stranger = apsw.Connection(str(path))
    stranger.execute("begin immediate")
    monkeypatch.setattr(connection, "BUSY_MS", 50)
    opening = asyncio.ensure_future(store.open())
    await asyncio.sleep(0)
    assert not opening.done()
    with pytest.raises(StoreHeld, match="another program"):
        await opening
    stranger.execute("rollback")
    stranger.close()
    await store.open()
