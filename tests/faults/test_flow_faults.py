"""Chains, predecessors and calls under kills: nothing that follows is lost, and nothing is born twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.faults.cluster import Cluster
from tests.processes import until

CHAINS = 40


def descendants(cluster: Cluster, job_id: str) -> list[Any]:
    children: list[Any] = cluster.manager.job(job_id)["children"]
    return children


def expect_steps(cluster: Cluster, tokens: list[str], *steps: str) -> None:
    """The checker is not to wonder about runs that no client submitted."""
    cluster.history.unknown |= {f"{token}{step}" for token in tokens for step in steps}


@pytest.mark.parametrize("victim", ["worker", "manager", "both"])
def test_every_step_of_a_chain_is_born_once_whoever_is_killed(cluster: Cluster, victim: str) -> None:
    worker = cluster.start_worker(slots=5)
    tokens = [f"c{n}" for n in range(CHAINS)]
    expect_steps(cluster, tokens, "+2", "+2+3")
    ids = cluster.submit_many("first", tokens)
    cluster.until_effect(f"c{CHAINS // 4}+2")  # in the middle of it: some chains are done, some have not begun
    if victim in ("worker", "both"):
        cluster.kill(worker)
    if victim in ("manager", "both"):
        cluster.manager.kill()
        cluster.start_manager()
    if victim in ("worker", "both"):
        cluster.start_worker(slots=5)
    cluster.check(40)
    for job_id in ids:
        [second] = descendants(cluster, job_id)
        assert (second["name"], second["edge"]) == ("second", "run_after")
        cluster.end_of(second["id"])
        [third] = descendants(cluster, second["id"])
        assert cluster.end_of(third["id"])["status"] == "succeeded"


@pytest.mark.parametrize("victim", ["worker", "manager"])
def test_a_job_that_waits_runs_once_after_both_of_its_predecessors_whoever_is_killed(cluster: Cluster, victim: str) -> None:
    worker = cluster.start_worker(slots=5)
    tokens = [f"j{n}" for n in range(CHAINS)]
    expect_steps(cluster, tokens, "+left", "+right")
    ids = cluster.submit_many("joined", tokens)
    cluster.until_effect(f"j{CHAINS // 4}+right")
    if victim == "worker":
        cluster.kill(worker)
        cluster.start_worker(slots=5)
    else:
        cluster.manager.kill()
        cluster.start_manager()
    cluster.check(40)
    for job_id in ids:
        assert sorted(child["name"] for child in descendants(cluster, job_id)) == ["left", "right"]
        assert {child["status"] for child in descendants(cluster, job_id)} == {"succeeded"}
    for token in tokens:
        first = cluster.effects(token, "start")[0]
        for side in ("+left", "+right"):
            assert any(effect.what == "done" and effect.at <= first.at for effect in cluster.effects(token + side))


def test_a_parent_whose_worker_is_killed_calls_only_what_has_not_run(cluster: Cluster) -> None:
    worker = cluster.start_worker(slots=5)
    expect_steps(cluster, ["p"], *(f"+{child}{step}" for child in "abc" for step in ("", "+2", "+2+3")))
    job_id = cluster.submit("parent", "p", gate="go")
    cluster.until_effect("p+b", "done")
    until("the second child has ended", lambda: [each["status"] for each in descendants(cluster, job_id)] == ["succeeded"] * 2)
    cluster.kill(worker)
    cluster.start_worker(slots=5)
    cluster.open_gate("go")
    assert cluster.end_of(job_id)["attempt"] == 2
    cluster.check()
    assert [len(cluster.effects(f"p+{child}", "start")) for child in "abc"] == [1, 1, 1]
    assert len(descendants(cluster, job_id)) == 3


def test_a_cancel_that_races_with_the_end_leaves_one_true_end(cluster: Cluster) -> None:
    cluster.start_worker(slots=20)
    tokens = [f"r{n}" for n in range(100)]
    ids = cluster.submit_many("work", tokens, seconds=0.02)
    answers: dict[str, tuple[int, str]] = {}

    def cancel(some: list[str]) -> None:
        for job_id in some:
            answer = cluster.manager.call("POST", f"/jobs/api/v1/jobs/{job_id}/cancel")
            answers[job_id] = (answer.status, answer.json().get("status", ""))

    threads = [threading.Thread(target=cancel, args=(ids[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.check()
    ends = {job_id: job["status"] for job_id, job in cluster.history.ends.items()}
    assert set(ends.values()) <= {"succeeded", "cancelled"}
    for job_id, (status, said) in answers.items():
        if status == 409:
            assert ends[job_id] == "succeeded"
        elif said == "cancelled":
            assert ends[job_id] == "cancelled"
        else:
            assert (status, said) == (202, "running")


def test_a_cancelled_job_whose_worker_is_gone_ends_as_cancelled(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    job_id = cluster.submit("wait_for_gate", "w", gate="never")
    cluster.until_effect("w")
    cluster.kill(worker)
    assert cluster.manager.call("POST", f"/jobs/api/v1/jobs/{job_id}/cancel").status == 202
    assert cluster.end_of(job_id)["status"] == "cancelled"
    cluster.check()


def test_a_cancel_while_the_worker_is_cut_off_reaches_it_when_it_is_back(cluster: Cluster) -> None:
    cluster.start_worker()
    job_id = cluster.submit("wait_for_gate", "w", gate="never")
    cluster.until_effect("w")
    cluster.manager.kill()
    cluster.start_manager()
    # The worker may be back or not: the wish is kept either way.
    assert cluster.manager.call("POST", f"/jobs/api/v1/jobs/{job_id}/cancel").status == 202
    cluster.until_effect("w", "cancelled")
    assert cluster.end_of(job_id)["status"] == "cancelled"
    cluster.check()
