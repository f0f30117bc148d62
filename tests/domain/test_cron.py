"""Cron in time zones, held against an oracle that knows nothing of cronsim: it looks at every single minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyjobs.domain.cron import MACROS, Cron
from easyjobs.errors import RegistrationError

MINUTE = timedelta(minutes=1)
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "America/Santiago",  # at midnight
    "America/Sao_Paulo",  # at midnight, until 2019
    "Africa/Casablanca",  # four times a year, around Ramadan
    "Asia/Kolkata",  # never
    "Pacific/Apia",  # left out a whole day in 2011
)


class Field(NamedTuple):
    """A field as it is written, and what it means."""

    text: str
    values: frozenset[int]


def fields(low: int, high: int) -> st.SearchStrategy[Field]:
    """All the ways to write a field."""
    number = st.integers(low, high)
    every = frozenset(range(low, high + 1))
    return st.one_of(
        st.just(Field("*", every)),
        st.builds(lambda step: Field(f"*/{step}", frozenset(range(low, high + 1, step))), st.integers(1, high)),
        st.builds(lambda n: Field(str(n), frozenset({n})), number),
        st.builds(lambda a, b: Field(f"{a},{b}", frozenset({a, b})), number, number),
        st.builds(lambda a, b: Field(f"{min(a, b)}-{max(a, b)}", frozenset(range(min(a, b), max(a, b) + 1))), number, number),
        st.builds(
            lambda a, b, s: Field(f"{min(a, b)}-{max(a, b)}/{s}", frozenset(range(min(a, b), max(a, b) + 1, s))),
            number, number, st.integers(1, high),
        ),
    )  # fmt: skip


@st.composite
def expressions(draw: st.DrawFn) -> list[Field]:
    early = st.sampled_from([Field(str(hour), frozenset({hour})) for hour in range(4)])
    hour = draw(st.one_of(early, st.just(Field("0-3", frozenset(range(4)))), fields(0, 23)))
    any_day = st.just(Field("*", frozenset(range(1, 32))))
    day = draw(st.one_of(any_day, any_day, fields(1, 31)))
    month = draw(st.one_of(st.just(Field("*", frozenset(range(1, 13)))), fields(1, 12)))
    weekday = draw(st.one_of(st.just(Field("*", frozenset(range(7)))), fields(0, 6)))
    return [draw(fields(0, 59)), hour, day, month, weekday]


@cache
def changes(zone: str) -> list[datetime]:
    """Instants, since 2005, at most six hours before the clocks of a zone are set."""
    step, tz = timedelta(hours=6), ZoneInfo(zone)
    found, at = [], datetime(2005, 1, 1, tzinfo=UTC)
    before = at.astimezone(tz).utcoffset()
    while at.year < 2038:
        after = (at + step).astimezone(tz).utcoffset()
        if before != after:
            found.append(at)
        at, before = at + step, after
    return found or [datetime(2026, 3, 29, tzinfo=UTC)]


def matches(expression: list[Field], local: datetime) -> bool:
    minute, hour, day, month, weekday = expression
    day_fits, weekday_fits = local.day in day.values, local.isoweekday() % 7 in weekday.values
    if day.text.startswith("*") or weekday.text.startswith("*"):
        date_fits = day_fits and weekday_fits
    else:
        date_fits = day_fits or weekday_fits
    return local.minute in minute.values and local.hour in hour.values and local.month in month.values and date_fits


def oracle(expression: list[Field], zone: str, start: datetime, minutes: int) -> Iterator[datetime]:
    """Look at each minute's local time. `start` is UTC, and so is what is returned; it lies well before any change of the clocks."""
    tz = ZoneInfo(zone)
    furthest = (start - MINUTE).astimezone(tz).replace(tzinfo=None)
    for at in (start + n * MINUTE for n in range(minutes)):
        local = at.astimezone(tz).replace(tzinfo=None)
        if expression[1].text.startswith("*"):
            if matches(expression, local):
                yield at
            continue
        passed = [furthest + n * MINUTE for n in range(1, (local - furthest) // MINUTE + 1)]  # more than one after a gap, none in a repeat
        if any(matches(expression, each) for each in passed):
            yield at
        furthest = max(furthest, local)


def us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def utc(at: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)


def local_ticks(cron: Cron, start: str, hours: float) -> list[str]:
    """Ticks from a local time on, as local times with their offsets."""
    zone = ZoneInfo(cron.timezone)
    after = us(datetime.fromisoformat(start).replace(tzinfo=zone)) - 1
    return [utc(tick).astimezone(zone).strftime("%d. %H:%M %z")[:-2] for tick in cron.ticks(after, after + int(hours * 3600e6))]


@settings(max_examples=150, deadline=None)
@given(st.data(), expressions(), st.sampled_from(ZONES))
def test_ticks_are_those_of_the_oracle_around_every_change_of_the_clocks(data: st.DataObject, expression: list[Field], zone: str) -> None:
    change = data.draw(st.sampled_from(changes(zone)))
    start, minutes = change - timedelta(hours=data.draw(st.integers(3, 26))), 60 * 52
    expected = list(oracle(expression, zone, start, minutes))
    try:
        cron = Cron(" ".join(field.text for field in expression), zone)
    except RegistrationError as never:
        assert "day-of-month" in str(never) or "never fires" in str(never)  # noqa: PT017
        assert not expected
        return
    until = us(start + (minutes - 1) * MINUTE)
    assert [utc(tick) for tick in cron.ticks(us(start) - 1, until)] == expected
    assert cron.latest(us(start) - 1, until) == (us(expected[-1]) if expected else None)
    if expected:  # from anywhere, the next one is the next one
        middle = data.draw(st.integers(us(start), until - 1))
        assert cron.next(middle) == next((us(tick) for tick in expected if us(tick) > middle), cron.next(until))


@pytest.mark.parametrize(
    ("expression", "zone", "start", "hours", "expected"),
    [
        # clocks go forward at 02:00
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 00:00", 30, ["29. 03:00 +02", "30. 02:30 +02"]),
        ("*/20 2 * * *", "Europe/Berlin", "2026-03-29 00:00", 23, ["29. 03:00 +02"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29 00:00", 23, ["29. 03:00 +02"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29 01:00", 2, ["29. 01:30 +01", "29. 03:30 +02"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-03-29 00:00", 5, ["29. 00:00 +01", "29. 04:00 +02"]),
        ("0 0 2 * * *", "Europe/Berlin", "2026-03-29 00:00", 23, ["29. 03:00 +02"]),
        ("0 0 * * *", "America/Santiago", "2026-09-05 12:00", 24, ["06. 01:00 -03"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04 00:00", 20, ["04. 02:30 +11"]),
        # and back at 03:00
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:00", 23, ["25. 02:30 +02"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25 00:00", 23, ["25. 02:00 +02", "25. 02:30 +02"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25 01:00", 4, ["25. 01:30 +02", "25. 02:30 +02", "25. 02:30 +01", "25. 03:30 +01"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-25 00:00", 6, ["25. 00:00 +02", "25. 02:00 +02", "25. 02:00 +01", "25. 04:00 +01"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05 00:00", 20, ["05. 01:45 +11"]),
        ("30 23 * * *", "America/Sao_Paulo", "2019-02-16 12:00", 30, ["16. 23:30 -02"]),
    ],
)
def test_the_written_rules(expression: str, zone: str, start: str, hours: float, expected: list[str]) -> None:
    assert local_ticks(Cron(expression, zone), start, hours) == expected


def test_seconds_stand_in_front_of_six_fields() -> None:
    at = datetime(2026, 1, 1, 12, 0, 7, 500_000, tzinfo=UTC)
    cron = Cron("*/10 * * * * *")
    assert [utc(tick).second for tick in cron.ticks(us(at), us(at) + 30_000_000)] == [10, 20, 30]
    assert cron.next(us(at.replace(second=10, microsecond=0))) == us(at.replace(second=20, microsecond=0))
    assert cron.next(us(at.replace(second=9, microsecond=999_999))) == us(at.replace(second=10, microsecond=0))


@pytest.mark.parametrize("name", MACROS)
def test_names_stand_for_fields(name: str) -> None:
    assert Cron(name.upper()).next(us(datetime(2026, 5, 5, 5, 5, tzinfo=UTC))) == Cron(MACROS[name]).next(
        us(datetime(2026, 5, 5, 5, 5, tzinfo=UTC))
    )


def test_last_days_and_numbered_weekdays() -> None:
    start = us(datetime(2026, 1, 1, tzinfo=UTC))
    year = start + 365 * 86_400_000_000
    assert [utc(tick).day for tick in Cron("0 0 L * *").ticks(start, year)] == [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    assert {utc(tick).isoweekday() for tick in Cron("0 0 * * 5L").ticks(start, year)} == {5}
    assert utc(Cron("0 0 29 2 *").next(start) or 0) == datetime(2028, 2, 29, tzinfo=UTC)


def test_the_latest_of_a_million_ticks_is_found_at_once() -> None:
    start = us(datetime(2026, 1, 1, tzinfo=UTC))
    until = start + 365 * 86_400_000_000
    cron = Cron("* * 3 * * *", "Europe/Berlin")
    assert utc(cron.latest(start, until) or 0) == datetime(2026, 12, 31, 2, 59, 59, tzinfo=UTC)
    assert cron.latest(until, until) is None
    assert Cron("* * * * * *").latest(start, until) == until


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("61 * * * *", "bad minute"),
        ("* * * *", "wrong number of fields"),
        ("* * * * * * *", "wrong number of fields"),
        ("", "wrong number of fields"),
        ("@reboot", "no such name"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("every day", "wrong number of fields"),
        ("*/0 * * * *", "bad minute"),
        ("0,,5 * * * *", "bad minute"),
        ("0 0 * * " + "1," * 200 + "1", "at most 200"),
    ],
)
def test_what_is_no_expression_is_named(expression: str, says: str) -> None:
    with pytest.raises(RegistrationError, match=says) as refused:
        Cron(expression)
    assert expression[:40] in str(refused.value)


@settings(max_examples=300)
@given(st.text("0123456789*/,-#LW @abJANMON", max_size=40))
def test_whatever_text_comes_is_taken_or_refused(text: str) -> None:
    try:
        cron = Cron(text)
    except RegistrationError:
        return
    tick = cron.next(0)
    assert tick is None or tick > 0


@pytest.mark.parametrize("zone", ["Berlin", "../etc/passwd", "/etc/localtime", "Europe", "", "Europe/Berlin\n", "x" * 100])
def test_what_is_no_zone_is_named(zone: str) -> None:
    with pytest.raises(RegistrationError, match="no time zone that this machine knows"):
        Cron("@daily", zone)
