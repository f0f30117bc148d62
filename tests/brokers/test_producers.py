"""What producers refuse before anything is sent, whatever the broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from easyjobs.brokers import type_of
from easyjobs.errors import BrokerRefused, ConfigurationError, InvalidArguments
from easyjobs.producers import nats, rabbitmq, redis, sqs
from easyjobs.producers.channel import Channel
from easyjobs.runtime.settings import ManagerSettings


class Sent(Channel):
    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []

    async def _publish(self, bodies: list[tuple[str, bytes]]) -> None:
        self.bodies += bodies

    async def close(self) -> None: ...


@pytest.mark.parametrize("job", ["work", 5, None, {}, {"job": "work"}, {"name": 1}])
async def test_what_is_no_job_is_refused(job: Any) -> None:
    channel = Sent()
    with pytest.raises(InvalidArguments, match="a job is a mapping with a 'name'"):
        await channel.send_job(job)
    with pytest.raises(InvalidArguments):
        await channel.send_jobs([{"name": "work"}, job])
    assert channel.bodies == []


async def test_one_job_is_no_list_of_jobs() -> None:
    with pytest.raises(InvalidArguments, match="pass a list of them, or this one to send_job"):
        await Sent().send_jobs({"name": "work"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "get", [nats.get_producer_channel, rabbitmq.get_producer_channel, redis.get_producer_channel, sqs.get_producer_channel]
)
@pytest.mark.parametrize("queue", ["", "mail/eu 1", "x" * 65])
async def test_a_namespace_that_no_manager_can_have_is_refused(get: Callable[[str, str], Awaitable[Channel]], queue: str) -> None:
    with pytest.raises(InvalidArguments, match="is no namespace"):
        await get("nowhere://127.0.0.1:1", queue)


async def test_another_brokers_url_is_refused_at_once() -> None:
    with pytest.raises(BrokerRefused, match="this is no URL of a RabbitMQ"):
        await rabbitmq.get_producer_channel("redis://127.0.0.1:1", "DEFAULT")


def test_the_embedded_queue_has_no_url() -> None:
    settings = ManagerSettings.read(secret="s" * 32, broker_type="easyjobs", broker_path="redis://127.0.0.1:6379")
    with pytest.raises(ConfigurationError, match="has no URL"):
        _ = settings.broker_urls
    assert type_of("redis://127.0.0.1") == "redis"
