"""The worker of the fault tests. Every run of a body appends a line to the effects log when it starts and when it ends."""

import asyncio
import ctypes
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any, Self

from fastapi import FastAPI

from easyjobs.tasks import current_job
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
EFFECTS = os.open(os.environ["TEST_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
GATES = Path(os.environ["TEST_GATES"])


def write(token: str, run: str, what: str, attempt: int) -> None:
    """One line, in one write: whole or not at all, whoever writes beside us."""
    line = {"token": token, "run": run, "pid": os.getpid(), "what": what, "at": time.clock_gettime(time.CLOCK_BOOTTIME), "attempt": attempt}
    os.write(EFFECTS, json.dumps(line).encode() + b"\n")
    os.fsync(EFFECTS)


class Run:
    """Notes the start and the end of a body."""

    def __init__(self, token: str) -> None:
        self.token, self.name, self.attempt = token, uuid.uuid4().hex, current_job().attempt

    def __enter__(self) -> Self:
        write(self.token, self.name, "start", self.attempt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        ended = "done" if kind is None else "cancelled" if kind is asyncio.CancelledError else "raised"
        write(self.token, self.name, ended, self.attempt)

    @property
    def result(self) -> dict[str, Any]:
        return {"token": self.token, "run": self.name, "pid": os.getpid()}


@server.on_event("startup")
async def startup() -> None:
    if "TEST_TELLS_TIME" in os.environ:
        print("the time is", time.time(), flush=True)
    if "TEST_TELLS_ALL" in os.environ:
        logging.basicConfig(level=logging.INFO)
    worker = await EasyJobsWorker.create(
        server,
        server_secret=os.environ["TEST_SECRET"],
        manager_host=os.environ.get("TEST_MANAGER_HOSTS", "127.0.0.1"),
        manager_port=int(os.environ["TEST_MANAGER_PORT"]),
        manager_secret=os.environ["TEST_SECRET"],
        jobs_queue="FAULTS",
        max_tasks_per_worker=int(os.environ["TEST_SLOTS"]),
    )

    @worker.task()
    async def work(token: str, seconds: float = 0.0, ballast: str = "") -> dict[str, Any]:
        """Takes a while without blocking. `ballast` is nothing but large."""
        with Run(token) as run:
            await asyncio.sleep(seconds)
        return run.result

    @worker.task()
    async def wait_for_gate(token: str, gate: str) -> dict[str, Any]:
        """Goes on until a file of that name is there."""
        with Run(token) as run:
            while not (GATES / gate).exists():  # noqa: ASYNC110  a file tells no event
                await asyncio.sleep(0.02)
        return run.result

    @worker.task()
    async def block_the_loop(token: str, seconds: float) -> dict[str, Any]:
        """What nobody should do in an async function, and everybody does once."""
        with Run(token) as run:
            time.sleep(seconds)  # noqa: ASYNC251
        return run.result

    @worker.task()
    def block_a_thread(token: str, seconds: float) -> dict[str, Any]:
        """The same where it is allowed."""
        with Run(token) as run:
            time.sleep(seconds)
        return run.result

    @worker.task()
    def hold_the_gil(token: str, seconds: float) -> dict[str, Any]:
        """As C code that does not let other threads go on: a catastrophic regular expression, say."""
        with Run(token) as run:
            ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return run.result

    @worker.task()
    def eat(token: str, mib: int) -> dict[str, Any]:
        """Wants that much memory."""
        with Run(token) as run:
            eaten = [bytearray(os.urandom(1024)) * 1024 for _ in range(mib)]
            time.sleep(0.5)
            eaten.clear()
        return run.result

    # A chain of three, and a job that waits for two others. Each step names its runs after the token that it was given.

    @worker.task(run_after="second")
    async def first(token: str) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task(run_after="third")
    async def second(before: dict[str, Any]) -> dict[str, Any]:
        with Run(before["token"] + "+2") as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def third(before: dict[str, Any]) -> dict[str, Any]:
        with Run(before["token"] + "+3") as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def left(token: str) -> dict[str, Any]:
        with Run(token + "+left") as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def right(token: str) -> dict[str, Any]:
        with Run(token + "+right") as run:
            await asyncio.sleep(0.02)
        return run.result

    @worker.task(run_before=["left", "right"])
    async def joined(token: str) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def parent(token: str, gate: str) -> dict[str, Any]:
        """Calls three children, waits for a gate between the second and the third."""
        with Run(token) as run:
            await first(f"{token}+a")
            await first(f"{token}+b")
            while not (GATES / gate).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await first(f"{token}+c")
        return run.result
