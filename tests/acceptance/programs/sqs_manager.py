# The seed's manager with Amazon SQS; the URL and the directory come from the test.

import asyncio
import os

from easyjobs.manager import EasyJobsManager
from fastapi import FastAPI

server = FastAPI()


@server.on_event('startup')
async def startup():
    os.environ['DB_PATH'] = os.environ['TEST_DB_PATH']

    job_manager = await EasyJobsManager.create(
        server,
        server_secret='abcd1234',
        broker_type='sqs',
        broker_path=os.environ['TEST_BROKER'],
    )

    @job_manager.task()
    async def basic_job(arg1, arg2: int = 0, arg3: int = 0):
        await asyncio.sleep(0)
        return arg1
