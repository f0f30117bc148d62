"""How all that a store holds goes into another store, of either kind.

Both kinds read and write the same rows, `TABLES`, in the order of their keys. The target holds nothing until all of it is there, has been read
back and has the source's counts and checksums: in PostgreSQL one transaction, for SQLite a file beside the target that takes its name at the
end. So a copy that is interrupted leaves the target as it was, and is simply begun again.

What is not copied follows from what is: counters, and leases, which begin anew. Nor are logs of deleted jobs, which wait for their removal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from easyjobs.domain.seeing import Progress
from easyjobs.errors import ConfigurationError, StoreError
from easyjobs.stores.upkeep import POSTGRES, file_of

Row = tuple[Any, ...]
MAX_ROWS: Final = 1000  # of one batch
MAX_BYTES: Final = 8 * 1024 * 1024

_pack: Final = msgspec.msgpack.Encoder().encode
_progress: Final = msgspec.msgpack.Decoder(Progress).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is copied: names of its columns in both kinds of stores, and of its key."""

    name: str
    columns: tuple[str, ...]
    key: str


def _table(name: str, columns: str, key: str) -> Table:
    return Table(name=name, columns=tuple(columns.replace(",", " ").split()), key=key)


SESSIONS: Final = _table("sessions", "number, id, name, begun_at", "number")
JOBS: Final = _table(
    "jobs",
    "seq, id, lane, state, rank, attempt, session, back, round, failures, crashes, max_retries, max_crashes, priority, run_at, timeout_us, "
    "expires_at, ttl_us, cancel_requested, unique_key, parent_seq, edge, parent_round, depth, created_at, started_at, finished_at, "
    "pulled_at, args, result, error, traceparent",
    "seq",
)
TICKS: Final = _table("ticks", "schedule, tick, seq, live", "schedule, tick")
SEEN: Final = _table("seen", "seq, progress, lines, bytes, dropped, last_attempt, last_number", "seq")  # progress: as PostgreSQL keeps it
LOGS: Final = _table("logs", "seq, attempt, number, at, level, logger, text", "seq, attempt, number")  # texts are bytes here
TABLES: Final = (
    _table("tasks", "lane, queue, name, signature, options, offered_at", "lane"),
    SESSIONS,
    JOBS,
    _table("attempts", "seq, attempt, session, at, error", "seq, attempt"),
    _table("idempotency", "principal, scope, key, body, ids, at, until", "principal, scope, key"),
    _table("uniques", "key, seq, states, until", "key"),
    _table("paused", "queue, at", "queue"),
    _table(
        "schedules",
        "id, lane, expression, timezone, args, catch_up, window_us, overlap, version, next_at, paused_at, last_tick, last_seq",
        "id",
    ),
    TICKS,
    SEEN,
    LOGS,
    _table("quarantine", "id, broker, queue, key, reason, detail, size, at, waits_until, task_queue, task_name, body", "id"),
    _table("replies", "seq, broker, queue, correlation", "seq"),
    _table("outbox", "id, broker, queue, correlation, at, job, lane, state, attempt, body", "id"),
    _table("tokens", "id, name, scopes, expires_at, created_at, revoked_at, queues", "id"),
)
NUMBERED: Final = (  # numbers that are never used again
    ("jobs", "seq"), ("tasks", "lane"), ("sessions", "number"), ("schedules", "id"), ("quarantine", "id"), ("outbox", "id"),
)  # fmt: skip


class Side(Protocol):
    """A store that is read."""

    name: str

    async def count(self, table: Table) -> int:
        """How many rows of it are copied."""
        ...

    def rows(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """Its rows in batches, by its key; texts `clean`."""
        ...

    async def numbers(self) -> dict[str, int]:
        """The last number that was given, by the names of `NUMBERED`."""
        ...


class Target(Side, Protocol):
    """A store that is written; entered, it is empty and nobody else's. What was written is lost unless `keep` is called."""

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows."""
        ...

    async def complete(self, numbers: dict[str, int]) -> None:
        """Make what follows from the rows: counters, leases, the numbers that come next."""
        ...

    async def keep(self) -> None:
        """Make all of it last, at once."""
        ...


Told = Callable[[str, int, int], None]
"""What is being done, how many rows of it, of how many."""


async def copy(source: str, target: str, told: Told = lambda _what, _done, _of: None) -> dict[str, int]:
    """Copy everything of the store at `source` into the one at `target` (paths or URLs), and return the rows of each table.

    Tasks, sessions, schedules and pauses that are in the target are replaced, if it holds no jobs.

    Raises:
        ConfigurationError: a manager runs on either of them, the target holds jobs, the source has another schema version.
        StoreError: it could not be read or written, or what was written is not what was read; the target is as it was.
    """
    if _name(source) == _name(target):
        raise ConfigurationError(f"{_name(source)} cannot be copied into itself: name another target")
    copied: dict[str, int] = {}
    async with _source(source) as old, _target(target) as new:
        for table in TABLES:
            total = copied[table.name] = await old.count(table)
            before, after = Digest(), Digest()
            told(table.name, 0, total)
            async for batch in old.rows(table):
                before.add(batch)
                await new.write(table, batch)
                told(table.name, before.rows, total)
            told(f"{table.name}, checking", 0, total)
            async for batch in new.rows(table):
                after.add(batch)
                told(f"{table.name}, checking", after.rows, total)
            if not before.rows == after.rows == total or before.sum != after.sum:
                raise StoreError(
                    f"{table.name}: {total:,} rows were counted, {before.rows:,} read from {old.name} and {after.rows:,} found in {new.name}, "
                    "with another checksum: nothing was copied"
                )
        await new.complete(await old.numbers())
        await new.keep()
    return copied


class Digest:
    """Counts rows and sums up their checksums, so that two tables can be compared, in whatever order they are read."""

    def __init__(self) -> None:
        self.rows = 0
        self.sum = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.sum = (self.sum + int.from_bytes(hashlib.sha256(_pack(row)).digest())) % 2**256
            self.rows += 1


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into batches of `MAX_ROWS`, or of about `MAX_BYTES`."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum([len(value) for value in row if isinstance(value, bytes)])
        if len(batch) >= MAX_ROWS or size >= MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def clean(row: Row) -> Row:
    """A row as both kinds of stores can have it: PostgreSQL's texts hold no NUL."""
    return tuple([value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row])


def packed(attempt: int, done: float, total: float | None, message: str, at: int) -> bytes:
    """A progress as `SEEN` has it."""
    return _pack(Progress(attempt, done, total, message, at))


def unpacked(progress: bytes | None) -> Row:
    """The five values of `packed`; all None for none."""
    return (None,) * 5 if progress is None else msgspec.structs.astuple(_progress(progress))


def not_current(store: str, version: int, known: int) -> ConfigurationError:
    """Say that a source has to be migrated first."""
    if version > known:
        return ConfigurationError(f"{store} has schema version {version}, this easyjobs knows up to {known}: upgrade easyjobs")
    return ConfigurationError(f"{store} has schema version {version}, this easyjobs has {known}: run `easyjobs db migrate` on it first")


def holds_jobs(store: str) -> ConfigurationError:
    """Say that a target is in use."""
    return ConfigurationError(f"{store} holds jobs already: two stores are never merged; give an empty database, or another file")


def _name(address: str) -> str:
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres.connection import Address

        return Address(address).name
    return os.path.realpath(file_of(address))


def _source(address: str) -> AbstractAsyncContextManager[Side]:
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres import transfer as postgres

        return postgres.source(address)
    from easyjobs.stores.sqlite import transfer as sqlite

    return sqlite.source(file_of(address))


def _target(address: str) -> AbstractAsyncContextManager[Target]:
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres import transfer as postgres

        return postgres.target(address)
    from easyjobs.stores.sqlite import transfer as sqlite

    return sqlite.target(file_of(address))
