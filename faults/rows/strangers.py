"""Faults of a PostgreSQL that others use too: they hold its connections, its locks, and its time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg

from faults import figures
from faults.cluster import Site, reruns, site
from faults.load import said
from faults.matrix import row
from tests import postgres
from tests.processes import Served, free_port, http_call, until

CONNECTIONS, RESERVED = 14, 3
BOUND_S = 40.0  # a batch is given up after 15 s, the next one after 5 s; the rest is for a machine that does other things too
BACK_S = 30.0  # after the cause has gone: a machine that does other things too is no failure; the figure says how long it was

# How statements on jobs fare is said by a row, which they look at again while they hang, so that the cause may go.
STALL = """
    create table public.stall(hangs boolean, row_s float, fails text);
    insert into public.stall values (false, 0, '');
    create function public.stall_statement() returns trigger language plpgsql security definer as $$
    declare s record;
    begin
        loop
            select * into s from public.stall;
            exit when not s.hangs;
            perform pg_sleep(0.05);
        end loop;
        if s.fails <> '' and random() < 0.5 then
            raise exception 'as the row says' using errcode = s.fails;
        end if;
        return null;
    end $$;
    create function public.stall_row() returns trigger language plpgsql security definer as $$
    begin
        perform pg_sleep(row_s) from public.stall where row_s > 0;
        return new;
    end $$;
    create trigger stall_statement before insert or update on easyjobs.jobs for each statement execute function public.stall_statement();
    create trigger stall_row before insert or update on easyjobs.jobs for each row execute function public.stall_row();
"""


def _as_jobs(server: postgres.Cluster) -> str:
    """Reached by a user like others, who gets none of the connections that are kept for the superuser."""
    return server.url().replace("postgres@", "jobs@")


class Pressing:
    """Clients that submit one job after another, half of them with a key, and note how long each waited for which answer."""

    def __init__(self, place: Site, managers: list[Served], clients: int = 12, readers: int = 8) -> None:
        self.place, self.managers = place, managers
        self.answers: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}  # seconds, by answer
        self.others: list[str] = []
        self._done, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._submit, args=(number,)) for number in range(clients)]
        self._threads += [threading.Thread(target=self._read) for _ in range(readers)]

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
            self._note(told, time.monotonic() - began)

    def _read(self) -> None:
        while not self._done.wait(0.3):
            began = time.monotonic()
            try:
                answer = http_call("GET", f"{self.managers[0].url}/jobs/api/v1/jobs?namespace=FAULTS&limit=5", within_s=120)
            except OSError as why:
                self.others.append(f"a reader: {why!r}")
                continue
            if answer.status not in (200, 503):
                self.others.append(f"a reader: {answer.status} {answer.body[:300]!r}")
            self._note(f"read {answer.status}", time.monotonic() - began)

    def _note(self, told: str, took: float) -> None:
        with self._lock:
            self.answers[told] += 1
            self.slowest[told] = max(self.slowest.get(told, 0.0), took)

    def _answer(self, manager: Served, task: str, token: str, headers: dict[str, str]) -> str:
        url = f"http://127.0.0.1:{manager.port}/FAULTS/task/{task}"
        try:
            answer = http_call("POST", url, {"token": token}, headers=headers, within_s=120)
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
            self.answers, self.slowest = Counter(), {}
        return answers, slowest


@contextmanager
def _connections_taken(server: postgres.Cluster) -> Iterator[None]:
    """Strangers have all connections, those of the managers included."""
    held: list[Any] = []

    def all_are_held() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.append(psycopg.connect(_as_jobs(server), autocommit=True))
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
    """As by somebody who changes the table."""
    with psycopg.connect(server.url()) as stranger:
        stranger.execute("lock table easyjobs.jobs in access exclusive mode")
        yield
        stranger.rollback()


@contextmanager
def _set(server: postgres.Cluster, cause: str, end: str) -> Iterator[None]:
    """What triggers do to statements on jobs."""
    server.sql(f"update public.stall set {cause}")
    try:
        yield
    finally:
        server.sql(f"update public.stall set {end}")


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


@row("P4", limit_s=900)
def strangers_in_the_way(directory: Path, size: float) -> str:
    """Strangers hold all connections of PostgreSQL, a lock on all jobs, or its time, and cause deadlocks and serialization errors, under two managers: submits are answered within bounds, nothing is lost, and all goes on at once when it is over."""
    options = (f"max_connections={CONNECTIONS}", f"superuser_reserved_connections={RESERVED}", "deadlock_timeout=100ms")
    with postgres.cluster(*options) as server:
        server.sql("create role jobs login; grant create on database postgres to jobs")
        with site(directory, server=server, EASYJOBS_STORE=_as_jobs(server)) as place:
            server.sql("grant all on all tables in schema easyjobs to jobs; grant all on all sequences in schema easyjobs to jobs")
            server.sql(STALL)
            place.start_worker(slots=20)
            first = place.manager
            place.port = free_port()
            managers = [first, place.start_manager()]
            place.start_worker(slots=20)
            causes: dict[str, tuple[Callable[[], AbstractContextManager[None]], float]] = {
                "no connection": (lambda: _connections_taken(server), 5 * size),
                "a lock of 4 s": (lambda: _jobs_locked(server), 4),
                "a lock of 45 s": (lambda: _jobs_locked(server), 45),
                "statements that hang": (lambda: _set(server, "hangs = true", "hangs = false"), 12 * size),
                "each row takes 0.3 s": (lambda: _set(server, "row_s = 0.3", "row_s = 0"), 5 * size),
                "serialization errors": (lambda: _set(server, "fails = '40001'", "fails = ''"), 3 * size),
                "deadlocks": (lambda: _deadlocks(server), 3 * size),
            }
            told = []
            with Pressing(place, managers) as clients:
                for name, (cause, seconds) in causes.items():
                    time.sleep(1)
                    clients.taken()
                    with cause():
                        time.sleep(seconds)
                    back = max(_back(place, manager, name) for manager in managers)
                    answers, slowest = clients.taken()
                    longest = max(slowest.values(), default=0.0)
                    figures.took("recovery after strangers", back)
                    told.append(f"{name}: {said(answers)}, the longest after {longest:.1f} s; back after {back:.1f} s")
                    assert longest < BOUND_S, told[-1]
            assert not clients.others, clients.others[:5]
            history = place.judged(60)
            assert _found(server), "there was no deadlock: this does not show what one does"
            rescued = sum(manager.log.count("job.rescued") for manager in managers)
            assert rescued == reruns(history) == 0, f"{rescued} false rescues, {reruns(history)} reruns"
            return (
                f"{'; '.join(told)}; {len(history.acked)} acked, {len(history.unknown)} without an answer or refused, 0 lost, "
                f"{_found(server)} deadlocks, {rescued} false rescues, {reruns(history)} reruns"
            )


def _found(server: postgres.Cluster) -> int:
    return int(server.sql("select deadlocks from pg_stat_database where datname = 'postgres'"))


def _back(place: Site, manager: Served, cause: str) -> float:
    """Seconds from now until this manager has taken a new job and that has run."""
    began = time.monotonic()
    number = 0
    place.manager = manager

    def taken() -> bool:
        nonlocal number
        number += 1
        with contextlib.suppress(OSError, AssertionError):
            place.submit("work", f"after {cause} {manager.port} {number}")
            return True
        return False

    until(f"jobs are taken again after {cause}", taken, BACK_S, 0.1)
    place.until_effect(f"after {cause} {manager.port} {number}", within_s=BACK_S)
    return time.monotonic() - began
