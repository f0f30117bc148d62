"""The system's time. Nothing else in easyjobs reads a clock."""

from __future__ import annotations

import time


class SystemClock:
    """A `Clock` on the system's clocks."""

    __slots__ = ()

    def now(self) -> int:
        """Microseconds since 1970 (UTC)."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since some start, never stepping back."""
        return time.monotonic()


stopwatch = time.perf_counter
"""Seconds since some start, as precise as there is; to measure our own work, also where a `Clock` is a fake one."""

pause = time.sleep
"""Stand still for so many seconds; never on the loop's thread."""
