"""A whole manager in this process, and peers that say whatever a test lets them say."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import httpx2
import msgspec
from fastapi import FastAPI

from easyjobs.domain.cloning import describe
from easyjobs.domain.job import Claimed, Running
from easyjobs.domain.signature import encode as encode_signature
from easyjobs.manager import EasyJobsManager
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.handshake import peer_proof
from easyjobs.protocol.messages import Challenge, Credit, Frame, Hello, NewTask, Offer, Offered, Run, Welcome

SECRET = "a secret of the tests, long enough to be one"
HOST = "127.0.0.1:8220"
LOCAL = ("127.0.0.1", 40001)
REMOTE = ("192.0.2.7", 40001)
UUID = "00000000-0000-0000-0000-000000000000"


def work(n: int = 0) -> int:
    """What the tests' workers offer."""
    return n


def task_named(name: str, fn: Callable[..., Any] = work, options: bytes = b"{}") -> NewTask:
    return NewTask(name, encode_signature(describe(fn)), options)


class Peer:
    """An ASGI server's half of one WebSocket, and the frames of a peer on it."""

    def __init__(
        self, app: FastAPI, headers: list[tuple[bytes, bytes]] | None = None, host: bytes = HOST.encode(), client: tuple[str, int] = LOCAL
    ) -> None:
        self.came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.session = os.urandom(16)
        self.jobs: list[Claimed] = []
        self.lanes: dict[str, int] = {}
        scope = {
            "type": "websocket", "path": "/ws/jobs", "raw_path": b"/ws/jobs", "root_path": "", "scheme": "ws", "query_string": b"",
            "headers": [(b"host", host), *(headers or [])], "client": client, "server": ("127.0.0.1", 8220), "subprotocols": [],
            "state": {}, "extensions": {}, "asgi": {"version": "3.0"}, "http_version": "1.1",
        }  # fmt: skip
        self.came.put_nowait({"type": "websocket.connect"})
        self.served = asyncio.ensure_future(app(scope, self.came.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.put_nowait(message)

    def say_bytes(self, data: bytes) -> None:
        self.came.put_nowait({"type": "websocket.receive", "bytes": data})

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.say_bytes(encode(frame))

    async def next(self) -> Any:
        """The next frame, or the close code."""
        async with asyncio.timeout(10):
            while True:
                if self.served.done() and self.sent.empty():
                    self.served.result()  # raises what the manager stumbled over
                    return None
                message = await self.sent.get()
                if message["type"] == "websocket.close":
                    return message["code"]
                if message["type"] == "websocket.send":
                    return from_manager().decode(message["bytes"])

    async def hear(self, wanted: type[Any]) -> Any:
        """The next frame of this type; jobs that come before it are kept."""
        while True:
            said = await self.next()
            if isinstance(said, Run):
                self.jobs += said.jobs
            if isinstance(said, wanted):
                return said
            assert not isinstance(said, int | None), f"closed with {said} before a {wanted.__name__} came"

    async def hear_close(self) -> int:
        """Read until the manager closes: the code."""
        while True:
            said = await self.next()
            if isinstance(said, int):
                return said
            assert said is not None, "the conversation ended without a close code"

    async def closing(self) -> int | None:
        """The close code if the manager has closed by the time that it has done what it was told, None if it goes on."""
        for _ in range(20):
            await asyncio.sleep(0)
        while not self.sent.empty():
            said = await self.next()
            if isinstance(said, int):
                return said
        return None

    async def hello(self, **fields: Any) -> Hello:
        """Say hello to the challenge, truly; `fields` replace those of the frame."""
        challenge = await self.hear(Challenge)
        nonce = os.urandom(32)
        role = fields.get("role", "worker")
        proof = peer_proof(SECRET, role=role, session=self.session, manager_nonce=challenge.nonce, peer_nonce=nonce, version=1)
        said: dict[str, Any] = {
            "version": 1,
            "role": role,
            "session": self.session,
            "nonce": nonce,
            "proof": proof,
            "name": "w",
            "queue": "Q",
        }
        hello = Hello(**{**said, "slots": 3, **fields})
        self.say(hello)
        return hello

    async def join(self, *tasks: NewTask, **fields: Any) -> Self:
        """Come in as a worker that offers these tasks."""
        await self.hello(**fields)
        await self.hear(Welcome)
        if tasks:
            self.say(Offer(number=1, tasks=list(tasks)))
            offered = await self.hear(Offered)
            assert not offered.refused, offered.refused
            self.lanes = {task.name: task.lane for task in offered.tasks}
        return self

    async def take(self, n: int = 1) -> list[Claimed]:
        """Ask for `n` jobs in all and wait for them."""
        self.say(Credit(limit=n))
        while len(self.jobs) < n:
            await self.hear(Run)
        return self.jobs

    async def leave(self) -> None:
        self.came.put_nowait({"type": "websocket.disconnect", "code": 1006})
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.served, 10)


class World:
    """A manager on an app, without slots of its own."""

    def __init__(self, app: FastAPI, manager: EasyJobsManager) -> None:
        self.app, self.manager = app, manager
        self.peers: list[Peer] = []

    def peer(self, **more: Any) -> Peer:
        peer = Peer(self.app, **more)
        self.peers.append(peer)
        return peer

    def client(self, client: tuple[str, int] = LOCAL, base: str = f"http://{HOST}") -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app, client=client), base_url=base)

    async def submit(self, name: str = "work", body: Any = None, queue: str = "Q") -> str:
        async with self.client() as http:
            answer = await http.post(f"/{queue}/task/{name}", json=body if body is not None else {})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["request_id"])

    async def job(self, id: str) -> Any:
        async with self.client() as http:
            answer = await http.get(f"/jobs/api/v1/jobs/{id}")
            assert answer.status_code == 200, answer.text
            return msgspec.json.decode(answer.content)  # stricter than `json`


@contextlib.asynccontextmanager
async def world(store: str = "memory:", **settings: Any) -> AsyncIterator[World]:
    app = FastAPI()
    given: dict[str, Any] = {"server_secret": SECRET, "manager_slots": 0, "lease_s": 600, **settings}  # peers here send no beats
    async with await EasyJobsManager.create(app, store=store, **given) as manager:
        here = World(app, manager)
        try:
            yield here
        finally:
            for peer in here.peers:
                await peer.leave()


def running(job: Claimed, **other: Any) -> Running:
    """A claimed job as a hello lists it."""
    return msgspec.structs.replace(Running(job.seq, job.attempt, job.lane, job.id), **other)
