"""Schedules while managers die. The tick of a job is its `run_at`."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from typing import Any

from tests.faults.cluster import PROGRAMS, Cluster
from tests.processes import Served, until

TASKS = 13
SCHEDULES = "/jobs/api/v1/schedules"


def start_worker(cluster: Cluster) -> Served:
    env = cluster.environment(TEST_MANAGER_PORT=str(cluster.port))
    worker = cluster.started.uvicorn("timed_worker:server", "--no-access-log", directory=PROGRAMS, name="worker", env=env)
    until("all schedules are known", lambda: len(schedules(cluster)) == TASKS, 15)
    return worker


def schedules(cluster: Cluster) -> dict[str, Any]:
    return {one["name"]: one for one in cluster.manager.get(SCHEDULES)["items"]}


def jobs(cluster: Cluster, name: str) -> list[Any]:
    """All jobs of a task, by tick."""
    found, cursor = [], ""
    while True:
        page = cluster.manager.get(f"/jobs/api/v1/jobs?name={name}&limit=500{cursor}")
        found += page["items"]
        if not page["next_cursor"]:
            return sorted(found, key=lambda job: str(job["run_at"]))
        cursor = f"&cursor={page['next_cursor']}"


def second(job: Any) -> int:
    """Its tick, in seconds since 1970."""
    at = datetime.fromisoformat(job["run_at"])
    assert at.microsecond == 0
    return int(at.timestamp())


def pause(cluster: Cluster, name: str) -> None:
    answer = cluster.manager.call("POST", f"{SCHEDULES}/{schedules(cluster)[name]['id']}/pause")
    assert answer.status == 200


def test_each_tick_is_fired_once_however_often_the_manager_is_killed(cluster: Cluster) -> None:
    start_worker(cluster)
    pause(cluster, "paused")
    before = len(jobs(cluster, "paused"))
    first = int(time.time())
    away: list[tuple[float, float]] = []
    for kill in range(4):
        seen = len(jobs(cluster, "one"))
        until("ticks are fired", lambda seen=seen: len(jobs(cluster, "one")) >= seen + 2)  # and then at once: in the middle of a burst
        cluster.manager.kill()
        killed = time.time()
        if kill == 2:  # long enough that `one` and `skip` have something to leave out
            until("five seconds are over", lambda killed=killed: time.time() > killed + 5, 10)
        cluster.start_manager()
        away.append((killed, time.time()))
    returned = away[-1][1]
    until("the last pause is caught up with", lambda: len(jobs(cluster, "all_0")) > returned - first + 3)
    for name in schedules(cluster):
        pause(cluster, name)
    ended = {name: jobs(cluster, name) for name in schedules(cluster)}

    ticks = {name: [second(job) for job in some] for name, some in ended.items()}
    for name, some in ticks.items():
        assert [tick for tick, n in Counter(some).items() if n > 1] == [], f"{name} fired a tick twice"
    for number in range(10):
        some = ticks[f"all_{number}"]
        assert some == list(range(some[0], some[-1] + 1)), "each tick, also those of the pauses"
        assert some[0] <= first + 1
        assert some[-1] > returned
    # Of the others nothing is missing while the manager is there, and of each pause the latest at most (and what was due as it fell).
    there = [tick for tick in ticks["all_0"] if first < tick < returned and not any(start - 1 < tick < end + 1 for start, end in away)]
    for name in ("one", "skip"):
        assert set(there) <= set(ticks[name])
    start, end = away[2]
    during = [tick for tick in ticks["one"] if start + 1 < tick < end - 2]
    assert len(during) <= 1, during
    assert [tick for tick in ticks["skip"] if start + 1 < tick < end - 11] == []
    assert len(ended["paused"]) == before, "it stays paused"

    for name in schedules(cluster):
        until(f"the jobs of {name} have run", lambda name=name: all(job["status"] == "succeeded" for job in jobs(cluster, name)))
        assert {job["crashes"] for job in jobs(cluster, name)} <= {0}
    assert {job["result"] for job in jobs(cluster, "one")} == {"one"}


def test_a_schedule_whose_worker_is_gone_makes_jobs_that_wait_for_it(cluster: Cluster) -> None:
    worker = start_worker(cluster)
    until("it has fired", lambda: jobs(cluster, "one"))
    worker.kill()
    cluster.manager.kill()
    cluster.start_manager()  # knows the task and its schedule from its file only
    seen = len(jobs(cluster, "one"))
    until("it goes on", lambda: len(jobs(cluster, "one")) >= seen + 2)
    assert jobs(cluster, "one")[-1]["status"] == "queued"
    start_worker(cluster)
    for name in schedules(cluster):
        pause(cluster, name)
    until("they run when a worker is back", lambda: all(job["status"] == "succeeded" for job in jobs(cluster, "one")))
