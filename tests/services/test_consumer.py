"""From a broker to jobs, over a broker and a store in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from easyjobs.brokers.memory import MemoryBroker
from easyjobs.domain.job import JobQuery, JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import Quarantined, QuarantineQuery
from easyjobs.errors import BrokerRefused, NotReplayed, StoreError, StoreFull, StoreHeld
from easyjobs.ports.broker import MAX_MESSAGE, PREFETCH, Outgoing
from easyjobs.services import consumer as module
from easyjobs.services.consumer import Consumer
from tests.services.conftest import Parts, row


class Line:
    """A broker and the consumer behind it."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.broker = parts, MemoryBroker()
        self.room = True
        self.consumer = self.anew()

    def anew(self) -> Consumer:
        made = Consumer(
            self.broker, store=self.parts.store, inbox=self.parts.inbox, catalogue=self.parts.catalogue, clock=self.parts.clock,
            has_room=lambda: self.room, backlog=1000,
        )  # fmt: skip

        def offered() -> None:
            made.wake()
            self.parts.inbox.wake()

        self.parts.catalogue.on_offers = offered
        return made

    async def send(self, *bodies: Any, queue: str = "Q") -> None:
        raw = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
        await self.broker.publish(queue, [Outgoing(body) for body in raw])

    async def until_empty(self, queue: str = "Q") -> None:
        async with asyncio.timeout(20):
            while self.broker._waiting[queue] or self.broker._held[queue]:
                await self.parts.store.counts()
                await asyncio.sleep(0)

    async def until_up(self, is_up: bool) -> None:
        async with asyncio.timeout(10):
            while self.consumer.is_up != is_up:
                await self.parts.store.counts()
                await asyncio.sleep(0.001)

    async def jobs(self) -> list[JobRecord]:
        return (await self.parts.store.page(JobQuery(limit=100_000)))[::-1]

    async def bad(self) -> list[Quarantined]:
        return await self.parts.store.quarantined(QuarantineQuery(limit=100_000))


@pytest.fixture
async def line(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    monkeypatch.setattr(module, "ROOM_S", 0.001)
    made = Line(parts)
    await parts.task()
    await made.consumer.start()
    await made.until_up(True)
    yield made
    await made.consumer.stop()


async def test_messages_become_jobs_in_order(line: Line) -> None:
    await line.send(
        *[{"namespace": "Q", "name": "work", "args": [n], "kwargs": {}} for n in range(600)], {"job": {"name": "work", "args": [600]}}
    )
    await line.send([{"name": "work", "args": [601]}, {"name": "work", "kwargs": {"n": 602}, "priority": 0}])
    await line.until_empty()
    assert [job.args for job in await line.jobs()][:602] == [b"[[%d],{}]" % n for n in range(602)]
    assert len(await line.jobs()) == 603
    assert await line.bad() == []


async def test_a_queue_that_is_refused_is_seen_beside_the_connection(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_S", 0.01)
    real = line.broker.consume
    is_refused = True

    async def consume(queue: str) -> None:
        if is_refused and queue == "R":
            raise BrokerRefused("no access")
        await real(queue)

    monkeypatch.setattr(line.broker, "consume", consume)
    assert line.consumer.state == "up"
    await line.parts.task(queue="R")
    line.parts.catalogue.joined([line.parts.catalogue.find("R", "work").lane])
    for expected in ("refused", "up"):
        async with asyncio.timeout(10):
            while line.consumer.state != expected:
                await line.parts.store.counts()
                await asyncio.sleep(0.001)
        is_refused = False


async def test_bad_messages_go_into_quarantine_and_good_ones_flow_on(line: Line) -> None:
    poison = [b"no json", b"[1]", b'"x"', {"args": [1]}, {"name": "work", "args": ["text"]}, {"name": "work", "args": [1], "reply_to": ""}]
    await line.send(*poison * 50, b'{"name":"work","args":[' + b"1" * MAX_MESSAGE + b"]}", {"name": "work", "args": [7]})
    await line.until_empty()
    assert [job.args for job in await line.jobs()] == [b"[[7],{}]"]
    rows = await line.bad()
    assert len(rows) == 301
    assert {row.reason for row in rows} == {"bad_json", "bad_format", "invalid_arguments", "too_large"}
    assert rows[0].size > MAX_MESSAGE > len(rows[0].body) == 65536


async def test_a_redelivery_after_the_commit_is_no_second_job(line: Line) -> None:
    real, cut = line.broker.ack, asyncio.Event()

    async def no_ack(*_: Any) -> None:
        cut.set()
        await asyncio.Event().wait()

    line.broker.ack = no_ack  # type: ignore[method-assign]
    await line.send(*[{"name": "work", "args": [n]} for n in range(20)], b"{")
    async with asyncio.timeout(10):
        await cut.wait()
    await line.consumer.stop()
    assert len(await line.jobs()) == 20
    line.broker.ack = real  # type: ignore[method-assign]
    again = line.anew()
    await again.start()
    await line.until_empty()
    await again.stop()
    assert len(await line.jobs()) == 20
    assert len(await line.bad()) == 1


async def test_a_key_in_the_message_makes_one_job_and_another_body_is_put_aside(line: Line) -> None:
    await line.send(
        {"name": "work", "args": [1], "key": "k"}, {"name": "work", "args": [1], "id": "k"}, {"name": "work", "args": [2], "key": "k"}
    )
    await line.until_empty()
    assert len(await line.jobs()) == 1
    assert [row.reason for row in await line.bad()] == ["key_reused"]


async def test_a_message_waits_for_its_task(line: Line, parts: Parts) -> None:
    await line.send({"name": "later", "args": [1]}, {"name": "later", "args": ["text"]}, {"name": "never"})
    await line.until_empty()
    assert await line.jobs() == []
    await parts.catalogue.offer([row("later")], "a test")
    await parts.inbox.run_once()
    assert [job.args for job in await line.jobs()] == [b"[[1],{}]"]
    assert {row.reason: row.waits_until is None for row in await line.bad()} == {"invalid_arguments": True, "unknown_task": False}


async def test_after_its_grace_a_message_is_replayed_by_hand_only(line: Line, parts: Parts) -> None:
    await line.send({"name": "later", "args": [1]})
    await line.until_empty()
    parts.clock.advance(601)
    await parts.catalogue.offer([row("later")], "a test")
    await parts.inbox.run_once()
    assert await line.jobs() == []
    [kept] = await line.bad()
    ids = await parts.inbox.replay(kept.id)
    assert len(ids) == 1
    assert await line.bad() == []


async def test_a_replay_that_cannot_help_says_so_and_keeps_the_message(line: Line, parts: Parts) -> None:
    await line.send(b"{")
    await line.until_empty()
    [kept] = await line.bad()
    with pytest.raises(NotReplayed, match="stays in quarantine"):
        await parts.inbox.replay(kept.id)
    assert len(await line.bad()) == 1


async def test_queues_of_tasks_that_come_later_are_consumed(line: Line, parts: Parts) -> None:
    await line.send({"name": "work", "args": [1]}, queue="R")
    await parts.catalogue.offer([row("work", "R")], "a test")
    await line.until_empty("R")
    assert len(await line.jobs()) == 1


@pytest.mark.parametrize("error", [StoreFull("a test"), StoreHeld("a test")])
async def test_a_store_that_is_full_or_locked_holds_messages_and_loses_none(
    line: Line, parts: Parts, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    """None of them is to blame, so none is tried alone."""
    real, tries = parts.store.submit, 0

    def submit(submissions: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries > 3:
            return real(submissions)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed

    monkeypatch.setattr(parts.store, "submit", submit)
    await line.send(*[{"name": "work", "args": [n]} for n in range(20)])
    await line.until_empty()
    assert tries == 4
    assert len(await line.jobs()) == 20


async def test_a_broker_that_was_away_is_consumed_again(line: Line) -> None:
    line.broker.is_down = True
    line.broker._news.set()
    await line.until_up(False)
    assert line.consumer.failure == "memory is down"
    line.broker.is_down = False
    await line.until_up(True)
    await line.send({"name": "work", "args": [1]})
    await line.until_empty()
    assert len(await line.jobs()) == 1


async def test_a_broker_that_was_away_for_long_is_tried_again_soon(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise is 30 s from its return, and the try itself takes some of them."""
    pauses: list[float] = []
    pause = module.wait

    def noted(_failures: int, _random: float, *more: float) -> float:
        pauses.append(pause(1000, 0.999, *more))
        return 0.0

    monkeypatch.setattr(module, "wait", noted)
    line.broker.is_down = True
    line.broker._news.set()
    await line.until_up(False)
    line.broker.is_down = False
    await line.until_up(True)
    assert pauses
    assert max(pauses) < 16


async def until_held_up(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Until it is said that fetching has paused."""
    async with asyncio.timeout(10):
        while "broker.paused" not in caplog.text:
            await line.parts.store.counts()
            await asyncio.sleep(0)


async def test_with_the_disk_nearly_full_nothing_is_fetched_until_there_is_room(
    line: Line, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    line.room = False
    parts.clock.advance(2)
    await line.send(*[{"name": "work", "args": [n]} for n in range(module.BATCH)])  # the fetch that waits already takes these
    await line.until_empty()
    await line.send(*[{"name": "work", "args": [n]} for n in range(2000)])
    await until_held_up(line, caplog)
    assert len(line.broker._waiting["Q"]) == 2000
    assert len(await line.jobs()) == module.BATCH
    line.room = True
    await line.until_empty()
    assert len(await line.jobs()) == module.BATCH + 2000
    parts.clock.advance(2)


async def test_with_too_many_jobs_queued_nothing_is_fetched_until_some_have_run(
    line: Line, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    await line.send(*[{"name": "work", "args": [n]} for n in range(1000)])
    await line.until_empty()
    parts.clock.advance(2)
    await line.send(*[{"name": "work", "args": [n]} for n in range(3000)])
    await until_held_up(line, caplog)
    jobs = await line.jobs()
    assert 1000 <= len(jobs) <= 1000 + module.BATCH
    await parts.store.cancel([job.id for job in jobs])
    parts.clock.advance(2)

    async def go_on() -> None:
        while True:
            parts.clock.advance(2)
            some = await parts.store.page(JobQuery(states=(JobState.QUEUED,), limit=10_000))
            await parts.store.cancel([job.id for job in some])
            await asyncio.sleep(0)

    going = asyncio.create_task(go_on())
    await line.until_empty()
    going.cancel()
    assert len(await line.jobs()) == 4000


async def test_a_store_that_takes_nothing_bounds_what_is_held(line: Line, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = parts.store.submit, True
    tries = 0
    tried = asyncio.Event()

    def submit(submissions: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 20:
            tried.set()
        if not full:
            return real(submissions)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(StoreFull("a test"))
        return failed

    monkeypatch.setattr(parts.store, "submit", submit)
    monkeypatch.setattr(module, "MAX_RETRY_S", 0.001)
    await line.send(*[{"name": "work", "args": [n]} for n in range(5000)])
    async with asyncio.timeout(10):
        await tried.wait()
    assert len(line.broker._held["Q"]) <= PREFETCH
    full = False
    await line.until_empty()
    assert [job.args for job in await line.jobs()] == [b"[[%d],{}]" % n for n in range(5000)]


async def test_messages_of_a_namespace_without_tasks_stay_in_the_broker(line: Line, parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await line.send({"name": "work", "args": [1]})
    await line.until_empty()
    parts.clock.advance(601)  # the last worker is gone for longer than the grace
    await line.send(*[{"name": "work", "args": [n]} for n in range(2, 6)])
    async with asyncio.timeout(10):
        while "broker.left_queue" not in caplog.text:
            await parts.store.counts()
            await asyncio.sleep(0)
    await line.until_up(True)
    assert len(line.broker._waiting["Q"]) == 4
    assert await line.bad() == []
    await parts.task()
    await line.until_empty()
    assert [job.args for job in await line.jobs()] == [b"[[%d],{}]" % n for n in range(1, 6)]


async def test_other_namespaces_go_on_when_one_is_left(line: Line, parts: Parts) -> None:
    await parts.catalogue.offer([row("work", "R")], "a test")
    parts.catalogue.joined(parts.catalogue.lanes_of("R", None))
    parts.clock.advance(601)
    await line.send({"name": "work", "args": [1]})
    await line.send({"name": "work", "args": [2]}, queue="R")
    await line.until_empty("R")
    assert [job.args for job in await line.jobs()] == [b"[[2],{}]"]
    assert await line.bad() == []
