"""How fast is easyjobs here? Real managers, workers and clients, default settings, one table and one JSON file.

    python -m benchmarks.run                     everything, under six minutes on two cores
    python -m benchmarks.run --quick             the same in small, for a first look
    python -m benchmarks.run throughput latency  only these
    python -m benchmarks.run --db-dir /dev/shm   without a disk: what the processors allow
    python -m benchmarks.run --store postgres    on a PostgreSQL that the benchmark starts
    python -m benchmarks.run --store postgres years churn --finished 10000000 --churn-s 3600   what years of use and an hour of churn change
    python -m benchmarks.run --sketch DIR        beside another manager.py, worker.py and producer.py with the same command line, in turn
    python -m benchmarks.run --profile           where manager and worker spend their time (needs py-spy)

Client, manager and workers share the machine, as they do on a small server. A shared machine's speed drifts, so what is compared (with a
bare endpoint, a sketch, an empty queue) is measured in turn within one run, and medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import importlib.util
import json
import os
import random
import re
import secrets
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.brokers import brokers
from benchmarks.http_load import requests_per_s
from benchmarks.machine import cpu_s, describe, percentiles, rss_mib
from easyjobs.client import EasyJobsClient
from tests.processes import ROOT, Process, Processes, Served, http_call, processes, until

APPS = Path(__file__).resolve().parent / "apps"
STAMPS = 1_000_000  # slots of the stamp file
SCENARIOS = ("throughput", "latency", "enqueue", "http", "deep", "kin", "idle", "children", "brokers")
OF_POSTGRES = ("managers", "arithmetic", "hints", "years", "churn")


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """On uvloop where it is installed, as uvicorn does."""
    if importlib.util.find_spec("uvloop"):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)


class Bench:
    """One run: its processes, its directory and what it found."""

    def __init__(self, group: Processes, directory: Path, options: argparse.Namespace) -> None:
        self.group, self.directory, self.options = group, directory, options
        self.secret = secrets.token_urlsafe(32)
        self.stamps = directory / "stamps"
        with self.stamps.open("wb") as file:
            file.truncate(STAMPS * 8)
        self.found: dict[str, Any] = {}
        self.managers = 0
        self.cluster: Any = None  # PostgreSQL, where it is the store

    # --- processes --------------------------------------------------------------------------------------------------------------

    @property
    def database(self) -> str:
        """The name of the last manager's database."""
        return f"bench{self.managers}"

    def sql(self, text: str) -> str:
        """Ask that database."""
        answer: str = self.cluster.sql(text, self.database)
        return answer.strip()

    def environment(self, **more: str) -> dict[str, str]:
        """What our processes get."""
        return {"BENCH_SECRET": self.secret, "BENCH_STAMPS": str(self.stamps), **dict(self.options.env), **more}

    @contextlib.contextmanager
    def manager(self, **more: str) -> Iterator[Served]:
        """A manager with an empty database, ended afterwards; `more` is for its environment."""
        self.managers += 1
        if self.cluster is not None:
            self.cluster.sql(f"create database {self.database}")
        with self.manager_again(**more) as manager:
            yield manager

    @contextlib.contextmanager
    def manager_again(self, **more: str) -> Iterator[Served]:
        """One more manager, with the database of the last one."""
        place = self.directory / f"manager{self.managers}"
        environment = self.environment(DB_PATH=str(place), **more)
        if self.cluster is not None:
            environment["EASYJOBS_STORE"] = self.cluster.url(self.database)
        served = self.group.uvicorn(
            "bench_manager:server", "--log-level", "warning", "--no-access-log", directory=APPS, name="manager", env=environment
        )
        try:
            yield served.until_ready()
        finally:
            served.close()
            for file in place.glob("*"):
                file.unlink()

    @contextlib.contextmanager
    def workers(self, manager: Served, count: int = 1, *, slots: int = 1000, lanes: int = 0) -> Iterator[list[Process]]:
        """Connected workers, ended by SIGTERM afterwards."""
        environment = self.environment(BENCH_PORT=str(manager.port), BENCH_SLOTS=str(slots), BENCH_LANES=str(lanes))
        started: list[Process] = [
            self.group.uvicorn("bench_worker:server", "--log-level", "warning", directory=APPS, name=f"worker{number}", env=environment)
            for number in range(count)
        ]
        try:
            until("workers are connected", lambda: len(connected(manager)) >= count)
            manager.until_offered("/BENCH/task/noop", *(f"/BENCH/task/noop_{lane}" for lane in range(lanes)))
            yield started
        finally:
            for worker in started:
                worker.stop(40)
            until("workers are gone", lambda: not connected(manager))

    def client(self, manager: Served) -> EasyJobsClient:
        """Not yet connected."""
        return EasyJobsClient(manager.url, self.secret)

    def note(self, name: str, **values: Any) -> None:
        """Keep a finding and show that we live."""
        self.found[name] = values
        print(f"  {name}: " + ", ".join(f"{key} {show(value)}" for key, value in values.items()), file=sys.stderr, flush=True)

    def size(self, full: int, quick: int) -> int:
        """How many, in a full and in a quick run."""
        return quick if self.options.quick else full


def show(value: Any) -> str:
    """Short, for a person."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def connected(manager: Served) -> list[Any]:
    """The workers that the manager has a connection with."""
    return [worker for worker in manager.get("/jobs/api/v1/workers")["items"] if worker["namespace"] == "BENCH"]


def counts(manager: Served) -> dict[str, int]:
    """The states of the queue BENCH."""
    for queue in http_call("GET", manager.url + "/jobs/api/v1/queues").json()["items"]:
        if queue["namespace"] == "BENCH":
            return {state: number for state, number in queue.items() if isinstance(number, int)}
    return {}


def jobs_of(names: Iterable[str], numbers: range) -> list[dict[str, Any]]:
    """Jobs in the job format, going round the tasks."""
    names = list(names)
    return [{"namespace": "BENCH", "name": names[n % len(names)], "args": [n % STAMPS]} for n in numbers]


async def submit_in_frames(client: EasyJobsClient, names: list[str], total: int, *, frame: int, window: int) -> None:
    """`total` jobs in calls of `frame`, of which `window` are under way at once."""
    starts = iter(range(0, total, frame))

    async def caller() -> None:
        for start in starts:
            await client.submit_many(jobs_of(names, range(start, min(start + frame, total))))

    await asyncio.gather(*(caller() for _ in range(window)))


async def flow(
    client: EasyJobsClient, manager: Served, total: int, names: list[str] | None = None, *, wait: bool = True
) -> dict[str, float]:
    """Submit in frames of 100, forty at once, until every result is stored (or not, without `wait`). Rates per second."""
    before = counts(manager).get("succeeded", 0)
    began = time.perf_counter()
    await submit_in_frames(client, names or ["noop"], total, frame=100, window=40)
    submitted = time.perf_counter() - began
    end = began + 120
    while wait and (await asyncio.to_thread(counts, manager))["succeeded"] - before < total:
        if time.perf_counter() > end:
            raise TimeoutError(f"{total} jobs did not end in 120 s: {counts(manager)}")
        await asyncio.sleep(0.02)
    took = time.perf_counter() - began
    return {"jobs_per_s": total / took, "submitted_per_s": total / submitted}


# --- scenarios --------------------------------------------------------------------------------------------------------------------


async def throughput(bench: Bench) -> None:
    """Durable throughput, submit to result stored, by workers and slots; the memory and the processor time it takes."""
    rounds, total = bench.size(3, 1), bench.size(100_000, 30_000)
    with bench.manager() as manager, sketch(bench) as compared:
        async with bench.client(manager) as client:
            for count, slots in ((1, 1000), (2, 1000), (1, 100), (1, 3)):
                with bench.workers(manager, count, slots=slots) as workers:
                    await flow(client, manager, total // 5)  # warm
                    pids = {"manager": [manager.pid], "workers": [worker.pid for worker in workers], "client": [os.getpid()]}
                    before = {name: sum(map(cpu_s, of)) for name, of in pids.items()}
                    ours, theirs = [], []
                    runs = rounds if slots == 1000 else 1
                    for _ in range(runs):
                        ours.append(await flow(client, manager, total))
                        if compared and slots == 1000:
                            theirs.append(await asyncio.to_thread(compared, count))
                    rate = statistics.median(one["jobs_per_s"] for one in ours)
                    values: dict[str, Any] = {"jobs_per_s": rate, "all": [round(one["jobs_per_s"]) for one in ours]}
                    for name, of in pids.items():
                        values[f"{name}_us_per_job"] = round((sum(map(cpu_s, of)) - before[name]) / total / runs * 1e6, 1)
                    values["manager_mib"] = round(rss_mib(manager.pid, peak=True), 1)
                    values["worker_mib"] = round(max(rss_mib(worker.pid, peak=True) for worker in workers), 1)
                    if theirs:
                        values |= {"sketch_jobs_per_s": statistics.median(theirs), "of_sketch": rate / statistics.median(theirs)}
                    bench.note(f"throughput {count} worker{'s' * (count > 1)}, {slots} slots", **values)
                    if bench.options.profile and slots == 1000:
                        await profile(client, manager, workers, total)


async def latency(bench: Bench) -> None:
    """An idle system, one job at a time with random gaps: submit to body, to result, and the submit alone."""
    with bench.manager() as manager, bench.workers(manager, slots=100) as workers:
        values: dict[str, list[int]] = {"start": [], "result": [], "ack": []}
        async with bench.client(manager) as client:
            for n in range(bench.size(1000, 300) + 50):
                await asyncio.sleep(random.uniform(0, 0.02))
                began = time.monotonic_ns()
                job = await client.submit("BENCH", "noop", n)
                acked = time.monotonic_ns()
                result = await job.result(timeout=10)
                ended = time.monotonic_ns()
                if result != n + 1:
                    raise AssertionError((n, result))
                if n >= 50:
                    with bench.stamps.open("rb") as file:
                        file.seek(n * 8)
                        (started,) = struct.unpack("<q", file.read(8))
                    for name, at in (("start", started), ("result", ended), ("ack", acked)):
                        values[name].append(at - began)
        for name, times in values.items():
            bench.note(f"idle, submit to {name}", **percentiles(times))
        bench.note("memory, idle", manager_mib=round(rss_mib(manager.pid), 1), worker_mib=round(rss_mib(workers[0].pid), 1))


async def enqueue(bench: Bench) -> None:
    """Submits alone, each durable when its call returns; no worker runs."""
    with bench.manager() as manager:
        with bench.workers(manager):
            pass  # its task is in the catalogue now
        async with bench.client(manager) as client:
            total = bench.size(5000, 1000)
            began = time.perf_counter()
            for n in range(total):
                await client.submit("BENCH", "noop", n)
            bench.note("enqueue, one by one", jobs_per_s=total / (time.perf_counter() - began))

            total, numbers = bench.size(50_000, 10_000), iter(range(10**9))

            async def caller() -> None:
                for n in numbers:
                    if n >= total:
                        return
                    await client.submit("BENCH", "noop", n)

            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(100)))
            bench.note("enqueue, 100 callers at once", jobs_per_s=total / (time.perf_counter() - began))

            total = bench.size(300_000, 100_000)
            began = time.perf_counter()
            await submit_in_frames(client, ["noop"], total, frame=1000, window=8)
            bench.note("enqueue, in bulk", jobs_per_s=total / (time.perf_counter() - began))


async def http(bench: Bench) -> None:
    """One job per HTTP request, validated and durable, in turn with a bare FastAPI endpoint that validates the same body."""
    bare = bench.group.uvicorn(
        "bare_fastapi:server", "--log-level", "warning", "--no-access-log", directory=APPS, name="bare FastAPI"
    ).until_ready()
    seconds, rounds = bench.size(4, 2), bench.size(3, 1)
    with bench.manager() as manager:
        with bench.workers(manager):
            pass
        for connections in (32, 1):
            ours: list[float] = []
            theirs: list[float] = []
            by = ""
            for _ in range(rounds):
                for served, rates in ((bare, theirs), (manager, ours)):
                    rate, by = await asyncio.to_thread(
                        requests_per_s, served.port, "/BENCH/task/noop", connections=connections, seconds=seconds
                    )
                    rates.append(rate)
            values = {"requests_per_s": statistics.median(ours), "bare_fastapi": statistics.median(theirs)}
            bench.note(
                f"HTTP submit, {connections} connection{'s' * (connections > 1)}",
                **values,
                ratio=values["requests_per_s"] / values["bare_fastapi"],
                by=by,
            )
    bare.close()


async def deep(bench: Bench) -> None:
    """The throughput of three tasks while a million jobs of two hundred tasks wait, beside the same with an empty queue."""
    lanes, offered = 200, 3
    names = [f"noop_{lane}" for lane in range(lanes)]
    rounds, total, waiting = bench.size(3, 1), bench.size(60_000, 20_000), bench.size(1_000_000, 100_000)
    with bench.manager() as manager:
        with bench.workers(manager, slots=1, lanes=lanes):
            pass
        async with bench.client(manager) as client:
            rates: dict[str, float] = {}
            for case in ("empty", "full"):
                if case == "full":
                    began = time.perf_counter()
                    await submit_in_frames(client, names, waiting, frame=1000, window=8)
                    bench.note("deep, filling", jobs=waiting, jobs_per_s=waiting / (time.perf_counter() - began))
                wanted = counts(manager)["succeeded"] + waiting * offered // lanes if case == "full" else 0
                with bench.workers(manager, lanes=offered):
                    end = time.perf_counter() + 60
                    while counts(manager).get("succeeded", 0) < wanted:
                        if time.perf_counter() > end:
                            raise TimeoutError(f"the offered lanes were not drained in 60 s: {counts(manager)}")
                        await asyncio.sleep(0.05)
                    await flow(client, manager, total // 5, names[:offered])
                    rates[case] = statistics.median(
                        [(await flow(client, manager, total, names[:offered]))["jobs_per_s"] for _ in range(rounds)]
                    )
            left = counts(manager)["queued"]
            bench.note(
                f"deep, {left:,} jobs wait in {lanes - offered} lanes",
                jobs_per_s=rates["full"], of_empty=rates["full"] / rates["empty"], empty_jobs_per_s=rates["empty"], manager_mib=round(rss_mib(manager.pid), 1),
            )  # fmt: skip


async def kin(bench: Bench) -> None:
    """A chain of a thousand jobs, each born with the end of the one before; a job that calls a thousand others and waits for them."""
    with bench.manager() as manager, bench.workers(manager, slots=100):
        async with bench.client(manager) as client:
            length, width, rounds = 1000, 1000, bench.size(3, 1)
            chains, fans = [], []
            for number in range(rounds):
                began = time.perf_counter()
                await client.submit("BENCH", "link")
                while (await asyncio.to_thread(counts, manager)).get("failed", 0) <= number:
                    if time.perf_counter() - began > 120:
                        raise TimeoutError(f"the chain did not end in 120 s: {counts(manager)}")
                    await asyncio.sleep(0.02)
                chains.append(length / (time.perf_counter() - began))
                began = time.perf_counter()
                job = await client.submit("BENCH", "fan", width)
                if await job.result(timeout=120) != sum(range(1, width + 1)):
                    raise AssertionError("the sum of the children is wrong")
                fans.append(width / (time.perf_counter() - began))
            bench.note(f"a chain of {length:,} jobs", jobs_per_s=statistics.median(chains))
            bench.note(f"a fan of {width:,} called jobs", jobs_per_s=statistics.median(fans))


async def idle(bench: Bench) -> None:
    """What an idle connection costs the manager."""
    with bench.manager() as manager:
        total = bench.size(1000, 200)
        async with contextlib.AsyncExitStack() as stack:
            first = [await stack.enter_async_context(bench.client(manager)) for _ in range(20)]
            before = rss_mib(manager.pid)
            for _ in range(total // 20):
                await asyncio.gather(*(stack.enter_async_context(bench.client(manager)) for _ in first))
            bench.note(
                f"{total:,} idle connections",
                kib_each=round((rss_mib(manager.pid) - before) * 1024 / total, 1),
                manager_mib=round(rss_mib(manager.pid), 1),
            )


async def children(bench: Bench) -> None:
    """Jobs in child processes, one at a time: submit to body."""
    with bench.manager() as manager, bench.workers(manager, slots=3):
        async with bench.client(manager) as client:
            n = 0

            async def starts(name: str, count: int) -> list[int]:
                nonlocal n
                times = []
                for _ in range(count):
                    n += 1
                    began = time.monotonic_ns()
                    job = await client.submit("BENCH", name, n)
                    if await job.result(timeout=20) != n + 1:
                        raise AssertionError(name)
                    with bench.stamps.open("rb") as file:
                        file.seek(n * 8)
                        times.append(struct.unpack("<q", file.read(8))[0] - began)
                return times

            bench.note("async, submit to start", **percentiles(await starts("noop", bench.size(300, 50))))
            [cold] = await starts("in_child", 1)
            bench.note("first child, submit to start", ms=cold / 1e6)
            bench.note("warm child, submit to start", **percentiles(await starts("in_child", bench.size(300, 50))))
            bench.note("file, submit to start", **percentiles(await starts("from_file", bench.size(100, 20))))


# --- what we compare with, and where the time goes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def sketch(bench: Bench) -> Iterator[Any]:
    """A function (workers → jobs per second) that drives the sketch of --sketch DIR on its port 8231; None without it."""
    if not bench.options.sketch:
        yield None
        return
    where = Path(bench.options.sketch).resolve()
    database = bench.directory / "sketch.db"
    run_it = [sys.executable, "-m", "uvicorn", "manager:app", "--port", "8231", "--log-level", "error"]
    bench.group.program(run_it, name="sketch manager", env={"SKETCH_DB": str(database)}, paths=[where], cwd=where)
    until("the sketch serves", lambda: http_call("GET", "http://127.0.0.1:8231/none").status)
    workers: list[Process] = []

    def produce(jobs: int) -> float:
        command = [sys.executable, str(where / "producer.py"), str(jobs), "100", "4000"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        found = re.search(r"submitted and finished ([\d,]+)/s", said)
        if not found:
            raise RuntimeError(said)
        return float(found[1].replace(",", ""))

    def measure(count: int) -> float:
        while len(workers) < count:
            workers.append(bench.group.program([sys.executable, str(where / "worker.py"), "1000"], name="sketch worker", cwd=where))
            produce(20_000)
        return produce(bench.size(100_000, 30_000))

    yield measure


async def profile(client: EasyJobsClient, manager: Served, workers: list[Process], total: int) -> None:
    """Sample manager and workers while jobs flow; print, per process, the share of each of our functions, what it calls included."""
    with tempfile.TemporaryDirectory() as scratch:
        samplers = []
        for process in (manager, *workers):
            command = ["py-spy", "record", "--pid", str(process.pid), "--duration", "3", "--rate", "250", "--format", "raw", "--output"]
            samplers.append((process.name, Path(scratch, str(process.pid)), command))
        running = [
            await asyncio.create_subprocess_exec(*command, str(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _, out, command in samplers
        ]
        while any(one.returncode is None for one in running):
            await flow(client, manager, total // 5)
        for name, out, _ in samplers:
            shares: collections.Counter[str] = collections.Counter()
            samples = 0
            for line in out.read_text().splitlines():
                stack, _, count = line.rpartition(" ")
                samples += int(count)
                frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
                leaf = frames[-1]
                for frame in {frame for frame in frames if "easyjobs/" in frame} | {f"  itself: {leaf}"}:
                    shares[frame] += int(count)
            print(f"\n{name}: {samples} samples (of all threads that run)")
            for frame, number in shares.most_common(45):
                print(f"  {number / max(samples, 1):6.1%}  {frame}")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------------------


async def managers(bench: Bench) -> None:
    """One manager and two over one database, each with as many workers: two share the machine's processors."""
    rounds, total = bench.size(3, 2), bench.size(100_000, 30_000)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with bench.manager() as one, bench.manager_again() as two:
        waited: collections.Counter[str] = collections.Counter()
        async with bench.client(one) as client, bench.client(two) as other:
            for round in range(rounds + 1):
                for count in (1, 2):
                    with bench.workers(one), bench.workers(two) if count == 2 else contextlib.nullcontext():
                        clients = (client, other)[:count]
                        await asyncio.gather(*(flow(each, one, total // 5 // count, wait=False) for each in clients))
                        before = counts(one).get("succeeded", 0)
                        waits = watch_locks(bench)
                        began = time.perf_counter()
                        await asyncio.gather(*(flow(each, one, total // count, wait=False) for each in clients))
                        while (await asyncio.to_thread(counts, one))["succeeded"] - before < total:  # noqa: ASYNC110  another process ends them
                            await asyncio.sleep(0.02)
                        if round:  # the first is to warm up
                            rates[count].append(total / (time.perf_counter() - began))
                        waited.update(await waits)
            one_rate, two_rate = statistics.median(rates[1]), statistics.median(rates[2])
            bench.note(
                "two managers", jobs_per_s=two_rate, of_one=two_rate / one_rate, one_jobs_per_s=one_rate, lock_waits_seen=dict(waited),
                all={count: list(map(round_to_int, of)) for count, of in rates.items()},
            )  # fmt: skip


async def arithmetic(bench: Bench) -> None:
    """What a no-op job costs the server: transactions, bytes of its log and of its tables; and what an idle manager and worker do."""
    ask = "select pg_current_xact_id()::text::bigint, pg_current_wal_lsn() - '0/0'::pg_lsn"

    async def between(what: Coroutine[Any, Any, Any]) -> tuple[int, int]:
        before = [int(each) for each in bench.sql(ask).split("|")]
        await what
        transactions, log = (int(each) - old for each, old in zip(bench.sql(ask).split("|"), before, strict=True))
        return transactions - 1, log  # one was ours

    async def one_by_one(count: int) -> None:
        for number in range(count):
            await (await client.submit("BENCH", "noop", number)).result()

    many, few, idle_s = bench.size(60_000, 20_000), bench.size(1000, 300), bench.size(30, 15)
    with bench.manager() as manager, bench.workers(manager):
        async with bench.client(manager) as client:
            for name, count, what in (
                ("as fast as they come", many, flow(client, manager, many)),
                ("one at a time", few, one_by_one(few)),
            ):
                bench.sql("checkpoint")  # a page is written to the log as a whole when it is touched first after that
                transactions, log = await between(what)
                bench.note(f"a job, {name}", jobs_per_transaction=count / transactions, log_bytes=log / count)
            transactions, _ = await between(asyncio.sleep(idle_s))
            bench.note("an idle manager with a worker", transactions_per_s=transactions / idle_s)
            await asyncio.to_thread(bench.sql, "vacuum full easyjobs.jobs")  # without the room of older versions
            bytes_each = float(bench.sql("select pg_total_relation_size('easyjobs.jobs') / count(*)::float from easyjobs.jobs"))
            connections = int(bench.sql("select count(*) - 1 from pg_stat_activity where datname = current_database()"))
            bench.note("a finished job", bytes_with_indexes=round(bytes_each), connections_of_a_manager=connections)


async def hints(bench: Bench) -> None:
    """Managers that have something to say all the time, without the rest of them: how many hints are heard, and how late one is."""
    from easyjobs.ports.store import News
    from easyjobs.runtime.clock import SystemClock
    from easyjobs.stores.postgres import PostgresStore

    seconds = bench.size(5, 2)
    with bench.manager():
        pass  # makes the schema
    for count in (2, 5, 10):
        stores = [PostgresStore(bench.cluster.url(bench.database), clock=SystemClock()) for _ in range(count)]
        heard, sent, late = [0], [0], list[int]()

        def hear(news: News, heard: list[int] = heard, sent: list[int] = sent, late: list[int] = late) -> None:
            heard[0] += 1
            if 7 in news.lanes:
                late.append(time.perf_counter_ns() - sent[0])

        for store in stores:
            store.on_news = hear
            await store.open()
        await asyncio.sleep(0.5)
        heard[0] = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            sent[0] = time.perf_counter_ns()
            stores[0]._hints.tell({7}, False, False)
            for store in stores[1:]:
                store._hints.tell({8}, True, False)
            await asyncio.sleep(0.02)
        bench.note(
            f"hints of {count} managers",
            heard_per_s=heard[0] / (time.perf_counter() - began),
            **percentiles(late),
        )
        for store in stores:
            await store.close()


FILL = """insert into easyjobs.jobs(id, lane, state, attempt, rank, session, created_at, started_at, finished_at, max_retries, max_crashes, priority, args, result)
    select decode(lpad(to_hex(g), 32, '0'), 'hex'), {lane}, 2, 1, g, 1, t.at, t.at, t.at, 1, 3, 0, '[[],{{}}]', 'null'
    from generate_series({first}, {last}) g, lateral (select (extract(epoch from clock_timestamp()) * 1000000)::bigint - 86400000000 as at) t"""


async def years(bench: Bench) -> None:
    """The throughput beside millions of finished jobs, and before they were there. They are put into the tables, not run."""
    total, finished = bench.size(60_000, 20_000), bench.options.finished or bench.size(10_000_000, 1_000_000)
    rates: dict[str, float] = {}
    with bench.manager() as manager, bench.workers(manager):
        async with bench.client(manager) as client:
            for case in ("empty", "full"):
                if case == "full":
                    began = time.perf_counter()
                    lane = bench.sql("select lane from easyjobs.tasks where name = 'noop'")
                    for first in range(1, finished + 1, 1_000_000):
                        fill = FILL.format(lane=lane, first=first, last=min(finished, first + 999_999))
                        await asyncio.to_thread(bench.sql, fill)
                    bench.sql(f"insert into easyjobs.counters values (0, {lane}, 2, {finished})")
                    await asyncio.to_thread(bench.sql, "vacuum analyze easyjobs.jobs")  # as the server does by itself, over years
                    bench.note("years, filling", jobs=finished, s=time.perf_counter() - began, tables_mib=size_mib(bench))
                await flow(client, manager, total // 5)
                rates[case] = statistics.median([(await flow(client, manager, total))["jobs_per_s"] for _ in range(bench.size(5, 3))])
    bench.note(f"years, beside {finished:,} finished jobs", jobs_per_s=rates["full"], of_empty=rates["full"] / rates["empty"])


async def churn(bench: Bench) -> None:
    """Jobs that are deleted two seconds after their end, as fast as they come: how large do tables and indexes get?"""
    seconds = bench.options.churn_s or bench.size(240, 60)
    sizes: list[tuple[float, float]] = []
    done = 0
    with bench.manager(EASYJOBS_KEEP_SUCCEEDED_S="2") as manager, bench.workers(manager):
        async with bench.client(manager) as client:
            began = time.perf_counter()
            while (at := time.perf_counter() - began) < seconds:
                await submit_in_frames(client, ["noop"], 5_000, frame=100, window=20)
                done += 5_000
                await asyncio.sleep(max(0.0, done / bench.options.churn_rate - (time.perf_counter() - began)))
                sizes.append((at, size_mib(bench)))
    thirds = [max(size for at, size in sizes if seconds * n / 3 <= at < seconds * (n + 1) / 3) for n in range(3)]
    bench.note(
        f"churn, {seconds} s", jobs=done, jobs_per_s=done / (time.perf_counter() - began),
        largest_mib_first_third=thirds[0], second_third=thirds[1], last_third=thirds[2], live_rows=int(bench.sql("select count(*) from easyjobs.jobs")),
        indexes_mib=float(bench.sql("select pg_indexes_size('easyjobs.jobs') / 1048576.0")),
    )  # fmt: skip


def size_mib(bench: Bench) -> float:
    """Of the jobs' table and its indexes."""
    return round(float(bench.sql("select pg_total_relation_size('easyjobs.jobs') / 1048576.0")), 1)


def round_to_int(value: float) -> int:
    """For a list of rates."""
    return round(value)


def watch_locks(bench: Bench) -> asyncio.Future[dict[str, int]]:
    """Look thirty times who waits for a lock (not for the disk): how often which kind of lock was waited for by which statement."""
    text = (
        "select wait_event || ' ' || left(query, 40) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )

    def look() -> dict[str, int]:
        return dict(collections.Counter(line for _ in range(30) for line in bench.sql(text).splitlines()))

    return asyncio.ensure_future(asyncio.to_thread(look))


# --- the whole --------------------------------------------------------------------------------------------------------------------


def table(found: dict[str, dict[str, Any]]) -> str:
    """The findings as Markdown."""
    rows = ["| what | |", "|---|---|"]
    for name, values in found.items():
        shown = "; ".join(f"{key.replace('_per_s', '/s').replace('_', ' ')} {show(value)}" for key, value in values.items() if key != "all")
        rows.append(f"| {name} | {shown} |")
    return "\n".join(rows)


@contextlib.contextmanager
def database(options: argparse.Namespace) -> Iterator[Any]:
    """Our own PostgreSQL below `--db-dir`, durable and otherwise with its default settings; None for SQLite."""
    if options.store == "sqlite":
        yield None
        return
    from tests.postgres import cluster

    with cluster("fsync=on", *options.pg, directory=options.db_dir.resolve()) as server:
        yield server


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, value


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"of {', '.join(SCENARIOS)}; all without. On PostgreSQL also {', '.join(OF_POSTGRES)}",
    )
    parser.add_argument("--finished", type=int, help="how many finished jobs there are in `years`; default 10,000,000")
    parser.add_argument("--churn-s", type=int, help="how long `churn` runs, in seconds; default 240")
    parser.add_argument("--churn-rate", type=float, default=5000, help="its jobs per second, at most")
    parser.add_argument("--quick", action="store_true", help="smaller numbers")
    parser.add_argument("--db-dir", type=Path, default=ROOT / ".run", help="where the databases go; it decides the price of a commit")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="postgres: a server of our own, with fsync")
    parser.add_argument(
        "--pg", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server, as autovacuum_naptime=10s"
    )
    parser.add_argument(
        "--env",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for manager and workers, as EASYJOBS_DURABILITY=relaxed",
    )
    parser.add_argument("--sketch", metavar="DIR", help="a directory with the sketch's manager.py, worker.py and producer.py")
    parser.add_argument("--profile", action="store_true", help="sample the processes during throughput")
    parser.add_argument("--out", type=Path, help="the JSON file; default benchmarks/results/<time>.json")
    options = parser.parse_args()
    known = (*SCENARIOS, *OF_POSTGRES) if options.store == "postgres" else SCENARIOS
    unknown = set(options.scenarios) - set(known)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    options.db_dir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    failed = False
    with tempfile.TemporaryDirectory(prefix="bench", dir=options.db_dir) as scratch, processes() as group, database(options) as server:
        bench = Bench(group, Path(scratch), options)
        bench.cluster = server
        machine = describe(bench.directory)
        for name in options.scenarios or known:
            print(name, file=sys.stderr)
            try:
                run(brokers(bench) if name == "brokers" else globals()[name](bench))
            except Exception as error:  # noqa: BLE001  one broken scenario does not cost the others
                failed = True
                bench.note(name, error=f"{type(error).__name__}: {error}"[:2000])
    whole = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "quick": options.quick,
        "store": options.store,
        "pg": options.pg,
        "env": dict(options.env),
        "found": bench.found,
    }
    out = options.out or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"\n{json.dumps(machine)}\n\n{table(bench.found)}\n\n{time.perf_counter() - began:.0f} s, written to {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
