"""The part of the fault suite that runs with all other tests: a few seeds, a few power losses, a few rows, and the proof that it sees what it is for."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import faults.rows  # noqa: F401 (registers the rows)
from easyjobs.domain.lifecycle import Back
from easyjobs.domain.lifecycle import JobState as S
from faults.events import Step
from faults.history import Effect, History, Renewal, Row
from faults.invariants import INVARIANTS, judge
from faults.matrix import ABSENT, COVERED, ROWS, Skipped
from faults.mutants import MUTANTS, caught, make
from faults.proxy import frames_of
from faults.sim.__main__ import environment, seeds
from tests.processes import ROOT, until

pytestmark = pytest.mark.timeout(300)


# --- the invariants -----------------------------------------------------------------------------------------------------------------


def a_step(
    n: int, seq: int, old: S | None, state: S, attempt: int, *, at: float, session: int = 1, back: Back = Back.NEVER, **more: object
) -> Step:
    usual = {"round": 1, "failures": 0, "crashes": 0, "cancel_requested": 0, "result": None} | more
    return Step(n, round(at * 1e6), seq, old, state, attempt, session, back, **usual)  # type: ignore[arg-type]


def a_good_history() -> History:
    """Job 1 lost its first worker, ran again and succeeded, and so has a successor, job 2; job 3 is a tick."""
    return History(
        lease_s=30.0,
        acked={"a": "j1"},
        unknown={"u"},
        keyed={"a"},
        published={"m"},
        waiting={"m"},
        successors={"q/first": ("q/second",)},
        helpers={"q/first": "q/helper"},
        ticks={"q/tick": [10_000_000]},
        renewals=[Renewal(1, 1.0)],
        steps=[
            a_step(1, 1, None, S.QUEUED, 0, at=1),
            a_step(2, 1, S.QUEUED, S.RUNNING, 1, at=1),
            a_step(3, 1, S.RUNNING, S.QUEUED, 1, at=32, back=Back.RESCUED, crashes=1),
            a_step(4, 1, S.QUEUED, S.RUNNING, 2, at=33, session=2, crashes=1),
            a_step(5, 1, S.RUNNING, S.SUCCEEDED, 2, at=34, session=2, crashes=1, result=b"1"),
        ],
        effects=[
            Effect("a", "r1", "w1", "start", 1.0, 1, "j1"),
            Effect("a", "r1", "w1", "cancelled", 32.5, 1, "j1"),
            Effect("a", "r2", "w2", "start", 33.0, 2, "j1"),
            Effect("a", "r2", "w2", "done", 34.0, 2, "j1"),
        ],
        rows=[
            Row(1, "j1", "q/first", S.SUCCEEDED, 2, 1, 0, 1, "a", "r2"),
            Row(2, "j2", "q/second", S.EXPIRED, 0, 1, 0, 0, "a", parent_seq=1, edge="run_after:q/second", parent_round=1),
            Row(3, "j3", "q/tick", S.CANCELLED, 0, 1, 0, 0, "", run_at=10_000_000),
        ],
    )


def lost(history: History) -> None:
    del history.rows[0]


def submitted_by_nobody(history: History) -> None:
    history.rows.append(Row(9, "j9", "q/other", S.CANCELLED, 0, 1, 0, 0, "ghost"))


def attempt_used_twice(history: History) -> None:
    history.steps[3:] = [step._replace(attempt=1) for step in history.steps[3:]]


def rescued_under_a_lease(history: History) -> None:
    history.renewals.append(Renewal(1, 20.0))


def taken_while_it_ran(history: History) -> None:
    history.steps.insert(2, a_step(2, 1, S.RUNNING, S.RUNNING, 1, at=2, session=7)._replace(n=2))
    history.steps[2] = history.steps[2]._replace(n=3)


def ran_on_for_long(history: History) -> None:
    history.effects[1] = replace(history.effects[1], at=60.0)
    history.effects[3] = replace(history.effects[3], at=61.0)


def end_left(history: History) -> None:
    history.steps.append(a_step(6, 1, S.SUCCEEDED, S.QUEUED, 2, at=35))


def result_changed(history: History) -> None:
    history.steps.append(a_step(6, 1, S.SUCCEEDED, S.SUCCEEDED, 2, at=35, result=b"2"))


def result_of_the_loser(history: History) -> None:
    history.rows[0] = replace(history.rows[0], run="r1")


def result_of_another_job(history: History) -> None:
    history.effects[3] = replace(history.effects[3], job="j7")


def successor_lost(history: History) -> None:
    del history.rows[1]


def successor_twice(history: History) -> None:
    history.rows.append(replace(history.rows[1], seq=4, id="j4"))


def helper_without_a_failure(history: History) -> None:
    history.rows.append(replace(history.rows[1], seq=4, id="j4", edge="on_failure:q/helper"))


def tick_lost(history: History) -> None:
    history.ticks["q/tick"].append(20_000_000)


def tick_twice(history: History) -> None:
    history.rows.append(replace(history.rows[2], seq=4, id="j4"))


def key_twice(history: History) -> None:
    history.rows.append(replace(history.rows[0], seq=4, id="j4", task="q/other"))


def ran_twice_in_one_attempt(history: History) -> None:
    history.effects += [Effect("a", "r3", "w3", "start", 34.5, 2, "j1"), Effect("a", "r3", "w3", "done", 34.6, 2, "j1")]


def tried_for_ever(history: History) -> None:
    history.rows[0] = replace(history.rows[0], crashes=7, max_crashes=3)


def left_over(history: History) -> None:
    history.rows[1] = replace(history.rows[1], state=S.RUNNING)


def message_lost(history: History) -> None:
    history.waiting.clear()


BROKEN: dict[Callable[[History], None], str] = {
    lost: "I1", submitted_by_nobody: "I2", attempt_used_twice: "I3", rescued_under_a_lease: "I4", taken_while_it_ran: "I4", ran_on_for_long: "I5",
    end_left: "I6", result_changed: "I7", result_of_the_loser: "I7", result_of_another_job: "I7", successor_lost: "I8", successor_twice: "I8", helper_without_a_failure: "I8",
    tick_lost: "I9", tick_twice: "I9", key_twice: "I10", ran_twice_in_one_attempt: "I11", tried_for_ever: "I11", left_over: "I12", message_lost: "I13",
}  # fmt: skip


def test_a_history_that_kept_the_contract_passes() -> None:
    assert judge(a_good_history()) == []
    assert set(BROKEN.values()) == INVARIANTS.keys(), "an invariant that nothing shows to bite"


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_each_broken_promise_is_seen_by_its_invariant(breaks: Callable[[History], None]) -> None:
    history = a_good_history()
    breaks(history)
    assert BROKEN[breaks] in {wrong.split(":")[0] for wrong in judge(history)}


# --- the parts ----------------------------------------------------------------------------------------------------------------------


def test_the_proxy_takes_whole_frames_only() -> None:
    small = b"\x82\x03abc"
    masked = b"\x82\x83mask" + b"xyz"
    large = b"\x82\x7e" + struct.pack(">H", 300) + bytes(300)
    huge = b"\x82\x7f" + struct.pack(">Q", 70_000) + bytes(70_000)
    buffer = bytearray()
    found = []
    for byte in small + masked + large + huge + small[:-1]:
        buffer.append(byte)
        found += list(frames_of(buffer))
    assert found == [small, masked, large, huge]
    assert buffer == small[:-1]


def test_every_row_of_the_matrix_is_there_once_or_says_why_not() -> None:
    names = [*ROWS, *COVERED, *ABSENT]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", COVERED)
def test_what_shows_a_row_is_there(name: str) -> None:
    place, *options = shlex.split(COVERED[name].tests)
    file, _, test = place.partition("::")
    names = re.findall(r"^(?:async )?def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    assert test in ("", *names), f"{file} has no {test}"
    assert options[:1] in ([], ["-k"])
    for word in re.findall(r"\w+", " ".join(options[1:])):
        assert word in ("and", "or", "not") or any(word in each for each in names), f"{file} has no test with {word} in its name"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_still_applies(mutant: object, tmp_path: Path) -> None:
    make(mutant, tmp_path)  # type: ignore[arg-type]


# --- some of it ---------------------------------------------------------------------------------------------------------------------


def test_a_seed_replays() -> None:
    code = "from faults.sim.world import *\nfor s in (4, 9, 4): print(simulate(Plan.of(s)).fingerprint, flush=True)\nos._exit(0)"
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True, cwd=ROOT, timeout=200
    )
    first, other, again = run.stdout.split()
    assert first == again != other


def test_some_seeds_of_the_simulation_hold() -> None:
    told = list(seeds(1000, 1010, processes=1, paths=str(ROOT)))
    assert [each["seed"] for each in told] == list(range(1000, 1010))
    assert not [each for each in told if each["wrong"] or each["crashes"]]


def the_simulation(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "faults.sim", *options]
    return subprocess.Popen(command, env={**environment(), "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_report_says_what_was_run(tmp_path: Path) -> None:
    with the_simulation("--seeds", "1003:1006", "--json", str(tmp_path / "report")) as run:
        assert run.wait(120) == 0
    report = json.loads((tmp_path / "report").read_text())
    assert report.keys() == {"seeds", "failed", "jobs", "runs", "virtual_s", "seconds", "seeds_per_minute"}
    assert (report["seeds"], report["failed"]) == (3, [])
    assert report["jobs"] >= 3 * 150
    assert report["runs"] >= report["jobs"]
    assert report["virtual_s"] > 3 * 60
    assert report["seeds_per_minute"] == pytest.approx(3 / report["seconds"] * 60, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="which processes a process has started is read from /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_when_the_simulation_is_told_to_end_its_processes_end(how: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report"
    with the_simulation("--seeds", "0:100000", "--json", str(report)) as run:
        of_it = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        try:
            children = until("it has two children", lambda: found if len(found := of_it.read_text().split()) == 2 else None)
            run.send_signal(how)
            status = run.wait(20)
            until("they have ended", lambda: not any(is_running(child) for child in children))
        finally:
            run.kill()
    assert status == (-how if how is signal.SIGKILL else 128 + how)
    assert report.exists() == (how is not signal.SIGKILL)


def is_running(pid: str) -> bool:
    """Whether it is there, and not only waits for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_a_power_loss_loses_nothing_that_was_acknowledged_unless_durability_is_relaxed(durability: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "faults.powerloss", "--seeds", "0:30", "--durability", durability]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken databases" in run.stdout
    assert (" 0 lost in" in run.stdout) == (durability == "full"), run.stdout


def test_a_mutant_is_caught() -> None:
    assert caught(MUTANTS[3]), MUTANTS[3].name


@pytest.mark.parametrize("name", ["W1", "N1", "N7", "D2", "R4"])
def test_a_row_holds(name: str, tmp_path: Path) -> None:
    try:
        ROWS[name].run(tmp_path, 0.5)
    except Skipped as why:
        pytest.skip(str(why))
