"""The options of a task that make schedules: as a decorator has them (`Timing.of`), and as they are offered (`schedules_of`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import arguments_json
from easyjobs.domain.cron import Cron
from easyjobs.domain.payload import NotJson
from easyjobs.domain.schedule import CatchUp, NewSchedule, Overlap
from easyjobs.errors import LONGEST_S, InvalidArguments, PayloadTooLarge, RegistrationError, seconds

TIMING: Final = ("schedule", "timezone", "default_args", "catch_up", "catch_up_window", "overlap")
CatchUpWord: TypeAlias = Literal["one", "all", "skip"]
OverlapWord: TypeAlias = Literal["allow", "skip"]

MAX_SCHEDULES: Final = 50  # of one task
MAX_DEFAULT_ARGS: Final = 8 * 1024  # bytes
MAX_WINDOW_US: Final = LONGEST_S * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a task runs by itself; `TaskOptions` describes the fields. `default_args` is JSON `[args, kwargs]`."""

    schedule: tuple[str, ...]
    timezone: str = "UTC"
    default_args: bytes = b"[[],{}]"
    catch_up: CatchUp = CatchUp.ONE
    catch_up_window: timedelta = timedelta(hours=1)
    overlap: Overlap = Overlap.ALLOW

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self | None:
        """Take the options of `TIMING` out of `given`; None if there are none. What `schedules_of` checks is not checked here.

        Raises: RegistrationError.
        """
        taken = {name: value for name in TIMING if (value := given.pop(name, None)) is not None}
        if not taken:
            return None
        schedule = taken.get("schedule")
        if schedule is None:
            options = ", ".join(f"{name}={value!r}" for name, value in taken.items())
            raise RegistrationError(f"{options} without a schedule: add one, such as schedule='*/5 * * * *', or leave it out")
        taken["schedule"] = (schedule,) if isinstance(schedule, str) else tuple(schedule) if isinstance(schedule, list | tuple) else ()
        if not taken["schedule"] or not all(isinstance(one, str) for one in taken["schedule"]):
            raise RegistrationError(f"schedule={schedule!r} is no cron expression, such as '*/5 * * * *', and no list of them")
        args = taken.get("default_args", ())
        if not isinstance(args, Mapping | list | tuple):
            raise RegistrationError(f"default_args={args!r}: give a dict of keyword arguments or a list of positional ones")
        try:
            taken["default_args"] = arguments_json((), args) if isinstance(args, Mapping) else arguments_json(args, {})
        except NotJson as why:
            raise RegistrationError(f"default_args: {why}") from why
        for name, kind in (("catch_up", CatchUp), ("overlap", Overlap)):
            if name in taken:
                try:
                    taken[name] = kind(taken[name])
                except ValueError:
                    raise RegistrationError(f"{name}={taken[name]!r}: known are {', '.join(kind)}") from None
        window = taken.get("catch_up_window", timedelta(hours=1))
        try:
            taken["catch_up_window"] = timedelta(seconds=seconds(-1 if isinstance(window, bool) else window, "catch_up_window"))
        except (ValueError, AttributeError, TypeError):
            raise RegistrationError(f"catch_up_window={window!r}: seconds, or a timedelta, from 0 to ten years") from None
        return cls(**taken)

    def to_options(self) -> dict[str, Any]:
        """What `schedules_of` reads."""
        return {
            "schedule": list(self.schedule),
            "timezone": self.timezone,
            "default_args": msgspec.Raw(self.default_args),
            "catch_up": self.catch_up.value,
            "catch_up_window_us": self.catch_up_window // timedelta(microseconds=1),
            "overlap": self.overlap.value,
        }


def schedules_of(options: dict[str, Any], arguments: Arguments) -> tuple[NewSchedule, ...]:
    """Read the schedules in a task's options as they are offered, and check them and their arguments.

    Args:
        options: has `schedule`, a list of expressions, or lacks it; then `timezone`, `default_args` (`[args, kwargs]`), `catch_up`,
            `catch_up_window_us`, `overlap`, each or none.
        arguments: the task's signature.

    Raises:
        RegistrationError: something is not as it should be; it names the option.
    """
    expressions = options.get("schedule")
    if not expressions:
        return ()
    if not isinstance(expressions, list) or len(expressions) > MAX_SCHEDULES or not all(isinstance(one, str) for one in expressions):
        raise RegistrationError(f"schedule: a cron expression, or a list of at most {MAX_SCHEDULES}")
    crons = [Cron(expression, options.get("timezone", "UTC")) for expression in expressions]
    args = msgspec.json.encode(options.get("default_args", [[], {}]))
    window_us = options.get("catch_up_window_us", 3_600_000_000)
    try:
        catch_up, overlap = CatchUp(options.get("catch_up", CatchUp.ONE)), Overlap(options.get("overlap", Overlap.ALLOW))
    except ValueError as why:
        raise RegistrationError(f"schedule: {why}") from why
    if type(window_us) is not int or not 0 <= window_us <= MAX_WINDOW_US:
        raise RegistrationError("catch_up_window: seconds, or a timedelta, from 0 to ten years")
    if len(args) > MAX_DEFAULT_ARGS:
        raise RegistrationError(
            f"default_args has {len(args):,} bytes of JSON, the limit is {MAX_DEFAULT_ARGS:,}: pass a reference instead"
        )
    try:
        arguments.check_call(args)
    except (InvalidArguments, PayloadTooLarge) as why:
        raise RegistrationError(f"default_args do not fit the task: {why}") from why
    if len({cron.expression for cron in crons}) < len(crons):
        raise RegistrationError("schedule: an expression is in the list twice")
    return tuple(NewSchedule(cron.expression, cron.timezone, args, catch_up, window_us, overlap) for cron in crons)
