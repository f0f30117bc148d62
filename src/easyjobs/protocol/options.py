"""What a submit may ask for besides its arguments: as Python has it, and as it travels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from easyjobs.errors import seconds
from easyjobs.protocol.messages import SubmitOptions

MAX_KEY: Final = 255  # characters
NOTHING: Final = SubmitOptions()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def submit_options(
    was: SubmitOptions, *, priority: int | None, delay: float | timedelta | None, at: datetime | None, key: str | None
) -> SubmitOptions:
    """Return `was` with what is given.

    Args:
        was: what was asked for before.
        priority: instead of the task's own; higher first.
        delay: seconds, or a timedelta, before the job may start.
        at: the instant before which the job may not start: a datetime with a time zone. One that has passed is now.
        key: an idempotency key, 1 to 255 characters.

    Raises:
        ValueError: the delay is negative, `at` has no time zone, both are given, or the key is empty or too long.
    """
    delay_us, run_at = was.delay_us, was.run_at
    if delay is not None and at is not None:
        raise ValueError("delay and at: give one of them")
    if at is not None:
        delay_us, run_at = 0, instant(at)
    if delay is not None:
        delay_us, run_at = round(seconds(delay, "delay") * 1_000_000), 0
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise ValueError(f"key: 1 to {MAX_KEY} characters")
    return SubmitOptions(
        priority=was.priority if priority is None else priority,
        delay_us=delay_us,
        key=was.key if key is None else key,
        run_at=run_at,
    )


def instant(at: datetime) -> int:
    """Return microseconds since 1970. Raises: ValueError, for a datetime without a time zone."""
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise ValueError(
            f"at={at!r} has no time zone, and so is no instant: write datetime(…, tzinfo=ZoneInfo('Europe/Berlin')), or at.astimezone() if "
            "it is this machine's local time"
        )
    return max(1, (at - _EPOCH) // timedelta(microseconds=1))
