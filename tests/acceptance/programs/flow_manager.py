"""A manager with a task of its own, for chains that end here."""

import os

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

os.environ["DB_PATH"] = os.environ["TEST_DB_PATH"]
server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    server.job_manager = manager = await EasyJobsManager.create(
        server, server_secret="abcd1234", lease_s=float(os.environ.get("TEST_LEASE_S", "30")), keep_cancelled_s=0
    )

    @server.post("/toggle")
    async def toggle(pause: bool) -> None:
        manager.toggle_workers(pause=pause)

    @server.get("/pid")
    async def pid() -> int:
        return os.getpid()

    @manager.task()
    async def archive(text: str) -> str:
        return f"archived {text}"
