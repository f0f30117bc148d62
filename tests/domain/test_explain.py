from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain.explain import MANY, Awaited, Facts, Reason, WorkerFacts, explain
from easyjobs.domain.lifecycle import JobState

S = JobState
NOW = 1_700_000_000_000_000  # 2023-11-14 22:13:20 UTC
MINUTE = 60_000_000


def worker(name: str = "w1", room: int = 0, **more: Any) -> WorkerFacts:
    return WorkerFacts(name=name, slots=3, running=3, room=room, **more)


def reasons(state: JobState = S.QUEUED, **more: Any) -> list[Reason]:
    given: dict[str, Any] = {"workers": [worker(room=1)], "connected": 1, "offered_at": NOW, **more}
    return explain(Facts(state=state, now=NOW, queue="mail", task="send", **given))


def said(state: JobState = S.QUEUED, **more: Any) -> list[tuple[str, str]]:
    return [(reason.code, reason.text) for reason in reasons(state, **more)]


def test_a_running_job_runs_and_an_ended_one_has_ended() -> None:
    assert said(S.RUNNING, attempt=2, worker="w1", is_queue_paused=True) == [("running", "attempt 2 runs on w1")]
    [(code, text)] = said(S.RUNNING, attempt=2, worker="w1", is_worker_here=False)
    assert code == "running"
    assert text.startswith("attempt 2 was begun by w1, which is not connected to this manager: ")
    assert said(S.FAILED) == [("ended", "it has ended: failed")]


def test_a_scheduled_job_waits_for_its_time() -> None:
    [(code, text)] = said(S.SCHEDULED, run_at=NOW + 125 * MINUTE)
    assert (code, text) == ("not_before", "not before 2023-11-15 00:18:20 UTC, in 2 h 5 min")
    assert said(S.SCHEDULED, run_at=NOW + 9_000_000, failures=1)[0][1].endswith("in 9.0 s, after a failed attempt")
    assert said(S.SCHEDULED, run_at=NOW + 3 * 24 * 60 * MINUTE, failures=4)[0][1].endswith("in 3 d, after 4 failed attempts")
    assert "due since" in said(S.SCHEDULED, run_at=NOW - 1)[0][1]


def test_a_scheduled_job_that_nobody_could_run_either_says_so_too() -> None:
    assert [code for code, _ in said(S.SCHEDULED, run_at=NOW + MINUTE, workers=[], connected=0)] == ["not_before", "no_worker"]


def test_a_waiting_job_names_what_it_waits_for() -> None:
    jobs = [Awaited(id=f"id{n}", task=f"mail/t{n}", state=S.RUNNING if n else S.SUCCEEDED) for n in range(8)]
    [reason] = reasons(S.WAITING, waits_for=jobs[:2])
    assert (reason.code, reason.text) == ("waits_for_jobs", "it waits for mail/t1 (running)")
    assert reason.facts == {"jobs": [{"id": "id1", "task": "mail/t1", "status": "running"}]}
    assert reasons(S.WAITING, waits_for=jobs)[0].text.endswith("and 2 more")
    assert "run before it" in reasons(S.WAITING)[0].text


def test_nobody_offers_the_task() -> None:
    assert said(workers=[], connected=0, offered_at=NOW - 5 * MINUTE) == [
        ("no_worker", "no worker is connected; mail/send was last offered 5 min ago: start a worker that has this task")
    ]
    assert said(workers=[], connected=2, offered_at=None) == [
        (
            "no_worker",
            "none of 2 connected workers offers mail/send, and nobody ever offered mail/send: start a worker that has this task",
        )
    ]


def test_all_slots_are_busy() -> None:
    assert said(workers=[worker()]) == [
        ("slots_busy", "all slots of w1, the only worker that offers mail/send, are taken: 3 jobs on 3 slots")
    ]
    [reason] = reasons(workers=[worker("a"), worker("b")])
    assert reason.text == "all slots of the 2 workers that offer mail/send are taken: 6 jobs on 6 slots"
    assert reason.facts == {"running": 6, "slots": 6, "workers": ["a", "b"]}
    assert said(workers=[worker("a"), worker("b", room=1)]) == [("any_moment", "nothing is in its way: it is claimed at any moment")]


def test_workers_that_get_no_jobs_are_named() -> None:
    workers = [worker("a", room=5, silent_s=25.0), worker("b", room=5, loop_age_s=130.0), worker("c", room=5, holds_lost_attempt=True)]
    assert [(code, text.split()[0]) for code, text in said(workers=workers)] == [
        ("worker_silent", "a"),
        ("worker_blocked", "a"),  # a task blocks the event loop of b …
        ("worker_holds_lost_attempt", "c"),
    ]
    assert said(workers=[*workers, worker("d")])[0][0] == "slots_busy"
    assert "1 of 4 workers" in said(workers=[*workers, worker("d")])[0][1]
    assert [code for code, _ in said(workers=[*workers, worker("d", room=1)])] == ["any_moment"]


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (1, "one job of mail/send is before it"),
        (1500, "1,500 jobs of mail/send are before it"),
        (MANY, "10,000 or more jobs of mail/send are before it"),
    ],
)
def test_others_are_before_it(ahead: int, text: str) -> None:
    assert said(workers=[worker()], ahead=ahead)[1] == ("behind_others", text)


def test_a_pause_comes_before_everything_else() -> None:
    codes = [code for code, _ in said(workers=[worker()], ahead=3, is_queue_paused=True, is_manager_paused=True)]
    assert codes == ["queue_paused", "manager_paused", "slots_busy", "behind_others"]


@given(
    st.sampled_from(JobState),
    st.none() | st.integers(0, 2**52),
    st.lists(st.builds(WorkerFacts, name=st.text(), slots=st.integers(0, 9), running=st.integers(0, 9), room=st.integers(-9, 9))),
    st.none() | st.integers(0, MANY),
    st.none() | st.integers(0, 2**52),
)
def test_there_is_always_a_reason(
    state: JobState, run_at: int | None, workers: list[WorkerFacts], ahead: int | None, offered_at: int | None
) -> None:
    found = reasons(state, run_at=run_at, workers=workers, ahead=ahead, offered_at=offered_at)
    assert found
    assert all(reason.text and reason.code for reason in found)
