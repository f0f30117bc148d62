"""A loop whose time passes only when there is nothing to do, and processes on it that die, or stand still, between two callbacks."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
RESOLUTION_S = 1e-6  # timers that are so near to each other are due together


class Process:
    """All callbacks and tasks that were begun in `context`. Dead: none of them ever runs again. Frozen: they run when it goes on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = self.is_frozen = False
        self.died_at = 0.0
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)
        self.held: list[Handle] = []

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run it as a part of this process. Nobody who awaits it is told if the process dies."""
        return asyncio.get_running_loop().create_task(coroutine, context=self.context.copy())

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it as a part of this process."""
        return self.context.copy().run(function, *args)

    def kill(self) -> None:
        self.is_dead, self.died_at = True, asyncio.get_running_loop().time()
        self.held.clear()

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """What came meanwhile runs now, in its order."""
        self.is_frozen = False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        held, self.held = self.held, []
        loop.ready.extend(held)


class Handle:
    """What asyncio's own handles are to those who hold them: a callback that may be cancelled, or a timer."""

    __slots__ = ("_when", "args", "callback", "context", "is_cancelled", "process")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when: float = 0.0) -> None:
        self.callback, self.args, self.context, self._when = callback, args, context, when
        self.process = context.get(PROCESS)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self._when


class Loop(asyncio.BaseEventLoop):
    """See the module's docstring. asyncio's loop, without its selector: nothing comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.virtual = 1000.0
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[float, int, Handle]] = []
        self.numbered = 0  # timers: those of one instant are due in the order in which they were set
        self.turns = 0
        self.is_over = False  # what is still suspended is thrown away, and its `finally` blocks change nothing any more

    def time(self) -> float:
        return self.virtual

    def _check_closed(self) -> None:
        pass

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        if not self.is_over:
            self.turns += 1
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context, when)
        self.numbered += 1
        heappush(self.timers, (when, self.numbered, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        return self.call_at(self.virtual + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        """All turns, until the loop is to stop."""
        ready, timers = self.ready, self.timers
        while not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2].is_cancelled:
                heappop(timers)
            if not ready:
                if not timers:
                    raise RuntimeError("nothing will ever happen again in this simulation")
                self.virtual += max(0.0, timers[0][0] - self.virtual)
            end = self.virtual + RESOLUTION_S
            while timers and timers[0][0] < end:
                ready.append(heappop(timers)[2])
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle.is_cancelled:
                    continue
                process = handle.process
                if process is not None:
                    if process.is_dead:
                        continue
                    if process.is_frozen:
                        process.held.append(handle)
                        continue
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"Exception in callback {handle.callback}", "exception": error})


class Clock:
    """`ports.clock.Clock` on the loop's time."""

    START_US = 1_700_000_000_000_000

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def now(self) -> int:
        return self.START_US + round(self._loop.virtual * 1_000_000)

    def monotonic(self) -> float:
        return self._loop.virtual
