"""What is done to a database while it is in use: old jobs are deleted, it is made compact, it is copied; and an older copy is put back."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from easyjobs.domain.lifecycle import JobState
from faults import figures
from faults.cluster import Site, reruns, site, tokens
from faults.figures import quantile
from faults.history import History
from faults.invariants import judge
from faults.matrix import row
from faults.rows.database import LOSES
from tests.processes import ROOT, clean_environment, until

OLD = 1_500  # jobs at size 1 that are there to be deleted
PACE_S = 0.02


class Clock:
    """Submits one job after another, by several threads, and notes how long each took."""

    def __init__(self, place: Site, threads: int = 3) -> None:
        self.place = place
        self.took: list[float] = []
        self.refused: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._submit, args=(number,)) for number in range(threads)]

    def _submit(self, number: int) -> None:
        n = 0
        while not self._done.wait(PACE_S * len(self._threads)):
            n += 1
            began = time.monotonic()
            try:
                self.place.submit("work", f"clock-{number}-{n}")
            except (OSError, AssertionError) as why:
                self.refused.append(str(why))
            self.took.append(time.monotonic() - began)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def since(self, first: int) -> list[float]:
        """What those took that were answered since then."""
        until("a few were answered", lambda: len(self.took) > first + 5, 30)
        return self.took[first:]


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as db:
        yield db


def _back_up(file: Path, to: Path) -> None:
    """SQLite's own online backup, as docs/operation.md has it."""
    with _opened(file) as db, _opened(to) as copy:
        db.backup(copy)


def _db_check(file: Path) -> None:
    """`easyjobs db check` finds nothing. Raises: AssertionError with what it says."""
    command = [sys.executable, "-m", "easyjobs", "db", "check", "--full", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment(), cwd=ROOT)
    assert told.returncode == 0, told.stdout + told.stderr


@row("S2")
def looked_after_under_load(directory: Path, size: float) -> str:
    """Old jobs are deleted, the SQLite file is made compact and copied, under load; then a copy of before is put back, while a worker runs jobs of the newer time: none is taken for another one."""
    with site(directory / "upkeep") as place:
        told = [_upkeep(place, size, directory)]
    with site(directory / "restore") as place:
        told.append(_restore(place, size, directory))
    return "; ".join(told)


def _upkeep(place: Site, size: float, directory: Path) -> str:
    place.start_worker(slots=20)
    for n in range(round(OLD * size / 500)):
        place.submit_many("work", tokens(f"old{n}-", 500))
    place.settle(120 * max(1.0, size))
    place.manager.stop()
    place.start_manager(EASYJOBS_KEEP_SUCCEEDED_S="1")  # whose first look at old jobs is now
    told = []
    backup, compact = directory / "backup.db", directory / "compact.db"
    with Clock(place) as clock, _opened(place.file) as db:
        steps: dict[str, Callable[[], object]] = {
            "retention": lambda: until("the old ones are gone", lambda: _old(db) == 0, 90, 0.1),
            "backup": lambda: _back_up(place.file, backup),
            "vacuum into": lambda: db.execute("vacuum into ?", [str(compact)]),
            "vacuum": lambda: db.execute("vacuum"),
        }
        for name, step in steps.items():
            took, lasted = [], 0.0
            for _ in range(max(1, round(3 * size)) if name != "retention" else 1):
                for left in (backup, compact):
                    left.unlink(missing_ok=True)
                first, began = len(clock.took), time.monotonic()
                step()
                lasted = max(lasted, time.monotonic() - began)
                took += clock.since(first)
            figures.took(f"submit during {name}", *took)
            told.append(f"{name} {lasted:.1f} s, submit p50 {quantile(took, 0.5) * 1000:.0f} ms, at worst {max(took) * 1000:.0f} ms")
            for copy in (backup, compact):
                if copy.exists():
                    _db_check(copy)
    assert not clock.refused, clock.refused[:5]
    place.settle(60)
    history = place.told()
    wrong = [*_wrong_with_deleted(history), *(each for each in judge(history) if each.partition(":")[0] not in ("I1", "I2"))]
    assert not wrong, "\n".join(wrong[:20])
    assert reruns(history) == 0, f"{reruns(history)} reruns"
    figures.count("acknowledged", len(history.acked))
    return f"{', '.join(told)}; {len(history.acked)} acked, each ran once, {len(history.acked) - len(history.rows)} deleted after their end"


def _old(db: sqlite3.Connection) -> int:
    return int(db.execute("select count(*) from jobs where cast(args as text) like '%\"old%'").fetchone()[0])


def _wrong_with_deleted(history: History) -> Iterator[str]:
    """Each acknowledged job ran to its end; those that are not there any more were deleted, after that."""
    done = {effect.token for effect in history.effects if effect.what == "done"}
    there = {row.id for row in history.rows}
    last = {step.seq: step for step in history.steps}
    deleted = [step for step in last.values() if step.state is None]
    for token, job in history.acked.items():
        if token not in done:
            yield f"{token}: acknowledged, and never ran"
        if job in there and next(row.state for row in history.rows if row.id == job) != JobState.SUCCEEDED:
            yield f"{token}: not succeeded at the end"
    gone = sum(job not in there for job in history.acked.values())
    if gone > len(deleted):
        yield f"{gone} jobs are not there, and {len(deleted)} were deleted"
    for step in deleted:
        if step.old_state != JobState.SUCCEEDED:
            yield f"job {step.seq}: deleted while it was {step.old_state}"


def _restore(place: Site, size: float, directory: Path) -> str:
    worker = place.start_worker(slots=130)
    count = round(40 * size)
    place.submit_many("work", tokens("before", count))
    place.submit_many("first", tokens("chain", count // 2))
    place.submit_many("work", tokens("through", 30), seconds=6.0)  # run when the copy is made, and when it is put back
    place.until_effect("through29")
    before = dict(place.history.acked)
    _back_up(place.file, directory / "older.db")
    place.submit_many("work", tokens("lost", count))  # all of them have ended
    place.submit_many("work", tokens("long", 30), seconds=5.0)  # run while the copy is put back
    place.until_effect("long29")
    place.until_effect(f"lost{count - 1}", "done")
    place.manager.kill()
    _db_check(directory / "older.db")
    for end in ("", "-wal", "-shm"):
        place.file.with_name(place.file.name + end).unlink(missing_ok=True)
    (directory / "older.db").rename(place.file)
    began = time.monotonic()
    place.start_manager()
    until("the worker is back", lambda: place.is_connected(worker), 30)
    other = tokens("other", 80)
    place.submit_many("work", other, seconds=1.0)  # whose numbers could be those of the long ones, which the worker still has
    place.until_effect("other79")
    took = time.monotonic() - began
    figures.took("restore drill", took)
    history = place.judged(60, without=LOSES)
    there = {row.id: row for row in history.rows}
    missing = [token for token, job in before.items() if job not in there]
    assert not missing, f"of before the copy: {missing[:5]}"
    new = [token for token in other if history.acked[token] not in there]
    assert not new, f"of after it was put back: {new[:5]}"
    lost = sum(job not in there for job in history.acked.values())
    assert lost >= count + 30, f"{lost} lost: this does not show what a restore does"
    assert worker.is_running
    return (
        f"restore: {len(before)} acked before the copy and {len(other)} after it was put back are all there, {lost} of between are gone as they must, "
        f"no result is another job's; jobs ran again {took:.1f} s after the start, {reruns(history)} reruns"
    )
