"""What reports do."""

from __future__ import annotations

import msgspec

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.services.dispatcher import Session
from easyjobs.services.results import End
from tests.services.conftest import FakePeer, Parts

ERROR = msgspec.json.encode(ErrorInfo(type="ValueError", message="no"))


def failed(seq: int, attempt: int = 1, *, retry: bool = True, delay_us: int = 0) -> Report:
    return Report(seq=seq, attempt=attempt, outcome=Outcome.FAILED, body=ERROR, retry=retry, delay_us=delay_us)


def succeeded(seq: int, attempt: int = 1, body: bytes = b"1") -> Report:
    return Report(seq=seq, attempt=attempt, outcome=Outcome.SUCCEEDED, body=body)


async def one_running(parts: Parts, options: bytes = b"{}", room: int = 10) -> tuple[Session, FakePeer]:
    task = await parts.task(options=options)
    session, peer = await parts.session(task, room=room)
    await parts.intake.submit_one(task, b"[[1],{}]")
    await parts.settle()
    return session, peer


async def test_the_watchers_of_a_job_hear_of_its_end_once_after_the_commit(parts: Parts) -> None:
    session, peer = await one_running(parts)
    ends: list[End] = []
    await parts.results.watch([peer.got[0].id], ends.append)
    await parts.reporter.report(session, [succeeded(peer.got[0].seq, body=b'"done"')])
    await parts.reporter.report(session, [succeeded(peer.got[0].seq, body=b'"done"')])  # a repeat after a lost ack
    assert ends == [End(peer.got[0].id, JobState.SUCCEEDED, b'"done"')]
    assert session.running == {}


async def test_a_failure_with_budget_runs_again_at_once_and_its_watchers_wait_on(parts: Parts) -> None:
    session, peer = await one_running(parts)
    ends: list[End] = []
    await parts.results.watch([peer.got[0].id], ends.append)
    await parts.reporter.report(session, [failed(peer.got[0].seq)])
    await parts.settle()
    assert [job.attempt for job in peer.got] == [1, 2]
    assert peer.got[1].failures == 1
    assert ends == []
    await parts.reporter.report(session, [failed(peer.got[0].seq, 2)])
    assert [end.state for end in ends] == [JobState.FAILED]


async def test_a_delayed_retry_wakes_the_scheduler(parts: Parts) -> None:
    session, peer = await one_running(parts)
    await parts.scheduler.run_once()
    assert not parts.scheduler._woken.is_set()
    await parts.reporter.report(session, [failed(peer.got[0].seq, delay_us=2_000_000)])
    assert parts.scheduler._woken.is_set()
    assert await parts.scheduler.run_once() == 2.0


async def test_a_released_job_goes_to_another_session(parts: Parts) -> None:
    session, peer = await one_running(parts, room=1)
    _, other = await parts.session(parts.catalogue.find("Q", "work"), name="other", room=1)
    await parts.reporter.report(session, [Report(seq=peer.got[0].seq, attempt=1, outcome=Outcome.RELEASED)])
    await parts.settle()
    assert [(job.seq, job.attempt, job.failures) for job in other.got] == [(peer.got[0].seq, 2, 0)]


async def test_a_report_of_another_attempt_is_stale_and_changes_nothing(parts: Parts) -> None:
    session, peer = await one_running(parts)
    seq = peer.got[0].seq
    assert await parts.reporter.report(session, [succeeded(seq, attempt=7)]) == [seq]
    assert seq in session.running
    [record] = await parts.store.get([peer.got[0].id])
    assert record is not None
    assert record.state is JobState.RUNNING


async def test_run_after_gets_the_result_and_is_born_once(parts: Parts) -> None:
    def then(a: int, b: int) -> None: ...

    await parts.task("then", fn=then)
    session, peer = await one_running(parts, b'{"run_after":["then"]}')
    await parts.reporter.report(session, [succeeded(peer.got[0].seq, body=b'{"a":1,"b":2}')])
    await parts.reporter.report(session, [succeeded(peer.got[0].seq, body=b'{"a":1,"b":2}')])
    lane = parts.catalogue.find("Q", "then").lane
    assert (await parts.store.counts())[lane, JobState.QUEUED] == 1
    _, other = await parts.session(parts.catalogue.find("Q", "then"), name="other", room=5)
    await parts.settle()
    assert [msgspec.json.decode(job.args) for job in other.got] == [[[], {"a": 1, "b": 2}]]


async def test_on_failure_is_born_when_the_job_has_failed_for_good_and_gets_the_reason(parts: Parts) -> None:
    def mourn(job_failed: str) -> None: ...

    await parts.task("mourn", fn=mourn)
    session, peer = await one_running(parts, b'{"on_failure":"mourn","max_retries":1}')
    lane = parts.catalogue.find("Q", "mourn").lane
    await parts.reporter.report(session, [failed(peer.got[0].seq)])
    assert (lane, JobState.QUEUED) not in {key for key, count in (await parts.store.counts()).items() if count}
    await parts.settle()
    await parts.reporter.report(session, [failed(peer.got[0].seq, 2)])
    _, other = await parts.session(parts.catalogue.find("Q", "mourn"), name="other", room=5)
    await parts.settle()
    [args, kwargs] = msgspec.json.decode(other.got[0].args)
    assert [*args, *kwargs.values()] == ["ValueError: no"]
