"""A worker whose schedules the test names: `TEST_SCHEDULES` is JSON, a task's name → the options of `worker.task`, none for a task without a schedule."""

import json
import os

from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    worker = await EasyJobsWorker.create(
        server,
        server_secret=os.environ["TEST_SECRET"],
        manager_host=os.environ.get("TEST_MANAGER_HOSTS", "127.0.0.1"),
        manager_port=int(os.environ["TEST_MANAGER_PORT"]),
        manager_secret=os.environ["TEST_SECRET"],
        jobs_queue="FAULTS",
        max_tasks_per_worker=int(os.environ["TEST_SLOTS"]),
    )

    async def work() -> str:
        return "ticked"

    for name, options in json.loads(os.environ["TEST_SCHEDULES"]).items():
        worker.task(work, name=name, **options)
