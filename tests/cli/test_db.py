"""`easyjobs db status|migrate|check`, as an operator types them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from typer.testing import CliRunner

from easyjobs.cli import app
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.sqlite import SqliteStore
from tests.cli.test_cli import run
from tests.clocks import FakeClock
from tests.everything import fill
from tests.postgres import Cluster, cluster

STATES = {"queued": 1007, "running": 3, "succeeded": 3, "failed": 1, "cancelled": 1, "expired": 1, "scheduled": 1, "waiting": 1}


def filled(path: Path) -> Path:
    async def make() -> None:
        clock = FakeClock()
        store = SqliteStore(str(path), clock=clock)
        await store.open()
        await fill(store, clock)
        await store.close()

    asyncio.run(make())
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return filled(tmp_path_factory.mktemp("db") / "jobs.db").read_bytes()


@pytest.fixture
def file(template: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    path.write_bytes(template)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def database(server: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"d{abs(hash(request.node.name))}"
    server.sql(f"create database {name}")
    yield name
    server.sql(f"drop database {name} with (force)")


def fill_postgres(url: str) -> None:
    async def make() -> None:
        clock = FakeClock()
        store = PostgresStore(url, clock=clock, test_clock=clock)
        await store.open()
        await fill(store, clock)
        await store.close()

    asyncio.run(make())


def checked(store: str) -> str:
    """What `db check` says of a store with which something is wrong. In this process: it is asked often."""
    done = CliRunner().invoke(app, ["db", "check", store])
    assert done.exit_code == 1, (done.output, done.exception)
    return done.stdout


def status(*argv: str, **environment: str) -> Any:
    done = run("db", "status", "--json", *argv, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- SQLite


def test_status_counts_the_jobs_of_a_file_and_shows_its_schema(file: Path) -> None:
    found = status(f"sqlite:///{file}")
    assert found["jobs"] == STATES
    assert found["schema"]["version"] == found["schema"]["known"] > 0
    assert (found["tasks"], found["schedules"]) == (3, 2)
    assert found["bytes"]["jobs.db"] == file.stat().st_size
    said = run("db", "status", EASYJOBS_STORE=str(file)).stdout
    assert str(file) in said
    assert "up to date" in said
    assert "1,007" in said


def test_the_file_is_found_as_a_manager_finds_it(file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "data" / "job_manager.db"
    moved.parent.mkdir()
    file.rename(moved)
    assert status(DB_PATH=str(moved.parent))["jobs"] == STATES
    (tmp_path / "where").write_text(f"{moved}\n")
    assert status(EASYJOBS_STORE_FILE=str(tmp_path / "where"))["jobs"] == STATES


def test_looking_makes_no_file(tmp_path: Path) -> None:
    for verb in ("status", "check"):
        done = run("db", verb, str(tmp_path / "none" / "jobs.db"))
        assert done.returncode == 2
        assert "is not there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with apsw.Connection(str(path)) as db:
        db.execute("create table invoices(id integer)")
    for verb in ("status", "check", "migrate"):
        done = run("db", verb, str(path))
        assert done.returncode == 2
        assert "another program" in done.stderr
    assert [name for (name,) in apsw.Connection(str(path)).execute("select name from sqlite_schema")] == ["invoices"]


def test_migrate_says_what_it_did_and_status_what_is_to_be_done(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.touch()
    assert "run `easyjobs db migrate`" in run("db", "status", str(path)).stdout
    assert run("db", "check", str(path)).returncode == 1
    first = run("db", "migrate", str(path))
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0] == "applied 0001 core"
    assert "up to date" in first.stdout
    assert "applied" not in run("db", "migrate", str(path)).stdout
    assert run("db", "check", "--full", str(path)).stdout == "nothing is wrong\n"


def test_a_file_whose_manager_runs_can_be_looked_at_but_not_migrated(file: Path) -> None:
    async def meanwhile() -> None:
        store = SqliteStore(str(file), clock=FakeClock())
        await store.open()
        try:
            done = await asyncio.to_thread(run, "db", "migrate", str(file))
            assert done.returncode == 2
            assert "in use by another manager" in done.stderr
            assert (await asyncio.to_thread(status, str(file)))["jobs"] == STATES
            assert (await asyncio.to_thread(run, "db", "check", str(file))).stdout == "nothing is wrong\n"
        finally:
            await store.close()

    asyncio.run(meanwhile())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("update counters set n = n + 3 where state = 0", "the counters differ from the jobs by"),
        ("delete from sessions", "running jobs of a session that does not exist: 3"),
        ("update jobs set finished_at = null where state = 3", "ended at no known time: 1"),
        ("update jobs set state = 8 where state = 4", "whose state no easyjobs knows: 1"),
        ("update jobs set state = 5 where edge like 'run_before:%'", "have all ended: 1"),
        ("delete from tasks where name = 'other'", "of a task that the catalogue does not have"),
        ("drop index jobs_ready", "lacks what its version has: index jobs_ready"),
        ("delete from migrations where version > 2", "run `easyjobs db migrate`"),
    ],
)
def test_check_has_a_sentence_for_each_contradiction(file: Path, harm: str, said: str) -> None:
    apsw.Connection(str(file)).execute(harm)
    assert said in checked(str(file))


def test_check_finds_a_damaged_page(file: Path) -> None:
    with file.open("r+b") as damaged:
        damaged.seek(file.stat().st_size // 2 // 4096 * 4096)
        damaged.write(b"\x05" * 4096)
    done = run("db", "check", "--full", str(file))
    assert done.returncode == 1
    assert "the file is damaged, restore a backup" in done.stdout


def test_a_copy_says_what_it_has_done_and_what_it_cannot(file: Path, tmp_path: Path) -> None:
    assert "set EASYJOBS_STORE" in run("db", "copy", str(file)).stderr
    done = run("db", "copy", str(file), EASYJOBS_STORE=str(tmp_path / "new.db"))
    assert done.returncode == 0, done.stderr
    assert ["jobs", "1,018"] in [line.split() for line in done.stdout.splitlines()]
    assert status(str(tmp_path / "new.db"))["jobs"] == STATES
    again = run("db", "copy", str(file), str(tmp_path / "new.db"))
    assert (again.returncode, again.stdout) == (2, "")
    assert "holds jobs already" in again.stderr
    assert "Traceback" not in again.stderr


# --- PostgreSQL


def test_status_migrate_and_check_of_a_database(server: Cluster, database: str) -> None:
    url = server.url(database)
    assert status(url)["schema"]["version"] == 0
    assert "has no tables of easyjobs yet" in run("db", "check", url).stdout
    first = run("db", "migrate", url)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0] == "applied 0001 core"
    assert "applied" not in run("db", "migrate", url).stdout
    fill_postgres(url)
    found = status(EASYJOBS_STORE=url)
    assert found["jobs"] == STATES
    assert (found["tasks"], found["schedules"], found["managers"]) == (3, 2, 0)
    assert found["bytes"]["jobs"] > 0
    done = run("db", "check", url)
    assert (done.returncode, done.stdout) == (0, "nothing is wrong\n"), done.stderr


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("update easyjobs.counters set n = n + 3 where state = 0", "the counters differ from the jobs by"),
        ("delete from easyjobs.sessions", "running jobs of a session that does not exist: 3"),
        ("drop index easyjobs.jobs_due", "lacks what its version has: index jobs_due"),
        ("update pg_index set indisvalid = false where indexrelid = 'easyjobs.jobs_kept'::regclass", "the index jobs_kept is not valid"),
        ("drop table easyjobs.logs", "lacks what its version has: table logs"),
        ("alter database {database} set synchronous_commit = off", "synchronous_commit = off"),
    ],
)
def test_check_has_a_sentence_for_each_fault_of_a_database(server: Cluster, database: str, harm: str, said: str) -> None:
    fill_postgres(server.url(database))
    server.sql(harm.format(database=database), database)
    assert said in checked(server.url(database))


def test_dangerous_settings_of_the_server_are_named() -> None:
    with cluster("autovacuum=off", "fsync=off") as running:
        said = checked(running.url())
        assert "fsync = off" in said
        assert "autovacuum = off" in said
        assert "synchronous_commit" not in said


def test_no_password_is_printed_and_one_in_argv_is_warned_of(server: Cluster) -> None:
    url = server.url("nowhere").replace("postgres@", "postgres:canary@")
    for done in (run("db", "status", url), run("db", "status", EASYJOBS_STORE=url)):
        assert done.returncode == 2
        assert "canary" not in done.stdout + done.stderr
        assert "nowhere" in done.stderr
    assert "can be read by others" in run("db", "status", url).stderr
    assert "can be read by others" not in run("db", "status", EASYJOBS_STORE=url).stderr


def test_a_server_that_is_away_is_a_sentence(server: Cluster) -> None:
    with cluster() as other:
        url = other.url()
        other.stop(signal.SIGINT)
        done = run("db", "status", url)
        assert done.returncode == 2
        assert "cannot be reached" in done.stderr
        assert "Traceback" not in done.stderr
