"""A manager that takes messages from a broker and gives the jobs to nobody: what is measured is how they come in."""

import os

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    """Default settings."""
    manager = await EasyJobsManager.create(server, server_secret=os.environ["BENCH_SECRET"], broker_path=os.environ["BENCH_BROKER"])
    manager.toggle_workers(pause=True)

    @manager.task(namespace="BENCH")
    async def noop(number: int) -> None:
        pass
