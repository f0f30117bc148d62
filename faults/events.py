"""The store's own witness: triggers, installed by tests only, that write a row for each step of each job, in the transaction that makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw


class Step(NamedTuple):
    """A job before and after one statement. `old_state` None: it was inserted; `state` None: it was deleted. `at`: microseconds of store time."""

    n: int
    at: int
    seq: int
    old_state: int | None
    state: int | None
    attempt: int
    session: int | None
    back: int
    round: int
    failures: int
    crashes: int
    cancel_requested: int
    result: bytes | None


COLUMNS = "n, at, seq, old_state, state, attempt, session, back, round, failures, crashes, cancel_requested, result"
_CHANGED = ("state", "attempt", "session", "round", "failures", "crashes", "result")

SQLITE_NOW = "cast(unixepoch('subsec') * 1000000 as integer)"


def sqlite_triggers(now: str = SQLITE_NOW) -> str:
    """SQL that installs them. `now`: an expression for the store's time in microseconds."""
    names = "at, seq, old_state, state, attempt, session, back, round, failures, crashes, cancel_requested, result"
    new = "new.attempt, new.session, new.back, new.round, new.failures, new.crashes, new.cancel_requested, new.result"
    changed = " or ".join(f"old.{column} is not new.{column}" for column in _CHANGED)
    return f"""
        create table if not exists fault_steps(n integer primary key autoincrement, at, seq, old_state, state, attempt, session, back, round,
            failures, crashes, cancel_requested, result);
        create trigger if not exists fault_born after insert on jobs begin
            insert into fault_steps({names}) values ({now}, new.seq, null, new.state, {new});
        end;
        create trigger if not exists fault_step after update on jobs when {changed} begin
            insert into fault_steps({names}) values ({now}, new.seq, old.state, new.state, {new});
        end;
        create trigger if not exists fault_gone after delete on jobs begin
            insert into fault_steps({names}) values ({now}, old.seq, old.state, null, {new.replace("new.", "old.")});
        end;
    """


@contextlib.contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """A database file, whose manager may be running."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.set_busy_timeout(10_000)
        yield db
    finally:
        db.close()


def install_sqlite(path: Path) -> None:
    """Into a database file that has its schema; its manager may be running, and need not be restarted."""
    with opened(path) as db:
        db.execute(sqlite_triggers())


POSTGRES_TRIGGERS = f"""
    create table if not exists easyjobs.fault_steps(n bigserial primary key, at bigint, seq bigint, old_state int, state int, attempt int,
        session bigint, back int, round int, failures int, crashes int, cancel_requested int, result bytea);
    create or replace function easyjobs.fault_step() returns trigger language plpgsql as $$
    declare r record;
    begin
        if tg_op = 'DELETE' then r := old; else r := new; end if;
        insert into easyjobs.fault_steps(at, seq, old_state, state, attempt, session, back, round, failures, crashes, cancel_requested, result)
        values (extract(epoch from clock_timestamp()) * 1000000, r.seq, case when tg_op = 'INSERT' then null else old.state end,
            case when tg_op = 'DELETE' then null else new.state end, r.attempt, r.session, r.back, r.round, r.failures, r.crashes,
            r.cancel_requested::int, r.result);
        return null;
    end $$;
    drop trigger if exists fault_change on easyjobs.jobs;
    drop trigger if exists fault_rest on easyjobs.jobs;
    create trigger fault_change after update on easyjobs.jobs for each row
        when ({" or ".join(f"old.{column} is distinct from new.{column}" for column in _CHANGED)}) execute function easyjobs.fault_step();
    create trigger fault_rest after insert or delete on easyjobs.jobs for each row execute function easyjobs.fault_step();
"""


def steps_in(db: apsw.Connection) -> list[Step]:
    """What the triggers wrote, in its order."""
    return [Step(*row) for row in db.execute(f"select {COLUMNS} from fault_steps order by n")]


def steps_of(rows: Sequence[Sequence[object]]) -> list[Step]:
    """From rows of another driver, as `COLUMNS` has them."""
    return [Step(*row) for row in rows]  # type: ignore[arg-type]
