"""Several managers over one PostgreSQL, with workers that know all of them, and the records that the checker asks for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.faults.cluster import PROGRAMS, Cluster
from tests.postgres import Cluster as Server
from tests.processes import Processes, Served, free_port, http_call


class Site(Cluster):
    """Managers are named by their number; `manager` is the one that is asked."""

    def __init__(self, started: Processes, directory: Path, server: Server, *, count: int = 3, lease_s: float = 3.0) -> None:
        super().__init__(started, directory)
        database = f"test_{time.monotonic_ns()}"
        server.sql(f"create database {database}")
        self.url, self._server, self._database = server.url(database), server, database
        self.history.lease_s = lease_s
        self.ports = [free_port() for _ in range(count)]
        self.managers: dict[int, Served] = {}
        self._turn = 0

    def environment(self, **more: str) -> dict[str, str]:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        own = {"EASYJOBS_STORE": self.url, "EASYJOBS_LEASE_S": str(self.history.lease_s), "TEST_MANAGER_HOSTS": hosts}
        return super().environment(**own, **more)

    def start(self, *numbers: int, program: str = "fault_manager:server", **more: str) -> None:
        """Start these managers, all if none is named, and wait for them; the last one is asked from then on."""
        begun = []
        for number in numbers or range(len(self.ports)):
            options = ("--log-level", "info", "--no-access-log")
            self.managers[number] = self.started.uvicorn(
                program, *options, directory=PROGRAMS, name=f"manager {number}", env=self.environment(**more), port=self.ports[number]
            )
            begun.append(self.managers[number])
        for manager in begun:
            self.manager = manager.until_ready(40)

    def connected(self) -> list[Any]:
        return [worker for number in self.managers for worker in self.workers_of(number)]

    def workers_of(self, number: int) -> list[Any]:
        """The workers that are connected to this manager."""
        try:
            found = http_call("GET", f"http://127.0.0.1:{self.ports[number]}/jobs/api/v1/workers", within_s=2).json()["items"]
        except (OSError, ValueError, KeyError):
            return []
        return [worker for worker in found if worker["tasks"]]

    def submit(self, task: str, token: str, **arguments: Any) -> str:
        """Submit at the next manager; if that does not do, once more at the one after it, by the same key."""
        self.history.unknown.add(token)
        self._turn += 1
        said = []
        for number in (self._turn, self._turn + 1):
            url = f"http://127.0.0.1:{self.ports[number % len(self.ports)]}/FAULTS/task/{task}"
            try:
                answer = http_call("POST", url, {"token": token, **arguments}, headers={"Idempotency-Key": token}, within_s=10)
            except OSError as error:
                said.append(repr(error))
                continue
            if answer.status == 200:
                self.history.unknown.discard(token)
                self.history.acked[token] = job_id = str(answer.json()["request_id"])
                return job_id
            said.append(f"{answer.status} {answer.body[:200]!r}")
        raise AssertionError(f"{token}: neither of two managers took it: {said}")

    def sql(self, text: str) -> str:
        return self._server.sql(text, self._database).strip()
