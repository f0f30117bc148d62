"""Ends of jobs that wait to be sent, as the store in memory keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from easyjobs.domain.job import MAX_FRAME
from easyjobs.domain.replies import Reply, Unsent


class MemoryOutbox:
    """What the port says of ends that are sent."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, Unsent]] = {}  # by id, in its order: (broker, what)
        self._last = 0

    def next_id(self) -> int:
        """A new id, higher than all before."""
        self._last += 1
        return self._last

    def add(self, reply: Reply, unsent: Unsent) -> None:
        """Keep what is to be sent."""
        self._rows[unsent.id] = (reply.broker, unsent)

    def unsent(self, broker: str, after_id: int, limit: int) -> list[Unsent]:
        """See the port."""
        found: list[Unsent] = []
        size = 0
        for of, row in self._rows.values():
            if of != broker or row.id <= after_id:
                continue
            size += len(row.body)
            if len(found) == limit or (found and size > MAX_FRAME):
                break
            found.append(row)
        return found

    def sent(self, ids: Sequence[int]) -> int:
        """See the port."""
        return sum(self._rows.pop(id, None) is not None for id in ids)
