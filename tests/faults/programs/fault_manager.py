"""The manager of the fault tests: as a user writes it."""

import os

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    await EasyJobsManager.create(server, server_secret=os.environ["TEST_SECRET"])
