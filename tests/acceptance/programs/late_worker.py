# Connects later, with a task that nobody knew before, in a queue that nobody knew before.

import os
from contextlib import asynccontextmanager

from easyjobs.workers.worker import EasyJobsWorker
from fastapi import FastAPI


@asynccontextmanager
async def lifespan(server: FastAPI):
    worker = await EasyJobsWorker.create(
        server,
        server_secret='abcd1234',
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret=os.environ.get('TEST_MANAGER_SECRET', 'abcd1234'),
        jobs_queue='later',
        max_tasks_per_worker=3,
    )

    @worker.task()
    async def newcomer(n: int) -> int:
        return n * 2

    print('worker is set up')
    yield
    print('worker says goodbye')


server = FastAPI(lifespan=lifespan)
