"""Time that passes when a test says so."""

from __future__ import annotations


class FakeClock:
    """A `Clock` that stands still until it is told otherwise."""

    def __init__(self, now: int = 1_700_000_000_000_000) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += round(seconds * 1_000_000)
        self._monotonic += seconds

    def set_system_clock(self, seconds: float) -> None:
        """Somebody sets the system's clock, forwards or backwards; no time passes."""
        self._now += round(seconds * 1_000_000)
