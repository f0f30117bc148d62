"""The manager's own pool, over the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from easyjobs.domain.job import Claimed, Outcome, Report
from easyjobs.errors import StoreFull
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult
from easyjobs.tasks import Registry
from easyjobs.workers.loopback import Loopback
from easyjobs.workers.pool import Pool
from tests.workers.fake import within


class Services:
    """What the manager does with reports: remember them, or fail as often as `failures` says."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.limit = 0
        self.failures = 0
        self.news = asyncio.Event()

    def report(self, items: list[Report]) -> Coroutine[Any, Any, list[int]]:
        return self._report(items)

    async def _report(self, items: list[Report]) -> list[int]:
        if self.failures:
            self.failures -= 1
            raise StoreFull("the disk")
        self.reports += items
        self.news.set()
        return []

    def credit(self, limit: int) -> None:
        self.limit = max(self.limit, limit)

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        raise NotImplementedError

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        raise NotImplementedError

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        raise NotImplementedError

    async def has(self, count: int) -> None:
        while len(self.reports) < count:
            self.news.clear()
            await within(10, self.news.wait())


def job(seq: int) -> Claimed:
    return Claimed(seq, 1, 1, seq.to_bytes(16), 0, 0, b"[[],{}]")


async def test_jobs_that_wait_behind_busy_slots_go_back_and_no_more_come() -> None:
    services, pool, gate = Services(), Pool(slots=1), asyncio.Event()
    loopback = pool.carrier = Loopback(pool, services)
    pool.lanes[1] = Registry(loopback, lambda _: None).register(gate.wait, ["q"], {})
    loopback.run([job(seq) for seq in range(1, 5)])
    await services.has(3)
    assert [(report.seq, report.outcome) for report in services.reports] == [(seq, Outcome.RELEASED) for seq in (2, 3, 4)]
    assert services.limit == 4  # three came back, one runs, on one slot
    gate.set()
    await services.has(4)
    assert services.reports[-1].outcome is Outcome.SUCCEEDED
    assert await loopback.close_reports(1)


async def test_reports_that_the_store_cannot_take_are_brought_again(monkeypatch: Any) -> None:
    monkeypatch.setattr("easyjobs.workers.loopback.RETRY_S", 0.01)
    services, pool = Services(), Pool(slots=1)
    loopback = pool.carrier = Loopback(pool, services)
    services.failures = 2

    async def work() -> int:
        return 1

    pool.lanes[1] = Registry(loopback, lambda _: None).register(work, ["q"], {})
    loopback.run([job(1)])
    await services.has(1)
    assert services.reports[0].body == b"1"
    assert await loopback.close_reports(1)
