"""From the ends of jobs to the queues of a broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from easyjobs.brokers.memory import MemoryBroker
from easyjobs.domain.job import JobQuery, NewSession, Outcome, Report, Reports, Want
from easyjobs.errors import BrokerRefused, QueueGone, StoreError
from easyjobs.ports.broker import Outgoing
from easyjobs.services import sender as module
from easyjobs.services.inbox import Letter
from tests.services.conftest import Parts

S = b"s" * 16


class Post:
    """A broker whose queues can be made to refuse."""

    def __init__(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts, self.broker = parts, MemoryBroker("memory")
        self.refused: set[str] = set()
        self.poison: bytes | None = None
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.outgoing: list[Outgoing] = []
        self.sender = module.Sender(self.broker, store=parts.store, catalogue=parts.catalogue, clock=parts.clock)
        self.news = asyncio.Event()
        monkeypatch.setattr(self.broker, "publish", self._publish)

    async def _publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        self.broker._up()
        if queue in self.refused or (self.poison is not None and any(self.poison in each.body for each in messages)):
            raise BrokerRefused(f"queue {queue}: not for you")
        self.sent += [(queue, json.loads(each.body)) for each in messages]
        self.outgoing += messages
        self.news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.sent) < count:
                self.news.clear()
                await self.news.wait()

    async def run_jobs(self, *outcomes: tuple[Outcome, bytes]) -> None:
        """Claim and end that many jobs."""
        [session] = await self.parts.store.begin([NewSession(S, "w")])
        lanes = tuple(self.parts.catalogue.lanes_of(None, None))
        [claims] = await self.parts.store.claim([Want(session, lanes, len(outcomes))])
        reports = [Report(job.seq, job.attempt, outcome, 0, body) for job, (outcome, body) in zip(claims.jobs, outcomes, strict=True)]
        await self.parts.store.finish([Reports(session, reports)])

    async def left(self) -> int:
        return len(await self.parts.store.unsent("memory"))


@pytest.fixture
async def post(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Post:
    made = Post(parts, monkeypatch)
    await parts.task()
    await made.broker.connect()
    parts.store.on_unsent = made.sender.wake
    return made


def letter(number: int, **fields: Any) -> Letter:
    body = json.dumps({"name": "work", "args": [number], "reply_to": "answers", **fields}).encode()
    return Letter("memory", "Q", f"m{number}", body)


async def test_a_message_with_reply_to_is_answered_with_its_id(post: Post, parts: Parts) -> None:
    await parts.inbox.take([letter(1, id="order-1"), letter(2), letter(3, key="k-3")])
    await post.run_jobs(
        (Outcome.SUCCEEDED, b'{"x":9007199254740993}'), (Outcome.FAILED, b'{"type":"E","message":"no"}'), (Outcome.SUCCEEDED, b"null")
    )
    running = asyncio.create_task(post.sender.run())
    await post.until(3)
    running.cancel()
    (queue, first), (_, second), (_, third) = post.sent
    assert queue == "answers"
    assert (first["correlation_id"], first["status"], first["result"], first["error"]) == (
        "order-1",
        "succeeded",
        {"x": 9007199254740993},
        None,
    )
    assert (second["correlation_id"], second["status"], second["result"], second["error"]["message"]) == ("m2", "failed", None, "no")
    assert (third["correlation_id"], third["namespace"], third["name"], third["attempt"]) == ("k-3", "Q", "work", 1)
    assert [each.correlation_id for each in post.outgoing] == ["order-1", "m2", "k-3"]
    assert len({each.id for each in post.outgoing}) == 3


async def test_where_a_task_says_where_its_ends_go_they_answer_to_the_message_too(post: Post, parts: Parts) -> None:
    parts.catalogue._brokers = ("memory",)
    await parts.task("told", options=b'{"results_to": "answers"}')
    await parts.inbox.take(
        [
            Letter("memory", "Q", f"m{n}", json.dumps({"name": "told", "args": [n], **more}).encode())
            for n, more in ((1, {"id": "order-1"}), (2, {}))
        ]
    )
    await parts.control.cancel([job.id for job in await parts.store.page(JobQuery())])
    assert [row.correlation for row in await parts.store.unsent("memory")] == ["m2", "order-1"]


async def test_what_was_confirmed_is_forgotten(post: Post, parts: Parts) -> None:
    await parts.inbox.take([letter(n) for n in range(5)])
    await post.run_jobs(*[(Outcome.SUCCEEDED, b"1")] * 5)
    rows = await parts.store.unsent("memory")
    await post.sender.send(rows)
    assert await post.left() == 0


async def test_what_was_not_confirmed_is_sent_again(post: Post, parts: Parts) -> None:
    await parts.inbox.take([letter(1)])
    await post.run_jobs((Outcome.SUCCEEDED, b"1"))
    post.broker.is_down = True
    with pytest.raises(Exception, match="down"):
        await post.sender.run()
    assert await post.left() == 1
    post.broker.is_down = False
    running = asyncio.create_task(post.sender.run())
    await post.until(1)
    running.cancel()


async def test_a_refused_queue_holds_up_no_other_and_is_tried_again(post: Post, parts: Parts) -> None:
    await parts.inbox.take([letter(1, reply_to="closed"), letter(2, reply_to="closed"), letter(3)])
    await post.run_jobs(*[(Outcome.SUCCEEDED, b"1")] * 3)
    post.refused.add("closed")
    running = asyncio.create_task(post.sender.run())
    await post.until(1)
    assert [queue for queue, _ in post.sent] == ["answers"]
    post.refused.clear()
    parts.clock.advance(module.AGAIN_S + 1)
    post.sender.wake()
    await post.until(3)
    running.cancel()
    assert [queue for queue, _ in post.sent] == ["answers", "closed", "closed"]


async def test_a_message_that_is_refused_holds_up_no_other(post: Post, parts: Parts) -> None:
    await parts.inbox.take([letter(n) for n in range(6)])
    await post.run_jobs(*[(Outcome.SUCCEEDED, b'"%d!"' % n) for n in range(6)])
    post.poison = b"2!"
    await post.sender.send(await parts.store.unsent("memory"))
    assert [each["result"] for _, each in post.sent] == ["0!", "1!", "3!", "4!", "5!"]
    assert await post.left() == 1


async def test_what_is_refused_for_a_week_is_dropped_and_said(post: Post, parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    await parts.inbox.take([letter(1)])
    await post.run_jobs((Outcome.SUCCEEDED, b"1"))
    post.refused.add("answers")
    await post.sender.send(await parts.store.unsent("memory"))
    assert await post.left() == 1
    parts.clock.advance(7 * 24 * 3600 + 1)
    await post.sender.send(await parts.store.unsent("memory"))
    assert await post.left() == 0
    assert "result.refused" in caplog.text
    assert "dropped=1" in caplog.text


async def test_a_store_that_fails_stops_nothing(post: Post, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    real, tries = parts.store.sent, 0

    def sent(ids: Sequence[int]) -> Any:
        nonlocal tries
        tries += 1
        if tries > 2:
            return real(ids)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(StoreError("a test"))
        return failed

    monkeypatch.setattr(parts.store, "sent", sent)
    await parts.inbox.take([letter(1)])
    await post.run_jobs((Outcome.SUCCEEDED, b"1"))
    await post.sender.send(await parts.store.unsent("memory"))
    assert (tries, await post.left(), len(post.sent)) == (3, 0, 1)


async def test_a_task_says_where_its_ends_are_told(post: Post, parts: Parts) -> None:
    parts.catalogue._brokers, parts.catalogue._results_to = ("memory", "other"), "everything"
    await parts.task("own", options=b'{"results_to":"special"}')
    await parts.task("elsewhere", options=b'{"results_to":"other/x"}')
    await parts.task("default")
    for name in ("own", "elsewhere", "default"):
        await parts.inbox.take([Letter("memory", "Q", name, json.dumps({"name": name, "args": [1]}).encode())])
    await post.run_jobs(*[(Outcome.SUCCEEDED, b"1")] * 3)
    first, second = await parts.store.unsent("memory")
    assert {first.queue, second.queue} == {"special", "everything"}
    [other] = await parts.store.unsent("other")
    assert other.queue == "x"
    await post.sender.send([first])
    assert post.sent[0][1]["correlation_id"] == first.queue.replace("special", "own").replace("everything", "default"), "the message's id"


async def test_reply_to_in_a_message_goes_before_the_task_s_own(post: Post, parts: Parts) -> None:
    parts.catalogue._brokers, parts.catalogue._results_to = ("memory",), "everything"
    await parts.task("own", options=b'{"results_to":"special"}')
    await parts.inbox.take([letter(1, name="own")])
    await post.run_jobs((Outcome.SUCCEEDED, b"1"))
    assert [row.queue for row in await parts.store.unsent("memory")] == ["answers"]


async def test_results_to_without_a_broker_is_said_and_the_jobs_run(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    task = await parts.task("own", options=b'{"results_to":"special"}')
    assert task.reply is None
    assert "results_to" in caplog.text
    assert "this manager has none" in caplog.text


async def test_a_reader_that_has_gone_with_its_queue_gets_nothing_and_holds_up_nobody(
    post: Post, parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await parts.inbox.take([letter(1, reply_to="amq.gen-1"), letter(2)])
    await post.run_jobs(*[(Outcome.SUCCEEDED, b"1")] * 2)

    async def publish(queue: str, messages: Sequence[Outgoing]) -> None:
        if queue == "amq.gen-1":
            raise QueueGone(f"queue {queue}: it is not there any more")
        await post._publish(queue, messages)

    monkeypatch.setattr(post.broker, "publish", publish)
    await post.sender.send(await parts.store.unsent("memory"))
    assert [queue for queue, _ in post.sent] == ["answers"]
    assert await post.left() == 0
    assert "result.unclaimed" in caplog.text
