"""Which verbs there are, and how an error of ours ends the program: a sentence on stderr, exit code 2."""

from __future__ import annotations

import sys
from typing import Any, Final

import typer

from easyjobs.cli import db, token, version
from easyjobs.errors import EasyJobsError

FAILED: Final = 2  # as for wrong usage: the program, its settings or its environment have to change


class _App(typer.Typer):
    """Says our errors as sentences instead of tracebacks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except EasyJobsError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(FAILED)


app = _App(
    name="easyjobs",
    help="Jobs for FastAPI: durable, typed, nothing to install beside it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (db, token, version):
    verb.register(app)


@app.callback()
def _root() -> None:
    """Keeps verbs as verbs, even if there is only one."""


def main() -> None:
    """Run the console script."""
    app(prog_name="easyjobs")
