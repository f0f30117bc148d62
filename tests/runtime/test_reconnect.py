"""How long workers and clients wait before the next try, and for its answer."""

from __future__ import annotations

import pytest

from easyjobs.runtime import reconnect


@pytest.mark.parametrize("refusals", [0, 1, 5, 1000])
def test_a_worker_that_holds_jobs_comes_back_well_within_a_lease_however_often_it_is_sent_away(refusals: int) -> None:
    assert reconnect.cap(30.0, refusals, holds=True) == 7.5


def test_an_idle_worker_waits_longer_each_time_that_it_is_sent_away_up_to_a_lease() -> None:
    assert [reconnect.cap(30.0, refusals, holds=False) for refusals in (0, 1, 2, 3, 4, 1000)] == [7.5, 7.5, 15.0, 30.0, 30.0, 30.0]


def test_patience_doubles_with_each_try_that_got_no_answer_up_to_its_limit() -> None:
    assert [reconnect.patience(10.0, timeouts, 60.0) for timeouts in (0, 1, 2, 3, 1000)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert reconnect.patience(10.0, 5, 4.0) == 10.0
