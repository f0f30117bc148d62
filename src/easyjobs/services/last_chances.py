"""Jobs whose next crash is their end: no worker has two of them at once.

A worker's death counts against every job that it had, for nobody can know which of them it was. Those that come back together would go to the same
worker together, and one that kills its worker would take the others with it when their budget is used up. So each gets its last chance
alone among its kind: ordinary jobs run beside it. One that has not killed its worker within `proven_s` makes room for the next; if the worker dies
then, the one that began last is blamed (`domain.blame`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from easyjobs.domain.job import Claimed, Running
from easyjobs.domain.lifecycle import JobState
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store

MAX_LOOKED_AT: Final = 1000  # at a time


class LastChances:
    """What this manager has rescued. Others over the same store know of their own: it is a matter of chances, not of the contract."""

    def __init__(self, clock: Clock, proven_s: float) -> None:
        self._clock, self._proven_s = clock, proven_s
        self._waiting: dict[int, Running] = {}  # by seq
        self._lanes: Counter[int] = Counter()  # of these
        self._given: dict[int, dict[int, float]] = {}  # session → seq → since when, monotonic

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, jobs: Iterable[Running]) -> None:
        """These are queued."""
        for job in jobs:
            self._pop(job.seq)  # an earlier attempt
            self._waiting[job.seq] = job
            self._lanes[job.lane] += 1

    def _pop(self, seq: int) -> Running | None:
        job = self._waiting.pop(seq, None)
        if job is not None:
            self._lanes[job.lane] -= 1
            if not self._lanes[job.lane]:
                del self._lanes[job.lane]
        return job

    @property
    def lanes(self) -> AbstractSet[int]:
        """Where some wait. From these a session gets one job at a time. Counted as they come and go: this is asked with each claim."""
        return self._lanes.keys()

    def may_have_one(self, session: int, running: Iterable[int]) -> bool:
        """Whether the session, which runs jobs of these seqs, has none that may still kill it."""
        given = self._given.get(session)
        if not given:
            return True
        since = self._clock.monotonic() - self._proven_s
        left = {seq: given[seq] for seq in given.keys() & set(running) if given[seq] > since}
        if left:
            self._given[session] = left
        else:
            del self._given[session]
        return not left

    def given(self, session: int, jobs: Iterable[Claimed]) -> None:
        """The session got these: those that had waited wait no more."""
        for job in jobs:
            if self._pop(job.seq) is not None:
                self._given.setdefault(session, {})[job.seq] = self._clock.monotonic()

    def forget(self, session: int) -> None:
        """The session is not connected any more."""
        self._given.pop(session, None)

    async def look_after(self, store: Store) -> None:
        """Forget those that do not wait any more: cancelled, deleted, or claimed at another manager."""
        some = list(self._waiting.values())[:MAX_LOOKED_AT]
        if not some:
            return
        for job, record in zip(some, await store.get([job.id for job in some]), strict=True):
            if record is None or record.state is not JobState.QUEUED or record.attempt != job.attempt:
                self._pop(job.seq)
            elif (waits := self._waiting.pop(job.seq, None)) is not None:  # to the end, so that each has its turn
                self._waiting[job.seq] = waits
