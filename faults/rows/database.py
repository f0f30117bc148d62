"""Faults of PostgreSQL and of the way to it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import figures
from faults.cluster import Site, reruns, site, tokens
from faults.figures import quantile
from faults.matrix import row
from tests import postgres
from tests.faults.checker import now
from tests.faults.proxy import Cutter
from tests.processes import free_port, until

LOSES = frozenset({"I1", "I2", "I5", "I11"})  # what a state of before may break: jobs are gone, and what ran for them has run


@row("P1")
def server_killed(directory: Path, size: float) -> str:
    """PostgreSQL is stopped at once, as by a power cut, every few seconds, under load."""
    with postgres.cluster() as server, site(directory, server=server) as place:
        place.start_worker(slots=10)
        errors = n = 0
        done = threading.Event()

        def submit() -> None:
            nonlocal errors, n
            while not done.is_set():
                n += 1
                try:
                    place.submit_many("first" if n % 3 == 0 else "work", tokens(f"k{n}-", 5))
                except (OSError, AssertionError):
                    errors += 1
                    done.wait(0.1)
                done.wait(0.03)  # what the worker has not done by the end has to be waited for

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(round(4 * size)):
                time.sleep(1.5 + random.random())
                server.stop()
                server.start()
            time.sleep(1)
        finally:
            done.set()
            thread.join()
        history = place.judged(120)
        return f"{len(history.acked)} acked, {len(history.unknown)} unknown, 0 lost; {errors} submits failed; {reruns(history)} reruns"


def _behind(port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"


@contextmanager
def _submitting(place: Site, each_s: float = 0.02) -> Iterator[Counter[str]]:
    """Submit one job after another while the block runs, every third one a chain; yields how many were `taken` and `refused`."""
    done, told = threading.Event(), Counter[str]()

    def submit() -> None:
        while not done.wait(each_s):
            n = told.total()
            try:
                place.submit("first" if n % 3 == 0 else "work", f"k{n}")
                told["taken"] += 1
            except (OSError, AssertionError):
                told["refused"] += 1

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield told
    finally:
        done.set()
        thread.join()


@row("P2")
def answer_to_commit_lost(directory: Path, size: float) -> str:
    """The connection is cut when COMMIT was sent, before the server has it or before its answer is here: each is found out, nothing is there twice."""
    with (
        postgres.cluster(port=free_port()) as server,
        Cutter(server.port or 0) as proxy,
        site(directory, server=server, EASYJOBS_STORE=_behind(proxy.port)) as place,
    ):
        place.start_worker(slots=10)
        with _submitting(place) as submits:
            for n in range(round(20 * size)):
                proxy.cuts = ("reply", "request")[n % 2]
                until("a commit was cut", lambda: proxy.cuts is None, 20)
                time.sleep(random.random() / 2)
        history = place.judged(60)
        resolved = place.manager.log.count("store.reconnected")
        assert proxy.times >= 20 * size - 1
        assert reruns(history) == 0, f"{reruns(history)} runs were repeated, and no worker was lost"
        return (
            f"{proxy.times} commits cut, {resolved} reconnects; {submits['taken']} submits answered, {submits['refused']} refused, "
            f"{len(history.unknown)} unknown; 0 lost, 0 twice, 0 reruns"
        )


def _fail_over(place: Site, primary: postgres.Cluster, standby: postgres.Cluster, proxy: Cutter) -> float:
    """The primary dies, the standby takes over its address; seconds until a job is taken again."""
    began = time.monotonic()
    primary.stop()
    standby.sql("select pg_promote()")
    place.server, proxy.target = standby, standby.port or 0
    before = len(place.history.acked)
    until("jobs are taken again", lambda: len(place.history.acked) > before + 1, 60)
    took = time.monotonic() - began
    figures.took("recovery from a fail-over", took)
    return took


@row("P3")
def fail_over(directory: Path, size: float) -> str:
    """The primary dies under load and a standby takes its place: one that is waited for has everything, another one may lack the end, and what it has agrees."""
    with (
        postgres.cluster("synchronous_standby_names=*", "synchronous_commit=local", port=free_port()) as primary,
        postgres.standby_of(primary, free_port()) as standby,
        Cutter(primary.port or 0) as proxy,
        site(directory / "synchronous", server=primary, EASYJOBS_STORE=_behind(proxy.port)) as place,
    ):
        place.start_worker(slots=10)
        with _submitting(place):
            time.sleep(2 * size)
            took = _fail_over(place, primary, standby, proxy)
            time.sleep(1)
        history = place.judged(60)
        told = f"synchronous: {len(history.acked)} acked, 0 lost, {len(history.unknown)} unknown, {reruns(history)} reruns, taken again after {took:.1f} s"
    with (
        postgres.cluster(port=free_port()) as primary,
        postgres.standby_of(primary, free_port()) as standby,
        Cutter(primary.port or 0) as proxy,
        site(directory / "asynchronous", server=primary, EASYJOBS_STORE=_behind(proxy.port)) as place,
    ):
        place.start_worker(slots=130)
        with _submitting(place):
            time.sleep(2 * size)
            standby.sql("alter system set primary_conninfo = ''")
            standby.sql("select pg_reload_conf()")  # from now on it lags behind
            place.submit_many("work", tokens("filler", 40))  # the numbers that a server has set aside beforehand
            place.submit_many("work", tokens("long", 30), seconds=5.0)
            time.sleep(1.5)
            took = _fail_over(place, primary, standby, proxy)
            place.submit_many("work", tokens("other", 80), seconds=7.0)  # whose numbers would be those of the long ones, which still run
            time.sleep(1)
        history = place.judged(60, without=LOSES)
        there = {row.id for row in history.rows}
        lost = [token for token, job in history.acked.items() if job not in there]
        assert lost, "the standby lacks nothing: this does not show what a loss does"
        figures.count("jobs that an asynchronous standby lacked", len(lost))
        return f"{told}; asynchronous, 1.5 s behind: {len(lost)} of {len(history.acked)} acked are lost, the others agree, taken again after {took:.1f} s"


@row("P5")
def nobody_is_notified(directory: Path, size: float) -> str:
    """The LISTEN connection of one of two managers is half open, so that it hears nothing of the other one: its worker gets jobs by polling."""
    with (
        postgres.cluster(port=free_port()) as server,
        Cutter(server.port or 0) as proxy,
        site(directory, server=server) as place,
    ):
        first = place.manager
        place.port = free_port()
        second = place.start_manager(EASYJOBS_STORE_LISTEN=_behind(proxy.port))
        place.start_worker(slots=10)  # of the second
        place.manager = first  # takes the jobs

        def waits(prefix: str, count: int = round(20 * size)) -> list[float]:
            found = []
            for n in range(count):
                began = now()
                place.submit("work", f"{prefix}{n}")
                found.append(place.until_effect(f"{prefix}{n}", within_s=30).at - began)
                time.sleep(random.random() / 5)
            return found

        heard = waits("heard")
        proxy.to_worker.clear()
        deaf = waits("deaf")
        proxy.cut()
        proxy.to_worker.set()
        until("it listens again", lambda: max(waits(f"again{now()}-", 3)) < 0.3, 60)
        figures.took("start with notifications", *heard)
        figures.took("start without notifications", *deaf)
        place.judged(60)
        assert second.is_running
        return (
            f"start p50 {quantile(heard, 0.5) * 1000:.0f} ms with notifications; without them p50 {quantile(deaf, 0.5):.2f} s, "
            f"p99 {quantile(deaf, 0.99):.2f} s; then it listens again"
        )
