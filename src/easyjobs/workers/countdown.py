"""How long an attempt may still run: a timer that stands still while the attempt waits for another job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Countdown:
    """Calls `call` once, on `loop`, after `seconds` of running. To be used on the loop only."""

    __slots__ = ("_call", "_left", "_loop", "_since", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop, self._left, self._call = loop, seconds, call
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.go_on()

    def go_on(self) -> None:
        """Run on from where it was paused."""
        if self._timer is None:
            self._since = self._loop.time()
            self._timer = self._loop.call_later(self._left, self._call)

    def pause(self) -> None:
        """Stand still. The end of it all is a pause too."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left = max(0.0, self._left - (self._loop.time() - self._since))
