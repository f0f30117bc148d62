"""The worker of the chaos rows: many slots, short tasks of each kind, two schedules; its effects log costs one write a line, and no fsync.

A line is `token run pid what at attempt job`: a kill of this process loses no write that was made, and a power cut is another row's.
"""

import asyncio
import os
import time
import uuid
from types import TracebackType
from typing import Any, Self

from fastapi import FastAPI

from easyjobs import RetryPolicy
from easyjobs.tasks import JobFailure, current_job
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
EFFECTS = os.open(os.environ["TEST_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
QUICKLY = RetryPolicy(max_retries=3, backoff="fixed", base=0.3)


class Run:
    """Notes the start and the end of a body."""

    def __init__(self, token: str) -> None:
        job = current_job()
        self.token, self.name, self.attempt, self.job = token, uuid.uuid4().hex, job.attempt, job.job_id

    def write(self, what: str) -> None:
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(EFFECTS, f"{self.token} {self.name} {os.getpid()} {what} {at:.6f} {self.attempt} {self.job}\n".encode())

    def __enter__(self) -> Self:
        self.write("start")
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None) -> None:
        self.write("done" if kind is None else "cancelled" if kind is asyncio.CancelledError else "raised")

    @property
    def result(self) -> dict[str, Any]:
        return {"token": self.token, "run": self.name}


@server.on_event("startup")
async def startup() -> None:
    worker = await EasyJobsWorker.create(
        server,
        server_secret=os.environ["TEST_SECRET"],
        manager_host=os.environ["TEST_MANAGER_HOSTS"],
        manager_secret=os.environ["TEST_SECRET"],
        jobs_queue="FAULTS",
        max_tasks_per_worker=int(os.environ["TEST_SLOTS"]),
    )

    @worker.task()
    async def work(token: str, seconds: float = 0.0) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(seconds)
        return run.result

    @worker.task(retry_policy=QUICKLY, on_failure="told")
    async def flaky(token: str, failures: int) -> dict[str, Any]:
        """Fails so many times first; with four it fails for good."""
        with Run(token) as run:
            await asyncio.sleep(0.01)
            if current_job().failures < failures:
                raise ConnectionError("not yet")
        return run.result

    @worker.task()
    async def told(failure: JobFailure) -> dict[str, Any]:
        with Run(f"{failure.kwargs['token']}+told") as run:
            await asyncio.sleep(0)
        return run.result

    @worker.task(run_after="second")
    async def first(token: str) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task(run_after=["third", "fourth"])
    async def second(before: dict[str, Any]) -> dict[str, Any]:
        with Run(f"{before['token']}+2") as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def third(before: dict[str, Any]) -> dict[str, Any]:
        with Run(f"{before['token']}+3") as run:
            await asyncio.sleep(0.01)
        return run.result

    @worker.task()
    async def fourth(before: dict[str, Any]) -> dict[str, Any]:
        with Run(f"{before['token']}+4") as run:
            await asyncio.sleep(0.01)
        return run.result

    async def tick() -> dict[str, Any]:
        with Run("tick") as run:
            await asyncio.sleep(0)
        return run.result

    worker.task(tick, name="each_second", schedule="* * * * * *", catch_up="all", default_args={})
    worker.task(tick, name="each_third", schedule="*/3 * * * * *", catch_up="all", default_args={})
