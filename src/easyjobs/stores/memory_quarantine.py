"""Messages that were put aside, as the store in memory keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.ports.clock import Clock


class MemoryQuarantine:
    """What the port says of quarantined messages."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: dict[int, Quarantined] = {}
        self._tasks: dict[int, tuple[str, str]] = {}
        self._ids: dict[tuple[str, str, str | None], int] = {}  # (broker, queue, key) → id
        self._last = 0

    def add(self, messages: Sequence[BadMessage]) -> list[int]:
        """See the port."""
        return [self._add(message) for message in messages]

    def _add(self, message: BadMessage) -> int:
        where = (message.broker, message.queue, message.key)
        if message.key is not None:
            known = self._ids.get(where)
            if known is not None:
                return known
            self._ids[where] = self._last + 1
        self._last += 1
        now = self._clock.now()
        until = now + message.wait_us if message.wait_us else None
        self._all[self._last] = Quarantined(self._last, *where, message.reason, message.detail, message.body, message.size, now, until)
        if message.task is not None:
            self._tasks[self._last] = message.task
        return self._last

    def _waits(self, message: Quarantined) -> bool:
        return message.waits_until is not None and message.waits_until > self._clock.now()

    def read(self, query: QuarantineQuery) -> list[Quarantined]:
        """See the port."""
        found = [
            message
            for message in self._all.values()
            if (query.ids is None or message.id in query.ids)
            and (query.queue is None or message.queue == query.queue)
            and (query.reason is None or message.reason == query.reason)
            and (query.before_id is None or message.id < query.before_id)
            and (query.task is None or (self._waits(message) and self._tasks.get(message.id) == query.task))
        ]
        found.sort(key=lambda message: message.id, reverse=query.task is None)
        return found[: query.limit]

    def awaited(self) -> list[tuple[str, str]]:
        """See the port."""
        return list(dict.fromkeys(task for id, task in self._tasks.items() if self._waits(self._all[id])))

    def remove(self, ids: Sequence[int]) -> list[bool]:
        """See the port."""
        removed = [self._all.pop(id, None) for id in ids]
        for each in removed:
            if each is not None:
                self._tasks.pop(each.id, None)
                self._ids.pop((each.broker, each.queue, each.key), None)
        return [each is not None for each in removed]
