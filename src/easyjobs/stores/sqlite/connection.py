"""How SQLite is opened, and what its errors mean to us."""

from __future__ import annotations

from typing import Final

import apsw

from easyjobs.errors import StoreError, StoreFull, StoreHeld, StoreLost
from easyjobs.runtime import failpoints
from easyjobs.stores.migrate import Migration, load, pending

MIGRATIONS: Final = "easyjobs.stores.sqlite.migrations"
MAX_CHECKED: Final = 32 * 1024 * 1024  # bytes; larger files are not checked at start

BUSY_MS: Final = 5000  # somebody may look into the file with the sqlite3 shell

_FULL: Final = frozenset({apsw.SQLITE_IOERR_SHMSIZE})  # no room for the shared index of the write-ahead log


def open_writer(path: str, *, durability: str) -> apsw.Connection:
    """Open the one connection that writes and checkpoints."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=200)
    db.set_busy_timeout(BUSY_MS)
    settings = db.execute(f"""
        pragma journal_mode = wal;
        pragma synchronous = {"full" if durability == "full" else "normal"};
        pragma wal_autocheckpoint = 0;
        pragma temp_store = memory;
        pragma cache_size = -32000;
        pragma foreign_keys = off;
        pragma trusted_schema = off;
    """)
    settings.fetchall()  # some of them answer with a row, at which a cursor stands still: the rest would not be said
    return db


def open_reader(path: str) -> apsw.Connection:
    """Open a connection that cannot write."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(BUSY_MS)
    db.execute("pragma query_only = on; pragma temp_store = memory; pragma cache_size = -8000; pragma trusted_schema = off").fetchall()
    return db


def migrate(db: apsw.Connection, path: str, now: int) -> list[Migration]:
    """Bring the schema up to date, and return what was applied. Raises: SchemaTooNew, StoreError."""
    db.execute(
        "create table if not exists migrations(version integer primary key, checksum text not null, applied_at integer not null) strict"
    )
    applied = dict(db.execute("select version, checksum from migrations"))
    todo = pending(path, load(MIGRATIONS), applied)
    for migration in todo:
        with db:
            db.execute(migration.sql)
            if failpoints.ARMED:
                failpoints.reach("store.migrating")
            db.execute("insert into migrations values (?, ?, ?)", (migration.version, migration.checksum, now))
    return todo


def translate(path: str, error: apsw.Error) -> StoreError:
    """Return our error for SQLite's.

    After a failed fsync the kernel may have dropped the pages that were not written, so a second one that succeeds proves nothing:
    such a store is lost, as a corrupt one is.
    """
    extended = getattr(error, "extendedresult", 0)
    if isinstance(error, apsw.FullError) or extended in _FULL:
        return StoreFull(path)
    if isinstance(error, apsw.BusyError):
        return StoreHeld(path)
    if isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError | apsw.CantOpenError | apsw.ReadOnlyError):
        return StoreLost(path, f"SQLite says: {error}")
    return StoreError(f"{path}: {type(error).__name__}: {error}")
