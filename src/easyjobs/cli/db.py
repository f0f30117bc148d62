"""`easyjobs db`: look after the database: its state, its schema, whether it is sound; move to another one."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.settings import POSTGRES, ManagerSettings, parse_store
from easyjobs.stores import transfer, upkeep
from easyjobs.stores.upkeep import Overview

WRONG: Final = 1  # exit code: the command did its work, and found something

Store = Annotated[
    str | None,
    typer.Argument(
        help="sqlite:///file, a path, or postgresql://user@host/database. If not given: EASYJOBS_STORE (or EASYJOBS_STORE_FILE), else the "
        "file in DB_PATH. Passwords belong there, in PGPASSWORD or in ~/.pgpass, not into a command line, which others can read.",
        show_default=False,
    ),
]

app = typer.Typer(name="db", help="Look after the database.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the verbs."""
    root.add_typer(app)


def address_of(store: str | None) -> str:
    """The store that is meant, as `stores` take it. Raises: ConfigurationError."""
    if store is None:
        return ManagerSettings.look().address
    try:
        address = parse_store(store)
    except ValueError as why:
        raise ConfigurationError(str(why)) from None
    if address.startswith(POSTGRES):
        parts = urlsplit(address)
        if parts.password or dict(parse_qsl(parts.query)).get("password"):
            print("warning: a password in a command line can be read by others: set EASYJOBS_STORE or PGPASSWORD instead", file=sys.stderr)
    return address


def console() -> Console:
    """Where answers go: plain text where it is no terminal, and lines are never cut there."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@app.command()
def status(store: Store = None, *, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show the schema's version, how many jobs are in which state, and what takes how much room. A manager may run meanwhile."""
    found = asyncio.run(upkeep.overview(address_of(store)))
    if as_json:
        print(json.dumps(_as_dict(found)))
        return
    out = console()
    out.print(f"[bold]{_plain(found.store)}[/bold] · {found.engine}")
    out.print(f"schema    {_schema(found)}")
    if found.managers is not None:
        out.print(f"managers  {found.managers} seen in the last minute")
    if not found.version:
        return
    out.print(f"tasks     {found.tasks:,}\nschedules {found.schedules:,}\n")
    for title, rows in (
        ("jobs", [(state.text, f"{found.states.get(state, 0):,}") for state in JobState]),
        ("size", [(name, _bytes(size)) for name, size in found.sizes]),
    ):
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(justify="right")
        for row in rows:
            table.add_row(*row)
        out.print(table)


@app.command()
def migrate(store: Store = None) -> None:
    """Bring the schema up to the version of this easyjobs. Managers do the same when they start; a SQLite file's must be stopped."""
    address = address_of(store)
    applied = asyncio.run(upkeep.migrate(address, SystemClock().now()))
    found = asyncio.run(upkeep.overview(address))
    for migration in applied:
        print(f"applied {migration.version:04} {migration.name}")
    print(f"{found.store}: schema {_schema(found)}")


@app.command()
def check(
    store: Store = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="SQLite: compare indexes with tables too; reads all of the file.")] = False,
) -> None:
    """Look for damage, lost indexes, dangerous settings, and tables that contradict each other. Exit code 1 if there is anything.

    A manager may run meanwhile.
    """
    address = address_of(store)
    wrong = asyncio.run(upkeep.check(address, is_full=full))
    for sentence in wrong:
        print(sentence)
    if wrong:
        raise typer.Exit(WRONG)
    print("nothing is wrong")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="sqlite:///file, a path, or postgresql://user@host/database.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="TO", help="Where to; EASYJOBS_STORE (or EASYJOBS_STORE_FILE) if not given.", show_default=False),
    ] = None,
) -> None:
    """Copy all jobs, results, logs, schedules, tasks and keys into an empty store: from SQLite to PostgreSQL, or back.

    Managers of both have to be stopped. The target gets all of it at once, at the end, when it has been read back and compared; so an
    interrupted copy has done nothing, and is begun again. The source is not changed: start no manager on it any more.
    """
    if target is None and ManagerSettings.look().store is None:
        raise ConfigurationError("no target: name it after the source, or set EASYJOBS_STORE")
    old, new = address_of(source), address_of(target)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        bar = progress.add_task("")

        def told(what: str, done: int, of: int) -> None:
            progress.update(bar, description=what, completed=done, total=of)

        copied = asyncio.run(transfer.copy(old, new, told))
    for name, rows in copied.items():
        print(f"{name:<12}{rows:>12,}")
    print("copied and compared; start managers on the new store, and none on the old one")


def _schema(found: Overview) -> str:
    if not found.version:
        return f"none yet (this easyjobs has version {found.known}): start a manager, or run `easyjobs db migrate`"
    if found.version > found.known:
        return f"version {found.version}, newer than this easyjobs, which has {found.known}: upgrade easyjobs"
    if found.version < found.known:
        return f"version {found.version}, this easyjobs has {found.known}: run `easyjobs db migrate`, or start a manager"
    return f"version {found.version}, up to date"


def _as_dict(found: Overview) -> dict[str, object]:
    return {
        "store": found.store,
        "engine": found.engine,
        "schema": {"version": found.version, "known": found.known},
        "jobs": {state.text: found.states.get(state, 0) for state in JobState},
        "tasks": found.tasks,
        "schedules": found.schedules,
        "managers": found.managers,
        "bytes": dict(found.sizes),
    }


def _bytes(size: int) -> str:
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
