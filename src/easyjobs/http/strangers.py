"""How much room those have that have not proved the secret yet: places for sockets, and lines in the log."""

from __future__ import annotations

from typing import Final, Protocol

MAX_STRANGERS: Final = 256  # sockets that have not proved the secret
PATIENCE_S: Final = 1.0  # where there are that many, one that has had so long gives its place to the next: a hello takes milliseconds
MAX_LINES: Final = 10  # in the log in one minute; more are counted
MINUTE_S: Final = 60.0


class Closes(Protocol):
    """A connection, as far as it matters here."""

    def crowded_out(self) -> None:
        """Close: others want the place."""
        ...


class Strangers:
    """Those of one manager. `now` is monotonic, in seconds.

    Who comes when all places are taken is refused at once, which costs little, unless the one that came first has had its time: or a few who
    never say hello would keep all workers out by coming back every ten seconds.
    """

    def __init__(self) -> None:
        self._since: dict[Closes, float] = {}  # oldest first
        self._lines, self._minute, self._untold = 0, 0.0, 0

    def __len__(self) -> int:
        return len(self._since)

    def enter(self, one: Closes, now: float) -> bool:
        """Whether there is a place for this one. It keeps it until `leave`, or until it is crowded out."""
        if len(self._since) >= MAX_STRANGERS:
            first, since = next(iter(self._since.items()))
            if now - since < PATIENCE_S:
                return False
            del self._since[first]
            first.crowded_out()
        self._since[one] = now
        return True

    def leave(self, one: Closes) -> None:
        """It has proved the secret, or gone."""
        self._since.pop(one, None)

    def may_log(self, now: float) -> int | None:
        """Whether a line about a stranger may be logged: how many were not since the last one; None: this one is not, either."""
        if now - self._minute >= MINUTE_S:
            self._minute, self._lines = now, 0
        if self._lines >= MAX_LINES:
            self._untold += 1
            return None
        self._lines += 1
        untold, self._untold = self._untold, 0
        return untold
