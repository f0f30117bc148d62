"""A manager and workers under a short lease, with everything written down that the checker asks for."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.checker import FINAL, Effect, Fault, History, check, now, read_effects
from tests.processes import SECRET, NotInTime, Processes, Served, free_port, until

PROGRAMS = Path(__file__).parent / "programs"
LEASE_S = 2.0
RERUN_S = LEASE_S + 6.0  # within this a job whose worker died runs again: lease, rescue interval, dispatch


class Cluster:
    """Starts, breaks and asks. `close` of the processes is the `started` fixture's."""

    def __init__(self, started: Processes, directory: Path, *, database: Path | None = None) -> None:
        self.started = started
        self.database = database or directory / "db"
        self.effects_path = directory / "effects"
        self.gates = directory / "gates"
        self.gates.mkdir()
        self.port = free_port()
        self.history = History(lease_s=LEASE_S)
        self.manager: Served
        self.beside: list[Served] = []  # other managers of the same database, which are asked for their workers too

    # --- processes --------------------------------------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "TEST_SECRET": SECRET,
            "TEST_EFFECTS": str(self.effects_path),
            "TEST_GATES": str(self.gates),
            "EASYJOBS_LEASE_S": str(LEASE_S),
            "DB_PATH": str(self.database),
            **more,
        }

    def start_manager(self) -> Served:
        """On the same port and database each time."""
        app = "fault_manager:server"
        options = ("--log-level", "info", "--no-access-log")
        self.manager = self.started.uvicorn(app, *options, directory=PROGRAMS, name="manager", env=self.environment(), port=self.port)
        return self.manager.until_ready()

    def start_worker(self, *, slots: int = 3, through: int | None = None, app: str = "fault_worker:server", **more: str) -> Served:
        """Connected when this returns. `through`: a proxy's port."""
        env = self.environment(TEST_MANAGER_PORT=str(through or self.port), TEST_SLOTS=str(slots), **more)
        worker = self.started.uvicorn(app, "--no-access-log", directory=PROGRAMS, name="worker", env=env)
        try:
            until("the worker is connected", lambda: self.is_connected(worker), 15)  # their number may fall meanwhile
        except NotInTime as error:
            raise NotInTime(f"{error}\n--- log of the worker ---\n{worker.log[-3000:]}") from None
        return worker

    def connected(self) -> list[Any]:
        """The workers that are connected and have offered their tasks: those of one turn of the loop are offered together."""
        managers = (self.manager, *self.beside)
        return [worker for manager in managers for worker in manager.get("/jobs/api/v1/workers")["items"] if worker["tasks"]]

    def is_connected(self, worker: Served) -> bool:
        """Whether this one is among them: its name ends in its process id."""
        return any(each["name"].endswith(f"-{worker.pid}") for each in self.connected())

    # --- jobs -------------------------------------------------------------------------------------------------------------------

    def submit(self, task: str, token: str, **arguments: Any) -> str:
        """Submit over HTTP and note the acknowledgement; the job's id. A submit without an answer is noted as unknown."""
        self.history.unknown.add(token)
        job_id = self.manager.submit("FAULTS", task, {"token": token, **arguments})
        self.history.unknown.discard(token)
        self.history.acked[token] = job_id
        return job_id

    def submit_many(self, task: str, tokens: Sequence[str], **arguments: Any) -> list[str]:
        """The same in one bulk request."""
        self.history.unknown |= set(tokens)
        jobs = [{"namespace": "FAULTS", "name": task, "args": [], "kwargs": {"token": token, **arguments}} for token in tokens]
        answer = self.manager.call("POST", "/jobs/api/v1/jobs", jobs)
        assert answer.status == 202, answer
        ids: list[str] = answer.json()["request_ids"]
        assert len(ids) == len(tokens)
        self.history.acked |= dict(zip(tokens, ids, strict=True))
        self.history.unknown -= set(tokens)
        return ids

    def open_gate(self, gate: str) -> None:
        (self.gates / gate).touch()

    def effects(self, token: str, what: str | None = None) -> list[Effect]:
        return [effect for effect in read_effects(self.effects_path) if effect.token == token and what in (None, effect.what)]

    def until_effect(self, token: str, what: str = "start", *, times: int = 1, within_s: float = 15.0) -> Effect:
        """The last of `times` lines of this kind."""
        until(f"{token} has {times} × {what!r}", lambda: len(self.effects(token, what)) >= times, within_s)
        return self.effects(token, what)[-1]

    # --- faults -----------------------------------------------------------------------------------------------------------------

    def note_fault(self, worker: Served, *, kills: bool) -> float:
        """From now on this worker cannot renew its lease; the instant."""
        at = now()
        self.history.faults.append(Fault(worker.pid, at, kills))
        return at

    def kill(self, worker: Served) -> float:
        """kill -9; the instant."""
        at = self.note_fault(worker, kills=True)
        worker.kill()
        return at

    def freeze(self, worker: Served) -> float:
        """SIGSTOP; the instant."""
        at = self.note_fault(worker, kills=False)
        worker.signal(signal.SIGSTOP)
        return at

    def thaw(self, worker: Served) -> None:
        worker.signal(signal.SIGCONT)

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def end_of(self, job_id: str, within_s: float = 20.0) -> Any:
        """The job, once it is final."""

        def final() -> Any:
            job = self.manager.job(job_id)
            return job if job["status"] in FINAL else None

        try:
            return until(f"job {job_id} is final", final, within_s)
        except NotInTime as error:
            raise NotInTime(f"{error}; it is {self.manager.job(job_id)}") from None

    def ends(self) -> dict[str, Any]:
        """What the store says of the acknowledged jobs that it knows, by id."""
        found: dict[str, Any] = {}
        cursor = ""
        while True:
            page = self.manager.get(f"/jobs/api/v1/jobs?namespace=FAULTS&limit=200{cursor}")
            found |= {job["id"]: job for job in page["items"]}
            if not page["next_cursor"]:
                return {job_id: found[job_id] for job_id in self.history.acked.values() if job_id in found}
            cursor = f"&cursor={page['next_cursor']}"

    def check(self, within_s: float = 20.0) -> None:
        """Wait until every acknowledged job is final, let the checker judge, and look again: final states stay."""
        with contextlib.suppress(NotInTime):  # the checker says it better
            until("all are final", lambda: all(end["status"] in FINAL for end in self.ends().values()), within_s, every_s=0.1)
        self.history.ends = self.ends()
        self.history.effects = read_effects(self.effects_path)
        wrong = check(self.history)
        assert not wrong, "\n".join(wrong)
        assert self.ends() == self.history.ends
