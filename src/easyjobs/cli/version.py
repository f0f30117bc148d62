"""`easyjobs version`: what is installed here."""

from __future__ import annotations

import platform

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(version)


def version() -> None:
    """Print the versions of easyjobs, Python and SQLite."""
    import apsw

    import easyjobs

    print(f"easyjobs {easyjobs.__version__} (Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()})")
