# A worker whose tasks are in a namespace of its own; it has no broker.

import os

from easyjobs.workers.worker import EasyJobsWorker
from fastapi import FastAPI

server = FastAPI()


@server.on_event('startup')
async def setup():
    worker = await EasyJobsWorker.create(
        server,
        server_secret='abcd1234',
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret='abcd1234',
        jobs_queue='REMOTE',
    )

    @worker.task()
    async def greet(name: str):
        return f'hello {name}'
