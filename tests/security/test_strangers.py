"""Those who have not proved the secret: they have little room, and take none from workers that have (rows N8 and N10 of the faults)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from easyjobs.http import socket as sockets
from easyjobs.http import strangers
from easyjobs.http.strangers import MAX_HOLDERS, MAX_LINES, MAX_STRANGERS, PATIENCE_S, TICK_S, Strangers
from easyjobs.protocol.codec import encode
from easyjobs.protocol.messages import CLOSE_BUSY, Challenge, Held, Hello, Run, Welcome
from tests.processes import Processes, Served, until
from tests.security.world import SECRET, Peer, World, running, task_named, world

# --- the rule -------------------------------------------------------------------------------------------------------------------


class Door:
    def __init__(self) -> None:
        self.is_crowded_out = False

    def crowded_out(self) -> None:
        self.is_crowded_out = True


def turn(some: Strangers, seconds: float) -> None:
    for _ in range(round(seconds / TICK_S)):
        some.turned(TICK_S)


def test_who_comes_too_many_is_refused_until_the_first_one_has_had_its_time() -> None:
    some, one = Strangers(), [Door() for _ in range(MAX_STRANGERS)]
    assert all(some.enter(door) for door in one)
    turn(some, PATIENCE_S - TICK_S)
    assert not some.enter(Door())
    assert not any(door.is_crowded_out for door in one)
    turn(some, 2 * TICK_S)
    assert some.enter(Door())
    assert [door.is_crowded_out for door in one] == [True] + [False] * (MAX_STRANGERS - 1)
    assert len(some) == MAX_STRANGERS
    some.leave(one[0])  # crowded out already: another one's place is not given away
    assert len(some) == MAX_STRANGERS
    some.leave(one[1])
    for door in one[2:]:
        some.leave(door)
    assert all(some.enter(Door()) for _ in range(MAX_STRANGERS - 1))
    assert not some.enter(Door())


def test_while_the_loop_is_behind_nobody_loses_its_place_for_not_having_been_read() -> None:
    some, one = Strangers(), [Door() for _ in range(MAX_STRANGERS)]
    assert all(some.enter(door) for door in one)
    for _ in range(5):
        some.turned(3.0)  # each turn takes three seconds
        assert not some.enter(Door())
    assert not any(door.is_crowded_out for door in one)


def test_those_that_hold_jobs_have_places_of_their_own_and_others_too() -> None:
    some = Strangers()
    assert all(some.enter(Door()) for _ in range(MAX_STRANGERS))
    held = [Door() for _ in range(MAX_HOLDERS)]
    assert all(some.enter(door, holds=True) for door in held)
    assert not some.enter(Door(), holds=True)
    some.leave(held[0])
    assert some.enter(Door(), holds=True)
    turn(some, 2 * PATIENCE_S)
    assert some.enter(Door())
    assert not any(door.is_crowded_out for door in held)
    assert some.enter(Door(), holds=True)
    assert [door.is_crowded_out for door in held] == [False, True] + [False] * (MAX_HOLDERS - 2)
    assert len(some) == MAX_STRANGERS + MAX_HOLDERS


def test_of_lines_about_strangers_those_left_out_are_counted() -> None:
    some = Strangers()
    assert [some.may_log(1000.0 + n) for n in range(MAX_LINES + 5)] == [0] * MAX_LINES + [None] * 5
    assert [some.may_log(1070.0), some.may_log(1070.0)] == [5, 0]


# --- over ASGI ------------------------------------------------------------------------------------------------------------------


async def test_one_too_many_is_refused_before_a_socket_is_opened(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MAX_STRANGERS", 3)
    monkeypatch.setattr(strangers, "PATIENCE_S", 60.0)
    known = await here.peer().join(task_named("task"))
    late, *silent = [here.peer() for _ in range(3)]
    for peer in silent:
        await peer.hear(Challenge)
    for _ in range(3):
        refused = here.peer()
        async with asyncio.timeout(5):
            assert (await refused.sent.get())["type"] == "websocket.close"  # before an accept: the handshake is answered with an error
    await here.submit("task")
    assert len(await known.take()) == 1
    await late.hello()
    await late.hear(Welcome)
    await here.peer().hear(Challenge)  # who has proved the secret takes no place


async def test_a_worker_comes_in_though_all_places_are_taken_by_those_who_say_nothing(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MAX_STRANGERS", 3)
    monkeypatch.setattr(strangers, "PATIENCE_S", 0.0)
    silent = [here.peer() for _ in range(3)]
    for peer in silent:
        await peer.hear(Challenge)
    await here.peer().join(task_named("task"))
    assert await silent[0].hear_close() == CLOSE_BUSY
    assert await silent[1].closing() is None
    assert len(here.manager._socket_side.strangers) == 2


async def test_a_worker_that_holds_jobs_does_not_wait_behind_idle_ones(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart that thousands come back from: it has one lease for it."""
    monkeypatch.setattr(strangers, "MAX_STRANGERS", 3)
    monkeypatch.setattr(strangers, "PATIENCE_S", 60.0)
    for peer in [here.peer() for _ in range(3)]:
        await peer.hear(Challenge)
    refused = here.peer()
    async with asyncio.timeout(5):
        assert (await refused.sent.get())["type"] == "websocket.close"
    holder = here.peer(headers=[(b"easyjobs-holds", b"10")])
    await holder.hello()
    await holder.hear(Welcome)


async def test_the_turns_of_the_loop_are_counted_once_while_there_are_strangers(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MAX_STRANGERS", 1)
    monkeypatch.setattr(strangers, "PATIENCE_S", 2 * TICK_S)
    first = here.peer()
    await first.hear(Challenge)
    async with asyncio.timeout(10):
        while (code := await first.closing()) is None:
            here.peer()
            await asyncio.sleep(TICK_S)
    assert code == CLOSE_BUSY
    side = here.manager._socket_side.strangers
    for peer in here.peers:
        await peer.leave()
    async with asyncio.timeout(10):
        while side.is_counting:  # noqa: ASYNC110 (the timer ends by itself, at its next turn)
            await asyncio.sleep(TICK_S)
    assert len(side) == 0


async def test_the_log_has_few_lines_about_strangers(here: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "easyjobs.socket"):
        for _ in range(5 * MAX_LINES):
            peer = here.peer()
            await peer.hello(proof=b"\0" * 32)
            await peer.hear_close()
            await peer.leave()
    assert 0 < len(caplog.records) <= MAX_LINES


async def test_a_worker_that_holds_much_says_so_after_its_hello_and_loses_nothing(there: World) -> None:
    first = await there.peer().join(task_named("task"))
    ids = [await there.submit("task") for _ in range(3)]
    jobs = await first.take(3)
    await first.leave()
    back = there.peer()
    back.session = first.session
    await back.hello(held_later=True)
    back.say(Held(items=[running(job) for job in jobs]))
    assert (await back.hear(Welcome)).drop == []
    for id in ids:
        found = await there.job(id)
        assert (found["status"], found["attempt"]) == ("running", 1)


async def test_a_peer_that_does_not_read_is_given_up_though_no_close_reaches_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "MAX_OUTGOING", 64 * 1024)
    monkeypatch.setattr(sockets, "UNREAD_S", 0.05)
    reads, never = asyncio.Event(), asyncio.Event()
    reads.set()

    class Deaf(Peer):
        async def _send(self, message: Any) -> None:
            await (reads if reads.is_set() else never).wait()
            self.sent.put_nowait(message)

    async with world() as here:
        deaf = Deaf(here.app)
        await deaf.join(task_named("task"))
        reads.clear()
        connection = next(one for one in here.manager._connections if one.session is not None)
        for _ in range(100):
            connection.send(Run(jobs=[]))
            connection.send(Challenge(version=1, nonce=b"x" * 4096))
        assert connection._out_bytes < 128 * 1024
        async with asyncio.timeout(10):
            await deaf.served
        assert connection not in here.manager._connections
        assert len(here.manager._dispatcher.sessions()) == 1  # the manager's own
    assert len([record for record in caplog.records if "does not read" in record.message]) == 1


# --- N8 and N10: real processes and raw sockets ---------------------------------------------------------------------------------

MANAGER = """
import os
from fastapi import FastAPI
from easyjobs.http import socket
from easyjobs.manager import EasyJobsManager

socket.HELLO_S = float(os.environ["TEST_HELLO_S"])
server = FastAPI()

@server.on_event("startup")
async def startup():
    await EasyJobsManager.create(server, store="jobs.db", lease_s=6)
"""
WORKER = """
import asyncio, os
from fastapi import FastAPI
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()

@server.on_event("startup")
async def startup():
    worker = await EasyJobsWorker.create(server, manager_port=int(os.environ["TEST_MANAGER_PORT"]))

    @worker.task()
    async def long(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"
"""
UPGRADE = (
    b"GET /ws/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
BINARY, CLOSE = 0x82, 0x88


def start(started: Processes, directory: Path, hello_s: float) -> Served:
    (directory / "program.py").write_text(MANAGER)
    (directory / "work.py").write_text(WORKER)
    env = {"EASYJOBS_SECRET": SECRET, "TEST_HELLO_S": str(hello_s)}
    manager = started.uvicorn("program:server", directory=directory, env=env, cwd=directory).until_ready()
    env = {"EASYJOBS_SECRET": SECRET, "TEST_MANAGER_PORT": str(manager.port)}
    started.uvicorn("work:server", directory=directory, env=env, name="worker")
    manager.until_offered("/DEFAULT/task/long")
    return manager


async def knock(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Open a WebSocket by hand. Returns the status of the answer with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE)
    head = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, int(head.split()[1])


async def hear(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One frame of the manager's: its first byte and its payload."""
    first, size = await reader.readexactly(2)
    if size == 126:
        [size] = struct.unpack("!H", await reader.readexactly(2))
    return first, await reader.readexactly(size)


def frame(payload: bytes, *, announced: int | None = None) -> bytes:
    """A binary message of a client, masked with zeros; `announced`: how long it says it is."""
    return bytes([BINARY, 0x80 | 126]) + struct.pack("!H", announced or len(payload)) + bytes(4) + payload


def resident_kib(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


async def closed_with(reader: asyncio.StreamReader) -> int:
    """Read on until the manager closes: the code."""
    while True:
        first, payload = await hear(reader)
        if first == CLOSE:
            return int(struct.unpack("!H", payload[:2])[0])


async def drip(writer: asyncio.StreamWriter) -> None:
    """A hello that is never whole: a byte now and then."""
    writer.write(frame(b"", announced=60_000))
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_n8_who_says_no_hello_or_says_it_for_ever_is_closed_and_costs_little(started: Processes, tmp_path: Path) -> None:
    manager = await asyncio.to_thread(start, started, tmp_path, 1.5)
    before = resident_kib(manager.pid)
    silent = [await knock(manager.port) for _ in range(100)]
    slow = [await knock(manager.port) for _ in range(100)]
    assert {status for _, _, status in silent + slow} == {101}
    drips = [asyncio.create_task(drip(writer)) for _, writer, _ in slow]
    try:
        async with asyncio.timeout(10):
            codes = await asyncio.gather(*(closed_with(reader) for reader, _, _ in silent + slow))
        assert Counter(codes) == {CLOSE_BUSY: 200}
        # A third of a MiB each would be far too much; nearly all that they take is uvicorn's.
        assert resident_kib(manager.pid) - before < 64 * 1024
    finally:
        for task in drips:
            task.cancel()
        for _, writer, _ in silent + slow:
            writer.close()
    job = await asyncio.to_thread(manager.submit, "DEFAULT", "long", {"seconds": 0})
    await asyncio.to_thread(manager.until_status, job, "succeeded")


async def storm(port: int, until_s: float, seen: Counter[str]) -> None:
    """Connect as fast as it goes, without a pause: say nothing and stay, say a false hello, or go at once."""
    kept: list[asyncio.StreamWriter] = []
    hello = encode(Hello(version=1, role="worker", session=os.urandom(16), nonce=os.urandom(32), proof=bytes(32), queue="Q"))
    turn = 0
    while time.monotonic() < until_s:
        turn += 1
        try:
            reader, writer, status = await knock(port)
        except (OSError, asyncio.IncompleteReadError):
            seen["no answer"] += 1
            await asyncio.sleep(0)
            continue
        seen[str(status)] += 1
        if status == 101 and turn % 8 == 0:
            writer.write(frame(hello))
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                seen[f"closed {await closed_with(reader)}"] += 1
        if status == 101 and turn % 8 > 1:
            kept.append(writer)
        else:
            writer.close()
    for writer in kept:
        writer.close()


@pytest.mark.slow
async def test_n10_hostile_clients_in_a_loop_cost_no_worker_its_lease_and_keep_none_out(started: Processes, tmp_path: Path) -> None:
    """A lease of 6 s, a storm of 8 s: a worker whose beats did not come through would lose its job, and another attempt begin."""
    manager = await asyncio.to_thread(start, started, tmp_path, 10)
    [before] = [each for each in manager.get("/jobs/api/v1/workers")["items"] if each["tasks"]]
    job = await asyncio.to_thread(manager.submit, "DEFAULT", "long", {"seconds": 7})
    await asyncio.to_thread(manager.until_status, job, "running")
    seen: Counter[str] = Counter()
    end = time.monotonic() + 8
    storms = [asyncio.create_task(storm(manager.port, end, seen)) for _ in range(8)]
    await asyncio.sleep(2)
    env = {"EASYJOBS_SECRET": SECRET, "TEST_MANAGER_PORT": str(manager.port)}
    started.uvicorn("work:server", directory=tmp_path, env=env, name="late")  # in the middle of it

    def workers() -> list[Any]:
        return [each for each in manager.get("/jobs/api/v1/workers")["items"] if each["tasks"]]

    await asyncio.to_thread(until, "the second worker is in", lambda: len(workers()) == 2, 20)
    await asyncio.gather(*storms)
    assert seen["101"] > MAX_STRANGERS, seen
    assert "gives its place to another" in manager.log or seen["503"] > 0, seen
    assert seen["closed 4401"] > 0, seen
    done = await asyncio.to_thread(manager.until_status, job, "succeeded")
    assert (done["attempt"], done["crashes"]) == (1, 0)
    [after] = [each for each in workers() if each["session"] == before["session"]]
    assert after["connected_at"] == before["connected_at"]
    assert "lease.lost" not in manager.log
    assert manager.log.count("was refused") <= 2 * MAX_LINES
