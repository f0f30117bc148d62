"""A worker whose tasks do nothing but stamp the time.

BENCH_SLOTS: its slots. BENCH_LANES: how many tasks `noop_<i>` it offers besides `noop`. BENCH_STAMPS: a file of int64, one per job number.
"""

import asyncio
import mmap
import os
import struct
import time
from pathlib import Path

from fastapi import FastAPI

from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()
STAMP = struct.Struct("<q")


def stamps() -> mmap.mmap:
    """The stamp file, shared with whoever measures."""
    with Path(os.environ["BENCH_STAMPS"]).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


shared = stamps()


async def noop(n: int) -> int:
    """Stamp slot n with CLOCK_MONOTONIC nanoseconds; under a microsecond."""
    STAMP.pack_into(shared, n * 8, time.monotonic_ns())
    return n + 1


def in_child(n: int) -> int:
    """The same in a child process."""
    STAMP.pack_into(shared, n * 8, time.monotonic_ns())
    return n + 1


async def from_file(n: int) -> int:  # type: ignore[empty-body]
    """The same in a process of its own: files/from_file.py."""


@server.on_event("startup")
async def startup() -> None:
    """Offer `noop`, and as many like it as asked for."""
    secret = os.environ["BENCH_SECRET"]
    worker = await EasyJobsWorker.create(
        server,
        server_secret=secret,
        manager_host="127.0.0.1",
        manager_port=int(os.environ["BENCH_PORT"]),
        manager_secret=secret,
        jobs_queue="BENCH",
        max_tasks_per_worker=int(os.environ["BENCH_SLOTS"]),
        task_dir=Path(__file__).parent / "files",
    )
    called = worker.task()(noop)
    worker.task(in_child, subprocess=True)
    worker.task(from_file, subprocess=True)

    @worker.task(run_after="link", max_chain_depth=1000, retry_policy="never")
    async def link() -> None:
        """Is followed by itself, a thousand times; the next one is born failed."""

    @worker.task()
    async def fan(width: int) -> int:
        return sum(await asyncio.gather(*(called(n) for n in range(width))))

    for lane in range(int(os.environ.get("BENCH_LANES", "0"))):

        async def numbered(n: int) -> int:
            return await noop(n)

        numbered.__name__ = f"noop_{lane}"
        worker.task()(numbered)
