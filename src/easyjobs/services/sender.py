"""How the ends of jobs get to the queues of a broker: read in batches, published, and forgotten only when the broker has confirmed.

Whatever ends this between the confirmation and the commit that forgets it sends the message again: at least once. A queue that is
refused holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from easyjobs.domain.replies import Unsent, message
from easyjobs.errors import BrokerRefused, QueueGone, StoreError, StoreLost
from easyjobs.ports.broker import Broker, Outgoing
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import ERROR, INFO, event
from easyjobs.services.catalogue import Catalogue

log = logging.getLogger("easyjobs.sender")

BATCH: Final = 500
RETRY_S: Final = 1.0  # to the next try when the store did not answer
AGAIN_S: Final = 30.0  # to the next try with what was refused
GIVE_UP: Final = 3  # refusals in a row: then it is the queue, and not one message of it
KEEP_US: Final = 7 * 24 * 3600 * 1_000_000  # what is refused is dropped, with an error in the log, when it is older


class Sender:
    """Sends to one broker, while that is connected."""

    def __init__(self, broker: Broker, *, store: Store, catalogue: Catalogue, clock: Clock) -> None:
        self._broker, self._store, self._catalogue, self._clock = broker, store, catalogue, clock
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is something to send."""
        self._news.set()

    async def run(self) -> None:
        """Send what there is, and what comes. Ends by raising: BrokerDown, StoreLost."""
        after, again_at = 0, 0.0
        while True:
            if self._clock.monotonic() >= again_at:  # from the first: what was refused, and what another transaction stored late
                after, again_at = 0, self._clock.monotonic() + AGAIN_S
            self._news.clear()
            try:
                rows = await self._store.unsent(self._broker.name, after, BATCH)
            except StoreLost:
                raise
            except StoreError:
                await asyncio.sleep(RETRY_S)
                continue
            if rows:
                await self.send(rows)
                after = rows[-1].id
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._news.wait()

    async def send(self, rows: Sequence[Unsent]) -> None:
        """Send these; what is refused stays. Raises: BrokerDown, StoreLost."""
        queues: dict[str, list[Unsent]] = {}
        for row in rows:
            queues.setdefault(row.queue, []).append(row)
        for queue, some in queues.items():
            if await self._publish(queue, some):
                await self._forget(some)
            elif len(some) > 1:
                await self._one_by_one(queue, some)
            else:
                await self._refused(queue, some)

    async def _one_by_one(self, queue: str, rows: Sequence[Unsent]) -> None:
        """One of them may be to blame."""
        refused: list[Unsent] = []
        for index, row in enumerate(rows):
            if await self._publish(queue, [row]):
                await self._forget([row])
                continue
            refused.append(row)
            if len(refused) == GIVE_UP == index + 1:
                refused.extend(rows[GIVE_UP:])
                break
        if refused:
            await self._refused(queue, refused)

    async def _publish(self, queue: str, rows: Sequence[Unsent]) -> bool:
        """Whether these are done with: the broker has taken all of them, or their reader has gone."""
        try:
            await self._broker.publish(queue, [self._message(row) for row in rows])
        except QueueGone as why:
            event(log, INFO, "result.unclaimed", broker=self._broker.name, queue=queue, count=len(rows), reason=str(why))
            return True
        except BrokerRefused as why:
            self._why = str(why)
            return False
        return True

    async def _refused(self, queue: str, rows: Sequence[Unsent]) -> None:
        old = [row for row in rows if row.at < self._clock.now() - KEEP_US]
        event(
            log, ERROR, "result.refused", broker=self._broker.name, queue=queue, count=len(rows), dropped=len(old), reason=self._why[:500],
            again_in_s=AGAIN_S,
        )  # fmt: skip
        if old:
            await self._forget(old)

    async def _forget(self, rows: Sequence[Unsent]) -> None:
        while True:
            try:
                await self._store.sent([row.id for row in rows])
                return
            except StoreLost:
                raise
            except StoreError:  # until then nothing more is sent, so that no more than these may come twice
                await asyncio.sleep(RETRY_S)

    def _message(self, row: Unsent) -> Outgoing:
        task = self._catalogue.by_lane(row.lane)
        job_id = id_text(row.job)
        body = message(
            row,
            job_id=job_id,
            namespace="" if task is None else task.queue,
            name="" if task is None else task.name,
            finished_at=datetime.fromtimestamp(row.at / 1_000_000, UTC).isoformat(),
        )
        return Outgoing(body, f"{job_id}-{row.id}", row.correlation or job_id)
