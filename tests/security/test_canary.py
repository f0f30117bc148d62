"""The secret goes nowhere: real processes with a secret that is easy to find, and a search through all that they leave behind."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Self

import pytest

from easyjobs.http.auth import Scope, make_token
from tests.processes import Process, Processes, Served, http_call

CANARY = "canary-7f3a9c-" + "s3cr3t-of-this-test-only"
WORKERS_OWN = "canary-of-the-worker-itself-5b1d22e0"

MANAGER = """
import logging
from fastapi import FastAPI
from easyjobs.manager import EasyJobsManager

logging.basicConfig(level=logging.DEBUG)
server = FastAPI(debug=True)

@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, store="jobs.db", auth="required")

    @manager.task()
    async def fails():
        raise RuntimeError("on purpose, in the manager")
"""
WORKER = """
import logging, os, subprocess, sys
from fastapi import FastAPI
from easyjobs.workers.worker import EasyJobsWorker

logging.basicConfig(level=logging.DEBUG)
server = FastAPI(debug=True)

def in_a_child():
    return dict(os.environ)

def with_a_grandchild():
    return subprocess.run(["env"], capture_output=True, text=True, check=True).stdout

@server.on_event("startup")
async def setup():
    worker = await EasyJobsWorker.create(server, manager_port=int(os.environ["TEST_MANAGER_PORT"]))
    worker.task(in_a_child, subprocess=True)
    worker.task(with_a_grandchild, subprocess=True)

    @worker.task(retry_policy="never")
    async def fails(x: int):
        logging.getLogger("users").error("settings: %r", worker.settings if hasattr(worker, "settings") else vars(worker))
        raise RuntimeError(f"on purpose: {worker!r}")

    @worker.task()
    async def logs_much(ctx_text: str = ""):
        logging.getLogger("users").info("text %s", ctx_text)
        return repr(worker)
"""


def forms(secret: str) -> list[bytes]:
    """The secret as it may be written."""
    raw = secret.encode()
    return [
        raw,
        base64.b64encode(raw)[:-4],
        base64.urlsafe_b64encode(raw)[:-4],
        raw.hex().encode(),
        json.dumps(secret)[1:-1].encode(),
        raw[: len(raw) * 2 // 3],
    ]


class Sampler:
    """Reads the command lines and environments of processes and of their descendants, again and again, while a test does its work."""

    def __init__(self, pids: list[int]) -> None:
        self._family, self._end = set(pids), threading.Event()
        self.seen: dict[int, bytes] = {}
        self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._end.wait(0.02):
            self.samples += 1
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    pid = int(place.name)
                    parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                    if pid in self._family or parent in self._family:
                        self._family.add(pid)
                        self.seen[pid] = self.seen.get(pid, b"") + (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
                        if len(self.seen[pid]) > 100_000:
                            self.seen[pid] = self.seen[pid][-50_000:]
                except (OSError, ValueError):
                    continue


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "environment"])
def test_the_secret_is_found_nowhere(started: Processes, tmp_path: Path, way: str) -> None:
    for name, text in (("manager_program", MANAGER), ("worker_program", WORKER)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets" / "shared").write_text(CANARY + "\n")
    (tmp_path / "secrets" / "own").write_text(WORKERS_OWN)
    if way == "file":
        common = {"EASYJOBS_SECRET_FILE": str(tmp_path / "secrets" / "shared")}
    else:
        common = {"EASYJOBS_SECRET": CANARY}
    work = tmp_path / "work"
    work.mkdir()
    manager = started.uvicorn("manager_program:server", "--log-level", "debug", directory=tmp_path, env=common, cwd=work).until_ready()
    own = {"EASYJOBS_OWN_SECRET_FILE": str(tmp_path / "secrets" / "own"), "TEST_MANAGER_PORT": str(manager.port)}
    worker = started.uvicorn("worker_program:server", "--log-level", "debug", directory=tmp_path, env={**common, **own}, cwd=work)
    stranger = started.uvicorn(
        "worker_program:server", directory=tmp_path, env={**own, "EASYJOBS_SECRET": CANARY[:-1]}, cwd=work, name="a stranger"
    )
    token = make_token(CANARY, [Scope.ADMIN], 0)
    auth = {"Authorization": f"Bearer {token}"}
    bodies: list[bytes] = []

    def call(method: str, path: str, body: object = None) -> bytes:
        answer = manager.call(method, path, body, headers=auth)
        bodies.append(repr(answer.headers).encode() + answer.body)
        return answer.body

    with Sampler([manager.pid, worker.pid]) as sampler:
        worker.wait_for_line("Application startup complete")
        stranger.wait_for_line("wrong secret", 30)
        for name in ("in_a_child", "with_a_grandchild", "fails", "logs_much"):
            manager_knows(manager, auth, name)
            id = json.loads(call("POST", f"/DEFAULT/task/{name}", {"x": 1} if name == "fails" else {}))["request_id"]
            call("GET", f"/job/pull/result?request_id={id}&wait=20")
            for path in ("", "/logs", "/explain"):
                call("GET", f"/jobs/api/v1/jobs/{id}{path}")
        for path in (
            "/openapi.json",
            "/docs",
            "/redoc",
            "/jobs/readyz",
            *(f"/jobs/api/v1/{what}" for what in ("jobs", "queues", "workers", "tasks", "schedules")),
        ):
            call("GET", path)
        bodies.append(http_call("POST", f"{manager.url}/DEFAULT/task/fails", {}).body)
        bodies.append(http_call("GET", f"http://127.0.0.1:{worker.port}/openapi.json").body)
        call("POST", "/DEFAULT/task/fails", b"{")
    assert sampler.samples > 10
    assert len(sampler.seen) >= 3  # a child of a task, too
    ends: list[Process] = [worker, manager, stranger]
    for process in ends:
        process.stop()
    parents = {manager.pid, worker.pid} if way == "environment" else set()
    places = {f"process {pid}": said for pid, said in sampler.seen.items() if pid not in parents}
    places |= {f"log of {process.name}": process.log.encode() for process in ends}
    places |= {f"answer {number}": body for number, body in enumerate(bodies)}
    places |= {str(file): file.read_bytes() for file in work.rglob("*") if file.is_file()}
    assert any(name.endswith("jobs.db") for name in places)
    found = [name for name, said in places.items() for secret in (CANARY, WORKERS_OWN) for form in forms(secret) if form in said]
    # The token, which is as good as the secret for as long as it holds, is in no log and no answer either.
    found += [name for name, said in places.items() if token.encode() in said]
    if way == "environment":
        found = [name for name in found if name != "log of a stranger"]
    assert found == []


def manager_knows(manager: Served, auth: dict[str, str], name: str) -> None:
    from tests.processes import until

    until(name, lambda: name.encode() in manager.call("GET", "/jobs/api/v1/tasks", headers=auth).body)
