"""How managers over one database hear of each other's commits at once: NOTIFY on a connection of its own.

It is a hint, sent after the commit and outside of it: a NOTIFY inside a transaction makes all that send one wait for each other. What is
lost is found by the poll of `services.peers`, within a second. Nothing is sent while no other manager is there. Each manager hears its
own hints too, and that is how a connection that has died silently is found out: a ping that is not heard means a new connection.

Each says as well which jobs are followed at it: when that changes, when somebody new has come, and every few seconds. The others then hint at these
jobs whenever they show something, and once at the beginning, for what they may have shown before they knew. While nobody follows, nothing is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from easyjobs.ports.store import News, token
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
MAX_LANES: Final = 200  # of one hint, which has at most 8,000 bytes; more lanes: the others look for themselves
MAX_TOKENS: Final = 120  # jobs that are followed, or shown, likewise
FOLLOWS_S: Final = 5.0  # so often it is said again what is followed
FORGET_S: Final = 30.0  # what was not said again for so long is not followed any more


class _Hint(msgspec.Struct, array_like=True):
    manager: int
    lanes: list[int] = []
    has_ended: bool = False
    is_more: bool = False
    ping: int = 0
    shown: list[int] = []
    is_more_shown: bool = False
    follows: list[int] | None = None  # None: nothing is said about it
    is_more_followed: bool = False
    is_new: bool = False  # who sends this wants to know what is followed


def news_of_nobody(lanes: set[int], *, is_more: bool) -> str:
    """The hint of a transaction that is no manager's: these lanes get queued jobs. `is_more`: the timers have to look."""
    return msgspec.json.encode(_Hint(0, sorted(lanes)[:MAX_LANES], False, is_more or len(lanes) > MAX_LANES)).decode()


class Hints:
    """Tells and hears. `on_news` and `on_followed` are called on the loop."""

    def __init__(self, address: Address, writer: Writer) -> None:
        """`address`: leads to the server itself. A pooler would listen in one transaction and hear in another: then nothing is told or heard."""
        self._address, self._writer = address, writer
        self.on_news: Callable[[News], None] = lambda _: None
        self._lanes: set[int] = set()
        self._has_ended = self._is_more = False
        self._wanted = asyncio.Event()
        self.on_followed: Callable[[frozenset[int] | None], None] = lambda _: None
        self._shown: set[int] = set()
        self._follows: Collection[bytes] = ()
        self._is_to_say = self._is_new = False
        self._said_at = 0.0  # when it was last said what is followed here
        self._elsewhere: dict[int, tuple[frozenset[int] | None, float]] = {}  # manager → what is followed there, and said when
        self._heard = 0  # the last ping of ours that came back
        self._task: asyncio.Task[None] | None = None

    def tell(self, lanes: set[int], has_ended: bool, is_more: bool) -> None:
        """Something was committed: tell the others soon, if there are any."""
        if self._writer.has_others:
            self._lanes |= lanes
            self._has_ended = self._has_ended or has_ended
            self._is_more = self._is_more or is_more
            self._wanted.set()

    def follow(self, ids: Collection[bytes]) -> None:
        """These jobs are followed here. `ids` is kept, and read again each time that it is said."""
        self._follows, self._is_to_say = ids, True
        if self._writer.has_others:
            self._wanted.set()

    def show(self, id: bytes) -> None:
        """This job has something new, for those who follow it."""
        if self._writer.has_others:
            self._shown.add(token(id))
            self._wanted.set()

    async def start(self) -> None:
        """Begin to listen; without waiting for the connection."""
        if self._address.is_pooled:
            event(log, WARNING, "store.deaf", store=self._address.name, reason="a pooler", remedy="EASYJOBS_STORE_LISTEN: a direct address")
            return
        self._is_new = self._is_more = True  # the others learn that we are here
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
                self._is_new = self._is_to_say = True
                self._wanted.set()
                self.on_news(News((), has_ended=True, is_more=True, shown=None))  # whatever was said while nobody listened
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
                async with asyncio.timeout(FOLLOWS_S if self._follows else PING_S):
                    await self._wanted.wait()
            except TimeoutError:
                self._forget()
                if ping != self._heard:
                    raise ConnectionError("what this manager said was not heard by itself") from None
                ping += 1
            self._wanted.clear()
            lanes, self._lanes = self._lanes, set()
            shown, self._shown = self._shown, set()
            hint = _Hint(
                self._writer.manager,
                sorted(lanes)[:MAX_LANES],
                self._has_ended,
                self._is_more or len(lanes) > MAX_LANES,
                ping=ping,
                shown=list(shown)[:MAX_TOKENS],
                is_more_shown=len(shown) > MAX_TOKENS,
                follows=self._to_say(),
                is_more_followed=len(self._follows) > MAX_TOKENS,
                is_new=self._is_new,
            )
            self._has_ended = self._is_more = self._is_new = False
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
        self._writer.has_others = self._writer.has_others or hint.manager > 0  # 0: a transaction that is no manager's
        if hint.is_new:
            self._is_to_say = True
            self._wanted.set()
        if hint.follows is not None:
            self._hear_followed(hint.manager, None if hint.is_more_followed else frozenset(hint.follows))
        if hint.lanes or hint.has_ended or hint.is_more or hint.shown:
            self.on_news(News(tuple(hint.lanes), hint.has_ended, hint.is_more, None if hint.is_more_shown else tuple(hint.shown)))

    # --- who follows what -------------------------------------------------------------------------------------------------------

    def _to_say(self) -> list[int] | None:
        now = self._writer.monotonic()
        if not self._is_to_say and (not self._follows or now - self._said_at < FOLLOWS_S):
            return None
        self._is_to_say, self._said_at = False, now
        return [token(id) for id in islice(self._follows, MAX_TOKENS)]

    def _hear_followed(self, manager: int, tokens: frozenset[int] | None) -> None:
        before, _ = self._elsewhere.pop(manager, (frozenset(), 0.0))
        if tokens is None or tokens:
            self._elsewhere[manager] = tokens, self._writer.monotonic()
        if tokens != before:
            self._tell_followed()
            if tokens is not None and before is not None and tokens - before:  # what we did not show, as we did not know
                self._shown |= tokens - before
                self._wanted.set()

    def _forget(self) -> None:
        """A manager that has gone follows nothing."""
        oldest = self._writer.monotonic() - FORGET_S
        silent = [manager for manager, (_, at) in self._elsewhere.items() if at < oldest]
        for manager in silent:
            del self._elsewhere[manager]
        if silent:
            self._tell_followed()

    def _tell_followed(self) -> None:
        everything: set[int] = set()
        for tokens, _ in self._elsewhere.values():
            if tokens is None:
                self.on_followed(None)
                return
            everything |= tokens
        self.on_followed(frozenset(everything))
