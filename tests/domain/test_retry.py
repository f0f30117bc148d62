from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain.retry import NEVER, RETRY_ALWAYS, RETRY_ONCE, RetryPolicy, parse
from easyjobs.errors import RegistrationError


@pytest.mark.parametrize(
    ("written", "meant"), [("never", NEVER), ("retry_once", RETRY_ONCE), ("retry_always", RETRY_ALWAYS), ("always", RETRY_ALWAYS)]
)
def test_names_of_policies_are_understood(written: str, meant: RetryPolicy) -> None:
    assert parse(written) is meant


def test_a_number_is_that_many_retries_with_backoff() -> None:
    policy = parse(5)
    assert (policy.max_retries, policy.backoff) == (5, "exponential")
    assert parse(0).retries(ValueError()) is False


def test_a_policy_is_taken_as_it_is() -> None:
    policy = RetryPolicy(max_retries=7, backoff="linear")
    assert parse(policy) is policy


@pytest.mark.parametrize("written", ["retry_twice", "", "Never", None, 1.5, True, ["never"]])
def test_anything_else_is_refused_and_the_names_are_listed(written: Any) -> None:
    with pytest.raises(RegistrationError, match="never, retry_once, retry_always, always"):
        parse(written)


def test_retry_once_retries_at_once_and_always_has_no_end() -> None:
    assert (RETRY_ONCE.max_retries, RETRY_ONCE.delay(1, 0.5)) == (1, 0.0)
    assert RETRY_ALWAYS.max_retries == -1
    assert NEVER.retries(ValueError()) is False


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_always_backs_off_from_a_second_to_five_minutes(failures: int, random: float) -> None:
    delay = RETRY_ALWAYS.delay(failures, random)
    full = min(300.0, 2.0 ** min(failures - 1, 60))
    assert full / 2 <= delay <= full


@given(
    st.sampled_from(["none", "fixed", "linear", "exponential"]),
    st.integers(1, 100),
    st.floats(0.001, 1000),
    st.floats(1, 100),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_no_delay_is_negative_or_over_the_cap_and_none_shrinks(
    backoff: Any, failures: int, base: float, factor: float, jitter: float, random: float
) -> None:
    policy = RetryPolicy(backoff=backoff, base=base, cap=base * factor, jitter=jitter)
    assert 0 <= policy.delay(failures, random) <= policy.cap
    assert policy.delay(failures, random) <= policy.delay(failures + 1, random)


def test_retry_on_and_give_up_on_choose_the_exceptions() -> None:
    policy = RetryPolicy(retry_on=(OSError,), give_up_on=(FileNotFoundError,))
    assert policy.retries(ConnectionError())
    assert not policy.retries(FileNotFoundError())
    assert not policy.retries(ValueError())


def test_a_failure_is_counted_from_one() -> None:
    with pytest.raises(ValueError, match="failures=0"):
        RETRY_ALWAYS.delay(0, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_retries": -2},
        {"max_retries": True},
        {"max_retries": 1.5},
        {"backoff": "quadratic"},
        {"base": 0},
        {"base": 10, "cap": 5},
        {"jitter": 1.5},
        {"retry_on": ValueError},
        {"give_up_on": ("ValueError",)},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RegistrationError):
        RetryPolicy(**wrong)


def test_a_negative_number_of_retries_is_refused_and_the_endless_policy_is_named() -> None:
    with pytest.raises(RegistrationError, match="retry_always"):
        parse(-1)
