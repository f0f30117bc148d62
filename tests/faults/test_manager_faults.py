"""Managers that die, and disks that fail under them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import LEASE_S, Cluster
from tests.processes import Answer, NotInTime, Processes, until


def test_a_killed_manager_loses_no_job_and_runs_none_twice(cluster: Cluster) -> None:
    cluster.start_worker(slots=5)
    cluster.submit_many("wait_for_gate", [f"w{n}" for n in range(5)], gate="go")
    cluster.until_effect("w4")
    cluster.submit_many("work", [f"q{n}" for n in range(200)], seconds=0.001)
    cluster.manager.kill()
    cluster.open_gate("go")
    for n in range(5):
        cluster.until_effect(f"w{n}", "done")  # workers go on without their manager
    cluster.start_manager()
    cluster.check()


def test_a_manager_that_is_away_for_longer_than_the_lease_costs_no_rerun(cluster: Cluster) -> None:
    worker = cluster.start_worker(slots=5)
    cluster.submit_many("wait_for_gate", [f"w{n}" for n in range(5)], gate="go")
    cluster.until_effect("w4")
    cluster.manager.kill()
    with pytest.raises(NotInTime):  # nothing of the sort is said while nobody can have taken the jobs
        worker.wait_for_line("lease.lost", 3 * LEASE_S)
    cluster.start_manager()
    cluster.open_gate("go")
    cluster.check()
    assert {job["attempt"] for job in cluster.history.ends.values()} == {1}


def test_a_manager_killed_again_and_again_under_load_keeps_its_word(cluster: Cluster) -> None:
    cluster.start_worker(slots=20)
    cluster.start_worker(slots=20)
    for kill in range(3):
        cluster.submit_many("work", [f"{kill}-{n}" for n in range(300)], seconds=0.01)
        cluster.until_effect(f"{kill}-50")
        cluster.manager.kill()
        cluster.start_manager()
    cluster.check(40)


def test_a_manager_stopped_by_sigterm_under_load_exits_with_0_and_loses_nothing(cluster: Cluster) -> None:
    cluster.start_worker(slots=10)
    cluster.submit_many("work", [f"w{n}" for n in range(300)], seconds=0.02)
    cluster.until_effect("w20", "done")
    assert cluster.manager.stop() == 0
    cluster.start_manager()
    cluster.check()


def is_no_ack(answer: Answer) -> bool:
    return answer.status >= 500


def test_a_database_file_that_was_unlinked_takes_no_more_jobs(cluster: Cluster) -> None:
    cluster.start_worker()
    cluster.end_of(cluster.submit("work", "before"))
    for file in cluster.database.glob("*.db"):
        file.unlink()
    body = {"token": "after"}
    answers = []
    for _ in range(5):
        try:
            answers.append(cluster.manager.call("POST", "/FAULTS/task/work", body))
        except OSError:
            break  # it stopped serving: as good
    assert all(is_no_ack(answer) for answer in answers), [(answer.status, answer.body) for answer in answers]
    if cluster.manager.is_running:
        # Its answer may be as old as a second.
        until("readyz says no", lambda: cluster.manager.call("GET", "/jobs/readyz").status == 503)


def test_a_replaced_database_file_takes_no_more_jobs(cluster: Cluster) -> None:
    cluster.start_worker()
    cluster.end_of(cluster.submit("work", "before"))
    (file,) = cluster.database.glob("*.db")
    copy = file.with_suffix(".copy")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)
    answer = cluster.manager.call("POST", "/FAULTS/task/work", {"token": "after"})
    assert is_no_ack(answer), answer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_refuses_submits_keeps_what_it_has_and_recovers(small_disk: Path, started: Processes, tmp_path: Path) -> None:
    cluster = Cluster(started, tmp_path, database=small_disk / "db")
    cluster.start_manager()
    worker = cluster.start_worker()
    assert worker.stop() == 0  # its tasks stay in the catalogue
    filler = small_disk / "filler"
    filler.write_bytes(bytes(17 * 1024 * 1024))  # its place is then enough for the results, which are as large as the arguments
    refused: Answer | None = None
    for n in range(200):
        token = f"{n}-" + "x" * 100_000
        answer = cluster.manager.call("POST", "/FAULTS/task/work", {"token": token})
        if answer.status != 200:
            refused = answer
            break
        cluster.history.acked[token] = answer.json()["request_id"]
    assert refused is not None
    assert refused.status == 507, refused
    assert cluster.history.acked, "the disk was too small from the start"
    assert cluster.manager.get("/jobs/api/v1/queues")["items"], "reading goes on"
    filler.unlink()

    def taken() -> bool:
        answer = cluster.manager.call("POST", "/FAULTS/task/work", {"token": "room again"})
        if answer.status == 200:
            cluster.history.acked["room again"] = answer.json()["request_id"]
        return answer.status == 200

    until("it takes jobs again", taken, 10)
    cluster.start_worker()
    cluster.check()
