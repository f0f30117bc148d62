"""Which ticks are fired after a pause, and what a change of the code does to schedules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import describe
from easyjobs.domain.cron import Cron
from easyjobs.domain.schedule import ON_TIME_US, CatchUp, Decision, NewSchedule, Overlap, Plan, Schedule, decide, plan
from easyjobs.domain.timing import schedules_of
from easyjobs.errors import RegistrationError

ALL, ONE, SKIP = CatchUp.ALL, CatchUp.ONE, CatchUp.SKIP
S = 1_000_000
HOUR = 3600 * S
EVERY_MINUTE, DAILY = Cron("* * * * *"), Cron("30 4 * * *")


def at(text: str) -> int:
    return round(datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=UTC).timestamp() * S)


def names(decision: Decision) -> tuple[list[str], str, bool]:
    ticks = [datetime.fromtimestamp(tick / S, UTC).strftime("%d %H:%M") for tick in decision.ticks]
    return ticks, datetime.fromtimestamp((decision.next_at or 0) / S, UTC).strftime("%d %H:%M"), decision.has_skipped


@pytest.mark.parametrize(
    ("cron", "due", "now", "catch_up", "expected"),
    [
        # nothing is due, and what is on time
        (EVERY_MINUTE, "01 12:01", "01 12:00:59.9", ONE, ([], "01 12:01", False)),
        *[(EVERY_MINUTE, "01 12:01", "01 12:01:00.01", how, (["01 12:01"], "01 12:02", False)) for how in CatchUp],
        *[(EVERY_MINUTE, "01 12:01", "01 12:01:10", how, (["01 12:01"], "01 12:02", False)) for how in CatchUp],
        # late, with no other tick since
        (EVERY_MINUTE, "01 12:01", "01 12:01:40", SKIP, ([], "01 12:02", True)),
        (EVERY_MINUTE, "01 12:01", "01 12:01:40", ONE, (["01 12:01"], "01 12:02", False)),
        (DAILY, "01 04:30", "01 05:30", ONE, (["01 04:30"], "02 04:30", False)),
        (DAILY, "01 04:30", "01 05:30:01", ONE, ([], "02 04:30", True)),  # an hour is the window
        (DAILY, "01 04:30", "01 05:30:01", ALL, ([], "02 04:30", True)),
        # several were missed
        (EVERY_MINUTE, "01 12:01", "01 12:04:30", ONE, (["01 12:04"], "01 12:05", True)),
        (EVERY_MINUTE, "01 12:01", "01 12:04:30", SKIP, ([], "01 12:05", True)),
        (EVERY_MINUTE, "01 12:01", "01 12:04:03", SKIP, (["01 12:04"], "01 12:05", True)),
        (EVERY_MINUTE, "01 12:01", "01 12:03:30", ALL, (["01 12:01", "01 12:02", "01 12:03"], "01 12:04", False)),
        (EVERY_MINUTE, "01 12:01", "05 12:04:30", ONE, (["05 12:04"], "05 12:05", True)),
        (DAILY, "01 04:30", "05 05:00", ONE, (["05 04:30"], "06 04:30", True)),
        (DAILY, "01 04:30", "05 05:00", ALL, (["05 04:30"], "06 04:30", True)),
        (DAILY, "01 04:30", "05 12:00", ONE, ([], "06 04:30", True)),
    ],
)
def test_after_a_pause(cron: Cron, due: str, now: str, catch_up: CatchUp, expected: tuple[list[str], str, bool]) -> None:
    assert names(decide(cron, at(due), at(now), catch_up, HOUR)) == expected


def test_all_in_pieces_leaves_the_others_for_the_next_time() -> None:
    ticks: list[int] = []
    due: int | None = at("01 12:00")
    while due is not None and due <= at("01 12:30"):
        decision = decide(EVERY_MINUTE, due, at("01 12:30"), ALL, HOUR, limit=7)
        assert len(decision.ticks) <= 7
        assert not decision.has_skipped
        ticks += decision.ticks
        due = decision.next_at
    assert ticks == [at(f"01 12:{minute:02}") for minute in range(31)]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "30 4 * * *", "*/15 * * * * *", "0 9-17 * * 1-5"]),
    st.integers(0, 5000),
    st.integers(0, 3 * 24 * 3600 * 1000),
    st.sampled_from(CatchUp),
    st.integers(0, 48 * 3600),
    st.integers(1, 50),
)
def test_whatever_the_pause_no_tick_is_fired_twice_none_too_early_none_too_late(
    expression: str, start: int, pause_ms: int, catch_up: CatchUp, window_s: int, limit: int
) -> None:
    cron = Cron(expression, "Europe/Berlin")
    due = cron.next(at("28 20:00") + start * 60 * S)
    assert due is not None
    now = due + pause_ms * 1000
    bound = max(ON_TIME_US, window_s * S) if catch_up is not SKIP else ON_TIME_US
    missed = [tick for tick in cron.ticks(due - 1, now) if tick >= now - bound]
    expected = missed if catch_up is ALL else missed[-1:]
    got: list[int] = []
    next_at: int | None = due
    for _ in range(10_000):
        if next_at is None or next_at > now or len(got) > 300:
            break
        decision = decide(cron, next_at, now, catch_up, window_s * S, limit)
        got += decision.ticks
        assert decision.next_at is None or decision.next_at > next_at
        next_at = decision.next_at
    assert got == expected[: len(got)]
    assert len(got) > 300 or (got == expected and next_at == cron.next(now))


def stored(id: int, expression: str, **more: Any) -> Schedule:
    return Schedule(id, 1, NewSchedule(expression, **more), 1, 0)


def test_a_plan_keeps_what_is_the_same_in_any_order() -> None:
    a, b = stored(1, "1 * * * *"), stored(2, "2 * * * *")
    assert plan([a, b], [b.what, a.what]) == Plan([], [], [])
    assert plan([], [a.what]) == Plan([a.what], [], [])
    assert plan([a, b], []) == Plan([], [], [a, b])


def test_a_plan_changes_what_is_known_and_replaces_what_is_gone_in_order() -> None:
    a, b, c = stored(1, "1 * * * *"), stored(2, "2 * * * *"), stored(3, "3 * * * *")
    changed, new, newer = NewSchedule("2 * * * *", overlap=Overlap.SKIP), NewSchedule("7 * * * *"), NewSchedule("8 * * * *")
    assert plan([a, b, c], [new, changed]) == Plan([], [(b, changed), (a, new)], [c])
    assert plan([a], [new, newer]) == Plan([newer], [(a, new)], [])
    moved = NewSchedule("1 * * * *", timezone="Asia/Kolkata")
    assert plan([a], [moved]) == Plan([], [(a, moved)], [])


def takes(a: int, b: str = "") -> None: ...


ARGUMENTS = Arguments(describe(takes), "Q/takes")


def test_schedules_are_read_from_options() -> None:
    assert schedules_of({}, ARGUMENTS) == ()
    options = {"schedule": ["0 4 * * *", "@hourly"], "default_args": [[1], {"b": "x"}], "timezone": "Asia/Kolkata", "catch_up": "all"}
    first, second = schedules_of(options, ARGUMENTS)
    assert first == NewSchedule("0 4 * * *", "Asia/Kolkata", b'[[1],{"b":"x"}]', ALL, HOUR, Overlap.ALLOW)
    assert second.expression == "@hourly"
    [big] = schedules_of({"schedule": ["@daily"], "default_args": [[10**30], {}]}, ARGUMENTS)
    assert big.args == b"[[%d],{}]" % 10**30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "@daily"}, "schedule: a cron expression, or a list"),
        ({"schedule": [5]}, "schedule: a cron expression, or a list"),
        ({"schedule": ["@daily"] * 51}, "at most 50"),
        ({"schedule": ["@daily"]}, r"default_args do not fit the task: Q/takes: body\.a: Field required"),
        ({"schedule": ["@daily"], "default_args": [["x"], {}]}, "default_args do not fit"),
        ({"schedule": ["@daily"], "default_args": 5}, "default_args do not fit"),
        ({"schedule": ["@daily"], "default_args": [[1], {"b": "x" * 9000}]}, "9,.* bytes of JSON, the limit is 8,192"),
        ({"schedule": ["@daily", "@daily"], "default_args": [[1], {}]}, "twice"),
        ({"schedule": ["never"], "default_args": [[1], {}]}, "wrong number of fields"),
        ({"schedule": ["@daily"], "default_args": [[1], {}], "timezone": 5}, "timezone=5 is no time zone"),
        ({"schedule": ["@daily"], "default_args": [[1], {}], "catch_up": "some"}, "'some' is not a valid CatchUp"),
        ({"schedule": ["@daily"], "default_args": [[1], {}], "overlap": []}, "is not a valid Overlap"),
        ({"schedule": ["@daily"], "default_args": [[1], {}], "catch_up_window_us": -1}, "from 0 to ten years"),
        ({"schedule": ["@daily"], "default_args": [[1], {}], "catch_up_window_us": True}, "from 0 to ten years"),
    ],
)
def test_what_cannot_be_meant_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RegistrationError, match=says):
        schedules_of(options, ARGUMENTS)
