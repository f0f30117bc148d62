"""Sockets between workers and managers: frames with a delay, which a seed may hold, lose with their connection, repeat or replay."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Self

from starlette.websockets import WebSocketDisconnect, WebSocketState
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from faults.sim.loop import Loop, Process


class Pipe:
    """One direction. Frames arrive in their order, each after a delay; while it is held none arrives."""

    def __init__(self, loop: Loop, delay: Callable[[], float], deliver: Callable[[Any], None]) -> None:
        self._loop, self._delay, self._deliver = loop, delay, deliver
        self._last = 0.0
        self.is_held = False
        self.is_cut = False
        self._waiting: deque[Any] = deque()

    def send(self, item: Any) -> None:
        if self.is_cut:
            return
        at = max(self._last, self._loop.time() + self._delay())
        self._last = at
        self._loop.call_at(at, self._arrive, item, context=contextvars.Context())

    def _arrive(self, item: Any) -> None:
        if self.is_cut:
            return
        if self.is_held or self._waiting:
            self._waiting.append(item)
        else:
            self._deliver(item)

    def release(self) -> None:
        self.is_held = False
        while self._waiting:
            self._deliver(self._waiting.popleft())


class Connection:
    """A connected pair of ends."""

    def __init__(self, network: Network, worker: Process, manager: Process) -> None:
        self.network, self.worker, self.manager = network, worker, manager
        loop = network.loop
        self.at_worker: asyncio.Queue[Any] = asyncio.Queue()
        self.at_manager: asyncio.Queue[Any] = asyncio.Queue()
        self.to_manager = Pipe(loop, network.delay, self.at_manager.put_nowait)
        self.to_worker = Pipe(loop, network.delay, self.at_worker.put_nowait)
        self.is_over = False
        self.sent_to_manager: deque[bytes] = deque(maxlen=50)
        self.sent_to_worker: deque[bytes] = deque(maxlen=50)

    def reset(self) -> None:
        """Both ends hear of it; what is on its way is lost."""
        if not self.is_over:
            self.is_over = True
            self.to_manager.is_cut = self.to_worker.is_cut = True
            self.at_worker.put_nowait(None)
            self.at_manager.put_nowait(None)
            self.network.connections.pop(self, None)

    def send_to_manager(self, data: bytes) -> None:
        for each in self.network.spoil(data, self.sent_to_manager):
            self.to_manager.send(each)

    def send_to_worker(self, data: bytes) -> None:
        for each in self.network.spoil(data, self.sent_to_worker):
            self.to_worker.send(each)


class WorkerEnd:
    """What `websockets.connect` gives. `transport` is itself: it has `abort`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport = self
        self._closed: Close | None = None
        self._is_gone = False

    def _error(self) -> ConnectionClosedError:
        return ConnectionClosedError(self._closed, None)

    async def recv(self) -> bytes:
        if self._is_gone:
            raise self._error()
        item = await self._connection.at_worker.get()
        if item is None or isinstance(item, Close):
            self._closed, self._is_gone = item, True
            raise self._error()
        data: bytes = item
        return data

    async def send(self, data: bytes) -> None:
        if self._is_gone or self._connection.is_over:
            raise self._error()
        self._connection.send_to_manager(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self._connection.is_over:
            self._connection.to_manager.send(Close(code, reason))
        self._is_gone = True

    def abort(self) -> None:
        """Our end is gone at once. Whether the other one hears of it depends on the network."""
        self._is_gone = True
        connection = self._connection
        connection.to_worker.is_cut = True
        connection.at_worker.put_nowait(None)
        if connection.to_manager.is_held:
            return  # half-open: the manager goes on believing in it
        connection.to_manager.send(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._is_gone:
            self.abort()


class ManagerEnd:
    """What the endpoint needs of Starlette's WebSocket."""

    client = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.scope: dict[str, Any] = {"headers": []}
        self.application_state = WebSocketState.CONNECTING
        self._is_gone = False

    async def accept(self) -> None:
        self.application_state = WebSocketState.CONNECTED

    async def receive(self) -> dict[str, Any]:
        if self._is_gone:
            return {"type": "websocket.disconnect", "code": 1006}
        item = await self._connection.at_manager.get()
        if item is None:
            self._is_gone = True
            return {"type": "websocket.disconnect", "code": 1006}
        if isinstance(item, Close):
            self._is_gone = True
            self._connection.reset()
            return {"type": "websocket.disconnect", "code": item.code}
        return {"type": "websocket.receive", "bytes": item}

    async def send_bytes(self, data: bytes) -> None:
        if self._is_gone:
            self.application_state = WebSocketState.DISCONNECTED
            raise WebSocketDisconnect(1006)
        self._connection.send_to_worker(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.application_state = WebSocketState.DISCONNECTED
        if not self._is_gone and not self._connection.is_over:
            self._connection.to_worker.send(Close(code, reason))
            self._connection.at_manager.put_nowait(None)


class Network:
    """Connects. `managers` are those that listen; `spoils`: how often a frame comes twice, or an old one again."""

    def __init__(self, loop: Loop, chance: Random, *, latency_s: float, spoils: float = 0.0) -> None:
        self.loop, self.chance, self.latency_s, self.spoils = loop, chance, latency_s, spoils
        self.connections: dict[Connection, None] = {}  # in the order of their beginnings
        self.cut_off: set[str] = set()  # names of workers whose connects go nowhere

    def delay(self) -> float:
        return self.latency_s * (0.5 + self.chance.random()) if self.chance.random() > 0.01 else self.latency_s * 20

    def spoil(self, data: bytes, before: deque[bytes]) -> list[bytes]:
        if not self.spoils or b"hello" in data[:40] or b"challenge" in data[:40] or b"welcome" in data[:40]:
            return [data]
        out = [data]
        if self.chance.random() < self.spoils:
            out.append(self.chance.choice([data, *before]))
        before.append(data)
        return out

    async def connect(self, worker: Process, manager: Any, serve: Callable[[ManagerEnd], Any]) -> WorkerEnd:
        """`manager`: its process, or None: nobody listens there."""
        await asyncio.sleep(self.delay() * 2)
        if worker.name in self.cut_off:
            await asyncio.sleep(10)
            raise TimeoutError("timed out during the opening handshake")
        if manager is None or manager.is_dead:
            raise ConnectionRefusedError(111, "Connect call failed")
        connection = Connection(self, worker, manager)
        self.connections[connection] = None
        manager.spawn(serve(ManagerEnd(connection)))
        return WorkerEnd(connection)

    def of(self, process: Process) -> list[Connection]:
        return [each for each in self.connections if process in (each.worker, each.manager)]
