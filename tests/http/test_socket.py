"""One connection as the manager sees it, with a network that the test plays: what came counts, though nothing can be sent any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.websockets import WebSocket

from easyjobs.domain.job import JobQuery, NewSession, Outcome, Report, Want
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreBusy, StoreHeld
from easyjobs.http.socket import Manager, problem_of, serve
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.handshake import peer_proof
from easyjobs.protocol.held import digest_of
from easyjobs.protocol.messages import (
    CLOSE_BAD_FRAME,
    CLOSE_ENDED,
    CLOSE_REPLACED,
    MAX_OPEN_SUBMITS,
    PROTOCOL_VERSION,
    Acked,
    Beat,
    BeatSeen,
    Cancel,
    Challenge,
    Credit,
    Frame,
    Held,
    Hello,
    NewTask,
    Offer,
    Offered,
    Reports,
    Run,
    Submit,
    SubmitItem,
    Submitted,
    Welcome,
)
from easyjobs.protocol.problems import error_of
from easyjobs.protocol.worker_side import WorkerSide
from easyjobs.runtime.ids import new_id
from easyjobs.services.results import End
from tests.services.conftest import LEASE_S, Parts, parts, row, takes_a_number

__all__ = ["parts"]
SECRET = "a secret of the tests, long enough to be one"


def the_manager(parts: Parts) -> Manager:
    return Manager(
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


class Network:
    """An ASGI server's half of one WebSocket. After `cut` nothing can be sent, while what has come waits to be read."""

    def __init__(self, parts: Parts, manager: Manager | None = None) -> None:
        self.parts = parts
        self.came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_cut = False
        self.failed = asyncio.Event()
        scope = {"type": "websocket", "path": "/", "headers": [], "client": ("127.0.0.1", 1), "query_string": b""}
        self.came.put_nowait({"type": "websocket.connect"})
        self.served = asyncio.create_task(serve(WebSocket(scope, self.came.get, self._send), manager or the_manager(parts)))  # type: ignore[arg-type]

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

    async def join(self, options: bytes = b"{}") -> None:
        """A worker comes in, and offers the task `work`."""
        side = WorkerSide(session=b"s" * 16, secret=SECRET, name="w", queue="Q", slots=3)
        self.say(*side.challenged(await self.hear(Challenge), b"n" * 32))
        task = row(options=options)
        self.say(Offer(number=1, tasks=[NewTask(task.name, task.signature, task.options)]))
        await self.hear(Offered)

    async def greet(self) -> None:
        """A client comes in."""
        challenge = await self.hear(Challenge)
        session, nonce, version = b"c" * 16, b"n" * 32, PROTOCOL_VERSION
        proof = peer_proof(SECRET, role="client", session=session, manager_nonce=challenge.nonce, peer_nonce=nonce, version=version)
        self.say(Hello(version=version, role="client", session=session, nonce=nonce, proof=proof))
        await self.hear(Welcome)


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


# --- found by the simulation ------------------------------------------------------------------------------------------------------


async def a_job_that_the_worker_seems_not_to_have(parts: Parts, network: Network) -> tuple[int, int]:
    """Claimed, sent, and given back, since two lists of what the worker holds were without it. Returns (seq, attempt)."""
    await parts.task("after", fn=takes_a_number)
    await network.join(b'{"run_after":["after"]}')
    network.say(Credit(limit=1))
    await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    [job] = (await network.hear(Run)).jobs
    network.say(Credit(limit=0))  # so that nobody has claimed it since
    for number in (1, 2):
        network.say(Beat(number=number, count=0, digest=0))
        assert (await network.hear(BeatSeen)).send_held
        network.say(Held(items=[]))
        await parts.settle()
        parts.clock.advance(LEASE_S / 3)
    network.say(Beat(number=3, count=0, digest=0))
    await network.hear(BeatSeen)
    await parts.settle()
    assert (await jobs_of(parts))[JobState.QUEUED] == 1
    return job.seq, job.attempt


async def test_a_job_that_was_long_on_its_way_and_was_given_back_has_its_successors_all_the_same(parts: Parts) -> None:
    network = Network(parts)
    seq, attempt = await a_job_that_the_worker_seems_not_to_have(parts, network)
    network.say(Reports(number=9, items=[Report(seq, attempt, Outcome.SUCCEEDED, body=b"1")]))
    assert (await network.hear(Acked)).stale == []
    assert await jobs_of(parts) == {JobState.SUCCEEDED: 1, JobState.QUEUED: 1}, "its run_after was not born"


async def test_whoever_waits_for_such_a_job_is_told_of_its_end(parts: Parts) -> None:
    network = Network(parts)
    seq, attempt = await a_job_that_the_worker_seems_not_to_have(parts, network)
    [record] = await parts.store.page(JobQuery())
    told: list[End] = []
    parts.results.add(record.id, told.append)
    network.say(Reports(number=9, items=[Report(seq, attempt, Outcome.SUCCEEDED, body=b"1")]))
    await network.hear(Acked)
    assert [end.state for end in told] == [JobState.SUCCEEDED]


async def test_each_attempt_is_missed_for_itself(parts: Parts) -> None:
    """An attempt on its way is no suspect because an earlier attempt of that job was on its way once when the lists were compared."""
    network = Network(parts)
    await network.join()
    network.say(Credit(limit=1))
    await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    [job] = (await network.hear(Run)).jobs
    network.say(Beat(number=1, count=0, digest=0))
    await network.hear(BeatSeen)
    network.say(Held(items=[]))
    network.say(Reports(number=8, items=[Report(job.seq, 1, Outcome.FAILED, body=b'{"type":"E","message":""}', retry=True)], limit=2))
    [again] = (await network.hear(Run)).jobs
    assert again.attempt == 2
    parts.clock.advance(LEASE_S / 3)
    network.say(Beat(number=2, count=0, digest=0))
    await network.hear(BeatSeen)
    network.say(Held(items=[]), Beat(number=3, count=0, digest=0))
    await network.hear(BeatSeen)
    await parts.settle()
    assert await jobs_of(parts) == {JobState.RUNNING: 1}


async def test_lists_that_come_in_one_burst_count_as_one(parts: Parts) -> None:
    """After the manager stood still for some beats. Meanwhile jobs are on their way."""
    network = Network(parts)
    await network.join()
    network.say(Credit(limit=1))
    await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    await network.hear(Run)
    for number in (1, 2, 3):
        network.say(Beat(number=number, count=0, digest=0))
        await network.hear(BeatSeen)
        network.say(Held(items=[]))
    await parts.settle()
    assert await jobs_of(parts) == {JobState.RUNNING: 1}


async def test_a_hello_that_the_store_was_slow_with_takes_nothing_from_the_connection_that_came_after_it(parts: Parts) -> None:
    """The worker has given up on the first connection, whose end the manager has not heard of, and works on the second one."""
    begin, may_go_on = parts.store.begin, asyncio.Event()
    has_begun = asyncio.Event()

    async def slow(sessions: Sequence[NewSession]) -> list[int]:
        if not has_begun.is_set():
            has_begun.set()
            await may_go_on.wait()
        return await begin(sessions)

    parts.store.begin = slow  # type: ignore[method-assign]
    manager = the_manager(parts)
    first, second = Network(parts, manager), Network(parts, manager)
    side = WorkerSide(session=b"s" * 16, secret=SECRET, name="w", queue="Q", slots=3)
    first.say(*side.challenged(await first.hear(Challenge), b"n" * 32))
    await has_begun.wait()
    await second.join()
    second.say(Credit(limit=1))
    await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    await second.hear(Run)
    may_go_on.set()
    assert await first.hear_close() == CLOSE_REPLACED
    await parts.settle()
    assert await jobs_of(parts) == {JobState.RUNNING: 1}, "the older hello gave its job to others"
    second.say(Credit(limit=2))
    await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[2],{}]")
    await second.hear(Run)


async def test_a_hello_gives_back_only_what_was_claimed_before_it(parts: Parts) -> None:
    """With several managers over one store the newer connection may be at another one."""
    task = await parts.task()
    begin, running = parts.store.begin, parts.store.running

    async def claimed_meanwhile(sessions: Sequence[int]) -> Any:
        await parts.store.claim([Want(sessions[0], (task.lane,), 1)])
        return await running(sessions)

    await parts.intake.submit_one(task, b"[[1],{}]")
    await parts.intake.submit_one(task, b"[[2],{}]")
    [number] = await begin([NewSession(id=b"s" * 16, name="w")])
    await parts.store.claim([Want(number, (task.lane,), 1)])
    parts.clock.advance(1)
    parts.store.running = claimed_meanwhile  # type: ignore[method-assign]
    network = Network(parts)
    await network.join()
    await parts.settle()
    assert await jobs_of(parts) == {JobState.RUNNING: 1, JobState.QUEUED: 1}


async def test_a_worker_that_was_silent_stops_what_another_manager_has_given_away(parts: Parts) -> None:
    manager = the_manager(parts)
    parts.store.has_others = True  # type: ignore[attr-defined]
    network = Network(parts, manager)
    await network.join()
    network.say(Credit(limit=2))
    for _ in range(2):
        await parts.intake.submit_one(parts.catalogue.find("Q", "work"), b"[[1],{}]")
    jobs = [*(await network.hear(Run)).jobs, *(await network.hear(Run)).jobs]
    network.say(Credit(limit=0))
    await parts.settle()
    parts.clock.advance(LEASE_S + 1)
    await parts.store.rescue()  # as another manager does, which knows nothing of this connection
    [other] = await parts.store.begin([NewSession(id=b"o" * 16, name="o")])
    [claims] = await parts.store.claim([Want(other, (jobs[0].lane,), 1)])
    [taken] = claims.jobs
    network.say(Beat(number=1, count=2, digest=digest_of((job.seq, job.attempt) for job in jobs)))
    assert (await network.hear(Cancel)).jobs == [(taken.seq, 1)]
    [late] = [job for job in jobs if job.seq != taken.seq]
    network.say(Reports(number=9, items=[Report(late.seq, 1, Outcome.SUCCEEDED, body=b"1")]))
    assert (await network.hear(Acked)).stale == [], "nobody has claimed it since: its report counts"


async def test_where_too_much_waits_for_the_store_a_client_is_told_so_and_a_worker_waits_while_its_beats_are_seen(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(parts)
    await network.join()
    items = [[SubmitItem(new_id(), "Q", "work", b"[[1],{}]")] for _ in range(MAX_OPEN_SUBMITS + 1)]
    monkeypatch.setattr(type(parts.store), "is_busy", True)
    store, stored = parts.store.submit, asyncio.Event()

    async def slow(submissions: Any) -> Any:
        await stored.wait()
        return await store(submissions)

    monkeypatch.setattr(parts.store, "submit", slow)
    network.say(*(Submit(number=number, jobs=jobs) for number, jobs in enumerate(items[:-1])))
    network.say(Beat(number=1, count=0, digest=digest_of([])))
    assert (await network.hear(BeatSeen)).number == 1
    client = Network(parts)
    await client.greet()
    client.say(Submit(number=7, jobs=items[-1]))
    refused = await client.hear(Submitted)
    assert isinstance(error_of(refused.problem), StoreBusy)
    held = error_of(problem_of(StoreHeld("jobs.db")))
    assert isinstance(held, StoreBusy)
    assert str(held) == str(StoreHeld("jobs.db"))
    stored.set()
    for _ in items[:-1]:
        assert (await network.hear(Submitted)).problem is None
    assert sum((await jobs_of(parts)).values()) == len(items) - 1
