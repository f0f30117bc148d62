# Functions of a module that run in child processes, without a file in WORKER_TASK_DIR. Served by uvicorn, or run as a script.

import asyncio
import os
import sys
import time
from datetime import date

from fastapi import FastAPI
from pydantic import BaseModel

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()


class Order(BaseModel):
    number: int
    day: date


def ship(order: Order, parts: list[int] | None = None) -> dict:
    assert isinstance(order, Order)
    print("shipping", order.number)
    return {"day": order.day, "total": sum(parts or []), "pid": os.getpid(), "main": __name__}


async def wait_for(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "in time"


def hang(pid_file: str) -> None:
    with open(pid_file + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(pid_file + ".new", pid_file)
    while True:
        time.sleep(60)


def eat(megabytes: int) -> int:
    return len([bytearray(1 << 20) for _ in range(megabytes)])


async def work_for_the_manager():
    worker = await EasyJobsWorker.create(
        server,
        manager_host='127.0.0.1',
        manager_port=int(os.environ['TEST_MANAGER_PORT']),
        manager_secret='abcd1234',
        jobs_queue=os.environ.get('TEST_QUEUE', 'functions'),
    )
    worker.task(ship, subprocess=True)
    worker.task(wait_for, subprocess=True, timeout=0.5, retry_policy='never')
    worker.task(hang, subprocess=True, timeout=1, retry_policy='never', on_failure='tell')
    worker.task(eat, subprocess=True, max_memory='256MB', retry_policy='never')

    @worker.task()
    async def tell(reason: str) -> str:
        return reason

    if os.environ.get('TEST_STUB'):
        worker.task(name='no_such_file', subprocess=True)(stub)


async def stub(n: int):
    """Its file is missing."""


@server.on_event('startup')
async def startup():
    await work_for_the_manager()


async def main():
    await work_for_the_manager()
    await asyncio.Event().wait()


if __name__ == '__main__':
    asyncio.run(main())
