"""A TCP proxy between a worker and its manager that can stop passing bytes in one direction, and cut connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset


class Proxy:
    """Listens on `port` of 127.0.0.1 (0: any, then see `port`) and carries bytes to and from `target`, another port there.

    `to_manager` and `to_worker` are gates: while one is cleared, bytes of that direction are read and held, and lost if the connection is
    cut meanwhile, as they are on a network that goes away.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.to_manager, self.to_worker = threading.Event(), threading.Event()
        self.to_manager.set()
        self.to_worker.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._run(self._accept)

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._listener.accept()
            except OSError:
                return
            try:
                manager = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                manager.settimeout(None)
            except OSError:
                worker.close()
                continue
            self._pairs.append((worker, manager))
            self._run(self._pump, worker, manager, self.to_manager)
            self._run(self._pump, manager, worker, self.to_worker)

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gate.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Reset every connection; what a closed gate holds is lost. New connections are accepted."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RD)
                end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(5)  # it may just have accepted one more
        self.cut()
        self.to_manager.set()
        self.to_worker.set()
        for thread in self._threads:
            thread.join(5)


class Cutter(Proxy):
    """Resets the connection of a COMMIT: before the server gets it (`request`), or when the proxy has the reply (`reply`). Once."""

    def __init__(self, target: int) -> None:
        self.cuts: str | None = None
        self.times = 0
        self.on_cut: Callable[[], None] = lambda: None
        self._deaf: set[socket.socket] = set()
        super().__init__(target)

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gate.wait()
                if source in self._deaf:
                    self._cut()
                    return
                if gate is self.to_manager and self.cuts is not None and b"commit\x00" in data:
                    if self.cuts == "request":
                        self._cut()
                        return
                    self._deaf.add(sink)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Listen no longer."""
        self._listener.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        self.cuts = None
        self.times += 1
        self.on_cut()
        self.cut()
