"""Real managers and workers with all three witnesses: `tests.faults.cluster`, triggers in the store, and the invariants to judge it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from easyjobs.domain.lifecycle import Back
from easyjobs.domain.lifecycle import JobState as S
from easyjobs.runtime.ids import id_text
from faults import events, figures
from faults.history import Effect, History, Row
from faults.invariants import judge, overlaps
from faults.sim.world import rows_in
from tests import postgres
from tests.faults.checker import FINAL, now, read_effects
from tests.faults.cluster import LEASE_S, PROGRAMS, Cluster
from tests.processes import NotInTime, Processes, Served, processes, until

QUEUE = "FAULTS"


class Site(Cluster):
    """A cluster on SQLite, or on a PostgreSQL of its own with several managers; `judged` is what is wrong with its history."""

    def __init__(
        self,
        started: Processes,
        directory: Path,
        *,
        server: postgres.Cluster | None = None,
        database: str = "postgres",
        lease_s: float = LEASE_S,
        **more: str,
    ) -> None:
        """`more`: environment of all its processes."""
        super().__init__(started, directory)
        self.server, self.of_server, self.lease_s, self.more = server, database, lease_s, more
        self.managers: list[Served] = []
        self.killed: dict[str, float] = {}  # when, by process id
        self.stopped: list[tuple[str, float, float]] = []
        self.duplicate_frames = False
        self.keyed: set[str] = set()  # tokens whose submits had a key of their own
        self.ticks: dict[str, list[int]] = {}  # as in `History`
        self.optional_ticks: dict[str, set[int]] = {}
        self.by_hand: set[str] = set()
        self.has_witness = False

    def environment(self, **more: str) -> dict[str, str]:
        found = super().environment(EASYJOBS_LEASE_S=str(self.lease_s), **{**self.more, **more})
        if self.server is not None and "EASYJOBS_STORE" not in found:
            found["EASYJOBS_STORE"] = self.server.url(self.of_server)
        return found

    @property
    def file(self) -> Path:
        return self.database / "job_manager.db"

    def start_manager(self, **more: str) -> Served:
        """On the same port each time."""
        options = ("--log-level", "info", "--no-access-log")
        env = self.environment(**more)
        self.manager = self.started.uvicorn("fault_manager:server", *options, directory=PROGRAMS, name="manager", env=env, port=self.port)
        self.manager.until_ready(40)
        if not self.has_witness:
            self.has_witness = True
            if self.server is None:
                events.install_sqlite(self.file)
            else:
                self.server.sql(events.POSTGRES_TRIGGERS, self.of_server)
        return self.manager

    def note_fault(self, worker: Served, *, kills: bool) -> float:
        at = super().note_fault(worker, kills=kills)
        if kills:
            self.killed[str(worker.pid)] = at
        return at

    def wait_for_death(self, within_s: float = 20.0) -> None:
        """Until the manager has died of a failpoint."""
        until("the manager is dead", lambda: not self.manager.is_running, within_s)

    def pause_process(self, process: Served, seconds: float) -> None:
        """SIGSTOP, SIGCONT."""
        began = self.freeze(process)
        time.sleep(seconds)
        self.thaw(process)
        self.stopped.append((str(process.pid), began, now()))

    def settle(self, within_s: float = 40.0) -> bool:
        """Until all acknowledged jobs are final."""
        try:
            until("all are final", lambda: all(end["status"] in FINAL for end in self.ends().values()), within_s, every_s=0.2)
        except NotInTime:
            return False
        return True

    def told(self) -> History:
        """All that is known of the run."""
        told = History(lease_s=self.lease_s, acked=dict(self.history.acked), unknown=set(self.history.unknown), stopped=self.stopped)
        told.duplicate_frames = self.duplicate_frames
        told.max_overlap_s = self.lease_s
        told.keyed, told.by_hand = set(self.keyed), set(self.by_hand)
        told.ticks, told.optional_ticks = dict(self.ticks), dict(self.optional_ticks)
        told.successors = {f"{QUEUE}/first": (f"{QUEUE}/second",), f"{QUEUE}/second": (f"{QUEUE}/third",)}
        told.effects = self.read_runs()
        self.read_store(told)
        return told

    def read_runs(self) -> list[Effect]:
        """What the bodies wrote."""
        return [
            Effect(line.token, line.run, str(line.pid), line.what, line.at, line.attempt, self.history.acked.get(line.token, ""))
            for line in read_effects(self.effects_path)
            if line.what in ("start", "done", "raised", "cancelled")
        ]

    def read_store(self, told: History) -> None:
        """Add what the triggers wrote, and the jobs."""
        if self.server is None:
            with events.opened(self.file) as db:
                told.steps, told.rows = events.steps_in(db), rows_in(db)
        else:
            told.steps, told.rows = self._steps_of_server(), self._rows_of_server()

    def _json(self, sql: str) -> Any:
        assert self.server is not None
        return json.loads(self.server.sql(f"select coalesce(json_agg(r), '[]') from ({sql}) r", self.of_server))

    def _steps_of_server(self) -> list[events.Step]:
        names = events.COLUMNS.replace(", result", ", convert_from(result, 'UTF8') as result")
        found = self._json(f"select {names} from easyjobs.fault_steps order by n")
        return [events.Step(**{**row, "result": None if row["result"] is None else row["result"].encode()}) for row in found]

    def _rows_of_server(self) -> list[Row]:
        found = self._json(
            "select j.seq, encode(j.id, 'hex') as id, t.queue || '/' || t.name as task, j.state, j.attempt, j.round, j.failures, j.crashes, "
            "convert_from(j.args, 'UTF8') as args, convert_from(j.result, 'UTF8') as result, j.parent_seq, j.edge, j.parent_round, j.run_at, "
            "j.max_retries, j.max_crashes "
            "from easyjobs.jobs j join easyjobs.tasks t using (lane) order by j.seq"
        )
        rows = []
        for row in found:
            args, kwargs = json.loads(row.pop("args"))
            row["id"] = id_text(bytes.fromhex(row["id"]))
            result = json.loads(row.pop("result") or "null")
            first = args[0] if args else None
            token = kwargs.get("token") or (first if isinstance(first, str) else "")
            rows.append(Row(**row, token=token, run=result.get("run", "") if isinstance(result, dict) else ""))
        return rows

    def judged(self, within_s: float = 40.0, *, without: Collection[str] = ()) -> History:
        """Wait for the end, and judge, by all invariants but those in `without`. Raises: AssertionError with all that is wrong."""
        self.settle(within_s)
        with contextlib.suppress(NotInTime):  # successors too
            until("all jobs are final", lambda: all(S(row.state).is_final for row in self.told().rows), within_s, every_s=0.5)
        history = self.told()
        if without == () and (left := [row.seq for row in history.rows if not S(row.state).is_final]):
            raise NotInTime(f"{len(left)} jobs, of {len(history.rows)}, were not final after {within_s:.0f} s: there is nothing to judge")
        wrong = [each for each in judge(history) if each.partition(":")[0] not in without]
        assert not wrong, "\n".join(wrong[:20])
        figures.judged(history, reruns(history))
        return history


def overlap_s(history: History) -> float:
    """The longest time that two attempts of one job ran at once."""
    return max((seconds for _, seconds, _, _ in overlaps(history)), default=0.0)


class Rescue(NamedTuple):
    """A job that its worker's death had left: seconds from then until the store put it back, and until it ran again."""

    put_back_s: float
    runs_again_s: float


def rescues(history: History, since: Mapping[str, float]) -> list[Rescue]:
    """Of each job that was taken from the workers in `since`: when (CLOCK_BOOTTIME) its wait began, by process id."""
    to_boottime = now() - time.time()
    ids = {row.seq: row.id for row in history.rows}
    runs = {(effect.job, effect.attempt): effect for effect in history.effects if effect.what == "start"}
    session_of = {}  # a worker's, from any job that it began
    claims = [step for step in history.steps if step.old_state == S.QUEUED and step.state == S.RUNNING]
    for step in claims:
        run = runs.get((ids.get(step.seq, ""), step.attempt))
        if run is not None:
            session_of[step.session] = run.worker
    found = []
    taken_by = {(step.seq, step.attempt): step.session for step in claims}
    for step in history.steps:
        began = since.get(session_of.get(taken_by.get((step.seq, step.attempt)), ""))
        again = runs.get((ids.get(step.seq, ""), step.attempt + 1))
        if (step.old_state, step.state) == (S.RUNNING, S.QUEUED) and step.back == Back.RESCUED and began is not None and again is not None:
            found.append(Rescue(step.at / 1e6 + to_boottime - began, again.at - began))
    return found


def reruns(history: History) -> int:
    """Runs beyond the first of each job."""
    starts = [effect.token for effect in history.effects if effect.what == "start"]
    return len(starts) - len(set(starts))


@contextmanager
def site(directory: Path, **more: Any) -> Iterator[Site]:
    """A site whose manager is up; everything ends with the block."""
    directory.mkdir(parents=True, exist_ok=True)
    with processes() as started:
        place = Site(started, directory, **more)
        place.start_manager()
        yield place


def tokens(prefix: str, count: int) -> Sequence[str]:
    return [f"{prefix}{n}" for n in range(count)]
