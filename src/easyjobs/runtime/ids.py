"""Where job ids come from: UUIDv7, so that ids sort by the time they were made.

Layout (RFC 9562, section 5.7): 48 bits of milliseconds, version 7, 12 random bits, variant 2, 62 random bits.
"""

from __future__ import annotations

import os
import threading
from typing import Final
from uuid import UUID

from easyjobs.runtime.clock import SystemClock

_RANDOM_BLOCK = 8192  # bytes asked of the system at once: a call per id would cost as much as all the rest of it
_clock: Final = SystemClock()


class _Block(threading.local):
    """Random bytes in stock: each thread has its own, or two threads would make the same id."""

    random = b""
    used = 0


_block: Final = _Block()


def _forget() -> None:
    _block.random = b""


os.register_at_fork(after_in_child=_forget)  # or two children would make the same ids


def new_id(now_us: int | None = None) -> bytes:
    """A fresh id, 16 bytes. `now_us`: microseconds since 1970, of any clock: it only gives the order."""
    block = _block
    used = block.used
    if used + 10 > len(block.random):
        block.random, used = os.urandom(_RANDOM_BLOCK), 0
    tail = block.random[used : used + 10]
    block.used = used + 10
    millis = (_clock.now() if now_us is None else now_us) // 1000
    return millis.to_bytes(6) + bytes(((tail[0] & 0x0F) | 0x70, tail[1], (tail[2] & 0x3F) | 0x80)) + tail[3:]


def id_text(raw: bytes) -> str:
    """The id as users see it: `01939c5e-…`."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def id_bytes(text: str) -> bytes | None:
    """The 16 bytes of an id's text (any form that `uuid.UUID` reads), or None if it is no id."""
    try:
        return UUID(text).bytes
    except ValueError:
        return None
