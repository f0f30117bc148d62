# The manager of the README's "Subprocess usage", with a stub of its own.

import os
from easyjobs.manager import EasyJobsManager
from fastapi import FastAPI

server = FastAPI()

#required env vars
os.environ['MANAGER_HOST'] = '0.0.0.0'
os.environ['MANAGER_PORT'] = '8220'
os.environ['WORKER_TASK_DIR'] = os.environ['TEST_TASK_DIR']
os.environ['DB_PATH'] = os.environ['TEST_DB_PATH']

@server.on_event('startup')
async def startup():
    manager = await EasyJobsManager.create(server, server_secret='abcd1234')

    @manager.task(subprocess=True)
    async def advanced_blocking(a, b, c):
        pass
