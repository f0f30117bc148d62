"""The manager under measurement, with default settings."""

import os

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()


async def noop(n: int) -> int:
    """Never run: it makes the queue one that jobs are taken for."""
    return n


@server.on_event("startup")
async def startup() -> None:
    """Nothing but what a user writes."""
    manager = await EasyJobsManager.create(server, server_secret=os.environ["BENCH_SECRET"])
    if os.environ.get("BENCH_OWN_TASK"):
        manager.task(noop, namespace="BENCH")
