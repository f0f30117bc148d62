"""One way to write a log line: a name from `events`, then fields.

`event(log, INFO, "job.succeeded", job_id=…, attempt=2)` reads `job.succeeded job_id=01J9… attempt=2`; handlers that write JSON find
the same in `record.event` and `record.fields`. Values are escaped, so that no data can write a line of its own.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Final

DEBUG: Final = logging.DEBUG
INFO: Final = logging.INFO
WARNING: Final = logging.WARNING
ERROR: Final = logging.ERROR

_BARE = re.compile(r"[^\s\"=\x00-\x1f\x7f\u0085\u2028\u2029]+")
MAX_VALUE: Final = 2000  # characters of one field; the record's `fields` has the whole


def event(log: logging.Logger, level: int, name: str, /, *, exc_info: BaseException | bool | None = None, **fields: object) -> None:
    """Write one line, if `log` writes lines of that level at all. A field that is None is left out."""
    if log.isEnabledFor(level):
        log.log(level, line(name, fields), exc_info=exc_info, extra={"event": name, "fields": fields}, stacklevel=2)


def line(name: str, fields: dict[str, object]) -> str:
    """The text of an event: `name key=value …`; values with spaces or control characters are quoted as in JSON."""
    return " ".join([name, *(f"{key}={_text(value)}" for key, value in fields.items() if value is not None)])


def _text(value: object) -> str:
    text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) > MAX_VALUE:
        text = text[:MAX_VALUE] + "…"
    return text if _BARE.fullmatch(text) else json.dumps(text)
