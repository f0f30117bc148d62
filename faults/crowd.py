"""Thousands of idle workers in one process: the link of a worker as it is, with its handshake, beats and backoff, on one loop instead of a thread each.

    python -m faults.crowd URLS COUNT

The secret is TEST_SECRET. Prints a line of JSON twice a second: how many are connected, how many tries were refused since the start,
and how long each connection took, from its loss until the next welcome, of those that came back since the line before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import sys
import time
from collections import Counter
from typing import Any

from easyjobs.protocol.worker_side import Event, Welcomed, WorkerSide
from easyjobs.workers.link import Link
from easyjobs.workers.pool import Pool
from tests.processes import ROOT, SECRET, Process, Processes, until

TOLD_S = 0.5
AT_ONCE = 100  # that connect for the first time; later all come as they do


class Member(Link):
    """One worker of the crowd."""

    def begin(self, crowd: Crowd) -> None:
        """Connect, and stay connected."""
        self._crowd, self._loop = crowd, asyncio.get_running_loop()
        self._lost_at: float | None = None
        self._is_in = False
        self.keeper = asyncio.create_task(self._keep_connected())

    async def _connection(self) -> None:
        crowd = self._crowd
        try:
            await super()._connection()
        except Exception as why:
            if not self._is_in:
                response = getattr(why, "response", None)  # of a refused upgrade
                crowd.why[f"{type(why).__name__} {response.status_code}" if response else f"{type(why).__name__}: {why}"[:60]] += 1
            raise
        finally:
            if self._is_in:
                self._is_in = False
                self._lost_at = time.monotonic()
                crowd.connected -= 1
            else:
                crowd.failed += 1

    def _take(self, arrived: Event) -> None:
        if isinstance(arrived, Welcomed):
            self._is_in = True
            self._crowd.connected += 1
            if self._lost_at is not None:
                self._crowd.took.append(time.monotonic() - self._lost_at)
        super()._take(arrived)


class Crowd:
    """What is counted of all."""

    def __init__(self) -> None:
        self.connected = self.failed = 0
        self.took: list[float] = []
        self.why: Counter[str] = Counter()  # tries failed
        self.members: list[Member] = []

    async def live(self, urls: list[str], count: int) -> None:
        """For ever."""
        secret = os.environ["TEST_SECRET"]
        teller = asyncio.create_task(self._tell())
        pool = Pool(slots=1)  # nothing ever runs
        for number in range(count):
            side = WorkerSide(session=os.urandom(16), secret=secret, name=f"crowd-{number}", queue="CROWD", slots=1)
            member = Member(urls, side, pool)
            self.members.append(member)
            member.begin(self)
            while number + 1 - self.connected >= AT_ONCE:
                await asyncio.sleep(0.01)
        await teller

    async def _tell(self) -> None:
        while True:
            took, self.took = self.took, []
            ended = sum(member.keeper.done() for member in self.members)
            line = {"at": time.monotonic(), "connected": self.connected, "failed": self.failed, "ended": ended, "why": self.why}
            print(json.dumps(line | {"took": [round(each, 3) for each in took]}), flush=True)
            await asyncio.sleep(TOLD_S)


class Members:
    """What processes of this module say; together they are `count` idle workers."""

    def __init__(self, started: Processes, urls: str, count: int, processes: int = 2) -> None:
        self.count = count
        self.processes: list[Process] = [
            started.program(
                [sys.executable, "-m", "faults.crowd", urls, str(count // processes)],
                name="crowd",
                env={"TEST_SECRET": SECRET},
                paths=[ROOT],
            )
            for _ in range(processes)
        ]

    @property
    def told(self) -> list[list[dict[str, Any]]]:
        """All lines of each process."""
        return [[json.loads(line) for line in list(process.lines) if line.startswith("{")] for process in self.processes]

    def sum(self, name: str) -> int:
        """Of what each said last."""
        return sum(lines[-1][name] for lines in self.told if lines)

    def until_in(self, share: float, within_s: float) -> None:
        """Until this share of them is connected. Raises: NotInTime."""

        def are_in() -> bool:
            dead = [process.log[-2000:] for process in self.processes if not process.is_running]
            assert not dead, dead
            return self.sum("connected") >= self.count * share

        try:
            until(f"{share:.0%} of {self.count:,} are connected", are_in, within_s, every_s=0.25)
        except AssertionError as why:
            raise AssertionError(f"{why}: {[lines[-1] for lines in self.told]}") from None

    def took(self) -> list[float]:
        """How long each return took, in seconds from the loss of the connection."""
        return [each for lines in self.told for line in lines for each in line["took"]]


def more_files(count: int) -> None:
    """Let this process, and those that it starts, have so many sockets. Raises: ValueError, OSError if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))


if __name__ == "__main__":
    logging.getLogger("easyjobs").setLevel(logging.ERROR)
    random.seed()
    asyncio.run(Crowd().live(sys.argv[1].split(","), int(sys.argv[2])))
