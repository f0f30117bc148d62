"""What an operator asks of a SQLite file: see `stores.upkeep`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError
from easyjobs.stores import upkeep
from easyjobs.stores.migrate import Migration, load, pending
from easyjobs.stores.sqlite import connection
from easyjobs.stores.sqlite.connection import MIGRATIONS, open_reader, open_writer, translate
from easyjobs.stores.sqlite.files import DatabaseFile
from easyjobs.stores.upkeep import QUESTIONS, Overview, made_by

MAX_COMPLAINTS: Final = 20  # of SQLite's own about one file
VERSION: Final = "select coalesce(max(version), 0) from migrations"


def absent(path: str) -> ConfigurationError:
    """Say that there is no such file."""
    return ConfigurationError(f"{path} is not there: give the path of the manager's file (by default job_manager.db in DB_PATH)")


@contextmanager
def reading(path: str) -> Iterator[apsw.Connection]:
    """A connection that cannot write, in one read transaction: all that is read is of one moment. Raises: ConfigurationError, StoreError."""
    if not Path(path).exists():
        raise absent(path)
    try:
        db = open_reader(path)
        try:
            db.execute("begin")
            yield db
        finally:
            db.close()
    except apsw.Error as error:
        raise translate(path, error) from error


def version_of(db: apsw.Connection, path: str) -> int:
    """The file's schema version, 0 if it is empty. Raises: ConfigurationError, if it is another program's."""
    tables = {name for (name,) in db.execute("select name from sqlite_schema where type = 'table'")}
    if "migrations" in tables:
        return int(db.execute(VERSION).get)
    if tables:
        raise ConfigurationError(f"{path} is a database of another program: give the path of a manager's file")
    return 0


def overview(path: str) -> Overview:
    """See `stores.upkeep`."""
    with reading(path) as db:
        version = version_of(db, path)
        states: dict[JobState, int] = {}
        tasks = schedules = 0
        if version:
            states = {JobState(state): n for state, n in db.execute("select state, sum(n) from counters group by state having sum(n) <> 0")}
            tasks = db.execute("select count(*) from tasks").get
            schedules = db.execute("select count(*) from schedules").get if version > 1 else 0
        free = db.pragma("freelist_count") * db.pragma("page_size")
    files = [(Path(path + end).name, Path(path + end).stat().st_size) for end in ("", "-wal") if Path(path + end).exists()]
    return Overview(
        store=path,
        engine=f"SQLite {apsw.sqlite_lib_version()}",
        version=version,
        known=len(load(MIGRATIONS)),
        states=states,
        tasks=tasks,
        schedules=schedules,
        sizes=[*files, ("of it free for reuse", free)],
        managers=None,
    )


def migrate(path: str, now: int) -> list[Migration]:
    """See `stores.upkeep`."""
    file = DatabaseFile(path)
    file.take()
    try:
        db = open_writer(file.path, durability="full")
        try:
            version_of(db, path)
            return connection.migrate(db, path, now)
        finally:
            db.close()
    except apsw.Error as error:
        raise translate(path, error) from error
    finally:
        file.release()


def check(path: str, *, is_full: bool) -> list[str]:
    """See `stores.upkeep`."""
    wrong: list[str] = []
    with reading(path) as db:
        if version_of(db, path) == 0:
            return [f"{path} has no tables yet: start a manager, or run `easyjobs db migrate`"]
        pragma = "integrity_check" if is_full else "quick_check"
        try:
            said = [str(text) for (text,) in db.execute(f"pragma {pragma}({MAX_COMPLAINTS})")]
        except apsw.CorruptError as error:
            said = [str(error)]
        if said != ["ok"]:
            return [f"the file is damaged, restore a backup: SQLite's {pragma} says: {text}" for text in said]
        applied = dict(db.execute("select version, checksum from migrations"))
        known = load(MIGRATIONS)
        if todo := pending(path, known, applied):
            wrong.append(upkeep.behind(len(applied), len(known)))
        there = {(kind, name) for kind, name in db.execute("select type, name from sqlite_schema")}
        missing = [f"{kind} {name}" for kind, name in made_by(known[: len(known) - len(todo)]) if (kind, name) not in there]
        if missing:
            return [*wrong, upkeep.lacking(missing)]
        for question, template in QUESTIONS if not todo else ():
            if n := int(db.execute(question.format(s="")).get):
                wrong.append(template.format(n=f"{n:,}"))
    return wrong
