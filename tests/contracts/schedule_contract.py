"""What every store must do with schedules and their ticks. Mixed into the store contract, whose `store`, `clock` and `force` it uses."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import NewJob, NewSession, Spec, TaskRow
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, NewSchedule, Schedule, TaskSchedules, Tick
from easyjobs.errors import StoreError
from easyjobs.ports.store import Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, all_jobs, an_id, assert_counts_are_exact, claim, finish, read, succeeded

BORN, OVERLAPS, REPEATED, STALE = Fired.BORN, Fired.OVERLAPS, Fired.REPEATED, Fired.STALE
START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = 60_000_000
NOON = (int(START.timestamp()) - 30) * 1_000_000  # 12:00:00; the clock stands half a minute later
EVERY_MINUTE = NewSchedule("* * * * *", args=b"[[1],{}]")


def firing(schedule: Schedule, *ticks: int, next_at: int | None = None, **more: Any) -> Firing:
    """As it should be: these ticks now, and the next a minute after the last."""
    assert schedule.next_at is not None
    if next_at is None:
        next_at = (ticks[-1] if ticks else schedule.next_at) + MINUTE
    jobs = tuple(Tick(at, NewJob(an_id(), Spec(schedule.lane), schedule.what.args)) for at in ticks)
    return Firing(schedule.id, schedule.version, schedule.next_at, next_at, jobs, **more)


class ScheduleContract:
    """See the module's docstring."""

    @pytest.fixture
    def moment(self, clock: FakeClock) -> FakeClock:
        clock.set_system_clock(START.timestamp() - clock.now() / 1_000_000)
        return clock

    @pytest.fixture
    async def scheduled(self, store: Store, moment: FakeClock) -> Schedule:
        await store.offer([TaskRow("Q", "work", b"{}", b"{}")])
        return await self.given(store, EVERY_MINUTE)

    async def given(self, store: Store, *schedules: NewSchedule) -> Schedule:
        await store.schedule([TaskSchedules("Q", "work", schedules)])
        return (await store.schedules())[0]

    async def only(self, store: Store, id: int) -> Schedule:
        [schedule] = await store.schedules([id])
        return schedule

    async def test_a_new_schedule_begins_with_the_first_tick_from_now(self, store: Store, scheduled: Schedule) -> None:
        assert (scheduled.what, scheduled.next_at, scheduled.version, scheduled.paused_at) == (EVERY_MINUTE, NOON + MINUTE, 1, None)
        assert (scheduled.last_tick, scheduled.last_job) == (None, None)
        assert await store.schedules([scheduled.id, 99]) == [scheduled]
        assert await store.schedules([]) == []

    async def test_a_task_that_was_never_offered_has_no_schedules(self, store: Store, moment: FakeClock) -> None:
        assert await store.schedule([TaskSchedules("Q", "unknown", (EVERY_MINUTE,))]) == [False]
        assert await store.schedules() == []

    async def test_an_offer_of_the_same_changes_nothing(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(3600)
        assert await store.schedule([TaskSchedules("Q", "work", (EVERY_MINUTE,))]) == [False]
        assert await store.schedules() == [scheduled], "what was missed meanwhile is still to be decided about"

    async def test_new_arguments_change_the_schedule_but_not_its_next_tick(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        moment.advance(3600)
        new = msgspec.structs.replace(EVERY_MINUTE, args=b"[[2],{}]")
        assert await store.schedule([TaskSchedules("Q", "work", (new,))]) == [True]
        assert await store.schedules() == [msgspec.structs.replace(scheduled, what=new, version=2)]

    async def test_a_new_expression_begins_now_in_the_place_of_the_old_one(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        await store.pause_schedules([scheduled.id])
        moment.advance(60)
        changed = await self.given(store, NewSchedule("*/5 * * * *"))
        assert (changed.id, changed.version, changed.next_at) == (scheduled.id, 2, NOON + 5 * MINUTE)
        assert changed.paused_at is not None, "what a person paused stays paused"

    async def test_a_schedule_that_is_gone_from_the_code_goes(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        daily = NewSchedule("@daily")
        await store.offer([TaskRow("Q", "other", b"{}", b"{}")])
        both = [TaskSchedules("Q", "work", (daily, EVERY_MINUTE)), TaskSchedules("Q", "other", (daily,))]
        assert await store.schedule(both) == [True, True]
        ids = {(one.lane, one.what.expression): one.id for one in await store.schedules()}
        assert ids[scheduled.lane, "* * * * *"] == scheduled.id
        assert len(set(ids.values())) == 3
        assert await store.schedule([TaskSchedules("Q", "work", (daily,))]) == [True]
        assert {one.id for one in await store.schedules()} == set(ids.values()) - {scheduled.id}
        assert await store.schedule([TaskSchedules("Q", "work", ())]) == [True]
        assert [one.what for one in await store.schedules()] == [daily]
        moment.advance(60)
        assert await store.fire([firing(scheduled, NOON + MINUTE)]) == [[STALE]]
        assert await all_jobs(store) == []

    async def test_due_are_those_whose_tick_has_come(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        assert await store.due_schedules() == DueSchedules(NOON + MINUTE // 2, (), NOON + MINUTE)
        moment.advance(30)
        assert await store.due_schedules() == DueSchedules(NOON + MINUTE, (scheduled,), NOON + MINUTE)
        await self.given(store, EVERY_MINUTE, NewSchedule("0 * * * *"))
        moment.advance(3600)
        assert [one.what.expression for one in (await store.due_schedules()).schedules] == ["* * * * *", "0 * * * *"]
        assert len((await store.due_schedules(1)).schedules) == 1

    async def test_a_tick_is_born_with_its_job_and_what_is_next(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(31)
        fire = firing(scheduled, NOON + MINUTE)
        assert await store.fire([fire]) == [[BORN]]
        [job] = await all_jobs(store)
        assert (job.id, job.lane, job.state, job.args) == (fire.ticks[0].job.id, scheduled.lane, JobState.QUEUED, b"[[1],{}]")
        after = await self.only(store, scheduled.id)
        assert (after.next_at, after.last_tick, after.last_job) == (NOON + 2 * MINUTE, NOON + MINUTE, job.id)
        await assert_counts_are_exact(store)

    async def test_a_job_of_a_tick_is_claimed_and_ends_like_any_other(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(60)
        [session] = await store.begin([NewSession(os.urandom(16), "w")])
        await store.fire([firing(scheduled, NOON + MINUTE)])
        [claimed] = await claim(store, session, scheduled.lane)
        await finish(store, session, succeeded(claimed))
        assert (await read(store, claimed.id)).state is JobState.SUCCEEDED

    async def test_two_that_fire_the_same_tick_have_one_job(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(60)
        answers = await store.fire([firing(scheduled, NOON + MINUTE), firing(scheduled, NOON + MINUTE)])
        assert answers == [[BORN], [STALE]]
        assert len(await all_jobs(store)) == 1

    async def test_a_tick_that_is_there_is_not_fired_again_whatever_next_at_says(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        moment.advance(180)
        back = firing(scheduled, NOON + MINUTE, next_at=NOON + MINUTE)  # as if next_at had been set back
        assert await store.fire([back]) == [[BORN]]
        assert await store.fire([firing(scheduled, NOON + MINUTE, NOON + 2 * MINUTE)]) == [[REPEATED, BORN]]
        assert len(await all_jobs(store)) == 2
        assert (await self.only(store, scheduled.id)).next_at == NOON + 3 * MINUTE

    async def test_a_tick_that_is_yet_to_come_by_the_stores_clock_is_not_fired(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        assert await store.fire([firing(scheduled, NOON + MINUTE)]) == [[STALE]]
        assert await store.schedules() == [scheduled]
        assert await all_jobs(store) == []

    async def test_ticks_can_be_passed_over(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(60)
        assert await store.fire([firing(scheduled, next_at=NOON + 9 * MINUTE)]) == [[]]
        after = await self.only(store, scheduled.id)
        assert (after.next_at, after.last_tick) == (NOON + 9 * MINUTE, None)

    async def test_a_firing_of_an_older_version_changes_nothing(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        await self.given(store, msgspec.structs.replace(EVERY_MINUTE, args=b"[[2],{}]"))
        moment.advance(60)
        assert await store.fire([firing(scheduled, NOON + MINUTE)]) == [[STALE]]
        assert await all_jobs(store) == []

    async def test_a_paused_schedule_is_not_due_and_does_not_fire(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        assert await store.pause_schedules([scheduled.id, 99]) == [True, False]
        paused_at = (await self.only(store, scheduled.id)).paused_at
        assert paused_at == moment.now()
        moment.advance(60)
        assert await store.due_schedules() == DueSchedules(moment.now(), (), None)
        assert await store.fire([firing(scheduled, NOON + MINUTE)]) == [[STALE]]
        await store.pause_schedules([scheduled.id])
        assert (await self.only(store, scheduled.id)).paused_at == paused_at, "since when it is paused stays"
        await self.given(store, EVERY_MINUTE)
        assert (await self.only(store, scheduled.id)).paused_at == paused_at, "another offer does not wake it"

    async def test_a_schedule_that_goes_on_does_not_catch_up_with_its_pause(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        await store.pause_schedules([scheduled.id])
        moment.advance(600)
        assert await store.resume_schedules([scheduled.id, 99]) == [True, False]
        after = await self.only(store, scheduled.id)
        assert (after.next_at, after.paused_at) == (NOON + 11 * MINUTE, None)
        moment.advance(600)
        await store.resume_schedules([scheduled.id])
        assert await self.only(store, scheduled.id) == after, "one that is not paused goes on as it was"

    @pytest.mark.parametrize("state", JobState)
    async def test_alone_a_tick_has_no_job_while_an_earlier_one_is_not_final(
        self, store: Store, scheduled: Schedule, moment: FakeClock, state: JobState
    ) -> None:
        moment.advance(600)
        await store.fire([firing(scheduled, NOON + MINUTE, alone=True)])
        [job] = await all_jobs(store)
        await self.force(store, job.seq, state=state)  # type: ignore[attr-defined]
        now = await self.only(store, scheduled.id)
        expected = BORN if state in FINAL else OVERLAPS
        assert await store.fire([firing(now, NOON + 2 * MINUTE, alone=True)]) == [[expected]]
        now = await self.only(store, scheduled.id)
        assert (now.next_at, now.last_tick) == (NOON + 3 * MINUTE, NOON + 2 * MINUTE), "the tick is used up"
        assert len(await all_jobs(store)) == (2 if state in FINAL else 1)
        assert await store.fire([firing(now, NOON + 3 * MINUTE)]) == [[BORN]], "not alone, it runs beside the other"

    async def test_alone_of_several_missed_ticks_one_has_a_job(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(600)
        assert await store.fire([firing(scheduled, NOON + MINUTE, NOON + 2 * MINUTE, alone=True)]) == [[BORN, OVERLAPS]]

    async def test_alone_also_a_job_that_is_retried_by_hand_counts(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(600)
        await store.fire([firing(scheduled, NOON + MINUTE)])
        [job] = await all_jobs(store)
        await self.force(store, job.seq, state=JobState.FAILED)  # type: ignore[attr-defined]
        await store.fire([firing(await self.only(store, scheduled.id), NOON + 2 * MINUTE, alone=True)])
        second = (await all_jobs(store))[0]
        await self.force(store, second.seq, state=JobState.SUCCEEDED)  # type: ignore[attr-defined]
        await self.force(store, job.seq, state=JobState.QUEUED)  # type: ignore[attr-defined]
        assert await store.fire([firing(await self.only(store, scheduled.id), NOON + 3 * MINUTE, alone=True)]) == [[OVERLAPS]]

    async def test_run_now_uses_up_no_tick_and_works_while_paused(self, store: Store, scheduled: Schedule, moment: FakeClock) -> None:
        moment.advance(30)  # exactly when a tick is due
        await store.pause_schedules([scheduled.id])
        jobs = [a_job(scheduled.lane), a_job(scheduled.lane)]
        assert await store.run_now([(scheduled.id, jobs[0]), (99, a_job(scheduled.lane)), (scheduled.id, jobs[1])]) == [True, False, True]
        assert {job.id for job in await all_jobs(store)} == {job.id for job in jobs}
        after = await self.only(store, scheduled.id)
        assert (after.next_at, after.last_tick, after.last_job) == (scheduled.next_at, None, jobs[1].id)
        await store.resume_schedules([scheduled.id])
        moment.advance(60)
        now = await self.only(store, scheduled.id)
        assert await store.fire([firing(now, NOON + 2 * MINUTE, alone=True)]) == [[OVERLAPS]], "its job counts as one of the schedule"

    async def test_old_ticks_are_forgotten_but_not_those_whose_job_is_not_final(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        moment.advance(600)
        ticks = [NOON + n * MINUTE for n in range(1, 6)]
        await store.fire([firing(scheduled, *ticks)])
        newest_first = await all_jobs(store)
        for job in newest_first[1:]:
            await self.force(store, job.seq, state=JobState.SUCCEEDED)  # type: ignore[attr-defined]
        assert await store.prune_ticks(8 * MINUTE, 1) == 1
        assert await store.prune_ticks(8 * MINUTE) == 1
        assert await store.prune_ticks(8 * MINUTE) == 0
        moment.advance(3600)
        assert await store.prune_ticks(MINUTE) == 2
        now = await self.only(store, scheduled.id)
        assert (now.last_tick, now.last_job) == (ticks[-1], newest_first[0].id)
        assert await store.fire([firing(now, NOON + 6 * MINUTE, alone=True)]) == [[OVERLAPS]]

    async def test_a_firing_with_a_bad_job_stores_nothing_and_fails_no_other(
        self, store: Store, scheduled: Schedule, moment: FakeClock
    ) -> None:
        moment.advance(60)
        good = firing(scheduled, NOON + MINUTE)
        bad = msgspec.structs.replace(good, ticks=(Tick(NOON + MINUTE, a_job(scheduled.lane, id=b"short")),))
        failing = store.fire([bad])
        fired = store.fire([good])
        with pytest.raises((ValueError, StoreError)):
            await failing
        assert await fired == [[BORN]]
        assert len(await all_jobs(store)) == 1
