"""Submit jobs within a database transaction of your own: with it they are there, or not.

    async with connection.transaction():
        await connection.execute("insert into orders …")
        await send_receipt.submit_in(connection, order)                      # a task, where there is one
        await Enqueuer().submit_in(connection, "mail", "send_receipt", order)  # or its name, in a program without manager and worker

`connection` is of asyncpg or psycopg (sync or async), or a Session or Connection of SQLAlchemy (sync or async) on PostgreSQL: on the database
in which the managers have their jobs. No manager is asked: the catalogue is read, and the job written, over that connection.

One set of steps serves all drivers: a generator says what is to be asked of the database, and gets the answers.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

import msgspec

from easyjobs.domain.cloning import arguments_json
from easyjobs.domain.job import NewJob, TaskRow
from easyjobs.errors import ConfigurationError, InvalidArguments, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.protocol.messages import SubmitItem, SubmitOptions
from easyjobs.protocol.options import NOTHING, submit_options
from easyjobs.runtime.ids import id_text, new_id
from easyjobs.services.catalogue import GRACE_S, Catalogue, CatalogueTask
from easyjobs.services.flow import Flow
from easyjobs.services.intake import ItemRefused, ids_of, plan
from easyjobs.stores.postgres import enlist

Rows: TypeAlias = Sequence[Sequence[Any]]
Steps: TypeAlias = Generator[tuple[str, tuple[str, ...]], Rows, bytes]

SUPPORTED: Final = (
    "a connection of asyncpg or psycopg, or a Session, AsyncSession, Connection or AsyncConnection of SQLAlchemy, on PostgreSQL"
)


class Enqueuer:
    """Submits jobs by the names of their tasks. It has no connection and no state: make one where you need it, or one for all."""

    def __init__(self) -> None:
        self._options = NOTHING

    def options(
        self,
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
    ) -> Enqueuer:
        """Return what submits with options, as those of `EasyJobsClient.options`. Raises: ValueError."""
        bound = Enqueuer()
        bound._options = submit_options(self._options, priority=priority, delay=delay, at=at, key=key)
        return bound

    async def submit_in(self, connection: Any, namespace: str, name: str, /, *args: Any, **kwargs: Any) -> str:
        """Make a job of the task `name` in the queue `namespace` part of the transaction that is open on `connection`.

        Returns: the job's id; where an idempotency key or a unique key finds a job that is there, that one's. The job exists when the
        transaction commits.

        Raises:
            InvalidArguments, UnknownTask, PayloadTooLarge, KeyReused: refused; the transaction can go on.
            ConfigurationError: no such connection, no transaction, no tables of easyjobs there, or no right to them.
            What the driver raises: the transaction is over.
        """
        return id_text(await submit_in(connection, _item(namespace, name, args, kwargs), self._options))

    def submit_in_sync(self, connection: Any, namespace: str, name: str, /, *args: Any, **kwargs: Any) -> str:
        """As `submit_in`, for a connection that is not asynchronous: of psycopg, or SQLAlchemy's Session or Connection."""
        return id_text(submit_in_sync(connection, _item(namespace, name, args, kwargs), self._options))


def _item(namespace: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SubmitItem:
    return SubmitItem(new_id(), namespace, name, arguments_json(args, kwargs))


async def submit_in(connection: Any, item: SubmitItem, options: SubmitOptions) -> bytes:
    """Store the job of `item` in the transaction of `connection`; its id. Raises: see `Enqueuer.submit_in`."""
    ask = _asking(connection)
    steps = _steps(item, options)
    try:
        question = next(steps)
        while True:
            question = steps.send(await ask(*question))
    except StopIteration as end:
        return cast("bytes", end.value)
    except Exception as error:
        raise_ours(error)
        raise


def submit_in_sync(connection: Any, item: SubmitItem, options: SubmitOptions) -> bytes:
    """As `submit_in`, for a connection that is not asynchronous."""
    ask = _asking_sync(connection)
    steps = _steps(item, options)
    try:
        question = next(steps)
        while True:
            question = steps.send(ask(*question))
    except StopIteration as end:
        return cast("bytes", end.value)
    except Exception as error:
        raise_ours(error)
        raise


def raise_ours(error: Exception) -> None:
    """Raise what we say of a driver's error, where that is more than the driver does."""
    ours = enlist.translate(error)
    if ours is not None:
        raise ours from error


# --- what is asked ------------------------------------------------------------------------------------------------------------------


class _Then:
    """A clock that stands still."""

    def __init__(self, now: int) -> None:
        self._now = now

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return 0.0


def _steps(item: SubmitItem, options: SubmitOptions) -> Steps:
    [row] = yield enlist.LOOK, (item.queue, item.name)
    found = enlist.looked(row)
    try:
        task = None if found.task is None else _task(found.task)
    except ValueError as why:
        raise ConfigurationError(
            f"the stored task {item.queue}/{item.name} cannot be read ({why}): have the same version of easyjobs here, in managers and workers"
        ) from why
    # While no manager is there, nobody writes down that a task is still offered.
    now = found.now if found.manager_seen_at is None else min(found.now, found.manager_seen_at)
    if task is None or task.is_placeholder or (found.manager_seen_at and now >= task.offered_at + GRACE_S * 1_000_000):
        raise UnknownTask(item.queue, item.name)
    rows = [] if not task.run_before else [enlist.task_row(each) for each in (yield enlist.TASKS, ())]
    catalogue = Catalogue(cast("Store", None), cast("Clock", _Then(min(now, task.offered_at))))
    catalogue.learn([task, *_readable(rows, task.lane)])
    try:
        planned = plan(catalogue, Flow(catalogue, cast("Clock", _Then(found.now))), found.now, [item], options)
    except ItemRefused as refused:
        raise refused.why from None
    _check(planned.submission.jobs[0], catalogue, item, 0)
    [[text]] = yield enlist.SUBMIT, (enlist.request(planned.submission, found.began, planned.lanes, is_timed=planned.is_timed),)
    [id] = ids_of(enlist.answer(text), planned.submission.key)
    return id


def _check(job: NewJob, catalogue: Catalogue, item: SubmitItem, depth: int) -> None:
    """Refuse what only a manager can do."""
    task = catalogue.by_lane(job.spec.lane)
    assert task is not None
    what = ""
    if task.options.get("results_to"):
        what = f"{task.queue}/{task.name} has results_to, whose broker only a manager knows: submit the job to a manager"
    elif job.parent is not None and depth > job.parent.max_depth:
        what = f"{task.queue}/{task.name} would have {depth} jobs above it, the limit of its max_chain_depth is {job.parent.max_depth}"
    if what:
        raise InvalidArguments(f"{item.queue}/{item.name}", [{"type": "value_error", "loc": ["body"], "msg": what, "input": None}])
    for before in job.befores:
        _check(before, catalogue, item, depth + 1)


def _readable(rows: list[TaskRow], but: int) -> Iterator[CatalogueTask]:
    for row in rows:
        if row.lane != but:
            with suppress(ValueError):  # written by another version: as good as not there, for a manager as well
                yield _task(row)


def _task(row: TaskRow) -> CatalogueTask:
    """A task of one's own: what is compiled of it is shared."""
    task = copy.copy(_compiled(msgspec.structs.replace(row, offered_at=0)))
    task.offered_at = row.offered_at
    return task


@lru_cache(1000)
def _compiled(row: TaskRow) -> CatalogueTask:
    return CatalogueTask(row)


# --- how each driver is asked -------------------------------------------------------------------------------------------------------


def _asking(connection: Any) -> Callable[[str, tuple[str, ...]], Awaitable[Rows]]:
    if _is_a(connection, "asyncpg", "Connection") or _is_a(connection, "asyncpg.pool", "PoolConnectionProxy"):

        async def of_asyncpg(sql: str, values: tuple[str, ...]) -> Rows:
            return cast("Rows", await connection.fetch(sql.format("$1", "$2"), *values))

        return of_asyncpg
    if _is_a(connection, "psycopg", "AsyncConnection"):

        async def of_psycopg(sql: str, values: tuple[str, ...]) -> Rows:
            async with connection.cursor(row_factory=sys.modules["psycopg.rows"].tuple_row) as cursor:
                await cursor.execute(sql.format("%s", "%s"), values)
                return cast("Rows", await cursor.fetchall())

        return of_psycopg
    if any(_is_a(connection, "sqlalchemy.ext.asyncio", name) for name in ("AsyncSession", "AsyncConnection", "async_scoped_session")):
        _check_dialect(connection)

        async def of_sqlalchemy(sql: str, values: tuple[str, ...]) -> Rows:
            return cast("Rows", (await connection.execute(*_for_sqlalchemy(sql, values))).all())

        return of_sqlalchemy
    raise _unfit(connection, "submit_in_sync", _is_sync(connection))


def _asking_sync(connection: Any) -> Callable[[str, tuple[str, ...]], Rows]:
    if _is_a(connection, "psycopg", "Connection"):

        def of_psycopg(sql: str, values: tuple[str, ...]) -> Rows:
            with connection.cursor(row_factory=sys.modules["psycopg.rows"].tuple_row) as cursor:
                cursor.execute(sql.format("%s", "%s"), values)
                return cast("Rows", cursor.fetchall())

        return of_psycopg
    if _is_sync(connection):
        _check_dialect(connection)

        def of_sqlalchemy(sql: str, values: tuple[str, ...]) -> Rows:
            return cast("Rows", connection.execute(*_for_sqlalchemy(sql, values)).all())

        return of_sqlalchemy
    is_async = any(
        _is_a(connection, module, name)
        for module, name in (
            ("asyncpg", "Connection"),
            ("asyncpg.pool", "PoolConnectionProxy"),
            ("psycopg", "AsyncConnection"),
            ("sqlalchemy.ext.asyncio", "AsyncSession"),
            ("sqlalchemy.ext.asyncio", "AsyncConnection"),
        )
    )
    raise _unfit(connection, "submit_in", is_async)


def _is_sync(connection: Any) -> bool:
    return _is_a(connection, "psycopg", "Connection") or any(
        _is_a(connection, module, name)
        for module, name in (("sqlalchemy.orm", "Session"), ("sqlalchemy.orm", "scoped_session"), ("sqlalchemy", "Connection"))
    )


def _is_a(connection: Any, module: str, name: str) -> bool:
    """Whether it is of this class, or a subclass; a module that nobody has imported is not asked for it."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(connection, kind)


def _check_dialect(connection: Any) -> None:
    dialect = getattr(connection, "dialect", None) or connection.get_bind().dialect
    if dialect.name != "postgresql":
        raise ConfigurationError(
            f"submit_in writes into the managers' database, which is PostgreSQL; this connection is of {dialect.name}: use submit(), after the "
            "commit, or keep the jobs in the PostgreSQL database that your program has"
        )


def _for_sqlalchemy(sql: str, values: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    text = sys.modules["sqlalchemy"].text
    return text(sql.format(":v0", ":v1")), {f"v{n}": value for n, value in enumerate(values)}


def _unfit(connection: Any, other: str, is_for_other: bool) -> ConfigurationError:
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    if is_for_other:
        return ConfigurationError(f"this is a {kind}: use {other}")
    return ConfigurationError(f"a {kind} is no connection that a job can be submitted in: give {SUPPORTED}")
