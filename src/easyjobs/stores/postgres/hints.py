"""How managers over one database hear of each other's commits at once: NOTIFY on a connection of its own.

It is a hint, sent after the commit and outside of it: a NOTIFY inside a transaction makes all that send one wait for each other. What is
lost is found by the poll of `services.peers`, within a second. Nothing is sent while no other manager is there. Each manager hears its
own hints too, and that is how a connection that has died silently is found out: a ping that is not heard means a new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from easyjobs.ports.store import News
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.postgres.connection import Address

if TYPE_CHECKING:
    from asyncpg import Connection

    from easyjobs.stores.postgres.writer import Writer

log = logging.getLogger("easyjobs.store")

CHANNEL: Final = "easyjobs"
SPACING_S: Final = 0.01  # between two hints: what comes up meanwhile is told together
PING_S: Final = 10.0
RETRY_S: Final = 1.0
MAX_LANES: Final = 500  # of one hint, which has at most 8,000 bytes; more lanes: the others look for themselves


class _Hint(msgspec.Struct, array_like=True):
    manager: int
    lanes: list[int] = []
    has_ended: bool = False
    is_more: bool = False
    ping: int = 0


def news_of_nobody(lanes: set[int], *, is_more: bool) -> str:
    """The hint of a transaction that is no manager's: these lanes get queued jobs. `is_more`: the timers have to look."""
    return msgspec.json.encode(_Hint(0, sorted(lanes)[:MAX_LANES], False, is_more or len(lanes) > MAX_LANES)).decode()


class Hints:
    """Tells and hears. `on_news` is called on the loop."""

    def __init__(self, address: Address, writer: Writer) -> None:
        self._address, self._writer = address, writer
        self.on_news: Callable[[News], None] = lambda _: None
        self._lanes: set[int] = set()
        self._has_ended = self._is_more = False
        self._wanted = asyncio.Event()
        self._heard = 0  # the last ping of ours that came back
        self._task: asyncio.Task[None] | None = None

    def tell(self, lanes: set[int], has_ended: bool, is_more: bool) -> None:
        """Something was committed: tell the others soon, if there are any."""
        if self._writer.has_others:
            self._lanes |= lanes
            self._has_ended = self._has_ended or has_ended
            self._is_more = self._is_more or is_more
            self._wanted.set()

    async def start(self) -> None:
        """Begin to listen; without waiting for the connection."""
        self._is_more = True  # the others learn that we are here
        self._wanted.set()
        self._task = asyncio.get_running_loop().create_task(self._forever(), name="easyjobs-hints")

    async def stop(self) -> None:
        """End."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _forever(self) -> None:
        is_deaf = False
        while True:
            db: Connection | None = None
            try:
                db = await self._address.connect()
                await db.add_listener(CHANNEL, self._hear)
                await self._writer.look_for_others(db)  # after that: whoever comes later is heard
                is_deaf = False
                self.on_news(News((), has_ended=True, is_more=True))  # whatever was said while nobody listened
                await self._serve(db)
            except Exception as error:  # noqa: BLE001 (whatever it is: the poll goes on, and we try again)
                if not is_deaf:  # said once
                    event(log, WARNING, "store.deaf", store=self._address.name, reason=f"{type(error).__name__}: {error}")
                is_deaf = True
            finally:
                if db is not None:
                    db.terminate()
            await asyncio.sleep(RETRY_S)

    async def _serve(self, db: Connection) -> None:
        ping = self._heard
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    await self._wanted.wait()
            except TimeoutError:
                if ping != self._heard:
                    raise ConnectionError("what this manager said was not heard by itself") from None
                ping += 1
                await self._send(db, _Hint(self._writer.manager, ping=ping))
                continue
            self._wanted.clear()
            lanes, self._lanes = self._lanes, set()
            hint = _Hint(self._writer.manager, sorted(lanes)[:MAX_LANES], self._has_ended, self._is_more or len(lanes) > MAX_LANES)
            self._has_ended = self._is_more = False
            await self._send(db, hint)
            await asyncio.sleep(SPACING_S)

    @staticmethod
    async def _send(db: Connection, hint: _Hint) -> None:
        await db.execute("select pg_notify($1, $2)", CHANNEL, msgspec.json.encode(hint).decode())

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        try:
            hint = msgspec.json.decode(str(payload), type=_Hint)
        except msgspec.DecodeError:
            return  # not one of ours
        if hint.manager == self._writer.manager:
            self._heard = hint.ping or self._heard
            return
        self._writer.has_others = self._writer.has_others or hint.manager > 0
        if hint.lanes or hint.has_ended or hint.is_more:
            self.on_news(News(tuple(hint.lanes), hint.has_ended, hint.is_more))
