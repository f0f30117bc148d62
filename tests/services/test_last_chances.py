"""A job that kills its worker does not take its neighbours with it when their budgets end."""

from __future__ import annotations

import asyncio

import pytest

from easyjobs.domain.job import Claimed, Outcome, Report, Rescued, Running
from easyjobs.domain.lifecycle import JobState
from easyjobs.services.last_chances import LastChances
from tests.services.conftest import LEASE_S, Parts
from tests.services.test_rescuer import at_the_next_tick, state_of

TWO = b'{"max_crashes":2}'


async def crashed_together(parts: Parts, count: int = 3, options: bytes = TWO) -> tuple[object, list[bytes]]:
    """Jobs of one task that a worker had when it died; they are queued again. The task, and their ids."""
    task = await parts.task(options=options)
    session, peer = await parts.session(task, name="dead", room=count)
    for n in range(count):
        await parts.intake.submit_one(task, b"[[%d],{}]" % n)
    await parts.settle()
    assert len(peer.got) == count
    parts.dispatcher.detach(session)
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    ids = [job.id for job in peer.got]
    assert [await state_of(parts, id) for id in ids] == [JobState.QUEUED] * count
    return task, ids


async def test_a_worker_gets_one_job_on_its_last_chance_at_a_time(parts: Parts) -> None:
    task, ids = await crashed_together(parts)
    session, peer = await parts.session(task, room=10)
    await parts.settle()
    assert [job.id for job in peer.got] == ids[:1]
    for n in range(1, 3):
        job = peer.got[-1]
        await parts.reporter.report(session, [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.SUCCEEDED, body=b"1")])
        await asyncio.sleep(0.6)  # nothing else would ask again
        await parts.settle()
        assert [job.id for job in peer.got] == ids[: n + 1]


async def test_several_workers_get_one_each(parts: Parts) -> None:
    task, ids = await crashed_together(parts)
    _, first = await parts.session(task, name="first", room=10)
    _, second = await parts.session(task, name="second", room=10)
    await parts.settle()
    assert sorted(job.id for job in first.got + second.got) == sorted(ids[:2])


async def test_the_one_that_kills_its_worker_again_takes_no_other_one_with_it(parts: Parts) -> None:
    task, ids = await crashed_together(parts)
    session, _ = await parts.session(task, room=10)
    await parts.settle()
    parts.dispatcher.detach(session)
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    assert [await state_of(parts, id) for id in ids] == [JobState.FAILED, JobState.QUEUED, JobState.QUEUED]


async def test_one_that_has_run_for_long_makes_room_for_the_next(parts: Parts) -> None:
    task, ids = await crashed_together(parts)
    session, peer = await parts.session(task, room=10)
    await parts.settle()
    parts.clock.advance(LEASE_S * 2 / 3 + 0.1)
    parts.dispatcher.beaten(session, 0.0)
    await parts.settle()
    assert [job.id for job in peer.got] == ids[:2]


async def test_a_long_innocent_one_outlives_a_killer_that_began_later(parts: Parts) -> None:
    task, [innocent, killer, third] = await crashed_together(parts)
    session, peer = await parts.session(task, room=10)
    await parts.settle()
    at_the_next_tick(parts, LEASE_S * 2 / 3 + 0.1)
    await parts.rescuer.run_once()
    await parts.store.renew([session.number])
    parts.dispatcher.beaten(session, 0.0)
    await parts.settle()
    assert [job.id for job in peer.got] == [innocent, killer]
    parts.dispatcher.detach(session)
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    assert [await state_of(parts, id) for id in (innocent, killer, third)] == [JobState.QUEUED, JobState.FAILED, JobState.QUEUED]
    session, peer = await parts.session(task, name="third", room=10)
    await parts.settle()
    assert [job.id for job in peer.got] == [innocent], "still on its last chance, alone among its kind"
    [job] = peer.got
    await parts.reporter.report(session, [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.SUCCEEDED, body=b"1")])
    assert await state_of(parts, innocent) is JobState.SUCCEEDED


async def test_jobs_of_other_tasks_run_beside_it(parts: Parts) -> None:
    task, ids = await crashed_together(parts)

    def other(n: int) -> None: ...

    plain = await parts.task("other", fn=other)
    session, peer = await parts.session(task, room=10)
    parts.dispatcher.offered(session, [plain.lane])
    for _ in range(5):
        await parts.intake.submit_one(plain, b"[[1],{}]")
    await parts.settle()
    assert [job.lane for job in peer.got].count(plain.lane) == 5
    assert [job.id for job in peer.got if job.lane != plain.lane] == ids[:1]


async def test_those_that_wait_no_more_hold_nobody_up(parts: Parts) -> None:
    """Cancelled meanwhile, or taken by another manager."""
    task, ids = await crashed_together(parts)
    await parts.store.cancel(ids[:3])
    for _ in range(4):
        await parts.intake.submit_one(task, b"[[1],{}]")  # type: ignore[arg-type]
    await parts.rescuer.run_once()
    assert not parts.dispatcher.last_chances
    _, peer = await parts.session(task, room=10)
    await parts.settle()
    assert len(peer.got) == 4


async def test_a_budget_that_is_not_used_up_changes_nothing(parts: Parts) -> None:
    task, ids = await crashed_together(parts, options=b'{"max_crashes":5}')
    _, peer = await parts.session(task, room=10)
    await parts.settle()
    assert [job.id for job in peer.got] == ids


async def test_a_worker_that_asks_while_they_are_put_back_gets_one_too(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    task = await parts.task(options=TWO)
    dead, peer = await parts.session(task, name="dead", room=3)
    for n in range(3):
        await parts.intake.submit_one(task, b"[[%d],{}]" % n)
    await parts.settle()
    parts.dispatcher.detach(dead)
    at_the_next_tick(parts, LEASE_S + 1)
    live, other = await parts.session(task, name="live")
    rescue = parts.store.rescue

    async def rescue_and_dawdle(limit: int = 1000) -> list[Rescued]:
        found = await rescue(limit)
        parts.dispatcher.credit(live, 10)
        await parts.settle()
        return found

    monkeypatch.setattr(parts.store, "rescue", rescue_and_dawdle)
    await parts.rescuer.run_once()
    await parts.settle()
    assert [job.id for job in other.got] == [job.id for job in peer.got[:1]]


async def test_the_lanes_where_some_wait_are_counted_as_they_come_and_go(parts: Parts) -> None:
    """Asked with each claim: with 10,000 that wait it must cost no more than with one."""
    chances = LastChances(parts.clock, proven_s=1.0)
    chances.add(Running(seq, 1, seq % 2, b"i" * 16) for seq in range(4))
    chances.add([Running(0, 2, 0, b"i" * 16)])  # rescued once more
    assert set(chances.lanes) == {0, 1}
    chances.given(7, [Claimed(0, 3, 0, b"i" * 16, 0, 0, b""), Claimed(2, 3, 0, b"i" * 16, 0, 0, b"")])
    assert set(chances.lanes) == {1}
    await chances.look_after(parts.store)  # none of them is there
    assert not chances
    assert not chances.lanes
