"""Whoever may write to a queue of the broker and means harm: each message becomes a job or a row of the quarantine, and good ones flow on."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from easyjobs.brokers.memory import MemoryBroker
from easyjobs.domain.job import JobQuery, JobRecord
from easyjobs.domain.quarantine import KEPT_BYTES, Quarantined, QuarantineQuery
from easyjobs.ports.broker import MAX_MESSAGE, Outgoing
from easyjobs.services.consumer import Consumer
from tests.security.world import World, task_named

MIB = 1024 * 1024
LONG = MIB - 200  # so that the message is not too large
FORGED = "x\n2026-01-01 00:00:00 ERROR job.succeeded job_id=forged\r\x1b[31m\u2028\u0085\x00"
JOB = {"name": "work", "args": [1]}


def anything(value: object = None) -> object:
    return value


def plain(**fields: Any) -> bytes:
    return json.dumps({**JOB, **fields}).encode()


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"name":"anything","args":[' + opening * depth + closing * depth + b"]}"


# What comes, and the reason for which it is put aside.
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "bad_json"),
    "zeros": (b"\x00" * 100, "bad_json"),
    "no UTF-8": (b'{"name":"work","args":["\xff\xfe"]}', "bad_json"),
    "no UTF-8 in the name": (b'{"name":"w\xc0\xafork","args":[1]}', "bad_json"),
    "half of a surrogate": (b'{"name":"anything","args":["\\ud800"]}', "bad_json"),
    "half of a surrogate in a key": (b'{"name":"anything","kwargs":{"\\udfff":1}}', "bad_json"),
    "UTF-16": ('{"name":"work","args":[1]}'.encode("utf-16"), "bad_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + plain(), "bad_json"),
    "NaN": (b'{"name":"work","args":[NaN]}', "bad_json"),
    "infinity": (b'{"name":"work","args":[-Infinity]}', "bad_json"),
    "a number that no float holds": (b'{"name":"anything","args":[1e400]}', "bad_format"),
    "a number of a million digits": (b'{"name":"anything","args":[' + b"9" * LONG + b"]}", "bad_format"),
    "two documents": (plain() + plain(), "bad_json"),
    "deep arrays": (nested(100_000), "bad_format"),
    "deep objects": (nested(100_000, b'{"a":', b"}").replace(b":}", b":1}"), "bad_format"),
    "deep and never closed": (b"[" * (MIB - 1), "bad_format"),
    "a little too deep": (nested(1000), "bad_format"),
    "compressed": (gzip.compress(plain()), "bad_json"),
    "a compressed bomb": (gzip.compress(b"[" + b"1," * (5 * MIB) + b"1]"), "bad_json"),
    "pickled": (b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.", "bad_json"),
    "no job": (b"[[[]]]", "bad_format"),
    "no jobs": (b"[]", "bad_format"),
    "jobs in jobs": (json.dumps({"job": {"job": JOB}}).encode(), "bad_format"),
    "more jobs than a message may have": (json.dumps([JOB] * 20_000).encode(), "bad_format"),
    "one bad job among good ones": (json.dumps([JOB, JOB, {"name": "work", "args": ["no number"]}]).encode(), "invalid_arguments"),
    "a name that is none": (plain(name={"$ne": ""}), "bad_format"),
    "the last of two names counts": (b'{"name":"work","name":7,"args":[1]}', "bad_format"),
    "the last of two arguments counts": (b'{"name":"work","kwargs":{"n":1,"n":"text"}}', "invalid_arguments"),
    "fields of a stored job": (plain(lane=1, attempt=7, state="succeeded", result="forged", parent="x"), "bad_format"),
    "an id that is none": (plain(id={"a": 1}), "bad_format"),
    "an empty id": (plain(id=""), "bad_format"),
    "an id with control characters": (plain(id=FORGED), "bad_format"),
    "a long id": (plain(id="i" * 256), "bad_format"),
    "a key with control characters": (plain(key="a\x00b"), "bad_format"),
    "a reply_to with control characters": (plain(reply_to=FORGED), "bad_format"),
    "a long reply_to": (plain(reply_to="q" * LONG), "bad_format"),
    "a reply_to that is none": (plain(reply_to=["a", "b"]), "bad_format"),
    "a namespace with control characters": (plain(namespace=FORGED), "unknown_task"),
    "a namespace that is a path": (plain(namespace="../../etc/passwd"), "unknown_task"),
    "a long namespace": (plain(namespace="n" * LONG), "bad_format"),
    "a name with control characters": (plain(name=FORGED), "unknown_task"),
    "a name that is one without its zero": (plain(name="wo\x00rk"), "unknown_task"),
    "SQL for a name": (plain(name="'; drop table easyjobs.jobs; --"), "unknown_task"),
    "a long name": (plain(name="w" * LONG), "bad_format"),
    "a number past 64 bits": (plain(priority=2**70), "bad_format"),
    "a delay past all time": (plain(delay=10**300), "bad_format"),
    "an instant past all time": (plain(at="9999-12-31T23:59:59-23:59"), "bad_format"),
    "a long string for a number": (plain(args=["s" * LONG]), "invalid_arguments"),
    "a long unknown argument": (plain(args=[], kwargs={"k" * LONG: 1}), "invalid_arguments"),
    "control characters for a number": (plain(args=[FORGED]), "invalid_arguments"),
    "control characters for an argument": (plain(args=[], kwargs={FORGED: 1}), "invalid_arguments"),
    "too large": (b" " * MAX_MESSAGE + plain(), "too_large"),
}  # fmt: skip
GOOD = [
    plain(namespace="Q"),
    plain(reply_to="answers"),
    b'{"name":"work","args":[1],"args":[2]}',
    b'{"name":"anything","args":[' + b"9" * 4000 + b"]}",
    b'{"name":"anything","args":["' + b"s" * (MIB // 2) + b'"]}',
    json.dumps({"name": "anything", "args": [{FORGED: FORGED}]}).encode(),
    nested(20),
    plain(at="0001-01-01T00:00:00+23:59"),  # it is over, so the job may run now
]


class Line:
    """A broker before a whole manager."""

    def __init__(self, there: World) -> None:
        manager = there.manager
        self.store, self.broker = manager._store, MemoryBroker()
        self.consumer = Consumer(
            self.broker, store=manager._store, inbox=manager._inbox, catalogue=manager._catalogue, clock=manager._clock,
            has_room=lambda: True, backlog=1_000_000,
        )  # fmt: skip

    async def send(self, bodies: Sequence[bytes]) -> None:
        """Send these, and wait until the last is acknowledged."""
        await self.broker.publish("Q", [Outgoing(body) for body in bodies])
        async with asyncio.timeout(120):
            while self.broker._waiting["Q"] or self.broker._held["Q"]:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    async def jobs(self) -> list[JobRecord]:
        return (await self.store.page(JobQuery(limit=100_000)))[::-1]

    async def bad(self) -> list[Quarantined]:
        return (await self.store.quarantined(QuarantineQuery(limit=100_000)))[::-1]


@pytest.fixture
async def line(there: World) -> AsyncIterator[Line]:
    await there.peer().join(task_named("work"), task_named("anything", anything))
    made = Line(there)
    await made.consumer.start()
    yield made
    assert made.consumer.is_up
    assert made.consumer.failure is None
    await made.consumer.stop()


async def test_each_bad_message_is_put_aside_for_its_reason_and_each_good_one_is_a_job(
    there: World, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for body, _ in BAD.values():
            await line.send([body, plain()])
        await line.send(GOOD)
    rows = await line.bad()
    assert dict(zip(BAD, [row.reason for row in rows], strict=True)) == {what: reason for what, (_, reason) in BAD.items()}
    assert [row.size for row in rows] == [len(body) for body, _ in BAD.values()]
    assert all(row.body == body[: len(row.body)] for row, (body, _) in zip(rows, BAD.values(), strict=True))
    assert all(len(row.body) <= KEPT_BYTES or row.reason == "unknown_task" for row in rows)
    assert all(len(row.detail) <= 2000 for row in rows)
    assert len(await line.jobs()) == len(BAD) + len(GOOD)
    for record in caplog.records:
        if record.name.startswith("easyjobs"):
            assert record.getMessage().isprintable(), record
            assert record.exc_info is None
    async with there.client() as http:  # what is shown is JSON, whatever it was
        page = await http.get("/jobs/api/v1/quarantine?limit=100")
        assert len(page.json()["items"]) == len(BAD)
        assert (await http.get("/jobs/api/v1/jobs?limit=100")).status_code == 200


async def test_bad_messages_by_the_thousand_delay_good_ones_and_lose_none(line: Line) -> None:
    small = [body for body, _ in BAD.values() if len(body) < 10_000]
    bad = [small[n % len(small)] for n in range(2000)]
    mixed: list[bytes] = []
    for n, body in enumerate(bad):
        mixed.append(body)
        if n % 4 == 0:
            mixed.append(json.dumps({"name": "work", "args": [n]}).encode())
    await line.send(mixed)
    assert [job.args for job in await line.jobs()] == [b"[[%d],{}]" % n for n in range(0, 2000, 4)]
    assert [row.body for row in await line.bad()] == bad


async def test_ids_that_others_have_used_give_no_second_job_and_take_none_away(line: Line) -> None:
    """An id is of its queue and broker: who sends it again with other arguments is put aside, and the first job stays as it is."""
    await line.send([plain(id="an order"), plain(id="an order", args=[2]), plain(key="an order", name="anything"), plain(id="an order")])
    assert [job.args for job in await line.jobs()] == [b"[[1],{}]"]
    assert [row.reason for row in await line.bad()] == ["key_reused", "key_reused"]


async def test_a_message_that_waits_is_not_taken_for_one_of_a_task_of_nearly_that_name(there: World, line: Line) -> None:
    """What a store cannot keep of a name (PostgreSQL: zeros) makes it no other name."""
    names = ["la\x00ter", "later\x00", "\x00"]
    await line.send([plain(name=name) for name in names])
    await there.peer().join(task_named("later"))
    async with asyncio.timeout(20):
        await there.manager._inbox.run_once()
    assert await line.jobs() == []
    assert [json.loads(row.body)["name"] for row in await line.bad()] == names
