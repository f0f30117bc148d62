"""What every store must do with a person's wishes, with kin, with unique keys, and with time that is over."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import (
    Change,
    Changed,
    Child,
    NewJob,
    Parent,
    Reports,
    Spec,
    Submission,
    Submitted,
    SubmitVerdict,
    TaskRow,
    UniqueKey,
)
from easyjobs.domain.lifecycle import TRANSITIONS, JobEvent, JobState
from easyjobs.ports.store import Kept, Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import (
    HOUR_US,
    LEASE_S,
    S,
    StoreContract,
    a_job,
    all_jobs,
    an_id,
    claim,
    failed,
    finish,
    read,
    released,
    submit,
    succeeded,
)

GONE, NEVER = Changed(False, None), Kept(None, None, None, None)
INCOMPLETE = (S.QUEUED, S.SCHEDULED, S.WAITING, S.RUNNING)


def before(lane: int, name: str = "a", **spec: Any) -> NewJob:
    return NewJob(an_id(), Spec(lane, **spec), b"[[],{}]", Parent(0, f"run_before:q/{name}"))


def a_task(name: str) -> TaskRow:
    return TaskRow("q", name, b"{}", b"{}")


def kind_of(error: bytes | None) -> str:
    kind: str = msgspec.json.decode(error or b"{}")["kind"]
    return kind


class ControlContract(StoreContract):
    @pytest.fixture
    async def told(self, store: Store) -> list[Change]:
        changes: list[Change] = []
        store.on_change = changes.extend
        return changes

    # --- cancel -------------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", JobState)
    async def test_a_cancel_agrees_with_the_table(
        self, store: Store, lane: int, session: int, state: JobState, told: list[Change], clock: FakeClock
    ) -> None:
        job_id, job = await self.bring_to(store, lane, session, state)
        [answer] = await store.cancel([job_id])
        await asyncio.sleep(0)
        if state is S.RUNNING:
            assert answer == Changed(True, S.RUNNING)
            assert await store.stopping([session, session + 9]) == [[job], []]
            assert told == [Change(job.seq, job_id, lane, S.RUNNING, 1, session)]
            assert (await finish(store, session, released(job)))[0].state is S.CANCELLED
            assert await store.stopping([session]) == [[]]
        elif (after := TRANSITIONS.get((state, JobEvent.CANCELLED))) is not None:
            assert answer == Changed(True, after)
            assert told == [Change(job.seq, job_id, lane, S.CANCELLED)]
            assert (await read(store, job_id)).finished_at == clock.now()
            assert await claim(store, session, lane) == []
        else:
            assert answer == Changed(state is S.CANCELLED, state)
            assert told == []
        assert await store.cancel([an_id()]) == [GONE]

    async def test_a_success_wins_over_a_cancel(self, store: Store, lane: int, session: int) -> None:
        [job_id] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        await store.cancel([job_id])
        await finish(store, session, succeeded(job))
        assert (await read(store, job_id)).state is S.SUCCEEDED

    async def test_a_cancel_reaches_the_unfinished_children_that_the_job_called_or_waits_for(
        self, store: Store, lane: int, session: int, told: list[Change]
    ) -> None:
        [parent] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        called = a_job(lane, parent=Parent(job.seq, "call:x", holder=(1, session)))
        after = a_job(lane, parent=Parent(job.seq, "run_after:q/z"))
        await submit(store, called, after)
        [grandchild_of] = await claim(store, session, lane, room=1)
        assert grandchild_of.id == called.id
        grandchild = a_job(lane, parent=Parent(grandchild_of.seq, "call:y", holder=(1, session)))
        await submit(store, grandchild)
        await store.cancel([parent])
        assert [[each.id for each in some] for some in await store.stopping([session])] == [[parent, called.id]]
        assert (await read(store, grandchild.id)).state is S.CANCELLED
        assert (await read(store, after.id)).state is S.QUEUED

    # --- restart, hasten, delete ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", JobState)
    async def test_a_restart_agrees_with_the_table(
        self, store: Store, lane: int, session: int, state: JobState, told: list[Change]
    ) -> None:
        job_id, job = await self.bring_to(store, lane, session, state)
        [answer] = await store.restart([job_id])
        await asyncio.sleep(0)
        if (after := TRANSITIONS.get((state, JobEvent.RESTARTED))) is None:
            assert (answer, told) == (Changed(False, state), [])
            return
        assert answer == Changed(True, after)
        assert told == [Change(job.seq, job_id, lane, S.QUEUED)]
        record = await read(store, job_id)
        assert (record.error, record.failures, record.crashes, record.finished_at) == (None, 0, 0, None)
        [again] = await claim(store, session, lane)
        assert (again.id, again.attempt, again.failures) == (job_id, 2, 0)

    async def test_a_new_round_has_its_own_successors(self, store: Store, lane: int, session: int) -> None:
        [job_id] = await submit(store, a_job(lane, max_retries=0))
        for _ in range(2):
            [job] = await claim(store, session, lane, room=1)
            assert job.id == job_id
            on_failure = a_job(lane, parent=Parent(job.seq, "on_failure:q/f", S.FAILED), priority=-99)
            await store.finish([Reports(session, [failed(job)], {job.seq: (on_failure,)})])
            await store.restart([job_id])
        assert [child.edge for child in (await store.children([job_id]))[0]] == ["on_failure:q/f"] * 2

    @pytest.mark.parametrize("state", JobState)
    async def test_only_a_scheduled_job_is_hastened(
        self, store: Store, lane: int, session: int, state: JobState, told: list[Change]
    ) -> None:
        job_id, job = await self.bring_to(store, lane, session, state)
        is_scheduled = state is S.SCHEDULED
        assert await store.hasten([job_id, an_id()]) == [Changed(is_scheduled, S.QUEUED if is_scheduled else state), GONE]
        await asyncio.sleep(0)
        assert told == ([Change(job.seq, job_id, lane, S.QUEUED)] if is_scheduled else [])
        if is_scheduled:
            assert [each.id for each in await claim(store, session, lane)] == [job_id]

    @pytest.mark.parametrize("state", JobState)
    async def test_only_what_has_ended_is_deleted(self, store: Store, lane: int, session: int, state: JobState) -> None:
        job_id, job = await self.bring_to(store, lane, session, state)
        assert await store.delete([job_id, an_id()]) == [Changed(state.is_final, state), GONE]
        assert (await store.get([job_id]) == [None]) == state.is_final
        if state.is_final:
            assert (await finish(store, session, succeeded(job)))[0].state is None
            [next_id] = await submit(store, a_job(lane))
            assert (await read(store, next_id)).seq > job.seq

    # --- jobs that wait for others --------------------------------------------------------------------------------------------------

    async def test_a_job_waits_until_its_last_predecessor_has_succeeded(
        self, store: Store, lane: int, session: int, told: list[Change], clock: FakeClock
    ) -> None:
        job = NewJob(an_id(), Spec(lane), b"[[1],{}]", befores=(before(lane, "a"), before(lane, "b")))
        assert await submit(store, job) == [job.id]
        assert (await read(store, job.id)).state is S.WAITING
        one, two = await claim(store, session, lane)
        assert {one.id, two.id} == {each.id for each in job.befores}
        assert [(child.edge, child.state) for child in (await store.children([job.id]))[0]] == [
            ("run_before:q/a", S.RUNNING), ("run_before:q/b", S.RUNNING),
        ]  # fmt: skip
        await finish(store, session, succeeded(two))
        await finish(store, session, failed(one, retry=True))
        assert (await read(store, job.id)).state is S.WAITING
        [one] = await claim(store, session, lane)
        clock.advance(5)
        await finish(store, session, succeeded(one))
        await asyncio.sleep(0)
        record = await read(store, job.id)
        assert record.state is S.QUEUED
        assert told == [Change(record.seq, job.id, lane, S.QUEUED)]
        assert [each.id for each in await claim(store, session, lane)] == [job.id]

    async def test_two_predecessors_that_end_in_one_batch_are_enough(self, store: Store, lane: int, session: int) -> None:
        jobs = [NewJob(an_id(), Spec(lane), b"[[1],{}]", befores=(before(lane, "a"), before(lane, "b"))) for _ in range(3)]
        await submit(store, *jobs)
        await finish(store, session, *(succeeded(each) for each in await claim(store, session, lane)))
        assert [each.id for each in await claim(store, session, lane)] == [job.id for job in jobs]

    @pytest.mark.parametrize("how", ["failed", "cancelled", "expired", "crashed", "unoffered"])
    async def test_a_predecessor_that_does_not_succeed_fails_the_job_and_what_waits_for_that(
        self, store: Store, session: int, how: str, told: list[Change], clock: FakeClock
    ) -> None:
        lane, other = await store.offer([a_task("a"), a_task("b")])
        first = NewJob(
            an_id(),
            Spec(lane, max_crashes=1, expires_us=HOUR_US if how == "expired" else None),
            b"[[],{}]",
            Parent(0, "run_before:q/first"),
        )
        middle = NewJob(an_id(), Spec(other), b"[[],{}]", Parent(0, "run_before:q/middle"), befores=(first,))
        job = NewJob(an_id(), Spec(other), b"[[],{}]", befores=(middle, before(lane, "sibling", priority=-9)))
        store.successors = lambda record: (a_job(other, parent=Parent(record.seq, "on_failure:q/f", S.FAILED)),)
        await submit(store, job)
        if how in ("failed", "crashed"):
            [running] = await claim(store, session, lane, room=1)
            assert running.id == first.id
            if how == "failed":
                await finish(store, session, failed(running))
            else:
                clock.advance(LEASE_S + 1)
                await store.rescue()
        elif how == "cancelled":
            await store.cancel([first.id])
        elif how == "expired":
            clock.advance(3600)
            assert await store.expire() is None
        else:
            clock.advance(601)
            assert await store.fail_unoffered([lane], 600_000_000) == 2
        await asyncio.sleep(0)
        states = [(await read(store, each.id)).state for each in (middle, job)]
        assert states == [S.FAILED, S.FAILED]
        error = msgspec.json.decode((await read(store, middle.id)).error or b"{}")
        assert error["kind"] == "predecessor"
        assert error["message"].startswith("the run_before job q/first ")
        assert {each.id for each in told if each.state is S.FAILED and kind_of(each.body) == "predecessor"} == {middle.id, job.id}
        # Each failure brings its on_failure job to life, in the same transaction.
        assert [child.edge for child in (await store.children([job.id]))[0]][-1] == "on_failure:q/f"

    async def test_a_restart_repeats_only_the_predecessors_that_did_not_succeed(self, store: Store, lane: int, session: int) -> None:
        job = NewJob(an_id(), Spec(lane), b"[[],{}]", befores=(before(lane, "a"), before(lane, "b"), before(lane, "c")))
        await submit(store, job)
        one, two, _ = await claim(store, session, lane)
        await finish(store, session, succeeded(one), failed(two))
        assert (await read(store, job.id)).state is S.FAILED
        assert await store.restart([job.id]) == [Changed(True, S.WAITING)]
        assert [child.state for child in (await store.children([job.id]))[0]] == [S.SUCCEEDED, S.QUEUED, S.RUNNING]

    async def test_a_job_with_a_delay_waits_for_its_predecessors_and_its_time(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        job = NewJob(an_id(), Spec(lane, run_at=clock.now() + HOUR_US), b"[[],{}]", befores=(before(lane),))
        await submit(store, job)
        [first] = await claim(store, session, lane)
        await finish(store, session, succeeded(first))
        assert (await read(store, job.id)).state is S.SCHEDULED
        clock.advance(3600)
        assert (await store.due()).lanes == (lane,)

    # --- calls ------------------------------------------------------------------------------------------------------------------------

    async def test_a_call_made_again_finds_its_child_unless_that_did_not_succeed(self, store: Store, lane: int, session: int) -> None:
        await submit(store, a_job(lane, max_retries=9))
        [parent] = await claim(store, session, lane)

        def call(attempt: int) -> NewJob:
            return a_job(lane, parent=Parent(parent.seq, "call:abc", holder=(attempt, session)), max_retries=0)

        [first] = await submit(store, call(1))
        assert await store.submit([Submission((call(1),))]) == [Submitted(SubmitVerdict.REPEATED, (first,))]
        [child] = await claim(store, session, lane)
        await finish(store, session, failed(parent, retry=True), succeeded(child))
        [parent] = await claim(store, session, lane)
        assert await store.submit([Submission((call(2),))]) == [Submitted(SubmitVerdict.REPEATED, (first,))]
        other = a_job(lane, parent=Parent(parent.seq, "call:other", holder=(2, session)), max_retries=0)
        await submit(store, other)
        [child] = await claim(store, session, lane)
        await finish(store, session, failed(child))
        again = a_job(lane, parent=Parent(parent.seq, "call:other", holder=(2, session)))
        assert await submit(store, again) == [again.id]

    @pytest.mark.parametrize("fault", ["attempt", "session", "ended", "unknown"])
    async def test_a_call_by_who_does_not_own_the_job_stores_nothing(self, store: Store, lane: int, session: int, fault: str) -> None:
        await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        if fault == "ended":
            await finish(store, session, succeeded(job))
        holder = (1 + (fault == "attempt"), session + (fault == "session"))
        call = a_job(lane, parent=Parent(job.seq + (fault == "unknown"), "call:x", holder=holder))
        assert await store.submit([Submission((a_job(lane), call))]) == [Submitted(SubmitVerdict.ORPHANED, ())]
        assert len(await all_jobs(store)) == 1

    async def test_the_result_of_a_child_outlives_its_parent(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, a_job(lane))
        [parent] = await claim(store, session, lane)
        [child_id] = await submit(store, a_job(lane, parent=Parent(parent.seq, "call:x", holder=(1, session)), ttl_us=0))
        [child] = await claim(store, session, lane)
        await finish(store, session, succeeded(child))
        await store.pull([child_id])
        clock.advance(20)
        assert await store.prune(0, 0) == 0
        assert await store.retain(Kept(0, 0, 0, 0)) == (0, None)
        assert (await read(store, child_id)).result == b"1"
        await finish(store, session, succeeded(parent))
        clock.advance(1)
        assert await store.prune(0, 0) == 1
        assert await store.retain(Kept(0, 0, 0, 0)) == (2, None)

    async def test_a_chain_that_is_too_deep_ends_in_a_failure(self, store: Store, lane: int, session: int) -> None:
        [last] = await submit(store, a_job(lane))
        for depth in range(1, 4):
            [job] = await claim(store, session, lane)
            child = a_job(lane, parent=Parent(job.seq, "run_after:q/x", S.SUCCEEDED, max_depth=2))
            await store.finish([Reports(session, [succeeded(job)], {job.seq: (child,)})])
            record = await read(store, child.id)
            assert record.state is (S.QUEUED if depth <= 2 else S.FAILED)
            last = child.id
        assert kind_of((await read(store, last)).error) == "chain_too_deep"

    # --- unique keys --------------------------------------------------------------------------------------------------------------------

    async def test_a_unique_key_gives_the_job_that_has_it_as_long_as_its_states_hold(self, store: Store, lane: int, session: int) -> None:
        def one() -> NewJob:
            return NewJob(an_id(), Spec(lane), b"[[],{}]", unique=UniqueKey(b"key", INCOMPLETE))

        first = one()
        assert await submit(store, first) == [first.id]
        other = NewJob(an_id(), Spec(lane), b"[[],{}]", unique=UniqueKey(b"other", INCOMPLETE))
        [answer] = await store.submit([Submission((one(), other, one()))])
        assert answer == Submitted(SubmitVerdict.ACCEPTED, (first.id, other.id, first.id))
        [job, _] = await claim(store, session, lane)
        assert await store.submit([Submission((one(),))]) == [Submitted(SubmitVerdict.REPEATED, (first.id,))]
        await finish(store, session, succeeded(job))
        second = one()
        assert await submit(store, second) == [second.id]

    async def test_a_unique_key_ends_with_its_period(self, store: Store, lane: int, clock: FakeClock) -> None:
        def one() -> NewJob:
            return NewJob(an_id(), Spec(lane), b"[[],{}]", unique=UniqueKey(b"key", tuple(JobState), 10_000_000))

        [first] = await submit(store, one())
        clock.advance(9.9)
        assert (await store.submit([Submission((one(),))]))[0].ids == (first,)
        clock.advance(0.1)
        [second] = await submit(store, one())
        assert second != first
        await store.cancel([first, second])
        assert await store.delete([second, first]) == [Changed(True, S.CANCELLED)] * 2
        [third] = await submit(store, one())
        assert third not in (first, second)

    async def test_a_restart_whose_place_is_taken_is_refused(self, store: Store, lane: int, session: int) -> None:
        def one() -> NewJob:
            return NewJob(an_id(), Spec(lane, max_retries=0), b"[[],{}]", unique=UniqueKey(b"key", INCOMPLETE))

        [first] = await submit(store, one())
        [job] = await claim(store, session, lane)
        await finish(store, session, failed(job))
        [second] = await submit(store, one())
        assert await store.restart([first]) == [Changed(False, S.FAILED)]
        await store.cancel([second])
        assert await store.restart([first]) == [Changed(True, S.QUEUED)]
        assert (await store.submit([Submission((one(),))]))[0].ids == (first,)

    # --- time -----------------------------------------------------------------------------------------------------------------------------

    async def test_what_is_not_started_in_time_expires(
        self, store: Store, lane: int, session: int, clock: FakeClock, told: list[Change]
    ) -> None:
        late, started, later = await submit(
            store, a_job(lane, expires_us=5_000_000, priority=-1), a_job(lane, expires_us=5_000_000), a_job(lane, expires_us=9_000_000)
        )
        [job] = await claim(store, session, lane, room=1)
        assert job.id == started
        assert await store.expire() == clock.now() + 5_000_000
        clock.advance(5)
        assert await store.expire() == clock.now() + 4_000_000
        await asyncio.sleep(0)
        assert [(each.id, each.state, kind_of(each.body)) for each in told] == [(late, S.EXPIRED, "expired")]
        assert (await read(store, started)).state is S.RUNNING
        assert (await read(store, later)).state is S.QUEUED
        [again] = await store.restart([late])
        assert again.done
        clock.advance(60)
        await store.renew([session])
        await store.expire()
        assert (await read(store, late)).state is S.QUEUED  # a person wants it now, however late

    async def test_a_result_is_dropped_after_its_time(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        kept, dropped = await submit(store, a_job(lane), a_job(lane, ttl_us=5_000_000))
        await finish(store, session, *(succeeded(job) for job in await claim(store, session, lane)))
        clock.advance(5)
        assert await store.prune(0, 0) == 0
        clock.advance(0.1)
        assert await store.prune(0, 0) == 1
        assert [(await read(store, each)).result for each in (kept, dropped)] == [b"1", None]

    async def test_only_successors_of_lanes_that_nobody_offers_fail_after_the_grace(
        self, store: Store, session: int, clock: FakeClock
    ) -> None:
        lane, other = await store.offer([a_task("a"), a_task("b")])
        [plain] = await submit(store, a_job(lane))
        parent = a_job(other)
        await submit(store, parent)
        [job] = await claim(store, session, other)
        old = a_job(lane, parent=Parent(job.seq, "run_after:q/x", S.SUCCEEDED))
        elsewhere = a_job(other, parent=Parent(job.seq, "run_after:q/y", S.SUCCEEDED))
        await store.finish([Reports(session, [succeeded(job)], {job.seq: (old, elsewhere)})])
        clock.advance(599)
        assert await store.fail_unoffered([lane], 600_000_000) == 0
        clock.advance(1)
        assert await store.fail_unoffered([lane], 600_000_000) == 1
        assert kind_of((await read(store, old.id)).error) == "unknown_task"
        assert [(await read(store, each)).state for each in (plain, elsewhere.id)] == [S.QUEUED, S.QUEUED]
        assert (await read(store, parent.id)).state is S.SUCCEEDED

    async def test_jobs_are_deleted_when_they_have_been_kept_long_enough(
        self, store: Store, lane: int, session: int, clock: FakeClock
    ) -> None:
        ids = await submit(store, *(a_job(lane, max_retries=0) for _ in range(6)))
        done = await claim(store, session, lane, room=4)
        await finish(store, session, succeeded(done[0]), succeeded(done[1]), failed(done[2]))
        await store.cancel([ids[4]])
        kept = Kept(10_000_000, 20_000_000, None, None)
        clock.advance(9)
        assert await store.retain(kept) == (0, None)
        clock.advance(1)
        assert await store.retain(kept, limit=1) == (1, 1)
        assert await store.retain(kept, after_seq=1, limit=2) == (1, 3)
        assert await store.retain(kept, after_seq=3) == (0, None)
        clock.advance(10)
        assert await store.retain(kept) == (1, None)
        assert await store.retain(NEVER) == (0, None)
        assert [record.id for record in await all_jobs(store)] == [ids[5], ids[4], ids[3]]

    # --- queues ---------------------------------------------------------------------------------------------------------------------------

    async def test_a_queue_is_paused_until_it_is_resumed(self, store: Store) -> None:
        assert await store.paused() == []
        assert [await store.pause("q", True), await store.pause("r", True), await store.pause("q", True)] == [True, True, False]
        assert await store.paused() == ["q", "r"]
        assert [await store.pause("q", False), await store.pause("q", False)] == [True, False]
        assert await store.paused() == ["r"]

    async def test_the_children_of_a_job_are_told_with_their_states(self, store: Store, lane: int) -> None:
        assert await store.children([an_id()]) == [[]]
        job = NewJob(an_id(), Spec(lane), b"[[],{}]", befores=(before(lane),))
        await submit(store, job)
        assert await store.children([job.id]) == [[Child(job.befores[0].id, lane, "run_before:q/a", S.QUEUED)]]
