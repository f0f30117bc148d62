"""Who waits for which job, in memory: the reporter tells of ends, long polls and sockets hear of them.

It costs nothing while nobody waits: the reporter calls `ended()` only for ids in `watched`. Each watcher subscribes first and reads
the store then, so an end is either seen in the store or told, and never missed between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from easyjobs.domain.job import JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import UnknownJob
from easyjobs.ports.store import Store
from easyjobs.runtime.ids import id_text

MAX_WAIT_S: Final = 60.0  # of one long poll


class End(NamedTuple):
    """How a job ended. `body`: the result's or the error's JSON; None if it is a result that was removed. `state` None: no such job."""

    id: bytes
    state: JobState | None
    body: bytes | None


Watcher: TypeAlias = Callable[[End], None]


class Results:
    """The table of watchers. Everything runs on the manager's loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.watched: dict[bytes, list[Watcher]] = {}
        self._polls: set[asyncio.Future[End | None]] = set()
        self.is_closed = False

    def ended(self, id: bytes, state: JobState, body: bytes | None) -> None:
        """Tell the watchers of `id`, each once. To be called after the commit; does nothing for an id that nobody watches."""
        watchers = self.watched.pop(id, None)
        if watchers:
            end = End(id, state, body)
            for watcher in watchers:
                watcher(end)

    def add(self, id: bytes, watcher: Watcher) -> None:
        """Call `watcher` once, when the job ends from now on. What ended before is not looked up: see `watch`."""
        self.watched.setdefault(id, []).append(watcher)

    def unwatch(self, ids: Sequence[bytes], watcher: Watcher) -> None:
        """Take back `add` or `watch`; ids that were told already, or never watched, are passed over."""
        for one in ids:
            watchers = self.watched.get(one)
            if watchers is not None and watcher in watchers:
                watchers.remove(watcher)
                if not watchers:
                    del self.watched[one]

    async def watch(self, ids: Sequence[bytes], watcher: Watcher) -> None:
        """Call `watcher` once for each id: now for jobs that have ended or do not exist (`End.state` None), later for the others.

        Raises: StoreError, and then nothing is watched.
        """
        for one in ids:
            self.add(one, watcher)
        try:
            records = await self._store.get(ids)
        except BaseException:
            self.unwatch(ids, watcher)
            raise
        for one, record in zip(ids, records, strict=True):
            if record is not None and not record.state.is_final:
                continue
            if watcher in self.watched.get(one, ()):  # not told meanwhile, nor taken back
                self.unwatch([one], watcher)
                watcher(End(one, None, None) if record is None else end_of(record))

    async def wait(self, id: bytes, timeout_s: float) -> End | None:
        """Wait until the job has ended: its end, or None if it has not within `timeout_s`, or the manager is closing.

        Raises: UnknownJob, StoreError.
        """
        poll: asyncio.Future[End | None] = asyncio.get_running_loop().create_future()

        def settle(end: End) -> None:
            if not poll.done():
                poll.set_result(end)

        self.add(id, settle)
        self._polls.add(poll)
        try:
            [record] = await self._store.get([id])
            if record is None:
                raise UnknownJob(id_text(id))
            if record.state.is_final:
                return end_of(record)
            if self.is_closed or timeout_s <= 0:
                return None
            try:
                async with asyncio.timeout(timeout_s):
                    return await poll
            except TimeoutError:
                return None
        finally:
            self._polls.discard(poll)
            self.unwatch([id], settle)

    def close(self) -> None:
        """The manager is going down: every long poll ends at once, as if its time were over. Watchers are forgotten."""
        self.is_closed = True
        self.watched.clear()
        for poll in self._polls:
            if not poll.done():
                poll.set_result(None)


def end_of(record: JobRecord) -> End:
    """The end of a job that has ended, as the store tells it."""
    return End(record.id, record.state, record.result if record.state is JobState.SUCCEEDED else record.error)
