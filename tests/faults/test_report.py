"""How the fault suite runs its parts, and what it writes of them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults import figures, run
from faults.matrix import Row, Skipped
from faults.report import PROMISES, page, write
from tests.processes import ROOT


def part(name: str, code: str, limit_s: float = 20.0) -> run.Part:
    return run.Part(name, f"what {name} breaks", ("-c", code), limit_s)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("code", "outcome", "figure"),
    [
        ("print('some words'); print('7 of 7')", "held", "7 of 7"),
        ("print('no fuzzer here'); raise SystemExit(77)", "could not run", "no fuzzer here"),
        ("print('seed 3 is wrong'); raise SystemExit(1)", "FAILED", "seed 3 is wrong"),
        ("import os; os.kill(os.getpid(), 9)", "FAILED", ""),
    ],
)
def test_a_part_is_judged_by_its_exit_and_its_last_line(code: str, outcome: str, figure: str, results: Path) -> None:
    told = run.run_part(part("X", code))
    assert (told["outcome"], told["figure"].strip()) == (outcome, figure)
    assert json.loads((results / "X.json").read_text()) == told


def test_a_part_that_does_not_end_has_failed_and_is_ended(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = f"import pathlib, time\nwhile True: pathlib.Path({str(alive)!r}).write_text('x'); time.sleep(0.01)"
    told = run.run_part(part("X", code, limit_s=1.0))
    assert told["outcome"] == "FAILED"
    assert told["figure"].startswith("it did not end within 1 s")
    alive.unlink()
    time.sleep(0.1)
    assert not alive.exists(), "it still runs"


@pytest.mark.parametrize(
    ("why", "outcome"),
    [(None, "held"), (Skipped("no strace"), "could not run"), (AssertionError("job 7 is lost"), "FAILED"), (OSError("x"), "FAILED")],
)
def test_a_row_is_judged_by_what_it_raises(why: Exception | None, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(directory: Path, size: float) -> str:
        assert directory.is_dir()
        if why is not None:
            raise why
        return f"size {size}"

    monkeypatch.setattr(run, "ROWS", {"X": Row("X", "what", body, 60)})
    told = run.run_here("X", 2.0)
    assert told["outcome"] == outcome
    assert ("size 2.0" if why is None else str(why)) in told["figure"]


def test_a_server_that_is_not_installed_is_a_reason_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROWS", {"X": Row("X", "what", lambda *_: pytest.skip("nats-server is not installed"), 60)})
    assert run.run_here("X", 1.0)["outcome"] == "could not run"


def test_all_parts_are_run_and_a_broken_off_run_leaves_no_process(tmp_path: Path) -> None:
    """One lane for what waits, one for what computes; SIGTERM ends both."""
    marks = [tmp_path / "a", tmp_path / "b"]
    code = "import pathlib, sys, time\nwhile True: pathlib.Path(sys.argv[1]).write_text('x'); time.sleep(0.01)"
    program = f"""
from faults import run
from pathlib import Path
run.RESULTS = Path({str(tmp_path)!r}) / "results"
parts = [run.Part("A", "", ("-c", {code!r}, {str(marks[0])!r}), 60), run.Part("B", "", ("-c", {code!r}, {str(marks[1])!r}), 60, computes=True)]
list(run.run(parts))
"""
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        end = time.monotonic() + 30
        while not all(mark.exists() for mark in marks):
            assert time.monotonic() < end, "the two lanes do not run at once"
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        child.wait(60)
    finally:
        child.kill()
        child.wait()
    for mark in marks:
        mark.unlink()
    time.sleep(0.2)
    assert not [mark for mark in marks if mark.exists()], "a part has outlived its run"
    assert {told["name"] for told in run.run([part("C", "print(1)"), part("D", "print(2)")])} == {"C", "D"}


# --- the page -----------------------------------------------------------------------------------------------------------------------


def result(outcome: str = "held", figure: str = "fine", **more: Any) -> dict[str, Any]:
    return {"outcome": outcome, "figure": figure, "took_s": 3.0, "commit": "abc", "at": "2026-01-02", "what": "Something breaks."} | more


def test_the_page_says_what_held_what_failed_and_what_could_not_run() -> None:
    seconds = {"rescue, manager alive": [30.0, 31.0, 39.5]}
    text = page(
        {
            "W1": result(counts={"jobs": 1200, "acknowledged": 1000, "unanswered": 3}, seconds=seconds),
            "M1": result("FAILED", "job 7 | is\nlost"),
            "D2": result("could not run", "strace is not installed"),
        },
        {"machine": "a machine", "took_s": 3600.0},
    )
    assert "1 of 3 parts held, 1 failed (M1), 1 could not run here (D2)." in text
    assert "commit abc, 2026-01-02, 60 minutes, on a machine." in text
    assert "| M1 | Something breaks | **FAILED**: job 7 \\| is lost |" in text
    assert "| D2 | Something breaks | **could not run**: strace is not installed |" in text
    assert "| rescue, manager alive | p99 ≤ 40 s | p50 31.0 s, p99 39.5 s, worst 39.5 s of 3 |" in text
    assert "lost | 0 | see the parts that failed of 1,000 |" in text, "a number that nobody knows must not read 0"
    assert "**M1**" in text
    assert "(D2)" in text


def test_the_page_names_parts_that_are_of_another_commit() -> None:
    text = page({"W1": result(), "W2": result(), "M1": result(commit="def")}, {})
    assert "commit abc" in text
    assert "tried again by itself: M1 at def" in text


def test_the_page_says_when_it_is_not_of_a_whole_run() -> None:
    assert "This is not a whole run: 1 parts have not run (W2)." in page({"W1": result()}, {}, ["W1", "W2"])
    assert "not a whole run" not in page({"W1": result()}, {}, ["W1"])


def test_a_page_needs_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `make faults` first"):
        write(tmp_path, tmp_path / "page.md")


def test_every_promise_names_parts_and_tests_that_there_are() -> None:
    known = {each.name for each in run.parts(1.0)} | set(run.ABSENT)
    for promise in PROMISES:
        assert set(promise.rows) <= known, promise.name
        for test in promise.tests:
            assert (ROOT / test).exists(), test
    assert [promise.name for promise in PROMISES] == [f"P{n}" for n in range(1, 11)]


def test_the_page_in_docs_is_one_that_the_suite_wrote() -> None:
    """Of whichever run: its parts are parts of the suite, or were."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    assert text.startswith("# Guarantees, and how they were tried\n")
    assert re.search(r"This one is of commit [0-9a-f]{7,40}\+?, \d{4}-\d\d-\d\d", text)
    for promise in PROMISES:
        assert f"| {promise.name} | {promise.text} |" in text


# --- figures ------------------------------------------------------------------------------------------------------------------------


def test_counts_and_times_of_rows_are_put_together() -> None:
    counts, seconds = figures.merged(
        [{"counts": {"jobs": 2}, "seconds": {"x": [1.0]}}, {"counts": {"jobs": 3}, "seconds": {"x": [2.0]}}, {}]
    )
    assert (counts["jobs"], seconds["x"]) == (5, [1.0, 2.0])


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_quantile_is_the_nearest_rank(share: float, value: int) -> None:
    assert figures.quantile([float(n) for n in range(100, 0, -1)], share) == value
