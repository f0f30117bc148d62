# Somebody's reminders: some by themselves, some when they are asked for. The environment stands for a change of the code.

import os
from datetime import datetime, timedelta

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()
options = {}
if os.environ.get('TEST_SCHEDULE'):
    options = {'schedule': os.environ['TEST_SCHEDULE'], 'default_args': {'whom': os.environ.get('TEST_WHOM', 'everybody')}, 'timezone': 'Asia/Kolkata'}

@server.on_event('startup')
async def startup():

    job_manager = await EasyJobsManager.create(server, server_secret='abcd1234')

    @job_manager.task(**options)
    async def remind(whom):
        return f"remember, {whom}"

    @server.post('/remind')
    async def remind_later(whom: str, seconds: float):
        at = datetime.now().astimezone() + timedelta(seconds=seconds)
        job = await remind.options(at=at).submit(whom)
        return {'id': job.id, 'at': at}

    @server.post('/remind/badly')
    async def remind_badly():
        try:
            await remind.options(at=datetime.now()).submit('nobody')
        except ValueError as why:
            return str(why)
