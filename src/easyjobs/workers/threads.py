"""Threads for plain `def` tasks.

Unlike those of `concurrent.futures`, they are daemons: an attempt that outlives its worker's grace must not keep the process from
ending (its job was given back). A thread that is done takes the next call; more are started while none is idle, as many as there
are calls: the pool limits those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

IDLE_S: Final = 30.0


class Threads:
    """Runs calls, each in a thread of its own at that time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._count = 0

    def run(self, call: Callable[[], None]) -> None:
        """Run `call`, which must not raise, in a thread."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                self._count += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if self._idle > 0:  # else a call was just promised to this thread
                        self._idle -= 1
                        return
                continue
            if call is None:
                return
            call()
            del call
            with self._lock:
                self._idle += 1

    def close(self) -> None:
        """End the idle threads. Those that run end after their call."""
        with self._lock:
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._calls.put(None)
