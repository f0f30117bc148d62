"""Who gets which jobs."""

from __future__ import annotations

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.runtime.ids import id_bytes
from tests.services.conftest import LEASE_S, Parts


async def submit(parts: Parts, task: object, count: int) -> list[str]:
    return [await parts.intake.submit_one(task, b"[[1],{}]") for _ in range(count)]  # type: ignore[arg-type]


async def test_a_session_gets_as_many_jobs_as_it_has_credit_and_no_more(parts: Parts) -> None:
    task = await parts.task()
    session, peer = await parts.session(task, room=2)
    await submit(parts, task, 5)
    await parts.settle()
    assert len(peer.got) == 2
    parts.dispatcher.credit(session, 2)  # said again: no more than before
    await parts.settle()
    assert len(peer.got) == 2
    parts.dispatcher.credit(session, 4)
    await parts.settle()
    assert len(peer.got) == 4
    assert (await parts.store.counts())[task.lane, JobState.QUEUED] == 1


async def test_jobs_that_were_waiting_are_given_to_the_first_session_that_offers_their_task(parts: Parts) -> None:
    task = await parts.task()
    await submit(parts, task, 3)
    other = await parts.task("other")
    _, idle = await parts.session(other, name="idle", room=10)
    await parts.settle()
    assert idle.got == []
    _, peer = await parts.session(task, name="late", room=10)
    await parts.settle()
    assert [job.lane for job in peer.got] == [task.lane] * 3


async def test_the_least_loaded_session_is_served_first(parts: Parts) -> None:
    task = await parts.task()
    busy, busy_peer = await parts.session(task, name="busy", room=1)
    await submit(parts, task, 1)
    await parts.settle()
    assert len(busy_peer.got) == 1
    _, free_peer = await parts.session(task, name="free", room=1)
    parts.dispatcher.credit(busy, 2)
    await submit(parts, task, 1)
    await parts.settle()
    assert len(free_peer.got) == 1
    assert len(busy_peer.got) == 1


async def test_a_job_whose_task_nobody_offers_blocks_no_other(parts: Parts) -> None:
    orphan, task = await parts.task("orphan"), await parts.task()
    await submit(parts, orphan, 5)
    await submit(parts, task, 1)
    _, peer = await parts.session(task, room=10)
    await parts.settle()
    assert [job.lane for job in peer.got] == [task.lane]


async def test_jobs_claimed_for_a_connection_that_goes_meanwhile_are_put_back_at_once(parts: Parts) -> None:
    task = await parts.task()
    session, peer = await parts.session(task)
    await submit(parts, task, 2)
    parts.dispatcher.credit(session, 2)  # the claim is in the store now …
    parts.dispatcher.detach(session)  # … and the connection goes before its answer
    await parts.settle()
    assert peer.got == []
    counts = await parts.store.counts()
    assert counts.get((task.lane, JobState.RUNNING), 0) == 0
    _, other = await parts.session(task, name="other", room=5)
    await parts.settle()
    assert [job.attempt for job in other.got] == [2, 2]


async def test_a_silent_session_gets_nothing_new_until_it_beats_again(parts: Parts) -> None:
    task = await parts.task()
    session, peer = await parts.session(task, room=5)
    parts.clock.advance(LEASE_S * 0.7)
    await submit(parts, task, 1)
    await parts.settle()
    assert peer.got == []
    parts.dispatcher.beaten(session, 0.0)
    await parts.settle()
    assert len(peer.got) == 1


async def test_a_session_whose_loop_is_wedged_gets_nothing_new(parts: Parts) -> None:
    task = await parts.task()
    session, peer = await parts.session(task, room=5)
    parts.dispatcher.beaten(session, 121.0)
    await submit(parts, task, 1)
    await parts.settle()
    assert peer.got == []


async def test_nothing_is_given_out_while_paused(parts: Parts) -> None:
    task = await parts.task()
    _, peer = await parts.session(task, room=5)
    parts.dispatcher.is_paused = True
    await submit(parts, task, 1)
    await parts.settle()
    assert peer.got == []
    parts.dispatcher.is_paused = False
    parts.dispatcher.mark(task.lane)
    await parts.settle()
    assert len(peer.got) == 1


async def test_the_holder_of_an_overdue_attempt_is_not_given_the_same_job_beside_itself(parts: Parts) -> None:
    task = await parts.task()
    session, peer = await parts.session(task, room=5)
    [job_id] = await submit(parts, task, 1)
    await parts.settle()
    parts.rescuer.tick_s = LEASE_S + 1  # the manager itself never stood still
    parts.clock.advance(LEASE_S + 1)
    await parts.rescuer.run_once()
    parts.dispatcher.beaten(session, 0.0)
    await parts.settle()
    assert len(peer.got) == 1  # it still runs attempt 1
    stale = await parts.reporter.report(session, [Report(seq=peer.got[0].seq, attempt=1, outcome=Outcome.SUCCEEDED, body=b"7")])
    assert stale == []
    [record] = await parts.store.get([id_bytes(job_id) or b""])
    assert record is not None
    assert (record.state, record.attempt, record.result) == (JobState.SUCCEEDED, 1, b"7")


async def test_another_session_may_take_an_overdue_job_and_then_the_late_report_is_stale(parts: Parts) -> None:
    task = await parts.task()
    slow, slow_peer = await parts.session(task, name="slow", room=5)
    await submit(parts, task, 1)
    await parts.settle()
    parts.rescuer.tick_s = LEASE_S + 1
    parts.clock.advance(LEASE_S + 1)
    await parts.rescuer.run_once()
    other, other_peer = await parts.session(task, name="other", room=5)
    await parts.settle()
    assert [job.attempt for job in other_peer.got] == [2]
    assert slow_peer.cancelled == [(slow_peer.got[0].seq, 1)]
    seq = slow_peer.got[0].seq
    assert await parts.reporter.report(slow, [Report(seq=seq, attempt=1, outcome=Outcome.SUCCEEDED, body=b'"late"')]) == [seq]
    assert await parts.reporter.report(other, [Report(seq=seq, attempt=2, outcome=Outcome.SUCCEEDED, body=b'"right"')]) == []
    [record] = await parts.store.get([other_peer.got[0].id])
    assert record is not None
    assert record.result == b'"right"'
