"""Schedules of tasks: what they are, which of their ticks are fired after a pause, and what a new version of the code does to them.

A tick is an instant that a schedule's cron expression names. `next_at` of a schedule is the first tick that nothing was decided about
yet. Firing a tick stores the row (schedule, tick), its job and the next `next_at` in one transaction; so a tick is fired once, and none
is forgotten: what came due while nobody looked lies between `next_at` and now, and `decide` says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from easyjobs.domain.cron import Cron
from easyjobs.domain.job import NewJob

ON_TIME_US: Final = 10_000_000  # so late a tick may be without being missed: a restart that is quick skips nothing
MAX_TICKS: Final = 500  # of one schedule, in one transaction


class CatchUp(StrEnum):
    """What becomes of ticks that were missed: while the manager was down or stood still."""

    ONE = "one"  # one job for all of them, for the latest
    ALL = "all"  # a job for each
    SKIP = "skip"  # none


class Overlap(StrEnum):
    """What becomes of a tick while a job of an earlier one is not final."""

    ALLOW = "allow"  # its job runs beside the other
    SKIP = "skip"  # it has no job


class NewSchedule(msgspec.Struct, frozen=True):
    """A schedule as the code has it. `args` is JSON `[args, kwargs]`, of each of its jobs. Ticks missed for longer than the window are skipped."""

    expression: str
    timezone: str = "UTC"
    args: bytes = b"[[],{}]"
    catch_up: CatchUp = CatchUp.ONE
    window_us: int = 3_600_000_000
    overlap: Overlap = Overlap.ALLOW


class TaskSchedules(msgspec.Struct, frozen=True):
    """All schedules of a task that was offered: none, if it has no more."""

    queue: str
    name: str
    schedules: tuple[NewSchedule, ...]


class Schedule(msgspec.Struct, frozen=True):
    """A schedule as the store has it.

    `version` grows when the code changes it. `next_at` None: it has no more ticks. `last_tick` is the latest that was fired, `last_job`
    the id of the latest job (also one that was run by hand), while the store remembers them.
    """

    id: int
    lane: int
    what: NewSchedule
    version: int
    next_at: int | None
    paused_at: int | None = None
    last_tick: int | None = None
    last_job: bytes | None = None


class DueSchedules(msgspec.Struct, frozen=True):
    """The store's time, the schedules that have ticks up to it, longest due first, and when the next one is due (None: none is)."""

    now: int
    schedules: tuple[Schedule, ...]
    next_at: int | None


class Tick(msgspec.Struct, frozen=True):
    """A tick to be fired, and its job."""

    at: int
    job: NewJob


class Firing(msgspec.Struct, frozen=True):
    """What was decided about a schedule's ticks from its `next_at` (here `due_at`) up to `next_at`: `ticks` are fired, the others skipped.

    It holds only for the schedule as it was: of this version, with this `next_at`, not paused. `alone`: no tick while an earlier job of
    the schedule is not final.
    """

    schedule: int
    version: int
    due_at: int
    next_at: int | None
    ticks: tuple[Tick, ...] = ()
    alone: bool = False


class Fired(IntEnum):
    """What became of a tick."""

    BORN = 0  # its job is stored
    OVERLAPS = 1  # an earlier job of the schedule is not final: no job, and there will be none
    REPEATED = 2  # it was fired before
    STALE = 3  # the schedule has changed, is paused or gone, or the tick is yet to come: nothing was stored


class Decision(NamedTuple):
    """Which ticks to fire now, what is next, and whether any was left out."""

    ticks: tuple[int, ...]
    next_at: int | None
    has_skipped: bool


def decide(cron: Cron, due_at: int, now: int, catch_up: CatchUp, window_us: int, limit: int = MAX_TICKS) -> Decision:
    """Decide about the ticks from `due_at` (the first that is due) to `now`.

    The latest tick is on time if it is at most `ON_TIME_US` old. What is older, or is followed by a later one, was missed: `one` fires the
    latest tick, on time or not, for all of them; `all` fires each, oldest first, `limit` at once (the others are next); `skip` fires the
    latest if it is on time. A tick that is older than the window is never fired.
    """
    if due_at > now:
        return Decision((), due_at, has_skipped=False)
    if catch_up is CatchUp.ALL:
        oldest = max(due_at, now - max(window_us, ON_TIME_US))
        ticks = tuple(islice(cron.ticks(oldest - 1, now), limit))
        next_at = cron.next(ticks[-1] if len(ticks) == limit else now)
        return Decision(ticks, next_at, has_skipped=ticks[:1] != (due_at,))
    latest = cron.latest(due_at - 1, now)
    bound = ON_TIME_US if catch_up is CatchUp.SKIP else max(window_us, ON_TIME_US)
    ticks = () if latest is None or now - latest > bound else (latest,)
    return Decision(ticks, cron.next(now), has_skipped=ticks != (due_at,))


class Plan(NamedTuple):
    """What is to be done to the stored schedules of a task."""

    add: list[NewSchedule]
    change: list[tuple[Schedule, NewSchedule]]  # keeps its id, and stays paused
    remove: list[Schedule]


def plan(stored: Sequence[Schedule], wanted: Sequence[NewSchedule]) -> Plan:
    """Compare what is stored with what the code has now.

    A schedule is recognised by its expression and zone. One that is new takes the place of one that is gone, in their order: so a task
    with one schedule keeps it, and it stays paused, also when its expression changes.
    """
    gone = {(one.what.expression, one.what.timezone): one for one in stored}
    new: list[NewSchedule] = []
    change: list[tuple[Schedule, NewSchedule]] = []
    for schedule in wanted:
        known = gone.pop((schedule.expression, schedule.timezone), None)
        if known is None:
            new.append(schedule)
        elif known.what != schedule or known.next_at is None:
            change.append((known, schedule))
    left = list(gone.values())
    change.extend(zip(left, new, strict=False))
    return Plan(new[len(left) :], change, left[len(new) :])


def first_tick(what: NewSchedule, now: int) -> int | None:
    """The `next_at` of a schedule that begins, or goes on after a pause, now."""
    return Cron(what.expression, what.timezone).next(now)


def next_of_changed(known: Schedule, what: NewSchedule, now: int) -> int | None:
    """The `next_at` of a schedule that the code has changed: with the same expression and zone it goes on, else it begins now."""
    if known.next_at is not None and (known.what.expression, known.what.timezone) == (what.expression, what.timezone):
        return known.next_at
    return first_tick(what, now)
