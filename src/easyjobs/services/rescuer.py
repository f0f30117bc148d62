"""When a session's lease has ended: its jobs go back, or fail where they crashed too often.

A manager that was away, or stalled, could not hear its workers: it waits one whole lease before it rescues anything (P9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from easyjobs.domain.job import ErrorInfo
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime import failpoints
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.service import Service
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.results import Results

log = logging.getLogger("easyjobs.rescuer")

MAX_TICK_S: Final = 5.0


class Rescuer(Service):
    """Looks for ended leases every `tick_s`: 5 s, or a sixth of a short lease."""

    name = "rescuer"

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        results: Results,
        clock: Clock,
        *,
        lease_s: float,
        on_rescued: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._on_rescued = on_rescued
        self._store, self._dispatcher, self._results, self._clock = store, dispatcher, results, clock
        self._lease_s = lease_s
        self.tick_s = min(MAX_TICK_S, lease_s / 6)
        self._last = clock.monotonic()
        self._quiet_until = self._last + lease_s  # this manager has just come up

    async def run_once(self) -> float:
        """Rescue one batch, unless this manager was away."""
        now = self._clock.monotonic()
        away_s = now - self._last - self.tick_s
        self._last = now
        if away_s > self._lease_s / 2:
            log.warning("this manager stood still for %.1f s: no lease is ended for the next %.0f s", away_s, self._lease_s)
            self._quiet_until = now + self._lease_s
        if now < self._quiet_until:
            return self.tick_s
        await self._dispatcher.last_chances.look_after(self._store)
        with self._dispatcher.held_back():
            rescued = await self._store.rescue()
            self._dispatcher.last_chances.add(one.job for one in rescued if one.is_last_chance)
        if failpoints.ARMED and rescued:
            failpoints.reach("rescuer.rescued")
        lanes: set[int] = set()
        for one in rescued:
            session = self._dispatcher.by_number(one.session)
            if session is not None:
                self._dispatcher.lapse(session, one.job.seq)
            log.warning(
                "job.rescued job_id=%s attempt=%d state=%s: the lease of its worker ended",
                id_text(one.job.id),
                one.job.attempt,
                one.state.text,
            )
            if one.state is JobState.QUEUED:
                lanes.add(one.job.lane)
            elif one.state in FINAL and one.job.id in self._results.watched:
                [record] = await self._store.get([one.job.id])
                self._results.ended(one.job.id, one.state, (record.error if record else None) or b"")
        self._dispatcher.mark_all(lanes)
        if rescued:
            self._on_rescued()
        return 0.0 if len(rescued) >= 1000 else self.tick_s


def crashed(attempt: int, crashes: int) -> ErrorInfo:
    """The failure of a job whose worker died under it too often."""
    return ErrorInfo(type="WorkerLost", message=f"the worker was lost during attempt {attempt}; {crashes} times in all", kind="crashed")
