"""One connection as the manager sees it, with a network that the test plays: what came counts, though nothing can be sent any more."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.http.socket import Manager, serve
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.messages import CLOSE_BAD_FRAME, CLOSE_ENDED, Challenge, Credit, Frame, NewTask, Offer, Offered, Reports, Run
from easyjobs.protocol.worker_side import WorkerSide
from tests.services.conftest import LEASE_S, Parts, parts, row

__all__ = ["parts"]
SECRET = "a secret of the tests, long enough to be one"


class Network:
    """An ASGI server's half of one WebSocket. After `cut` nothing can be sent, while what has come waits to be read."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_cut = False
        self.failed = asyncio.Event()
        manager = Manager(
            store=parts.store,
            catalogue=parts.catalogue,
            dispatcher=parts.dispatcher,
            intake=parts.intake,
            reporter=parts.reporter,
            results=parts.results,
            events=parts.events,
            control=parts.control,
            secrets=(SECRET,),
            clock=parts.clock,
            lease_s=LEASE_S,
            connections=set(),
        )
        scope = {"type": "websocket", "path": "/", "headers": [], "client": ("127.0.0.1", 1), "query_string": b""}
        self.came.put_nowait({"type": "websocket.connect"})
        self.served = asyncio.create_task(serve(WebSocket(scope, self.came.get, self._send), manager))  # type: ignore[arg-type]

    async def _send(self, message: Any) -> None:
        if self.is_cut:
            self.failed.set()
            raise OSError("the peer is gone")
        self.sent.put_nowait(message)

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.came.put_nowait({"type": "websocket.receive", "bytes": encode(frame)})

    async def hear(self, wanted: type[Any]) -> Any:
        """The next message of this type; others are passed over."""
        async with asyncio.timeout(10):
            while True:
                message = await self.sent.get()
                if message["type"] == "websocket.send":
                    frame = from_manager().decode(message["bytes"])
                    if isinstance(frame, wanted):
                        return frame

    async def hear_close(self) -> int:
        async with asyncio.timeout(10):
            while (message := await self.sent.get())["type"] != "websocket.close":
                pass
        code: int = message["code"]
        return code

    async def join(self) -> None:
        """A worker comes in, and offers the task `work`."""
        side = WorkerSide(session=b"s" * 16, secret=SECRET, name="w", queue="Q", slots=3)
        self.say(side.challenged(await self.hear(Challenge), b"n" * 32))
        task = row()
        self.say(Offer(number=1, tasks=[NewTask(task.name, task.signature, task.options)]))
        await self.hear(Offered)


async def jobs_of(parts: Parts) -> dict[JobState, int]:
    return {state: count for (_, state), count in (await parts.store.counts()).items() if count}


async def test_what_came_before_the_end_counts_though_the_writer_met_a_closed_socket(parts: Parts) -> None:
    network = Network(parts)
    await network.join()
    network.say(Credit(limit=2))
    for _ in range(3):
        await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    [job, _] = [*(await network.hear(Run)).jobs, *(await network.hear(Run)).jobs]
    network.is_cut = True
    network.say(Credit(limit=3))  # the third job cannot be sent any more
    async with asyncio.timeout(10):
        await network.failed.wait()
    network.say(Reports(number=7, items=[Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=b"1")], limit=0))
    network.came.put_nowait({"type": "websocket.disconnect", "code": CLOSE_ENDED})
    await asyncio.wait_for(network.served, 10)
    await parts.settle()
    assert await jobs_of(parts) == {JobState.SUCCEEDED: 1, JobState.QUEUED: 2}, "the worker has ended: what it held runs elsewhere at once"


async def test_a_text_message_is_refused(parts: Parts) -> None:
    network = Network(parts)
    await network.join()
    network.came.put_nowait({"type": "websocket.receive", "text": "hello"})
    assert await network.hear_close() == CLOSE_BAD_FRAME
    network.came.put_nowait({"type": "websocket.disconnect", "code": CLOSE_BAD_FRAME})
    await asyncio.wait_for(network.served, 10)
