"""A manager for tests of the worker: real sockets and frames, jobs from a list, and every misbehaviour on request."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from easyjobs.domain.job import Claimed, Outcome, Report, Running
from easyjobs.domain.seeing import Line, Mark
from easyjobs.errors import ProtocolError
from easyjobs.protocol.codec import encode
from easyjobs.protocol.held import digest_of
from easyjobs.protocol.manager_side import HelloRefused, ManagerSide
from easyjobs.protocol.messages import (
    CLOSE_STORE_AWAY,
    Acked,
    Beat,
    BeatSeen,
    Cancel,
    Credit,
    Frame,
    Held,
    Hello,
    Log,
    Offer,
    Offered,
    OfferedTask,
    Progress,
    Refused,
    Reports,
    Results,
    Run,
    Submit,
    SubmitProblem,
    Submitted,
    Watch,
    WatchedResult,
)
from easyjobs.runtime.ids import new_id

SECRET = "a secret for tests, long enough to be one"
T = TypeVar("T")


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Await with a deadline."""
    async with asyncio.timeout(seconds):
        return await awaitable


class FakeManager:
    """Gives jobs to one worker at a time. Awaiting `seen(…)` waits for something to have happened."""

    def __init__(self, *, secret: str = SECRET, lease_s: float = 30.0, beat_s: float | None = None) -> None:
        self.secret, self.lease_s, self.beat_s = secret, lease_s, beat_s if beat_s is not None else lease_s / 3
        self.lanes: dict[str, int] = {}
        self.offers: dict[str, dict[str, Any]] = {}
        self.queue: deque[Claimed] = deque()
        self.jobs: dict[int, Claimed] = {}
        self.running: dict[int, Claimed] = {}
        self.reports: list[Report] = []
        self.marks: list[Mark] = []
        self.lines: list[Line] = []
        self.notes: list[Progress | Log] = []
        self.order: list[str] = []  # "log" and "reports" as they came
        self.ack_logs = True
        self.has_others = False
        self.has_store = True
        self.reports_of: dict[int, list[Report]] = {}
        self.hellos: list[Hello] = []
        self.beats: list[Beat] = []
        self.held: list[Held] = []
        self.submits: list[Submit] = []
        self.run_frames: list[int] = []
        self.drop: list[Running] = []
        self.closes: list[int | None] = []  # the codes that connections ended with
        self.problem: SubmitProblem | None = None
        self.ack = True
        self.answer_beats = True
        self.answer_submits = True
        self.requeue_released = True
        self.compare = True
        self.socket: ServerConnection | None = None
        self.told: set[int] = set()  # lanes that the worker of `socket` was told of
        self.limit = self.sent = self.most_sent_unreported = 0
        self.watching: set[bytes] = set()
        self._seq = 0
        self._news = asyncio.Condition()
        self._server: Server | None = None
        self.port = 0

    # --- life

    async def start(self, port: int = 0) -> None:
        self._server = await serve(self._serve, "127.0.0.1", port, compression=None, max_size=None)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def cut(self) -> None:
        """Cut the connection, as a cable would be."""
        assert self.socket is not None
        self.socket.transport.abort()

    # --- what tests ask

    async def seen(self, what: Callable[[], T], seconds: float = 10.0) -> T:
        """Wait until `what` is true, and return what it gave."""
        async with asyncio.timeout(seconds):
            async with self._news:
                while not (answer := what()):
                    await self._news.wait()
                return answer

    async def connected(self, times: int = 1) -> None:
        await self.seen(lambda: len(self.hellos) >= times and self.socket is not None)

    async def report(self, seq: int, nth: int = 1, seconds: float = 10.0) -> Report:
        """The nth report of a job."""
        await self.seen(lambda: len(self.reports_of.get(seq, ())) >= nth, seconds)
        return self.reports_of[seq][nth - 1]

    def add(
        self, name: str, *args: Any, attempt: int = 1, failures: int = 0, raw: bytes | None = None, timeout_us: int = 0, **kwargs: Any
    ) -> int:
        """Queue a job; returns its seq. The task may be offered later."""
        self._seq += 1
        lane = self.lanes.setdefault(name, len(self.lanes) + 1)
        body = msgspec.json.encode([args, kwargs]) if raw is None else raw
        job = Claimed(self._seq, attempt, lane, new_id(), failures, timeout_us, body)
        self.jobs[job.seq] = job
        self.queue.append(job)
        return job.seq

    async def give(self) -> None:
        """Send what the credit allows."""
        batch = []
        while self.queue and self.sent < self.limit and self.queue[0].lane in self.told and len(batch) < 1000:
            job = self.queue.popleft()
            self.running[job.seq] = job
            self.sent += 1
            batch.append(job)
        if batch and self.socket is not None:
            self.most_sent_unreported = max(self.most_sent_unreported, len(self.running))
            self.run_frames.append(len(batch))
            await self.send(Run(jobs=batch))
            await self.give()

    async def send(self, frame: Frame, socket: ServerConnection | None = None) -> None:
        socket = socket or self.socket
        assert socket is not None
        with contextlib.suppress(ConnectionClosed):
            await socket.send(encode(frame))

    async def run_job(self, name: str, *args: Any, **kwargs: Any) -> Report:
        """Queue a job, and wait for its (first) report."""
        seq = self.add(name, *args, **kwargs)
        await self.give()
        return await self.report(seq)

    async def cancel(self, *seqs: int) -> None:
        await self.send(Cancel(jobs=[(seq, self.jobs[seq].attempt) for seq in seqs]))

    # --- the conversation

    async def _serve(self, socket: ServerConnection) -> None:
        side = ManagerSide((self.secret,), os.urandom(32))
        try:
            await socket.send(side.challenge())
            hello = side.greet(await socket.recv())
        except HelloRefused as why:
            await socket.send(encode(Refused(code=why.code, reason=str(why))))
            await socket.close(why.code, str(why)[:100])
            return
        except (ConnectionClosed, ProtocolError):
            return
        if not self.has_store:
            await socket.close(CLOSE_STORE_AWAY, "the store is not available")
            return
        self.socket, self.told, self.limit, self.sent = socket, set(), 0, 0
        for job in list(self.running.values()):  # claimed, but never delivered
            if (job.seq, job.attempt) not in {(held.seq, held.attempt) for held in hello.held}:
                del self.running[job.seq]
                self.queue.appendleft(job)
        await socket.send(side.welcome(lease_s=self.lease_s, beat_s=self.beat_s, drop=self.drop, has_others=self.has_others))
        async with self._news:
            self.hellos.append(hello)
            self._news.notify_all()
        try:
            async for data in socket:
                await self._take(socket, side.receive(data))
                async with self._news:
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        finally:
            if self.socket is socket:
                self.socket = None
            self.closes.append(socket.close_code)
            async with self._news:
                self._news.notify_all()

    async def _take(self, socket: ServerConnection, frame: Any) -> None:
        newest = socket is self.socket  # of several workers the one that jobs go to
        if isinstance(frame, Offer):
            for task in frame.tasks:
                self.offers[task.name] = msgspec.json.decode(task.options)
                self.lanes.setdefault(task.name, len(self.lanes) + 1)
            tasks = [OfferedTask(task.name, self.lanes[task.name]) for task in frame.tasks]
            await self.send(Offered(number=frame.number, tasks=tasks), socket)
            self.told |= {task.lane for task in tasks} if newest else set()
        elif isinstance(frame, Credit):
            self.limit = frame.limit if newest else self.limit
        elif isinstance(frame, Progress):
            self.notes.append(frame)
            self.marks += frame.items
        elif isinstance(frame, Log):
            self.notes.append(frame)
            self.order.append("log")
            self.lines += frame.lines
            if self.ack_logs:
                await self.send(Acked(number=frame.number), socket)
        elif isinstance(frame, Reports):
            self.order.append("reports")
            self._reported(frame.items)
            self.limit = frame.limit or self.limit if newest else self.limit
            if self.ack:
                await self.send(Acked(number=frame.number), socket)
        elif isinstance(frame, Beat):
            self.beats.append(frame)
            if self.answer_beats:
                same = frame.count == len(self.running) and frame.digest == digest_of((j.seq, j.attempt) for j in self.running.values())
                await self.send(BeatSeen(number=frame.number, send_held=self.compare and not same, has_others=self.has_others), socket)
        elif isinstance(frame, Held):
            self.held.append(frame)
        elif isinstance(frame, Submit):
            self.submits.append(frame)
            if self.answer_submits:
                await self.send(Submitted(number=frame.number, problem=self.problem), socket)
                if self.problem is None:
                    await self._store(frame)
        elif isinstance(frame, Watch):
            for id in frame.ids:
                await self._tell(id)
            self.watching.update(frame.ids)
        await self.give()

    async def _store(self, frame: Submit) -> None:
        for item in frame.jobs:
            self._seq += 1
            job = Claimed(self._seq, 1, self.lanes.setdefault(item.name, len(self.lanes) + 1), item.id, 0, 0, item.args)
            self.jobs[job.seq] = job
            self.queue.append(job)

    async def _tell(self, id: bytes) -> None:
        for seq, job in self.jobs.items():
            final = [r for r in self.reports_of.get(seq, ()) if r.outcome is not Outcome.RELEASED and not r.retry]
            if job.id == id and final:
                state = 2 if final[-1].outcome is Outcome.SUCCEEDED else 3
                self.watching.discard(id)
                await self.send(Results(items=[WatchedResult(id, state, final[-1].body)]))

    def _reported(self, items: Sequence[Report]) -> None:
        for report in items:
            self.reports.append(report)
            self.reports_of.setdefault(report.seq, []).append(report)
            job = self.running.pop(report.seq, None)
            if job is None:
                continue
            if report.outcome is Outcome.RELEASED and self.requeue_released:
                again = msgspec.structs.replace(job, attempt=job.attempt + 1)
                self.jobs[job.seq] = again
                self.queue.append(again)
            if job.id in self.watching:
                asyncio.get_running_loop().create_task(self._tell(job.id))
