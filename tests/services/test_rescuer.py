"""When leases end."""

from __future__ import annotations

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.services.results import End
from tests.services.conftest import LEASE_S, Parts


def at_the_next_tick(parts: Parts, seconds: float) -> None:
    """Let time pass as if the rescuer had ticked all along."""
    parts.rescuer.tick_s = seconds
    parts.clock.advance(seconds)


async def running_job(parts: Parts, options: bytes = b"{}") -> tuple[int, bytes]:
    task = await parts.task(options=options)
    _, peer = await parts.session(task, room=1)
    await parts.intake.submit_one(task, b"[[1],{}]")
    await parts.settle()
    return peer.got[0].seq, peer.got[0].id


async def state_of(parts: Parts, id: bytes) -> JobState:
    [record] = await parts.store.get([id])
    assert record is not None
    return record.state


async def test_a_job_is_put_back_when_its_lease_has_ended_and_not_before(parts: Parts) -> None:
    _, id = await running_job(parts)
    at_the_next_tick(parts, LEASE_S - 1)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.RUNNING
    at_the_next_tick(parts, 2)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.QUEUED


async def test_a_renewed_lease_keeps_the_job(parts: Parts) -> None:
    _, id = await running_job(parts)
    for _ in range(5):
        at_the_next_tick(parts, LEASE_S * 0.6)
        await parts.store.renew([1])
        await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.RUNNING


async def test_a_manager_that_has_just_started_rescues_nothing_for_one_lease(parts: Parts) -> None:
    _, id = await running_job(parts)
    parts.rescuer._quiet_until = parts.clock.monotonic() + LEASE_S + 5
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.RUNNING
    at_the_next_tick(parts, 5)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.QUEUED


async def test_a_manager_that_stood_still_waits_one_lease_before_it_rescues(parts: Parts) -> None:
    _, id = await running_job(parts)
    await parts.rescuer.run_once()
    parts.clock.advance(LEASE_S * 3)  # nobody could renew: the manager was stopped
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.RUNNING
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.QUEUED


async def test_a_job_that_crashed_too_often_fails_tells_its_watchers_and_starts_its_on_failure(parts: Parts) -> None:
    def on_call(reason: str) -> None: ...

    await parts.task("on_call", fn=on_call)
    _, id = await running_job(parts, b'{"max_crashes":1,"on_failure":"on_call"}')
    ends: list[End] = []
    await parts.results.watch([id], ends.append)
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.FAILED
    assert [(end.id, end.state) for end in ends] == [(id, JobState.FAILED)]
    assert ends[0].body
    assert b"WorkerLost" in ends[0].body or b"crashed" in ends[0].body
    counts = await parts.store.counts()
    assert counts[parts.catalogue.find("Q", "on_call").lane, JobState.QUEUED] == 1


async def test_a_rescue_never_undoes_a_finish(parts: Parts) -> None:
    seq, id = await running_job(parts)
    session = parts.dispatcher.sessions()[0]
    at_the_next_tick(parts, LEASE_S + 1)
    await parts.reporter.report(session, [Report(seq=seq, attempt=1, outcome=Outcome.SUCCEEDED, body=b"1")])
    await parts.rescuer.run_once()
    assert await state_of(parts, id) is JobState.SUCCEEDED
