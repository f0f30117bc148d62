# A manager inside a lifespan: here FastAPI never runs handlers of on_event.

import os
from contextlib import asynccontextmanager

from easyjobs.manager import EasyJobsManager
from fastapi import FastAPI


@asynccontextmanager
async def lifespan(server: FastAPI):
    os.environ['DB_PATH'] = os.environ['TEST_DB_PATH']
    job_manager = await EasyJobsManager.create(server, server_secret='abcd1234')

    @job_manager.task()
    async def calls_another(n: int) -> int:
        return await double(n) + 1

    @job_manager.task()
    async def double(n: int) -> int:
        return n * 2

    yield
    print('manager says goodbye')


server = FastAPI(lifespan=lifespan)
