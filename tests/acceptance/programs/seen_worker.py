# A worker whose tasks show what they do; they go on when the test makes a file.

import asyncio, logging, os
from fastapi import FastAPI
from easyjobs.tasks import JobContext, current_job
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
log = logging.getLogger('app')
log.setLevel(logging.INFO)

async def gate(name):
    while not os.path.exists(os.path.join(os.environ['TEST_GATES'], name)):
        await asyncio.sleep(0.02)

@server.on_event('startup')
async def setup():
    worker = await EasyJobsWorker.create(
        server,
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret='abcd1234',
        jobs_queue='DEFAULT',
        max_tasks_per_worker=5,
    )

    @worker.task()
    async def steps(names: list[str], ctx: JobContext) -> str:
        async for name in ctx.track(names):
            ctx.log.info('waits for %s', name)
            await gate(name)
            log.warning('got %s', name)
        return 'done'

    @worker.task()
    def in_a_thread(n: int) -> int:
        for each in current_job().track(range(n)):
            log.info('item %d', each)
        return n

    @worker.task(retry_policy=2)
    async def third_time() -> int:
        attempt = current_job().attempt
        log.info('attempt %d', attempt)
        if attempt < 3:
            raise ValueError(f'attempt {attempt} fails')
        return attempt

    @worker.task()
    async def looks_on(n: int) -> list[str]:
        job = await in_a_thread.submit(n)
        return [repr(event) async for event in job.events()]
