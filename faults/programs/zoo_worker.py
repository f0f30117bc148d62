"""The worker of R5: bodies that nobody should write, on the loop, in a thread and in a child process. `BODIES` has each by its name."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_worker import Run  # type: ignore[import-not-found]  # it lies beside this program
from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
GATES = Path(os.environ["TEST_GATES"])


def _raise(error: BaseException) -> None:
    raise error


def _recurse(n: int = 0) -> int:
    return _recurse(n + 1) + 1


def _circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


BODIES: dict[str, Callable[[], Any]] = {
    "os._exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sys.exit": lambda: sys.exit(3),
    "BaseException": lambda: _raise(BaseException("bare")),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "recursion": _recurse,
    "object": object,
    "circle": _circle,
    "NaN": lambda: float("nan"),
    "huge int": lambda: 10**5000,
    "half a pair": lambda: "\ud800",
    "too large": lambda: "x" * (4 * 2**20),
}


def in_child(token: str, how: str) -> Any:
    with Run(token):
        return BODIES[how]()


def heedless_child(token: str) -> str:
    """Heeds no signal that can be ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Run(token):
        while True:
            time.sleep(0.05)


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

    @worker.task(retry_policy="never")
    async def on_loop(token: str, how: str) -> Any:
        with Run(token):
            return BODIES[how]()

    @worker.task(retry_policy="never")
    def in_thread(token: str, how: str) -> Any:
        with Run(token):
            return BODIES[how]()

    worker.task(in_child, subprocess=True, retry_policy="never")

    @worker.task(retry_policy="never", timeout=1)
    async def heedless(token: str) -> str:
        """Swallows each cancellation until its gate is open."""
        with Run(token):
            while not (GATES / token).exists():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)
        return "it was not stopped"

    worker.task(heedless_child, subprocess=True, retry_policy="never", timeout=1)

    @worker.task()
    async def work(token: str, seconds: float = 0.0) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(seconds)
        result: dict[str, Any] = run.result
        return result
