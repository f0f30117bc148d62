"""Three managers over one PostgreSQL, and workers that know all of them: what is lost, or runs twice, when managers go? Nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.several import Site
from tests.faults.test_schedule_faults import jobs, pause, schedules, second, start_worker
from tests.postgres import Cluster, cluster
from tests.processes import Processes, until


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def site(started: Processes, tmp_path: Path, server: Cluster) -> Site:
    return Site(started, tmp_path, server)


def all_workers(site: Site, count: int) -> Callable[[], bool]:
    return lambda: len(site.connected()) == count


def busiest(site: Site) -> int:
    return max(site.managers, key=lambda number: len(site.workers_of(number)))


def test_managers_are_killed_and_their_workers_take_their_jobs_along(site: Site) -> None:
    site.start()
    for _ in range(3):
        site.start_worker(slots=4)
    held = [f"held-{n}" for n in range(6)]
    for token in held:
        site.submit("wait_for_gate", token, gate="open")
    for token in held:
        site.until_effect(token)
    for round in range(2):
        for n in range(60):
            site.submit("work", f"before-{round}-{n}", seconds=0.02)
        gone = busiest(site)
        site.managers[gone].kill()
        for n in range(60):
            site.submit("work", f"after-{round}-{n}", seconds=0.02)
        until("the workers are at other managers", all_workers(site, 3), 8)
        site.start(gone)
    site.open_gate("open")
    site.check()
    assert {site.end_of(site.history.acked[token])["attempt"] for token in held} == {1}


def test_a_rolling_restart_under_load_fails_no_submit(site: Site) -> None:
    site.start()
    workers = [site.start_worker(slots=4) for _ in range(2)]
    site.submit("wait_for_gate", "held", gate="open")
    site.until_effect("held")
    ending, failures = threading.Event(), []

    def load() -> None:
        n = 0
        while not ending.is_set():
            n += 1
            try:
                site.submit("work", f"load-{n}", seconds=0.01)
            except AssertionError as error:
                failures.append(str(error))
                return

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for number in range(3):
            assert site.managers[number].stop() in (0, -signal.SIGTERM)
            site.start(number)
        until("the workers are connected", all_workers(site, 2), 8)
    finally:
        ending.set()
        thread.join(30)
    assert failures == []
    assert len(site.history.acked) > 100
    site.open_gate("open")
    site.check()
    assert site.end_of(site.history.acked["held"])["attempt"] == 1
    assert [worker.is_running for worker in workers] == [True, True]


def test_a_manager_that_stands_still_for_two_leases_costs_nothing(started: Processes, tmp_path: Path, server: Cluster) -> None:
    """M3. Its workers go to another one within the lease; what it says when it wakes up changes nothing."""
    site = Site(started, tmp_path, server, count=2, lease_s=6.0)
    site.start()
    for _ in range(2):
        site.start_worker(slots=4)
    held = [f"held-{n}" for n in range(4)]
    for token in held:
        site.submit("wait_for_gate", token, gate="open")
    for token in held:
        site.until_effect(token)
    frozen = busiest(site)
    site.manager = site.managers[1 - frozen]
    site.managers[frozen].signal(signal.SIGSTOP)
    until("the workers are at the other manager", lambda: len(site.workers_of(1 - frozen)) == 2, 10)
    tokens = [f"meanwhile-{n}" for n in range(20)]
    site.submit_many("work", tokens, seconds=0.02)
    for token in tokens:
        site.until_effect(token, "done")
    with pytest.raises(AssertionError):  # two leases long nothing is rescued
        until("a second attempt", lambda: site.sql("select max(attempt) from easyjobs.jobs") != "1", 2 * site.history.lease_s)
    site.managers[frozen].signal(signal.SIGCONT)
    until("it is back", lambda: site.managers[frozen].call("GET", "/jobs/readyz").status == 200, 20)
    site.submit_many("work", [f"afterwards-{n}" for n in range(20)], seconds=0.02)
    site.open_gate("open")
    site.check()
    assert site.sql("select max(attempt) from easyjobs.jobs") == "1"


def test_a_tick_is_fired_once_by_three_managers_of_which_one_or_another_is_dead(site: Site) -> None:
    """P7: while one manager is there, no tick is missed and none comes twice."""
    site.start()
    start_worker(site)
    begun = int(time.time())
    for number in (0, 1, 2, 0):
        survivor = (number + 1) % 3
        site.manager = site.managers[survivor]
        seen = len(jobs(site, "one"))
        until("ticks are fired", lambda seen=seen: len(jobs(site, "one")) >= seen + 2)  # and then at once: in the middle of a burst
        site.managers[number].kill()
        until("ticks are fired", lambda seen=seen: len(jobs(site, "one")) >= seen + 4)
        site.start(number)
    until("the worker is connected", all_workers(site, 1), 8)
    names = list(schedules(site))
    for name in names:
        pause(site, name)
    ended = int(time.time())
    for name in names:
        until(f"the jobs of {name} have run", lambda name=name: all(job["status"] == "succeeded" for job in jobs(site, name)))
        some = jobs(site, name)
        ticks = [second(job) for job in some]
        assert ticks == list(range(ticks[0], ticks[-1] + 1)), f"{name}: each tick, and once"
        assert ticks[0] <= begun + 1
        assert ticks[-1] >= ended - 2
        assert {job["attempt"] for job in some} == {1}
    doubled = "select count(*) from (select 1 from easyjobs.jobs where run_at is not null group by lane, run_at having count(*) > 1) d"
    assert site.sql(doubled) == "0"


def test_a_server_that_is_restarted_again_and_again_costs_no_restart_of_ours(started: Processes, tmp_path: Path) -> None:
    """P1: stopped in order and as by a power cut, in turn. EASYJOBS_TEST_RESTARTS is how often; 3 by default."""
    with cluster(directory=Path(tempfile.gettempdir())) as own:  # on a disk
        site = Site(started, tmp_path, own, count=2, lease_s=20.0)
        site.start()
        workers = [site.start_worker(slots=4) for _ in range(2)]
        site.submit("wait_for_gate", "held", gate="open")
        site.until_effect("held")
        ending, tries = threading.Event(), []

        def load() -> None:
            n = 0
            while not ending.is_set():
                n += 1
                while not ending.is_set():
                    try:
                        site.submit("work", f"load-{n}", seconds=0.01)
                        break
                    except AssertionError as error:  # the server is away: the same key again
                        tries.append(str(error))
                        ending.wait(0.1)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for round in range(int(os.environ.get("EASYJOBS_TEST_RESTARTS", "3"))):
                seen = len(site.history.acked)
                until("jobs are taken", lambda seen=seen: len(site.history.acked) > seen + 50, 30)
                own.stop(signal.SIGINT if round % 2 else signal.SIGQUIT)
                failed = len(tries)
                until("a submit is refused, as nothing can be stored", lambda failed=failed: len(tries) > failed, 30)
                own.start()
        finally:
            ending.set()
            thread.join(60)
        site.open_gate("open")
        site.check(60)
        assert site.end_of(site.history.acked["held"])["attempt"] == 1
        assert all(process.is_running for process in (*site.managers.values(), *workers))
