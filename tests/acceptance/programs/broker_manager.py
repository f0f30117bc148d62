# The seed's manager with a broker; the broker's URL and the directory come from the test.

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
        broker_type=os.environ.get('TEST_BROKER_TYPE', 'rabbitmq'),
        broker_path=os.environ['TEST_BROKER'],
    )

    @job_manager.task()
    async def basic_job(arg1, arg2, arg3, *args):
        print(f"basic_job: {arg1} {arg2} {arg3} - args {args}")
        await asyncio.sleep(0)
        return arg1, arg2, arg3
