# A script that starts itself whenever it is imported: what multiprocessing's users know not to do.

import asyncio
import os

from easyjobs.workers.worker import EasyJobsWorker


def square(n: int) -> int:
    return n * n


async def main():
    worker = await EasyJobsWorker.create(
        manager_port=int(os.environ['TEST_MANAGER_PORT']), manager_secret='abcd1234', jobs_queue='unguarded'
    )
    worker.task(square, subprocess=True, retry_policy='never')
    await asyncio.Event().wait()


asyncio.run(main())
