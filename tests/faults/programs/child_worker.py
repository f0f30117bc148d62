"""A worker whose tasks run in child processes. A line of the effects log names the child's own process."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from easyjobs.tasks import current_job
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
GATES = Path(os.environ["TEST_GATES"])


def write(token: str, run: str, what: str, pid: int | None = None) -> None:
    line = {"token": token, "run": run, "pid": pid or os.getpid(), "what": what, "at": time.clock_gettime(time.CLOCK_BOOTTIME)}
    with open(os.environ["TEST_EFFECTS"], "ab", buffering=0) as file:  # noqa: PTH123
        file.write(json.dumps({**line, "attempt": current_job().attempt}).encode() + b"\n")


def hold(token: str, gate: str) -> dict[str, Any]:
    """Goes on until a file of that name is there; has a grandchild that SIGTERM does not end."""
    run = uuid.uuid4().hex
    grandchild = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"], stdout=subprocess.PIPE)
    assert grandchild.stdout is not None
    grandchild.stdout.readline()
    write(token, run, "grandchild", grandchild.pid)
    write(token, run, "start")
    ended = "cancelled"
    try:
        while not (GATES / gate).exists():
            time.sleep(0.02)
        ended = "done"
    finally:
        write(token, run, ended)
    grandchild.kill()
    return {"token": token, "run": run, "pid": os.getpid()}


def compute(token: str, gate: str) -> dict[str, Any]:
    """The first attempt never comes back to the interpreter, as a long computation in C."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run = uuid.uuid4().hex
    write(token, run, "start")
    if current_job().attempt == 1:
        sum(range(10**15))
    write(token, run, "done")
    return {"token": token, "run": run, "pid": os.getpid()}


@server.on_event("startup")
async def startup() -> None:
    worker = await EasyJobsWorker.create(
        server,
        manager_host="127.0.0.1",
        manager_port=int(os.environ["TEST_MANAGER_PORT"]),
        manager_secret=os.environ["TEST_SECRET"],
        jobs_queue="FAULTS",
        max_tasks_per_worker=int(os.environ["TEST_SLOTS"]),
    )
    worker.task(hold, subprocess=True, retry_policy="never")
    worker.task(hold, name="hold_for_a_second", subprocess=True, retry_policy="never", timeout=1)
    worker.task(compute, subprocess=True, retry_policy="never")
    worker.task(compute, name="compute_for_a_second", subprocess=True, retry_policy="retry_once", timeout=1)
