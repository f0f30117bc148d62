"""Schedules: where clocks are set, where managers stand still, die or disagree about the time, and where people change them. A job's tick is its `run_at`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from easyjobs.domain.cron import Cron
from faults.matrix import row

SCHEDULES = "/jobs/api/v1/schedules"
SECOND = 1_000_000
EACH_SECOND = "* * * * * *"
ON_TIME_S = 10  # so late a tick may be without being missed: docs/schedules.md

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "America/Santiago",  # at midnight
    "Africa/Casablanca",  # around Ramadan, backwards first
    "Pacific/Chatham",  # at a quarter to
)
EXPRESSIONS = (
    "30 2 * * *", "*/20 2 * * *", "15 1 * * *", "0 0 * * *", "59 23 * * *", "*/15 0-3 * * *", "45 1,2,3,23 * * *", "0 3 * * 0", "0 2 1-7 * 0",
    "30 2 31 * *", "10 0 * 3,4,9,10,11 *", "17 * * * *", "0 */2 * * *", "40 */3 * * 0",
)  # fmt: skip


# --- C1 -----------------------------------------------------------------------------------------------------------------------------


class Names(NamedTuple):
    """What an expression names. `is_hourly`: it follows the time that passes, and not the local clock."""

    minutes: frozenset[int]  # of the day
    days: tuple[frozenset[int], frozenset[int], frozenset[int]]  # of the month, months, days of the week from Sunday = 0
    is_either: bool
    is_hourly: bool

    def has_day(self, day: datetime) -> bool:
        of_month, months, of_week = self.days
        fits = (day.day in of_month, day.isoweekday() % 7 in of_week)
        return day.month in months and (any(fits) if self.is_either else all(fits))


def names_of(expression: str) -> Names:
    """Read it, for the oracle: `*`, numbers, ranges, lists and steps."""
    fields = expression.split()
    bounds = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    minute, hour, day, month, weekday = (_values(field, *bound) for field, bound in zip(fields, bounds, strict=True))
    is_either = not fields[2].startswith("*") and not fields[4].startswith("*")
    return Names(frozenset(h * 60 + m for h in hour for m in minute), (day, month, weekday), is_either, fields[1].startswith("*"))


def _values(field: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        several, _, step = part.partition("/")
        first, _, last = (str(low), "", str(high)) if several == "*" else several.partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(found)


def walked(zone: str, since: datetime, end: datetime) -> list[list[int]]:
    """The oracle: look at each minute of UTC, and at what a clock on the wall shows then. The ticks of each of `EXPRESSIONS`, seconds since 1970.

    Fixed hours: each time of the wall once; those that the clock leaps over, together at the minute at which it has leapt. Every hour: whenever it fits.
    """
    tz, several = ZoneInfo(zone), [names_of(each) for each in EXPRESSIONS]
    ticks: list[list[int]] = [[] for _ in several]
    plans: dict[int, list[list[int]]] = {}  # by day of the wall: which expressions name each of its minutes

    def named(wall: int) -> list[int]:
        day, minute = divmod(wall, 1440)
        if day not in plans:
            date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
            plans.clear()
            plans[day] = [[] for _ in range(1440)]
            for number, each in enumerate(several):
                for at in each.minutes if each.has_day(date) else ():
                    plans[day][at].append(number)
        return plans[day][minute]

    begin, last = int(since.timestamp()), int(end.timestamp())
    highest = None  # what the wall's clock has shown so far
    for at in range(begin - 2 * 86_400, last + 1, 60):  # an hour that began before may come again
        local = datetime.fromtimestamp(at, tz)
        wall = local.toordinal() * 1440 + local.hour * 60 + local.minute - 719_163 * 1440
        firing = {number for number in named(wall) if several[number].is_hourly or highest is None or wall > highest}
        for leapt in range(highest + 1, wall) if highest is not None else ():
            firing.update(number for number in named(leapt) if not several[number].is_hourly)
        highest = wall if highest is None else max(highest, wall)
        if at >= begin:
            for number in firing:
                ticks[number].append(at)
    return ticks


@row("C1", limit_s=1200)
def clocks_are_set(directory: Path, size: float) -> str:
    """Cron in six zones from 2026 to 2030, against a walk over each minute: what is skipped fires once after the gap, what comes twice fires once."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    end = datetime(2031 if size >= 2 else 2027, 1, 1, tzinfo=UTC)
    checked = sets = 0
    for zone in ZONES:
        sets += sum(1 for _ in _changes(zone, since, end))
        for expression, expected in zip(EXPRESSIONS, walked(zone, since, end), strict=True):
            told = [
                tick // SECOND for tick in Cron(expression, zone).ticks(int(since.timestamp()) * SECOND - 1, int(end.timestamp()) * SECOND)
            ]
            wrong = sorted(set(told) ^ set(expected))[:5]
            assert told == expected, (
                f"{expression!r} in {zone}: {[(_utc(at), 'one too many' if at in told else 'missing') for at in wrong]}"
            )
            checked += len(told)
    assert sets, "no clock was set"
    return f"{checked:,} ticks of {len(EXPRESSIONS)} expressions in {len(ZONES)} zones, over {sets} settings of their clocks until {end.year - 1}: 0 differ"


def _changes(zone: str, since: datetime, end: datetime) -> Iterator[datetime]:
    at, tz = since, ZoneInfo(zone)
    while at < end:
        if at.astimezone(tz).utcoffset() != (at + timedelta(hours=1)).astimezone(tz).utcoffset():
            yield at
        at += timedelta(hours=1)


def _utc(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
