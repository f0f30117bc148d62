"""A PostgreSQL database as the source or the target of a copy: see `stores.transfer`."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from easyjobs.errors import ConfigurationError, StoreError
from easyjobs.stores.migrate import load
from easyjobs.stores.postgres import upkeep
from easyjobs.stores.postgres.connection import MIGRATIONS, Address, driver
from easyjobs.stores.postgres.upkeep import MANAGERS, NOW, version_of
from easyjobs.stores.transfer import LOGS, NUMBERED, SEEN, SESSIONS, TABLES, Row, Table, batches, holds_jobs, not_current

if TYPE_CHECKING:
    from asyncpg import Connection

FETCH: Final = 100  # rows at once: a job has up to 5 MiB
LEASE_US: Final = 30_000_000  # of the sessions that had running jobs; a manager that starts waits for one of its own anyway
NOBODY: Final = 0  # the manager of sessions that are connected to none
_OF_JOBS: Final = " where exists (select 1 from easyjobs.jobs j where j.seq = x.seq)"


@asynccontextmanager
async def source(url: str) -> AsyncIterator[PostgresSide]:
    """The database at `url`, which no manager may change meanwhile."""
    async with _alone(url, "share") as side:
        yield side


@asynccontextmanager
async def target(url: str) -> AsyncIterator[PostgresTarget]:
    """The database at `url`, emptied within a transaction, if it holds no jobs."""
    await upkeep.migrate(url)
    async with _alone(url, "access exclusive") as side:
        if await side.db.fetchval("select exists(select 1 from easyjobs.jobs)"):
            raise holds_jobs(side.name)
        tables = ", ".join(f"easyjobs.{name}" for name in (*(table.name for table in TABLES), "counters", "forgotten"))
        await side.db.execute(f"truncate {tables} restart identity")
        yield side


@asynccontextmanager
async def _alone(url: str, lock: str) -> AsyncIterator[PostgresTarget]:
    address = Address(url)
    db = await address.dial(command_s=None)
    try:
        if await db.fetchval("select pg_is_in_recovery()"):
            raise ConfigurationError(f"{address.name} is a standby, which cannot be locked: give the address of the primary")
        known = len(load(MIGRATIONS))
        if (version := await version_of(db)) != known:
            raise not_current(address.name, version, known)
        await db.execute("begin isolation level repeatable read; set local lock_timeout = '10s'")
        tables = "easyjobs.managers, easyjobs.tasks, easyjobs.jobs"
        try:
            await db.execute(f"lock table {tables} in {lock} mode")  # before the first look: that is what is copied
        except driver().LockNotAvailableError:
            raise ConfigurationError(
                f"{address.name} is in use: end the transactions that have jobs in them, stop its managers, copy again"
            ) from None
        if managers := await db.fetchval(MANAGERS):
            raise ConfigurationError(
                f"{address.name} is in use by {managers} running manager{'s' if managers > 1 else ''}: stop them, then copy again (one that was "
                "killed counts for a minute)"
            )
        yield PostgresTarget(db, address.name)
    except driver().PostgresError as error:
        raise address.translate(error) or StoreError(f"{address.name}: {type(error).__name__}: {error}") from error
    finally:
        db.terminate()  # which rolls back what was not committed


class PostgresSide:
    """See `stores.transfer.Side`."""

    def __init__(self, db: Connection, name: str) -> None:
        self.db, self.name = db, name

    async def count(self, table: Table) -> int:
        return int(await self.db.fetchval(f"select count(*) from easyjobs.{table.name} x{_OF_JOBS if table in (SEEN, LOGS) else ''}"))

    async def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        where = _OF_JOBS if table in (SEEN, LOGS) else ""
        cursor = await self.db.cursor(f"select {', '.join(table.columns)} from easyjobs.{table.name} x{where} order by {table.key}")
        while rows := await cursor.fetch(FETCH):
            if table is LOGS:
                yield [(*row[:-2], _plain(row[-2]), _plain(row[-1])) for row in map(tuple, rows)]
            else:
                yield [tuple(row) for row in rows]

    async def numbers(self) -> dict[str, int]:
        found = {}
        for name, column in NUMBERED:
            value, is_called = await self.db.fetchrow(f"select last_value, is_called from easyjobs.{name}_{column}_seq")
            found[name] = value if is_called else 0
        return found


class PostgresTarget(PostgresSide):
    """See `stores.transfer.Target`."""

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        columns = table.columns
        if table is SESSIONS:
            columns, rows = (*columns, "manager"), [(*row, NOBODY) for row in rows]
        for batch in batches(rows):
            await self.db.copy_records_to_table(table.name, schema_name="easyjobs", columns=columns, records=batch)

    async def complete(self, numbers: dict[str, int]) -> None:
        db = self.db
        await db.execute(
            "insert into easyjobs.counters(manager, lane, state, n) select 0, lane, state, count(*) from easyjobs.jobs group by lane, state"
        )
        await db.execute(
            f"update easyjobs.sessions s set lease_until = {NOW} + {LEASE_US} "
            "where exists (select 1 from easyjobs.jobs j where j.session = s.number and j.state = 1)"
        )
        await db.execute(
            "insert into easyjobs.meta(key, value) values ('revision', 1) on conflict (key) do update set value = meta.value + 1"
        )
        for name, column in NUMBERED:
            last = numbers[name]
            await db.execute("select setval($1::text::regclass, $2, $3)", f"easyjobs.{name}_{column}_seq", max(last, 1), last > 0)

    async def keep(self) -> None:
        await self.db.execute("commit")


def _plain(raw: Any) -> bytes:
    """A text as SQLite can have it too."""
    return bytes(raw.decode("utf-8", "surrogatepass").encode("utf-8", "replace"))
