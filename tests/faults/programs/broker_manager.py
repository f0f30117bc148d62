"""A manager of a broker, impatient: what a killed one held comes again after two seconds. It can be made to die before an acknowledgement."""

import asyncio
import os
import signal
from pathlib import Path

from fastapi import FastAPI

from easyjobs.brokers import nats, redis
from easyjobs.manager import EasyJobsManager

redis.CLAIM_IDLE_S, redis.CLAIM_EVERY_S, redis.BLOCK_S, redis.RedisStreams.watch_s = 2.0, 0.5, 0.5, 0.5
nats.ACK_WAIT_S = 2.0

DIE = Path(os.environ["TEST_DIE"])
server = FastAPI()


def dies_before_ack(broker):
    """While the file `DIE` is there: the next acknowledgement is not sent, and the process is gone."""
    ack = broker.ack

    async def dying(self, queue, deliveries):
        if DIE.exists():  # noqa: ASYNC240 (once for each batch)
            os.kill(os.getpid(), signal.SIGKILL)
        await ack(self, queue, deliveries)

    broker.ack = dying


dies_before_ack(redis.RedisStreams)
dies_before_ack(nats.JetStream)


@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, server_secret="abcd1234", broker_path=os.environ["TEST_BROKER"])

    @manager.task()
    async def basic_job(arg1, arg2, arg3, *args):
        await asyncio.sleep(0)
        return arg1, arg2, arg3
