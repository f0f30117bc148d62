"""A manager that takes from a broker, and runs its task itself. With TEST_IMPATIENT what a killed one held comes again after two seconds."""

import asyncio
import os
from typing import Any

from fastapi import FastAPI

from easyjobs.brokers import nats, redis
from easyjobs.manager import EasyJobsManager

if os.environ.get("TEST_IMPATIENT"):
    vars(redis).update(CLAIM_IDLE_S=2.0, CLAIM_EVERY_S=0.5, BLOCK_S=0.5)
    redis.RedisStreams.watch_s = 0.5
    vars(nats).update(ACK_WAIT_S=2.0)

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    manager = await EasyJobsManager.create(server, server_secret=os.environ["TEST_SECRET"], broker_path=os.environ["TEST_BROKER"])

    @manager.task()
    async def work(token: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"token": token}
