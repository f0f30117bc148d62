"""Redis Streams: a stream for each namespace, one consumer group, a connection for each queue that reads ahead.

What was handed over is pending until it is acknowledged, and belongs to one consumer, which is one `RedisStreams` object: after a lost
connection it takes up its own again. The pending entries of a consumer that is gone are claimed by the others once they have not been
touched for `CLAIM_IDLE_S`; whoever lives touches what it holds at each `check`. No lock is involved that a crash could leave behind.

An acknowledged entry is deleted (XACK and XDEL in one transaction), so that a stream has what is not done yet and nothing else. Trimming
would be cheaper, and would delete by age or number what nobody has read yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from easyjobs.brokers.inlet import Inlet
from easyjobs.errors import BrokerDown, BrokerError
from easyjobs.ports.broker import PREFETCH, Delivery, Outgoing
from easyjobs.runtime import redis_streams as streams
from easyjobs.runtime.broker_url import shown
from easyjobs.runtime.log import ERROR, event

log = logging.getLogger("easyjobs.redis")

GROUP: Final = "easyjobs"
CONNECT_S: Final = 10.0
CHECK_S: Final = 10.0
BLOCK_S: Final = 5.0  # of one read that waits
ANSWER_S: Final = 10.0  # beyond that: a connection from which an answer takes longer is dead
CLAIM_IDLE_S: Final = 30.0  # pending entries that were not touched for so long have lost their consumer
CLAIM_EVERY_S: Final = 10.0
GONE_S: Final = 24 * 3600.0  # idle consumers without pending entries are forgotten
DELIVERY_LIMIT: Final = 20  # deliveries of a message that ends our process each time; then it goes to `<queue>.dead`
MAX_ID: Final = 255  # bytes of an entry's `id`; a longer one does not count
PENDING: Final = 2 * PREFETCH

# Scripts, so that nothing of another consumer is touched in between. KEYS: stream; ARGV: group, consumer, count, idle in ms.
_TOUCH: Final = """
local mine = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[3], ARGV[2])
if #mine > 0 then
  local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
  for _, entry in ipairs(mine) do claim[#claim + 1] = entry[1] end
  for _, word in ipairs({'IDLE', ARGV[4], 'JUSTID'}) do claim[#claim + 1] = word end
  redis.call(unpack(claim))
end
return #mine
"""
_LEAVE: Final = (
    f"local function touch() {_TOUCH} end\nif touch() == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end"
)
# ARGV: group, idle in ms.
_SWEEP: Final = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer[4] == 0 and consumer[6] > tonumber(ARGV[2]) then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer[2]) end
end
"""


class RedisStreams:
    """`ports.broker.Broker` on a Redis of version 6.2 or newer."""

    keep_us = 24 * 3600 * 1_000_000
    watch_s = 10.0

    def __init__(self, url: str, name: str = "redis") -> None:
        streams.require()
        self.name, self._url = name, url
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._client: Any = None
        self._inlets: dict[str, Inlet] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}

    def _up(self) -> Any:
        if self._client is None:
            raise BrokerDown(f"{shown(self._url)}: not connected")
        return self._client

    def _inlet(self, queue: str) -> Inlet:
        self._up()
        return self._inlets[queue]

    async def connect(self) -> None:
        """See the port."""
        self._client = await streams.connect(self._url, CONNECT_S)

    async def consume(self, queue: str) -> None:
        """See the port. The group begins with the oldest entry: also what was sent before there was a manager is taken."""
        from redis.exceptions import ResponseError

        client = self._up()
        async with streams.within(CONNECT_S, f"stream {queue}"):
            try:
                await client.execute_command("XGROUP", "CREATE", queue, GROUP, "0", "MKSTREAM")
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            await client.execute_command("EVAL", _SWEEP, 1, queue, GROUP, int(GONE_S * 1000))
        inlet = self._inlets[queue] = Inlet()
        self._pumps[queue] = asyncio.create_task(self._pump(client, queue, inlet), name=f"easyjobs-redis-{queue}")

    # --- reading ahead ----------------------------------------------------------------------------------------------------------

    async def _pump(self, client: Any, queue: str, inlet: Inlet) -> None:
        """Fill the inlet until something fails."""
        try:
            with streams.translated(f"stream {queue}"):
                await self._resume(client, queue, inlet)
                loop = asyncio.get_running_loop()
                claim_at = loop.time()
                while True:
                    if loop.time() >= claim_at:
                        await self._claim(client, queue, inlet)
                        claim_at = loop.time() + CLAIM_EVERY_S
                    entries = await self._read(client, queue, await inlet.until_room(), ">", "BLOCK", int(BLOCK_S * 1000))
                    inlet.put([_delivery(id, fields) for id, fields in entries])
        except BrokerError as why:
            inlet.end(why)
        except Exception as error:  # noqa: BLE001 (whoever fetches hears of it)
            inlet.end(BrokerDown(f"stream {queue}: {type(error).__name__} {error}"))

    async def _read(self, client: Any, queue: str, count: int, after: bytes | str, *options: Any) -> list[list[Any]]:
        words = ["XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, *options, "STREAMS", queue, after]
        async with asyncio.timeout(BLOCK_S + ANSWER_S):
            answer = await client.execute_command(*words)
        entries: list[list[Any]] = answer[0][1] if answer else []
        return entries

    async def _resume(self, client: Any, queue: str, inlet: Inlet) -> None:
        """Take up what this consumer had been given before its connection was lost."""
        after: bytes | str = "0"
        while entries := await self._read(client, queue, await inlet.until_room(), after):
            await self._recover(client, queue, inlet, entries)
            after = entries[-1][0]

    async def _claim(self, client: Any, queue: str, inlet: Inlet) -> None:
        """Take over what consumers that are gone have left."""
        cursor: bytes | str = "0-0"
        while True:
            room = await inlet.until_room()
            words = ["XAUTOCLAIM", queue, GROUP, self._consumer, int(CLAIM_IDLE_S * 1000), cursor, "COUNT", room]
            async with asyncio.timeout(ANSWER_S):
                cursor, entries, *_ = await client.execute_command(*words)
            # Our own that was not touched in time is not handed over twice.
            await self._recover(client, queue, inlet, [entry for entry in entries if entry is not None and entry[0] not in inlet.held])
            if cursor == b"0-0":
                return

    async def _recover(self, client: Any, queue: str, inlet: Inlet, entries: list[list[Any]]) -> None:
        """Hand over entries that were delivered before, but for those that somebody deleted, and those that were delivered too often."""
        if not entries:
            return
        async with asyncio.timeout(ANSWER_S):
            if gone := [id for id, fields in entries if not fields]:
                await client.execute_command("XACK", queue, GROUP, *gone)
            pending = await client.execute_command("XPENDING", queue, GROUP, entries[0][0], entries[-1][0], PENDING, self._consumer)
        times = {id: delivered for id, _, _, delivered in pending}
        good = []
        for id, fields in entries:
            if fields and times.get(id, 0) > DELIVERY_LIMIT:
                await self._bury(client, queue, id, fields, times[id])
            elif fields:
                good.append(_delivery(id, fields))
        inlet.put(good)

    async def _bury(self, client: Any, queue: str, id: bytes, fields: list[bytes], times: int) -> None:
        dead = f"{queue}.dead"
        pipe = client.pipeline(transaction=True)
        pipe.execute_command("XADD", dead, "*", *fields)
        pipe.execute_command("XACK", queue, GROUP, id)
        pipe.execute_command("XDEL", queue, id)
        async with asyncio.timeout(ANSWER_S):
            await pipe.execute()
        event(log, ERROR, "message.buried", broker=self.name, queue=queue, to=dead, id=id.decode(), deliveries=times)

    # --- the rest of the port ---------------------------------------------------------------------------------------------------

    async def fetch(self, queue: str, limit: int) -> list[Delivery]:
        """See the port."""
        return await self._inlet(queue).fetch(limit)

    async def ack(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """See the port. One transaction for all of them: an entry that is acknowledged and not deleted would stay for ever."""
        inlet = self._inlet(queue)
        ids = [delivery.tag for delivery in deliveries]
        async with streams.within(ANSWER_S, f"stream {queue}"):
            pipe = self._up().pipeline(transaction=True)
            pipe.execute_command("XACK", queue, GROUP, *ids)
            pipe.execute_command("XDEL", queue, *ids)
            await pipe.execute()
        inlet.forget(deliveries)

    async def publish(self, queue: str, messages: Sequence[Outgoing]) -> None:
        """See the port."""
        entries = [streams.entry(message.body, message.id, message.correlation_id) for message in messages]
        await streams.add(self._up(), queue, entries)

    async def check(self) -> None:
        """See the port. Touches what is held, so that no other manager takes it for left behind; that needs each stream and its group."""
        client = self._up()
        for inlet in self._inlets.values():
            if inlet.lost is not None:
                raise inlet.lost
        async with streams.within(CHECK_S, "a look at the streams"):
            pipe = client.pipeline(transaction=False)
            pipe.ping()
            for queue in self._inlets:
                pipe.execute_command("EVAL", _TOUCH, 1, queue, GROUP, self._consumer, PENDING, 0)
            await pipe.execute()

    async def close(self) -> None:
        """See the port. What is not acknowledged is marked as left behind, so that others need not wait for it."""
        client, self._client = self._client, None
        inlets, self._inlets = self._inlets, {}
        pumps, self._pumps = list(self._pumps.values()), {}
        for inlet in inlets.values():
            inlet.end(BrokerDown(f"{shown(self._url)}: it was closed"))
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    pipe = client.pipeline(transaction=False)
                    for queue in inlets:
                        pipe.execute_command("EVAL", _LEAVE, 1, queue, GROUP, self._consumer, PENDING, int(GONE_S * 1000))
                    await pipe.execute(raise_on_error=False)
            with contextlib.suppress(Exception):
                await client.aclose()


def _delivery(id: bytes, fields: list[bytes]) -> Delivery:
    """An entry as a message. One without a body becomes its fields as JSON, so that the quarantine shows what it was."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    body = pairs.get(b"body")
    if body is None:
        body = msgspec.json.encode({name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs.items()})
    own = pairs.get(b"id")
    if own and len(own) <= MAX_ID:
        with contextlib.suppress(UnicodeDecodeError):
            return Delivery(body, own.decode(), id)
    # The entry's number alone would do, if it were always Redis that gives it; a stream that was flushed and is filled with numbers of
    # somebody's own begins with them again.
    return Delivery(body, f"{id.decode()}-{hashlib.blake2b(body, digest_size=8).hexdigest()}", id)
