from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain import seeing
from easyjobs.domain.seeing import Ledger, Line, StateChanged, enter, place_of, place_text, size_of


def line(number: int, text: str = "x", attempt: int = 1) -> Line:
    return Line(1, attempt, number, 0, 20, "app", text)


def test_lines_are_entered_once_in_their_order() -> None:
    ledger = Ledger()
    assert enter(ledger, [line(1), line(2)]) == [line(1), line(2)]
    assert enter(ledger, [line(2), line(3), line(1, attempt=2), line(9)]) == [line(3), line(1, attempt=2)]
    assert (ledger.lines, ledger.attempt, ledger.number, ledger.dropped) == (4, 2, 1, 0)


def test_numbers_that_are_missing_are_no_matter() -> None:
    assert len(enter(Ledger(), [line(5), line(90)])) == 2


def test_a_log_that_is_full_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "MAX_JOB_LINES", 2)
    ledger = Ledger()
    kept = enter(ledger, [line(n) for n in range(1, 6)])
    assert [one.number for one in kept] == [1, 2, 3]
    assert (kept[2].level, kept[2].text) == (30, seeing.FULL)
    assert enter(ledger, [line(6)]) == []
    assert (ledger.lines, ledger.dropped) == (2, 4)


def test_bytes_count_as_utf_8_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "MAX_JOB_BYTES", 10)
    ledger = Ledger()
    assert [one.text for one in enter(ledger, [line(1, "éé"), line(2, "1234"), line(3, "")])] == ["éé", seeing.FULL, ""]
    assert (ledger.bytes, ledger.dropped) == (10, 1)
    assert size_of(line(1, "éé")) == 7


@given(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
def test_a_place_is_read_as_it_was_written(place: tuple[int, int]) -> None:
    assert place_of(place_text(place)) == place
    assert place_of(place_text(place) + ".end") == place


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "a.b", "-1.2", "1.-2", "²·³", "².1", "9" * 30 + ".1", "1 .2"])
def test_what_is_no_place_is_none(text: str) -> None:
    assert place_of(text) is None


def test_a_state_knows_whether_it_is_final() -> None:
    assert StateChanged("cancelled", 1).is_final
    assert not StateChanged("queued", 1).is_final
