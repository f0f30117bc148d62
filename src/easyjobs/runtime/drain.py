"""Ends a process that runs jobs: first the jobs, then the server.

uvicorn closes its sockets and waits for open responses before it runs the shutdown handlers of the app, and a script has no such
handlers at all. So whoever must finish work first joins here, and for SIGTERM and SIGINT we stand before the handlers that are
installed already:

1. the first signal: all who have joined stop to take work (`withdraw`) and finish what they have (`drain`);
2. a second signal of the same kind: they stop waiting (`hurry`). (Ctrl-C under `uvicorn --workers` is a SIGINT from the terminal and a SIGTERM from
   the supervisor: that is one request.)
3. then the server is told. uvicorn's handler is a method of its `Server`: setting `should_exit` there ends it with code 0, while
   calling the handler would have it raise the signal once more at its end. Another program's handler is called. A script without
   a handler ends by SystemExit from its loop: `asyncio.run` cancels what runs, so `finally` and `async with` are honoured.

The exit code is 0 if everything was acknowledged, else 1. Handlers are a matter of the main thread; elsewhere `join` does nothing, and whoever
runs the loop must close what it made.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Protocol

from easyjobs.runtime.log import ERROR, INFO, WARNING, event

log = logging.getLogger("easyjobs.drain")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Participant(Protocol):
    """Who has work to finish."""

    def withdraw(self) -> None:
        """Take no new work. Called from a signal handler: it must not block, nor touch the loop but by `call_soon_threadsafe`."""
        ...

    async def drain(self) -> bool:
        """Finish, within one's own time. Returns whether everything was acknowledged."""
        ...

    def hurry(self) -> None:
        """Do not wait any longer. Called on the loop."""
        ...


class _Drain:
    """The handlers of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self.participants: list[Participant] = []
        self.previous: dict[int, Any] = {}
        self._counts: dict[int, int] = {}
        self._drainer: asyncio.Task[None] | None = None

    def install(self) -> None:
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if previous in (None, signal.SIG_IGN):
                continue  # of another language, or ignored on purpose (nohup, a shell's background job)
            self.previous[number] = previous
            signal.signal(number, self.handle)

    def restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, previous in self.previous.items():
                if signal.getsignal(number) == self.handle:
                    signal.signal(number, previous)
        self.previous.clear()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if os.getpid() != self.pid:  # a fork inherited us; the work is not its
            self._pass_on(number, frame)
            return
        self._counts[number] = self._counts.get(number, 0) + 1
        again = self._counts[number] > 1
        try:
            for participant in self.participants:
                participant.withdraw()
            self.loop.call_soon_threadsafe(self._hurry if again else functools.partial(self._begin, number))
        except RuntimeError:  # the loop is closed
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        previous = self.previous.get(number)
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _begin(self, number: int) -> None:
        if self._drainer is None:
            event(log, INFO, "process.draining", signal=signal.Signals(number).name)
            self._drainer = self.loop.create_task(self._drain(number), name="easyjobs-drain")

    def _hurry(self) -> None:
        for participant in self.participants:
            participant.hurry()

    async def _drain(self, number: int) -> None:
        outcomes = await asyncio.gather(*(participant.drain() for participant in self.participants), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                log.error("draining failed", exc_info=outcome)
        self.leave(0 if all(outcome is True for outcome in outcomes) else 1, number)

    def leave(self, code: int, number: int) -> None:
        """Have the process end with `code`."""
        event(log, INFO if code == 0 else WARNING, "process.drained", code=code)
        previous = self.previous.get(number)
        server = getattr(previous, "__self__", None)
        if server is not None and hasattr(server, "should_exit"):
            _exit_with(code)
            server.should_exit = True
        elif callable(previous) and previous is not signal.default_int_handler and not _is_runners(previous):
            _exit_with(code)
            previous(number, None)
        else:
            self.loop.call_soon(_raise_exit, code)


_drain: _Drain | None = None
_exit_code = 0
_hooked = False


def join(participant: Participant) -> None:
    """Have `participant` drained before this process ends by a signal. To be called on the loop; outside the main thread it does nothing."""
    global _drain
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    if _drain is None or _drain.loop is not loop or _drain.pid != os.getpid():
        if _drain is not None:
            _drain.restore()
        _drain = _Drain(loop)
        _drain.install()
    _drain.participants.append(participant)


def part(participant: Participant) -> None:
    """The participant has finished. With the last one the handlers are restored."""
    global _drain
    if _drain is not None and participant in _drain.participants:
        _drain.participants.remove(participant)
        if not _drain.participants and _drain._drainer is None:
            _drain.restore()
            _drain = None


def give_up(participant: Participant) -> None:
    """End this process with code 1, as after a signal, because `participant` cannot do its work any more."""
    if _drain is None or participant not in _drain.participants:
        event(log, ERROR, "process.cannot_end", reason="not in the main thread: end this program yourself")
        return
    drain = _drain
    for other in drain.participants:
        other.withdraw()

    async def finish() -> None:
        await asyncio.gather(*(other.drain() for other in drain.participants), return_exceptions=True)
        drain.leave(1, signal.SIGTERM)

    if drain._drainer is None:
        drain._drainer = drain.loop.create_task(finish(), name="easyjobs-drain")


def _is_runners(handler: Callable[..., Any]) -> bool:
    """Whether this is the SIGINT handler of `asyncio.Runner`, which would end the program with a KeyboardInterrupt."""
    return isinstance(handler, functools.partial) and getattr(handler.func, "__name__", "") == "_on_sigint"


def _raise_exit(code: int) -> None:
    raise SystemExit(code)


def _exit_with(code: int) -> None:
    """Have the interpreter end with `code` where the server would end it with 0."""
    global _exit_code, _hooked
    _exit_code = max(_exit_code, code)
    if code and not _hooked:
        _hooked = True
        atexit.register(_end)


def _end() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(_exit_code)
