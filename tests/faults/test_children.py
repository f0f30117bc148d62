"""Child processes that die, and workers that die over them: no process is left, and the job is not lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.checker import Fault, now
from tests.faults.cluster import RERUN_S, Cluster
from tests.processes import Served, until


def start(cluster: Cluster, **more: str) -> Served:
    """A worker of child_worker.py."""
    return cluster.start_worker(app="child_worker:server", **more)


def is_gone(pid: int) -> bool:
    """Whether no such process runs; a dead one that nobody reaps, in a container without an init, counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_gone(*pids: int, within_s: float = 3.0) -> None:
    until(f"{pids} are gone", lambda: all(is_gone(pid) for pid in pids), within_s)


def family(cluster: Cluster, token: str) -> tuple[int, int]:
    """The last child that runs this token, and its grandchild."""
    child = cluster.until_effect(token)
    [grandchild] = [one.pid for one in cluster.effects(token, "grandchild") if one.run == child.run]
    return child.pid, grandchild


def kill_child(cluster: Cluster, pid: int) -> None:
    cluster.history.faults.append(Fault(pid, now(), kills=True, is_child=True))
    os.kill(pid, signal.SIGKILL)


def test_a_job_whose_child_is_killed_runs_again_at_once_and_its_grandchild_is_gone(cluster: Cluster) -> None:
    start(cluster)
    job = cluster.submit("hold", "a", gate="go")
    child, grandchild = family(cluster, "a")
    kill_child(cluster, child)
    cluster.until_effect("a", times=2)
    until_gone(child, grandchild)
    cluster.open_gate("go")
    end = cluster.end_of(job)
    assert (end["status"], end["attempt"], end["crashes"], end["failures"]) == ("succeeded", 2, 1, 0)
    cluster.check()


def test_a_job_whose_children_die_too_often_fails_as_crashed(cluster: Cluster) -> None:
    start(cluster)
    job = cluster.submit("hold", "a", gate="never")
    for times in (1, 2, 3):
        cluster.until_effect("a", times=times)
        kill_child(cluster, family(cluster, "a")[0])
    end = cluster.end_of(job)
    assert (end["status"], end["error"]["kind"], end["crashes"], end["attempt"]) == ("failed", "crashed", 3, 3)
    cluster.check()


def test_a_timeout_ends_the_child_and_its_grandchild(cluster: Cluster) -> None:
    start(cluster)
    job = cluster.submit("hold_for_a_second", "a", gate="never")
    child, grandchild = family(cluster, "a")
    end = cluster.end_of(job)
    assert (end["status"], end["error"]["kind"]) == ("failed", "timeout")
    until_gone(child, grandchild)
    cluster.check()


def test_a_computation_that_cannot_be_interrupted_is_killed_at_its_timeout_and_tried_again(cluster: Cluster) -> None:
    start(cluster)
    job = cluster.submit("compute_for_a_second", "a", gate="none")
    child = cluster.until_effect("a").pid
    cluster.history.faults.append(Fault(child, now(), kills=True, is_child=True))
    end = cluster.end_of(job)
    assert (end["status"], end["attempt"], end["failures"]) == ("succeeded", 2, 1)
    until_gone(child)
    cluster.check()


@pytest.mark.parametrize("task", ["hold", "compute"])
def test_a_killed_worker_takes_its_children_and_their_children_with_it(cluster: Cluster, task: str) -> None:
    first = start(cluster)
    job = cluster.submit(task, "a", gate="go")
    pids = [cluster.until_effect("a").pid]
    if task == "hold":
        pids = list(family(cluster, "a"))
    cluster.history.faults.append(Fault(pids[0], now(), kills=True))
    cluster.kill(first)
    until_gone(*pids)
    start(cluster)
    cluster.until_effect("a", times=2, within_s=RERUN_S)
    cluster.open_gate("go")
    end = cluster.end_of(job)
    assert (end["status"], end["attempt"], end["crashes"]) == ("succeeded", 2, 1)
    cluster.check()


def test_a_worker_that_is_told_to_end_gives_its_childrens_jobs_back_and_leaves_no_process(cluster: Cluster) -> None:
    leaving = start(cluster, EASYJOBS_GRACE_S="0.5")
    job = cluster.submit("hold", "a", gate="go")
    pids = family(cluster, "a")
    assert leaving.stop(15) == 0
    until_gone(*pids)
    start(cluster)
    cluster.until_effect("a", times=2)
    cluster.open_gate("go")
    end = cluster.end_of(job)
    assert (end["status"], end["crashes"], end["failures"]) == ("succeeded", 0, 0)
    cluster.check()


def test_a_worker_that_comes_back_after_its_lease_ends_the_child_whose_job_is_anothers_now(cluster: Cluster) -> None:
    first = start(cluster)
    job = cluster.submit("hold", "a", gate="go")
    pids = family(cluster, "a")
    cluster.history.faults.append(Fault(pids[0], now(), kills=False))
    cluster.freeze(first)
    start(cluster)
    cluster.until_effect("a", times=2, within_s=RERUN_S)
    cluster.thaw(first)
    until_gone(*pids, within_s=10)
    cluster.open_gate("go")
    assert cluster.end_of(job)["attempt"] == 2
    cluster.check()
