"""What a message is that could not become a job: kept, with the reason, until somebody replays or deletes it."""

from __future__ import annotations

from typing import Final

import msgspec

KEPT_BYTES: Final = 64 * 1024  # of a body that no replay can help; one that waits for its task is kept whole

# Reasons, as users see them.
BAD_JSON: Final = "bad_json"
BAD_FORMAT: Final = "bad_format"
TOO_LARGE: Final = "too_large"
UNKNOWN_TASK: Final = "unknown_task"
INVALID_ARGUMENTS: Final = "invalid_arguments"
KEY_REUSED: Final = "key_reused"
REFUSED: Final = "refused"


class BadMessage(msgspec.Struct, frozen=True):
    """A message to be put aside. `key` is the broker's id for it, under which it is put aside once; None: it has none.

    `body` is what is kept of its `size` bytes. `task` (queue, name) and `wait_us`: it is replayed by itself if that task is offered within
    this time.
    """

    broker: str
    queue: str
    key: str | None
    reason: str
    detail: str
    body: bytes
    size: int
    wait_us: int = 0
    task: tuple[str, str] | None = None


class Quarantined(msgspec.Struct, frozen=True):
    """A message that was put aside at `at`. `waits_until`: it is replayed by itself until then (None: it does not wait)."""

    id: int
    broker: str
    queue: str
    key: str | None
    reason: str
    detail: str
    body: bytes
    size: int
    at: int
    waits_until: int | None

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the body was cut off."""
        return len(self.body) == self.size


class QuarantineQuery(msgspec.Struct, frozen=True):
    """A page of messages, newest first. `before_id` is the cursor. `task`: only those that still wait for this one, oldest first."""

    limit: int = 50
    ids: tuple[int, ...] | None = None
    queue: str | None = None
    reason: str | None = None
    before_id: int | None = None
    task: tuple[str, str] | None = None
