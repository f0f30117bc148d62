"""How much room those have that have not proved the secret yet: places for sockets, and lines in the log."""

from __future__ import annotations

from typing import Final, Protocol

MAX_STRANGERS: Final = 256  # sockets that have not proved the secret
MAX_HOLDERS: Final = 64  # the same, of those that say they hold running jobs: they have places of their own
PATIENCE_S: Final = 1.0  # where there are that many, one that has had so long gives its place to the next: a hello takes milliseconds
TICK_S: Final = 0.05
MAX_LINES: Final = 10  # in the log in one minute; more are counted
MINUTE_S: Final = 60.0


class Closes(Protocol):
    """A connection, as far as it matters here."""

    def crowded_out(self) -> None:
        """Close: others want the place."""
        ...


class Strangers:
    """Those of one manager.

    Who comes when all places are taken is refused at once, which costs little, unless the one that came first has had its time: or a few who
    never say hello would keep all workers out by coming back every ten seconds.

    That time is not the clock's. When thousands come back at once, the manager's loop is behind, and a hello that came long ago has not been
    read: dropping its sender would be work for nothing, and more of it to come. So a turn of the loop counts for `TICK_S` at most (`turned`).

    A worker that holds running jobs has to come in before its lease ends, and idle ones have not. It says so before it can prove anything; who
    lies about it keeps out no others than those that say it, for no longer than `PATIENCE_S`.
    """

    def __init__(self) -> None:
        self._others: dict[Closes, float] = {}  # oldest first → since when
        self._holders: dict[Closes, float] = {}  # the same
        self._served_s = 0.0
        self.is_counting = False  # somebody calls `turned`
        self._lines, self._minute, self._untold = 0, 0.0, 0

    def __len__(self) -> int:
        return len(self._others) + len(self._holders)

    def turned(self, after_s: float) -> None:
        """The loop has turned once more, `after_s` after the last time, and has read what had come. To be called while there are any."""
        self._served_s += min(after_s, TICK_S)

    def enter(self, one: Closes, *, holds: bool = False) -> bool:
        """Whether there is a place for this one. It keeps it until `leave`, or until it is crowded out. `holds`: it says that it holds jobs."""
        return (holds and self._enter(one, self._holders, MAX_HOLDERS)) or self._enter(one, self._others, MAX_STRANGERS)

    def _enter(self, one: Closes, places: dict[Closes, float], most: int) -> bool:
        if len(places) >= most:
            first, since = next(iter(places.items()))
            if self._served_s - since < PATIENCE_S:
                return False
            del places[first]
            first.crowded_out()
        places[one] = self._served_s
        return True

    def leave(self, one: Closes) -> None:
        """It has proved the secret, or gone."""
        self._others.pop(one, None)
        self._holders.pop(one, None)

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
