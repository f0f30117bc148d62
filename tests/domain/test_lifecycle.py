"""The table of a job's life."""

from __future__ import annotations

import pytest

from easyjobs.domain.lifecycle import CANCELLED_INSTEAD, FINAL, LATE_REPORTS, TRANSITIONS, Back, JobEvent, JobState, advance


def test_only_a_person_moves_a_final_job() -> None:
    away = {event for (state, event) in TRANSITIONS if state in FINAL}
    assert away == {JobEvent.RESTARTED, JobEvent.RESTARTED_WAITING}
    assert not any(state is JobState.SUCCEEDED for (state, _) in TRANSITIONS)


def test_every_state_can_be_reached_and_left_or_is_final() -> None:
    reached = set(TRANSITIONS.values()) | {JobState.SCHEDULED, JobState.WAITING, JobState.QUEUED}
    left = {state for (state, _) in TRANSITIONS}
    assert reached == set(JobState)
    assert set(JobState) - left == {JobState.SUCCEEDED}


@pytest.mark.parametrize("event", JobEvent)
@pytest.mark.parametrize("back", Back)
def test_a_late_report_counts_only_for_a_job_put_back_by_a_rescue_or_a_release(event: JobEvent, back: Back) -> None:
    after = advance(JobState.QUEUED, event, back=back)
    if event in LATE_REPORTS and back in (Back.RESCUED, Back.RELEASED):
        assert after is TRANSITIONS[JobState.RUNNING, event]
    else:
        assert after is TRANSITIONS.get((JobState.QUEUED, event))


@pytest.mark.parametrize("event", JobEvent)
def test_a_requested_cancellation_wins_over_all_but_a_success(event: JobEvent) -> None:
    after = advance(JobState.RUNNING, event, cancel_requested=True)
    if event in CANCELLED_INSTEAD:
        assert after is JobState.CANCELLED
    else:
        assert after is TRANSITIONS.get((JobState.RUNNING, event))
    assert advance(JobState.RUNNING, JobEvent.SUCCEEDED, cancel_requested=True) is JobState.SUCCEEDED


def test_the_names_users_see_are_plain_words() -> None:
    assert [state.text for state in JobState] == [
        "queued", "running", "succeeded", "failed", "cancelled", "expired", "scheduled", "waiting",
    ]  # fmt: skip
