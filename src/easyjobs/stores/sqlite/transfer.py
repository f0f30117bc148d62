"""A SQLite file as the source or the target of a copy: see `stores.transfer`."""

# ruff: noqa: S608 (these statements are put together from constants; values are bound)

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import apsw

from easyjobs.errors import ConfigurationError, StoreLocked
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores.migrate import load
from easyjobs.stores.sqlite.connection import MIGRATIONS, migrate, open_writer, translate
from easyjobs.stores.sqlite.files import DatabaseFile
from easyjobs.stores.sqlite.upkeep import absent, reading, version_of
from easyjobs.stores.transfer import (
    JOBS,
    LOGS,
    NUMBERED,
    SEEN,
    TICKS,
    Row,
    Table,
    batches,
    clean,
    holds_jobs,
    not_current,
    packed,
    unpacked,
)

_OF_JOBS = " where exists (select 1 from jobs j where j.seq = x.seq)"


@asynccontextmanager
async def source(path: str) -> AsyncIterator[SqliteSide]:
    """The file at `path`, which no manager may take meanwhile."""
    with _owned(path, must_be=True) as file, reading(file.path) as db:
        known = len(load(MIGRATIONS))
        if (version := version_of(db, path)) != known:
            raise not_current(path, version, known)
        yield SqliteSide(db, file.path)


@asynccontextmanager
async def target(path: str) -> AsyncIterator[SqliteTarget]:
    """A new file that takes the place of the one at `path`, if there is one without jobs."""
    with _owned(path) as file:
        with reading(file.path) as db:
            if version_of(db, path) and db.execute("select exists(select 1 from jobs)").get:
                raise holds_jobs(path)
        made = SqliteTarget(file.path)
        try:
            yield made
        except apsw.Error as error:
            raise translate(file.path, error) from error
        finally:
            made.close()


@contextlib.contextmanager
def _owned(path: str, *, must_be: bool = False) -> Iterator[DatabaseFile]:
    file = DatabaseFile(path)
    was_there = Path(file.path).exists()
    if must_be and not was_there:
        raise absent(path)
    try:
        file.take()
    except StoreLocked:
        raise ConfigurationError(f"{path} is in use by a running manager: stop the manager, copy, then start it on the new store") from None
    try:
        yield file
    finally:
        if not was_there and Path(file.path).stat().st_size == 0:
            Path(file.path).unlink()  # only made to be locked
        file.release()


class SqliteSide:
    """See `stores.transfer.Side`."""

    def __init__(self, db: apsw.Connection, path: str) -> None:
        self._db, self.name = db, path

    async def count(self, table: Table) -> int:
        return int(self._db.execute(f"select count(*) from {table.name} x{_OF_JOBS if table in (SEEN, LOGS) else ''}").get)

    async def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        columns = ", ".join(table.columns)
        where = ""
        if table is JOBS:
            columns = columns.replace("traceparent", "(select traceparent from traces t where t.seq = x.seq)")
        elif table is SEEN:
            columns, where = columns.replace("progress", "mark_attempt, done, total, message, marked_at"), _OF_JOBS
        elif table is LOGS:
            columns, where = columns.replace("logger, text", "cast(logger as blob), cast(text as blob)"), _OF_JOBS
        for batch in batches(self._db.execute(f"select {columns} from {table.name} x{where} order by {table.key}")):
            if table is JOBS:
                at = JOBS.columns.index("cancel_requested")
                yield [(*row[:at], bool(row[at]), *row[at + 1 :]) for row in batch]
            elif table is TICKS:
                yield [(*row[:-1], bool(row[-1])) for row in batch]
            elif table is SEEN:
                yield [(row[0], None if row[1] is None else packed(*row[1:6]), *row[6:]) for row in batch]
            else:
                yield [clean(row) for row in batch]

    async def numbers(self) -> dict[str, int]:
        given = dict(self._db.execute("select name, seq from sqlite_sequence"))
        return {name: int(given.get(name, 0)) for name, _ in NUMBERED}


class SqliteTarget(SqliteSide):
    """See `stores.transfer.Target`."""

    def __init__(self, path: str) -> None:
        self._path, self._beside = path, f"{path}.copying"
        self._remove()  # what an interrupted copy has left
        os.close(os.open(self._beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600))
        super().__init__(open_writer(self._beside, durability="full"), path)
        migrate(self._db, self._beside, SystemClock().now())
        self._db.execute("begin")

    def close(self) -> None:
        """Take away what was not kept."""
        self._db.close()
        self._remove()

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(self._beside + end).unlink(missing_ok=True)

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        columns, values = ", ".join(table.columns), ", ".join("?" * len(table.columns))
        if table is JOBS:
            columns, values = columns.removesuffix(", traceparent"), values.removesuffix(", ?")
            traces = [(row[0], row[-1]) for row in rows if row[-1] is not None]
            self._db.executemany("insert into traces(seq, traceparent) values (?, ?)", traces)
            rows = [row[:-1] for row in rows]
        elif table is SEEN:
            columns = columns.replace("progress", "mark_attempt, done, total, message, marked_at")
            values += ", ?, ?, ?, ?"
            rows = [(row[0], *unpacked(row[1]), *row[2:]) for row in rows]
        elif table is LOGS:
            values = values.removesuffix("?, ?") + "cast(? as text), cast(? as text)"
        self._db.executemany(f"insert into {table.name}({columns}) values ({values})", rows)

    async def complete(self, numbers: dict[str, int]) -> None:
        db = self._db
        db.execute("insert into counters(lane, state, n) select lane, state, count(*) from jobs group by lane, state")
        db.execute("insert into meta(key, value) select 'has_traces', 1 where exists (select 1 from traces)")
        db.execute("insert into meta(key, value) select 'widest_args', coalesce(max(length(args)), 0) from jobs")
        db.execute("delete from sqlite_sequence")
        db.executemany("insert into sqlite_sequence(name, seq) values (?, ?)", list(numbers.items()))

    async def keep(self) -> None:
        self._db.execute("commit")
        self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._db.close()  # which takes the log away
        self._put_in_place()

    def _put_in_place(self) -> None:
        for end in ("-wal", "-shm"):
            Path(self._path + end).unlink(missing_ok=True)  # of the file without jobs
        Path(self._beside).replace(self._path)
        directory = os.open(Path(self._path).parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
