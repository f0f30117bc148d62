"""A worker whose tasks run by themselves, every second, and catch up in each of the ways."""

import os

from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
EVERY_SECOND = "* * * * * *"


@server.on_event("startup")
async def startup() -> None:
    worker = await EasyJobsWorker.create(
        server,
        server_secret=os.environ["TEST_SECRET"],
        manager_host=os.environ.get("TEST_MANAGER_HOSTS", "127.0.0.1"),
        manager_port=int(os.environ["TEST_MANAGER_PORT"]),
        manager_secret=os.environ["TEST_SECRET"],
        jobs_queue="FAULTS",
        max_tasks_per_worker=10,
    )

    async def work(what: str) -> str:
        return what

    for number in range(10):
        worker.task(work, name=f"all_{number}", schedule=EVERY_SECOND, default_args=["all"], catch_up="all")
    worker.task(work, name="one", schedule=EVERY_SECOND, default_args={"what": "one"})
    worker.task(work, name="skip", schedule=EVERY_SECOND, default_args={"what": "skip"}, catch_up="skip")
    worker.task(work, name="paused", schedule=EVERY_SECOND, default_args={"what": "paused"}, catch_up="all")
