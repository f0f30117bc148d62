"""The Python client against a manager that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from easyjobs import client as module
from easyjobs.client import EasyJobsClient
from easyjobs.errors import StoreBusy
from easyjobs.protocol.codec import encode
from easyjobs.protocol.manager_side import ManagerSide
from easyjobs.protocol.messages import Submit, SubmitProblem, Submitted
from easyjobs.runtime import reconnect

SECRET = "a secret of the tests, long enough to be one"
BUSY = SubmitProblem(status=503, detail="too much", is_busy=True)


@contextlib.asynccontextmanager
async def manager(answer: Callable[[ServerConnection, Any], Awaitable[None]]) -> AsyncIterator[str]:
    """One that welcomes everybody, and does what `answer` says with each frame."""

    async def conversation(socket: ServerConnection) -> None:
        side = ManagerSide((SECRET,), os.urandom(32))
        await socket.send(side.challenge())
        side.greet(await socket.recv())
        await socket.send(side.welcome(lease_s=30, beat_s=10, drop=[]))
        async for message in socket:
            await answer(socket, side.receive(message))

    async with serve(conversation, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_callers_in_one_frame_that_is_refused_for_want_of_room_are_all_told_and_nothing_is_sent_again() -> None:
    frames: list[Submit] = []

    async def answer(socket: ServerConnection, frame: Any) -> None:
        frames.append(frame)
        await socket.send(encode(Submitted(number=frame.number, problem=BUSY)))

    async with manager(answer) as url, EasyJobsClient(url, SECRET) as client:
        answers = await asyncio.gather(*(client.submit("Q", "work", n) for n in range(100)), return_exceptions=True)
    assert [type(each) for each in answers] == [StoreBusy] * 100
    assert [len(frame.jobs) for frame in frames] == [100]


async def test_a_bulk_submit_waits_for_room_and_sends_the_same_ids_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.01)
    frames: list[Submit] = []

    async def answer(socket: ServerConnection, frame: Any) -> None:
        frames.append(frame)
        await socket.send(encode(Submitted(number=frame.number, problem=BUSY if len(frames) < 4 else None)))

    async with manager(answer) as url, EasyJobsClient(url, SECRET) as client:
        jobs = await client.submit_many({"namespace": "Q", "name": "work", "args": [n]} for n in range(3))
    assert [len(frame.jobs) for frame in frames] == [3] * 4
    assert {tuple(item.id for item in frame.jobs) for frame in frames} == {tuple(job._raw for job in jobs)}


async def test_a_client_that_gets_no_answer_waits_longer_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or where thousands come back at once, each gives up before its turn, and goes to the end of the queue."""
    monkeypatch.setattr(module, "CONNECT_S", 0.05)
    monkeypatch.setattr(reconnect, "wait", lambda *_: 0.0)
    patience: list[float] = []
    dial = EasyJobsClient._dial

    async def dialled(self: EasyJobsClient) -> Any:
        patience.append(self._patience_s)
        return await dial(self)

    monkeypatch.setattr(EasyJobsClient, "_dial", dialled)
    is_deaf, back = False, asyncio.Event()

    async def answer(socket: ServerConnection, frame: Any) -> None:
        nonlocal is_deaf
        if not is_deaf:
            is_deaf = True
            socket.transport.abort()
            return
        await socket.send(encode(Submitted(number=frame.number)))
        back.set()

    async def hold(connection: ServerConnection, request: Any) -> None:
        if is_deaf and len(patience) < 5:
            await asyncio.sleep(60)  # until the client gives up

    async def conversation(socket: ServerConnection) -> None:
        side = ManagerSide((SECRET,), os.urandom(32))
        await socket.send(side.challenge())
        side.greet(await socket.recv())
        await socket.send(side.welcome(lease_s=30, beat_s=10, drop=[]))
        async for message in socket:
            await answer(socket, side.receive(message))

    async with serve(conversation, "127.0.0.1", 0, process_request=hold, close_timeout=0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EasyJobsClient(url, SECRET) as client:
            async with asyncio.timeout(20):
                await client.submit("Q", "work", 1)
                await back.wait()
            assert client._timeouts == 0
    tries = patience[1:5]  # the first was the open
    assert tries == [pytest.approx(0.05 * 2**n) for n in range(4)]


async def test_a_manager_that_closes_at_once_is_not_asked_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    seen = asyncio.Event()

    def wait(failures: int, *_: Any) -> float:
        pauses.append(failures)
        if len(pauses) >= 6:
            seen.set()
        return 0.0

    monkeypatch.setattr(reconnect, "wait", wait)

    async def answer(socket: ServerConnection, frame: Any) -> None:
        socket.transport.abort()

    async with manager(answer) as url, EasyJobsClient(url, SECRET) as client:
        asked = asyncio.ensure_future(client.submit("Q", "work", 1))
        async with asyncio.timeout(20):
            await seen.wait()
        asked.cancel()
    assert pauses[:6] == [1, 2, 3, 4, 4, 4]
