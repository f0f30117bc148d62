"""A loop whose time passes only when there is nothing to do, and processes on it that die, or stand still, between two callbacks."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable
from typing import Any

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Process:
    """All callbacks and tasks that were begun in `context`. Dead: none of them ever runs again. Frozen: they run when it goes on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = self.is_frozen = False
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)
        self.held: list[tuple[_Handle, Callable[..., Any], tuple[Any, ...], contextvars.Context]] = []

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run it as a part of this process. Nobody who awaits it is told if the process dies."""
        return asyncio.get_running_loop().create_task(coroutine, context=self.context.copy())

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it as a part of this process."""
        return self.context.copy().run(function, *args)

    def kill(self) -> None:
        self.is_dead = True
        self.held.clear()

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """What came meanwhile runs now, in its order."""
        self.is_frozen = False
        loop = asyncio.get_running_loop()
        held, self.held = self.held, []
        for handle, callback, args, context in held:
            loop.call_soon(_replay, handle, callback, args, context=context)


class _Handle:
    """Whether the handle that asyncio gave out was cancelled."""

    __slots__ = ("handle",)

    handle: asyncio.Handle

    @property
    def is_cancelled(self) -> bool:
        return self.handle.cancelled()


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.loop: Loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again in this simulation")
        if timeout > 0:
            self.loop.virtual += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self) -> None:
        self.virtual = 1000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-6
        self.turns = 0
        self.is_over = False  # what is still suspended is thrown away, and its `finally` blocks change nothing any more

    def time(self) -> float:
        return self.virtual

    def _write_to_self(self) -> None:
        pass

    def _check_closed(self) -> None:
        pass

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        if self.is_over:
            return asyncio.Handle(callback, args, self, context)
        context = contextvars.copy_context() if context is None else context
        process = context.get(PROCESS)
        self.turns += 1
        if process is None:
            return super().call_soon(callback, *args, context=context)
        cell = _Handle()
        cell.handle = super().call_soon(_guarded, process, cell, callback, args, context, context=context)
        return cell.handle

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        process = context.get(PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        cell = _Handle()
        timer = super().call_at(when, _guarded, process, cell, callback, args, context, context=context)
        cell.handle = timer
        return timer

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)


def _replay(handle: _Handle, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not handle.is_cancelled:  # by what ran before it, after the standstill
        callback(*args)


def _guarded(process: Process, cell: _Handle, callback: Any, args: tuple[Any, ...], context: contextvars.Context) -> None:
    if process.is_dead:
        return
    if process.is_frozen:
        process.held.append((cell, callback, args, context))
        return
    callback(*args)


class Clock:
    """`ports.clock.Clock` on the loop's time."""

    START_US = 1_700_000_000_000_000

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def now(self) -> int:
        return self.START_US + round(self._loop.virtual * 1_000_000)

    def monotonic(self) -> float:
        return self._loop.virtual
