"""Progress and log lines on their way from the attempts of a pool to the manager.

Written from any thread; taken by the carrier, in batches. The lines of one attempt have bounds; what is over them is counted, and the
job's log says so. A pool that nobody writes in has an empty notebook, and asking whether it is empty is all that this costs.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from easyjobs.domain.seeing import MAX_ATTEMPT_BYTES, MAX_ATTEMPT_LINES, MAX_LINE, OUR_LOGGER, Line, Mark, size_of
from easyjobs.tasks import _current

if TYPE_CHECKING:
    from easyjobs.workers.pool import Attempt

NOTES_S: Final = 0.2  # progress and lines of running attempts are sent so often; an attempt that ends sends its own at once


class Notebook:
    """What attempts have shown and the carrier has not taken yet. `wake` is called, from any thread, when there is something to take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: dict[tuple[int, int], Mark] = {}
        self._lines: list[Line] = []
        self.is_empty = True
        self.wake: Callable[[], None] = lambda: None

    def mark(self, mark: Mark) -> None:
        """Keep how far an attempt is, instead of what it said before."""
        with self._lock:
            self._marks[mark.seq, mark.attempt] = mark
            first, self.is_empty = self.is_empty, False
        if first:
            self.wake()

    def write(self, attempt: Attempt, level: int, logger: str, text: str, at: int) -> None:
        """Add a line to the log of the attempt, or count it, if that is full."""
        claimed = attempt._claimed
        with self._lock:
            attempt.lines += 1
            line = Line(claimed.seq, claimed.attempt, attempt.lines, at, level, logger[:200], text)
            size = size_of(line)
            if attempt.dropped_lines or attempt.lines > MAX_ATTEMPT_LINES or attempt.line_bytes + size > MAX_ATTEMPT_BYTES:
                attempt.dropped_lines += 1
                attempt.last_line_at = at
                return
            attempt.line_bytes += size
            self._lines.append(line)
            first, self.is_empty = self.is_empty, False
        if first:
            self.wake()

    def ended(self, attempt: Attempt) -> None:
        """An attempt some of whose lines were dropped has ended: say in its log how many."""
        claimed = attempt._claimed
        with self._lock:
            text = (
                f"{attempt.dropped_lines:,} more lines were not kept: of one attempt, {MAX_ATTEMPT_LINES:,} lines or "
                f"{MAX_ATTEMPT_BYTES >> 20} MiB are"
            )
            number = attempt.lines = attempt.lines + 1
            line = Line(claimed.seq, claimed.attempt, number, attempt.last_line_at, logging.WARNING, OUR_LOGGER, text)
            self._lines.append(line)
            first, self.is_empty = self.is_empty, False
        if first:
            self.wake()

    def take(self) -> tuple[list[Mark], list[Line]]:
        """Return what there is, and forget it."""
        with self._lock:
            marks, lines = list(self._marks.values()), self._lines
            self._marks, self._lines, self.is_empty = {}, [], True
        return marks, lines


# --- the standard library's logging ---------------------------------------------------------------------------------------------


_is_capturing = False


def capture() -> None:
    """From now on, what is logged inside a job, by whatever logger, is kept with the job too. Does its work once a process.

    It listens where records are made, not as a handler of the root logger: with one there, `logging.basicConfig()` would do nothing, and
    warnings of a program that has not set up logging would no longer reach its stderr. So a record is captured that the levels of its logger
    let through, whatever handlers there are.
    """
    global _is_capturing
    if _is_capturing:
        return
    _is_capturing = True
    make = logging.getLogRecordFactory()

    def make_and_capture(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        job = _current.get()
        if job is not None:
            job._logged(record)
        return record

    logging.setLogRecordFactory(make_and_capture)


def text_of(record: logging.LogRecord) -> str:
    """A record's message, with its traceback if it has one, as text that UTF-8 can carry; cut if it is too long."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or an object whose __str__ raises
        text = str(record.msg) if isinstance(record.msg, str) else f"<{type(record.msg).__name__}>"
    if record.exc_info and record.exc_info[0] is not None:
        text = f"{text}\n{''.join(traceback.format_exception(*record.exc_info)).rstrip()}"
    if record.stack_info:
        text = f"{text}\n{record.stack_info}"
    return cut(text)


def cut(text: str) -> str:
    """At most `MAX_LINE` characters, all of which UTF-8 can carry."""
    if len(text) > MAX_LINE:
        text = f"{text[:MAX_LINE]}… {len(text) - MAX_LINE:,} characters left out"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
