"""Workers that die, stop, hang or leave while they hold jobs."""

from __future__ import annotations

import signal

import pytest

from tests.faults.checker import now
from tests.faults.cluster import LEASE_S, RERUN_S, Cluster
from tests.faults.proxy import Proxy
from tests.processes import until


def test_a_job_whose_worker_is_killed_runs_again_after_the_lease(cluster: Cluster) -> None:
    first = cluster.start_worker()
    job = cluster.submit("wait_for_gate", "a", gate="go")
    cluster.until_effect("a")
    killed_at = cluster.kill(first)
    cluster.start_worker()
    cluster.open_gate("go")
    again = cluster.until_effect("a", times=2, within_s=RERUN_S)
    assert again.at - killed_at < RERUN_S
    assert cluster.end_of(job)["attempt"] == 2
    cluster.check()


def test_a_worker_killed_after_its_report_was_stored_and_before_its_ack_costs_no_rerun(cluster: Cluster) -> None:
    with Proxy(cluster.port) as proxy:
        first = cluster.start_worker(through=proxy.port)
        job = cluster.submit("wait_for_gate", "a", gate="go")
        cluster.until_effect("a")
        cluster.start_worker()
        proxy.to_worker.clear()
        cluster.open_gate("go")
        cluster.manager.until_status(job, "succeeded")
        cluster.kill(first)
    after = cluster.submit("work", "b", seconds=LEASE_S * 1.5)  # the lease of the dead worker ends meanwhile
    cluster.end_of(after)
    assert len(cluster.effects("a", "start")) == 1
    cluster.check()


def test_a_worker_killed_after_finishing_and_before_its_report_arrives_costs_one_rerun(cluster: Cluster) -> None:
    with Proxy(cluster.port) as proxy:
        first = cluster.start_worker(through=proxy.port)
        job = cluster.submit("wait_for_gate", "a", gate="go")
        cluster.until_effect("a")
        proxy.to_manager.clear()
        cluster.open_gate("go")
        cluster.until_effect("a", "done")
        cluster.kill(first)
        proxy.cut()
    cluster.start_worker()
    assert cluster.end_of(job)["attempt"] == 2
    cluster.check()


def test_a_report_that_was_stored_but_not_acked_is_a_duplicate_after_the_reconnect(cluster: Cluster) -> None:
    with Proxy(cluster.port) as proxy:
        worker = cluster.start_worker(through=proxy.port)
        job = cluster.submit("wait_for_gate", "a", gate="go")
        cluster.until_effect("a")
        proxy.to_worker.clear()
        cluster.open_gate("go")
        cluster.manager.until_status(job, "succeeded")
        proxy.cut()
        proxy.to_worker.set()
        cluster.end_of(cluster.submit("work", "b"))  # it came back
        assert worker.stop() == 0, "nothing is left that was not acked"
    assert len(cluster.effects("a", "start")) == 1
    cluster.check()


def test_a_connection_cut_under_running_jobs_costs_nothing(cluster: Cluster) -> None:
    with Proxy(cluster.port) as proxy:
        cluster.start_worker(slots=20, through=proxy.port)
        cluster.submit_many("wait_for_gate", [f"w{n}" for n in range(10)], gate="go")
        cluster.submit_many("work", [f"s{n}" for n in range(100)], seconds=0.02)
        cluster.until_effect("w9")
        for _ in range(3):
            before = len(cluster.effects("s99", "start"))
            proxy.cut()
            cluster.end_of(cluster.submit("work", f"after the cut {now()}"))
            assert before <= 1
        cluster.open_gate("go")
        cluster.check()


def test_the_late_result_of_a_stopped_worker_is_refused_once_another_worker_has_the_job(cluster: Cluster) -> None:
    first = cluster.start_worker(slots=1)
    job = cluster.submit("wait_for_gate", "a", gate="go")
    cluster.until_effect("a")
    cluster.freeze(first)
    second = cluster.start_worker(slots=1)
    cluster.until_effect("a", times=2, within_s=RERUN_S)
    cluster.thaw(first)
    cluster.open_gate("go")
    end = cluster.end_of(job)
    assert (end["attempt"], end["result"]["pid"]) == (2, second.pid)
    assert second.stop() == 0
    cluster.end_of(cluster.submit("work", "b"))  # the first one works on
    assert cluster.effects("b")[0].pid == first.pid
    cluster.check()


def test_the_late_result_of_a_stopped_worker_counts_if_nobody_has_claimed_the_job_since(cluster: Cluster) -> None:
    worker = cluster.start_worker(slots=1)
    job = cluster.submit("wait_for_gate", "a", gate="go")
    cluster.until_effect("a")
    cluster.freeze(worker)
    cluster.manager.until_status(job, "queued", within_s=RERUN_S)
    cluster.open_gate("go")
    cluster.thaw(worker)
    end = cluster.end_of(job)
    assert end["status"] == "succeeded"
    assert len(cluster.effects("a", "start")) == 1, "the job ran again"
    cluster.check()


def test_a_stop_shorter_than_the_lease_is_not_noticed(cluster: Cluster) -> None:
    first = cluster.start_worker(slots=1)
    job = cluster.submit("wait_for_gate", "a", gate="go")
    cluster.until_effect("a")
    cluster.start_worker(slots=1)
    first.signal(signal.SIGSTOP)  # no fault in the checker's eyes: a rerun would be one
    cluster.end_of(cluster.submit("work", "b", seconds=LEASE_S / 3))
    cluster.thaw(first)
    cluster.open_gate("go")
    assert cluster.end_of(job)["attempt"] == 1
    cluster.check()


def test_an_event_loop_that_is_blocked_for_longer_than_the_lease_loses_no_job(cluster: Cluster) -> None:
    first = cluster.start_worker(slots=4)
    cluster.submit_many("wait_for_gate", ["w1", "w2", "w3"], gate="go")
    for token in ("w1", "w2", "w3"):
        cluster.until_effect(token)
    cluster.submit("block_the_loop", "blocker", seconds=LEASE_S * 2.5)
    cluster.until_effect("blocker")
    cluster.start_worker(slots=4)  # would take what was rescued
    cluster.open_gate("go")
    cluster.until_effect("blocker", "done", within_s=LEASE_S * 2.5 + 5)
    cluster.check()
    assert {effect.pid for token in ("w1", "w2", "w3", "blocker") for effect in cluster.effects(token)} == {first.pid}


def test_a_plain_function_that_blocks_its_thread_does_not_hold_up_other_jobs(cluster: Cluster) -> None:
    cluster.start_worker(slots=4)
    cluster.submit("block_a_thread", "blocker", seconds=LEASE_S * 1.5)
    cluster.until_effect("blocker")
    cluster.submit_many("work", [f"w{n}" for n in range(50)], seconds=0.01)
    for n in range(50):
        cluster.end_of(cluster.history.acked[f"w{n}"])
    assert not cluster.effects("blocker", "done"), "the others waited for it"
    cluster.check()


def test_sigterm_under_load_gives_back_what_does_not_end_in_time_and_exits_with_0(cluster: Cluster) -> None:
    leaving = cluster.start_worker(slots=10, EASYJOBS_GRACE_S="1")
    cluster.submit_many("wait_for_gate", [f"w{n}" for n in range(5)], gate="go")
    cluster.until_effect("w4")
    cluster.submit_many("work", [f"s{n}" for n in range(300)], seconds=0.02)
    cluster.until_effect("s20", "done")
    staying = cluster.start_worker(slots=10)
    assert leaving.stop(15) == 0
    until("the waiting jobs run elsewhere", lambda: all(cluster.effects(f"w{n}")[-1].pid == staying.pid for n in range(5)), 10)
    cluster.open_gate("go")
    cluster.check()


def test_jobs_on_their_way_to_a_worker_that_ends_need_not_wait_for_its_lease(cluster: Cluster) -> None:
    leaving = [cluster.start_worker(slots=3) for _ in range(2)]
    cluster.submit_many("work", [f"s{n}" for n in range(3000)])
    for worker in leaving:
        worker.signal(signal.SIGTERM)
    assert [worker.wait(15) for worker in leaving] == [0, 0]
    cluster.start_worker(slots=100)
    cluster.check(40)
    assert {job["crashes"] for job in cluster.history.ends.values()} == {0}


def test_a_second_sigterm_skips_the_grace(cluster: Cluster) -> None:
    worker = cluster.start_worker(EASYJOBS_GRACE_S="60")
    cluster.submit("wait_for_gate", "a", gate="go")
    cluster.until_effect("a")
    cluster.start_worker()
    worker.signal(signal.SIGTERM)
    until("the manager knows that it drains, or it is busy with it", lambda: worker.is_running, 1)
    with pytest.raises(AssertionError, match="still runs"):
        worker.wait(1.5)
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    cluster.open_gate("go")
    cluster.check()
