"""What an operator asks of a store that no manager of this process has open: its state, its schema, whether it is sound."""

# ruff: noqa: S608 (these statements are put together from constants)

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError
from easyjobs.stores.migrate import Migration

POSTGRES: Final = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A store as it is. `version` 0: it has no tables of ours yet; then there is nothing to count."""

    store: str  # without a password
    engine: str
    version: int
    known: int  # the schema version of this easyjobs
    states: Mapping[JobState, int]
    tasks: int
    schedules: int
    sizes: Sequence[tuple[str, int]]  # of files or tables, in bytes
    managers: int | None  # that were seen in the last minute; None: the store does not say


async def overview(address: str) -> Overview:
    """Look at the store at `address` (a file's path or PostgreSQL's URL); nothing is changed, and a manager may run meanwhile.

    Raises: ConfigurationError (there is no such file, too), StoreError, MissingExtra.
    """
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres import upkeep as postgres

        return await postgres.overview(address)
    from easyjobs.stores.sqlite import upkeep as sqlite

    return sqlite.overview(file_of(address))


async def migrate(address: str, now: int) -> list[Migration]:
    """Make the store's schema that of this easyjobs, and return what was applied. A SQLite file is made where there is none.

    Raises: StoreLocked (SQLite: a manager runs), SchemaTooNew, ConfigurationError, StoreError, MissingExtra.
    """
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres import upkeep as postgres

        return await postgres.migrate(address)
    from easyjobs.stores.sqlite import upkeep as sqlite

    return sqlite.migrate(file_of(address), now)


async def check(address: str, *, is_full: bool = False) -> list[str]:
    """Return a sentence for each thing that is wrong; nothing is changed, and a manager may run meanwhile.

    `is_full`: compare a SQLite file's indexes with its tables too, which reads all of it several times. Raises: as `overview`.
    """
    if address.startswith(POSTGRES):
        from easyjobs.stores.postgres import upkeep as postgres

        return await postgres.check(address)
    from easyjobs.stores.sqlite import upkeep as sqlite

    return sqlite.check(file_of(address), is_full=is_full)


def file_of(address: str) -> str:
    """The absolute path of a SQLite file. Raises: ConfigurationError, for any other kind of store."""
    if "://" in address:
        raise ConfigurationError(f"{address} is no store that outlives its process: give sqlite:///file, a path, or postgresql://…")
    return str(Path(address).absolute())


# --- what both kinds ask ------------------------------------------------------------------------------------------------------------

_NO_JOB: Final = "not exists (select 1 from {s}jobs j where j.seq = x.seq)"

# Each asks for a number, which has to be 0; `{s}` is where the tables are. The sentence says what is wrong and what to do.
QUESTIONS: Final = (
    ("select count(*) from {s}jobs where state not between 0 and 7", "jobs whose state no easyjobs knows: {n}; restore a backup"),
    (
        "select count(*) from {s}jobs j where not exists (select 1 from {s}tasks t where t.lane = j.lane)",
        "jobs of a task that the catalogue does not have: {n}; they will never run: delete them, or restore a backup",
    ),
    (
        "select count(*) from {s}jobs j where state = 1 and not exists (select 1 from {s}sessions x where x.number = j.session)",
        "running jobs of a session that does not exist: {n}; no lease of it can end: restore a backup",
    ),
    (
        "select count(*) from {s}jobs where state between 2 and 5 and finished_at is null",
        "jobs that have ended at no known time: {n}; they will never be deleted by age: delete them",
    ),
    (
        """select count(*) from {s}jobs j where state = 7 and not exists (select 1 from {s}jobs p where p.parent_seq = j.seq
            and p.edge like 'run_before:%' and p.state in (0, 1, 6, 7))""",
        "jobs that wait for run_before jobs which have all ended: {n}; cancel and retry them",
    ),
    (f"select count(*) from {{s}}attempts x where {_NO_JOB}", "failed attempts of jobs that are gone: {n}; they only take room"),
    (
        f"select count(*) from {{s}}seen x where {_NO_JOB} and not exists (select 1 from {{s}}forgotten f where f.seq = x.seq)",
        "logs of jobs that are gone: {n}; they only take room",
    ),
    (
        "select count(*) from {s}schedules x where not exists (select 1 from {s}tasks t where t.lane = x.lane)",
        "schedules of a task that the catalogue does not have: {n}; they will never fire",
    ),
    (
        """select coalesce(sum(abs(d)), 0) from (select lane, state, sum(n) as d from (select lane, state, n from {s}counters
            union all select lane, state, -count(*) from {s}jobs group by lane, state) both_ways group by lane, state) per_lane""",
        "the counters differ from the jobs by {n}: what is shown as counts is wrong, the jobs themselves run on",
    ),
)


def behind(version: int, known: int) -> str:
    """Say that migrations are missing."""
    return f"the schema has version {version}, this easyjobs has {known}: run `easyjobs db migrate`, or start a manager, which does it too"


def lacking(things: Sequence[str]) -> str:
    """Say that tables or indexes are missing."""
    return f"the schema lacks what its version has: {', '.join(things)}; somebody has dropped it: restore a backup"


def made_by(migrations: Sequence[Migration]) -> Iterator[tuple[str, str]]:
    """Yield ("table" | "index" | "trigger" | "function", name) for all that the schema should have, names without a schema's."""
    found: dict[tuple[str, str], None] = {}
    for migration in migrations:
        sql = re.sub(r"--.*", "", migration.sql)
        for verb, kind, name in re.findall(r"\b(create|drop) (?:or replace |unique )?(table|index|trigger|function) (?:\w+\.)?(\w+)", sql):
            if verb == "create":
                found[kind, name] = None
            else:
                found.pop((kind, name), None)
    yield from found
