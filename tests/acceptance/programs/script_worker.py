# A worker without uvicorn: a script with a loop of its own.

import asyncio
import os

from easyjobs.workers.worker import EasyJobsWorker
from fastapi import FastAPI


async def main():
    worker = await EasyJobsWorker.create(
        FastAPI(),
        server_secret='abcd1234',
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret='abcd1234',
        jobs_queue='scripts',
        max_tasks_per_worker=3,
    )

    @worker.task()
    async def from_a_script(n: int = 1, seconds: float = 0) -> int:
        await asyncio.sleep(seconds)
        return n + 1

    await asyncio.Event().wait()


asyncio.run(main())
