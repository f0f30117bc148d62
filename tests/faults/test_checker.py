"""The checker itself: a history that kept the contract passes, and each way of breaking it is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.faults.checker import Effect, Fault, History, check, read_effects


def a_run(token: str, run: str, pid: int, start: float, end: float | None, what: str = "done", attempt: int = 1) -> list[Effect]:
    lines = [Effect(token, run, pid, "start", start, attempt)]
    return lines if end is None else [*lines, Effect(token, run, pid, what, end, attempt)]


def a_good_history() -> History:
    """Job a succeeded at once; b was killed with its worker and ran again after the lease; c was given back and ran elsewhere."""
    return History(
        lease_s=3.0,
        acked={"a": "1", "b": "2", "c": "3"},
        unknown={"d"},
        effects=[
            *a_run("a", "a1", 10, 1.0, 2.0),
            *a_run("b", "b1", 11, 1.0, None),
            *a_run("b", "b2", 10, 8.0, 9.0, attempt=2),
            *a_run("c", "c1", 10, 1.0, 2.0, "cancelled"),
            *a_run("c", "c2", 12, 2.1, 3.0, attempt=2),
            *a_run("d", "d1", 12, 4.0, 5.0),
        ],
        faults=[Fault(11, 4.0, kills=True)],
        ends={
            "1": {"status": "succeeded", "attempt": 1, "result": {"token": "a", "run": "a1"}},
            "2": {"status": "succeeded", "attempt": 2, "result": {"token": "b", "run": "b2"}},
            "3": {"status": "succeeded", "attempt": 2, "result": {"token": "c", "run": "c2"}},
        },
    )


def test_a_history_that_kept_the_contract_passes() -> None:
    assert check(a_good_history()) == []


def test_a_job_whose_child_was_killed_may_run_again_at_once() -> None:
    history = a_good_history()
    history.faults = [Fault(11, 4.0, kills=True, is_child=True)]
    history.effects = [replace(effect, at=effect.at - 3.9) if effect.run == "b2" else effect for effect in history.effects]
    assert check(history) == []


def lost(history: History) -> None:
    del history.ends["1"]


def never_final(history: History) -> None:
    history.ends["1"] = {**history.ends["1"], "status": "running"}


def final_twice(history: History) -> None:
    history.acked["e"] = "1"


def run_without_a_submit(history: History) -> None:
    history.effects += a_run("ghost", "g1", 10, 5.0, 6.0)


def result_of_nobody(history: History) -> None:
    history.ends["2"] = {**history.ends["2"], "result": {"token": "b", "run": "b9"}}


def result_of_an_attempt_that_was_killed(history: History) -> None:
    history.ends["2"] = {**history.ends["2"], "result": {"token": "b", "run": "b1"}}


def succeeded_without_running(history: History) -> None:
    history.effects = [effect for effect in history.effects if effect.token != "a"]


def ran_twice_without_a_fault(history: History) -> None:
    history.effects += a_run("a", "a2", 12, 5.0, 6.0, attempt=2)
    history.ends["1"] = {**history.ends["1"], "attempt": 2}


def attempt_number_repeated(history: History) -> None:
    history.effects = [replace(effect, attempt=1) if effect.run == "b2" else effect for effect in history.effects]


def more_starts_than_attempts(history: History) -> None:
    history.ends["3"] = {**history.ends["3"], "attempt": 1}


def rescued_before_the_lease_ended(history: History) -> None:
    history.effects = [replace(effect, at=effect.at - 2.5) if effect.run == "b2" else effect for effect in history.effects]


def two_attempts_at_once(history: History) -> None:
    """The first attempt's worker was only stopped, and the second one began under its lease."""
    history.faults = [Fault(11, 7.0, kills=False)]
    history.effects += [Effect("b", "b1", 11, "done", 12.0, 1)]


def released_while_still_running(history: History) -> None:
    history.effects = [
        replace(effect, at=2.9) if (effect.run, effect.what) == ("c1", "cancelled") else effect for effect in history.effects
    ]


def fault_of_another_worker(history: History) -> None:
    history.faults = [Fault(12, 4.0, kills=True)]


def a_child_excuses_nothing_before_it_was_killed(history: History) -> None:
    history.faults = [Fault(11, 9.0, kills=True, is_child=True)]


@pytest.mark.parametrize(
    "breaks",
    [
        lost, never_final, final_twice, run_without_a_submit, result_of_nobody, result_of_an_attempt_that_was_killed, succeeded_without_running,
        ran_twice_without_a_fault, attempt_number_repeated, more_starts_than_attempts, rescued_before_the_lease_ended, two_attempts_at_once,
        released_while_still_running, fault_of_another_worker, a_child_excuses_nothing_before_it_was_killed,
    ],
)  # fmt: skip
def test_a_broken_promise_is_seen(breaks: Callable[[History], None]) -> None:
    history = a_good_history()
    breaks(history)
    assert check(history)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(asdict(Effect("a", "a1", 1, "start", 1.0)))
    (tmp_path / "effects").write_text(whole + "\n" + whole[:20])
    assert read_effects(tmp_path / "effects") == [Effect("a", "a1", 1, "start", 1.0)]
