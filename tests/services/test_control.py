"""What people do to jobs and queues, and who is told."""

from __future__ import annotations

import pytest

from easyjobs.domain.job import Changed, Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ProtocolError
from easyjobs.runtime.ids import id_bytes
from easyjobs.services.results import End
from tests.services.conftest import Parts


async def a_job(parts: Parts, room: int = 0) -> tuple[bytes, object, object]:
    task = await parts.task()
    session, peer = await parts.session(task, room=room)
    id = id_bytes(await parts.intake.submit_one(task, b"[[1],{}]"))
    assert id is not None
    await parts.settle()
    return id, session, peer


async def test_a_cancelled_job_that_waits_ends_for_its_watchers(parts: Parts) -> None:
    id, _, _ = await a_job(parts)
    told: list[End] = []
    await parts.results.watch([id], told.append)
    assert await parts.control.cancel([id]) == [Changed(True, JobState.CANCELLED)]
    await parts.settle()
    assert told == [End(id, JobState.CANCELLED, b"")]


async def test_the_worker_of_a_running_job_is_asked_to_stop_it_also_when_it_comes_back(parts: Parts) -> None:
    id, session, peer = await a_job(parts, room=1)
    [job] = peer.got  # type: ignore[attr-defined]
    await parts.control.cancel([id])
    await parts.settle()
    assert peer.cancelled == [(job.seq, 1)]  # type: ignore[attr-defined]
    await parts.control.remind(session)  # type: ignore[arg-type]
    assert peer.cancelled == [(job.seq, 1)] * 2  # type: ignore[attr-defined]


async def test_a_retried_job_is_given_out_again(parts: Parts) -> None:
    id, session, peer = await a_job(parts, room=5)
    error = b'{"type":"E","message":"no"}'
    await parts.reporter.report(session, [Report(peer.got[0].seq, 1, Outcome.FAILED, 0, error)])  # type: ignore[attr-defined,arg-type]
    assert await parts.control.frame("retry", [id]) == [(True, int(JobState.QUEUED))]
    await parts.settle()
    assert [job.attempt for job in peer.got] == [1, 2]  # type: ignore[attr-defined]


async def test_a_frame_does_one_verb_to_some_jobs_and_nothing_else(parts: Parts) -> None:
    id, _, _ = await a_job(parts)
    assert await parts.control.frame("cancel", [id, bytes(16)]) == [(True, int(JobState.CANCELLED)), (False, -1)]
    assert await parts.control.frame("delete", [id]) == [(True, int(JobState.CANCELLED))]
    with pytest.raises(ProtocolError, match="'drop' is nothing that can be done"):
        await parts.control.frame("drop", [id])


async def test_a_paused_queue_gives_out_nothing_and_others_do(parts: Parts) -> None:
    one, other = await parts.task("a", "one"), await parts.task("b", "other")
    await parts.control.pause("one", True)
    _, peer = await parts.session(one, other, room=9)
    for task in (one, other):
        await parts.intake.submit_one(task, b"[[1],{}]")
    await parts.settle()
    assert [job.lane for job in peer.got] == [other.lane]
    assert parts.control.paused == {"one"}
    await parts.control.pause("one", False)
    await parts.settle()
    assert [job.lane for job in peer.got] == [other.lane, one.lane]


async def test_the_pause_of_a_queue_is_remembered(parts: Parts) -> None:
    task = await parts.task("a", "one")
    await parts.store.pause("one", True)
    await parts.control.load()
    _, peer = await parts.session(task, room=9)
    await parts.intake.submit_one(task, b"[[1],{}]")
    await parts.settle()
    assert peer.got == []


async def test_a_manager_may_give_out_nothing_at_all_for_a_while(parts: Parts) -> None:
    parts.control.pause_all(True)
    _, _, peer = await a_job(parts, room=1)
    assert peer.got == []  # type: ignore[attr-defined]
    parts.control.pause_all(False)
    await parts.settle()
    assert len(peer.got) == 1  # type: ignore[attr-defined]
