"""Bodies of tasks that nobody should write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults import figures
from faults.cluster import Site, tokens
from faults.history import Effect
from faults.load import PROGRAMS, read_lines
from faults.matrix import row
from tests.processes import Served, processes, until

SLOTS = 8
MAX_CRASHES = 3  # by default
LEASE_S = 4.0
SHORT_S = 1.0
LONG_S = 2 * LEASE_S  # after two thirds of a lease the killer begins its last chance beside it
RAISED = {  # the type of the error, whose kind is `exception`
    "sys.exit": "SystemExit",
    "BaseException": "BaseException",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "GeneratorExit": "GeneratorExit",
    "recursion": "RecursionError",
}
KINDS = dict.fromkeys(("object", "circle", "NaN", "huge int", "half a pair"), "unserialisable NotJson") | {
    "too large": "too_large ValueError"
}
DEADLY = {"os._exit": "exited ChildDied", "segfault": "crashed ChildDied", "SIGKILL": "crashed ChildDied"}  # in a child process
PLACES = ("on_loop", "in_thread", "in_child")


class Zoo(Site):
    """A worker of `zoo_worker`, which is started again when a body has ended it. `deaths` counts that."""

    worker: Served
    deaths = 0

    def hire(self) -> None:
        """Start the worker; does not wait: it may die of the first job that it gets."""
        env = self.environment(TEST_MANAGER_PORT=str(self.port), TEST_SLOTS=str(SLOTS))
        self.worker = self.started.uvicorn("zoo_worker:server", "--no-access-log", directory=PROGRAMS, name="worker", env=env)

    def end_whatever_dies(self, job: str, within_s: float = 90.0) -> Any:
        """The job, once it is final; its worker is started again each time that it has died."""

        def final() -> Any:
            if not self.worker.is_running:
                self.deaths += 1
                self.note_fault(self.worker, kills=True)
                self.hire()
            found = self.manager.job(job)
            return found if found["status"] not in ("queued", "running", "scheduled") else None

        return until(f"job {job} is final", final, within_s, 0.1)

    def read_runs(self) -> list[Effect]:
        return read_lines(self.effects_path)


@row("R5")
def zoo(directory: Path, size: float) -> str:
    """Bodies that exit, crash, raise anything, recurse, swallow their cancellation or return what is no result: each is told for what it is, and the worker lives, or is started again."""
    outcomes: dict[str, list[str]] = defaultdict(list)
    wrong: list[str] = []
    with processes() as started:
        place = Zoo(started, directory, lease_s=LEASE_S)
        place.start_manager()
        place.hire()
        until("the worker is connected", lambda: place.is_connected(place.worker), 30)
        first = place.worker.pid
        mild = [(where, how) for where in PLACES for how in (*RAISED, *KINDS)] + [("in_child", how) for how in DEADLY]
        jobs = {(where, how): place.submit(where, f"{where}-{how.replace(' ', '_')}", how=how) for where, how in mild}
        jobs |= {(name, ""): place.submit(name, name) for name in ("heedless", "heedless_child")}
        for (where, how), job in jobs.items():
            end = place.end_of(job, 60)
            found = _told(end)
            if found != _expected(where, how):
                wrong.append(f"{how} {where}: {found}, not {_expected(where, how)}: {end['error']}")
            outcomes[found].append(f"{how} {where.replace('_', ' ')}".strip())
        assert not wrong, "\n".join(wrong)
        place.submit("work", "still-here")
        place.end_of(place.history.acked["still-here"])
        assert (place.worker.is_running, place.worker.pid) == (True, first), "a body has ended the worker"
        place.open_gate("heedless")
        until("its slot is free", lambda: any(run.token == "heedless" and run.what == "done" for run in place.read_runs()), 20, 0.1)
        # What ends its own process ends the worker: its neighbours are put back with it, and it is tried alone from then on.
        for where, how in (("on_loop", "os._exit"), ("in_thread", "segfault"), ("on_loop", "SIGKILL"))[: max(2, round(size))]:
            token = f"{where}-{how}"
            place.submit_many("work", tokens(f"beside-{token}-", SLOTS - 2), seconds=SHORT_S)  # they run when it dies
            long = place.submit("work", f"beside-{token}-long", seconds=LONG_S)  # the last to have its last chance before the killer has it
            until("they run", lambda token=token: sum(f"beside-{token}-" in run.token for run in place.read_runs()) == SLOTS - 1, 20, 0.1)
            job = place.submit(where, token, how=how)
            place.submit_many("work", tokens(f"beside-{token}-behind", 2 * SLOTS), seconds=0.2)
            before = place.deaths
            end = place.end_whatever_dies(job)
            assert place.deaths - before == MAX_CRASHES == end["crashes"], f"{token}: {place.deaths - before} deaths, {end}"
            assert _told(end) == "crashed WorkerLost", end
            place.end_of(long, 60)  # before the next killer comes
            outcomes["crashed WorkerLost"].append(f"{how} {where.replace('_', ' ')} of {MAX_CRASHES} workers")
        history = place.judged(60)
    beside = [row for row in history.rows if row.token.startswith("beside-")]
    harmed = [row for row in beside if row.state != 2]
    assert any(row.crashes for row in beside), "no neighbour was there when a worker died: it does not bite"
    assert any(row.crashes >= MAX_CRASHES for row in beside if row.token.endswith("-long")), (
        "the killer had its last chance elsewhere: it does not bite"
    )
    assert not harmed, f"{len(harmed)} of {len(beside)} neighbours failed: {harmed[:3]}"
    figures.count("bodies that nobody should write", len(jobs) + place.deaths)
    told = "; ".join(f"{outcome}: {', '.join(which)}" for outcome, which in sorted(outcomes.items()))
    return (
        f"one process lived through {len(jobs)} of them, {place.deaths} processes died of {place.deaths // MAX_CRASHES} others; {len(beside)} neighbours "
        f"unharmed, of at most {max(row.crashes for row in beside)} crashes each. {told}"
    )


def _told(end: Mapping[str, Any]) -> str:
    """How a job ended: the kind of its error and its type, without the module."""
    if end["status"] != "failed":
        return str(end["status"])
    return f"{end['error']['kind']} {end['error']['type'].rpartition('.')[2]}"


def _expected(where: str, how: str) -> str:
    """As docs/subprocess.md and docs/tasks.md have it."""
    if where.startswith("heedless"):
        return "timeout TimeoutError"
    if how in RAISED:
        return f"exception {RAISED[how]}"
    return {**KINDS, **DEADLY}[how]
