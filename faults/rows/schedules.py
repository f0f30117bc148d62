"""Schedules: where clocks are set, where managers stand still, die or disagree about the time, and where people change them. A job's tick is its `run_at`."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from easyjobs.domain.cron import Cron
from faults.clocks import OtherClock
from faults.cluster import QUEUE, Site, site
from faults.history import Row
from faults.matrix import row
from tests import postgres
from tests.processes import Served, free_port, until

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
    highest: int | None = None  # what the wall's clock has shown so far
    for at in range(begin - 2 * 86_400, last + 1, 60):  # an hour that began before may come again
        local = datetime.fromtimestamp(at, tz)
        wall = local.toordinal() * 1440 + local.hour * 60 + local.minute - 719_163 * 1440
        if wall - 1 == highest and not named(wall):  # the usual minute
            highest = wall
            continue
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


# --- with real processes ------------------------------------------------------------------------------------------------------------


class Clockwork:
    """The schedules of a site, and what each of their ticks must have come to: `required`, or `may`; no other may be there."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.options: dict[str, dict[str, Any]] = {}
        self.worker: Served | None = None
        self.of_worker: dict[str, str] = {}  # environment

    def register(self, schedules: Mapping[str, Mapping[str, Any]]) -> None:
        """Have a new worker offer these, in the place of the one before it; known when this returns."""
        previous, self.options = self.worker, {name: dict(options) for name, options in schedules.items()}
        if previous is not None:
            previous.stop()
        wanted = {name: options.get("schedule") for name, options in self.options.items()}
        self.worker = self.place.start_worker(
            slots=20,
            app="ticking_worker:server",
            TEST_SCHEDULES=json.dumps(self.options),
            **self.of_worker,  # type: ignore[arg-type]
        )
        until("the schedules are known", lambda: self._known() == {name: each for name, each in wanted.items() if each}, 30, 0.1)

    def _known(self) -> dict[str, str]:
        return {item["name"]: item["expression"] for item in self.place.manager.get(SCHEDULES)["items"]}

    def ask(self, name: str, verb: str) -> Any:
        """Pause, resume or run a schedule."""
        [number] = [item["id"] for item in self.place.manager.get(SCHEDULES)["items"] if item["name"] == name]
        answer = self.place.manager.call("POST", f"{SCHEDULES}/{number}/{verb}")
        assert answer.status in (200, 202), f"{verb} of {name}: {answer.status} {answer.body[:300]!r}"
        return answer.json()

    def fired(self, name: str) -> list[int]:
        """The ticks that became jobs, in seconds."""
        rows: list[Row] = self.place.told().rows
        return sorted(
            row.run_at // SECOND for row in rows if row.task == f"{QUEUE}/{name}" and row.run_at and row.id not in self.place.by_hand
        )

    def until_now(self, name: str, *, within_s: float = 40.0) -> int:
        """Wait until a tick that is now or later has fired; that tick. With `catch_up="all"` all before it have fired, too."""
        since = int(time.time())
        until(f"{name} has fired its tick of {since}", lambda: self.fired(name)[-1:] >= [since], within_s, 0.1)
        return self.fired(name)[-1]

    def expect(self, name: str, required: Callable[[int], bool], may: Callable[[int], bool], since: int, end: int) -> None:
        """Of the seconds from `since` to `end`, which must have been fired, and which may have been."""
        task, seconds = f"{QUEUE}/{name}", range(since - 120, end + 120)
        self.place.ticks[task] = [at * SECOND for at in seconds if required(at)]
        self.place.optional_ticks[task] = {at * SECOND for at in seconds if may(at)}

    def end(self) -> None:
        for name in self._known():
            self.ask(name, "pause")


@contextmanager
def clockwork(directory: Path, **more: Any) -> Iterator[Clockwork]:
    with site(directory, **more) as place:
        yield Clockwork(place)


@row("C3")
def manager_stands_still(directory: Path, size: float) -> str:
    """The manager is stopped, then killed and away, across more than ten ticks of each second: each policy makes up for what docs/schedules.md says."""
    policies = ("one", "all", "skip")
    pauses: list[tuple[int, int]] = []  # from, to: of these seconds the manager saw none
    with clockwork(directory, TEST_LOG="1") as clock:
        place = clock.place
        rare = [(int(time.time()) + 20 + 25 * n) for n in range(2)]  # each of the two pauses has one of these, near its beginning
        once = ",".join(str(at % 60) for at in rare) + " * * * * *"
        clock.register(
            {
                f"{name}_{policy}": {"schedule": each, "catch_up": policy}
                for policy in policies
                for name, each in (("each", EACH_SECOND), ("rare", once))
            }
        )
        first = clock.until_now("each_all")
        assert first < rare[0] - 2, "the processes took too long to start"
        for at, is_killed in zip(rare, (False, True), strict=True):
            clock.until_now("each_all")
            time.sleep(max(0.0, at - 1.5 - time.time()))
            began = time.time()
            assert began < at, f"it could not be stopped before its tick: {began - at:.1f} s late"
            if is_killed:
                place.manager.kill()
            else:
                place.manager.signal(signal.SIGSTOP)
            time.sleep(at + ON_TIME_S + 1 - time.time())  # the rare tick is no longer on time
            ended = time.time()
            if is_killed:
                place.start_manager()
            else:
                place.manager.signal(signal.SIGCONT)
            pauses.append((int(began) + 2, int(ended) - 1))
            back = clock.until_now("each_all", within_s=60)
        last = clock.until_now("each_all")
        clock.end()
        missed = {at for since, end in pauses for at in range(since, end)}
        for policy in policies:
            is_all = policy == "all"
            clock.expect(
                f"each_{policy}",
                lambda at, is_all=is_all: is_all and first <= at <= last,
                lambda at, is_all=is_all: not (first <= at <= last) or (not is_all and at not in missed),
                first,
                last,
            )
            clock.expect(
                f"rare_{policy}",
                lambda at, policy=policy: policy != "skip" and at in rare,
                lambda at: at % 60 in {each % 60 for each in rare} and at not in rare,
                first,
                last,
            )
        for policy in ("one", "skip"):  # it goes on
            assert any(at >= back for at in clock.fired(f"each_{policy}")), f"each_{policy} fires no more"
        history = place.judged()
        says = sum("schedule.missed" in process.log for process in place.started.started)
        assert says == 2, f"the managers that missed ticks said so {says} times, not twice"
        made = {policy: len(clock.fired(f"each_{policy}")) for policy in policies}
        return (
            f"{len(missed)} ticks missed for sure in {len(pauses)} pauses of {ON_TIME_S + 2} s: all made up for each of them, one for the latest, skip for none; "
            f"of {last - first + 1} seconds all fired {made['all']}, one {made['one']}, skip {made['skip']}; {len(history.rows)} jobs, doubled/missed 0"
        )


@row("C4")
def schedules_are_changed(directory: Path, size: float) -> str:
    """A schedule is paused, resumed, run by hand, given another expression and taken away while it ticks: each tick once, and none beside."""
    required: set[int] = set()
    may: set[int] = set()

    def ticking(step: int, since: int, end: int) -> None:
        """Between these ticks, both of them included, it fired each."""
        required.update(at for at in range(since, end + 1) if at % step == 0)

    def changing(since: int, end: float) -> None:
        """Meanwhile nobody can say."""
        may.update(range(since + 1, int(end) + 2))

    with clockwork(directory) as clock:
        place = clock.place
        clock.register({"each": {"schedule": EACH_SECOND, "catch_up": "all"}, "beside": {"schedule": EACH_SECOND, "catch_up": "all"}})
        begin = since = clock.until_now("each")
        beside = clock.until_now("beside")
        may.update(range(begin - 120, begin))
        by_hand = 0

        def run_by_hand() -> None:
            nonlocal by_hand
            place.by_hand.add(clock.ask("each", "run")["request_id"])
            by_hand += 1

        rounds = round(3 * size)
        for n in range(rounds):
            for _ in range(5):
                run_by_hand()
                time.sleep(0.5)
            ticked = clock.until_now("each")
            ticking(1, since, ticked)
            clock.ask("each", "pause")
            changing(ticked, time.time())
            if n % 2:  # it stays paused
                place.manager.kill()
                place.start_manager()
            run_by_hand()
            time.sleep(2.5)
            resumed = time.time()
            clock.ask("each", "resume")
            since = clock.until_now("each")
            may.update(range(int(resumed) + 1, since))
        step = 1
        for after, expression in ((2, "*/2 * * * * *"), (1, EACH_SECOND), (3, "*/3 * * * * *")):
            time.sleep(3)
            ticked = clock.until_now("each")
            ticking(step, since, ticked)
            clock.register({"each": {"schedule": expression, "catch_up": "all"}, "beside": clock.options["beside"]})
            step, known = after, time.time()
            changing(ticked, known)
            run_by_hand()
            since = clock.until_now("each")
            may.update(at for at in range(int(known) + 1, since) if at % step == 0)
        ticked = clock.until_now("each")
        ticking(step, since, ticked)
        clock.register({"each": {}, "beside": clock.options["beside"]})
        changing(ticked, time.time())
        time.sleep(3.5)  # it is gone: nothing more
        last = clock.until_now("beside")
        clock.end()
        clock.expect("each", lambda at: at in required, lambda at: at in may, begin, last)
        clock.expect("beside", lambda at: beside <= at <= last, lambda at: not beside <= at <= last, begin, last)
        history = place.judged()
        runs = sum(row.id in place.by_hand for row in history.rows)
        assert runs == by_hand, f"{by_hand} runs by hand were acknowledged, and {runs} jobs are there"
        return (
            f"{rounds} pauses, 3 other expressions, 1 removal, {by_hand} runs by hand: {len(required)} ticks each once, and {last - beside + 1} of the one "
            f"that nobody touched; doubled/missed 0"
        )


@row("C2")
def managers_disagree_about_the_time(directory: Path, size: float) -> str:
    """Three managers over one PostgreSQL, with clocks five minutes apart, are killed in turn: each tick is one job, and none is early."""
    clocks = OtherClock(directory / "clock")
    offsets_s = (0, 300, -300)
    with postgres.cluster() as server, clockwork(directory, server=server) as clock:
        place = clock.place
        right = place.manager
        managers = {place.port: right}
        offset_of = dict(zip((place.port, free_port(), free_port()), offsets_s, strict=True))

        def start(port: int) -> None:
            offset = offset_of[port]
            place.port = port
            managers[port] = place.start_manager(**clocks.environment(offset))
            says = parsedate_to_datetime(managers[port].call("GET", "/jobs/healthz").headers["date"]).timestamp()
            assert abs(says - time.time() - offset) < 60, f"{offset:+d} s: it says {says - time.time():+.0f} s"

        for port in [port for port in offset_of if port not in managers]:
            start(port)
        place.beside = [each for each in managers.values() if each is not place.manager]
        clock.of_worker = {"TEST_MANAGER_HOSTS": ",".join(f"127.0.0.1:{port}" for port in offset_of)}
        clock.register({"each": {"schedule": EACH_SECOND, "catch_up": "all"}, "third": {"schedule": "*/3 * * * * *", "catch_up": "all"}})
        first = clock.until_now("each")
        clock.until_now("third")
        kills = 0
        for n in range(round(3 * max(1.0, size))):
            port = list(offset_of)[n % 3]
            managers[port].kill()
            kills += 1
            clock.until_now("each")  # the others go on
            start(port)
            clock.until_now("each")
        for port in offset_of:  # each of them alone: the one that is behind does not wait until its own clock says so
            for other in offset_of:
                if other != port:
                    managers[other].kill()
                    kills += 1
            place.manager = managers[port]
            clock.until_now("each")
            clock.until_now("each")
            for other in offset_of:
                if other != port:
                    start(other)
        last = min(clock.until_now("each"), clock.until_now("third"))
        clock.end()
        for name, step in (("each", 1), ("third", 3)):
            clock.expect(
                name,
                lambda at, step=step: first + 3 <= at <= last and at % step == 0,
                lambda at, step=step: (at < first + 3 or last < at <= time.time()) and at % step == 0,
                first,
                last,
            )
        history = place.judged()
        born = {step.seq: step.at for step in history.steps if step.old_state is None}
        early = [row for row in history.rows if row.run_at and born[row.seq] < row.run_at]
        assert not early, f"fired before their time: {early[:3]}"
        return (
            f"clocks at {', '.join(f'{offset:+d} s' for offset in offsets_s)}, {kills} kills of managers: {len(history.rows)} ticks, each one job; "
            "doubled/missed 0, early 0"
        )
