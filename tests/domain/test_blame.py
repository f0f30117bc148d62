"""On whom a worker's death is blamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain.blame import SPARED_UNTIL, is_blamed, is_suspect


@pytest.mark.parametrize(
    ("crashes", "max_crashes", "suspect"),
    [(0, 3, False), (1, 3, False), (2, 3, True), (5, 3, True), (0, 1, False), (1, 1, True), (1, 2, True)],
)
def test_a_suspect_has_crashed_and_has_its_last_chance(crashes: int, max_crashes: int, suspect: bool) -> None:
    assert is_suspect(crashes, max_crashes) is suspect


@pytest.mark.parametrize(
    ("crashes", "began_at", "blamed"),
    [
        (0, 9, False),
        (1, 9, False),
        (2, 9, True),  # its last chance, and nobody began later
        (2, 8, False),  # another one did
        (4, 8, False),  # and again
        (5, 8, True),  # twice as often as it may
    ],
)
def test_the_suspect_that_began_last_is_blamed_and_nobody_is_spared_for_ever(crashes: int, began_at: int, blamed: bool) -> None:
    assert is_blamed(crashes, 3, began_at, session=1, last_began={1: 9, 2: 99}) is blamed


def test_without_suspects_the_budget_alone_decides() -> None:
    assert is_blamed(0, 1, 5, 1, {})
    assert not is_blamed(1, 3, 5, 1, {})


def test_a_job_that_is_not_to_run_again_after_a_crash_is_not_spared() -> None:
    assert is_blamed(0, 1, 5, 1, {1: 9})


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6))
def test_each_death_that_a_last_chance_shared_ends_one_and_no_job_outlives_twice_its_budget(jobs: list[tuple[int, int, int]]) -> None:
    suspects = [began_at for crashes, max_crashes, began_at in jobs if is_suspect(crashes, max_crashes)]
    last_began = {7: max(suspects)} if suspects else {}
    blamed = [is_blamed(*job, 7, last_began) for job in jobs]
    if suspects:
        assert any(is_over and is_suspect(*job[:2]) for is_over, job in zip(blamed, jobs, strict=True))
    for is_over, (crashes, max_crashes, _) in zip(blamed, jobs, strict=True):
        assert is_over or crashes + 1 < max(2, SPARED_UNTIL * max_crashes)
        assert not is_over or crashes + 1 >= max_crashes
