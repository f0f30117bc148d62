"""Group commit for stores behind a network: `runtime.batcher`, where the transaction is a coroutine.

The same rules hold: a call enters its kind's queue at once, one batch at a time takes what is there (bounded per kind), the kinds run in
the order of their numbers, and a batch that fails is halved until the call that is to blame fails alone. While a batch waits for the
server, the loop goes on and the next batch grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from easyjobs.errors import StoreError
from easyjobs.runtime.batcher import Call, Queues

HALVE_S: Final = 15.0  # a batch that still fails after so long is halved no more: all that is left of it fails


class AsyncBatcher:
    """Collects calls and runs them in batches.

    Args:
        run: runs calls as one transaction and returns one answer each; all or nothing. One at a time.
        kinds: how many kinds there are; a batch holds them in the order of their numbers.
    """

    def __init__(self, run: Callable[[list[Call]], Awaitable[Sequence[Any]]], kinds: int) -> None:
        self._run = run
        self._queues = Queues(kinds)
        self.is_full = self._queues.is_full
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Task[None] | None = None
        self._closed: StoreError | None = None

    def call(self, kind: int, what: Any, rows: int = 1, size: int = 0) -> asyncio.Future[Any]:
        """Queue a call; the future has its answer after the commit."""
        future = self._loop.create_future()
        if self._closed is not None:
            future.set_exception(self._closed)
            return future
        self._queues.put(Call(kind, what, rows, size, future))
        if self._server is None:
            self._server = self._loop.create_task(self._serve(), name="easyjobs-batches")  # begins in the next turn
        return future

    async def close(self, error: StoreError) -> None:
        """Refuse further calls with `error`, and finish those that are queued."""
        if self._closed is None:
            self._closed = error
        while self._server is not None:
            await asyncio.shield(self._server)

    async def _serve(self) -> None:
        try:
            while calls := self._queues.take()[0]:
                self._resolve(calls, await self._attempt(calls, self._loop.time() + HALVE_S))
        finally:
            self._server = None

    async def _attempt(self, calls: list[Call], until: float) -> Sequence[Any]:
        try:
            return await self._run(calls)
        except StoreError as error:
            return [error] * len(calls)
        except Exception as error:  # noqa: BLE001 (it is the answer of the call that is to blame)
            if len(calls) == 1:
                wrapped = StoreError(f"{type(error).__name__}: {error}")
                wrapped.__cause__ = error
                return [wrapped]
            half = len(calls) // 2
            if self._loop.time() > until:  # each try may wait for a lock: others wait for this batch to end
                return [StoreError(f"not stored, as another call of the batch failed: {type(error).__name__}: {error}")] * len(calls)
            return [*await self._attempt(calls[:half], until), *await self._attempt(calls[half:], until)]

    @staticmethod
    def _resolve(calls: list[Call], answers: Sequence[Any]) -> None:
        for call, answer in zip(calls, answers, strict=True):
            future = call.future
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
