# A manager as users have had it for years: everything in a startup handler, its data where DB_PATH says.

import asyncio, os
from easyjobs.manager import EasyJobsManager
from fastapi import FastAPI

server = FastAPI()

os.environ['DB_PATH'] = os.environ['TEST_DB_PATH']

@server.on_event('startup')
async def startup():

    job_manager = await EasyJobsManager.create(
        server,
        server_secret='abcd1234'
    )

    @job_manager.task()
    async def basic_job(arg1, arg2, arg3, *args):
        print(f"basic_job: {arg1} {arg2} {arg3} - args {args}")
        await asyncio.sleep(2)
        return arg1, arg2, arg3

    @job_manager.task(namespace='general', run_after='more_general_work')
    async def general_work(general_data: dict):
        """
        do general work
        """
        return {'general_results': sorted(general_data)}

    @job_manager.task(namespace='general')
    async def more_general_work(general_results):
        # extra work on general_results
        return f"more {general_results}"
