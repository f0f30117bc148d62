from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from easyjobs.protocol.held import digest_of

ATTEMPTS = st.sets(st.tuples(st.integers(1, 2**53), st.integers(1, 2**31)), max_size=30)


@given(ATTEMPTS, st.randoms())
def test_the_digest_does_not_depend_on_the_order(attempts: set[tuple[int, int]], random: object) -> None:
    order = list(attempts)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert digest_of(order) == digest_of(attempts)
    assert 0 <= digest_of(attempts) < 2**63


@given(ATTEMPTS, ATTEMPTS)
def test_different_sets_have_different_digests(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> None:
    assert (digest_of(one) == digest_of(other)) == (one == other)


def test_sets_with_the_same_sums_have_different_digests() -> None:
    assert digest_of([(1, 1), (4, 1)]) != digest_of([(2, 1), (3, 1)])
    assert digest_of([(1, 2), (2, 1)]) != digest_of([(1, 1), (2, 2)])
    assert digest_of([]) == 0
