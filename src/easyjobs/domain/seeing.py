"""What a job shows of itself: its progress, its log lines, its changes of state.

`Mark` and `Line` travel from a worker to the store, in batches (`Notes`); `Progress`, `LogLine` and `StateChanged` are what a user sees.
A line is named by (attempt, number), which only ever grow within a job: so a repeat is known, and a reader says where it stands by the
last line that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, TypeAlias

import msgspec

from easyjobs.domain.job import AttemptNumber, Number
from easyjobs.domain.lifecycle import JobState

MAX_MESSAGE: Final = 500  # characters of a progress message
MAX_LINE: Final = 8 * 1024  # characters of one log line; a longer one is cut, and says so
MAX_LOGGER: Final = 255  # characters of a logger's name
MAX_ATTEMPT_LINES: Final = 10_000
MAX_ATTEMPT_BYTES: Final = 1024 * 1024
MAX_JOB_LINES: Final = 20_000
MAX_JOB_BYTES: Final = 4 * 1024 * 1024
OUR_LOGGER: Final = "easyjobs.job"  # the name of `ctx.log`, and of the lines that we write into a job's log ourselves

Instant: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]  # to the end of the year 9999
Place: TypeAlias = tuple[int, int]
"""(attempt, number) of a line; (0, 0) is before the first."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """How far an attempt is. `total` None: unknown."""

    seq: Number
    attempt: AttemptNumber
    done: Number | float
    total: Number | float | None = None
    message: str = ""


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One log line of an attempt. `number` counts from 1 in each attempt; `at` is by the worker's clock; `level` as in `logging`."""

    seq: Number
    attempt: AttemptNumber
    number: Number
    at: Instant
    level: Number
    logger: str
    text: str


def trimmed(mark: Mark) -> Mark:
    """The same, its text as long as it may be: workers of ours cut it themselves."""
    return mark if len(mark.message) <= MAX_MESSAGE else msgspec.structs.replace(mark, message=mark.message[:MAX_MESSAGE])


def cut(line: Line) -> Line:
    """The same, its texts as long as they may be; workers of ours cut them themselves, and add how much is left out."""
    if len(line.text) <= MAX_LINE + 100 and len(line.logger) <= MAX_LOGGER:
        return line
    return msgspec.structs.replace(line, text=line.text[:MAX_LINE], logger=line.logger[:MAX_LOGGER])


class Notes(msgspec.Struct, frozen=True):
    """What a session says of its running attempts."""

    session: int
    marks: Sequence[Mark] = ()
    lines: Sequence[Line] = ()


class StateChanged(msgspec.Struct, frozen=True, tag="state"):
    """The job is in `state` (`"queued"`, `"running"`, `"succeeded"` …). `attempt`: the last that was begun, 0 for none yet."""

    state: str
    attempt: int

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return JobState[self.state.upper()].is_final


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the attempt is: `done` of `total` (None: unknown). `at`: microseconds since 1970."""

    attempt: int
    done: int | float
    total: int | float | None
    message: str
    at: int


class LogLine(msgspec.Struct, frozen=True, tag="log"):
    """A line of the job's log. `number` counts from 1 in each attempt; `at`: microseconds since 1970, by the worker's clock."""

    attempt: int
    number: int
    at: int
    level: int
    logger: str
    text: str


News: TypeAlias = StateChanged | Progress | LogLine
"""What `job.events()` gives."""


class Unrepeated:
    """What a stream of news gives to its reader: after a reconnect it begins with what is, and some of that was there before."""

    def __init__(self) -> None:
        self.place: Place = (0, 0)
        self._state: StateChanged | None = None
        self._progress: Progress | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return self._state is not None

    def of(self, news: Iterable[News]) -> Iterator[News]:
        """Return those that are new."""
        for one in news:
            if isinstance(one, LogLine):
                if (one.attempt, one.number) <= self.place:
                    continue
                self.place = (one.attempt, one.number)
            elif isinstance(one, Progress):
                if one == self._progress:
                    continue
                self._progress = one
            else:
                if one == self._state:
                    continue
                self._state = one
            yield one


class Glance(msgspec.Struct, frozen=True):
    """Look at a job, and at up to `limit` lines after `after`."""

    id: bytes
    after: Place = (0, 0)
    limit: int = 0


class Look(msgspec.Struct, frozen=True):
    """A job as it can be seen now. `progress`: of its last attempt. `lines` and `dropped` of the log as a whole are in `count`, `dropped`."""

    state: JobState
    attempt: int
    progress: Progress | None
    lines: list[LogLine]
    is_more: bool  # there are lines after these
    count: int  # lines that are kept
    dropped: int  # lines that were not kept, for the log was full


class FailedAttempt(msgspec.Struct, frozen=True):
    """An attempt that was reported as failed. `at`: when, in microseconds; `worker`: its name; `error`: an `ErrorInfo` as JSON."""

    attempt: int
    at: int
    worker: str | None
    error: bytes


class Ledger(msgspec.Struct, array_like=True):
    """What the log of one job holds so far, and which line came last. Stores keep it beside the lines."""

    lines: int = 0
    bytes: int = 0
    dropped: int = 0
    attempt: int = 0
    number: int = 0


def enter(ledger: Ledger, lines: Iterable[Line]) -> list[Line]:
    """Return the lines that are to be kept: not those that were there before, nor those for which the job's log has no room.

    `ledger` is changed in place. In place of the first line that has no room stands one that says so.
    """
    kept: list[Line] = []
    for line in lines:
        if (line.attempt, line.number) <= (ledger.attempt, ledger.number):
            continue  # sent again after a lost connection
        ledger.attempt, ledger.number = line.attempt, line.number
        size = size_of(line)
        if ledger.lines >= MAX_JOB_LINES or ledger.bytes + size > MAX_JOB_BYTES:
            ledger.dropped += 1
            if ledger.dropped == 1:
                kept.append(msgspec.structs.replace(line, level=30, logger=OUR_LOGGER, text=FULL))
            continue
        ledger.lines += 1
        ledger.bytes += size
        kept.append(line)
    return kept


FULL: Final = f"the log of this job is full ({MAX_JOB_LINES:,} lines or {MAX_JOB_BYTES >> 20} MiB): what follows is counted, and not kept"


def size_of(line: Line) -> int:
    """What a line counts in bytes."""
    text = line.text
    return len(line.logger) + (len(text) if text.isascii() else len(text.encode("utf-8", "replace")))


def place_text(place: Place) -> str:
    """A place in a log as URLs and event ids have it: `"2.17"`."""
    return f"{place[0]}.{place[1]}"


def place_of(text: str) -> Place | None:
    """The place that `place_text` wrote, None for anything else. What follows a second dot is passed over."""
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 18 for part in parts[:2]):
        return None
    return int(parts[0]), int(parts[1])
