"""Faults of managers: killed at each place, in a loop, in the middle of a migration, stopped beside another one."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easyjobs.domain.lifecycle import Back
from faults import figures
from faults.cluster import QUEUE, Site, overlap_s, reruns, site, tokens
from faults.crowd import Members
from faults.figures import quantile
from faults.matrix import row
from faults.rows.disk import _detach as detach
from faults.rows.disk import _strace as attach
from tests import postgres
from tests.faults.checker import read_effects
from tests.faults.cluster import LEASE_S, PROGRAMS, Cluster
from tests.processes import NotInTime, Served, free_port, http_call, processes, until


@row("M1")
def killed_at_places(directory: Path, size: float) -> str:
    """kill -9 of the manager at each failpoint of its way, under load."""
    places = [
        "store.before_commit:kill@12", "store.committed:kill@12", "intake.stored:kill@4", "dispatcher.claimed:kill@4", "socket.reported:kill@4",
        "rescuer.rescued:kill@1",
    ]  # fmt: skip
    took: list[float] = []
    with site(directory) as place:
        doomed = place.start_worker(slots=5)
        keeper = place.start_worker(slots=5)
        for n, failpoint in enumerate(places):
            place.manager.stop()
            with contextlib.suppress(NotInTime):  # it may die before it is ready
                place.start_manager(EASYJOBS_FAILPOINTS=failpoint)
            for m in range(30):
                with contextlib.suppress(OSError, AssertionError, Exception):
                    place.submit("work", f"p{n}-{m}", seconds=0.02)
                if not place.manager.is_running:
                    break
            if "rescuer" in failpoint and doomed.is_running:
                with contextlib.suppress(OSError, AssertionError):
                    place.submit("work", f"p{n}-long", seconds=60)
                    place.submit_many("work", tokens(f"p{n}-l", 9), seconds=3)
                    time.sleep(0.5)
                place.kill(doomed)
            place.wait_for_death(30)
            began = time.monotonic()
            place.start_manager()
            took.append(time.monotonic() - began)
        for token in [token for token in place.history.acked if token.endswith("-long")]:
            place.manager.call("POST", f"/jobs/api/v1/jobs/{place.history.acked[token]}/cancel")
        history = place.judged(60)
        assert keeper.is_running
        return f"{len(places)} places; {len(history.acked)} acked, {len(history.unknown)} unknown, 0 lost; ready again within {max(took):.1f} s"


@row("M2")
def away_longer_than_the_lease(directory: Path, size: float) -> str:
    """The manager is away for three leases while workers finish: all results are taken, nothing runs again."""
    with site(directory) as place:
        for _ in range(2):
            place.start_worker(slots=20)
        place.submit_many("wait_for_gate", tokens("w", 10), gate="go")
        place.submit_many("work", tokens("a", 30), seconds=LEASE_S)
        place.until_effect("a29")
        place.manager.kill()
        time.sleep(LEASE_S * 3)
        ended = sum(effect.what == "done" for effect in place.told().effects)
        place.start_manager()
        place.open_gate("go")
        history = place.judged()
        assert ended == 30, f"{ended} jobs ended meanwhile"
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return f"{ended} jobs ended while it was away, {len(history.acked) - ended} after it; reruns 0"


@row("M3")
def one_of_two_managers_stands_still(directory: Path, size: float) -> str:
    """Two managers over one PostgreSQL: one is stopped for two leases, then the one with the worker is killed for good."""
    with postgres.cluster() as server, site(directory, server=server) as place:
        first = place.manager
        place.port = other_port = free_port()
        second = place.start_manager()
        place.port, place.manager = first.port, first
        at_first = place.start_worker(slots=4)
        place.submit_many("work", tokens("a", 30), seconds=0.2)
        place.port, place.manager = other_port, second
        place.start_worker(slots=4)
        first.signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 2)
        first.signal(signal.SIGCONT)
        place.submit_many("work", tokens("b", 10), seconds=LEASE_S * 4)
        until("the worker of the first has some", lambda: str(at_first.pid) in _workers_of(place, "b"), 30)
        first.kill()  # its port refuses: its worker must stop, since the other manager gives its jobs away
        history = place.judged(60)
        return f"{reruns(history)} reruns; longest overlap {overlap_s(history):.2f} s"


def _workers_of(place: Site, prefix: str) -> set[str]:
    return {str(effect.pid) for effect in read_effects(place.effects_path) if effect.token.startswith(prefix)}


@row("M4")
def crash_loop(directory: Path, size: float) -> str:
    """The manager is killed every three seconds under load."""
    kills = max(4, round(4 * size))
    with site(directory) as place:
        workers = [place.start_worker(slots=20) for _ in range(2)]
        done = threading.Event()
        count = 0

        def submit() -> None:
            nonlocal count
            while not done.is_set():
                batch = tokens(f"s{count}-", 25)
                count += 1
                try:
                    if count % 5 == 0:
                        place.submit_many("first", batch)
                    else:
                        place.submit_many("work", batch, seconds=0.01)
                except (OSError, AssertionError, Exception):
                    done.wait(0.1)
                done.wait(0.05)

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(kills):
                time.sleep(3)
                place.manager.kill()
                place.start_manager()
        finally:
            done.set()
            thread.join()
        history = place.judged(90)
        assert all(worker.is_running for worker in workers)
        ran = len([effect for effect in history.effects if effect.what == "start"])
        return f"{kills} kills; {len(history.rows)} jobs, {len(history.acked)} acked, 0 lost; {reruns(history)} of {ran} runs were repeated"


@row("M7")
def killed_while_migrating(directory: Path, size: float) -> str:
    """kill -9 in each step of the schema: the next start completes it."""
    for step in range(1, 6):
        with processes() as started:
            where = directory / str(step)
            where.mkdir()
            place = Cluster(started, where)
            env = place.environment(EASYJOBS_FAILPOINTS=f"store.migrating:kill@{step}")
            dead = started.uvicorn("fault_manager:server", directory=PROGRAMS, name="manager", env=env, port=place.port)
            assert dead.wait(20) == -signal.SIGKILL
            place.start_manager()
            place.start_worker()
            place.end_of(place.submit("work", "a"))
            place.check()
    return "5 steps, each killed once; complete at the next start"


@row("M6")
def commits_pile_up(directory: Path, size: float) -> str:
    """Each fsync takes 300 ms while a hundred submit large jobs at once: what is too much gets 503, beats are served, no job runs twice, and the memory stays bounded."""
    submitters, ballast = 120, "x" * 900_000  # a hundred MiB at once: more than may wait
    with site(directory) as place:
        place.start_worker(slots=20)
        place.submit_many("work", tokens("long", 10), seconds=LEASE_S * 4)
        place.until_effect("long9")
        before = _rss_mib(place.manager.pid)
        answers: Counter[int] = Counter()
        waits: list[float] = []
        end = time.monotonic() + 10 * min(size, 3)

        def submit(number: int) -> None:
            n = 0
            while time.monotonic() < end:
                token = f"s{number}-{n}"
                n += 1
                place.history.unknown.add(token)
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    answer = place.manager.call("POST", f"/{QUEUE}/task/work", {"token": token, "ballast": ballast}, within_s=60)
                    answers[answer.status] += 1
                    if answer.status == 200:
                        place.history.acked[token] = answer.json()["request_id"]
                        place.history.unknown.discard(token)
                        waits.append(time.monotonic() - began)
                    elif answer.status == 503:
                        place.history.unknown.discard(token)  # it is not there
                        time.sleep(float(answer.headers["Retry-After"]))

        tracer = attach(place.manager.pid, "-e", "inject=fdatasync,fsync:delay_enter=300000")
        peak = before
        try:
            threads = [threading.Thread(target=submit, args=(n,)) for n in range(submitters)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                peak = max(peak, _rss_mib(place.manager.pid))
                time.sleep(0.2)
            place.settle(30)
        finally:
            detach(tracer)
        history = place.judged(60)
        rescued = sum(step.back == Back.RESCUED for step in history.steps)
        figures.count("false rescues", rescued)
        assert rescued == 0, f"{rescued} false rescues"
        assert answers.keys() == {200, 503}, answers
        assert peak - before < 250, f"the manager grew from {before:.0f} to {peak:.0f} MiB"
        return (
            f"{submitters} submit at once: {dict(answers)}, p99 {quantile(waits, 0.99):.1f} s; false rescues 0; "
            f"RSS {before:.0f} MiB, at most {peak:.0f} MiB"
        )


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@row("M5", limit_s=900)
def rolling_restart(directory: Path, size: float) -> str:
    """Three managers over one PostgreSQL restart in turn, with 40 idle workers and two that work: no submit fails with one retry at the next."""
    count, rounds = 40, max(1, round(size))
    with postgres.cluster() as server, processes() as started:
        place = SeveralManagers(started, directory, server=server)
        ports = [free_port() for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        managers: list[Served] = []
        for place.port in ports:
            managers.append(place.start_manager())
        place.all = managers
        for _ in range(2):
            place.start_worker(slots=10, TEST_MANAGER_HOSTS=hosts)
        crowd = Members(started, ",".join(f"ws://127.0.0.1:{port}/ws/jobs" for port in ports), count)
        crowd.until_in(1.0, 60)
        place.submit_many("wait_for_gate", tokens("held", 5), gate="go")
        done = threading.Event()
        took: list[float] = []
        first_tries: Counter[str] = Counter()
        failed: list[str] = []

        def submit(number: int) -> None:
            for n in itertools.count():
                if done.is_set():
                    return
                token, began, said = f"s{number}-{n}", time.monotonic(), []
                place.history.unknown.add(token)
                for turn in (n, n + 1):
                    url = f"http://127.0.0.1:{ports[turn % 3]}/{QUEUE}/task/work"
                    try:
                        answer = http_call("POST", url, {"token": token, "seconds": 0.01}, headers={"Idempotency-Key": token}, within_s=15)
                    except (OSError, http.client.HTTPException) as why:
                        said.append(type(why).__name__)
                        continue
                    if answer.status == 200:
                        place.history.acked[token] = str(answer.json()["request_id"])
                        place.history.unknown.discard(token)
                        break
                    said.append(str(answer.status))
                else:
                    failed.append(f"{token}: {said}")
                first_tries.update(said[:1])
                took.append(time.monotonic() - began)
                done.wait(0.05)

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for n in range(3 * rounds):
                place.manager = managers[(n + 1) % 3]  # which is asked meanwhile
                assert managers[n % 3].stop(60) in (0, -signal.SIGTERM)
                place.port = ports[n % 3]
                managers[n % 3] = place.start_manager()
                crowd.until_in(1.0, 60)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not failed, f"{len(failed)} of {len(took)} submits failed, with a retry: {failed[:5]}"
        figures.took("submit during a rolling restart", *took)
        place.open_gate("go")
        history = place.judged(60)
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return (
            f"{3 * rounds} restarts, {count + 2} workers; {len(took)} submits, 0 failed, {first_tries.total()} at their first try {dict(first_tries)}; "
            f"p99 {quantile(took, 0.99):.2f} s; 0 reruns"
        )


class SeveralManagers(Site):
    """A site whose workers are wherever they are."""

    all: Sequence[Served] = ()

    def connected(self) -> list[Any]:
        found = [manager.get("/jobs/api/v1/workers")["items"] for manager in self.all if manager.is_running]
        return [worker for some in found for worker in some if worker["tasks"]]
