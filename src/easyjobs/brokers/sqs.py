"""Amazon SQS: long polls, as many as there is room and work for, and messages deleted in batches behind our back.

Whoever has received a message owns it for the visibility timeout, which is prolonged while the message is held: in memory, or by a commit
that takes long. `ack` only notes what can be deleted, so that batches of ten fill up over several fetches; a message whose deletion is
lost comes again, and is known by its id. `close` gives back what is held, so that nobody waits for a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from easyjobs.errors import BrokerDown, BrokerError
from easyjobs.ports.broker import PREFETCH, Delivery, Outgoing
from easyjobs.runtime import sqs

RECEIVERS: Final = 8  # long polls of one queue at once, while they bring as much as they may
CHECK_S: Final = 10.0
CLOSE_S: Final = 2.0  # a poll that ends by itself within this gives its messages back; those of a longer one wait for their timeout
LINGER_S: Final = 0.5  # a batch of deletions that is not full waits for so long
PAUSE_S: Final = 0.5  # after the first answer that asks us to be slower; doubles …
MAX_PAUSE_S: Final = 20.0  # … up to this
DELETE_TRIES: Final = 5
MARGIN_US: Final = 3600 * 1_000_000  # a producer may have sent a message twice, the second time so much later


class _Inlet:
    """The messages of one queue that were received and not deleted."""

    def __init__(self, client: Any, queue: sqs.Queue, address: sqs.Address, receivers: int) -> None:
        self._client, self._address, self._receivers = client, address, receivers
        self.queue = queue
        self.lost: BrokerError | None = None
        self._waiting: deque[Delivery] = deque()
        self._held: dict[str, float] = {}  # receipt handle → when its visibility timeout ends
        self._done: deque[tuple[str, int]] = deque()  # to be deleted, and how often it was tried
        self._asked = 0  # messages that polls under way may bring
        self._wanted = 1  # polls at once
        self._news, self._free, self._acked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._polls: list[asyncio.Task[None]] = []
        self._keepers: list[asyncio.Task[None]] = []

    # --- from outside -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._polls = [self._run(self._poll(number), f"poll-{number}") for number in range(self._receivers)]
        self._keepers = [self._run(self._delete(), "delete"), self._run(self._prolong(), "prolong")]

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.create_task(self._guarded(work), name=f"easyjobs-sqs-{self.queue.name}-{name}")

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            with sqs.translated(f"queue {self.queue.name}"):
                await work
        except BrokerError as why:
            self.end(why)
        except Exception as error:  # noqa: BLE001  nobody awaits this task: the fetch has to say it
            unknown = BrokerDown(f"queue {self.queue.name}: {type(error).__name__} {error}"[:500])
            unknown.__cause__ = error
            self.end(unknown)

    def end(self, why: BrokerError) -> None:
        """Let every fetch raise."""
        self.lost = self.lost or why
        self._news.set()
        self._free.set()

    async def fetch(self, limit: int) -> list[Delivery]:
        while not self._waiting or self.lost:
            if self.lost:
                raise type(self.lost)(str(self.lost)) from self.lost.__cause__
            self._news.clear()
            await self._news.wait()
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._done.extend([(delivery.tag, 0) for delivery in deliveries])
        self._acked.set()

    async def close(self) -> None:
        """Delete what was acknowledged, give back the rest; never raises."""
        self.end(BrokerDown(f"queue {self.queue.name}: it was closed"))
        for keeper in self._keepers:
            keeper.cancel()
        if self._polls:
            await asyncio.wait(self._polls, timeout=CLOSE_S)
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, *self._keepers, return_exceptions=True)
        with contextlib.suppress(BrokerError):
            while self._done:
                await self._delete_some(len(self._done))
        with contextlib.suppress(BrokerError):
            await sqs.in_batches([*self._held], self._set_visibility, VisibilityTimeout=0)

    # --- receiving --------------------------------------------------------------------------------------------------------------

    async def _poll(self, number: int) -> None:
        pauses = 0
        while not self.lost:
            room = min(sqs.BATCH, PREFETCH - len(self._held) - self._asked)
            if number >= self._wanted or room <= 0:
                self._free.clear()
                await self._free.wait()
                continue
            self._asked += room
            try:
                messages = await self._receive(room)
                pauses = 0
            except Exception as error:
                if not sqs.is_throttled(error):
                    raise
                self._wanted, pauses = 1, pauses + 1
                await asyncio.sleep(min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(pauses - 1, 10)) * (0.5 + random.random() / 2))
                continue
            finally:
                self._asked -= room
            self._take(messages)
            if len(messages) == room:
                self._wanted = min(self._receivers, self._wanted * 2)
                self._free.set()
            elif not messages:
                self._wanted = 1

    async def _receive(self, count: int) -> list[dict[str, Any]]:
        answer = await self._client.receive_message(
            QueueUrl=self.queue.url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=self._address.wait_s,
            VisibilityTimeout=self._address.visibility_s,
            MessageAttributeNames=[sqs.ID],
        )
        return list(answer.get("Messages", ()))

    def _take(self, messages: Sequence[dict[str, Any]]) -> None:
        until = _now() + self._address.visibility_s
        for message in messages:
            handle = message["ReceiptHandle"]
            self._held[handle] = until
            own = message.get("MessageAttributes", {}).get(sqs.ID, {}).get("StringValue", "")
            id = own if 0 < len(own) <= sqs.MAX_ID else message["MessageId"]
            self._waiting.append(Delivery(message["Body"].encode(), id, handle))
        if messages:
            self._news.set()

    # --- what is held -----------------------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        pauses = 0
        while True:
            if not self._done:
                self._acked.clear()
                await self._acked.wait()
            if not self.queue.is_fifo:  # there the next messages of a group wait for this
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        while len(self._done) < sqs.BATCH:
                            self._acked.clear()
                            await self._acked.wait()
            failed = await self._delete_some(sqs.BATCH * sqs.CONCURRENT)
            pauses = pauses + 1 if failed else 0
            if failed:
                await asyncio.sleep(min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(pauses - 1, 10)))

    async def _delete_some(self, count: int) -> int:
        """Delete up to so many; returns how many failed, and are tried again."""
        some = [self._done.popleft() for _ in range(min(count, len(self._done)))]
        tries = dict(some)
        try:
            again, _ = await sqs.in_batches(list(tries), self._delete_batch)
        except BaseException:
            self._done.extendleft(reversed(some))
            raise
        for handle in again:
            tries[handle] += 1
            if tries[handle] < DELETE_TRIES:
                self._done.append((handle, tries.pop(handle)))
        for handle in tries:  # gone, or not ours any more, or given up: then it comes again
            self._held.pop(handle, None)
        self._free.set()
        return len(again)

    async def _delete_batch(self, entries: list[dict[str, Any]]) -> Any:
        return await self._client.delete_message_batch(QueueUrl=self.queue.url, Entries=entries)

    async def _prolong(self) -> None:
        while True:
            await asyncio.sleep(self._address.visibility_s / 4)
            await self.prolong_some()

    async def prolong_some(self) -> None:
        """Prolong what has less than three quarters of its time left. What cannot be prolonged comes again."""
        now, whole = _now(), self._address.visibility_s
        acked = {handle for handle, _ in self._done}
        due = [handle for handle, until in self._held.items() if until - now < whole * 0.75 and handle not in acked]
        again, never = await sqs.in_batches(due, self._set_visibility, VisibilityTimeout=whole)
        failed = {*again, *never}
        for handle in due:
            if handle in self._held and handle not in failed:
                self._held[handle] = now + whole
        for handle in never:
            if handle in self._held:
                self._held[handle] = float("inf")

    async def _set_visibility(self, entries: list[dict[str, Any]]) -> Any:
        return await self._client.change_message_visibility_batch(QueueUrl=self.queue.url, Entries=entries)


def _now() -> float:
    return asyncio.get_running_loop().time()


class SQS:
    """`ports.broker.Broker` on Amazon SQS, or a server that speaks its protocol. `keep_us` follows the retention of the queues."""

    watch_s = 60.0

    def __init__(self, url: str, name: str = "sqs") -> None:
        sqs.require()
        self.name = name
        self.keep_us = sqs.MAX_RETENTION_S * 1_000_000 + MARGIN_US
        self.receivers = RECEIVERS
        self._address = sqs.parse(url)
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._inlets: dict[str, _Inlet] = {}
        self._outlets: dict[str, sqs.Queue] = {}

    def _up(self) -> Any:
        if self._client is None:
            raise BrokerDown(f"{self._address}: not connected")
        return self._client

    async def connect(self) -> None:
        """See the port. A list of queues is asked for, to see whether the credentials are good; it need not be permitted."""
        client = await sqs.open_client(self._address, self._stack)
        await sqs.prove(client, self._address)
        self._client = client

    async def consume(self, queue: str) -> None:
        """See the port. A queue that exists is used as it is; where it is missing, it is made with a queue for dead letters."""
        client = self._up()
        found = await sqs.ensure_queue(client, self._address, queue)
        inlet = self._inlets[queue] = _Inlet(client, found, self._address, self.receivers)
        self._keep()
        inlet.start()

    def _keep(self) -> None:
        self.keep_us = max([inlet.queue.retention_s for inlet in self._inlets.values()]) * 1_000_000 + MARGIN_US

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """See the port."""
        self._up()
        return await self._inlets[queue].fetch(limit)

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """See the port. They are deleted a little later, with others."""
        self._up()
        self._inlets[queue].ack(deliveries)

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """See the port. Text only, of up to 1 MiB: anything else is BrokerRefused."""
        client = self._up()
        if queue not in self._outlets:
            self._outlets[queue] = await sqs.ensure_queue(client, self._address, queue)
        parcels = [sqs.Parcel(message.id or sqs.new_id(), message.body, correlation=message.correlation_id) for message in messages]
        try:
            await sqs.send(client, self._outlets[queue], parcels)
        except BrokerDown:
            self._outlets.pop(queue, None)  # it may have been deleted
            raise

    async def check(self) -> None:
        """See the port. Each queue is asked how long it keeps messages; one that is gone is BrokerDown."""
        client = self._up()
        inlets = list(self._inlets.values())
        for inlet in inlets:
            if inlet.lost:
                raise BrokerDown(str(inlet.lost))
        try:
            async with asyncio.timeout(CHECK_S):
                looks = [sqs.look(client, inlet.queue.name, inlet.queue.url) for inlet in inlets]
                for inlet, queue in zip(inlets, await asyncio.gather(*looks), strict=True):
                    inlet.queue = queue
        except TimeoutError:
            raise BrokerDown(f"{self._address} has not answered for {CHECK_S:.0f} s") from None
        if inlets:
            self._keep()

    async def close(self) -> None:
        """See the port. What was received and not acknowledged is visible again at once."""
        self._client = None
        inlets, self._inlets, self._outlets = self._inlets, {}, {}
        stack, self._stack = self._stack, AsyncExitStack()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_S + 5):
                await asyncio.gather(*[inlet.close() for inlet in inlets.values()], return_exceptions=True)
        with contextlib.suppress(Exception):
            await stack.aclose()
