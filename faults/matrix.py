"""The matrix: which row breaks what. `faults.rows` has the rows themselves; each breaks one thing, checks the invariants, and returns its figure.

A row that the machine cannot run raises `Skipped` with the reason. `COVERED` names the tests that show other rows; `ABSENT` says why a row is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Skipped(Exception):
    """This machine cannot run the row, for this reason."""


Body = Callable[[Path, float], str]


@dataclass(frozen=True, slots=True)
class Row:
    """`run` gets a directory of its own and how much it is to do: 1.0 is the short form, of some ten seconds. It returns its figure.

    Raises: Skipped; AssertionError and any other error if something did not hold. `limit_s`: it has failed if it takes longer, for a size of 3.0.
    """

    name: str
    what: str
    run: Body
    limit_s: float


ROWS: dict[str, Row] = {}


def row(name: str, *, limit_s: float = 600.0) -> Callable[[Body], Body]:
    """Register a row under its name; the first line of its docstring says what it breaks and what must hold."""

    def register(function: Body) -> Body:
        assert name not in ROWS, name
        what = (function.__doc__ or "").strip().splitlines()[0]
        ROWS[name] = Row(name, what, function, limit_s)
        return function

    return register


@dataclass(frozen=True, slots=True)
class Covered:
    """A row that tests show: `tests` is what pytest is given."""

    what: str
    tests: str


COVERED: dict[str, Covered] = {
    "D7": Covered("A second manager on the same file is refused", "tests/stores/test_sqlite.py::test_a_second_open_is_refused_here_and_in_another_process"),
    "N3W": Covered("A worker that cannot renew stops its jobs by itself", "tests/workers/test_link.py -k renew"),
}  # fmt: skip
ABSENT: dict[str, str] = {}
