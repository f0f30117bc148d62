"""`EasyJobsManager.create` with brokers, in this process and over brokers in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from easyjobs.brokers.memory import MemoryBroker
from easyjobs.errors import ConfigurationError
from easyjobs.manager import EasyJobsManager
from easyjobs.ports.broker import Outgoing

SECRET = "a secret of the tests, long enough to be one"
Create = Callable[..., Coroutine[Any, Any, EasyJobsManager]]


@pytest.fixture
async def create() -> AsyncIterator[Create]:
    made: list[EasyJobsManager] = []

    async def make(**keywords: Any) -> EasyJobsManager:
        made.append(await EasyJobsManager.create(FastAPI(), SECRET, store="memory:", auth="off", **keywords))
        return made[-1]

    yield make
    for manager in made:
        await manager.close()


async def readiness(manager: EasyJobsManager) -> Any:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(manager.server), base_url="http://127.0.0.1:8220") as client:
        return (await client.get("/jobs/readyz")).json()


async def until_all_are_up(manager: EasyJobsManager) -> None:
    async with asyncio.timeout(10):
        while not all(consumer.is_up for consumer in manager._consumers):
            await readiness(manager)


def broker_of(manager: EasyJobsManager, number: int) -> MemoryBroker:
    broker = manager._consumers[number]._broker
    assert isinstance(broker, MemoryBroker)
    return broker


@pytest.mark.parametrize("keywords", [{}, {"broker_type": "easyjobs"}])
async def test_the_embedded_queue_is_the_default_and_no_broker(create: Create, keywords: Any) -> None:
    manager = await create(**keywords)
    assert await readiness(manager) == {"status": "ready"}


async def test_a_manager_takes_from_several_brokers_and_answers_to_one_of_them(create: Create) -> None:
    manager = await create(broker_path="memory://", brokers=["memory://", "memory://"], results_to="memory-2/answers")
    ran: list[int] = []

    @manager.task()
    async def work(n: int) -> int:
        ran.append(n)
        return n

    await until_all_are_up(manager)
    assert await readiness(manager) == {"status": "ready", "brokers": {"memory": "up", "memory-2": "up", "memory-3": "up"}}
    answers = broker_of(manager, 1)
    for number in range(3):
        await broker_of(manager, number).publish("DEFAULT", [Outgoing(b'{"name":"work","args":[%d]}' % number)])
    async with asyncio.timeout(10):
        got = [json.loads(message.body) for _ in range(3) for message in await answers.fetch("answers", 1)]
    assert sorted(each["result"] for each in got) == sorted(ran) == [0, 1, 2]


async def test_a_broker_that_goes_down_is_named_and_stops_no_other(create: Create) -> None:
    manager = await create(brokers=["memory://", "memory://"])
    await until_all_are_up(manager)
    broker = broker_of(manager, 0)
    broker.is_down, broker.watch_s = True, 0.01
    manager._consumers[0].wake()
    async with asyncio.timeout(10):
        while (await readiness(manager))["brokers"] != {"memory": "down", "memory-2": "up"}:
            await asyncio.wait([manager._watcher], timeout=0.01)
    broker.is_down = False
    await until_all_are_up(manager)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"broker_type": "rabbitmq"}, "broker_path"),
        ({"broker_type": "kafka", "broker_path": "kafka://u:pass-word@h"}, "kafka"),
        ({"broker_path": "ftp://u:pass-word@h"}, "ftp"),
        ({"brokers": ["ftp://u:pass-word@h"]}, "ftp"),
        ({"results_to": "answers"}, "results_to: 'answers' is a queue of a message broker, and this manager has none"),
        ({"results_to": "", "broker_path": "memory://"}, "results_to"),
    ],
)
async def test_what_cannot_be_meant_is_said_before_anything_starts(create: Create, keywords: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        await create(**keywords)
    assert "pass-word" not in str(wrong.value)
