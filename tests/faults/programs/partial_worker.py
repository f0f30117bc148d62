"""Workers that have one task only, as TEST_VERSION says: `other`; `wait_for_gate`; or `work`, as it was before it had `seconds`."""

import asyncio
import os
from typing import Any

from fastapi import FastAPI
from fault_worker import GATES, Run

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()


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

    version = os.environ.get("TEST_VERSION", "other")
    if version == "other":

        @worker.task()
        async def other(token: str) -> dict[str, Any]:
            """Which nobody else has."""
            with Run(token) as run:
                pass
            return run.result

    elif version == "gates":

        @worker.task()
        async def wait_for_gate(token: str, gate: str) -> dict[str, Any]:
            """Goes on until a file of that name is there."""
            with Run(token) as run:
                while not (GATES / gate).exists():  # noqa: ASYNC110  a file tells no event
                    await asyncio.sleep(0.02)
            return run.result

    else:

        @worker.task()
        async def work(token: str) -> dict[str, Any]:
            """Takes a while without blocking."""
            with Run(token) as run:
                pass
            return run.result
