"""Faults of a PostgreSQL that others use too: they hold its connections, its locks, and its time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg

from faults import figures
from faults.cluster import Site, reruns, site
from faults.matrix import row
from tests import postgres
from tests.processes import Served, http_call, until

CONNECTIONS, RESERVED = 14, 3
BOUND_S = 25.0  # the store gives up after 15 s, and a call may have come while another batch was at it
BACK_S = 30.0  # after the cause has gone: a machine that does other things too is no failure; the figure says how long it was

# A statement on jobs takes as long as a row says, and looks again meanwhile, so that the cause may go.
STALL = """
    create table public.stall(is_on boolean, fails text);
    insert into public.stall values (false, '');
    create function public.stalled() returns trigger language plpgsql security definer as $$
    declare s record;
    begin
        loop
            select * into s from public.stall;
            exit when not s.is_on;
            perform pg_sleep(0.05);
        end loop;
        if s.fails <> '' and random() < 0.5 then
            raise exception 'as the row says' using errcode = s.fails;
        end if;
        return null;
    end $$;
    create trigger stalled before insert or update on easyjobs.jobs for each statement execute function public.stalled();
"""


class Pressing:
    """Clients that submit one job after another, half of them with a key, and note how long each waited for which answer."""

    def __init__(self, place: Site, managers: list[Served], clients: int = 12) -> None:
        self.place, self.managers = place, managers
        self.answers: Counter[str] = Counter()
        self.slowest: Counter[str] = Counter()  # seconds, by answer
        self.others: list[str] = []
        self._phase, self._done, self._lock = "", threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._submit, args=(number,)) for number in range(clients)]

    def _submit(self, number: int) -> None:
        n = 0
        while not self._done.wait(0.2):
            n += 1
            token, has_key = f"c{number}-{n}", number % 2 == 0
            manager = self.managers[(number // 2) % len(self.managers)]
            with self._lock:
                self.place.history.unknown.add(token)
            began = time.monotonic()
            told = self._answer(manager, "first" if n % 3 == 0 else "work", token, {"Idempotency-Key": token} if has_key else {})
            took = time.monotonic() - began
            with self._lock:
                self.answers[told] += 1
                self.slowest[told] = max(self.slowest[told], took)  # type: ignore[assignment]

    def _answer(self, manager: Served, task: str, token: str, headers: dict[str, str]) -> str:
        url = f"http://127.0.0.1:{manager.port}/FAULTS/task/{task}"
        try:
            answer = http_call("POST", url, {"token": token}, headers=headers, within_s=60)
        except OSError as why:
            return type(why).__name__
        if answer.status == 200:
            with self._lock:
                self.place.history.acked[token] = answer.json()["request_id"]
                self.place.history.unknown.discard(token)
                if headers:
                    self.place.keyed.add(token)
        elif answer.status == 503:
            assert answer.json()["detail"], answer
        else:
            self.others.append(f"{answer.status} {answer.body[:300]!r}")
        return str(answer.status)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(90)

    def taken(self) -> tuple[Counter[str], dict[str, float]]:
        """What was answered since the last time, and the longest wait for each."""
        with self._lock:
            answers, slowest = self.answers, dict(self.slowest)
            self.answers, self.slowest = Counter(), Counter()
        return answers, slowest


@contextmanager
def _connections_taken(server: postgres.Cluster) -> Iterator[None]:
    """Strangers have all connections, those of the managers included."""
    held: list[Any] = []

    def all_are_held() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.append(psycopg.connect(server.url().replace("postgres@", "jobs@"), autocommit=True))
        ours = [connection.info.backend_pid for connection in held]
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'jobs' and not pid = any(%s)", [ours])
        return len(held) == CONNECTIONS - RESERVED

    try:
        until("strangers have all connections", all_are_held, 30)
        yield
    finally:
        for connection in held:
            connection.close()


@contextmanager
def _jobs_locked(server: postgres.Cluster) -> Iterator[None]:
    with psycopg.connect(server.url()) as stranger:
        stranger.execute("lock table easyjobs.jobs in access exclusive mode")
        yield
        stranger.rollback()


@contextmanager
def _stalled(server: postgres.Cluster) -> Iterator[None]:
    server.sql("update public.stall set is_on = true")
    try:
        yield
    finally:
        server.sql("update public.stall set is_on = false")


@contextmanager
def _failing(server: postgres.Cluster, state: str) -> Iterator[None]:
    server.sql(f"update public.stall set fails = '{state}'")
    try:
        yield
    finally:
        server.sql("update public.stall set fails = ''")


@contextmanager
def _deadlocks(server: postgres.Cluster) -> Iterator[None]:
    """A stranger takes rows of sessions, then those of jobs: the other way round than managers do."""
    done = threading.Event()

    def cross() -> None:
        with psycopg.connect(server.url()) as stranger:
            while not done.wait(0.02):
                with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                    stranger.execute("select from easyjobs.sessions for update")
                    time.sleep(0.1)
                    stranger.execute("select from easyjobs.jobs where state in (0, 1) for update")
                stranger.rollback()

    thread = threading.Thread(target=cross)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@row("P4")
def strangers_in_the_way(directory: Path, size: float) -> str:
    """Strangers hold all connections of PostgreSQL, a lock on the jobs, and its time; deadlocks and serialization errors: submits get an answer, nothing is lost, and managers go on without a restart when it is over."""
    options = (f"max_connections={CONNECTIONS}", f"superuser_reserved_connections={RESERVED}", "deadlock_timeout=100ms")
    with postgres.cluster(*options) as server:
        server.sql("create role jobs login; grant create on database postgres to jobs")
        with site(directory, server=server, EASYJOBS_STORE=server.url().replace("postgres@", "jobs@")) as place:
            server.sql("grant all on all tables in schema easyjobs to jobs; grant all on all sequences in schema easyjobs to jobs")
            server.sql(STALL)
            place.start_worker(slots=20)
            causes: dict[str, tuple[Callable[[], Any], float]] = {
                "no connection": (lambda: _connections_taken(server), 5 * size),
                "short lock": (lambda: _jobs_locked(server), 4),
                "long lock": (lambda: _jobs_locked(server), 45),
                "slow statements": (lambda: _stalled(server), 12 * size),
                "serialization errors": (lambda: _failing(server, "40001"), 3 * size),
                "deadlocks": (lambda: _deadlocks(server), 3 * size),
            }
            told = []
            with Pressing(place, [place.manager]) as clients:
                for name, (cause, seconds) in causes.items():
                    time.sleep(1)
                    clients.taken()
                    with cause():
                        time.sleep(seconds)
                    back = _back(place, name.replace(" ", "-"))
                    answers, slowest = clients.taken()
                    figures.took("recovery after strangers", back)
                    told.append(f"{name}: {dict(answers)}, longest {max(slowest.values(), default=0):.1f} s, back after {back:.1f} s")
                    print(told[-1], slowest, flush=True)
            print(place.manager.log[-6000:])
            assert not clients.others, clients.others[:5]
            history = place.judged(60)
            return "; ".join(told) + f"; {len(history.acked)} acked, {len(history.unknown)} unanswered, 0 lost, {reruns(history)} reruns"


def _back(place: Site, name: str) -> float:
    """Seconds from now until a new job was taken and has run."""
    began = time.monotonic()
    number = 0

    def taken() -> bool:
        nonlocal number
        number += 1
        with contextlib.suppress(OSError, AssertionError):
            place.submit("work", f"back-{name}-{number}")
            return True
        return False

    until(f"{name}: jobs are taken again", taken, BACK_S, 0.1)
    place.until_effect(f"back-{name}-{number}", within_s=BACK_S)
    return time.monotonic() - began
