"""What a job costs in the store: submit, claim and finish through the real verbs, on disk and in memory.

    python benchmarks/store_micro.py [--jobs 50000] [--batch 1000]

Three tables. "alone": one verb after the other, so that each has the machine for itself. "together": all three at once, as under load,
with 1, 2 or 4 frames of each kind under way. "beside a busy loop": the same, while a coroutine keeps the loop's thread busy, as the
socket and the HTTP server do; `loop kept` is how much of its time that coroutine got, the rest is what the store's Python code took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from easyjobs.domain.job import Claimed, NewJob, NewSession, Outcome, Report, Reports, Spec, Submission, TaskRow, Want
from easyjobs.ports.store import Store
from easyjobs.runtime.clock import SystemClock
from easyjobs.stores import open_store

Frame = list[Claimed]


def new_jobs(spec: Spec, first: int, many: int) -> Submission:
    """Jobs as a bulk submit makes them; ids ascend, as UUIDv7 do."""
    start = time.time_ns().to_bytes(8, "big")
    return Submission(tuple([NewJob(start + (first + n).to_bytes(8, "big"), spec, b"[[%d],{}]" % n) for n in range(many)]))


def reports(session: int, jobs: Frame) -> Reports:
    """Successes, as a worker's frame brings them."""
    return Reports(session, [Report(job.seq, job.attempt, Outcome.SUCCEEDED, 12, b"1") for job in jobs])


async def alone(store: Store, lane: int, session: int, jobs: int, batch: int) -> dict[str, tuple[float, float]]:
    """Microseconds a job and verb: (wall, CPU of the process)."""
    spec = Spec(lane)
    spent = {verb: [0.0, 0.0] for verb in ("submit", "claim", "finish")}
    for first in range(0, jobs, batch):
        submissions = [new_jobs(spec, first, batch)]
        wall, cpu = time.perf_counter(), time.process_time()
        await store.submit(submissions)
        spent["submit"][0] += time.perf_counter() - wall
        spent["submit"][1] += time.process_time() - cpu
        wall, cpu = time.perf_counter(), time.process_time()
        [claims] = await store.claim([Want(session, (lane,), batch)])
        spent["claim"][0] += time.perf_counter() - wall
        spent["claim"][1] += time.process_time() - cpu
        done = [reports(session, claims.jobs)]
        wall, cpu = time.perf_counter(), time.process_time()
        await store.finish(done)
        spent["finish"][0] += time.perf_counter() - wall
        spent["finish"][1] += time.process_time() - cpu
    return {verb: (wall / jobs * 1e6, cpu / jobs * 1e6) for verb, (wall, cpu) in spent.items()}


async def together(store: Store, lane: int, session: int, jobs: int, batch: int, window: int) -> float:
    """Jobs per second through all three verbs, with `window` frames of each kind under way."""
    spec, finished = Spec(lane), asyncio.Event()
    frames = iter([[new_jobs(spec, first, batch)] for first in range(0, jobs, batch)])
    left = jobs

    async def submitter() -> None:
        for frame in frames:
            await store.submit(frame)

    async def runner() -> None:
        nonlocal left
        while left > 0:
            [claims] = await store.claim([Want(session, (lane,), batch)])
            if claims.jobs:
                await store.finish([reports(session, claims.jobs)])
                left -= len(claims.jobs)
            else:
                await asyncio.sleep(0)
        finished.set()

    began = time.perf_counter()
    tasks = [asyncio.create_task(each()) for _ in range(window) for each in (submitter, runner)]
    await finished.wait()
    rate = jobs / (time.perf_counter() - began)
    await asyncio.gather(*tasks)
    return rate


async def spin(kept: list[float]) -> None:
    """Keep the loop's thread busy in slices, as callbacks of sockets do, and note what share of the time it really ran."""
    began, ran = time.perf_counter(), 0.0
    while True:
        cpu = time.thread_time()
        for _ in range(2000):
            pass
        ran += time.thread_time() - cpu
        kept[0] = ran / (time.perf_counter() - began)
        await asyncio.sleep(0)


async def measure(directory: str, jobs: int, batch: int) -> None:
    """Print the tables for one directory."""
    store = open_store(f"{directory}/bench.db", clock=SystemClock(), lease_s=3600)
    await store.open()
    [lane] = await store.offer([TaskRow("bench", "noop", b"{}", b"{}")])
    [session] = await store.begin([NewSession(os.urandom(16), "bench")])
    await alone(store, lane, session, batch * 5, batch)
    costs = await alone(store, lane, session, jobs, batch)
    print("  alone, µs a job:     " + "   ".join(f"{verb} {wall:.2f} (cpu {cpu:.2f})" for verb, (wall, cpu) in costs.items()), flush=True)
    for window in (1, 2, 4):
        rate = await together(store, lane, session, jobs, batch, window)
        kept = [0.0]
        spinner = asyncio.create_task(spin(kept))
        beside = await together(store, lane, session, jobs, batch, window)
        spinner.cancel()
        print(
            f"  together, window {window}:  {rate:9,.0f} jobs/s   beside a busy loop {beside:9,.0f} jobs/s, loop kept {kept[0]:.0%}",
            flush=True,
        )
    began = time.perf_counter()
    for _ in range(300):
        await store.submit([new_jobs(Spec(lane), 0, 1)])
    print(f"  one by one:          {300 / (time.perf_counter() - began):9,.0f} submits/s", flush=True)
    await store.close()


def main() -> None:
    """Measure on disk (the current directory) and, where there is one, on a RAM disk."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=50_000)
    options.add_argument("--batch", type=int, default=1_000)
    given = options.parse_args()
    for where in (Path.cwd(), Path("/dev/shm")):
        if where.is_dir():
            with tempfile.TemporaryDirectory(dir=where, prefix="easyjobs-bench-") as directory:
                print(f"{where}: {given.jobs:,} jobs, frames of {given.batch:,}")
                asyncio.run(measure(directory, given.jobs, given.batch))


if __name__ == "__main__":
    main()
