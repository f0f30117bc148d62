"""When schedules fire, and what is made up for after a pause."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import JobQuery, JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import Schedule
from easyjobs.errors import InvalidArguments, RegistrationError, UnknownSchedule
from easyjobs.protocol.messages import SubmitItem, SubmitOptions
from easyjobs.runtime.ids import id_bytes, new_id
from easyjobs.services import scheduler
from easyjobs.services.catalogue import GRACE_S, Catalogue
from easyjobs.services.flow import Flow
from easyjobs.services.scheduler import MAX_PAUSE_S, PRUNE_S, START_S, Scheduler
from tests.contracts.store_contract import finish, succeeded
from tests.services.conftest import Parts, row

START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


def options(schedule: str | list[str] = "* * * * *", **more: Any) -> bytes:
    return msgspec.json.encode({"schedule": schedule if isinstance(schedule, list) else [schedule], "default_args": [[], {"n": 1}], **more})


@pytest.fixture(autouse=True)
def half_past(parts: Parts) -> None:
    """The clock stands at 12:00:30."""
    parts.clock.set_system_clock(START.timestamp() - parts.clock.now() / 1_000_000)
    parts.catalogue.on_schedules = parts.scheduler.wake


async def jobs(parts: Parts) -> list[JobRecord]:
    return (await parts.store.page(JobQuery(limit=10_000)))[::-1]


async def ticks(parts: Parts) -> list[str]:
    """Which ticks have a job, oldest job first."""
    return [datetime.fromtimestamp((job.run_at or 0) / 1_000_000, UTC).strftime("%H:%M:%S") for job in await jobs(parts)]


async def run(parts: Parts) -> float:
    """Until it would sleep; how long."""
    for _ in range(100):
        pause = await parts.scheduler.run_once()
        if pause:
            return pause
    raise AssertionError("it never sleeps")


async def only(parts: Parts) -> Schedule:
    [schedule] = await parts.store.schedules()
    return schedule


async def test_it_sleeps_until_the_nearest_of_ticks_and_jobs(parts: Parts) -> None:
    assert await run(parts) == MAX_PAUSE_S
    await parts.task(options=options("0 * * * *"))
    assert await run(parts) == MAX_PAUSE_S, "no longer, since the system's clock may be set"
    await parts.task("other", options=options("*/40 * * * * *"))
    assert await run(parts) == 10
    await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], SubmitOptions(delay_us=4_000_000))
    assert await run(parts) == 4


async def test_a_tick_becomes_a_job_with_the_default_arguments_and_goes_to_a_worker(parts: Parts) -> None:
    task = await parts.task(options=options(priority=3))
    session, peer = await parts.session(task, room=10)
    await run(parts)
    assert await jobs(parts) == []
    parts.clock.advance(30)
    await parts.store.renew([session.number])
    parts.dispatcher.beaten(session, 0.0)
    assert await run(parts) == 60
    await parts.settle()
    [claimed] = peer.got
    assert claimed.args == b'[[],{"n":1}]'
    [job] = await jobs(parts)
    assert (job.state, job.priority, await ticks(parts)) == (JobState.RUNNING, 3, ["12:01:00"])
    await run(parts)
    assert len(await jobs(parts)) == 1, "once"


async def test_an_offer_with_a_schedule_wakes_it_and_a_repeated_one_does_not(parts: Parts) -> None:
    await parts.task(options=options())
    assert parts.scheduler._woken.is_set()
    parts.scheduler._woken.clear()
    await parts.task(options=options())
    assert not parts.scheduler._woken.is_set()
    await parts.task(options=b"{}")
    assert parts.scheduler._woken.is_set()
    assert await parts.store.schedules() == []


async def test_a_task_that_nobody_offers_now_still_gets_its_jobs(parts: Parts) -> None:
    await parts.task(options=options())
    parts.clock.advance(60)
    await run(parts)
    parts.clock.advance(60)
    await run(parts)
    assert await ticks(parts) == ["12:01:00", "12:02:00"]


@pytest.mark.parametrize(("catch_up", "expected"), [("one", 1), ("skip", 1), ("all", 16)])
async def test_a_task_that_nobody_has_offered_for_long_has_one_job_that_waits(parts: Parts, catch_up: str, expected: int) -> None:
    await parts.task(options=options(catch_up=catch_up))
    parts.clock.advance(GRACE_S)
    parts.clock.advance(35)
    assert await run(parts) > 0
    before = len(await jobs(parts))
    for _ in range(5):
        parts.clock.advance(60)
        await run(parts)
    assert len(await jobs(parts)) == max(before, expected)
    await parts.task(options=options(catch_up=catch_up))
    parts.clock.advance(60)
    await run(parts)
    assert len(await jobs(parts)) == max(before, expected) + 1, "as before, once it is offered again"


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("one", ["12:31:00"]), ("skip", []), ("all", [f"12:{minute:02}:00" for minute in range(1, 32)])]
)
async def test_after_a_restart_it_catches_up_as_it_was_told(
    parts: Parts, catch_up: str, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "easyjobs")
    await parts.task(options=options(catch_up=catch_up))
    parts.clock.advance(31 * 60)
    catalogue = Catalogue(parts.store, parts.clock)  # another manager on the same store, before any worker is there
    await catalogue.load()
    parts.scheduler = Scheduler(parts.store, parts.dispatcher, parts.clock, catalogue, Flow(catalogue, parts.clock))
    assert await run(parts) == 30
    assert await ticks(parts) == expected
    missed = [record.message for record in caplog.records if record.message.startswith("schedule.missed")]
    assert len(missed) == (0 if catch_up == "all" else 1)
    assert all("since=2026-03-01T12:01:00+00:00" in line and "task=Q/work" in line for line in missed)


async def test_a_thousand_missed_ticks_are_fired_in_pieces(parts: Parts) -> None:
    await parts.task(options=options("* * * * * *", catch_up="all"))
    parts.clock.advance(1799.5)
    assert await run(parts) == 0.5
    assert len(await jobs(parts)) == 1799
    assert len(set(await ticks(parts))) == 1799


async def test_overlapping_ticks_are_skipped_if_the_task_says_so(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "easyjobs")
    task = await parts.task(options=options(overlap="skip"))
    parts.catalogue.joined([task.lane])
    for _ in range(3):
        parts.clock.advance(60)
        await run(parts)
    assert await ticks(parts) == ["12:01:00"]
    assert caplog.text.count("schedule.overlapped") == 2


async def test_what_the_code_no_longer_schedules_is_not_caught_up_with_when_the_manager_starts(parts: Parts) -> None:
    await parts.task(options=options(catch_up="all"))
    parts.clock.advance(600)
    await parts.scheduler.start()
    await parts.scheduler.stop()
    assert await parts.scheduler.run_once() == START_S
    await parts.task("other")
    await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "other", b"[[1],{}]")], SubmitOptions(delay_us=250_000))
    assert await parts.scheduler.run_once() == 0.25, "jobs that are due do not wait for that"
    parts.clock.advance(0.25)
    await parts.scheduler.run_once()
    assert [job.state for job in await jobs(parts)] == [JobState.QUEUED]
    await parts.task(options=options("@daily"))  # the program registers its tasks
    parts.clock.advance(START_S)
    await run(parts)
    assert len(await jobs(parts)) == 1


async def test_two_schedulers_on_one_store_fire_each_tick_once(parts: Parts) -> None:
    await parts.task(options=options("*/10 * * * * *"))
    other = Scheduler(parts.store, parts.dispatcher, parts.clock, parts.catalogue, parts.flow)
    for _ in range(12):
        parts.clock.advance(5)
        first, second = parts.scheduler.run_once(), other.run_once()
        await first
        await second
        await run(parts)
    assert await ticks(parts) == [f"12:{second // 60:02}:{second % 60:02}" for second in range(40, 100, 10)]


async def test_a_clock_that_is_set_back_fires_nothing_twice(parts: Parts) -> None:
    await parts.task(options=options())
    parts.clock.advance(60)
    await run(parts)
    parts.clock.set_system_clock(-3600)
    assert await run(parts) == MAX_PAUSE_S
    parts.clock.set_system_clock(3600)
    await run(parts)
    assert await ticks(parts) == ["12:01:00"]


async def test_pause_resume_and_run_now(parts: Parts) -> None:
    task = await parts.task(options=options())
    schedule = await only(parts)
    assert (await parts.scheduler.pause(schedule.id)).paused_at is not None
    await parts.task(options=options())
    parts.clock.advance(600)
    assert await run(parts) == MAX_PAUSE_S
    job_id = await parts.scheduler.run_now(schedule.id)
    [record] = await parts.store.get([id_bytes(job_id) or b""])
    assert record is not None
    assert (record.lane, record.state, record.args) == (task.lane, JobState.QUEUED, b'[[],{"n":1}]')
    assert (await parts.scheduler.resume(schedule.id)).paused_at is None
    assert await run(parts) == 30
    assert len(await jobs(parts)) == 1
    for verb in (parts.scheduler.pause, parts.scheduler.resume, parts.scheduler.run_now):
        with pytest.raises(UnknownSchedule, match="no schedule 99"):
            await verb(99)


async def test_old_ticks_are_pruned_now_and_then(parts: Parts) -> None:
    task = await parts.task(options=options("0 * * * *", overlap="skip"))
    parts.clock.advance(3600)
    await run(parts)
    before = parts.store._schedules._ticks  # type: ignore[attr-defined]
    assert len(before) == 1
    await parts.store.pause_schedules([(await only(parts)).id])
    _, peer = await parts.session(task, room=1)
    await parts.settle()
    session = next(iter(parts.dispatcher.sessions()))
    await finish(parts.store, session.number, succeeded(peer.got[0]))
    parts.clock.advance(25 * 3600 + PRUNE_S)
    await run(parts)
    assert len(before) == 0


async def test_a_schedule_whose_stored_zone_is_no_more_stops_until_it_is_offered_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await parts.task(options=options())
    parts.clock.advance(60)

    def unknown(*_: str) -> None:
        raise RegistrationError("timezone='Mars/Olympus' is no time zone")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "cron_of", unknown)
        assert await run(parts) == MAX_PAUSE_S
        assert await jobs(parts) == []
    assert "schedule.unreadable" in caplog.text
    assert "Mars/Olympus" in caplog.text
    assert (await only(parts)).next_at is None
    await parts.task(options=options())
    assert (await only(parts)).next_at is not None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"schedule": ["61 * * * *"]}, "bad minute"),
        ({"default_args": [[], {}]}, "default_args do not fit"),
        ({"timezone": "Mars/Olympus"}, "no time zone"),
    ],
)
async def test_an_offer_with_a_bad_schedule_is_refused(parts: Parts, more: dict[str, Any], says: str) -> None:
    bad = msgspec.json.encode({"schedule": ["@daily"], "default_args": [[], {"n": 1}], **more})
    taken, refused = await parts.catalogue.offer([row(options=bad)], "a worker")
    assert not taken
    assert says in refused[0][1]
    assert await parts.store.schedules() == []


async def test_a_job_for_an_instant_waits_for_it(parts: Parts) -> None:
    await parts.task()
    at = parts.clock.now() + 90_000_000
    await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], SubmitOptions(run_at=at))
    [job] = await jobs(parts)
    assert (job.state, job.run_at) == (JobState.SCHEDULED, at)
    assert parts.scheduler._woken.is_set()
    parts.clock.advance(90)
    await run(parts)
    assert [job.state for job in await jobs(parts)] == [JobState.QUEUED]


async def test_an_instant_that_has_passed_is_now_and_gets_no_better_place(parts: Parts) -> None:
    task = await parts.task()
    ids = [new_id(), new_id()]
    await parts.intake.submit_frame([SubmitItem(ids[0], "Q", "work", b"[[1],{}]")], None)
    parts.clock.advance(1)
    await parts.intake.submit_frame([SubmitItem(ids[1], "Q", "work", b"[[1],{}]")], SubmitOptions(run_at=1))
    _, peer = await parts.session(task, room=2)
    await parts.settle()
    assert [job.id for job in peer.got] == ids


@pytest.mark.parametrize("bad", [SubmitOptions(run_at=-1), SubmitOptions(run_at=10**17), SubmitOptions(run_at=1, delay_us=1)])
async def test_an_instant_that_cannot_be_meant_is_refused(parts: Parts, bad: SubmitOptions) -> None:
    await parts.task()
    with pytest.raises(InvalidArguments, match="run_at"):
        await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], bad)
