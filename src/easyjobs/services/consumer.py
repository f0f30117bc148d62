"""How messages leave a broker: fetched in batches, stored, and only then acknowledged; connected again whenever that fails.

One task fetches from each namespace that has tasks, also from those that come later. When nobody offers a task of a namespace any more, its
messages stay in the broker (it is connected anew without that queue) until somebody does. Else nothing is given back: what the store cannot take
now is held until it can, and nothing more is fetched meanwhile. So memory holds `PREFETCH` messages of a queue at most, and a broker's
limit of redeliveries is not used up by a full disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from easyjobs.domain.job import MAX_FRAME
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, StoreBusy, StoreError, StoreFull, StoreLost
from easyjobs.ports.broker import Broker, Delivery
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.runtime import failpoints
from easyjobs.runtime.log import ERROR, INFO, WARNING, event
from easyjobs.runtime.reconnect import STABLE_S, wait
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.inbox import Inbox, Letter
from easyjobs.services.intake import ShuttingDown
from easyjobs.services.sender import Sender

log = logging.getLogger("easyjobs.consumer")

BATCH: Final = 250  # messages in one transaction
BUSY: Final = 5  # messages at once: then more come, and …
LINGER_S: Final = 0.005  # … they are waited for so long: one commit and one ack for many of them
CONNECT_S: Final = 20.0
AGAIN_S: Final = 15.0  # at most, between two tries to connect: however long a broker was gone, it is used within 30 s of its return
REFUSED_S: Final = 30.0  # to the next try with a queue, or a password, that was refused
RETRY_S: Final = 0.25  # to the next try with a batch that the store did not take; doubles …
MAX_RETRY_S: Final = 15.0  # … up to this
BLAME_AFTER: Final = 4  # tries with one message, while the store takes commits: then it is the message
ROOM_S: Final = 1.0  # between two looks at backlog and disk


class _NoTasksError(Exception):
    """A queue is consumed whose namespace has no tasks any more."""


class Consumer:
    """Takes the messages of one broker.

    Args:
        has_room: asked about once a second; False: fetch nothing for now (the disk is nearly full).
        backlog: with so many jobs queued nothing is fetched.
    """

    def __init__(
        self, broker: Broker, *, store: Store, inbox: Inbox, catalogue: Catalogue, clock: Clock, has_room: Callable[[], bool], backlog: int
    ) -> None:
        self._broker, self._store, self._inbox, self._catalogue, self._clock = broker, store, inbox, catalogue, clock
        self._has_room, self._backlog = has_room, backlog
        self.sender = Sender(broker, store=store, catalogue=catalogue, clock=clock)
        self._room_until = 0.0
        self._offered = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self.is_up = False
        self.failure: str | None = None  # why it is not up
        self._refused: set[str] = set()  # queues that the broker does not let us use

    @property
    def state(self) -> str:
        """One of "up", "down" and "refused": it is connected, and does not let us use a queue."""
        return "down" if not self.is_up else "refused" if self._refused else "up"

    @property
    def name(self) -> str:
        """The broker's."""
        return self._broker.name

    def wake(self) -> None:
        """Tasks were offered: their queues may be new."""
        self._offered.set()

    async def start(self) -> None:
        """Begin; a broker that cannot be reached is tried again for ever."""
        self._supervisor = asyncio.create_task(self._supervise(), name=f"easyjobs-consumer-{self.name}")

    async def stop(self) -> None:
        """End. What was fetched and not stored goes back to the broker."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    # --- the connection ---------------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        failures = 0
        is_store_lost = False
        while not is_store_lost:
            began = self._clock.monotonic()
            is_left = False
            try:
                await self._serve()
            except* StoreLost as lost:
                self.failure = str(_first(lost))
                is_store_lost = True  # for good: nothing can be stored any more
            except* _NoTasksError as several:
                event(log, INFO, "broker.left_queue", broker=self.name, queue=str(_first(several)))
                is_left = True
            except* BrokerRefused as several:
                self.failure = str(_first(several))
                event(log, ERROR, "broker.refused", broker=self.name, reason=self.failure)
            except* BrokerError as several:
                self.failure = str(_first(several))
            except* Exception as several:
                log.exception("the consumer of %s failed; it connects again", self.name)
                self.failure = str(_first(several))
            finally:
                was_up, self.is_up = self.is_up, False
                await self._broker.close()
            if is_left:
                continue
            failures = 0 if was_up and self._clock.monotonic() - began >= STABLE_S else failures + 1
            pause = wait(failures, random.random(), AGAIN_S)
            event(log, WARNING, "broker.down", broker=self.name, reason=self.failure, again_in_s=round(pause, 2))
            await asyncio.sleep(pause)

    async def _serve(self) -> None:
        """Connect and consume. Ends by raising."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._broker.connect()
        except TimeoutError:
            raise BrokerDown(f"{self.name} has not answered for {CONNECT_S:.0f} s") from None
        is_first = self.failure is None
        self.is_up, self.failure = True, None
        self._refused.clear()
        # After a failure that was warned of, its end is said as loudly.
        event(log, INFO if is_first else WARNING, "broker.connected", broker=self.name)
        consumed: set[str] = set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sender.run(), name=f"easyjobs-sender-{self.name}")
            while True:
                self._offered.clear()
                if gone := consumed.difference(self._catalogue.queues()):
                    raise _NoTasksError(min(gone))
                for queue in self._catalogue.queues():
                    if queue not in consumed:
                        consumed.add(queue)
                        group.create_task(self._consume(queue), name=f"easyjobs-consumer-{self.name}-{queue}")
                try:
                    async with asyncio.timeout(self._broker.watch_s):
                        await self._offered.wait()
                except TimeoutError:
                    await self._broker.check()

    async def _consume(self, queue: str) -> None:
        while True:
            try:
                await self._broker.consume(queue)
                self._refused.discard(queue)
                break
            except BrokerRefused as why:
                self._refused.add(queue)
                event(log, ERROR, "broker.refused", broker=self.name, queue=queue, reason=str(why), again_in_s=REFUSED_S)
                await asyncio.sleep(REFUSED_S)
        fetched: asyncio.Queue[list[Delivery]] = asyncio.Queue(1)  # the next batch comes while one is stored
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fetch(queue, fetched))
            group.create_task(self._store_all(queue, fetched))

    async def _fetch(self, queue: str, fetched: asyncio.Queue[list[Delivery]]) -> None:
        while True:
            await self._until_room()
            deliveries = await self._broker.fetch(queue, BATCH)
            await fetched.put(deliveries)
            if BUSY <= len(deliveries) < BATCH:
                await asyncio.sleep(LINGER_S)

    async def _store_all(self, queue: str, fetched: asyncio.Queue[list[Delivery]]) -> None:
        while True:
            deliveries = await fetched.get()
            if not self._catalogue.has_visible(queue):
                raise _NoTasksError(queue)
            for some in _by_size(deliveries):
                await self._take(queue, some)
            if failpoints.ARMED:
                failpoints.reach("consumer.stored")
            await self._broker.ack(queue, deliveries)

    # --- a batch ----------------------------------------------------------------------------------------------------------------

    async def _take(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """Return when all of it is durable. What the store cannot take now is tried again; what it never takes goes into quarantine."""
        letters = [Letter(self.name, queue, delivery.id, delivery.body, self._broker.keep_us) for delivery in deliveries]
        tries, pause = 0, RETRY_S
        while True:
            try:
                await self._inbox.take(letters)
                if tries:
                    event(log, WARNING, "broker.resumed", broker=self.name, queue=queue)
                return
            except StoreLost:
                raise
            except (StoreFull, StoreBusy, ShuttingDown) as why:
                reason = str(why)
            except StoreError as why:
                reason = str(why)
                if len(letters) > 1 and tries:  # one of them may be to blame
                    for delivery in deliveries:
                        await self._take(queue, [delivery])
                    return
                if tries >= BLAME_AFTER and await self._is_store_well():
                    await self._inbox.put_aside([self._inbox.refused(letters[0], reason)])
                    return
            if not tries:
                event(log, WARNING, "broker.paused", broker=self.name, queue=queue, reason=reason)
            tries += 1
            await asyncio.sleep(pause)
            pause = min(MAX_RETRY_S, pause * 2)

    async def _is_store_well(self) -> bool:
        try:
            await self._store.check()
        except StoreError:
            return False
        return True

    async def _until_room(self) -> None:
        """Return when there is room for more jobs."""
        told = False
        while self._clock.monotonic() >= self._room_until:
            queued = sum([n for (_, state), n in (await self._counts()).items() if state is JobState.QUEUED])
            if queued < self._backlog and self._has_room():
                self._room_until = self._clock.monotonic() + ROOM_S
                break
            if not told:
                event(log, WARNING, "broker.paused", broker=self.name, reason="the backlog or the disk is full", queued=queued)
                told = True
            await asyncio.sleep(ROOM_S)
        if told:
            event(log, WARNING, "broker.resumed", broker=self.name)

    async def _counts(self) -> dict[tuple[int, JobState], int]:
        while True:
            try:
                return await self._store.counts()
            except StoreLost:
                raise
            except StoreError:
                await asyncio.sleep(ROOM_S)


def _by_size(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    """In parts of at most a frame's bytes, or of one message."""
    parts: list[list[Delivery]] = []
    size = MAX_FRAME + 1
    for delivery in deliveries:
        size += len(delivery.body)
        if size > MAX_FRAME:
            parts.append([])
            size = len(delivery.body)
        parts[-1].append(delivery)
    return parts


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
