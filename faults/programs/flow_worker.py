"""The worker of R1: a chain whose link is its own successor, and a root with branches, each of which has leaves.

TEST_LINKS jobs of the chain run; the one after them is born as failed, too deep. There are ten branches, and TEST_LEAVES leaves of each; a fork has
the first ten leaves at once.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from chaos_worker import Run  # type: ignore[import-not-found]  # it lies beside this program
from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
BRANCHES = [f"branch{n}" for n in range(10)]
LEAVES = [f"leaf{n}" for n in range(int(os.environ["TEST_LEAVES"]))]
OFTEN = 1000  # deaths of its worker that a job survives: the row is about successors


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

    async def noted(token: str, seconds: float = 0.02, **more: Any) -> dict[str, Any]:
        with Run(token) as run:
            await asyncio.sleep(seconds)
        return {**run.result, **more}

    @worker.task(run_after="link", max_crashes=OFTEN)
    async def chain(token: str) -> dict[str, Any]:
        return await noted(token, chain=token, link=1)

    @worker.task(run_after="link", max_crashes=OFTEN, max_chain_depth=int(os.environ["TEST_LINKS"]) - 1)
    async def link(before: dict[str, Any]) -> dict[str, Any]:
        number = before["link"] + 1
        return await noted(f"{before['chain']}+{number}", chain=before["chain"], link=number)

    @worker.task(run_after=BRANCHES, max_crashes=OFTEN)
    async def root(token: str) -> dict[str, Any]:
        return await noted(token)

    @worker.task(run_after=LEAVES[:10], max_crashes=OFTEN)
    async def fork(token: str) -> dict[str, Any]:
        return await noted(token)

    def below(name: str, seconds: float) -> Callable[..., Awaitable[dict[str, Any]]]:
        async def body(before: dict[str, Any]) -> dict[str, Any]:
            return await noted(f"{before['token']}+{name}", seconds)

        return body

    for name in BRANCHES:
        worker.task(below(name, 0.02), name=name, run_after=LEAVES, max_crashes=OFTEN)
    for name in LEAVES:
        worker.task(below(name, 0.1), name=name, max_crashes=OFTEN)
