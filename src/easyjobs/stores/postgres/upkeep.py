"""What an operator asks of a PostgreSQL database: see `stores.upkeep`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreError
from easyjobs.stores import upkeep
from easyjobs.stores.migrate import Migration, load, pending
from easyjobs.stores.postgres import connection
from easyjobs.stores.postgres.connection import MIGRATIONS, OLDEST, Address, driver, examine
from easyjobs.stores.upkeep import QUESTIONS, Overview, made_by

if TYPE_CHECKING:
    from asyncpg import Connection

NOW: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
MANAGERS: Final = f"select count(*) from easyjobs.managers where seen_at > {NOW} - 60000000"  # noqa: S608 (a constant)
SIZES: Final = """select c.relname, pg_total_relation_size(c.oid) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'easyjobs' and c.relkind = 'r' order by 2 desc, 1"""
THERE: Final = """select case c.relkind when 'i' then 'index' else 'table' end, c.relname::text from pg_class c
        join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'easyjobs' and c.relkind in ('r', 'i')
    union all select 'function', p.proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'easyjobs'"""
INVALID: Final = """select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'easyjobs' and not (i.indisvalid and i.indisready) order by 1"""
SETTINGS: Final = (  # what must not be so, and what comes of it
    ("fsync", "off", "a crash of the server's machine may damage or lose all that is stored"),
    ("full_page_writes", "off", "a crash of the server's machine may damage what is stored"),
    ("autovacuum", "off", "the tables of jobs will grow without an end"),
    (
        "synchronous_commit",
        "off",
        "managers set it on for themselves, but jobs that are submitted within your own transactions may be lost by a crash",
    ),
)


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[tuple[Connection, Address]]:
    """A connection that cannot write, in one transaction: all that is read is of one moment. Raises: MissingExtra, ConfigurationError, StoreError."""
    address = Address(url)
    db = await address.dial(command_s=None)
    try:
        await db.execute("begin isolation level repeatable read read only")
        yield db, address
    except driver().PostgresError as error:
        raise address.translate(error) or StoreError(f"{address.name}: {type(error).__name__}: {error}") from error
    finally:
        db.terminate()


async def version_of(db: Connection) -> int:
    """The database's schema version, 0 if it has no tables of ours."""
    if await db.fetchval("select to_regclass('easyjobs.migrations') is null"):
        return 0
    return int(await db.fetchval("select coalesce(max(version), 0) from easyjobs.migrations"))


async def overview(url: str) -> Overview:
    """See `stores.upkeep`."""
    async with reading(url) as (db, address):
        version = await version_of(db)
        states: dict[JobState, int] = {}
        tasks = schedules = managers = 0
        if version:
            counted = "select state, sum(n)::bigint from easyjobs.counters group by state having sum(n) <> 0"
            states = {JobState(state): n for state, n in await db.fetch(counted)}
            tasks = await db.fetchval("select count(*) from easyjobs.tasks")
            schedules = await db.fetchval("select count(*) from easyjobs.schedules")
            managers = await db.fetchval(MANAGERS)
        server = await db.fetchval("select current_setting('server_version')")
        standby = " (a standby)" if await db.fetchval("select pg_is_in_recovery()") else ""
        return Overview(
            store=address.name,
            engine=f"PostgreSQL {server.split()[0]}{standby}",
            version=version,
            known=len(load(MIGRATIONS)),
            states=states,
            tasks=tasks,
            schedules=schedules,
            sizes=[(name, size) for name, size in await db.fetch(SIZES)],
            managers=managers,
        )


async def migrate(url: str) -> list[Migration]:
    """See `stores.upkeep`."""
    address = Address(url)
    db = await address.connect()
    try:
        await examine(db, address.name, "relaxed")  # a manager decides for itself
        return await connection.migrate(db, address.name, await db.fetchval(f"select {NOW}"))
    except driver().PostgresError as error:
        raise address.translate(error) or StoreError(f"{address.name}: {type(error).__name__}: {error}") from error
    finally:
        db.terminate()


async def check(url: str) -> list[str]:
    """See `stores.upkeep`."""
    wrong: list[str] = []
    async with reading(url) as (db, address):
        version: int = await db.fetchval("select current_setting('server_version_num')::int")
        if version < OLDEST:
            wrong.append(f"the server is PostgreSQL {version // 10_000}: easyjobs needs 13 or newer")
        if await db.fetchval("select pg_is_in_recovery()"):
            wrong.append("the server is a standby, on which no manager can run: give the address of the primary")
        for setting, value, effect in SETTINGS:
            if await db.fetchval("select current_setting($1)", setting) == value:
                wrong.append(f"{setting} = {value}: {effect}; set it on")
        if (encoding := await db.fetchval("select current_setting('server_encoding')")) != "UTF8":
            wrong.append(f"the database's encoding is {encoding}: names and schedules that it cannot write will be refused; use UTF8")
        if not await version_of(db):
            return [*wrong, "the database has no tables of easyjobs yet: start a manager, or run `easyjobs db migrate`"]
        return [*wrong, *[said async for said in _tables(db, address)]]


async def _tables(db: Connection, address: Address) -> AsyncIterator[str]:
    applied = dict(await db.fetch("select version, checksum from easyjobs.migrations"))
    known = load(MIGRATIONS)
    todo = pending(address.name, known, applied)
    if todo:
        yield upkeep.behind(len(applied), len(known))
    there: set[Any] = {(kind, name) for kind, name in await db.fetch(THERE)}
    missing = [f"{kind} {name}" for kind, name in made_by(known[: len(known) - len(todo)]) if (kind, name) not in there]
    if missing:
        yield upkeep.lacking(missing)
    for (name,) in await db.fetch(INVALID):
        yield f"the index {name} is not valid, so it slows writes and serves no reads: reindex index concurrently easyjobs.{name}"
    if not todo and not any(each.startswith("table ") for each in missing):
        for question, template in QUESTIONS:
            if n := int(await db.fetchval(question.format(s="easyjobs."))):
                yield template.format(n=f"{n:,}")
