"""A worker: it dials the manager, offers its tasks, and runs their jobs.

JOBS_SECRET='the same text' uvicorn --app-dir examples --port 8221 job_worker:server --workers 2
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum

from fastapi import FastAPI
from pydantic import BaseModel

from easyjobs.workers.worker import EasyJobsWorker


class Shape(Enum):
    """Sizes of a thumbnail."""

    SQUARE = "square"
    WIDE = "wide"


class Order(BaseModel):
    """What somebody bought."""

    number: int
    items: list[str]
    express: bool = False


@dataclass
class Delivery:
    """When an order arrives."""

    number: int
    on: date


@asynccontextmanager
async def lifespan(server: FastAPI) -> AsyncIterator[None]:
    secret = os.environ["JOBS_SECRET"]
    worker = await EasyJobsWorker.create(
        server,
        server_secret=secret,
        manager_host=os.environ.get("MANAGER_HOST", "127.0.0.1"),
        manager_port=int(os.environ.get("MANAGER_PORT", "8220")),
        manager_secret=secret,
        jobs_queue="DEFAULT",
        max_tasks_per_worker=10,
    )

    @worker.task()
    async def add(a: int, b: int = 0) -> int:
        """The sum of two numbers."""
        return a + b

    @worker.task()
    async def ship(order: Order, ordered_on: date) -> Delivery:
        """Arguments arrive as what they are annotated to be, results leave as JSON."""
        return Delivery(order.number, ordered_on + timedelta(days=1 if order.express else 3))

    @worker.task()
    def thumbnail(path: str, shape: Shape = Shape.SQUARE) -> str:
        """A plain function may block: it runs in a thread."""
        time.sleep(0.2)
        return f"{path} as {shape.value}"

    @worker.task(retry_policy="never")
    async def slow_report(seconds: float = 5.0) -> str:
        """Takes its time."""
        await asyncio.sleep(seconds)
        return "done"

    yield


server = FastAPI(lifespan=lifespan)
