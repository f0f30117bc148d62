"""Where time comes from."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The one source of time. Nothing but its implementations reads a clock."""

    def now(self) -> int:
        """Microseconds since 1970 (UTC). May step when the system's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds since some start; never steps back. For deadlines inside this process."""
        ...
