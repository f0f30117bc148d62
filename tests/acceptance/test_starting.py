"""Starting, and starting wrongly: what a user sees when managers and workers come up in any order, twice, or with a wrong secret."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.acceptance.seed import pull, start_manager, start_worker, until_workers
from tests.processes import Processes, free_port, until


def test_a_restarted_manager_takes_jobs_before_its_workers_are_back(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    worker = start_worker(started, manager.port, app="late_worker:server")
    manager.until_offered("/later/task/newcomer")
    assert worker.stop() == 0
    assert manager.stop() == 0
    manager = start_manager(started, tmp_path, port=manager.port).until_ready()
    job = manager.submit("later", "newcomer", {"n": 21})
    assert manager.call("POST", "/later/task/newcomer", {"n": "x"}).status == 422, "the signature is known too"
    start_worker(started, manager.port, app="late_worker:server")
    assert pull(manager, job) == 42


def test_a_second_manager_on_the_same_file_is_refused_with_a_way_out(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    second = start_manager(started, tmp_path)
    assert second.wait() != 0
    assert "is in use by another manager" in second.log
    assert "DB_PATH" in second.log
    assert manager.call("GET", "/jobs/readyz").status == 200


def test_a_manager_with_several_uvicorn_workers_is_refused_with_a_way_out(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path, "--workers", "2")
    manager.wait_for_line("--workers", 20)


def test_a_file_that_was_left_by_a_killed_manager_can_be_opened(started: Processes, tmp_path: Path) -> None:
    start_manager(started, tmp_path).until_ready().kill()
    assert start_manager(started, tmp_path).until_ready().stop() == 0


def test_a_worker_with_a_wrong_secret_ends_with_a_clear_error(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    worker = start_worker(started, manager.port, app="late_worker:server", TEST_MANAGER_SECRET="not-the-secret")
    assert worker.wait(10) != 0
    assert "secret" in worker.log
    assert "not-the-secret" not in worker.log
    assert "abcd1234" not in worker.log


def test_a_worker_that_is_there_first_says_so_keeps_trying_and_then_works(started: Processes, tmp_path: Path) -> None:
    port = free_port()
    worker = start_worker(started, port, app="late_worker:server")
    worker.wait_for_line(str(port), 10)
    assert worker.is_running
    manager = start_manager(started, tmp_path, port=port).until_ready()
    manager.until_offered("/later/task/newcomer", within_s=15)
    assert pull(manager, manager.submit("later", "newcomer", {"n": 1})) == 2
    assert worker.stop() == 0


def test_a_worker_without_a_manager_can_be_stopped(started: Processes) -> None:
    port = free_port()
    worker = start_worker(started, port, app="late_worker:server")
    worker.wait_for_line(str(port), 10)
    assert worker.stop(10) is not None


def test_a_manager_in_a_lifespan_runs_its_own_tasks_and_closes(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path, app="lifespan_manager:server").until_ready()
    assert pull(manager, manager.submit("DEFAULT", "calls_another", {"n": 4})) == 9
    assert manager.stop() == 0
    manager.wait_for_line("manager says goodbye", 1)
    assert start_manager(started, tmp_path, app="lifespan_manager:server").until_ready().stop() == 0, "the file was let go"


def test_a_short_or_sample_secret_is_warned_of_loudly_at_start(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    line = manager.wait_for_line("secret", 5)
    assert "abcd1234" not in line


def test_ctrl_c_stops_five_workers_cleanly_under_load(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    worker = start_worker(started, manager.port, "--workers=5")
    until_workers(manager, 5)
    jobs = [{"namespace": "DEFAULT", "name": "plain", "args": [str(n)]} for n in range(5000)]
    assert manager.call("POST", "/jobs/api/v1/jobs", jobs).status == 202
    worker.signal(signal.SIGINT)
    assert worker.wait(40) == 0
    until("what was not finished has been given back", lambda: manager.get("/jobs/api/v1/queues")["items"][0]["running"] == 0, 5)
    start_worker(started, manager.port)
    until("all have run", lambda: manager.get("/jobs/api/v1/queues")["items"][0]["succeeded"] == 5000, 25)
