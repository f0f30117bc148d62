"""When a job counts as one that is there already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypedDict

from easyjobs.domain.job import UniqueKey
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.payload import canonical
from easyjobs.errors import RegistrationError, seconds

INCOMPLETE: Final = tuple(state.text for state in JobState if state not in FINAL)


class UniqueOptions(TypedDict):
    """`Unique` as it travels: `fields` None: all arguments; `period_us` None: no end; `states` by name."""

    fields: list[str] | None
    period_us: int | None
    states: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """A submit of a job like one that is there gives that one, and stores nothing.

    Args:
        fields: the parameters that make jobs alike; None: all of them.
        period: seconds (or a timedelta) after its submit for which a job counts; None: without an end.
        states: in which a job counts; default: all that are not final.

    Raises:
        RegistrationError: an unknown state, no state, or a period that is negative.
    """

    fields: Sequence[str] | None = None
    period: float | timedelta | None = None
    states: Sequence[str] = INCOMPLETE

    def __post_init__(self) -> None:
        known = {state.text for state in JobState}
        if isinstance(self.states, str) or not self.states or not known.issuperset(self.states):
            raise RegistrationError(f"unique: states={self.states!r}: give some of {', '.join(sorted(known))}")
        if isinstance(self.fields, str):
            raise RegistrationError(f"unique: fields={self.fields!r}: give a list of parameters")
        if self.period is not None:
            try:
                seconds(self.period, "period")
            except ValueError as error:
                raise RegistrationError(f"unique: {error}") from error

    def to_options(self) -> UniqueOptions:
        """Return it as the manager reads it."""
        return {
            "fields": None if self.fields is None else list(self.fields),
            "period_us": None if self.period is None else round(seconds(self.period, "period") * 1_000_000),
            "states": list(self.states),
        }


def key_of(queue: str, name: str, named: Mapping[str, Any], options: UniqueOptions) -> UniqueKey:
    """Return the unique key of a job of this task, with these arguments by name."""
    fields = options["fields"]
    told = dict(named) if fields is None else {field: named[field] for field in fields if field in named}
    states = tuple(state for state in JobState if state.text in options["states"])
    text = f"{queue}/{name}".encode() + canonical(told)
    return UniqueKey(hashlib.sha256(text).digest(), states, options["period_us"])
