# A worker as users have had it for years.

import asyncio, os
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

    @worker.task()
    async def work_a(a, b, c):
        await asyncio.sleep(5)
        return {'result': [a, b, c]}

    @worker.task
    async def bare_decorator(x: int = 1):
        return x, os.getpid()

    def plain(text: str) -> str:
        return text.upper()

    worker.task(plain, retry_policy='always')

    @worker.task(on_failure='send_failure_email', retry_policy='never')
    async def finance_work(employee_id: str, employee_data: dict):
        """
        do finance work
        """
        raise ValueError(f"no such employee {employee_id}")

    @worker.task(retry_policy='always')
    async def send_failure_email(reason):
        return f"email sent for {reason}"
