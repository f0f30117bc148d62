"""docs/guarantees.md, from the results of a run: what is promised, how it is kept, what shows it, and what came out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.figures import merged, quantile
from faults.matrix import ABSENT

Results = Mapping[str, Mapping[str, Any]]  # by the part's name: outcome, figure, took_s, commit, at, counts, seconds


@dataclass(frozen=True, slots=True)
class Promise:
    """A line of the delivery contract. `rows`: the parts of the suite that try to break it; `tests`: what `make test` has for it."""

    name: str
    text: str
    mechanism: str
    rows: tuple[str, ...]
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "P1", "An answer, an ack to a broker and an ack to a worker are sent only when what they confirm is on the disk",
        "one commit for each batch, `synchronous=FULL` or `synchronous_commit=on`, and the answers after it",
        ("POWER", "RELAXED", "M1", "D1", "D2", "D5", "P1", "P2", "P3", "B1", "B3", "X1", "X2", "SIM"), ("tests/faults/test_manager_faults.py",),
    ),
    Promise(
        "P2", "A job that was accepted runs until it has an end; it may start more than once, never not at all",
        "leases of sessions, renewed every third of their length; the rescuer puts back what an ended lease held",
        ("W1", "W1L", "W3", "N2", "M4", "R1", "X1", "X2", "SIM"), ("tests/faults/test_worker_faults.py",),
    ),
    Promise(
        "P3", "A round of a job has one end, and its result is written once",
        "a fence of (job, attempt, session), checked by the statement that writes the end",
        ("W3", "N6", "R2", "X1", "X2", "SIM", "MUTANTS"), ("tests/contracts/store_contract.py", "tests/domain/test_lifecycle.py"),
    ),
    Promise(
        "P4", "One lease a job: what outlives its lease is refused, and a worker that cannot renew stops by itself",
        "claiming takes only queued jobs, in one statement; workers know when their lease ends by their own monotonic clock",
        ("W3", "W4", "W9", "M3", "N2", "N3", "X1", "X2", "SIM"), ("tests/workers/test_link.py",),
    ),
    Promise(
        "P5", "Successors and on_failure jobs are born once for each end",
        "in the transaction of that end, unique by (parent, edge, round)",
        ("R1", "M4", "X1", "X2", "SIM", "MUTANTS"), ("tests/faults/test_flow_faults.py",),
    ),
    Promise(
        "P6", "A submit with an idempotency key is one job, however often it is sent",
        "the key's row in the transaction of the job, with the hash of the body",
        ("R6", "M1", "X1", "SIM", "MUTANTS"), ("tests/services/test_intake.py", "tests/contracts/store_contract.py"),
    ),
    Promise(
        "P7", "A schedule fires once a tick over all managers and restarts",
        "a unique row of (schedule, tick) in the transaction of the job",
        ("C1", "C2", "C3", "C4", "X1", "X2", "SIM", "MUTANTS"), ("tests/faults/test_schedule_faults.py", "tests/domain/test_cron.py"),
    ),
    Promise(
        "P8", "A broker's message becomes a job, or is put aside where it can be seen, before the broker is told to forget it",
        "job or quarantine row, then commit, then ack; the message's id is an idempotency key",
        ("B1", "B2", "B2L", "B3", "B4", "B5", "B6", "SIM"), ("tests/faults/test_broker_faults.py", "tests/services/test_consumer.py"),
    ),
    Promise(
        "P9", "A manager that is away, or stands still, costs nothing but time",
        "workers go on and keep their reports; a manager that comes back waits one lease before it takes anything away",
        ("M2", "M3", "M4", "M5", "N4", "N9", "X1", "X2"), ("tests/faults/test_manager_faults.py",),
    ),
    Promise(
        "P10", "Not promised: an order over all jobs, effects of bodies exactly once (`idempotency_key` helps), disks that lie about fsync",
        "", ("RELAXED",), (),
    ),
)  # fmt: skip


NONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("false rescues: of workers that live, behind a bad link, a slow disk or a busy loop, or that were stopped for half a lease", ("W4", "W5", "N5", "D3", "M6", "P4")),
    ("jobs that ran twice without a fault, or when only the manager had one", ("R3", "M2", "M5", "N9", "W10")),
)  # fmt: skip


def write(results: Path, target: Path, known: Collection[str] = ()) -> None:
    """Write the page from the JSON files of a run. `known`: all parts that there are. Raises: ValueError if there are none."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json")) if not file.stem.startswith("_")}
    if not found:
        raise ValueError(f"there are no results in {results}: run `make faults` first")
    about = results / "_run.json"
    target.write_text(page(found, json.loads(about.read_text()) if about.exists() else {}, known))


def page(results: Results, about: Mapping[str, Any], known: Collection[str] = ()) -> str:
    """`about`: `machine` and `took_s` of the whole run, absent if the results are of several."""
    failed = [name for name, result in results.items() if result["outcome"] == "FAILED"]
    skipped = [name for name, result in results.items() if result["outcome"] == "could not run"]
    held = len(results) - len(failed) - len(skipped)
    lines = [
        "# Guarantees, and how they were tried", "",
        f"`make faults` writes this page. {_origin(results, about)}", "",
        f"{held} of {len(results)} parts held, {len(failed)} failed{_names(failed)}, {len(skipped)} could not run here{_names(skipped)}.{_missing(results, known)}",
        "[delivery.md](delivery.md) explains the promises, [testing.md](testing.md) the suite: real processes are killed, stopped, cut off and filled up, and what three",
        "witnesses saw (the clients, the bodies of the tasks, and triggers in the database) is held against the invariants of `faults/invariants.py`.", "",
        "## Promises", "",
        "| | promise | kept by | tried by | also shown by |", "|---|---|---|---|---|",
        *[_promise(promise, results) for promise in PROMISES], "",
        "**Bold** is what failed, (…) what could not run or has not run.", "",
        "## Figures of this run", "",
        "| what | goal | measured |", "|---|--:|--:|",
        *[f"| {what} | {goal} | {measured} |" for what, goal, measured in figures(results)], "",
        "## Every part", "",
        "| | what is broken | result |", "|---|---|---|",
        *[_line(name, result) for name, result in results.items()], "",
    ]  # fmt: skip
    if ABSENT:
        lines += ["## What is not there", "", "| | why |", "|---|---|", *[f"| {name} | {why} |" for name, why in ABSENT.items()], ""]
    return "\n".join(lines)


def _origin(results: Results, about: Mapping[str, Any]) -> str:
    commits = Counter(str(result["commit"]) for result in results.values())
    main, _ = commits.most_common(1)[0]
    others = [f"{name} at {result['commit']}" for name, result in results.items() if result["commit"] != main]
    days = sorted({str(result["at"]) for result in results.values()})
    told = f"This one is of commit {main}, {' to '.join(sorted({days[0], days[-1]}))}"
    if about.get("took_s"):
        told += f", {about['took_s'] / 60:.0f} minutes"
    if about.get("machine"):
        told += f", on {about['machine']}"
    return told + ("." if not others else f"; tried again by itself: {', '.join(others)}.")


def _missing(results: Results, known: Collection[str]) -> str:
    missing = [name for name in known if name not in results]
    return f" This is not a whole run: {len(missing)} parts have not run{_names(missing)}." if missing else ""


def _names(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _promise(promise: Promise, results: Results) -> str:
    def shown(name: str) -> str:
        outcome = results.get(name, {}).get("outcome")
        return name if outcome == "held" else f"**{name}**" if outcome == "FAILED" else f"({name})"

    tests = ", ".join(f"`{test}`" for test in promise.tests)
    return f"| {promise.name} | {promise.text} | {promise.mechanism} | {' '.join(map(shown, promise.rows))} | {tests} |"


def _line(name: str, result: Mapping[str, Any]) -> str:
    figure = " ".join(str(result["figure"]).replace("|", "\\|").split())
    outcome = "" if result["outcome"] == "held" else f"**{result['outcome']}**: "
    return f"| {name} | {str(result.get('what', '')).removesuffix('.')} | {outcome}{figure[:600]} |"


def figures(results: Results) -> list[tuple[str, str, str]]:
    """What, goal, measured: over all parts that held. A part that failed is counted nowhere; the page says that it failed."""
    counts, seconds = merged([result for result in results.values() if result["outcome"] == "held"])
    failed = any(result["outcome"] == "FAILED" for result in results.values())
    none = "see the parts that failed" if failed else "0"
    lines = [
        ("jobs whose whole history was judged, in real processes under faults", "200,000", f"{counts['jobs']:,}"),
        ("… of them under chaos (X1, X2)", "200,000", f"{counts['chaos jobs']:,}"),
        ("… acknowledged to a client, and lost", "0", f"{none} of {counts['acknowledged']:,}"),
        ("… with two ends in a round, or with a result that changed", "0", none),
        ("… successors and ticks that were lost or doubled", "0", none),
        ("submits that got no answer: each is one job, or none", "", f"{counts['unanswered']:,}"),
        ("runs of bodies; those that were repeated, after a fault", "", f"{counts['runs']:,}; {counts['runs that were repeated']:,}"),
    ]
    lines += [(f"{what} ({' '.join(rows)})", "0", _none_in(rows, results)) for what, rows in NONE]
    for name in sorted(seconds):
        goal = "p99 ≤ 40 s" if name.startswith("rescue,") else ""
        lines.append((name, goal, _spread(seconds[name])))
    for name, what, goal in (
        ("POWER", "power losses, at any point", "0 lost in 1,000"),
        ("RELAXED", 'the same with `durability="relaxed"`: the test bites', "some lost"),
        ("SIM", "simulated runs: 3 managers, 5 workers, 200 jobs, faults", "0 failed"),
        ("MUTANTS", "broken versions of the code that the suite has caught", "12/12"),
        ("FUZZ", "inputs of a fuzzer", "0 stumbled"),
    ):
        if name in results:
            lines.append((what, goal, _line("", results[name]).split(" | ")[2].removesuffix(" |")))
    return lines


def _none_in(rows: Sequence[str], results: Results) -> str:
    """Each of these rows asserts that there was none."""
    missing = [name for name in rows if results.get(name, {}).get("outcome") != "held"]
    return f"not shown by {' '.join(missing)}" if missing else "0"


def _spread(values: Sequence[float]) -> str:
    def text(value: float) -> str:
        return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"

    return f"p50 {text(quantile(values, 0.5))}, p99 {text(quantile(values, 0.99))}, worst {text(max(values))} of {len(values):,}"
