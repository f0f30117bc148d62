"""A worker whose tasks block for long, or might crash: they run in child processes.

JOBS_SECRET='the same text' uvicorn --app-dir examples --port 8222 blocking_worker:server
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker


def count_primes(below: int) -> int:
    """A function at the top of a module runs in a child process as it is. The child imports this module, and finds it by its name."""
    sieve = bytearray([1]) * below
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return sum(sieve[2:])


@asynccontextmanager
async def lifespan(server: FastAPI) -> AsyncIterator[None]:
    os.environ.setdefault("WORKER_TASK_DIR", str(Path(__file__).parent / "blocking_funcs"))
    worker = await EasyJobsWorker.create(
        server,
        manager_host=os.environ.get("MANAGER_HOST", "127.0.0.1"),
        manager_port=int(os.environ.get("MANAGER_PORT", "8220")),
        manager_secret=os.environ["JOBS_SECRET"],
        jobs_queue="blocking",
        max_tasks_per_worker=2,
    )

    worker.task(count_primes, subprocess=True, timeout=60, max_memory="512MB")

    @worker.task(subprocess=True)
    async def checksum(path: str, algorithm: str = "sha256") -> str:  # type: ignore[empty-body]
        """A stub: its signature is that of the task, and blocking_funcs/checksum.py does the work."""

    yield


server = FastAPI(lifespan=lifespan)
