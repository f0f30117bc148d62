"""The manager under measurement, with default settings."""

import os

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    """Nothing but what a user writes."""
    await EasyJobsManager.create(server, server_secret=os.environ["BENCH_SECRET"])
