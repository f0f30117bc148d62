"""How the manager's background services run: once now, then again after each interval or when woken."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from easyjobs.errors import StoreError, StoreLost

log = logging.getLogger("easyjobs.service")


class Service:
    """Base: `run_once()` does all the work and returns after how many seconds to run again; `wake()` makes that now.

    A run that raises is logged and tried again after `retry_s`; it never ends the service.
    """

    name = "service"
    retry_s = 1.0

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    async def run_once(self) -> float:
        """Do what is to be done now. Returns: seconds until the next run."""
        raise NotImplementedError

    def wake(self) -> None:
        """Run again at once (or right after the current run)."""
        self._woken.set()

    async def start(self) -> None:
        """Begin to run."""
        self._loop_task = asyncio.get_running_loop().create_task(self._forever(), name=f"easyjobs-{self.name}")

    async def stop(self) -> None:
        """End, and wait until it has ended."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
            self._loop_task = None

    async def _forever(self) -> None:
        while True:
            self._woken.clear()
            try:
                pause = await self.run_once()
            except StoreLost as lost:
                log.error("%s stopped: %s", self.name, lost)
                return
            except StoreError as why:  # the store is away, and says so itself
                log.warning("%s failed; it runs again in %s s: %s", self.name, self.retry_s, why)
                pause = self.retry_s
            except Exception:
                log.exception("%s failed; it runs again in %s s", self.name, self.retry_s)
                pause = self.retry_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
