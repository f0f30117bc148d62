# The worker of the README's "Subprocess usage": a stub, whose logic is in WORKER_TASK_DIR/basic_blocking.py.

import os
from fastapi import FastAPI
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()

@server.on_event('startup')
async def setup():
    worker = await EasyJobsWorker.create(
        server,
        server_secret='abcd1234',
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret='abcd1234',
        jobs_queue='DEFAULT',
        max_tasks_per_worker=3
    )

    #required env vars
    os.environ['WORKER_TASK_DIR'] = os.environ['TEST_TASK_DIR']

    @worker.task(subprocess=True)
    async def basic_blocking(a, b, c):
        pass
